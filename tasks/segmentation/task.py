"""The segmentation task: what a gradient task and a judged one give, put together from this folder's files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tasks.case import Case
from tasks.segmentation import augment, judge, network
from tasks.segmentation.infer import Segmentation, segment
from tasks.segmentation.loss import dice_and_cross_entropy
from tasks.segmentation.metrics import case_scores
from tasks.segmentation.prepare import prepare
from tasks.segmentation.settings import Settings
from tasks.task import Arrays, State


class SegmentationTask:
    """A U-Net that labels every voxel. See `tasks.task.GradientTask` for what each method promises."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._judged: tuple[State, torch.nn.Module] | None = None  # one model for all of a hospital's patients

    @property
    def hash(self) -> str:
        """Identity of the prepared arrays: two studies that differ only in network or loss share them."""
        return self.settings.hash

    def model(self) -> torch.nn.Module:
        """A new network with freshly drawn weights."""
        return network.SegmentationNet(self.settings)

    def prepare(self, case: Case) -> Arrays:
        """image, mask, centre_mm, labelled, volume: see `prepare.prepare`."""
        return prepare(case, self.settings)

    def example(
        self, arrays: Mapping[str, npt.NDArray[Any]], views: int, rng: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`views` augmented views of one patient: (views, 1, *voxels) float32 and (views, *voxels) int64, 255 unknown."""
        return augment.apply(arrays, augment.draw(arrays, views, rng, self.settings), self.settings)

    def drawn(self, rng: np.random.Generator) -> Arrays:
        """Noise with labels in it: as many slices as a short axis usually has twice, or two volumes."""
        shape = (20 if self.settings.spatial_dims == 2 else 2, *self.settings.working_voxels)
        return {
            "image": rng.uniform(0, 1, shape).astype(np.float16),
            "mask": rng.integers(0, self.settings.classes, shape, np.uint8),
            "centre_mm": np.zeros((shape[0], self.settings.spatial_dims), np.float32),
            "volume": np.arange(shape[0], dtype=np.uint8) % 2,
            "labelled": np.ones(shape[0], bool),
        }

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

    # -- judging, on patients held back -------------------------------------------------------------------------------

    @property
    def judgement_length(self) -> int:
        """Two numbers for each structure."""
        return 2 * len(self.settings.structures)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Mean Dice over patients and structures, and by structure."""
        return ("dice", *(f"dice/{name}" for name in self.settings.structures))

    def judgement(self, state: State, arrays: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.float64]:
        """Which structures this patient can judge, and their Dice: see `judge.vector`. On the device of the state."""
        if self._judged is None or self._judged[0] is not state:
            model = self.model()
            model.load_state_dict(dict(state))
            self._judged = state, model.to(next(iter(state.values())).device)
        return judge.vector(judge.dices(self._judged[1], self.settings, arrays), self.settings)

    def scores(self, total: npt.ArrayLike, noise_std: float) -> dict[str, float]:
        """Mean Dice with what the noise makes of it, and numbers of patients: see `judge.scores`."""
        return judge.scores(total, noise_std, self.settings)
