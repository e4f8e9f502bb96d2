"""Slices as a reader wants to see them: grey values in a window, what was drawn as outlines, and which side is which.

Drawn anew from the stored arrays at each request and kept nowhere: a patient who has withdrawn is in no cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from fl_client.cohort import Cohort
from fl_client.quality.measure import modality
from tasks.case import UNKNOWN, Case, Volume

Where = npt.NDArray[np.bool_]

COLOURS = ("#ffb000", "#3fb8ff", "#7ee08a", "#ff7fb2", "#c9a2ff", "#ff8a5c", "#9fe3e0", "#e6e15a")
"""Of outlines, by mask value from 1 on."""

UNKNOWN_COLOUR = "#b9c2cc"
CARDIAC = {1: "left ventricle, cavity", 2: "left ventricle, wall", 3: "right ventricle, cavity"}
CT_WINDOW_HU = (-160.0, 240.0)  # soft tissue
THUMB, TILE, LARGE = 128, 320, 800
"""Pixels of a slice's longer side: in the table, on the patient's page, alone."""
MARGIN = 0.45
"""Of the drawn structures' extent, around them on each side."""


@dataclass(frozen=True)
class View:
    """How one volume is shown: grey values from `low` to `high`, and the part of the slices around what was drawn.

    `box` is (left, upper, right, lower) in pixels, `middle` the slice to show where only one is shown.
    """

    low: float
    high: float
    box: tuple[float, float, float, float]
    middle: int
    labels: tuple[int, ...]


def view_of(cohort: Cohort, case: Case, volume: Volume) -> View:
    """The view, worked out once for each state of the case; a few numbers are all that is remembered."""
    return _view(cohort.folder, case.patient, volume.series, cohort.state(case.patient))


