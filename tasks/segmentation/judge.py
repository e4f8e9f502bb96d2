"""How good a model is by the word of many patients, each of whom adds one short vector to a noisy sum.

A patient adds, for each structure, whether it was drawn (0 or 1) and, if so, how far its Dice lies above one half (-1 to 1):
with the middle at one half the noise on the number of patients does half the harm that it would do beside the plain Dice. All
of it is divided by the square root of how many numbers there are, so that nobody's vector is longer than 1, whatever they hold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tasks.case import UNKNOWN
from tasks.segmentation.infer import decided, looks
from tasks.segmentation.metrics import can_be_judged
from tasks.segmentation.partial import seen_for
from tasks.segmentation.settings import Settings
from tasks.task import NOISE_SD

STEP = 2.0**-30
"""Everything is cut off towards 0 to whole multiples of this: sums are exact and the same in any order."""

HEARD = 3.0
"""A number of patients is heard if it exceeds so many standard deviations of the noise on it."""


@torch.inference_mode()
def dices(model: torch.nn.Module, settings: Settings, arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, float]:
    """Dice of each structure of one prepared case (see `prepare`), the mean over those volumes whose masks can judge it.

    Computed on the working grid, on which hospitals keep what they have prepared, so within a hundredth or so of the Dice on
    the images' own grids. A structure that no mask can judge is left out. The model is used in eval mode.
    """
    model.eval()
    device = next(model.parameters()).device
    found: dict[str, list[float]] = {}
    for number in np.unique(arrays["volume"]):
        rows = np.flatnonzero(arrays["volume"] == number)
        work = torch.from_numpy(np.asarray(arrays["image"][rows], np.float32))[:, None].to(device)
        p, _ = looks(model, settings, work, size_mm=settings.working_field_mm, shape=settings.working_voxels)
        stored, decision = np.asarray(arrays["mask"][rows]), decided(p, settings)
        for value, name in enumerate(settings.structures, start=1):
            mask = seen_for(stored, value)
            predicted = decision * (mask != UNKNOWN)
            if can_be_judged(mask if settings.spatial_dims == 2 else mask[0], value):
                truth, guess = mask == value, predicted == value
                found.setdefault(name, []).append(2 * float((truth & guess).sum()) / float(truth.sum() + guess.sum()))
    return {name: sum(values) / len(values) for name, values in found.items()}


def vector(dice: Mapping[str, float], settings: Settings) -> npt.NDArray[np.float64]:
    """What a patient with these Dice (0 to 1, by structure) adds: (2 * structures,), of L2 norm at most 1.

    First whether each structure was judged, then twice its Dice minus 1; 0 and 0 for a structure that wasn't. The bound: every
    number is at most 1 in size before it is divided by the square root of their number and cut off towards 0.
    """
    names = list(settings.structures)
    judged = [1.0 if name in dice else 0.0 for name in names]
    above = [2 * min(max(dice[name], 0.0), 1.0) - 1 if name in dice else 0.0 for name in names]
    scaled = np.array([*judged, *above]) / math.sqrt(2 * len(names))
    return np.trunc(scaled / STEP) * STEP


def scores(total: npt.ArrayLike, noise_std: float, settings: Settings) -> dict[str, float]:
    """Mean Dice over patients and structures (`dice`), and by structure, from a sum with this noise on each number.

    Beside each stands the deviation that the noise gives it (delta method), and of each structure the number of patients in
    whom it was judged. Left out is what was judged in no more patients than three deviations of the noise on their number:
    below that the ratio says nothing; and what would not be finite. Values are cut to 0..1. Raises `ValueError` for a sum that
    isn't 2 * structures finite numbers.
    """
    names = list(settings.structures)
    sums = np.asarray(total, np.float64)
    if sums.shape != (2 * len(names),) or not np.isfinite(sums).all():
        raise ValueError(f"a sum for {len(names)} structures is {2 * len(names)} finite numbers, not an array of {sums.shape}")
    if not 0 <= noise_std < math.inf:
        raise ValueError(f"noise_std must be 0 or a positive number, not {noise_std}")
    with np.errstate(over="ignore", invalid="ignore"):  # infinite sums are left out below
        patients, above = (sums * math.sqrt(2 * len(names))).reshape(2, len(names))
        noise = noise_std * math.sqrt(2 * len(names))
        told = mean_score("dice", float(patients.sum()), float(above.sum()), noise * math.sqrt(len(names)))
    for name, count, rise in zip(names, patients.tolist(), above.tolist(), strict=True):
        if one := mean_score(f"dice/{name}", count, rise, noise):
            told |= {**one, f"patients/{name}": count}
    return told


def mean_score(name: str, count: float, rise: float, noise: float) -> dict[str, float]:
    """A mean of 0..1 from a number of patients and the sum of twice what they rise above one half, each with this noise."""
    if count <= HEARD * noise or not 0.5 <= count < math.inf:
        return {}
    mean = rise / count
    deviation = noise / (2 * count) * math.hypot(1, mean)
    if not math.isfinite(mean) or not math.isfinite(deviation):
        return {}
    return {name: min(max((1 + mean) / 2, 0.0), 1.0), NOISE_SD + name: deviation}
