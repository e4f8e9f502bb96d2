"""`make federation`: one coordinator and three hospitals on this machine, from DICOM to two trained models.

The exit status is 0 only if every study ended `complete`; 3 if one was degraded, 4 if one failed, 1 if a command failed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from simulation.faults.plan import planned
from simulation.federation.programs import CommandFailed
from simulation.federation.recipe import Town, federation

EXIT = {"complete": 0, "degraded": 3, "failed": 4}


def main(arguments: Sequence[str] | None = None) -> int:
    """Build, run, tell the verdict."""
    parser = argparse.ArgumentParser(prog="make federation", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/federation"), help="made anew (default: runs/federation)")
    parser.add_argument("--patients", type=int, default=5, help="of each generated hospital (default 5)")
    parser.add_argument("--rounds", type=int, default=3, help="of the U-Net (default 3)")
    parser.add_argument("--faults", default="none", help="a plan of conf/faults, like town_days (default: none)")
    options = parser.parse_args(arguments)
    try:
        faults = planned(options.faults)
        faults.require(sites=(*Town.generated, "sunnybrook"), rounds=options.rounds, processes=True)
    except ValueError as error:
        parser.error(str(error))
    begun = time.monotonic()
    try:
        records = federation(Town(options.folder.resolve(), patients=options.patients, rounds=options.rounds, faults=faults))
    except CommandFailed as failed:
        print(f"{failed}\n{options.folder}/commands.log and the other logs beside it say more", file=sys.stderr)
        return 1
    verdict = max((record.verdict for record in records.values()), key=lambda name: EXIT[name])
    print(f"federation: {verdict}, {len(records)} studies, {time.monotonic() - begun:.0f} s; {options.folder}")
    return EXIT[verdict]


if __name__ == "__main__":
    sys.exit(main())
