"""Tones: how bright scanners show what is how bright, as a curve that the generator is told and that hospitals can teach it.

A tone is `knots` numbers: how far the curve lies above the diagonal at equal steps between 0 and 1, a prepared image's 1st and
99th percentile. Both ends stay, and what is brighter than 1. Pre-training shows drawn patients in many tones and tells the
network which; hospitals then learn one tone alone, a handful of numbers, as Gal et al. 2022 learn a word for a picture (textual
inversion, arXiv 2208.01618) and leave the network as it is.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

STRONGEST = 3.0
"""Of the powers that pre-training shows patients in: from its inverse to this. A choice."""

BENT = 0.4
"""Standard deviation of a knot of such a curve, in logits, beside the power. A choice."""

TOLD = 4.0
"""What the network sees of a tone is so many times the tone: its other inputs lie within about 1."""


class Tone(nn.Module):
    """The last `1 + knots` of what a row is told: 1 where the tone is the learned one, and the tone where it is known."""

    def __init__(self, knots: int) -> None:
        super().__init__()
        self.learned = nn.Parameter(torch.zeros(knots))

    def forward(self, told: torch.Tensor) -> torch.Tensor:
        """(rows, told) -> (rows, told - 1): a tone in each row, whether learned or known, which the network can't tell."""
        knots = len(self.learned)
        facts, asked, known = told[:, : -knots - 1], told[:, -knots - 1 : -knots], told[:, -knots:]
        return torch.cat([facts, TOLD * (known + asked * self.learned)], dim=1)


def any_tone(knots: int, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """A rising curve (knots,): a power between 1 / `STRONGEST` and `STRONGEST`, bent at each knot."""
    x = positions(knots)
    raised = x ** np.exp(rng.uniform(-math.log(STRONGEST), math.log(STRONGEST)))
    logits = np.log(raised / (1 - raised)) + rng.normal(0, BENT, knots)
    return (np.sort(1 / (1 + np.exp(-logits))) - x).astype(np.float32)


def positions(knots: int) -> npt.NDArray[np.float64]:
    """Where the knots lie, (knots,), between 0 and 1."""
    return np.arange(1, knots + 1) / (knots + 1)


def tone_of(model: nn.Module) -> npt.NDArray[np.float64] | None:
    """The learned tone (knots,) of a generator, or none where it learns none."""
    tone = getattr(model, "tone", None)
    return tone.learned.detach().cpu().numpy().astype(np.float64) if isinstance(tone, Tone) else None


def curve_of(tone: npt.ArrayLike) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The curve from 0 to 1, (knots + 2,) each: grey values, and what they become.

    A tone that falls somewhere, as noise can make it, is held level there.
    """
    offsets = np.asarray(tone, np.float64)
    x = positions(len(offsets))
    y = np.maximum.accumulate(np.clip(x + offsets, 0, 1))
    return np.array([0, *x, 1]), np.array([0, *y, 1])


def toned(image: torch.Tensor, tone: npt.ArrayLike) -> torch.Tensor:
    """An image of 0 and more in this tone, piecewise linear; what is brighter than 1 stays."""
    values = image.numpy()
    at, curve = curve_of(tone)
    return torch.from_numpy(np.where(values > 1, values, np.interp(values, at, curve)).astype(np.float32))
