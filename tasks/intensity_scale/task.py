"""The counting task: one patient adds one, and the root of each landmark of their images, all of it cut to a length.

Roots, because dark tissue lies close together: noise on a root of 0.1 is five times less noise on the grey value than noise on
a root of 0.5. Landmarks are sums over patients divided by the number of patients, so that whoever is cut, brighter images than
usual, only weighs less. What a patient adds is a whole number of 2^-30, rounded towards zero: no rounding makes it longer than
1, and sums are exact in float64.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.case import Case
from tasks.intensity_scale.scale import landmarks
from tasks.intensity_scale.settings import Settings
from tasks.task import Arrays

LONGEST = 2.0
"""Length to which 1 and the roots of a patient are cut. With eleven landmarks of generated hearts it is mostly below."""

_ONE = 1 << 30


class IntensityTask:
    """See `tasks.task.CountingTask` for what each method promises."""

    counted = "percentiles of the images' grey values"

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @cached_property
    def hash(self) -> str:
        """Identity of the landmarks and of the code that measures them."""
        return self.settings.hash

    @property
    def length(self) -> int:
        """The patients, then the landmarks in the order of their percentiles."""
        return self.settings.length

    def prepare(self, case: Case) -> Arrays:
        """`rows` (volumes, percentiles) float64: the landmarks of the volumes that the study is about. No mask is needed."""
        there = [volume for volume in case.volumes if volume.series in self.settings.series]
        if not there:
            found = ", ".join(volume.series for volume in case.volumes) or "no volume"
            raise ValueError(f"case {case.patient} has none of {', '.join(self.settings.series)}; it has {found}")
        try:
            return {"rows": np.stack([landmarks(volume, self.settings) for volume in there])}
        except ValueError as error:
            raise ValueError(f"case {case.patient}: {error}") from None

    def contribution(self, arrays: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.float64]:
        """1 and the roots of the mean landmarks over the patient's volumes, (length,), cut to `LONGEST` and divided by it."""
        rows = np.asarray(arrays["rows"], np.float64)
        if not len(rows):
            return np.zeros(self.length)
        mean = np.clip(rows, 0.0, 1.0).mean(0)
        if mean.shape != (self.length - 1,) or not np.isfinite(mean).all():
            raise ValueError(f"a patient has {self.length - 1} finite landmarks, not {mean.tolist()}")
        own = np.concatenate([[1.0], np.sqrt(mean)])
        cut: npt.NDArray[np.float64] = np.floor(own / max(LONGEST, float(np.linalg.norm(own))) * _ONE) / _ONE
        return cut
