"""How sure a rehearsal's model is of its test patients, and whether that can be believed: `uncertainty.json`.

The coordinator learns what members' agreement is worth from generated patients whom no training and no hospital has seen,
which costs nobody's privacy; it is `calibration.json`, which goes along with the model. Then every hospital's test patients are
examined with it, and their Dice compared with what was expected. No coordinator of real hospitals could do the second: a
hospital does it with its own held-back patients (`konsil-site calibrate`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fl_client.cohort import Cohort
from fl_client.trained import read_weights
from fl_client.uncertainty import BESIDE
from simulation.hospital import Hospital
from simulation.intensity_scale.worn import dressed, scales_of
from simulation.machine import unordered
from simulation.pretraining import free_cohort, free_patients, looked_at
from simulation.scoring import device, restore
from simulation.settings import Simulation
from simulation.uncertainty.found import FILE, PICTURE, Figures, Ranked, Unsure
from simulation.whole_file import write_whole
from tasks.fingerprint import fingerprint
from tasks.intensity_scale.released import IntensityScale
from tasks.segmentation.settings import Settings
from tasks.segmentation.task import SegmentationTask
from tasks.task import gradient_task, load
from tasks.uncertainty import triage
from tasks.uncertainty.calibration import Calibration, calibrate, calibration_error, rank_correlation, reliability
from tasks.uncertainty.examine import Examined, Judged, examine, judge
from tasks.uncertainty.views import MEMBERS, members_of

FIRST_SEED = 80_000_000
"""Of the generated patients who are learned from: no hospital treats them, and no model is trained on them."""
PATIENTS = 24

Advance = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Examinee:
    """A patient who is tested, in what role the hospital is, and where the patient lies."""

    role: str
    hospital: str
    cohort: Path
    patient: str


def examinees(roles: Iterable[tuple[str, Hospital]]) -> list[Examinee]:
    """Test patients of a rehearsal's hospitals. Real images are large, and are left out."""
    return [
        Examinee(role, hospital.name, hospital.cohort_folder, patient)
        for role, hospital in roles
        if role != "real"
        for patient in hospital.test_patients
    ]


@dataclass(frozen=True)
class Job:
    """A patient and where everything lies: a pool's worker is told no more."""

    task: dict[str, Any]
    weights: Path
    cohort: Path
    patient: str
    members: int
    number: int = 0
    scales: tuple[IntensityScale, ...] = ()  # that this patient, the one of this number, is seen in


def measure(
    simulation: Simulation,
    folder: Path,
    tested: Sequence[Examinee],
    *,
    cache: Path,
    pool: Executor,
    advance: Advance,
    learned_from: int = PATIENTS,
    members: int = MEMBERS,
) -> Unsure | None:
    """Write `calibration.json`, `uncertainty.json` and a picture into the run's folder; None for a run without such a model."""
    forget(folder)
    weights = folder / "model.pt"
    if simulation.task.get("name") != "segmentation" or not weights.exists():
        return None
    settings = _settings(simulation.task)
    model = fingerprint(torch.load(weights, weights_only=True))
    calibration, trouble = None, ""
    try:
        learned = _free(simulation, weights, cache, pool, advance, learned_from, members)
        calibration = calibrate(learned, models=[model], members=members, of="generated patients")
        write_whole(folder / BESIDE, calibration.model_dump_json(indent=1))
    except ValueError as error:
        trouble = str(error)
    jobs = [Job(simulation.task, weights, one.cohort, one.patient, members) for one in tested]
    found = _all(jobs, pool, lambda done: advance("how sure: test patients", done, len(jobs)))
    rows, judged = list[Ranked](), list[Judged]()
    for one in tested:
        series = found[one.cohort, one.patient]
        judged += series
        if row := _ranked(one, series, calibration):
            rows.append(row)
    if not rows:
        return None
    rows.sort(key=lambda row: (row.sureness, float(np.mean(list(row.agreement.values()))), row.patient))
    temperature = calibration.temperature if calibration else 1.0
    unsure = Unsure(
        model=model,
        members=members,
        classes=("background", *settings.structures),
        calibration=calibration,
        trouble=trouble,
        figures=figures(rows, judged, temperature),
        patients=tuple(rows),
        before=_table(judged, 1.0),
        after=_table(judged, temperature),
    )
    write_whole(folder / FILE, unsure.model_dump_json(indent=1))
    cohorts = {one.hospital: one.cohort for one in tested}
    _picture(folder / "overlays" / PICTURE, unsure, simulation.task, weights, cohorts[rows[0].hospital], temperature)
    return unsure


def figures(rows: Sequence[Ranked], judged: Sequence[Judged], temperature: float) -> Figures:
    """What the order of the patients, the expected Dice and the probabilities are worth."""
    sure, error = [row.sureness for row in rows], [row.error for row in rows]
    caught, looked = triage.caught(sure, error)
    pairs = [(row, name) for row in rows for name in row.expected if name in row.dice]
    return Figures(
        patients=len(rows),
        rank=rank_correlation(sure, [-one for one in error]),
        looked=looked,
        caught=caught,
        caught_by_chance=looked * looked / len(rows),
        risk=float(np.mean(error)),
        area=triage.area_under(triage.risk_coverage(sure, error)),
        area_at_best=triage.area_under(triage.risk_coverage([-one for one in error], error)),
        miss=float(np.mean([abs(row.expected[name] - row.dice[name]) for row, name in pairs])) if pairs else None,
        held=float(np.mean([row.dice[name] >= row.low[name] for row, name in pairs])) if pairs else None,
        error_before=calibration_error(judged, 1.0),
        error_after=calibration_error(judged, temperature),
    )


