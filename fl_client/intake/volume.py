"""The geometry gate: a heap of DICOM slices becomes one volume on a true grid, or is refused with the reason.

Whether slices form a volume is decided by highdicom's `get_volume_positions` (regular spacing, one orientation,
stacked along the normal, no position twice). Readers that warn and go on have moved slices by centimetres (a gantry tilt)
or stretched a spacing (a missing slice), and training on such a volume fails without a sound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
from highdicom.spatial import get_volume_positions
from pydicom.dataset import Dataset

from fl_client.intake.decode import Undecodable, decode
from tasks.case import Volume

SPACING_TOLERANCE = 0.01  # relative; highdicom's default, written out because it is part of the promise
TILT_TOLERANCE = 1e-4  # 1 - cosine between stacking direction and normal: 0.8 degrees
GRID_ATTRIBUTES = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns")


class GeometryRefused(ValueError):
    """The images don't form a volume; the text says why, in numbers of the geometry alone."""


@dataclass(frozen=True, eq=False)
class Frame:
    """One slice: where its file lies, its de-identified header, and which frame of a multi-frame file it is."""

    path: Path
    header: Dataset
    number: int = 0  # from 1; 0: the file is this one slice

    @property
    def key(self) -> str:
        """What a mask calls the slice: its SOP instance, and behind a # the number of a frame."""
        return f"{self.header.get('SOPInstanceUID', '')}{f'#{self.number}' if self.number else ''}"

    @property
    def keys(self) -> tuple[str, ...]:
        """All that a mask may call the slice: the multi-frame image as a whole, too, and the slice it was converted from."""
        if not self.number:
            return (self.key,)
        source = str(self.header.get("ReferencedSOPInstanceUID", "") or "")
        return (self.key, str(self.header.SOPInstanceUID), *([source] if source else []))

    @property
    def place(self) -> tuple[int, int]:
        """Where the slice stands in its series: the file's instance number, and the number within it."""
        return int(self.header.get("InstanceNumber") or 0), self.number


def stack(frames: Sequence[Frame], *, one_frame_of_reference: bool = True) -> tuple[list[Frame], npt.NDArray[np.float64]]:
    """The frames in the order of the volume's slices, and the affine: index (slice, row, column, 1) → LPS mm.

    Slice 0 is the end where the instance numbers start, if they run along the stack; else the lower end along the normal
    row direction × column direction. Images of several frames of reference aren't comparable in position and are refused,
    unless `one_frame_of_reference` is switched off for a source known to number them at random. Raises `GeometryRefused`.
    """
    headers = [frame.header for frame in frames]
    for name in GRID_ATTRIBUTES:
        lacking = sum(1 for header in headers if header.get(name) in (None, ""))
        if lacking:
            raise GeometryRefused(f"{lacking} of {len(headers)} images lack {name}")
    shapes = sorted({(int(header.Rows), int(header.Columns)) for header in headers})
    if len(shapes) > 1:
        raise GeometryRefused(f"images of different size in one series: {', '.join(f'{r} x {c}' for r, c in shapes)}")
    positions = np.array([header.ImagePositionPatient for header in headers], float)
    orientations = np.array([header.ImageOrientationPatient for header in headers], float)
    pixel_spacings = np.array([header.PixelSpacing for header in headers], float)
    _gate(headers, positions, orientations, pixel_spacings)
    references = {str(header.get("FrameOfReferenceUID", "")) for header in headers}
    if one_frame_of_reference and len(references) > 1:
        raise GeometryRefused(
            f"images of {len(references)} frames of reference in one series: the patient was moved in between"
        )

    row_step, column_step = pixel_spacings[0]  # mm from one row to the next, from one column to the next
    along_columns, along_rows = orientations[0][:3], orientations[0][3:]
    normal = np.cross(along_columns, along_rows)
    order = list(np.argsort(positions @ normal))
    if len(order) > 1 and all(frames[i].place > frames[j].place for i, j in pairwise(order)):
        order.reverse()
    if len(frames) == 1:
        thickness = headers[0].get("SpacingBetweenSlices") or headers[0].get("SliceThickness")
        if not thickness or float(thickness) <= 0:
            raise GeometryRefused("a single image without SliceThickness: the size of its voxels is unknown")
        step = normal / np.linalg.norm(normal) * float(thickness)
    else:
        step = (positions[order[-1]] - positions[order[0]]) / (len(frames) - 1)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = step, along_rows * row_step, along_columns * column_step
    affine[:3, 3] = positions[order[0]]
    return [frames[i] for i in order], affine


