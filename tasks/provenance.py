"""Where a sum that hospitals released together comes from: which study, whose patients, what was promised."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch

from conf.frozen import Frozen


class Provenance(Frozen):
    """Where a released sum comes from."""

    study: str
    study_hash: str
    hospitals: tuple[str, ...]  # whose patients are in the sum
    epsilon: float | None  # None: no promise was made
    delta: float | None
    one_noise: bool = False  # secure aggregation: one noise for all hospitals, not one at each

    @property
    def promise(self) -> str | None:
        """What every patient of these hospitals was promised, in words; None where nothing was."""
        if self.epsilon is None:
            return None
        noise = "one noise for all" if self.one_noise else "noise at each hospital"
        return f"epsilon {self.epsilon:g} at delta {self.delta:g}, {noise}"

    @property
    def how_many(self) -> str:
        """The number of hospitals in words."""
        return f"{len(self.hospitals)} hospital{'' if len(self.hospitals) == 1 else 's'}"


def summed(state: Mapping[str, torch.Tensor], *, called: str) -> tuple[npt.NDArray[np.float64], float]:
    """The sum of a counting study's state (`total`, `noise_variance`), and the standard deviation of the noise on each number.

    Raises `ValueError` where one of them is no finite number; `called` names in words what is read from them.
    """
    total, variance = np.asarray(state["total"].numpy(), np.float64), float(state["noise_variance"][0])
    if not (np.isfinite(total).all() and math.isfinite(variance) and variance >= 0):
        raise ValueError(f"the sum holds numbers that are not finite: no {called} can be read from it")
    return total, math.sqrt(variance)
