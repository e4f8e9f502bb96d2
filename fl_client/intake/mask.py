"""What a reader drew, put on the image's own grid and looked at for plausibility.

A DICOM SEG is read by highdicom and lands on the grid of the images it refers to; a mask on another grid is resampled to
the nearest neighbour only where that loses nothing, and refused otherwise. The check looks at what a label map declares: a
cavity lies inside its wall, structures hang together. It catches masks that fit the grid and not the patient, such as
the displaced epicardial contours of one Sunnybrook patient.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress

import highdicom as hd
import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from scipy import ndimage

from fl_client.intake.labels import LabelMap, UnmappedLabel
from fl_client.intake.volume import same_grid
from tasks.case import UNKNOWN, Volume

CAVITY_OUTSIDE = 0.05
"""Largest share of a slice's cavity that may lie outside the epicardium. Sunnybrook: 0 if sound, 0.2 to 0.62 if displaced."""

OPEN_BOUNDARY = 0.4
"""Largest share of the cavity's in-plane outline that may touch background instead of wall, over the slices that show a
wall. Basal slices open towards the outflow tract, so that some of it is sound."""

LARGEST_PIECE = 0.75
"""A structure whose largest connected piece holds less of it than this is in pieces."""

KEPT_INSIDE = 0.99  # share of a resampled mask's voxels that must fall inside the image
KEPT_VOLUME = 0.05  # relative change of a structure's volume that resampling may make

Mask = npt.NDArray[np.uint8]
Flags = npt.NDArray[np.bool_]


class MaskRefused(ValueError):
    """The mask can't be used; the text says why."""


def read_seg(seg: Dataset, labels: LabelMap) -> tuple[Mask, npt.NDArray[np.float64]]:
    """A de-identified DICOM SEG with its pixels, as canonical labels on its own grid, and that grid's affine.

    Raises `MaskRefused` for overlapping or fractional segments and frames that form no volume, `UnmappedLabel` for a segment
    whose label and code the map doesn't know.
    """
    if "SegmentSequence" not in seg or not seg.SegmentSequence:
        raise MaskRefused("the segmentation names no segments")
    values = {int(item.SegmentNumber): _segment_value(item, labels) for item in seg.SegmentSequence}
    if seg.get("SegmentationType") not in ("BINARY", "LABELMAP"):
        raise MaskRefused("the segmentation is fractional; a mask needs one label per voxel")
    try:
        volume = hd.seg.Segmentation.from_dataset(seg, copy=False).get_volume(combine_segments=True, dtype=np.uint16)
    except Exception as error:  # highdicom raises many kinds; the texts may hold identifiers
        words = "segments overlap" if "overlap" in str(error).lower() else f"its frames form no volume ({type(error).__name__})"
        raise MaskRefused(f"the segmentation can't be read: {words}") from None
    mask = np.zeros(volume.array.shape, np.uint8)
    for number, value in values.items():
        mask[volume.array == number] = value
    return mask, np.asarray(volume.affine, np.float64)


def _segment_value(segment: Dataset, labels: LabelMap) -> int:
    label = str(segment.get("SegmentLabel", "") or "")
    by_text: int | None = None
    with suppress(UnmappedLabel):
        by_text = labels.of_source(label) if label else None
    types = segment.get("SegmentedPropertyTypeCodeSequence") or []
    by_code = (
        labels.of_code(str(types[0].get("CodingSchemeDesignator", "")), str(types[0].get("CodeValue", ""))) if types else None
    )
    number = int(segment.SegmentNumber)
    if by_text is not None and by_code is not None and by_text not in (0, by_code):
        raise UnmappedLabel(f"segment {number} is {labels.name(by_text)} by its label and {labels.name(by_code)} by its code")
    value = by_text if by_text is not None else by_code
    if value is None:
        # the text itself isn't repeated: whatever a reader typed may hold a name
        known = ", ".join(labels.structures)
        raise UnmappedLabel(f"segment {number} has a label and a code that stand nowhere in the label map, which knows {known}")
    return value


def onto_grid(mask: Mask, affine: npt.NDArray[np.float64], image: Volume) -> tuple[Mask, bool]:
    """The mask on the image's grid, and whether it had to be resampled (nearest neighbour).

    A mask on a part of the image's grid, or with an axis reversed, is moved without resampling. Raises `MaskRefused` if
    less than 99 % of its voxels fall inside the image, or a structure's volume changes by more than 5 %.
    """
    if mask.shape == image.image.shape and same_grid(affine, image.affine):
        return mask, False
    labelled = np.argwhere(mask)
    if not len(labelled):
        raise MaskRefused("the mask is empty")
    to_image = np.linalg.inv(image.affine) @ affine
    indices = labelled @ to_image[:3, :3].T + to_image[:3, 3]
    inside = ((indices > -0.5) & (indices < np.array(image.image.shape) - 0.5)).all(axis=1).mean()
    if inside < KEPT_INSIDE:
        raise MaskRefused(f"only {inside:.1%} of the mask lies inside the image; at least {KEPT_INSIDE:.0%} must")
    resampled = _nearest(mask, np.linalg.inv(to_image).astype(np.float64), image.image.shape)
    # whole steps along the image's own axes, for every labelled voxel: nothing was interpolated
    if np.abs(indices - indices.round()).max() <= 0.01 and np.count_nonzero(resampled) == len(labelled):
        return resampled, False
    before, after = abs(np.linalg.det(affine[:3, :3])), abs(np.linalg.det(image.affine[:3, :3]))
    for value in np.unique(mask[mask > 0]):
        old, new = float((mask == value).sum() * before), float((resampled == value).sum() * after)
        if abs(new - old) > KEPT_VOLUME * old:
            raise MaskRefused(
                f"the mask lies on another grid, and resampling would change label {value} "
                f"from {old / 1000:.2f} to {new / 1000:.2f} ml"
            )
    return resampled, True


def _nearest(mask: Mask, to_mask: npt.NDArray[np.float64], shape: tuple[int, ...]) -> Mask:
    """Value of the nearest voxel of `mask` for every voxel of a grid; 0 outside. One slice at a time, to save memory."""
    result = np.zeros(shape, np.uint8)
    rows, columns = np.meshgrid(np.arange(shape[1]), np.arange(shape[2]), indexing="ij")
    for z in range(shape[0]):
        index = np.stack([np.full_like(rows, z), rows, columns], -1) @ to_mask[:3, :3].T + to_mask[:3, 3]
        nearest = np.rint(index).astype(int)
        valid = ((nearest >= 0) & (nearest < np.array(mask.shape))).all(axis=-1)
        result[z][valid] = mask[tuple(nearest[valid].T)]
    return result


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
