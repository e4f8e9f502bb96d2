"""Members that cost no privacy: a trained network that looks at an image from several sides.

A network trained with augmentation should not care how the patient lay or how bright the scan is, within the range that it was
trained on. Where its answers to such views differ, it has learned too little there. The range is the study's own
(`settings.augment`), public and chosen before anything was trained. Test-time augmentation, after Wang et al. 2019,
Neurocomputing 338:34, doi:10.1016/j.neucom.2019.01.103.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from tasks.segmentation.augment import rotations
from tasks.segmentation.look import sample
from tasks.segmentation.settings import Settings

MEMBERS = 8
"""Passes for one image, the plain one among them."""
SEED = 20190315
"""Of the views, which are the same for every patient: otherwise chance would put one before another."""
FULL_SHIFT = 0.5
"""Part of `augment.roi_shift_mm` that a view may move by: that is as far as a localisation may be off, not an image."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class View:
    """Another look at an image: turned, stretched and moved in millimetres, then other grey values."""

    matrix: Floats  # (d, d) takes a place in the view to its place in the image, from the middle of either
    shift_mm: Floats  # (d,) where in the image the view's middle lies
    gamma: float
    gain: float
    offset: float


class Seen(nn.Module):
    """A network that answers to a view of what it is shown, on the grid of what it was shown."""

    def __init__(self, network: nn.Module, view: View, size_mm: Sequence[float]) -> None:
        """`size_mm` is a look's size from border to border; another look is taken to have the same proportions."""
        super().__init__()
        self.network, self.view, self.size_mm = network, view, tuple(size_mm)
        self.inverse = np.linalg.inv(view.matrix)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logarithms of probabilities (rows, classes, *space); what no longer lies in the view is background."""
        view, half = self.view, np.diag(np.asarray(self.size_mm) / 2)
        shape = image.shape[2:]
        x = sample(image, source_mm=self.size_mm, centre_mm=view.shift_mm, matrix=view.matrix @ half, shape=shape)
        x = x.clamp(min=1e-4).pow(view.gamma).mul(view.gain).add(view.offset)
        p = self.network(x).softmax(1)[:, 1:]
        middle = -self.inverse @ view.shift_mm
        p = sample(p, source_mm=self.size_mm, centre_mm=middle, matrix=self.inverse @ half, shape=shape)
        return torch.cat((1 - p.sum(1, keepdim=True), p), 1).clamp(min=1e-9).log()


def members_of(networks: Sequence[nn.Module], settings: Settings, count: int = MEMBERS) -> list[nn.Module]:
    """`count` members: each network as it is, then views, which the networks take in turn.

    The first is the first network itself, whose mask is the one that is handed out. Where the study trained without any
    augmentation there are the networks alone: every view would be the plain one. Raises `ValueError` for fewer members than
    networks.
    """
    if not networks:
        raise ValueError("an ensemble needs at least one network")
    if count < len(networks):
        raise ValueError(f"{len(networks)} networks can't be {count} members; --members must be at least {len(networks)}")
    found: list[nn.Module] = list(networks)
    a = settings.augment
    differ = any((a.rotation_deg, a.scale, a.roi_shift_mm, a.gamma, a.contrast))
    for number, view in enumerate(views(settings, count - len(networks) if differ else 0)):
        found.append(Seen(networks[number % len(networks)], view, settings.field_mm))
    return found


def views(settings: Settings, count: int) -> list[View]:
    """The first `count` views of this study: the same ones at every call, and in every house."""
    rng, a, dims = np.random.default_rng(SEED), settings.augment, settings.spatial_dims
    found = []
    for _ in range(count):
        angles = rng.uniform(-1, 1, (1, dims * (dims - 1) // 2)) * np.deg2rad(a.rotation_deg)
        scale = 1 + a.scale * rng.uniform(-1, 1)
        shift = rng.uniform(-1, 1, dims) * FULL_SHIFT * a.roi_shift_mm
        gamma, gain, offset = rng.uniform(-1, 1, 3) * (a.gamma, a.contrast, a.contrast / 2)
        found.append(View(rotations(angles, dims)[0] * scale, shift, float(np.exp(gamma)), float(1 + gain), float(offset)))
    return found
