"""The run folder belongs to one run at a time, and what lies in it comes from one set of settings.

A second run of the same name finds arms that it need not train again, and beside them what the report is made of. Where its
settings differ, that is removed before anything runs, so that a run which is interrupted leaves no mixture.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from simulation.settings import Simulation
from simulation.whole_file import write_whole

RESULTS = (
    *("record.json", "report.html", "scores.jsonl", "metrics.jsonl", "overlays", "ledgers"),
    *("model.pt", "model.ts.pt", "model.ts.json", "models", "radiomics.json"),
    *("reference_values.json", "reference_facts.json"),
    *("intensity_scale.json", "intensity_facts.json"),
    *("clinical.json", "clinical_report.html", "clinical_report.pdf"),
    *("uncertainty.json", "calibration.json", "gate.json"),
)
"""What a run makes of its arms, anew at every call."""
NO_DIFFERENCE = {"workers", "runs_folder", "clinical", "uncertainty", "audit"}
"""Settings that don't determine any result."""


class FolderInUse(Exception):
    """Another process runs in this folder."""


@contextmanager
def to_itself(folder: Path) -> Iterator[None]:
    """Keep other runs out of the folder, which is made if need be. Raises `FolderInUse`. A killed process keeps nobody out."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a+") as file:  # only its lock counts; the number in it is for words
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise FolderInUse(
                f"another konsil-simulate (process {file.read().strip() or 'unknown'}) runs in {folder}; "
                "wait until it has ended, or give this run another name=..."
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def settle(simulation: Simulation, folder: Path) -> bool:
    """Write the settings into the folder; results of others are removed first. Returns whether there were any."""
    path = folder / "settings.json"
    stale = _determining(_read(path)) != _determining(simulation.model_dump(mode="json"))
    removed = stale and remove_results(folder)
    if stale:
        (folder / "timings.json").unlink(missing_ok=True)  # seconds of a run that was interrupted and won't be gone on with
    write_whole(path, simulation.model_dump_json(indent=1))
    return removed


def remove_results(folder: Path) -> bool:
    """Remove what a run made of its arms. Returns whether there was any of it."""
    found = [folder / name for name in RESULTS if (folder / name).exists()]
    for path in found:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    return bool(found)


def _read(path: Path) -> dict[str, Any]:
    """The settings of the last run here; none if it left none that can be read."""
    try:
        return dict(json.loads(path.read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return {}


def _determining(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in NO_DIFFERENCE}
