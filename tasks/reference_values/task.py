"""The counting task: one patient adds one to a bin of each measure's histogram, in the cell of their sex and age.

With m measures a patient adds to a bin 2^-30 times the whole part of 2^30/sqrt(m), and is in m bins at most: the squares add up
to 1 at most, in whole numbers, whatever the masks hold, and sums of such multiples are exact in float64.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from tasks.case import Case
from tasks.fingerprint import fingerprint
from tasks.reference_values.measures import Mask, Ventricle, ventricle
from tasks.reference_values.settings import SEXES, Measure, Settings
from tasks.task import Arrays

if TYPE_CHECKING:
    from tasks.segmentation import SegmentationTask

_ONE = 1 << 30


class ReferenceTask:
    """See `tasks.task.CountingTask` for what each method promises."""

    counted = "patients by sex, age and bin of each measure of the heart"

    def __init__(self, settings: Settings, *, models: Path | None = None) -> None:
        self.settings = settings
        self._models = models

    @cached_property
    def hash(self) -> str:
        """Identity of the cells and of whoever draws the masks."""
        return self.settings.hash

    @property
    def length(self) -> int:
        """Measure after measure, each (sexes, bands, bins) in C order."""
        return self.settings.length

    @property
    def weight(self) -> float:
        """What one patient adds to a bin."""
        return math.isqrt(_ONE * _ONE // len(self.settings.measures)) / _ONE

    def measured(self, case: Case) -> Ventricle:
        """The patient's own numbers, which stay in the hospital. Raises `ValueError`, naming the case."""
        series = (self.settings.diastole, self.settings.systole)
        return ventricle(case, self.settings, {name: mask for name in series if (mask := self._mask(case, name)) is not None})

    def prepare(self, case: Case) -> Arrays:
        """`rows` (measures known of the patient,) int64: the index of the patient's bin in each."""
        found = self.measured(case)
        rows = self.rows(found)
        if not rows:
            low, high = self.settings.age_edges[0], self.settings.age_edges[-1]
            why = f"is {found.age:g} years old, and the study counts from {low:g} to below {high:g}"
            if low <= found.age < high:
                why = "has no measure that the study counts: all are by body surface area, and height or weight isn't known"
            raise ValueError(f"case {case.patient} {why}")
        return {"rows": np.array(rows, np.int64)}

    def rows(self, of: Ventricle) -> list[int]:
        """The index of the patient's bin in each measure that is known; none for an age outside all bands."""
        settings = self.settings
        band = bisect_right(settings.age_edges, of.age) - 1
        if of.sex not in SEXES or not 0 <= band < settings.bands:
            return []
        found, first = [], 0
        for measure in settings.measures:
            value = of.value(measure)
            if value is not None and math.isfinite(value):
                cell = SEXES.index(of.sex) * settings.bands + band
                found.append(first + cell * measure.bins + bisect_right(measure.inner_edges(of.sex), value))
            first += len(SEXES) * settings.bands * measure.bins
        return found

    def contribution(self, arrays: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.float64]:
        """`weight` in the patient's bins, (length,)."""
        vector = np.zeros(self.length)
        vector[np.asarray(arrays["rows"])] = self.weight
        return vector

    def histograms(self, total: npt.ArrayLike) -> dict[Measure, npt.NDArray[np.float64]]:
        """A sum of contributions (length,) as patients (sexes, bands, bins) by measure. `ValueError` for another length."""
        values = np.asarray(total, np.float64)
        if values.shape != (self.length,):
            raise ValueError(f"the sum has the shape {values.shape}; these settings count {self.length} cells")
        found, first = {}, 0
        for measure in self.settings.measures:
            shape = (len(SEXES), self.settings.bands, measure.bins)
            found[measure] = values[first : first + math.prod(shape)].reshape(shape) / self.weight
            first += math.prod(shape)
        return found

    def _mask(self, case: Case, series: str) -> Mask | None:
        volume = case.volume(series)
        if volume is None:
            return None
        if self.settings.masks == "reader":
            looked_for = volume.annotated is None or self.settings.blood_pool in volume.annotated
            return volume.mask if looked_for else None
        from tasks.segmentation.infer import segment

        task, model = self._segmenter
        return segment(model, task.settings, volume).mask

    @cached_property
    def _segmenter(self) -> tuple[SegmentationTask, torch.nn.Module]:
        from tasks import segmentation

        masks = self.settings.masks
        if masks == "reader" or self._models is None:
            raise ValueError("masks are drawn by a model, and no folder of models is known here")
        task = segmentation.build({name: value for name, value in masks.task.items() if name != "name"})
        state = torch.load(self._models / f"{masks.sha256}.pt", map_location="cpu", weights_only=True)
        if fingerprint(state) != masks.sha256:
            raise ValueError(f"models/{masks.sha256}.pt holds other weights than its name says")
        model = task.model()
        model.load_state_dict(state)
        return task, model.eval()
