"""What came of a study: `konsil-study record`."""

from __future__ import annotations

import argparse
from pathlib import Path

from fl_server.commands import EXIT, Commands


def add(commands: Commands, house: argparse.ArgumentParser) -> None:
    """The command and its options."""
    told = commands.add_parser("record", help="what came of it; the exit code is the verdict")
    told.set_defaults(run=lambda options: record(options.file))
    told.add_argument("file", type=Path, help="a record.json")


def record(path: Path) -> int:
    """Print the verdict and its reasons."""
    from fl_server.counts import lines
    from fl_server.record import Record

    found = Record.read(path)
    print(f"{found.name} ({found.study_hash[:12]}): {found.verdict}, {len(found.rounds)} rounds")
    for said in [*found.reasons, *found.remarks]:
        print(f"  {said}")
    for line in lines(found):
        print(line)
    for name, site in found.sites.items():
        price = "no answer with a price" if site.epsilon is None else f"epsilon {site.epsilon:.4g} (delta {site.delta:g})"
        print(f"  {name}: {price}")
    return EXIT[found.verdict]
