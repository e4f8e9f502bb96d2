"""DICOM RT structure sets: closed contours in the planes of the images, filled on the images' own grid.

A contour lies in the plane of an image or is refused: nothing is guessed between planes. Where a reader left out images
between two on which a structure is drawn, nobody knows what is there, and the unlabelled voxels of those images are unknown.
DICOM PS3.3 C.8.8.6: holes by a keyhole (one outline with a double edge) or by further contours inside the first.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from fl_client.intake.headers import references
from fl_client.intake.labels import LabelMap
from fl_client.intake.mask import Drawing, Flags, Mask, MaskRefused, require_little_shared
from fl_client.intake.polygon import inside, per_pixel
from tasks.case import UNKNOWN, Volume

OFF_PLANE = 0.1
"""Largest distance of a contour's point from the plane of an image, as a share of the distance between images."""

OFF_PLANE_MM = 0.5  # and in millimetres, for thick slices
FINE = 5  # points per pixel and axis; odd, so that no pixel is covered by exactly half
CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
CROSSING = 0.02  # share of a contour that may cross another of its structure: neither inside it nor outside
Points = npt.NDArray[np.float64]


def read_rtstruct(dataset: Dataset, image: Volume, labels: LabelMap, *, frame_of_reference: str) -> Drawing:
    """The structures of a de-identified RT structure set on the grid of `image`, whose frame of reference is given.

    A pixel belongs to structures if more than half of it is covered, and among them to the one with most of it. Raises
    `MaskRefused` for contours of another frame of reference, outside the image, off its planes or not closed, for contours that
    cross, and structures that overlap without a priority in the label map; `UnmappedLabel` for one that the map doesn't know.
    """
    names = {int(item.ROINumber): item for item in dataset.get("StructureSetROISequence", [])}
    if not names:
        raise MaskRefused("the structure set names no structures")
    by_slice: dict[int, list[tuple[int, list[Points]]]] = {}
    slices_of: dict[int, set[int]] = {}
    for item in dataset.get("ROIContourSequence", []):
        number = int(item.get("ReferencedROINumber", -1))
        if number not in names:
            raise MaskRefused(f"contours of structure {number}, which the structure set doesn't name")
        value = labels.of_segment(f"structure {number}", str(names[number].get("ROIName", "") or ""), _codes(dataset, number))
        if value == 0:
            continue
        _check_frame(dataset, names[number], frame_of_reference)
        planes: dict[int, list[Points]] = {}
        for contour in item.get("ContourSequence", []):
            plane, points = _in_plane(contour, image, number)
            planes.setdefault(plane, []).append(points)
        for plane, polygons in planes.items():
            by_slice.setdefault(plane, []).append((value, polygons))
            slices_of.setdefault(value, set()).add(plane)
    if not by_slice:
        raise MaskRefused("the mask is empty: no structure of the label map has a contour")
    return _filled(by_slice, slices_of, image, labels)


def _codes(dataset: Dataset, number: int) -> list[tuple[str, str]]:
    """Coded concepts that the observations give for a structure, which few programs write."""
    found = []
    for item in dataset.get("RTROIObservationsSequence", []):
        if int(item.get("ReferencedROINumber", -1)) == number:
            for code in item.get("RTROIIdentificationCodeSequence", []):
                found.append((str(code.get("CodingSchemeDesignator", "")), str(code.get("CodeValue", ""))))
    return found


def _check_frame(dataset: Dataset, structure: Dataset, wanted: str) -> None:
    """The structure's coordinates are those of the images."""
    stated = {str(structure.get("ReferencedFrameOfReferenceUID", "") or "")} - {""}
    if not stated:
        items = dataset.get("ReferencedFrameOfReferenceSequence", [])
        stated = {str(item.get("FrameOfReferenceUID", "") or "") for item in items} - {""}
    if not stated and any(references(dataset)):
        return  # some programs leave it out; the contours' coordinates are then those of the images they name
    if stated != {wanted}:
        raise MaskRefused("its frame of reference is not that of the images: their coordinates can't be compared")


