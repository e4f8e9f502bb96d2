"""`python -m simulation.clinical runs/NAME`: measure a finished rehearsal's test patients and write the clinician's report."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from pydantic import ValidationError

from simulation.settings import Simulation, sentences


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it. Returns 0, or 1 with a sentence on standard error if it can't be done."""
    parser = argparse.ArgumentParser(prog="python -m simulation.clinical", description=__doc__)
    parser.add_argument("folder", type=Path, help="a finished run's folder")
    parser.add_argument("--workers", type=int, default=None, help="processes (default: one per core; 0: none)")
    options = parser.parse_args(arguments)
    folder: Path = options.folder
    try:
        simulation = Simulation.model_validate(json.loads((folder / "settings.json").read_text()))
        for path in measured_report(simulation, folder, workers=options.workers):
            print(path)
    except ValidationError as error:
        print(f"{folder / 'settings.json'}: {sentences(error)}", file=sys.stderr)
        return 1
    except (OSError, ValueError) as error:
        print(f"{folder}: {error}", file=sys.stderr)
        return 1
    return 0


def measured_report(simulation: Simulation, folder: Path, *, workers: int | None) -> list[Path]:
    """Measure and write; the paths of what was written."""
    from fl_server.record import Record
    from fl_server.report import write
    from fl_server.report.measured import FILE
    from simulation.clinical import measure
    from simulation.machine import executor
    from simulation.rehearsal import open_hospitals
    from simulation.run_folder import to_itself
    from simulation.screen import Screen

    screen = Screen(simulation)
    with to_itself(folder), screen, executor(workers) as pool:
        sites, held_out, real = open_hospitals(simulation, folder.parent / "cache", pool, screen)
        every = [(role, h) for role, group in (("site", sites), ("held_out", held_out), ("real", real)) for h in group.values()]
        study_hash = Record.read(folder / "record.json").study_hash
        found = measure(simulation, folder, study_hash, every, pool=pool, advance=partial(screen.advance, "test patients"))
        found.write(folder / FILE)
        return [folder / FILE, *write(folder)]


if __name__ == "__main__":
    sys.exit(main())
