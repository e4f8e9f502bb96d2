"""What a reader drew, whatever program it was drawn with, and how it gets onto the image's own grid.

Readers of files (`seg`, `rtstruct`, `mask_file`) give a `Drawing`. On the image's grid, or on whole steps of it, it is moved;
on another it is resampled to the nearest neighbour only where that loses nothing, and refused otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from fl_client.intake.labels import LabelMap
from fl_client.intake.volume import same_grid
from tasks.case import UNKNOWN, Volume

KEPT_INSIDE = 0.99  # share of a mask's voxels that must fall inside the image
KEPT_VOLUME = 0.05  # relative change of a structure's volume that resampling may make
CONTESTED = 0.01
"""Share of the smaller of two structures that may be drawn over by the other without a priority. Those voxels are unknown."""

Mask = npt.NDArray[np.uint8]
Flags = npt.NDArray[np.bool_]
Affine = npt.NDArray[np.float64]
Notes = dict[str, float | bool | str]


class MaskRefused(ValueError):
    """The mask can't be used; the text says why."""


@dataclass(frozen=True, eq=False)
class Drawing:
    """A mask on its own grid: canonical values (slices, rows, columns), the affine index → LPS mm, what to remember of it."""

    mask: Mask
    affine: Affine
    notes: Mapping[str, float | bool | str] = field(default_factory=dict)


def flatten(layers: Iterable[tuple[int, Flags]], shape: tuple[int, ...], labels: LabelMap) -> tuple[Mask, Notes]:
    """One mask of structures that were drawn one by one, as (canonical value, where); and what to remember of it.

    Where two were drawn, unknown counts first, then the label map's priority. Two without one may share up to 1 % of the
    smaller, as neighbours drawn by hand do, and those voxels are unknown. Raises `MaskRefused` if they share more.
    """
    mask = np.zeros(shape, np.uint8)
    rank = {labels.structures[name].value: number for number, name in enumerate(labels.priority)}
    drawn: dict[int, int] = {}
    contested: dict[tuple[int, int], int] = {}
    overlapping = 0
    for value, where in layers:
        if value == 0:
            continue
        new = where & (mask != value)
        drawn[value] = drawn.get(value, 0) + int(new.sum())
        under = np.unique(mask[new & (mask > 0)])
        taken = new & (mask == 0)
        for other in map(int, under):
            both = new & (mask == other)
            if value == UNKNOWN or (value in rank and other in rank and rank[value] < rank[other]):
                taken |= both
            elif other != UNKNOWN and not (value in rank and other in rank):
                contested[min(value, other), max(value, other)] = contested.get(
                    (min(value, other), max(value, other)), 0
                ) + int(both.sum())
                mask[both] = UNKNOWN
            overlapping += int(both.sum())
        mask[taken] = value
    require_little_shared(contested, drawn, labels, what="segments")
    return mask, {"overlapping": round(overlapping / max(1, int((mask > 0).sum())), 4)} if overlapping else {}


def require_little_shared(
    shared: Mapping[tuple[int, int], int], drawn: Mapping[int, int], labels: LabelMap, *, what: str
) -> None:
    """Raise `MaskRefused` if two structures without a priority share more than `CONTESTED` of the smaller.

    `shared` and `drawn` count voxels, of a pair and of each structure; `what` is what the source calls them.
    """
    for (one, other), count in shared.items():
        share = count / min(drawn[one], drawn[other])
        if share > CONTESTED:
            raise MaskRefused(
                f"{what} overlap: {labels.name(one)} and {labels.name(other)} share {share:.0%} of the smaller; without a "
                f"priority in the label map at most {CONTESTED:.0%} may be"
            )


def fit(drawing: Drawing, image: Volume) -> Literal["exact", "inside", "outside"]:
    """How a drawing lies in an image: voxel on voxel, with 99 % of its voxels inside, or neither. An empty one is outside."""
    if drawing.mask.shape == image.image.shape and same_grid(drawing.affine, image.affine):
        return "exact"
    indices = _indices(drawing, image)
    if not len(indices) or _inside(indices, image) < KEPT_INSIDE:
        return "outside"
    return "exact" if _on_voxels(drawing, image) else "inside"


