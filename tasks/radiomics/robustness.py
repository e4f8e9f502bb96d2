"""Which features can be trusted: those that say the same when a patient is scanned or drawn again.

Intraclass correlations (Shrout & Fleiss 1979, Psychol Bull 86:420; intervals as in McGraw & Wong 1996, Psychol Methods 1:30)
compare what separates patients with what separates repetitions. Repetitions are scans of the same generated patients on other
scanners, or regions moved and resized at random (Zwanenburg et al. 2019, Sci Rep 9:614), so that choosing costs no privacy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.stats import f as f_distribution

from tasks.case import UNKNOWN

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.uint8]
Kind = Literal["agreement", "consistency"]


@dataclass(frozen=True)
class Icc:
    """An intraclass correlation, its confidence interval, and the number of subjects without a missing value.

    1 is perfect; about 0, or below, repetitions differ as much as patients do. NaN where it is undefined: fewer than two
    subjects, no value that differs from another.
    """

    value: float
    low: float
    high: float
    subjects: int


def icc(ratings: npt.ArrayLike, *, kind: Kind = "agreement", confidence: float = 0.95) -> Icc:
    """The intraclass correlation of single ratings (subjects, raters); subjects with a missing rating (NaN) are left out.

    `agreement`, ICC(2,1): raters are drawn from many, and it counts against them if one always gives more than another.
    `consistency`, ICC(3,1): these raters only, and a constant difference doesn't matter, as after harmonisation.
    Raises `ValueError` for another shape or fewer than two raters.
    """
    table = np.asarray(ratings, dtype=np.float64)
    if table.ndim != 2 or table.shape[1] < 2:
        raise ValueError(f"ratings need an axis of subjects and one of two or more raters, not shape {table.shape}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, not be {confidence}")
    if kind not in ("agreement", "consistency"):
        raise ValueError(f"the kind of correlation is agreement or consistency, not '{kind}'")
    table = table[np.isfinite(table).all(axis=1)]
    n, k = table.shape
    if n < 2 or np.ptp(table) <= 1e-12 * np.abs(table).max():
        return Icc(math.nan, math.nan, math.nan, n)
    table = table - table.mean()
    subject, rater = table.mean(axis=1, keepdims=True), table.mean(axis=0, keepdims=True)
    between = k * float((subject**2).sum()) / (n - 1)  # mean squares, in the papers MSR, MSC and MSE
    raters = n * float((rater**2).sum()) / (k - 1)
    rest = float(((table - subject - rater) ** 2).sum()) / ((n - 1) * (k - 1))
    if rest <= 1e-24 * float((table**2).sum()):
        rest = 0.0  # rounding
    tail = (1 + confidence) / 2
    if kind == "consistency":
        value = (between - rest) / (between + (k - 1) * rest)
        return Icc(value, *_consistency_interval(between, rest, n, k, tail), n)
    whole = between + (k - 1) * rest + k * (raters - rest) / n
    if whole <= 1e-12 * (between + raters + rest):  # two subjects and two raters who say the opposite
        return Icc(math.nan, math.nan, math.nan, n)
    value = (between - rest) / whole
    return Icc(value, *_agreement_interval(value, between, raters, rest, n, k, tail), n)


def _consistency_interval(between: float, rest: float, n: int, k: int, tail: float) -> tuple[float, float]:
    if not rest:
        return 1.0, 1.0
    inner, outer = n - 1, (n - 1) * (k - 1)
    low = between / rest / float(f_distribution.ppf(tail, inner, outer))
    high = between / rest * float(f_distribution.ppf(tail, outer, inner))
    return (low - 1) / (low + k - 1), (high - 1) / (high + k - 1)


def _agreement_interval(
    value: float, between: float, raters: float, rest: float, n: int, k: int, tail: float
) -> tuple[float, float]:
    if value == 1:
        return 1.0, 1.0
    a = k * value / (n * (1 - value))
    b = 1 + k * value * (n - 1) / (n * (1 - value))
    spread = (a * raters) ** 2 / (k - 1) + (b * rest) ** 2 / ((n - 1) * (k - 1))
    if not spread:
        return math.nan, math.nan
    freedom = (a * raters + b * rest) ** 2 / spread  # Satterthwaite
    both = k * raters + (k * n - k - n) * rest
    up, down = float(f_distribution.ppf(tail, n - 1, freedom)), float(f_distribution.ppf(tail, freedom, n - 1))
    low = n * (between - up * rest) / (up * both + n * between)
    high = n * (down * between - rest) / (both + n * down * between)
    return low, high


def icc_columns(repetitions: Sequence[npt.ArrayLike], *, kind: Kind = "agreement", confidence: float = 0.95) -> tuple[Icc, ...]:
    """The intraclass correlation of each column of tables (subjects, columns), one per repetition, rows in the same order."""
    tables = [np.asarray(each, dtype=np.float64) for each in repetitions]
    if not tables or tables[0].ndim != 2 or any(table.shape != tables[0].shape for table in tables):
        raise ValueError(f"repetitions must be tables of one shape, not {[table.shape for table in tables]}")
    values = np.stack(tables, axis=2)  # (subjects, columns, repetitions)
    return tuple(icc(values[:, column], kind=kind, confidence=confidence) for column in range(values.shape[1]))


def robust(columns: Sequence[str], *found: Sequence[Icc], least: float = 0.75) -> tuple[str, ...]:
    """The columns whose correlation is at least `least` in every one of `found` (rescans, regions drawn again, ...).

    0.75 is where Koo & Li 2016 (J Chiropr Med 15:155) begin to call it good. One that is undefined isn't robust.
    """
    if not found or any(len(each) != len(columns) for each in found):
        raise ValueError(f"one correlation per column is needed: {len(columns)} columns, {[len(each) for each in found]} given")
    return tuple(
        name
        for name, values in zip(columns, zip(*found, strict=True), strict=True)
        if all(one.value >= least for one in values)
    )


def perturbed(mask: Labels, affine: npt.ArrayLike, rng: np.random.Generator, *, shift_mm: float, grow_mm: float) -> Labels:
    """The regions of `mask` (slices, rows, columns) as somebody else might have drawn them.

    All regions move together within the slice planes, by up to `shift_mm` along rows and along columns, and their common
    outline (with the inner one, if they form a ring) moves outwards or inwards by up to `grow_mm`; all three uniformly drawn.
    Borders between two regions only move. What moves is the signed distance to the outline, so steps may be smaller than a
    pixel. No region is lost: one that would have fewer than two voxels keeps those that it had. Voxels that nobody labelled
    (255) stay so, and no region appears in a slice that had none of it.

    `affine` (4, 4) takes (slice, row, column, 1) to mm. Raises `ValueError` for a mask that isn't a volume and for negative
    lengths.
    """
    if mask.ndim != 3:
        raise ValueError(f"a mask has three axes (slices, rows, columns), not shape {mask.shape}")
    if not (0 <= shift_mm < math.inf and 0 <= grow_mm < math.inf):
        raise ValueError(f"shift_mm and grow_mm must be 0 or positive lengths, not {shift_mm} and {grow_mm}")
    spacing = np.linalg.norm(np.asarray(affine, dtype=np.float64)[:3, 1:3], axis=0)  # mm between rows, between columns
    down, across = rng.uniform(-shift_mm, shift_mm, 2) / spacing
    grow = float(rng.uniform(-grow_mm, grow_mm))
    unknown = mask == UNKNOWN
    regions = [int(label) for label in np.unique(mask) if label not in (0, UNKNOWN)]
    margin = math.ceil((shift_mm + grow_mm) / spacing.min()) + 2
    result = np.zeros_like(mask)
    for index in np.flatnonzero(((mask != 0) & ~unknown).any(axis=(1, 2))):
        window = _window((mask[index] != 0) & ~unknown[index], margin)
        here = mask[index][window]
        present = [label for label in regions if (here == label).any()]
        outline = _moved(_distance_mm((here != 0) & (here != UNKNOWN), spacing), down, across)
        each = np.stack([_moved(_distance_mm(here == label, spacing), down, across) for label in present])
        nearest = np.array(present, dtype=mask.dtype)[each.argmin(axis=0)]
        result[index][window] = np.where(outline < grow, nearest, 0)
    result[unknown] = UNKNOWN
    kept: set[int] = set()
    while lost := {label for label in regions if label not in kept and (result == label).sum() < 2}:
        kept |= lost  # giving one its voxels back may take another's
        for label in lost:
            result[mask == label] = label
    return result


def _window(inside: npt.NDArray[np.bool_], margin: int) -> tuple[slice, slice]:
    (rows, columns), (height, width) = np.nonzero(inside), inside.shape
    return (
        slice(max(0, int(rows.min()) - margin), min(height, int(rows.max()) + margin + 1)),
        slice(max(0, int(columns.min()) - margin), min(width, int(columns.max()) + margin + 1)),
    )


def _distance_mm(inside: npt.NDArray[np.bool_], spacing: Floats) -> Floats:
    """Distance of pixel centres to the outline of a region, negative inside; beyond the picture there is no region."""
    wider = np.pad(inside, 1)
    return np.where(wider, -_to_outline(wider, spacing), _to_outline(~wider, spacing))[1:-1, 1:-1]


def _to_outline(inside: npt.NDArray[np.bool_], spacing: Floats) -> Floats:
    """From each pixel that is true to the nearest that isn't, less the half pixel at which that one begins."""
    distance, nearest = ndimage.distance_transform_edt(inside, sampling=spacing, return_indices=True)
    steps = np.abs(nearest - np.indices(inside.shape)).max(axis=0)  # pixels along the longer side of the way
    return np.asarray(distance * (1 - 0.5 / np.maximum(steps, 1)), np.float64)


def _moved(distance: Floats, down: float, across: float) -> Floats:
    """The picture moved by a part of a pixel or more; its edge goes on beyond itself."""
    return np.asarray(ndimage.shift(distance, (down, across), order=1, mode="nearest"), np.float64)
