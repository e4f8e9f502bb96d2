"""The rehearsal of a study of an intensity scale: the federation counts, and what only we know stands beside.

The federation is what real hospitals would do: one noisy sum. Only the owner of generated patients can also measure each
hospital's without noise, and show a patient of it: `intensity_facts.json` and `overlays/intensities.npz` are for the report.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fl_client.cohort import Cohort
from fl_server.record import Record
from simulation.arms import Arm
from simulation.counting import complete, count, counting_arm, export
from simulation.hospital import Hospital
from simulation.intensity_scale.settings import IntensityStudy
from simulation.intensity_scale.worn import scale_of
from simulation.machine import Meter, unordered
from simulation.report.intensity_scale import FACTS, PICTURES, SCALE
from simulation.screen import Screen
from simulation.settings import Simulation
from simulation.synthetic import free_case
from simulation.whole_file import write_whole
from tasks.case import Case
from tasks.intensity_scale.released import IntensityScale
from tasks.intensity_scale.scale import in_scale, landmarks
from tasks.intensity_scale.settings import Settings
from tasks.intensity_scale.task import IntensityTask
from tasks.task import load

Floats = npt.NDArray[np.float64]


def study(
    simulation: Simulation,
    asked: IntensityStudy,
    hospitals: Mapping[str, Hospital],
    folder: Path,
    *,
    meter: Meter,
    pool: Executor,
    screen: Screen,
) -> Record:
    """Run it and write the sum, `intensity_scale.json`, the facts and the ledgers into `folder`. Returns the record.

    A sum that the noise has drowned is a degraded run, and its record says so.
    """
    for name in (SCALE, FACTS, "model.pt"):  # of an earlier run, until this one has its own
        (folder / name).unlink(missing_ok=True)
    arm = counting_arm(simulation, asked.task, hospitals, folder)
    count(arm, engine=simulation.engine, meter=meter, pool=pool, screen=screen)
    record = complete(arm, simulation, meter)
    if (arm.folder / "model.pt").exists():
        export(arm, folder)
        try:
            scale = scale_of(arm.folder)
        except ValueError as error:
            record.verdict, record.reasons = "degraded", [*record.reasons, str(error)]
            return record
        write_whole(folder / SCALE, scale.model_dump_json())
        with meter.phase("what only we know"):
            _write_facts(folder, scale, arm, hospitals, shown=asked.shown, pool=pool, screen=screen)
    return record


def _write_facts(
    folder: Path,
    scale: IntensityScale,
    arm: Arm,
    hospitals: Mapping[str, Hospital],
    *,
    shown: int,
    pool: Executor,
    screen: Screen,
) -> None:
    """Each hospital's landmarks without noise, those of free patients, and pictures of both."""
    settings = arm.study.task
    jobs = [
        (settings, name, one.cohort_folder, patient) for name, one in hospitals.items() for patient in one.training_patients
    ]
    found: dict[str, list[list[float]]] = {name: [] for name in hospitals}
    for done, (name, own) in enumerate(unordered(pool, measure_one, jobs), start=1):
        if own is not None:
            found[name].append(own)
        screen.advance("what only we know", done, len(jobs))
    free = [free_case(number, scale.settings.series[:1], {}) for number in range(shown)]
    as_drawn = [landmarks(case.volumes[0], scale.settings).tolist() for case in free]
    facts = {
        "hospitals": {name: _mean(sorted(own)) for name, own in found.items() if own},
        "free": _mean(as_drawn),
        "counted": {name: len(own) for name, own in found.items()},
    }
    write_whole(folder / FACTS, json.dumps(facts))
    pictures = {f"free/{number}": _middle(case, scale.settings, None) for number, case in enumerate(free)}
    pictures |= {f"worn/{number}": _middle(case, scale.settings, scale.landmarks) for number, case in enumerate(free)}
    for name, one in hospitals.items():
        if (case := _shown(one, scale.settings)) is not None:
            pictures[f"hospital/{name}"] = _middle(case, scale.settings, None)
    (folder / PICTURES).parent.mkdir(exist_ok=True)
    np.savez_compressed(folder / PICTURES, **pictures)  # type: ignore[arg-type]


def measure_one(task: dict[str, Any], name: str, cohort: Path, patient: str) -> tuple[str, list[float] | None]:
    """One patient's own landmarks; None where they can't be had."""
    counting = load(task)
    if not isinstance(counting, IntensityTask):
        raise ValueError(f"task {task['name']} has no landmarks")
    try:
        own: list[float] = counting.prepare(Cohort(cohort).case(patient))["rows"].mean(0).tolist()
    except ValueError:
        return name, None
    return name, own


def _mean(own: Sequence[list[float]]) -> list[float]:
    """As the study takes it: of roots."""
    mean: list[float] = np.square(np.sqrt(np.array(own)).mean(0)).tolist()
    return mean


def _shown(hospital: Hospital, settings: Settings) -> Case | None:
    """A patient held back who has the series, with contrast."""
    for patient in hospital.test_patients:
        case = hospital.cohort.case(patient)
        try:
            _middle(case, settings, None)
        except ValueError:
            continue
        return case
    return None


def _middle(case: Case, settings: Settings, wanted: Sequence[float] | None) -> npt.NDArray[np.float32]:
    """The middle slice of the first series from 0 to 1.5, in the scale `wanted` or its own."""
    volume = case.volume(settings.series[0])
    if volume is None:
        raise ValueError(f"case {case.patient} has no {settings.series[0]}")
    own = landmarks(volume, settings) if wanted is None else wanted
    image = in_scale(volume, own, settings).image
    found: npt.NDArray[np.float32] = np.asarray(image[len(image) // 2], np.float32)
    return found
