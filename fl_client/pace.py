"""How many steps this hospital takes in a round that has a time (`training.work_s`), settled before a patient is touched.

A pace that was measured on patients would tell how many there are. So it is measured on drawn data of the task's shapes, in the
same loop and on the same device, for as many patients as the declared size makes a step draw: it follows from the machine, what
else runs on it, and what the hospital has said in public. It costs as much as a step with five patients, and is measured again
when a day is over.

    <site>/pace.json    {study hash: {"device", "seconds", "when"}}
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import numpy as np
import torch

from conf.study import Study
from fl_client.device import device_of
from fl_client.privacy import os_noise
from fl_client.privacy import train as dp_sgd
from fl_client.site import Site
from tasks.task import Arrays, GradientTask, PacedTask, moving

FRESH_S = 86400.0
"""So long a pace is believed."""

_PATIENTS = 4
"""Drawn patients of a measurement, beside one before it that isn't timed."""

_SLOWER: ContextVar[float] = ContextVar("_SLOWER", default=1.0)


def steps_of(site: Site, study: Study, task: GradientTask) -> int:
    """Steps that this hospital takes in one round of the study: all, or as many as its time is enough for, but at least one."""
    if study.training.work_s is None or not isinstance(task, PacedTask):
        return study.training.steps
    seconds = pace(site, study, task) * _SLOWER.get()
    return max(1, min(study.training.steps, math.floor(study.training.work_s / seconds)))


@contextmanager
def slower(factor: float) -> Iterator[None]:
    """As long as this lasts, a step takes `factor` times what it takes here: in rehearsals, this machine is then a slower one.

    What is measured and remembered stays this machine's own.
    """
    before = _SLOWER.set(factor)
    try:
        yield
    finally:
        _SLOWER.reset(before)


def pace(site: Site, study: Study, task: PacedTask) -> float:
    """Seconds of one step here: as remembered, or measured now and remembered."""
    path, device = site.folder / "pace.json", _machine(site)
    known = _remembered(path)
    found = known.get(study.hash)
    if found is not None and found["device"] == device:
        return float(found["seconds"])
    seconds = measured(site, study, task)
    _remember(path, known | {study.hash: {"device": device, "seconds": seconds, "when": time.time()}})
    return seconds


def measured(site: Site, study: Study, task: PacedTask) -> float:
    """Seconds of one step of the study's loop on this machine, over as many patients as the declared size makes one draw.

    A step without patients (noise and optimiser alone) is timed, and one with a few; what each of these adds is multiplied.
    """
    with torch.random.fork_rng(devices=[]):
        model = task.model()
    drawn = _Drawn(task, tuple(str(number) for number in range(_PATIENTS)), task.drawn(np.random.default_rng(0)))
    _timed(site, study, task, model, _Drawn(task, ("0",), drawn.arrays))  # the first step of a process is slower
    alone = _timed(site, study, task, model, _Drawn(task, (), drawn.arrays))
    each = max(0.0, _timed(site, study, task, model, drawn) - alone) / _PATIENTS
    return alone + each * study.training.sample_rate * site.declared_size


@dataclass(frozen=True)
class _Drawn:
    """Patients who don't exist, all alike."""

    task: PacedTask
    patients: Sequence[str]
    arrays: Arrays

    def example(self, patient: str, views: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        return self.task.example(self.arrays, views, rng)


def _timed(site: Site, study: Study, task: PacedTask, model: torch.nn.Module, examples: _Drawn) -> float:
    parameters = dict(model.named_parameters())
    private = study.privacy.kind == "patient"
    device = device_of(site)
    start = time.perf_counter()
    dp_sgd(
        model,
        examples,
        parameters=[parameters[name] for name in moving(study, task, model)],
        loss=task.loss,
        steps=1,
        sample_rate=1.0,
        views=study.training.views,
        declared_size=site.declared_size,
        max_grad_norm=study.privacy.max_grad_norm if private else math.inf,
        noise_multiplier=1.0 if private else 0.0,
        optimizer=study.training.optimizer,
        learning_rate=study.training.learning_rate,
        noise=os_noise(),
        sampling_rng=np.random.default_rng(0),
        device=device,
    )
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _machine(site: Site) -> str:
    device = device_of(site)
    name = f" {torch.cuda.get_device_name(device)}" if device.type == "cuda" else f", {torch.get_num_threads()} threads"
    return f"{device}{name}"


def _remembered(path: Path) -> dict[str, dict[str, float | str]]:
    """What has been measured within a day. A file that can't be read says nothing."""
    try:
        known = json.loads(path.read_text())
        now = time.time()
        return {key: dict(one) for key, one in known.items() if 0 <= now - float(one["when"]) < FRESH_S and one["seconds"] > 0}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def _remember(path: Path, known: dict[str, dict[str, float | str]]) -> None:
    part = path.with_name(f".{uuid4().hex}.part")
    try:
        part.write_text(json.dumps(known))
        part.replace(path)
    except OSError:  # it will be measured again
        part.unlink(missing_ok=True)