def look(job: Job) -> tuple[Path, str, list[Judged]]:
    """Examine a patient's labelled series and judge them. Runs in a worker process; equal arguments give equal numbers."""
    members, settings = _members(job.task, job.weights, job.members)
    case = dressed(Cohort(job.cohort).case(job.patient), job.number, job.scales)
    volumes = [v for v in case.volumes if v.series in settings.series and v.mask is not None]
    return job.cohort, job.patient, [judge(examine(members, settings, v), job.patient, v, settings) for v in volumes]


def forget(folder: Path) -> None:
    """Remove what an earlier call wrote, perhaps of another model."""
    for name in (BESIDE, FILE, f"overlays/{PICTURE}"):
        (folder / name).unlink(missing_ok=True)


def require_masks(folder: Path, task: Mapping[str, Any]) -> None:
    """Raise `ValueError`, in words and at once, for a folder whose model isn't one of this task that draws masks."""
    if not (folder / "model.pt").is_file():
        raise ValueError("it has no model.pt: the run has not ended, or it trained nothing")
    made = load(task)
    if not isinstance(made, SegmentationTask):
        raise ValueError(f"the run learned task {task.get('name')}, which draws no masks: there is nothing to be unsure of")
    state, wanted = read_weights(folder / "model.pt"), made.model().state_dict()
    if {name: tensor.shape for name, tensor in state.items()} != {name: tensor.shape for name, tensor in wanted.items()}:
        raise ValueError("its model.pt is no model that draws masks: there is nothing to be unsure of")


# -- the parts -----------------------------------------------------------------------------------------------------------


def _free(
    simulation: Simulation, weights: Path, cache: Path, pool: Executor, advance: Advance, count: int, members: int
) -> list[Judged]:
    """Generated patients as pre-training sees them, who are none of its own, examined. `ValueError` where there are none."""
    if simulation.pretraining is None:
        raise ValueError("this rehearsal draws no patients to pre-train on, so there are none to calibrate by")
    drawn = simulation.pretraining.model_copy(update={"first_seed": FIRST_SEED, "patients": count})

    def named(_: str, done: int, of: int) -> None:
        advance("patients to calibrate by", done, of)

    cohort = free_cohort(drawn, simulation.hospitals.series, cache=cache, pool=pool, advance=named)
    scales = tuple(scales_of(drawn.intensities, looked_at(simulation.task, simulation.hospitals.series)))
    jobs = [
        Job(simulation.task, weights, cohort.folder, patient, members, number, scales)
        for number, patient in enumerate(free_patients(drawn))
    ]
    found = _all(jobs, pool, lambda done: advance("how sure: generated patients", done, len(jobs)))
    return [one for job in jobs for one in found[job.cohort, job.patient]]


def _all(jobs: Sequence[Job], pool: Executor, advance: Callable[[int], None]) -> dict[tuple[Path, str], list[Judged]]:
    found = {}
    for cohort, patient, judged in unordered(pool, look, [(job,) for job in jobs]):
        found[cohort, patient] = judged
        advance(len(found))
    return found


def _ranked(examinee: Examinee, series: Sequence[Judged], calibration: Calibration | None) -> Ranked | None:
    """The mean over the patient's series; None for a patient whom no mask can judge."""
    sure = [value for one in series if (value := triage.sureness(one.agreement, calibration)) is not None]
    dice = _means([one.dice for one in series])
    if not sure or not dice:
        return None
    return Ranked(
        hospital=examinee.hospital,
        role=examinee.role,
        patient=examinee.patient,
        agreement=_means([one.agreement for one in series]),
        expected=_means([calibration.expected(one.agreement) for one in series]) if calibration else {},
        low=_means([calibration.low(one.agreement) for one in series]) if calibration else {},
        dice=dice,
        sureness=min(sure).value,
    )


def _means(several: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for one in several for name in one)
    return {name: float(np.mean([one[name] for one in several if name in one])) for name in names}


def _table(judged: Sequence[Judged], temperature: float) -> tuple[tuple[tuple[float, float, int], ...], ...]:
    return tuple(tuple(rows) for rows in reliability(judged, temperature))


def _settings(task: dict[str, Any]) -> Settings:
    made = gradient_task(task)
    if not isinstance(made, SegmentationTask):
        raise ValueError(f"task {task.get('name')} draws no masks")
    return made.settings


def _members(task: dict[str, Any], weights: Path, count: int) -> tuple[list[torch.nn.Module], Settings]:
    settings = _settings(task)
    network = restore(gradient_task(task), [torch.load(weights, weights_only=True)]).to(device())
    return members_of([network], settings, count), settings


def _picture(path: Path, unsure: Unsure, task: dict[str, Any], weights: Path, cohort: Path, temperature: float) -> None:
    """The least sure series of the patient who is looked at first: image, reader's mask, prediction, entropy."""
    first = unsure.patients[0]
    members, settings = _members(task, weights, unsure.members)
    shown: tuple[triage.Sure, Any, Examined] | None = None
    for volume in Cohort(cohort).case(first.patient).volumes:
        if volume.series in settings.series and volume.mask is not None:
            found = examine(members, settings, volume)
            sure = triage.sureness(found.agreement, unsure.calibration) or triage.Sure(0.0, 0.0)
            if shown is None or sure < shown[0]:
                shown = sure, volume, found
    if shown is None:
        return
    _, volume, found = shown
    path.parent.mkdir(exist_ok=True)
    np.savez_compressed(
        path,
        image=np.asarray(volume.image, np.float32),
        mask=np.asarray(volume.mask),
        prediction=found.mask,
        entropy=found.entropy(temperature).astype(np.float16),
        spacing_mm=np.array(volume.spacing_mm),
        hospital=first.hospital,
        patient=first.patient,
        series=volume.series,
    )
