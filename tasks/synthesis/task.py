"""The synthesis task: what a gradient task and a judged one give, and cases of patients who don't exist."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tasks.case import Case
from tasks.segmentation.judge import STEP, mean_score
from tasks.synthesis import diffusion, network
from tasks.synthesis.prepare import prepare
from tasks.synthesis.settings import Settings
from tasks.synthesis.tone import any_tone
from tasks.synthesis.volumes import synthetic
from tasks.task import Arrays, State


class SynthesisTask:
    """A diffusion model that draws images for masks. See `tasks.task.GradientTask` for what each method promises."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._judged: tuple[State, torch.nn.Module] | None = None  # one model for all of a hospital's patients

    @property
    def hash(self) -> str:
        """Identity of the prepared arrays: two studies that differ only in network share them."""
        return self.settings.hash

    def model(self) -> torch.nn.Module:
        """A new network with freshly drawn weights."""
        return network.SynthesisNet(self.settings)

    def prepare(self, case: Case) -> Arrays:
        """image, mask, centre_mm, labelled, volume, facts: see `prepare.prepare`."""
        return prepare(case, self.settings)

    def example(
        self, arrays: Mapping[str, npt.NDArray[Any]], views: int, rng: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`views` noisy looks at one patient: (views, channels, *voxels) and velocities (views, *voxels), both float32."""
        return diffusion.example(arrays, views, rng, self.settings)

    def varied(self, arrays: Mapping[str, npt.NDArray[Any]], rng: np.random.Generator) -> Arrays:
        """A drawn patient in some tone, which the network is told; as it is where no tone is learned."""
        knots = self.settings.tone_knots
        return {**arrays, "tone": any_tone(knots, rng)} if knots else dict(arrays)

    def drawn(self, rng: np.random.Generator) -> Arrays:
        """Noise with labels in it: as many slices as a short axis usually has twice, or two volumes."""
        settings = self.settings
        shape = (20 if settings.spatial_dims == 2 else 2, *settings.looks.working_voxels)
        return {
            "image": rng.uniform(0, 1, shape).astype(np.float16),
            "mask": rng.integers(0, settings.looks.classes, shape, np.uint8),
            "centre_mm": np.zeros((shape[0], settings.spatial_dims), np.float32),
            "volume": np.arange(shape[0], dtype=np.uint8) % 2,
            "labelled": np.ones(shape[0], bool),
            "facts": rng.integers(0, 2, (shape[0], settings.facts)).astype(np.float32),
        }

    def loss(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Mean square of what is wrong with the velocity, (rows,)."""
        return (output - target).square().flatten(1).mean(1)

    def trainable(self, model: torch.nn.Module) -> list[str]:
        """Parameters that `settings.trainable` lets move."""
        return network.trainable(model, self.settings)

    def score(self, model: torch.nn.Module, case: Case, *, full: bool = True) -> dict[str, float]:
        """`explained`, the share of the velocity's power that the model tells, 1 at best; `full` adds it by noise level."""
        found = diffusion.explained(model, self.prepare(case), self.settings)
        mean = sum(found.values()) / len(found)
        return {"explained": mean} | ({f"explained/{level:g}": value for level, value in found.items()} if full else {})

    def synthetic(self, model: torch.nn.Module, case: Case, rng: np.random.Generator, *, steps: int | None = None) -> Case:
        """The case with images that the model draws for its masks: see `volumes.synthetic`."""
        return synthetic(model, case, rng, self.settings, steps=steps)

    # -- judging, on patients held back -------------------------------------------------------------------------------

    @property
    def judgement_length(self) -> int:
        """That the patient was judged, and how well."""
        return 2

    @property
    def metrics(self) -> tuple[str, ...]:
        """The share of the velocity's power that the model tells, cut to 0..1."""
        return ("explained",)

    def judgement(self, state: State, arrays: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.float64]:
        """1, and twice `explained` minus 1, over the square root of 2: of length 1 at most. On the device of the state."""
        if self._judged is None or self._judged[0] is not state:
            model = self.model()
            model.load_state_dict(dict(state))
            self._judged = state, model.to(next(iter(state.values())).device).eval()
        found = diffusion.explained(self._judged[1], arrays, self.settings)
        mean = sum(found.values()) / len(found)
        scaled = np.array([1.0, 2 * min(max(mean, 0.0), 1.0) - 1]) / math.sqrt(2)
        return np.trunc(scaled / STEP) * STEP

    def scores(self, total: npt.ArrayLike, noise_std: float) -> dict[str, float]:
        """`explained` with what the noise makes of it, and the number of patients. Raises `ValueError` for another sum."""
        sums = np.asarray(total, np.float64)
        if sums.shape != (2,) or not np.isfinite(sums).all():
            raise ValueError(f"a sum for a generator is 2 finite numbers, not an array of {sums.shape}")
        if not 0 <= noise_std < math.inf:
            raise ValueError(f"noise_std must be 0 or a positive number, not {noise_std}")
        with np.errstate(over="ignore", invalid="ignore"):
            count, rise = (sums * math.sqrt(2)).tolist()
        told = mean_score("explained", count, rise, noise_std * math.sqrt(2))
        return told | ({"patients": count} if told else {})
