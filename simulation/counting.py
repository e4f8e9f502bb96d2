"""The rehearsal of a counting study: one round, one noisy sum, and what lies in the folder afterwards."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from conf.study import LocalTraining, Strategy
from fl_server.record import Record
from fl_server.weights import initial_state
from simulation.arms import Arm, train
from simulation.hospital import Hospital
from simulation.machine import Meter
from simulation.results import at_the_ledger
from simulation.screen import Screen
from simulation.settings import Simulation
from tasks.task import settled
from tasks.weights import save


def counting_arm(simulation: Simulation, task: dict[str, Any], hospitals: Mapping[str, Hospital], folder: Path) -> Arm:
    """The federation that counts this task, under the simulation's promise."""
    plan = simulation.study(seed=simulation.seed, private=True, sites=tuple(hospitals), initial=None)
    privacy = plan.privacy.model_copy(update={"evaluation_share": 0.0, "validation_share": 0.0, "matrix_share": 0.0})
    changes = {
        "task": settled(task),
        "rounds": 1,
        "training": LocalTraining(),
        "strategy": Strategy(name="sum"),
        "validation": None,
        "privacy": privacy,
    }
    counted = plan.model_copy(update=changes)
    place = folder / "arms" / "federation_private" / str(simulation.seed)
    return Arm("federation_private", type(counted).model_validate(counted.model_dump()), hospitals, place)


def count(arm: Arm, *, engine: str, meter: Meter, pool: Executor, screen: Screen) -> None:
    """Run it, from the empty sum."""
    empty = arm.folder.parent / "empty.pt"
    empty.parent.mkdir(parents=True, exist_ok=True)
    save(initial_state(arm.study), empty)
    with meter.phase("federation"):
        screen.advance("federation", 0, 1)
        train(arm, empty, pool=pool, engine=engine)
        screen.advance("federation", 1, 1)


def complete(arm: Arm, simulation: Simulation, meter: Meter) -> Record:
    """The federation's record with what the researcher knows beside it."""
    record = arm.record()
    record.seeds, record.profile, record.engine = [simulation.seed], simulation.size.profile, simulation.engine
    for name, hospital in arm.hospitals.items():
        site = record.sites[name]
        site.declared_size, site.scanner = hospital.declared_size, hospital.scanner
        site.cases_expected, site.cases_used = hospital.cases_expected, len(hospital.cohort)
        site.cases_refused, site.cases_withdrawn = len(hospital.refused), len(hospital.cohort.withdrawn)
        site.epsilon = at_the_ledger(arm, name)
    record.timings = {phase: round(seconds, 2) for phase, seconds in [*meter.timings.items(), ("total", meter.total_s)]}
    record.memory_mb = {phase: round(memory, 1) for phase, memory in meter.memory_mb.items()}
    record.peak_memory_mb = round(meter.peak_memory_mb, 1)
    return record


def export(arm: Arm, folder: Path) -> None:
    """The sum, and each hospital's ledger with its head."""
    shutil.copy(arm.folder / "model.pt", folder / "model.pt")
    shutil.rmtree(folder / "ledgers", ignore_errors=True)
    (folder / "ledgers").mkdir()
    for name in arm.hospitals:
        for ending in ("", ".head"):
            ledger = arm.folder / "sites" / name / f"ledger.jsonl{ending}"
            if ledger.exists():
                shutil.copy(ledger, folder / "ledgers" / f"{name}.jsonl{ending}")
