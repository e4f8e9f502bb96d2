"""The segmentation task: the five things a gradient task gives, put together from this folder's files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tasks.case import Case
from tasks.segmentation import augment, network
from tasks.segmentation.infer import Segmentation, segment
from tasks.segmentation.loss import dice_and_cross_entropy
from tasks.segmentation.metrics import case_scores
from tasks.segmentation.prepare import prepare
from tasks.segmentation.settings import Settings
from tasks.task import Arrays


class SegmentationTask:
    """A U-Net that labels every voxel. See `tasks.task.GradientTask` for what each method promises."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @property
    def hash(self) -> str:
        """Identity of the prepared arrays: two studies that differ only in network or loss share them."""
        return self.settings.hash

    def model(self) -> torch.nn.Module:
        """A new network with freshly drawn weights."""
        return network.SegmentationNet(self.settings)

    def prepare(self, case: Case) -> Arrays:
        """image, mask, centre_mm, labelled: see `prepare.prepare`."""
        return prepare(case, self.settings)

    def example(
        self, arrays: Mapping[str, npt.NDArray[Any]], views: int, rng: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`views` augmented views of one patient: (views, 1, *voxels) float32 and (views, *voxels) int64, 255 unknown."""
        return augment.apply(arrays, augment.draw(arrays, views, rng, self.settings), self.settings)

    def loss(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Dice and weighted cross-entropy, (rows,)."""
        return dice_and_cross_entropy(output, target, self.settings)

    def trainable(self, model: torch.nn.Module) -> list[str]:
        """Parameters that `settings.trainable` lets move."""
        return network.trainable(model, self.settings)

    def segment(self, model: torch.nn.Module, case: Case) -> dict[str, Segmentation]:
        """A segmentation for each of the case's volumes that this task is about, by series; masks aren't needed."""
        return {v.series: segment(model, self.settings, v) for v in case.volumes if v.series in self.settings.series}

    def score(self, model: torch.nn.Module, case: Case, *, full: bool = True) -> dict[str, float]:
        """The metrics of `metrics.case_scores` on the original grid; `full=False` leaves only `dice/<structure>`."""
        volumes = [v for v in case.volumes if v.series in self.settings.series and v.mask is not None]
        if not volumes:
            raise ValueError(f"case {case.patient} has no mask for any of {', '.join(self.settings.series)}")
        pairs = [(volume, segment(model, self.settings, volume).mask) for volume in volumes]
        return case_scores(pairs, self.settings, full=full)
