"""Ordinary training on patients drawn freely, from scanners of no hospital: the start of every arm.

The series say of which family the patients are (`simulation.family`): hearts as generated hospitals have them, brains, lungs.
No hospital's data take part, so it costs no privacy; the DP steps that follow only have to bridge from drawn scans to the
hospitals'. The result is kept in the cache under the hash of everything that determines it, and training that was
interrupted goes on from its last checkpoint.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from fl_client.cohort import Cohort
from fl_server.weights import State
from simulation.brain_scan import brain_case
from simulation.family import BRAINS, HEARTS, LUNGS, family_of
from simulation.fresh import Scenes, fresh_cases
from simulation.hospital_case import patient_case
from simulation.intensity_scale.worn import dressed, scales_of
from simulation.lung_scan import nodule_case
from simulation.machine import unordered
from simulation.phantom import draw_patient
from simulation.reader import Reader
from simulation.scanner import Series, random_scanner
from simulation.scene import scene
from simulation.settings import Pretraining
from simulation.sources import digest, source_text
from tasks.intensity_scale.released import IntensityScale
from tasks.task import Arrays, GradientTask, VariedTask, gradient_task
from tasks.weights import save

CASE_MIX = {"normal": 1.0, "myocarditis": 0.7, "infarct": 1.5, "hcm": 1.0, "dcm": 1.5, "amyloid": 0.7}
"""More dilated and thinned hearts than any hospital has: a network that has seen the extremes interpolates."""

OUTWARDS_MM = (0.5, 0.5)
"""Mean and standard deviation over the readers of the free patients: how far outside the tissue border both contours lie."""
EPICARDIUM_MM = (-1.0, 0.5)
"""The same of the epicardium in addition. Experts draw the cavity widely, around the trabeculae, and the wall thinner than it
looks; how much was chosen on two Sunnybrook patients, SCD0000101 and SCD0000201, and on no other real scan."""

THREADS = 2
"""Of torch, on any machine: the order of sums depends on it, and equal settings should give equal weights."""

Advance = Callable[[str, int, int], None]  # what, done, in all
Rows = tuple[torch.Tensor, torch.Tensor]
Draw = Callable[[Sequence[int], np.random.Generator], list[Rows]]
"""The rows of these patients (by number) for one step."""


def pretrain(
    task_settings: dict[str, Any],
    settings: Pretraining,
    series: tuple[str, ...],
    *,
    cache: Path,
    pool: Executor,
    advance: Advance,
) -> State:
    """Weights after `settings.steps` steps of Adam with cosine decay, and an exponential mean over the steps.

    Raises `ValueError` for series that no family of generated patients has, and for folders without an intensity scale.
    """
    seen = looked_at(task_settings, series)
    scales = scales_of(settings.intensities, seen)
    task = gradient_task(task_settings)
    network = {key: value for key, value in task_settings.items() if key != "trainable"}  # pre-training moves everything
    # another task's code makes no other weights
    code = digest("tasks/case.py", "tasks/task.py", f"tasks/{task_settings['name']}")
    worn = [scale.model_dump_json() for scale in scales]
    worn += [digest("tasks/intensity_scale", "simulation/intensity_scale/worn.py")] if scales else []
    place = cache / "pretrained" / _key(series, code, network, settings.model_copy(update={"intensities": ()}), *worn)
    finished = place / "model.pt"
    if finished.exists():
        advance("pre-training", settings.steps, settings.steps)
        return dict(torch.load(finished, weights_only=True))
    torch.set_num_threads(THREADS)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if settings.rescan:
        draw = _scanned_anew(task, settings, seen, scales, pool=pool, device=device, advance=advance)
    else:
        draw = _scanned_once(task, settings, series, scales, cache=cache, pool=pool, advance=advance)
    torch.manual_seed(settings.first_seed)
    model = task.model().to(device)
    mean = copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(settings.steps, 1))
    begin = 0
    checkpoint = place / "checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        begin = saved["step"]
        for part, name in ((model, "model"), (mean, "mean"), (optimizer, "optimizer"), (schedule, "schedule")):
            part.load_state_dict(saved[name])
    place.mkdir(parents=True, exist_ok=True)
    for step in range(begin, settings.steps):
        rng = np.random.default_rng([settings.first_seed, step])
        chosen = rng.choice(settings.patients, min(settings.batch_patients, settings.patients), replace=False)
        image, target = (torch.cat(part).to(device) for part in zip(*draw(chosen.tolist(), rng), strict=True))
        loss = task.loss(model(image), target).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)  # an early step on an odd batch must not throw it off
        optimizer.step()
        schedule.step()
        decay = min(settings.ema_decay, (step + 1) / (step + 10))  # a long memory only once there is something to remember
        with torch.no_grad():
            for kept, new in zip(mean.parameters(), model.parameters(), strict=True):
                kept.lerp_(new, 1 - decay)
        advance("pre-training", step + 1, settings.steps)
        if (step + 1) % 500 == 0:
            saved = {"step": step + 1, "model": model.state_dict(), "mean": mean.state_dict()}
            save({**saved, "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}, checkpoint)
    state = {name: tensor.detach().cpu() for name, tensor in mean.state_dict().items()}
    save(state, finished)
    checkpoint.unlink(missing_ok=True)
    return state


def looked_at(task_settings: Mapping[str, Any], series: Sequence[str]) -> tuple[str, ...]:
    """Of these series those that the task sees."""
    return tuple(name for name in task_settings.get("series", series) if name in series)


def _scanned_once(
    task: GradientTask,
    settings: Pretraining,
    series: tuple[str, ...],
    scales: Sequence[IntensityScale],
    *,
    cache: Path,
    pool: Executor,
    advance: Advance,
) -> Draw:
    """Views of the free patients' only scans, which are kept in the cache as they are drawn."""
    cohort = free_cohort(settings, series, cache=cache, pool=pool, advance=advance)
    prepared = list(prepared_patients(task, cohort, settings, scales).values())
    return lambda chosen, rng: [_shown(task, prepared[i], settings.views, rng) for i in chosen]


