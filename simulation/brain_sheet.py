"""A page of generated brains: one crop a row, coronal from tail to head, then sagittal and axial; contours on every second.

Run `python -m simulation.brain_sheet` to draw docs/figures/brains.png, a picture in docs/generated_patients.md.
"""

from __future__ import annotations

import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from PIL import Image

from simulation.brain_scan import ANTERIOR, POSTERIOR, brain_case
from simulation.contact_sheet import COLOURS, palette
from tasks.case import Case

SEEDS = (3, 5, 6, 9, 14, 21)
CUTS = ((1, 0.12), (1, 0.3), (1, 0.45), (1, 0.6), (1, 0.75), (1, 0.92), (2, 0.35), (2, 0.6), (0, 0.3), (0, 0.6))
"""Axis (0 axial, 1 coronal, 2 sagittal) and how far through the hippocampus."""
VIEW_MM = 44


def write_brain_sheet(path: Path | str) -> Path:
    """Draw the page as PNG to `path` (its folder is made) and return the path. The same code draws the same page."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(len(CUTS) * 1.3 + 0.4, len(SEEDS) * 1.3), facecolor="black")
    axes = figure.subplots(len(SEEDS), len(CUTS), squeeze=False)
    for row, seed in zip(axes, SEEDS, strict=True):
        _row(row, brain_case(seed))
    figure.subplots_adjust(left=0.03, right=1, bottom=0, top=1, wspace=0.02, hspace=0.02)
    drawn = BytesIO()
    figure.savefig(drawn, dpi=80, facecolor="black")
    Image.open(drawn).convert("RGB").quantize(palette=palette(), dither=Image.Dither.NONE).save(path, optimize=True)
    return path


def _row(row: npt.NDArray[np.object_], case: Case) -> None:
    volume = case.volumes[0]
    mask = volume.mask if volume.mask is not None else np.zeros(volume.image.shape, np.uint8)
    dark, bright = np.percentile(volume.image, (1, 99))
    where = np.argwhere(mask > 0)
    for number, (axis, (along, part)) in enumerate(zip(row, CUTS, strict=True)):
        k = round(float(where[:, along].min() + part * np.ptp(where[:, along])))
        axis.imshow(
            np.take(volume.image, k, along), cmap="gray", vmin=dark, vmax=bright, origin="lower", interpolation="bilinear"
        )
        drawn = np.take(mask, k, along)
        for label, colour in zip((ANTERIOR, POSTERIOR), COLOURS, strict=False):
            if number % 2 and (drawn == label).any():
                axis.contour(drawn == label, [0.5], colors=[tuple(part / 255 for part in colour)], linewidths=0.8)
        height, width = drawn.shape
        axis.set_xlim((width - VIEW_MM) / 2, (width + VIEW_MM) / 2)
        axis.set_ylim((height - VIEW_MM) / 2, (height + VIEW_MM) / 2)
        axis.set_axis_off()
    title = f"{case.endpoints['side']}, {case.endpoints['age']}, {case.endpoints['hippocampus_ml']} ml"
    row[0].text(-0.06, 0.5, title, transform=row[0].transAxes, color="white", fontsize=6, rotation=90, va="center", ha="center")


if __name__ == "__main__":
    print(write_brain_sheet(sys.argv[1] if len(sys.argv) > 1 else "docs/figures/brains.png"))
