"""A temporal lobe that doesn't exist: the shape of one hippocampus and where it lies, drawn by seed.

Everything is told in millimetres from the uncal apex on the hippocampus's axis, where its head ends, along (superior, anterior,
medial): a left and a right hippocampus are the same here, and the grid turns one of them round. `draw_brain` draws the shape;
`simulation.brain_tissue` says which tissue is where, `simulation.brain_scan` makes an image of it.

Lengths, widths and the course of the axis are those of atlases in round numbers, adjusted by looking at two patients of the
Medical Segmentation Decathlon (hippocampus_001 and hippocampus_003) and at no other real scan.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

STEP_MM = 0.25
REACH_MM = 48.0
ALONG = np.arange(-REACH_MM, REACH_MM, STEP_MM, dtype=np.float32)
"""Anterior positions at which the tables of a brain's course and size stand."""

_POSITION = np.array([-1.35, -1.15, -1.0, -0.85, -0.7, -0.45, -0.17, 0.0, 0.35, 0.7, 0.9, 1.0])
_HALF_WIDTH = np.array([0.0, 4.6, 6.4, 7.3, 7.7, 7.6, 7.2, 8.2, 9.4, 8.6, 5.6, 0.0])
_HALF_HEIGHT = np.array([0.0, 3.4, 4.3, 4.3, 3.9, 3.7, 3.8, 4.2, 4.6, 4.4, 3.3, 0.0])
"""Of a coronal section, mm, at positions between the end of the tail (-1), the uncal apex (0) and the tip of the head (1)."""

MEAN_ML, SD_ML = 2.85, 0.45
"""Volume of one hippocampus: 2.78 left and 2.90 right in 24 healthy adults (Honeycutt and Smith 1995, J Neuroimaging 5:95), 1.7
to 5.7 over the literature they review. The spread is assumed, and so is the loss of 0.4 % a year after 50."""


@dataclass(frozen=True, eq=False)
class Brain:
    """One person's hippocampus and what scatters around it. Lengths in mm, angles in radians."""

    seed: int
    side: str  # left or right
    age: int
    sex: str  # F or M
    volume_ml: float  # of the tissue up to the end of the tail
    head_mm: float  # from the uncal apex to the tip
    tail_mm: float  # from the uncal apex to where readers stop
    slope: float  # how far the body rises per mm backwards
    section: Floats  # (12, 2) factors of half width and half height at `_POSITION`
    course: Floats  # (4,) lateral bow of the body, medial turn of the head, of the tail, and rise of the tail
    tilt_rad: tuple[float, float, float]  # of the sections of tail, body and head; positive lifts the medial edge
    egg: float  # how much thinner the medial edge is than the lateral one
    flat: float  # how much flatter the upper side is
    cup: float  # 1/mm, how much the edges bend upwards
    digitations: tuple[float, float]  # depth (fraction of the height) and phase of the bumps on the head
    turn_rad: tuple[float, float, float]  # of the head in the scanner, about the superior, anterior and medial axis

    @cached_property
    def tables(self) -> dict[str, Floats]:
        """Over `ALONG`: position (-1 tail, 1 tip), medial and superior (axis), width, height (half), tilt; float32."""
        a = ALONG.astype(np.float64)
        position = np.where(a > 0, a / self.head_mm, a / self.tail_mm)
        scale = np.sqrt(1000 * self.volume_ml / self._unit_mm3(a, position))
        bow, head, tail, rise = (float(value) for value in self.course)
        ahead, behind = np.clip(a, 0, 18), np.clip(-a - 0.5 * self.tail_mm, 0, 16)
        tilt = np.interp(position, [-1, -0.6, 0.2, 1], [self.tilt_rad[0], self.tilt_rad[1], self.tilt_rad[1], self.tilt_rad[2]])
        return {
            "position": _floats(position),
            "medial": _floats(head * ahead**2 + tail * behind**2 - bow * np.cos(np.clip(position, -1, 0.6) * 2.2)),
            "superior": _floats(rise * behind**2 - self.slope * a),
            "width": _floats(self._half(position, 0) * scale),
            "height": _floats(self._half(position, 1) * scale),
            "tilt": _floats(tilt),
        }

    def _half(self, position: npt.NDArray[np.float64], which: int) -> npt.NDArray[np.float64]:
        knots = (_HALF_WIDTH, _HALF_HEIGHT)[which] * self.section[:, which]
        found = np.interp(position, _POSITION, knots)
        near = np.clip((1 - position) / 0.3, 0, 1)  # a round tip, not a cone
        round_tip = np.interp(0.7, _POSITION, knots) * np.sqrt(np.clip(1 - (1 - near) ** 2, 0, 1))
        return np.where(position > 0.7, round_tip, found)

    def _unit_mm3(self, a: npt.NDArray[np.float64], position: npt.NDArray[np.float64]) -> float:
        inside = (position >= -1) & (position <= 1)
        return float(np.pi * (self._half(position, 0) * self._half(position, 1))[inside].sum() * STEP_MM)


