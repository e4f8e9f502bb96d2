"""From a case to the features of its regions: whose mask, which regions, which grey values, then the engine.

Everything that a study settles about this stands in its `Image`; what draws the masks, if no reader did, is a model known by
its fingerprint.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from tasks.case import UNKNOWN, Case, Volume
from tasks.fingerprint import fingerprint
from tasks.radiomics.features import Extractor, Features, RegionRefused, to_image
from tasks.radiomics.intensity import standardised
from tasks.radiomics.segments import aha_segments
from tasks.radiomics.settings import Image, Predicted

if TYPE_CHECKING:
    from tasks.segmentation import SegmentationTask

Masks = npt.NDArray[np.uint8]


class Extraction:
    """The features that `image` settles. `models` is where a model that draws its masks is looked for."""

    def __init__(self, image: Image, models: Path | None = None) -> None:
        self.image = image
        self.models = models

    def features(self, case: Case) -> dict[int, Features]:
        """Everything that the parameters give, by region of more than one voxel: one voxel has no texture and no extent.

        Raises `ValueError`, naming the case, where there is nothing to compute from.
        """
        volume, mask, regions = self.regions(case)
        counts = np.bincount(regions.ravel(), minlength=1)
        labels = [int(n) for n in np.flatnonzero(counts) if n and counts[n] > 1]
        if not labels:
            there = ", ".join(map(str, np.unique(mask)))
            raise ValueError(f"case {case.patient}: its mask holds no region of more than one voxel (its values: {there})")
        try:
            values = standardised(np.asarray(volume.image, np.float32), mask, self.image.intensity)
            spacing = volume.spacing_mm
            return self._extractor.features(to_image(values, spacing), to_image(regions, spacing), labels)
        except (RegionRefused, ValueError) as error:
            raise ValueError(f"case {case.patient}: {error}") from None

    def regions(self, case: Case) -> tuple[Volume, Masks, Masks]:
        """The volume, its mask, and the number of each voxel's region, 0 for none (slices, rows, columns).

        Raises `ValueError`, naming the case, for an image or mask that isn't there, and for a ventricle that can't be divided.
        """
        image = self.image
        volume = case.volume(image.series)
        if volume is None:
            there = ", ".join(other.series for other in case.volumes) or "no image"
            raise ValueError(f"case {case.patient} has no {image.series}; it has {there}")
        mask = self._predicted(volume) if isinstance(image.masks, Predicted) else volume.mask
        if mask is None:
            raise ValueError(f"case {case.patient}: nobody has drawn a mask on its {image.series}")
        try:
            regions = aha_segments(mask, volume.affine) if image.regions == "aha" else (mask == image.label).astype(np.uint8)
        except ValueError as error:
            raise ValueError(f"case {case.patient}: {error}") from None
        if image.regions == "label" and image.label == UNKNOWN:
            raise ValueError(f"label {UNKNOWN} stands for voxels that nobody labelled; it is no region")
        return volume, mask, regions

    @cached_property
    def _extractor(self) -> Extractor:
        return Extractor.of(self.image.parameters)

    def _predicted(self, volume: Volume) -> Masks:
        from tasks.segmentation.infer import segment

        task, model = self._segmenter
        return segment(model, task.settings, volume).mask

    @cached_property
    def _segmenter(self) -> tuple[SegmentationTask, torch.nn.Module]:
        from tasks import segmentation

        masks = self.image.masks
        if not isinstance(masks, Predicted) or self.models is None:
            raise ValueError("masks are predicted by a model, and no folder of models is known here")
        task = segmentation.build({name: value for name, value in masks.task.items() if name != "name"})
        state = torch.load(self.models / f"{masks.sha256}.pt", map_location="cpu", weights_only=True)
        if fingerprint(state) != masks.sha256:
            raise ValueError(f"models/{masks.sha256}.pt holds other weights than its name says")
        model = task.model()
        model.load_state_dict(state)
        return task, model.eval()
