"""`python -m simulation.uncertainty runs/NAME`: how sure a finished rehearsal's model is, and its report anew."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from simulation.run_folder import FolderInUse
from simulation.settings import Simulation, sentences


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it. Returns 0, or 1 with a sentence on standard error if it can't be done."""
    parser = argparse.ArgumentParser(prog="python -m simulation.uncertainty", description=__doc__)
    parser.add_argument("folder", type=Path, help="a finished run's folder")
    parser.add_argument("--patients", type=int, default=24, help="generated patients to learn from (default: 24)")
    parser.add_argument("--workers", type=int, default=None, help="processes (default: one per core; 0: none)")
    options = parser.parse_args(arguments)
    folder: Path = options.folder
    try:
        if not (folder / "settings.json").is_file():
            raise ValueError("it is no folder of a run: it has no settings.json")
        simulation = Simulation.model_validate(json.loads((folder / "settings.json").read_text()))
        for line in measured_report(simulation, folder, patients=options.patients, workers=options.workers):
            print(line)
    except ValidationError as error:
        print(f"{folder / 'settings.json'}: {sentences(error)}", file=sys.stderr)
        return 1
    except FolderInUse as error:
        print(error, file=sys.stderr)
        return 1
    except (OSError, ValueError) as error:
        print(f"{folder}: {error}", file=sys.stderr)
        return 1
    return 0


def measured_report(simulation: Simulation, folder: Path, *, patients: int, workers: int | None) -> list[str]:
    """Measure and write; what came of it. Raises `ValueError` for a run without a model that draws masks."""
    from simulation.machine import executor
    from simulation.rehearsal import open_hospitals
    from simulation.report import write_report
    from simulation.run_folder import to_itself
    from simulation.screen import Screen
    from simulation.uncertainty import examinees, forget, measure, require_masks
    from simulation.uncertainty.found import FILE

    with to_itself(folder):
        forget(folder)
        require_masks(folder, simulation.task)
        screen, cache = Screen(simulation), folder.parent / "cache"
        with screen, executor(workers) as pool:
            sites, held_out, real = open_hospitals(simulation, cache, pool, screen)
            groups = (("site", sites), ("held_out", held_out), ("real", real))
            tested = examinees((role, hospital) for role, group in groups for hospital in group.values())
            found = measure(simulation, folder, tested, cache=cache, pool=pool, advance=screen.advance, learned_from=patients)
        if found is None:
            raise ValueError("there is nobody to test its model on")
        report = write_report(folder)
    told = found.figures
    rank = "can't be told" if told.rank is None else f"{told.rank:.2f}"
    lines = [f"{told.patients} test patients, rank correlation {rank}; the first {told.looked} hold {told.caught} of the worst"]
    return [*([found.trouble] if found.trouble else []), *lines, str(folder / FILE), str(report)]


if __name__ == "__main__":
    sys.exit(main())
