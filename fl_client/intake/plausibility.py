"""Whether a mask can be right: what was drawn hangs together, encloses what it should, and lies where it does in a body.

The check looks at what a label map declares: a cavity lies inside its wall, structures hang together, have a possible size and
lie on their side of the body. It catches masks that fit the grid and not the patient, such as the displaced epicardial
contours of one Sunnybrook patient, or a mask that a program wrote mirrored.
"""

from __future__ import annotations

from collections.abc import Collection
from itertools import product

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from fl_client.intake.labels import LabelMap
from fl_client.intake.mask import Flags, Mask, MaskRefused
from tasks.case import UNKNOWN, Volume

CAVITY_OUTSIDE = 0.05
"""Largest share of a slice's cavity that may lie outside the epicardium. Sunnybrook: 0 if sound, 0.2 to 0.62 if displaced."""

OPEN_BOUNDARY = 0.4
"""Largest share of the cavity's in-plane outline that may touch background instead of wall, over the slices that show a
wall. Basal slices open towards the outflow tract, so that some of it is sound."""

LARGEST_PIECE = 0.75
"""A structure whose largest connected piece holds less of it than this is in pieces."""

WRONG_SIDE = 0.3
"""Cosine, towards the patient's left, from which a structure stands on the wrong side of another. The right ventricle of
generated patients lies at -0.63 to -0.95."""

TAPERED = 0.7
"""Mean area of the last third of a structure's slices over that of the first, below which it tapers, over at least four slices.
Left ventricles of Sunnybrook: 0.23 to 0.89, towards the patient's left by a cosine of 0.47 to 0.72; generated ones likewise."""

REVERSALS = tuple(tuple(axis for axis in range(3) if flags[axis]) for flags in product((False, True), repeat=3) if any(flags))
COARSE = 128  # voxels along an axis at which mirrored masks are looked for: enough, and quick for large volumes
MIRRORED_EXPLAINS, MIRRORED_BETTER = 0.3, 3.0
"""A mask is mirrored if, reversed, it explains more than this share of the image's variance around it, and this many times
what it explains as it is. Sound masks of Sunnybrook stay below 0.9 times, those of generated patients below 2.8 times; a
mask near the middle of its image differs too little from its reversal to be found."""


def check_volume(volume: Volume, labels: LabelMap, *, epicardium: Flags | None = None, cavity: Flags | None = None) -> None:
    """Raise `MaskRefused` for a volume whose mask can't be right: all that `check_mask` says, and sides, sizes, mirroring."""
    if volume.mask is None:
        raise MaskRefused("there is no mask")
    check_mask(volume.mask, volume.spacing_mm, labels, epicardium=epicardium, cavity=cavity)
    _check_sides(volume.mask, volume.affine, labels)
    _check_tapering(volume.mask, volume.affine, labels)
    _check_sizes(volume.mask, volume.spacing_mm, labels)
    _check_mirrored(volume.image, volume.mask)


def check_mask(
    mask: Mask,
    spacing_mm: Collection[float],
    labels: LabelMap,
    *,
    epicardium: Flags | None = None,
    cavity: Flags | None = None,
) -> None:
    """Raise `MaskRefused` for a mask that can't be right.

    `mask` is (slices, rows, columns) in canonical values. `epicardium` and `cavity` are the filled contours, where a reader
    drew those: a label volume can't show a cavity that sticks out of its epicardium.
    """
    known = {structure.value for structure in labels.structures.values()}
    strangers = sorted(set(np.unique(mask).tolist()) - known - {0})
    if strangers:
        raise MaskRefused(f"the mask holds the values {strangers}, which no structure has; there are {sorted(known)}")
    if not ((mask > 0) & (mask != UNKNOWN)).any():
        raise MaskRefused("the mask is empty: nothing is labelled")
    if len(tuple(spacing_mm)) != 3 or min(spacing_mm) <= 0:
        raise MaskRefused(f"voxel size {tuple(spacing_mm)} mm is not three positive numbers")
    if epicardium is not None and cavity is not None:
        _check_contours(epicardium, cavity)
    walls, cavities = labels.role("wall"), labels.role("cavity")
    if walls and cavities:
        _check_wall(np.isin(mask, walls), np.isin(mask, cavities), mask == UNKNOWN)
    for value in sorted(known & set(np.unique(mask).tolist()) - {UNKNOWN}):
        pieces, count = ndimage.label(mask == value, np.ones((3, 3, 3)))
        sizes = np.bincount(pieces.ravel())[1:]
        if sizes.max() < LARGEST_PIECE * sizes.sum():
            share = sizes.max() / sizes.sum()
            raise MaskRefused(
                f"{labels.name(value)} lies in {count} pieces, the largest with {share:.0%} of it; "
                f"at least {LARGEST_PIECE:.0%} must hang together"
            )


def _check_contours(epicardium: Flags, cavity: Flags) -> None:
    """The endocardial contour lies inside the epicardial one, on each slice that has both."""
    outside = [
        float((inner & ~outer).sum() / inner.sum())
        for outer, inner in zip(epicardium, cavity, strict=True)
        if inner.any() and outer.any()
    ]
    bad = [share for share in outside if share > CAVITY_OUTSIDE]
    if bad:
        raise MaskRefused(
            f"on {len(bad)} of {len(outside)} slices {min(bad):.0%} to {max(bad):.0%} of the cavity lies outside the "
            f"epicardium; at most {CAVITY_OUTSIDE:.0%} may: the contours are displaced against each other"
        )


