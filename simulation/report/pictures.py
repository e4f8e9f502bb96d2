"""Slices with contours, as inline SVG: a grey image of its own pixels, and lines that stay crisp at any size.

One unit of the drawing is one millimetre, so pixels that are not square are shown in their true proportion. The reader's
contour and the model's have the same two colours everywhere, amber and blue, which all kinds of colour vision tell apart.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import contourpy
import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from PIL import Image
from scipy import ndimage

from simulation.report.drawing import png
from tasks.case import UNKNOWN

READER, MODEL = "reader", "model"
VIEW_MM = 130.0
"""Least side of an overlay's field of view: the heart with a hand's breadth around it."""


@dataclass(frozen=True)
class Example:
    """One patient's overlays, best, median or worst by Dice."""

    rank: str
    hospital: str
    patient: str
    series: str
    arm: str
    dice: dict[str, float]
    slices: list[tuple[str, Markup]]  # (where, drawing)


@dataclass(frozen=True)
class Unsure:
    """A patient's slices as they were outlined, and where the model is unsure."""

    hospital: str
    patient: str
    series: str
    slices: list[tuple[str, Markup, Markup]]  # (where, outlined, heat)


@dataclass(frozen=True)
class View:
    """One hospital's scanner: its text, and a mid slice on the scale that all views share."""

    hospital: str
    label: str
    picture: Markup


def examples(folder: Path, *, cardiac: bool) -> Iterator[Example]:
    """The overlays that are there, best first. `cardiac`: name slices base, mid and apex instead of by number."""
    for rank in ("best", "median", "worst"):
        path = folder / f"{rank}.npz"
        if not path.exists():
            continue
        with np.load(path, allow_pickle=False) as arrays:
            image, mask, prediction = arrays["image"], arrays["mask"], arrays["prediction"]
            spacing = tuple(float(step) for step in arrays["spacing_mm"])
            words = {key: str(arrays[key]) if key in arrays else "" for key in ("hospital", "patient", "series", "arm")}
            dice = json.loads(str(arrays["dice"])) if "dice" in arrays else {}
        labelled = _objects(mask) | (prediction > 0)
        window = _crop(np.asarray(labelled.any(0)), spacing[1:], VIEW_MM)
        grey = _grey(image[(slice(None), *window)], labelled[(slice(None), *window)])
        slices = []
        for where, z in _levels(labelled, cardiac=cardiac):
            alt = f"Slice {z + 1} of {len(image)} ({where}) of patient {words['patient']}: contours of reader and model."
            lines = [(mask[z][window], READER), (prediction[z][window], MODEL)]
            slices.append((where, _drawing(grey[z], lines, spacing[1:], alt=alt)))
        yield Example(
            rank=rank, dice={_bare(name): float(v) for name, v in dice.items() if v is not None}, slices=slices, **words
        )


def scanners(path: Path) -> list[View]:
    """One view per hospital, in the file's order, all with the same field of view in millimetres."""
    if not path.exists():
        return []
    with np.load(path, allow_pickle=False) as arrays:
        hospitals = dict.fromkeys(name.rsplit("/", 1)[0] for name in arrays.files if name.endswith("/image"))
        found: list[tuple[str, str, npt.NDArray[Any], npt.NDArray[Any] | None, tuple[float, float]]] = []
        for hospital in hospitals:
            spacing = arrays[f"{hospital}/spacing_mm"].ravel()[-2:]
            mask = arrays.get(f"{hospital}/mask")
            label = str(arrays[f"{hospital}/label"]) if f"{hospital}/label" in arrays else ""
            found.append((hospital, label, arrays[f"{hospital}/image"], mask, (float(spacing[0]), float(spacing[1]))))
    side = min((min(image.shape[0] * s[0], image.shape[1] * s[1]) for _, _, image, _, s in found), default=0.0)
    views = []
    for hospital, label, image, mask, spacing_mm in found:
        objects = np.zeros(image.shape, bool) if mask is None else _objects(mask)
        window = _crop(objects, spacing_mm, side, fixed=True)
        lines = [] if mask is None else [(mask[window], READER)]
        alt = f"Middle slice from {hospital}, {label or 'scanner not named'}, {side:.0f} mm wide"
        alt += ", with the reader's contour." if lines else "."
        grey = _grey(image[window], objects[window])
        views.append(View(hospital, label, _drawing(grey, lines, spacing_mm, alt=alt, bar_mm=50, text=0.055)))
    return views