def _in_plane(contour: Dataset, image: Volume, number: int) -> tuple[int, Points]:
    """Index of the slice that a contour lies in, and its points (n, 2) as row and column."""
    kind = str(contour.get("ContourGeometricType", ""))
    if kind not in CLOSED:
        known = kind if kind in ("POINT", "OPEN_PLANAR", "OPEN_NONPLANAR") else "unknown"
        raise MaskRefused(f"structure {number} has a contour of kind {known}; only closed planar contours enclose something")
    numbers = np.asarray(contour.get("ContourData") or [], float)
    if len(numbers) < 9 or len(numbers) % 3 or not np.isfinite(numbers).all():
        raise MaskRefused(
            f"structure {number} has a contour of {len(numbers)} coordinates; three points or more, of 3 each, are"
        )
    to_index = np.linalg.inv(image.affine)
    index = numbers.reshape(-1, 3) @ to_index[:3, :3].T + to_index[:3, 3]
    plane = int(np.rint(np.median(index[:, 0])))
    normal = np.cross(image.affine[:3, 1], image.affine[:3, 2])
    gap = abs(float(image.affine[:3, 0] @ (normal / np.linalg.norm(normal))))
    off = float(np.abs(index[:, 0] - plane).max()) * gap
    allowed = min(OFF_PLANE * gap, OFF_PLANE_MM)
    if off > allowed:
        raise MaskRefused(
            f"structure {number} has a contour {off:.2f} mm off the plane of the nearest image, or tilted against it; at most "
            f"{allowed:.2f} mm may be: it was drawn on other images"
        )
    low, high = index[:, 1:].min(axis=0), index[:, 1:].max(axis=0)
    slices, *size = image.image.shape
    if not 0 <= plane < slices or (low < -0.5).any() or (high > np.array(size) - 0.5).any():
        raise MaskRefused(f"structure {number} has a contour outside the image")
    return plane, index[:, 1:]


def _filled(
    by_slice: dict[int, list[tuple[int, list[Points]]]], slices_of: dict[int, set[int]], image: Volume, labels: LabelMap
) -> Drawing:
    mask = np.zeros(image.image.shape, np.uint8)
    drawn: dict[int, int] = {}  # points of the fine grid by structure
    shared: dict[tuple[int, int], int] = {}
    for plane, structures in sorted(by_slice.items()):
        fine: dict[int, Flags] = {}
        for value, polygons in structures:
            area = _even_odd(polygons, image.image.shape[1:], labels.name(value))
            fine[value] = fine[value] | area if value in fine else area
        for value, area in fine.items():
            drawn[value] = drawn.get(value, 0) + int(area.sum())
        for pair, count in _laid_over(fine, labels).items():
            shared[pair] = shared.get(pair, 0) + count
        mask[plane] = _by_most(fine)
    require_little_shared(shared, drawn, labels, what="structures")
    between = {
        plane
        for value, planes in slices_of.items()
        if value != UNKNOWN
        for plane in range(min(planes), max(planes) + 1)
        if plane not in planes
    }
    for plane in between:
        mask[plane][mask[plane] == 0] = UNKNOWN
    return Drawing(mask, image.affine, {"slices_left_out": float(len(between))} if between else {})


def _even_odd(polygons: Sequence[Points], shape: Sequence[int], name: str) -> Flags:
    """Fine points inside one structure's contours of one plane; refuses contours that cross each other."""
    areas = sorted((inside([points], shape, fine=FINE) for points in polygons), key=lambda area: -int(area.sum()))
    result = np.zeros_like(areas[0])
    for area in areas:
        total, within = int(area.sum()), int((area & result).sum())
        if total and CROSSING * total < within < (1 - CROSSING) * total:
            raise MaskRefused(f"two contours of {name} in one plane cross each other, so that what they enclose isn't clear")
        result ^= area
    return result


def _laid_over(fine: dict[int, Flags], labels: LabelMap) -> dict[tuple[int, int], int]:
    """Take each fine point from all structures but one, in place; gives what pairs without a priority had in common."""
    rank = {labels.structures[name].value: number for number, name in enumerate(labels.priority)}
    shared: dict[tuple[int, int], int] = {}
    values = sorted(fine, key=lambda value: (value != UNKNOWN, rank.get(value, len(rank)), value))
    for number, value in enumerate(values):
        for later in values[number + 1 :]:
            both = fine[value] & fine[later]
            if both.any():
                fine[later] = fine[later] & ~both
                if value != UNKNOWN and not (value in rank and later in rank):
                    shared[min(value, later), max(value, later)] = int(both.sum())
    return shared


def _by_most(fine: dict[int, Flags]) -> Mask:
    """Each pixel to the structure with most of its points, if most of them lie in any structure at all."""
    counts = np.stack([per_pixel(area, fine=FINE) for area in fine.values()])
    most = np.array(list(fine), np.uint8)[counts.argmax(axis=0)]
    mask: Mask = np.where(counts.sum(axis=0) * 2 > FINE * FINE, most, 0).astype(np.uint8)
    return mask