def _gate(
    headers: Sequence[Dataset],
    positions: npt.NDArray[np.float64],
    orientations: npt.NDArray[np.float64],
    pixel_spacings: npt.NDArray[np.float64],
) -> None:
    if not all(np.isfinite(values).all() for values in (positions, orientations, pixel_spacings)):
        raise GeometryRefused("a position, orientation or pixel spacing is not a finite number")
    if positions.shape[1:] != (3,) or orientations.shape[1:] != (6,) or pixel_spacings.shape[1:] != (2,):
        raise GeometryRefused("a position without 3, an orientation without 6 or a pixel spacing without 2 numbers")
    cosines = orientations[0].reshape(2, 3)
    if not np.allclose(cosines @ cosines.T, np.eye(2), atol=1e-3):
        raise GeometryRefused("the row and column directions are not perpendicular unit vectors")
    if (pixel_spacings <= 0).any() or np.ptp(pixel_spacings, axis=0).max() > 1e-4:
        raise GeometryRefused(
            f"pixel spacing is not one positive pair: from {pixel_spacings.min():g} to {pixel_spacings.max():g} mm"
        )
    tilts = [abs(float(header.get("GantryDetectorTilt") or 0)) for header in headers]
    if max(tilts) > 0.5:
        raise GeometryRefused(f"gantry tilt of {max(tilts):g} degrees: the slices are sheared against each other")
    if np.ptp(orientations, axis=0).max() > 1e-4:
        kinds = len(np.unique(orientations.round(3), axis=0))
        raise GeometryRefused(f"images of {kinds} orientations in one series, such as a localizer among the slices")
    spacing: float | None = 1.0  # of a single image there is nothing to compare
    if len(headers) > 1:
        spacing, _ = get_volume_positions(
            image_positions=positions.tolist(),
            image_orientation=orientations[0].tolist(),
            rtol=SPACING_TOLERANCE,
            perpendicular_tol=TILT_TOLERANCE,
        )
    if spacing is None:
        raise GeometryRefused(_why_no_volume(positions, np.cross(cosines[0], cosines[1])))
    stated = float(headers[0].get("SpacingBetweenSlices") or 0)
    if len(headers) > 1 and stated > 0:
        ratio = spacing / stated
        if round(ratio) >= 2 and abs(ratio - round(ratio)) < SPACING_TOLERANCE * round(ratio):
            raise GeometryRefused(
                f"slices lie {spacing:.3f} mm apart, {round(ratio)} times the stated {stated:g} mm: slices are missing"
            )


def _why_no_volume(positions: npt.NDArray[np.float64], normal: npt.NDArray[np.float64]) -> str:
    """What highdicom refused, as a sentence with numbers."""
    unique = np.unique(positions, axis=0)
    if len(unique) < len(positions):
        return (
            f"{len(positions)} images at {len(unique)} positions: {len(positions) - len(unique)} slices stand twice "
            "or belong to other phases"
        )
    distances = np.sort(positions @ normal)
    gaps = np.diff(distances)
    usual = float(np.median(gaps))
    if usual > 0 and gaps.max() > 1.5 * usual:
        missing = int(sum(round(gap / usual) - 1 for gap in gaps))
        return (
            f"slices are missing: gaps of {gaps.min():.3f} to {gaps.max():.3f} mm, "
            f"so about {missing} of {len(positions) + missing} slices"
        )
    stacked = unique[np.argsort(unique @ normal)]
    along = stacked[-1] - stacked[0]
    angle = float(np.degrees(np.arccos(np.clip(abs(along @ normal) / np.linalg.norm(along), 0, 1))))
    if 1 - np.cos(np.radians(angle)) > TILT_TOLERANCE:
        return f"the slices are stacked {angle:.1f} degrees off their normal, as with a tilted gantry"
    return f"slices are unevenly spaced: gaps of {gaps.min():.3f} to {gaps.max():.3f} mm"


