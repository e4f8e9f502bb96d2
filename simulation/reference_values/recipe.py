"""The rehearsal of a study of reference values: the federation counts, the curves are fitted, and what only we know stands
beside.

The federation is what real hospitals would do: one noisy sum. Only the owner of generated patients can also measure them all
without noise; these numbers are kept apart in `reference_facts.json` and enter no curve.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fl_client.cohort import Cohort
from fl_client.reference_values import values_of
from fl_server.record import Record
from fl_server.weights import State
from simulation.arms import Arm
from simulation.counting import complete, count, counting_arm, export
from simulation.hospital import Hospital
from simulation.machine import Meter, unordered
from simulation.reference_values.settings import Reference
from simulation.report.reference_values import FACTS, VALUES
from simulation.screen import Screen
from simulation.settings import Simulation
from simulation.whole_file import write_whole
from tasks.provenance import Provenance
from tasks.reference_values.measures import Ventricle
from tasks.reference_values.task import ReferenceTask
from tasks.reference_values.values import ReferenceValues, reference_values
from tasks.task import load


def study(
    simulation: Simulation,
    reference: Reference,
    hospitals: Mapping[str, Hospital],
    folder: Path,
    *,
    meter: Meter,
    pool: Executor,
    screen: Screen,
) -> Record:
    """Run it and write the sum, `reference_values.json`, the facts and the ledgers into `folder`. Returns the record."""
    for name in (VALUES, FACTS, "model.pt"):  # of an earlier run, until this one has its own
        (folder / name).unlink(missing_ok=True)
    arm = counting_arm(simulation, reference.task, hospitals, folder)
    count(arm, engine=simulation.engine, meter=meter, pool=pool, screen=screen)
    with meter.phase("measures without noise"):
        measured = _measured(dict(arm.study.task), hospitals, pool, screen)
    record = complete(arm, simulation, meter)
    if (arm.folder / "model.pt").exists():
        with meter.phase("curves"):
            values = values_of(arm.folder)
            write_whole(folder / VALUES, values.model_dump_json())
            _write_facts(folder / FACTS, arm, hospitals, measured, values, shown=reference.shown)
        export(arm, folder)
    return record


def _measured(
    task: dict[str, Any], hospitals: Mapping[str, Hospital], pool: Executor, screen: Screen
) -> dict[str, dict[str, Ventricle]]:
    """Every patient who can be measured, by hospital and pseudonym."""
    jobs = [(task, name, one.cohort_folder, patient) for name, one in hospitals.items() for patient in one.cohort.patients]
    found: dict[str, dict[str, Ventricle]] = {name: {} for name in hospitals}
    for done, (name, patient, ventricle) in enumerate(unordered(pool, measure_one, jobs), start=1):
        if ventricle is not None:
            found[name][patient] = ventricle
        screen.advance("measures without noise", done, len(jobs))
    return {name: dict(sorted(patients.items())) for name, patients in found.items()}


def measure_one(task: dict[str, Any], name: str, cohort: Path, patient: str) -> tuple[str, str, Ventricle | None]:
    """One patient's own numbers; None where they can't be had."""
    counting = load(task)
    if not isinstance(counting, ReferenceTask):
        raise ValueError(f"task {task['name']} measures no ventricle")
    try:
        return name, patient, counting.measured(Cohort(cohort).case(patient))
    except ValueError:
        return name, patient, None


def exact(task: ReferenceTask, patients: list[Ventricle]) -> State:
    """The sum of these patients without noise."""
    total = np.zeros(task.length)
    for patient in patients:
        if rows := task.rows(patient):
            total += task.contribution({"rows": np.array(rows, np.int64)})
    return {"total": torch.from_numpy(total), "noise_variance": torch.zeros(1, dtype=torch.float64)}


def _write_facts(
    path: Path,
    arm: Arm,
    hospitals: Mapping[str, Hospital],
    measured: Mapping[str, Mapping[str, Ventricle]],
    values: ReferenceValues,
    *,
    shown: int,
) -> None:
    """The counted patients' own numbers, curves of them without noise, and patients held back, to be shown among the curves."""
    task = load(arm.study.task)
    if not isinstance(task, ReferenceTask):
        return
    counted = [measured[name][p] for name, one in hospitals.items() for p in one.training_patients if p in measured[name]]
    bare = Provenance(study=values.study, study_hash=values.study_hash, hospitals=values.hospitals, epsilon=None, delta=None)
    plain = reference_values(task, exact(task, counted), bare)
    held_back = [
        {"hospital": name, "patient": patient, "ventricle": asdict(measured[name][patient])}
        for name, one in hospitals.items()
        for patient in [p for p in one.test_patients if p in measured[name]][:shown]
    ]
    facts = {"counted": [asdict(one) for one in counted], "pooled": plain.model_dump(mode="json"), "held_back": held_back}
    write_whole(path, json.dumps(facts))