@lru_cache(maxsize=4096)
def _view(folder: Path, patient: str, series: str, state: str) -> View:
    case = Cohort(folder).case(patient)
    volume = case.volume(series)
    if volume is None:
        raise KeyError(series)
    slices, rows, columns = volume.image.shape
    box, middle = (0.0, 0.0, float(columns), float(rows)), slices // 2
    labels: tuple[int, ...] = ()
    if volume.mask is not None:
        labels = tuple(int(value) for value in np.unique(volume.mask) if value)
        drawn = (volume.mask != 0) & (volume.mask != UNKNOWN)
        where = np.flatnonzero(drawn.any(axis=(1, 2)))
        if len(where):
            box, middle = _around(drawn.any(axis=0), volume), int(where[len(where) // 2])
    low, high = CT_WINDOW_HU
    if modality(case, volume) == "MR":
        low, high = _window(volume, box)
    return View(low, high, box, middle, labels)


def _window(volume: Volume, box: tuple[float, float, float, float]) -> tuple[float, float]:
    """Grey values of the part that is shown, without the darkest and brightest few: they have no scale of their own."""
    left, upper, right, lower = (int(edge) for edge in box)
    sample = np.asarray(volume.image[:, upper : lower + 1, left : right + 1][:, ::2, ::2], dtype=np.float32)
    sample = sample[np.isfinite(sample)]
    low, high = np.percentile(sample, (1.0, 99.7)) if sample.size else (0.0, 1.0)
    return float(low), float(high)


def _around(drawn: Where, volume: Volume) -> tuple[float, float, float, float]:
    """A square in millimetres around what was drawn on any slice, as far as the image goes."""
    _, row_mm, column_mm = volume.spacing_mm
    rows, columns = np.flatnonzero(drawn.any(axis=1)), np.flatnonzero(drawn.any(axis=0))
    tall, wide = (rows[-1] - rows[0] + 1) * row_mm, (columns[-1] - columns[0] + 1) * column_mm
    half_mm = max(tall, wide) * (0.5 + MARGIN)
    middle_row, middle_column = (rows[0] + rows[-1] + 1) / 2, (columns[0] + columns[-1] + 1) / 2
    edges = (
        max(0.0, middle_column - half_mm / column_mm),
        max(0.0, middle_row - half_mm / row_mm),
        min(float(drawn.shape[1]), middle_column + half_mm / column_mm),
        min(float(drawn.shape[0]), middle_row + half_mm / row_mm),
    )
    return float(edges[0]), float(edges[1]), float(edges[2]), float(edges[3])


def slice_png(volume: Volume, view: View, index: int, *, pixels: int, whole: bool = False, sides: bool = True) -> bytes:
    """One slice as PNG, its longer side `pixels`. `whole` shows all of the field, `sides` names the rims."""
    rows, columns = volume.image.shape[1:]
    box = (0.0, 0.0, float(columns), float(rows)) if whole else view.box
    _, row_mm, column_mm = volume.spacing_mm
    wide, tall = (box[2] - box[0]) * column_mm, (box[3] - box[1]) * row_mm
    size = (max(1, round(pixels * wide / max(wide, tall))), max(1, round(pixels * tall / max(wide, tall))))
    grey = np.nan_to_num(np.asarray(volume.image[index], dtype=np.float32), nan=view.low)
    grey = np.clip((grey - view.low) / max(view.high - view.low, 1e-6), 0, 1) * 255
    shown = Image.fromarray(grey.astype(np.uint8)).resize(size, Image.Resampling.BICUBIC, box=box)
    coloured = np.asarray(shown.convert("RGB")).copy()
    if volume.mask is not None:
        mask = np.asarray(volume.mask[index])
        for value in np.unique(mask):
            if value == UNKNOWN and pixels > THUMB:
                hatched = _hatched(_grown(mask == value, size, box))
                coloured[hatched] = (0.6 * coloured[hatched] + 0.4 * _rgb(UNKNOWN_COLOUR)).astype(np.uint8)
            elif value and value != UNKNOWN:
                coloured[_outline(_grown(mask == value, size, box), thick=2 if pixels > 200 else 1)] = _rgb(
                    colour_of(int(value))
                )
    picture = Image.fromarray(coloured)
    if sides:
        _write_sides(picture, volume)
    out = BytesIO()
    picture.save(out, format="PNG", compress_level=3)
    return out.getvalue()


def _grown(
    region: npt.NDArray[np.bool_], size: tuple[int, int], box: tuple[float, float, float, float]
) -> npt.NDArray[np.bool_]:
    """The region at the picture's size, with a smooth rim."""
    grown = Image.fromarray(region.astype(np.uint8) * 255).resize(size, Image.Resampling.BILINEAR, box=box)
    return np.asarray(np.asarray(grown) > 127)


def _outline(inside: Where, *, thick: int) -> Where:
    """The line that runs inside the region's rim."""
    core = inside
    for _ in range(thick):
        wide = np.pad(core, 1, constant_values=True)  # the picture's rim is no rim of the region
        core = core & wide[:-2, 1:-1] & wide[2:, 1:-1] & wide[1:-1, :-2] & wide[1:-1, 2:]
    return np.asarray(inside & ~core)


def _hatched(inside: Where) -> Where:
    rows, columns = np.indices(inside.shape)
    return np.asarray(inside & ((rows + columns) % 12 < 2))


def _rgb(colour: str) -> npt.NDArray[np.uint8]:
    return np.frombuffer(bytes.fromhex(colour[1:]), np.uint8)


def _write_sides(picture: Image.Image, volume: Volume) -> None:
    lower, right = direction(volume.affine[:3, 1]), direction(volume.affine[:3, 2])
    upper, left = opposite(lower), opposite(right)
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=max(9, max(picture.size) // 15))
    wide, tall = picture.size
    places = [(left, (4.0, tall / 2), "lm"), (right, (wide - 4.0, tall / 2), "rm")]
    places += [(upper, (wide / 2, 6.0), "mt"), (lower, (wide / 2, tall - 6.0), "mb")]
    for letter, place, anchor in places:
        draw.text(
            place,
            letter,
            fill="#ffffff",
            font=font,
            anchor=anchor,
            stroke_width=max(1, max(picture.size) // 150),
            stroke_fill="#000000",
        )


def direction(vector: npt.NDArray[np.float64]) -> str:
    """Where a step goes in the patient: letters of L, R, A, P, H (head), F (feet), the longest part first; at most two.

    >>> import numpy as np
    >>> direction(np.array([0.7, 0.6, -0.1])), direction(np.array([0, 0, -3.0]))
    ('LP', 'F')
    """
    length = float(np.linalg.norm(vector)) or 1.0
    parts = sorted(zip(np.abs(vector) / length, range(3), strict=True), reverse=True)
    return "".join(("LR", "PA", "HF")[axis][int(vector[axis] < 0)] for share, axis in parts[:2] if share > 0.4)


def opposite(letters: str) -> str:
    """The other side: `RA` of `LP`."""
    return letters.translate(str.maketrans("LRPAHF", "RLAPFH"))


def colour_of(value: int) -> str:
    """The outline's colour of a mask value."""
    return UNKNOWN_COLOUR if value == UNKNOWN else COLOURS[(value - 1) % len(COLOURS)]


def legend(volume: Volume, view: View) -> Iterator[tuple[str, str]]:
    """Colour and name of what was drawn."""
    names = CARDIAC if volume.series.startswith(("cine", "lge")) else {}
    for value in view.labels:
        yield colour_of(value), "nobody labelled this" if value == UNKNOWN else names.get(value, f"label {value}")
