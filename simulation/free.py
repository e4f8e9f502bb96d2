"""Free patients as a coordinator takes them along: prepared arrays in one file, to tell updates from noise by (`fedwiener`)."""

from __future__ import annotations

from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fl_server.weights import State
from simulation.intensity_scale.worn import scales_of
from simulation.pretraining import Advance, free_cohort, looked_at, prepared_patients
from simulation.settings import Pretraining
from tasks.task import gradient_task

PATIENTS = 48
"""Whose gradients span what real patients' gradients need: 96 directions of two views each held 0.97 of the square of the
mean gradient of hospitals whose images were darkened, 40 of them 0.96 (docs/privacy.md)."""


def references(
    task_settings: dict[str, Any],
    settings: Pretraining,
    series: tuple[str, ...],
    *,
    cache: Path,
    pool: Executor,
    advance: Advance,
) -> State:
    """Arrays `PATIENT/ARRAY` of the first `PATIENTS` of those that pre-training learns from, as it sees them."""
    few = settings.model_copy(update={"patients": min(PATIENTS, settings.patients)})
    cohort = free_cohort(few, series, cache=cache, pool=pool, advance=advance)
    task = gradient_task(task_settings)
    arrays = prepared_patients(task, cohort, few, scales_of(few.intensities, looked_at(task_settings, series)))
    return {
        f"{patient}/{name}": torch.from_numpy(np.array(array)) for patient, own in arrays.items() for name, array in own.items()
    }
