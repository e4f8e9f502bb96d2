"""What a model's sureness is worth here: `konsil-site calibrate`."""

from __future__ import annotations

import argparse
from pathlib import Path

from fl_client.commands import Commands, add_members
from fl_client.site import Site


def add(commands: Commands) -> None:
    """The command and its options."""
    own = commands.add_parser("calibrate", help="learn from held-back patients how sure a trained model may be; it stays here")
    own.add_argument("model", type=Path, help="model.pt of a run, or the run's folder")
    own.add_argument("--study", help="a study's file, or the beginning of its hash (default: record.json beside the model)")
    add_members(own)
    own.set_defaults(run=_calibrate)


def _calibrate(site: Site, options: argparse.Namespace) -> int:
    from fl_client.segmenting import progress_bars  # here: torch takes seconds to import
    from fl_client.uncertainty import calibrate, lines

    with progress_bars() as advance:
        found = calibrate(site, options.model, study=options.study, also=options.also, count=options.members, progress=advance)
    for line in lines(found):
        print(line)
    print("It is kept here for segment and return, and must not leave the house.")
    return 0