def draw_brain(seed: int) -> Brain:
    """The brain of this seed. Equal seeds give equal brains.

    >>> 1.2 < draw_brain(3).volume_ml < 4.5
    True
    """
    rng = np.random.default_rng([seed, 81])
    age = int(np.clip(rng.normal(48, 17), 18, 92))
    sex = str(rng.choice(["F", "M"]))
    volume = rng.normal(MEAN_ML, SD_ML) * (1.04 if sex == "M" else 0.96) * (1 - 0.004 * max(age - 50, 0))
    section = rng.normal(1, 0.06, (len(_POSITION), 2)) * np.exp(rng.normal(0, 0.07) * np.array([1, -1]))
    return Brain(
        seed=seed,
        side=str(rng.choice(["left", "right"])),
        age=age,
        sex=sex,
        volume_ml=round(float(np.clip(volume, 1.4, 4.2)), 3),
        head_mm=float(np.clip(rng.normal(14.5, 1.6), 10, 19)),
        tail_mm=float(np.clip(rng.normal(23.5, 2.2), 17, 30)),
        slope=float(rng.normal(0.38, 0.1)),
        section=_floats(np.clip(section, 0.7, 1.3)),
        course=_floats(np.array([1.0, 0.035, 0.028, 0.014]) * rng.normal(1, 0.35, 4)),
        tilt_rad=(float(rng.normal(0.2, 0.2)), float(rng.normal(0.0, 0.15)), float(rng.normal(0.4, 0.2))),
        egg=float(rng.normal(0.32, 0.13)),
        flat=float(rng.normal(0.12, 0.12)),
        cup=float(rng.normal(0.012, 0.012)),
        digitations=(float(rng.uniform(0, 0.22)), float(rng.uniform(0, 2 * np.pi))),
        turn_rad=(float(rng.normal(0, 0.1)), float(rng.normal(0, 0.1)), float(rng.normal(0, 0.1))),
    )


def _floats(values: npt.ArrayLike) -> Floats:
    return np.asarray(values, np.float32)


@dataclass(frozen=True)
class Box:
    """A piece of space to look at: its lower corner (superior, anterior, medial), mm, and its size in whole millimetres."""

    low_mm: tuple[float, float, float]
    shape: tuple[int, int, int]

    def axes(self, parts: int = 1) -> tuple[Floats, Floats, Floats]:
        """Centres along each axis, of voxels of 1 mm or of their `parts`."""
        first, second, third = (
            _floats(low + (np.arange(n * parts) + 0.5) / parts) for low, n in zip(self.low_mm, self.shape, strict=True)
        )
        return first, second, third


def wander(seed: int, use: int, axes: tuple[Floats, Floats, Floats], wavelength_mm: float) -> Floats:
    """A smooth random field of mean 0 and variance 1 on the grid of these axes, bumps about `wavelength_mm` apart.

    It is the field of this seed and use everywhere in space: another grid finds the same values at the same places.
    """
    knots = np.arange(-REACH_MM - wavelength_mm, REACH_MM + wavelength_mm, wavelength_mm / 2)
    field = np.random.default_rng([seed, use]).standard_normal((len(knots),) * 3).astype(np.float32)
    for axis in axes:
        near = np.exp(-0.5 * ((axis[:, None] - knots[None]) / (0.4 * wavelength_mm)) ** 2)
        near /= np.sqrt((near**2).sum(axis=1, keepdims=True))
        field = np.tensordot(field, near.astype(np.float32), axes=(0, 1))
    return field