def read_pixels(frames: Sequence[Frame]) -> npt.NDArray[np.int16] | npt.NDArray[np.uint16] | npt.NDArray[np.float32]:
    """Pixel values of the frames, (slices, rows, columns), rescaled slice by slice; one file open at a time.

    Stored integers stay integers where the rescaled values fit in 16 bits; else float32. Raises `GeometryRefused` for
    pixel data that is absent, short, in colour, inverted or can't be decoded, and for values that aren't finite.
    """
    for number, frame in enumerate(frames, 1):
        meaning = frame.header.get("PhotometricInterpretation")
        if meaning != "MONOCHROME2":
            raise GeometryRefused(
                f"image {number} of {len(frames)} has PhotometricInterpretation {meaning or 'absent'}; MONOCHROME2 is read, "
                "in which larger numbers are brighter"
            )
        if frame.header.get("ModalityLUTSequence"):
            raise GeometryRefused(
                f"image {number} of {len(frames)} has a look-up table (ModalityLUTSequence) in place of slope and intercept"
            )
    in_file: dict[Path, list[int]] = {}
    for index, frame in enumerate(frames):
        in_file.setdefault(frame.path, []).append(index)
    slices: list[npt.NDArray[np.generic]] = [np.empty(0, np.uint16)] * len(frames)
    for path, indices in in_file.items():
        try:
            several = decode(path, [frames[index].number for index in indices])
        except Undecodable as reason:
            raise GeometryRefused(f"the pixel data of image {indices[0] + 1} of {len(frames)} {reason}") from None
        for index, stored in zip(indices, several, strict=True):
            header = frames[index].header
            if stored.shape != (int(header.Rows), int(header.Columns)):
                raise GeometryRefused(
                    f"image {index + 1} of {len(frames)} is no single grey-scale slice but has shape {stored.shape}"
                )
            slope, intercept = (
                default if header.get(name) in (None, "") else float(header[name].value)
                for name, default in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0))
            )
            slices[index] = _fitting(stored, slope, intercept)
    kind = np.result_type(*slices)
    return np.stack(slices).astype(kind if kind in (np.int16, np.uint16) else np.float32)


def _fitting(stored: npt.NDArray[np.generic], slope: float, intercept: float) -> npt.NDArray[np.generic]:
    if np.issubdtype(stored.dtype, np.floating) or not (slope.is_integer() and intercept.is_integer()):
        values = (stored.astype(np.float64) * slope + intercept).astype(np.float32)
        if not np.isfinite(values).all():
            raise GeometryRefused("pixel values that are not finite numbers")
        return values
    whole = stored.astype(np.int64) * int(slope) + int(intercept)
    # the type follows the header and not the values, so that all slices of a series agree
    signed = bool(np.issubdtype(stored.dtype, np.signedinteger)) or intercept < 0 or slope < 0
    kind = np.int16 if signed else np.uint16
    limits = np.iinfo(kind)
    return whole.astype(kind if whole.min() >= limits.min and whole.max() <= limits.max else np.float32)


def to_volume(series: str, frames: Sequence[Frame], *, one_frame_of_reference: bool = True) -> tuple[Volume, list[Frame]]:
    """Gate, stack and read one series; also the frames in slice order. Raises `GeometryRefused`."""
    ordered, affine = stack(frames, one_frame_of_reference=one_frame_of_reference)
    image = read_pixels(ordered)
    if image.min() == image.max():
        raise GeometryRefused(f"every pixel has the same value, {image.min():g}")
    return Volume(series, image, affine), ordered


def same_grid(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> bool:
    """Whether two affines mean the same grid: origin and voxel size to 1e-3 mm, directions to 1e-4.

    File formats round differently (a NIfTI header holds float32; ITK-SNAP moves an origin by 3e-6 mm), scanners do not err
    by that little.
    """
    size_a, size_b = np.linalg.norm(a[:3, :3], axis=0), np.linalg.norm(b[:3, :3], axis=0)
    return bool(
        np.abs(a[:3, 3] - b[:3, 3]).max() <= 1e-3
        and np.abs(size_a - size_b).max() <= 1e-3
        and np.abs(a[:3, :3] / size_a - b[:3, :3] / size_b).max() <= 1e-4
    )