def unsure(path: Path, *, cardiac: bool) -> Unsure | None:
    """The patient who is looked at first: contours, and beside them where the model is unsure. None without the file."""
    if not path.exists():
        return None
    with np.load(path, allow_pickle=False) as arrays:
        image, mask, prediction = arrays["image"], arrays["mask"], arrays["prediction"]
        entropy = arrays["entropy"].astype(np.float32)
        spacing = tuple(float(step) for step in arrays["spacing_mm"])
        words = {key: str(arrays[key]) for key in ("hospital", "patient", "series")}
    labelled = _objects(mask) | (prediction > 0)
    window = _crop(np.asarray(labelled.any(0)), spacing[1:], VIEW_MM)
    grey = _grey(image[(slice(None), *window)], labelled[(slice(None), *window)])
    slices = []
    for where, z in _levels(labelled, cardiac=cardiac):
        about = f"slice {z + 1} of {len(image)} ({where}) of patient {words['patient']}"
        lines = [(mask[z][window], READER), (prediction[z][window], MODEL)]
        outlined = _drawing(grey[z], lines, spacing[1:], alt=f"{about.capitalize()}: contours of reader and model.")
        alt = f"{about.capitalize()}: where the model is unsure, with its own contour."
        slices.append((where, outlined, _drawing(_heated(grey[z], entropy[z][window]), lines[1:], spacing[1:], alt=alt)))
    return Unsure(slices=slices, **words)


