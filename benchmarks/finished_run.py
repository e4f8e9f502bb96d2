"""What the programs about whole runs share: their command line, and a run of `konsil-simulate` that came to its end.

A run that was refused or failed leaves what an earlier one wrote; figures are only ever read from the run that was asked for.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from simulation.__main__ import main as simulate

COMPLETE, DEGRADED = 0, 3


def command_line(description: str) -> argparse.ArgumentParser:
    """A parser of `--runs` and of further settings."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", default="runs", help="folder of runs and cache; an empty one measures a first run")
    parser.add_argument("overrides", nargs="*", help="further settings, key=value")
    return parser


def finished_run(name: str, runs: str, overrides: Sequence[str]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Run `konsil-simulate`, and return its record and the rows of its scores.

    Ends the program with the run's exit status unless that is complete or degraded.
    """
    status = simulate([f"name={name}", f"runs_folder={runs}", *overrides])
    if status not in (COMPLETE, DEGRADED):
        sys.exit(status)
    folder = Path(runs) / name
    record = json.loads((folder / "record.json").read_text())
    return record, [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]


def largest_epsilon(record: dict[str, Any]) -> float | None:
    """The largest epsilon in any hospital's ledger; None if nobody paid any."""
    return max((site["epsilon"] for site in record["sites"].values() if site["epsilon"] is not None), default=None)


def rounded_mean(values: Sequence[float]) -> float | None:
    """The mean with four digits; None of nothing."""
    return round(sum(values) / len(values), 4) if values else None
