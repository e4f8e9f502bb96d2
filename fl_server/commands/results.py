"""What came of a study: `konsil-study record`."""

from __future__ import annotations

import argparse
from pathlib import Path

from fl_server.commands import Commands


def add(commands: Commands, house: argparse.ArgumentParser) -> None:
    """The command and its options."""
    told = commands.add_parser("record", help="what came of it; the exit code is the verdict")
    told.set_defaults(run=lambda options: record(options.file))
    told.add_argument("file", type=Path, help="a record.json")


def record(path: Path) -> int:
    """Print the verdict and its reasons; of a study that is not over, how it stands."""
    from fl_server.console import watch
    from fl_server.console.picture import drawn
    from fl_server.counts import lines
    from fl_server.live import Now
    from fl_server.record import Record
    from fl_server.runs import Standing

    found = Record.read(path)
    beside = (Now.read(path.parent), Standing.read(path.parent)) if path.name == "record.json" else (None, None)
    seen = drawn(found.name, (found, *beside))
    still = f", {len(found.unmoved)} of which changed nothing" if found.unmoved else ""
    stands = f"{found.verdict}, {len(found.rounds)} rounds{still}" if seen.over else f"{seen.said}; no verdict yet"
    print(f"{found.name} ({found.study_hash[:12]}): {stands}")
    for said in [*seen.reasons, *seen.remarks]:
        print(f"  {said}")
    for line in lines(found):
        print(line)
    for name, site in found.sites.items():
        price = "no answer with a price" if site.epsilon is None else f"epsilon {site.epsilon:.4g} (delta {site.delta:g})"
        told = f", when it last told ({found.told_in(name)})" if found.told_in(name) else ""
        print(f"  {name}: {price}{told}")
    return watch.status(seen)
