"""One look for scans of both kinds, so that nothing but the anatomy and its texture can tell them apart.

Each scan is a square of fixed size around the located structures, the same number of slices from the first on which they
were outlined to the last, base first. Real scans have finer pixels than a generator draws: all go through one grid of `mm`,
which carries no more detail than the coarser has, and only from there to the size of the picture.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from io import BytesIO
from typing import Annotated

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import Field
from scipy.ndimage import affine_transform, gaussian_filter1d

from conf.study import Frozen
from tasks.case import UNKNOWN, Case, Volume

PICTURE_PX = 448
"""Rows and columns of every picture."""

WINDOW = (2.0, 99.5)
"""Percentiles of the square, over all slices shown, that become black and white. A generator that learned from images cut at
their 1st percentile draws a flat black below it, which real scans lack."""

PIXEL, SHARPNESS = 0.5, 0.65
"""Standard deviations of the blur that a pixel stands for, in pixels: of a scan's own, and, for all alike, of the grid's. The
second is larger, so that the grid carries what is left and scans of all pixel sizes are equally sharp."""

KEPT = (-0.25, 1.5)
"""Values beyond black and white that are kept until the picture is made: cut before, edges of bright fat become stairs."""

TO_APEX = np.array([1.0, -1.0, -1.0])
"""Roughly from base to apex in LPS coordinates: to the left, forwards and down."""

TO_RIGHT, TO_BOTTOM = np.array([0.7, 0.7, 0.0]), np.array([0.0, 0.0, -1.0])
"""Where the picture's right and bottom lie in a short axis as it is looked at: the lateral wall, and the inferior one."""


class Look(Frozen):
    """What of each scan is shown. The defaults suit a generator of short-axis cine that draws 128 mm in pixels of 2 mm."""

    series: str = "cine_ed"
    slices: Annotated[int, Field(ge=1, le=40)] = 6
    field_mm: Annotated[float, Field(ge=16, le=500)] = (
        112.0  # less than what is drawn: a scan that ends inside gives itself away
    )
    mm: Annotated[float, Field(ge=0.2, le=8)] = 2.0  # of the grid that all go through
    located: tuple[int, ...] = (1, 2)  # mask values in the middle of the square; where there are none of them, all

    @property
    def pixels(self) -> int:
        """Rows and columns of the grid."""
        return round(self.field_mm / self.mm)


class Unsuitable(ValueError):
    """A scan that can't be shown as the others are; says why."""


@dataclass(frozen=True, eq=False)
class Scan:
    """A scan as readers see it: values (slices, pixels, pixels) float32, of which 0 is black and 1 is white."""

    values: npt.NDArray[np.float32]

    @property
    def name(self) -> str:
        """A digest of the grey values; it says nothing of kind, patient or place."""
        return hashlib.sha256(_grey(self.values).tobytes()).hexdigest()[:16]

    def picture(self, number: int) -> bytes:
        """Slice `number` as PNG. Nothing is compressed: every picture has the same number of bytes, noisy or smooth."""
        fine = Image.fromarray(self.values[number]).resize((PICTURE_PX, PICTURE_PX), Image.Resampling.LANCZOS)
        written = BytesIO()
        Image.fromarray(_grey(np.asarray(fine))).save(written, "PNG", compress_level=0)
        return written.getvalue()


def _grey(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    return np.rint(255 * np.clip(values, 0, 1)).astype(np.uint8)


def scan_of(case: Case, look: Look) -> Scan:
    """The case's scan in this look. Raises `Unsuitable`."""
    volume = case.volume(look.series)
    if volume is None or volume.mask is None:
        raise Unsuitable(f"it has no {look.series} with a mask")
    where = _located(volume.mask, look.located)
    shown = _shown(where, volume, look.slices)
    values = _upright(_square(np.asarray(volume.image[shown], np.float32), where, volume, look), volume)
    low, high = np.percentile(values, WINDOW)
    if not np.isfinite(values).all() or not high > low:
        raise Unsuitable("it has no contrast around the structures")
    return Scan(np.clip((values - low) / (high - low), *KEPT).astype(np.float32))


def _located(mask: npt.NDArray[np.uint8], located: tuple[int, ...]) -> npt.NDArray[np.intp]:
    """Indices (n, 3) of the structures' voxels."""
    mask = np.asarray(mask)
    where = np.argwhere(np.isin(mask, located))
    if not len(where):
        where = np.argwhere((mask != 0) & (mask != UNKNOWN))
    if not len(where):
        raise Unsuitable("nothing is outlined on it")
    return where


def _shown(where: npt.NDArray[np.intp], volume: Volume, slices: int) -> npt.NDArray[np.intp]:
    """Which slices, base first: evenly from the first with the structures to the last."""
    there = np.unique(where[:, 0])
    if len(there) < slices:
        raise Unsuitable(f"the structures are outlined on {len(there)} of its slices, and {slices} are shown")
    found = there[np.linspace(0, len(there) - 1, slices).round().astype(np.intp)]
    return found if volume.affine[:3, 0] @ TO_APEX >= 0 else found[::-1]


def _square(image: npt.NDArray[np.float32], where: npt.NDArray[np.intp], volume: Volume, look: Look) -> npt.NDArray[np.float32]:
    """The square around the structures on the common grid, (slices, pixels, pixels)."""
    own_mm = np.array(volume.spacing_mm[1:])
    if (own_mm > 1.05 * look.mm).any():
        raise Unsuitable(f"its pixels of {own_mm.max():.3g} mm are coarser than the grid of {look.mm:g} mm for all")
    step = look.mm / own_mm
    first = where[:, 1:].mean(axis=0) - (look.pixels - 1) / 2 * step  # index of the grid's first pixel
    last = first + (look.pixels - 1) * step
    if (first - step / 2 < -0.5 - 1e-6).any() or (last + step / 2 > np.array(image.shape[1:]) - 0.5 + 1e-6).any():
        raise Unsuitable(f"it ends within {look.field_mm:g} mm around the structures")
    for axis, ratio in enumerate(step):
        image = gaussian_filter1d(image, np.sqrt((SHARPNESS * ratio) ** 2 - PIXEL**2), axis=axis + 1)
    shape = (look.pixels, look.pixels)
    return np.stack([affine_transform(one, step, first, shape, order=3, mode="nearest") for one in image])


def _upright(square: npt.NDArray[np.float32], volume: Volume) -> npt.NDArray[np.float32]:
    """Turned by right angles and mirrored as far as that brings the picture's sides where they are looked for."""
    down, right = volume.affine[:3, 1] / volume.spacing_mm[1], volume.affine[:3, 2] / volume.spacing_mm[2]
    if abs(down @ TO_BOTTOM) + abs(right @ TO_RIGHT) < abs(right @ TO_BOTTOM) + abs(down @ TO_RIGHT):
        square, down, right = square.transpose(0, 2, 1), right, down
    square = square if down @ TO_BOTTOM >= 0 else square[:, ::-1]
    return np.ascontiguousarray(square if right @ TO_RIGHT >= 0 else square[:, :, ::-1])
