"""Quality parameters of a computed tomography image, in Hounsfield units.

Noise in soft tissue: the global noise level of Christianson et al., AJR 205:W93 (2015), the most frequent local standard
deviation; here in blocks, and with the limits below. Noise in air: the same outside the body.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from fl_client.quality.scene import Flags, Floats, padding, some_slices, touching

SKIN_HU, METAL_HU = -300, 3000
SOFT_TISSUE_HU = (0, 100)
"""Means of blocks that are soft tissue."""

AIR_HU = (-1100, -900)
"""Means of blocks that are air; lungs are denser."""

BLOCK_MM = 6.0

CUT_OFF = 0.05
"""Share of the air at its smallest value beyond which noise is cut off: many scanners store nothing below -1024 HU. With 5 %
of normal noise cut off its standard deviation comes out 5 % too small, with 12 % by 10 %, with 27 % by 25 %."""

Image: TypeAlias = "npt.NDArray[np.float32] | npt.NDArray[np.int16] | npt.NDArray[np.uint16]"


def measure(image: Image, pixel_mm: float) -> tuple[dict[str, float | None], dict[str, str]]:
    """`noise_air_hu`, `noise_tissue_hu`, `air_hu`, `metal_fraction`, `truncation` of (slices, rows, columns); and why not."""
    slices = some_slices(image)
    field = ~padding(slices)
    body = ndimage.binary_opening(field & (slices > SKIN_HU), np.ones((1, 3, 3)))
    filled = np.stack([ndimage.binary_fill_holes(plane) for plane in body])
    air = _air(slices, field & ~ndimage.binary_dilation(filled, np.ones((1, 7, 7))) & (slices < -500))
    values: dict[str, float | None] = {
        "noise_air_hu": None,
        "air_hu": None,
        "noise_tissue_hu": _most_frequent(_deviations(slices, body, pixel_mm, *SOFT_TISSUE_HU)),
        "metal_fraction": int((image > METAL_HU).sum()) / max(int((image > SKIN_HU).sum()), 1),
        "truncation": touching(field, filled) if body.any() else None,
    }
    why = {} if values["noise_tissue_hu"] is not None else {"noise_tissue_hu": "too little soft tissue"}
    if not body.any():
        why["truncation"] = "nothing is denser than air"
    if air.sum() <= 0.005 * field.sum():
        return values, why | dict.fromkeys(("noise_air_hu", "air_hu"), "too little air around the body")
    values["air_hu"] = float(np.median(slices[air]))
    if (slices[air] == slices[air].min()).mean() > CUT_OFF:  # padding may be smaller still
        return values, why | {"noise_air_hu": "the air is blanked out, or cut off at the smallest value"}
    values["noise_air_hu"] = _most_frequent(_deviations(slices, air, pixel_mm, *AIR_HU))
    return values, why if values["noise_air_hu"] is not None else why | {"noise_air_hu": "air in too few pieces"}


def _air(slices: Floats, dark: Flags) -> Flags:
    """The pieces of what is dark that are air: a lung that the field of view cuts lies outside the body, too, but is denser."""
    pieces, number = ndimage.label(dark, np.stack([np.zeros((3, 3)), np.ones((3, 3)), np.zeros((3, 3))]))
    medians = np.asarray(ndimage.median(slices, pieces, np.arange(1, number + 1)))
    air: Flags = np.isin(pieces, 1 + np.flatnonzero(medians < AIR_HU[1]))
    return air


def _deviations(slices: Floats, where: Flags, pixel_mm: float, low: float, high: float) -> npt.NDArray[np.float64]:
    """Standard deviations of the blocks that lie in `where` and whose mean is between the limits."""
    side = max(4, round(BLOCK_MM / pixel_mm))
    count, rows, columns = slices.shape
    tall, wide = rows // side, columns // side

    def blocks(array: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        cut = array[:, : tall * side, : wide * side].reshape(count, tall, side, wide, side)
        return cut.swapaxes(2, 3).reshape(-1, side * side)

    values = np.asarray(blocks(slices), np.float64)[np.asarray(blocks(where), bool).all(axis=1)]
    means = values.mean(axis=1)
    return np.asarray(values[(low <= means) & (means <= high)].std(axis=1, ddof=1), np.float64)


def _most_frequent(deviations: npt.NDArray[np.float64]) -> float | None:
    """The peak of their histogram, smoothed; None for fewer than 10."""
    if len(deviations) < 10:
        return None
    width = max(float(np.median(deviations)) / 20, 1e-6)
    counts = np.bincount((deviations / width).astype(int))
    smooth = ndimage.gaussian_filter1d(counts.astype(float), 2, mode="constant")
    return (float(smooth.argmax()) + 0.5) * width