def onto_grid(drawing: Drawing, image: Volume) -> tuple[Mask, bool]:
    """The mask on the image's grid, and whether it had to be resampled (nearest neighbour).

    A mask on a part of the image's grid, or with an axis reversed, is moved without resampling. Raises `MaskRefused` if it is
    empty, if less than 99 % of its voxels fall inside the image, if a structure's volume changes by more than 5 %, and for a
    mask of the image's own size with an axis the other way round, whose voxels don't fall on the image's.
    """
    mask, affine = drawing.mask, drawing.affine
    if mask.shape == image.image.shape and same_grid(affine, image.affine):
        return mask, False
    indices = _indices(drawing, image)
    if not len(indices):
        raise MaskRefused("the mask is empty")
    inside = _inside(indices, image)
    exact = inside >= KEPT_INSIDE and _on_voxels(drawing, image)
    if not exact and (turned := _turned(drawing, image)):
        raise MaskRefused(turned)
    if inside < KEPT_INSIDE:
        raise MaskRefused(f"only {inside:.1%} of the mask lies inside the image; at least {KEPT_INSIDE:.0%} must")
    resampled = _nearest(mask, np.linalg.inv(affine) @ image.affine, image.image.shape)
    if exact and np.count_nonzero(_is_structure(resampled)) == len(indices):
        return resampled, False
    before, after = abs(np.linalg.det(affine[:3, :3])), abs(np.linalg.det(image.affine[:3, :3]))
    for value in np.unique(mask[_is_structure(mask)]):
        old, new = float((mask == value).sum() * before), float((resampled == value).sum() * after)
        if abs(new - old) > KEPT_VOLUME * old:
            raise MaskRefused(
                f"the mask lies on another grid, and resampling would change label {value} "
                f"from {old / 1000:.2f} to {new / 1000:.2f} ml"
            )
    return resampled, True


def _is_structure(mask: Mask) -> Flags:
    flags: Flags = (mask > 0) & (mask != UNKNOWN)
    return flags


def _indices(drawing: Drawing, image: Volume) -> npt.NDArray[np.float64]:
    """Where the labelled voxels lie in the image, as indices (n, 3) that needn't be whole."""
    to_image = np.linalg.inv(image.affine) @ drawing.affine
    indices: npt.NDArray[np.float64] = np.argwhere(_is_structure(drawing.mask)) @ to_image[:3, :3].T + to_image[:3, 3]
    return indices


def _inside(indices: npt.NDArray[np.float64], image: Volume) -> float:
    return float(((indices > -0.5) & (indices < np.array(image.image.shape) - 0.5)).all(axis=1).mean())


def _on_voxels(drawing: Drawing, image: Volume) -> bool:
    """Whether the drawing's grid is a part of the image's, continued, with axes reversed or exchanged at most."""
    steps = (np.linalg.inv(image.affine) @ drawing.affine).round()
    turned = np.abs(steps[:3, :3])
    return np.array_equal(turned @ turned.T, np.eye(3)) and same_grid(image.affine @ steps, drawing.affine)


def _turned(drawing: Drawing, image: Volume) -> str:
    """In words, that a mask of the image's size has its axes exchanged or reversed against the image's; empty if it hasn't."""
    if sorted(drawing.mask.shape) != sorted(image.image.shape):
        return ""
    sizes, own = (np.linalg.norm(affine[:3, :3], axis=0) for affine in (drawing.affine, image.affine))
    if not np.allclose(np.sort(sizes), np.sort(own), atol=1e-3):
        return ""
    cosines = (image.affine[:3, :3] / own).T @ (drawing.affine[:3, :3] / sizes)
    steps = cosines.round()
    if np.abs(cosines - steps).max() > 0.02 or np.array_equal(steps, np.eye(3)):
        return ""
    handed = "mirrored" if np.linalg.det(steps) < 0 else "turned"
    return (
        f"the mask has the image's size and voxels, but is {handed} against it: its axes run another way and its voxels don't "
        "fall on the image's; one of the two was written with wrong directions"
    )


def _nearest(mask: Mask, to_mask: Affine, shape: tuple[int, ...]) -> Mask:
    """Value of the nearest voxel of `mask` for every voxel of a grid; 0 outside. One slice at a time, to save memory."""
    result = np.zeros(shape, np.uint8)
    rows, columns = np.meshgrid(np.arange(shape[1]), np.arange(shape[2]), indexing="ij")
    for z in range(shape[0]):
        index = np.stack([np.full_like(rows, z), rows, columns], -1) @ to_mask[:3, :3].T + to_mask[:3, 3]
        nearest = np.rint(index).astype(int)
        valid = ((nearest >= 0) & (nearest < np.array(mask.shape))).all(axis=-1)
        result[z][valid] = mask[tuple(nearest[valid].T)]
    return result