def _check_wall(wall: Flags, cavity: Flags, unknown: Flags) -> None:
    """The cavity's outline touches wall, not background, on slices that show both."""
    edges = open_edges = 0
    for z in np.flatnonzero(wall.any(axis=(1, 2)) & cavity.any(axis=(1, 2))):
        padded = np.pad(cavity[z], 1)
        neighbours = np.pad(~(wall[z] | cavity[z] | unknown[z]), 1, constant_values=False)
        outline = np.pad(~cavity[z] & ~unknown[z], 1, constant_values=False)
        for axis, step in ((0, 1), (0, -1), (1, 1), (1, -1)):
            edges += int((padded & np.roll(outline, step, axis)).sum())
            open_edges += int((padded & np.roll(neighbours, step, axis)).sum())
    if edges and open_edges > OPEN_BOUNDARY * edges:
        raise MaskRefused(
            f"{open_edges / edges:.0%} of the cavity's outline touches background where a wall is drawn; "
            f"at most {OPEN_BOUNDARY:.0%} may: cavity and wall don't belong together"
        )


def _check_sides(mask: Mask, affine: npt.NDArray[np.float64], labels: LabelMap) -> None:
    """What lies on the patient's right of something else does so here: the first axis of LPS runs to the left."""
    for name, structure in labels.structures.items():
        if structure.right_of is None:
            continue
        here, there = np.argwhere(mask == structure.value), np.argwhere(mask == labels.structures[structure.right_of].value)
        if not len(here) or not len(there):
            continue
        way = affine[:3, :3] @ (here.mean(axis=0) - there.mean(axis=0))
        distance = float(np.linalg.norm(way))
        if distance > 0 and way[0] > WRONG_SIDE * distance:
            raise MaskRefused(
                f"{name} lies {way[0]:.0f} mm on the patient's left of {structure.right_of}, {distance:.0f} mm away: the mask "
                "is mirrored, or the images state a wrong position of the patient (a heart on the right side of the chest "
                "needs a label map without right_of)"
            )


def _check_tapering(mask: Mask, affine: npt.NDArray[np.float64], labels: LabelMap) -> None:
    """An apex points to the patient's left; if it points to the right, the slices stand in the wrong order."""
    along = affine[:3, 0] / np.linalg.norm(affine[:3, 0])
    for name, structure in labels.structures.items():
        area = (mask == structure.value).sum(axis=(1, 2))
        area = area[area > 0]
        if not structure.tapers_left or len(area) < 4:
            continue
        third = len(area) // 3
        first, last = float(area[:third].mean()), float(area[-third:].mean())
        to_left = float(along[0]) if last < first else -float(along[0])
        if min(first, last) < TAPERED * max(first, last) and to_left < -WRONG_SIDE:
            raise MaskRefused(
                f"{name} tapers to the patient's right, from {max(first, last):.0f} to {min(first, last):.0f} pixels a slice, "
                "where its apex points to the left: the slices of the mask stand in the wrong order, or the mask is mirrored"
            )


def _check_sizes(mask: Mask, spacing_mm: tuple[float, float, float], labels: LabelMap) -> None:
    for name, structure in labels.structures.items():
        count = int((mask == structure.value).sum())
        if structure.volume_ml is None or not count:
            continue
        least, most = structure.volume_ml
        ml = count * float(np.prod(spacing_mm)) / 1000
        if not least <= ml <= most:
            raise MaskRefused(f"{name} has {ml:.1f} ml; the label map expects {least:g} to {most:g} ml")


def _check_mirrored(image: npt.NDArray[np.generic], mask: Mask) -> None:
    """Some reversal of the axes explains the image far better than the mask as it is."""
    step = tuple(slice(None, None, max(1, size // COARSE)) for size in image.shape)
    values = np.asarray(image[step], np.float32)
    drawn = np.asarray(mask[step])
    drawn = np.where(drawn == UNKNOWN, 0, drawn).astype(np.uint8)
    for reversed_axes in REVERSALS:
        other = np.flip(drawn, reversed_axes)
        around = ndimage.binary_dilation((drawn > 0) | (other > 0), np.ones((1, 3, 3)), 2)
        if not around.any():
            return
        own, flipped = _explained(values[around], drawn[around]), _explained(values[around], other[around])
        if flipped > MIRRORED_EXPLAINS and flipped > MIRRORED_BETTER * own:
            axes = " and ".join(("slices", "rows", "columns")[axis] for axis in reversed_axes)
            raise MaskRefused(
                f"the mask is mirrored: with its {axes} reversed it explains {flipped:.0%} of the differences of brightness "
                f"around it, as it is {own:.0%}"
            )


def _explained(values: npt.NDArray[np.float32], groups: Mask) -> float:
    """Share of the variance of the values that lies between the groups."""
    total = float(((values - values.mean()) ** 2).sum())
    within = sum(float(((values[groups == value] - values[groups == value].mean()) ** 2).sum()) for value in np.unique(groups))
    return 1 - within / total if total > 0 else 0.0