def _heated(grey: npt.NDArray[np.uint8], heat: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """A grey slice under colours where `heat` (0..1) is high: dark red at a third, yellow at 1. (rows, columns, 3)"""
    colour = mpl.colormaps["hot"](0.25 + 0.6 * heat)[..., :3] * 255
    share = np.clip(1.4 * heat - 0.2, 0, 0.75)[..., None]  # what is nearly sure stays grey
    mixed: npt.NDArray[np.uint8] = np.round((1 - share) * grey[..., None] * 0.8 + share * colour).astype(np.uint8)
    return mixed


def _drawing(
    grey: npt.NDArray[np.uint8],
    lines: Sequence[tuple[npt.NDArray[Any], str]],
    spacing_mm: Sequence[float],
    *,
    alt: str,
    bar_mm: float = 20,
    text: float = 0.042,
) -> Markup:
    """An `<svg>` of a slice, grey (rows, columns) or in colours (rows, columns, 3), with contours of label images by class.

    The scale bar's text is `text` of the width high.
    """
    dy, dx = spacing_mm
    height, width = grey.shape[0] * dy, grey.shape[1] * dx
    paths = "".join(f'<path class="{kind}" d="{_contours(labels, dy, dx)}"/>' for labels, kind in lines)
    x, y = 0.04 * width, 0.955 * height
    bar = f'<path class="bar" d="M{x:.1f} {y:.1f}h{bar_mm:g}"/><text x="{x:.1f}" y="{y - 0.02 * height:.1f}" '
    bar += f'font-size="{text * width:.1f}">{bar_mm:g} mm</text>'
    return Markup(
        f'<svg class="slice" viewBox="0 0 {width:.2f} {height:.2f}" role="img" aria-label="{escape(alt)}">'
        f'<image href="{png(Image.fromarray(grey))}" width="{width:.2f}" height="{height:.2f}" preserveAspectRatio="none"/>'
        f"{paths}{bar}</svg>"
    )


def _contours(labels: npt.NDArray[Any], dy: float, dx: float) -> str:
    """SVG path data of the outlines of every label, in millimetres; pixel centres lie at (index + 0.5) * spacing."""
    data = []
    for label in sorted(set(np.unique(labels).tolist()) - {0, UNKNOWN}):
        filled = ndimage.binary_fill_holes(labels == label) & (labels > 0)  # a ring's inner edge is its neighbour's outer one
        inside = np.pad(filled.astype(np.float32), 1)  # padded: outlines close at the image's edge
        for line in contourpy.contour_generator(z=inside).lines(0.5):
            points = np.asarray(line)
            smooth = _rounded(points) if len(points) > 8 else points
            data.append("M" + "L".join(f"{(x - 0.5) * dx:.2f} {(y - 0.5) * dy:.2f}" for x, y in smooth) + "Z")
    return "".join(data)


def _rounded(points: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A closed line (points, 2) without the staircase of the pixel grid: moved by less than half a pixel."""
    ring = points[:-1]
    smooth: npt.NDArray[Any] = (np.roll(ring, 1, 0) + 2 * ring + np.roll(ring, -1, 0)) / 4
    return smooth


def _crop(
    objects: npt.NDArray[np.bool_], spacing_mm: Sequence[float], side_mm: float, *, fixed: bool = False
) -> tuple[slice, slice]:
    """A square window around the objects of (rows, columns), at least `side_mm` wide (`fixed`: exactly), inside the image."""
    found = np.argwhere(objects)
    if not len(found):
        found = np.array([[0, 0], [objects.shape[0] - 1, objects.shape[1] - 1]])
    low, high = found.min(0), found.max(0) + 1
    extent = ((high - low) * np.array(spacing_mm)).max() + 24
    wanted = side_mm if fixed else max(side_mm, float(extent))
    window = []
    for axis in (0, 1):
        n = min(objects.shape[axis], round(wanted / spacing_mm[axis]))
        start = int(np.clip(round((low[axis] + high[axis] - n) / 2), 0, objects.shape[axis] - n))
        window.append(slice(start, start + n))
    return window[0], window[1]


def _levels(labelled: npt.NDArray[Any], *, cardiac: bool) -> list[tuple[str, int]]:
    """Three slices through the labelled stack, named. The base of a heart is the end with the larger outline."""
    areas = labelled.reshape(len(labelled), -1).sum(1)
    there = np.flatnonzero(areas)
    if not len(there):
        return [("middle", len(labelled) // 2)]
    chosen = [int(there[round(part * (len(there) - 1))]) for part in (0.12, 0.5, 0.88)]
    if cardiac:
        if areas[chosen[0]] < areas[chosen[2]]:
            chosen.reverse()
        return list(zip(("base", "mid", "apex"), chosen, strict=True)) if len(set(chosen)) == 3 else [("mid", chosen[1])]
    return [(f"slice {z + 1}", z) for z in dict.fromkeys(chosen)]


def _objects(mask: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    result: npt.NDArray[np.bool_] = (mask > 0) & (mask != UNKNOWN)
    return result


def _grey(image: npt.NDArray[Any], objects: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """The image from black to white: white is a little above the brightest of the objects, not the fat near the coil."""
    known = np.isfinite(image)
    bright = image[objects & known] if (objects & known).any() else image[known]
    low = float(np.percentile(image[known], 0.5)) if known.any() else 0.0
    high = low + 1.15 * (float(np.percentile(bright, 99.5)) - low) if bright.size else 1.0
    scaled = np.nan_to_num((image.astype(np.float64) - low) / max(high - low, 1e-9))
    grey: npt.NDArray[np.uint8] = np.round(np.clip(scaled, 0, 1) * 255).astype(np.uint8)
    return grey


def _bare(name: str) -> str:
    return name.removeprefix("dice/")
