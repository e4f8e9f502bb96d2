"""Back to the archive: `konsil-site return`."""

from __future__ import annotations

import argparse
from pathlib import Path

from fl_client.commands import Commands, add_heat_maps, add_members
from fl_client.site import Site


def add(commands: Commands) -> None:
    """The command and its options."""
    back = commands.add_parser("return", help="masks and a report of a trained model back to the hospital's own archive")
    back.add_argument("model", type=Path, help="model.pt of a run, or the run's folder, with its record.json")
    back.add_argument("--study", help="the run's record.json, where it does not lie beside the model")
    back.add_argument(
        "--patient", action="append", default=[], help="pseudonym or the hospital's number; several times (default: all)"
    )
    back.add_argument("--series-rules", type=Path, help="as the intake's (default: arrivals.series_rules)")
    back.add_argument("--labels", help="label map with the codes for DICOM SEG (default: arrivals.labels, else cardiac)")
    back.add_argument("--dry-run", action="store_true", help="make the objects, to look at them; send nothing")
    back.add_argument("--who", help="who sends them, for the audit log (default: the user's name)")
    add_heat_maps(back)
    add_members(back)
    back.set_defaults(run=_return)


def _return(site: Site, options: argparse.Namespace) -> int:
    from fl_client.returning import give_back  # here: image readers and torch take seconds to import

    return give_back(
        site,
        options.model,
        who=options.who,
        study=options.study,
        patients=options.patient,
        labels=options.labels,
        rules=options.series_rules,
        dry_run=options.dry_run,
        members=options.members,
        also=options.also,
        heat_maps=options.heat_maps,
    )
