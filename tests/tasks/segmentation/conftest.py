"""A hand-drawn heart for the segmentation tests: circles on slices, with intensities that a threshold can tell apart."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from tasks.case import Volume


@pytest.fixture
def toy_heart() -> Callable[..., Volume]:
    def draw(
        series: str = "cine_ed",
        *,
        slices: int = 6,
        shape: tuple[int, int] = (150, 130),
        spacing_mm: tuple[float, float, float] = (8.0, 1.3, 1.6),
        centre_mm: tuple[float, float] = (14.0, -18.0),
        radius_mm: float = 25.0,
        wall_mm: float = 10.0,
        noise: float = 0.0,
        seed: int = 0,
    ) -> Volume:
        """Blood 1000 inside a wall of 500 on a background of 0; the first slice shows no heart."""
        rows = (np.arange(shape[0]) + 0.5 - shape[0] / 2) * spacing_mm[1] - centre_mm[0]
        columns = (np.arange(shape[1]) + 0.5 - shape[1] / 2) * spacing_mm[2] - centre_mm[1]
        distance = np.hypot(*np.meshgrid(rows, columns, indexing="ij"))
        mask = np.zeros((slices, *shape), np.uint8)
        mask[1:, distance < radius_mm + wall_mm] = 2
        mask[1:, distance < radius_mm] = 1
        image = np.array([0.0, 1000.0, 500.0])[mask] + np.random.default_rng(seed).normal(0, 1000 * noise + 1e-9, mask.shape)
        turn, _ = np.linalg.qr(np.random.default_rng(7).normal(size=(3, 3)))  # an oblique slice orientation
        affine = np.eye(4)
        affine[:3, :3] = turn * np.array(spacing_mm)
        affine[:3, 3] = (-120.0, 35.0, 60.0)
        return Volume(series, image.astype(np.float32), affine, mask)

    return draw


class Threshold(torch.nn.Module):
    """Knows the toy heart's intensities: above 3/4 of the range is blood, above 1/4 is wall."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return 100 * torch.cat((0.25 - image, image - 0.75, 0.25 - (image - 0.5).abs()), 1)


@pytest.fixture
def threshold() -> torch.nn.Module:
    return Threshold()