def _scanned_anew(
    task: GradientTask,
    settings: Pretraining,
    series: tuple[str, ...],
    scales: Sequence[IntensityScale],
    *,
    pool: Executor,
    device: torch.device,
    advance: Advance,
) -> Draw:
    """Views of scans that are made for one step. The anatomy is drawn at the start and kept in memory."""
    if family_of(series) is not HEARTS:
        raise ValueError(f"only generated hearts can be scanned anew, not {', '.join(series)}: leave pretraining.rescan out")
    jobs = [(int(patient[1:]), series, settings.oversampling, settings.subslices) for patient in free_patients(settings)]
    drawn: dict[int, Scenes] = {}
    for done, (seed, scenes) in enumerate(unordered(pool, _draw_scenes, jobs), start=1):
        drawn[seed] = scenes
        advance("patients for pre-training", done, settings.patients)
    patients = [drawn[seed] for seed in sorted(drawn)]

    def draw(chosen: Sequence[int], rng: np.random.Generator) -> list[Rows]:
        cases = fresh_cases([patients[i] for i in chosen], _reader, slices=settings.views, rng=rng, device=device)
        worn = [dressed(case, number, scales) for number, case in zip(chosen, cases, strict=True)]
        return [_shown(task, task.prepare(case), settings.views, rng) for case in worn]

    return draw


def _shown(task: GradientTask, arrays: Arrays, views: int, rng: np.random.Generator) -> Rows:
    """Views of one free patient, varied as the task likes."""
    return task.example(task.varied(arrays, rng) if isinstance(task, VariedTask) else arrays, views, rng)


def _draw_scenes(seed: int, series: tuple[Series, ...], oversampling: int, subslices: int) -> tuple[int, Scenes]:
    patient, scanner = draw_patient(seed, CASE_MIX), random_scanner(seed)
    fineness = {"oversampling": oversampling, "subslices": subslices}
    return seed, {name: scene(patient, scanner, name, seed=seed, **fineness) for name in series}


def free_patients(settings: Pretraining) -> list[str]:
    """Pseudonyms of those that pre-training learns from, in the order of their seeds."""
    return [f"G{seed:08d}" for seed in range(settings.first_seed, settings.first_seed + settings.patients)]


def prepared_patients(
    task: GradientTask, cohort: Cohort, settings: Pretraining, scales: Sequence[IntensityScale]
) -> dict[str, Arrays]:
    """The task's arrays of the free patients, in the scales if there are any, by pseudonym and in the order of their seeds."""
    patients = free_patients(settings)
    if not scales:
        return {patient: dict(cohort.prepared(task, patient)) for patient in patients}
    return {patient: task.prepare(dressed(cohort.case(patient), n, scales)) for n, patient in enumerate(patients)}


def free_cohort(settings: Pretraining, series: tuple[str, ...], *, cache: Path, pool: Executor, advance: Advance) -> Cohort:
    """A cohort that has `free_patients`, and perhaps others; who is missing in the cache is drawn."""
    key = _key(series, settings.model_dump_json(include={"first_seed", "oversampling", "subslices"}))
    place = cache / "free" / key
    cohort = Cohort(place)
    there = set(cohort.patients)
    missing = [int(patient[1:]) for patient in free_patients(settings) if patient not in there]
    jobs = [(place, seed, series, settings.oversampling, settings.subslices) for seed in missing]
    for done, _ in enumerate(unordered(pool, _draw_free, jobs), start=settings.patients - len(jobs) + 1):
        advance("patients for pre-training", done, settings.patients)
    return cohort


def _draw_free(place: Path, seed: int, series: tuple[str, ...], oversampling: int, subslices: int) -> int:
    family = family_of(series)
    if family is BRAINS:
        case = brain_case(seed, oversampling=oversampling)
    elif family is LUNGS:
        case = nodule_case(seed, oversampling=oversampling)
    else:
        case = patient_case(
            seed,
            scanner=random_scanner(seed),
            reader=_reader(seed),
            case_mix=CASE_MIX,
            series=cast("tuple[Series, ...]", series),
            oversampling=oversampling,
            subslices=subslices,
        )
    Cohort(place).admit(case)
    return seed


def _reader(seed: int) -> Reader:
    """Every free patient has a reader of its own, as it has a scanner."""
    habits = np.random.default_rng([seed, 73]).normal(size=2)
    outwards, epicardium = (mean + sd * h for (mean, sd), h in zip((OUTWARDS_MM, EPICARDIUM_MM), habits, strict=True))
    return Reader(contour_bias_mm=float(np.clip(outwards, -4, 4)), epicardial_bias_mm=float(np.clip(epicardium, -4, 4)))


def _key(series: tuple[str, ...], *parts: object) -> str:
    """Hash of the settings and of the source that draws and trains."""
    text = json.dumps([part if isinstance(part, str | dict) else str(part) for part in (*parts, series)], sort_keys=True)
    own = ("scene", "rescan", "fresh", "pretraining")
    sources = source_text(*family_of(series).sources, *(f"simulation/{name}.py" for name in own))
    return hashlib.sha256(text.encode() + sources).hexdigest()[:16]
