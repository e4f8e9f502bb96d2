"""Reference values by age and sex: `konsil-site add-reference-values`."""

from __future__ import annotations

import argparse
from pathlib import Path

from fl_client.commands import Commands
from fl_client.site import Site


def add(commands: Commands) -> None:
    """The command and its option."""
    new = commands.add_parser(
        "add-reference-values", help="keep the curves of a study of reference values, to compare patients with"
    )
    new.add_argument("folder", type=Path, help="the run's folder, with its model.pt and record.json")
    new.set_defaults(run=_add)


def _add(site: Site, options: argparse.Namespace) -> int:
    from fl_client.reference_values import add_reference_values  # here: torch takes seconds to import

    return add_reference_values(site, options.folder)
