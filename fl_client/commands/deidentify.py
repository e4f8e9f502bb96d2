"""An export for colleagues: `konsil-site deidentify FOLDER --out FOLDER`, whole DICOM files without their patients."""

from __future__ import annotations

import argparse
from pathlib import Path

from fl_client.commands import Commands
from fl_client.site import Site


def add(commands: Commands) -> None:
    """The command and its options."""
    export = commands.add_parser("deidentify", help="write de-identified copies of DICOM files, and say what was taken away")
    export.add_argument("folder", type=Path, help="DICOM files, nested as they may be")
    export.add_argument("--out", type=Path, required=True, help="a new folder for the copies")
    export.add_argument(
        "--retain",
        action="append",
        choices=("dates", "device", "descriptors", "characteristics"),
        help="an option of PS3.15; may be given several times (default: arrivals.retain of the site)",
    )
    export.add_argument("--accept-faces", action="store_true", help="copy images of the head, too")
    export.add_argument("--other-key", action="store_true", help="pseudonyms that nobody can link to the cohort's")
    export.set_defaults(run=_deidentify)


def _deidentify(site: Site, options: argparse.Namespace) -> int:
    from fl_client.intake.export import export  # here: pydicom takes a moment to import

    return export(
        site,
        options.folder,
        options.out,
        retain=tuple(options.retain) if options.retain else site.arrivals.retain,
        accept_faces=options.accept_faces or site.arrivals.accept_faces,
        other_key=options.other_key,
    )
