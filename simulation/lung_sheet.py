"""A page of generated nodules: one crop a row, axial from below to above, then coronal and sagittal; contours on every second.

Run `python -m simulation.lung_sheet` to draw docs/figures/lungs.png, a picture in docs/generated_patients.md.
"""

from __future__ import annotations

import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from PIL import Image

from simulation.contact_sheet import COLOURS, palette
from simulation.lung_scan import draw_protocol, nodule_case
from tasks.case import Case

SEEDS = (3, 47, 5, 48, 19, 36, 56, 12, 22, 30)
CUTS = ((0, -0.75), (0, -0.35), (0, 0.0), (0, 0.0), (0, 0.35), (0, 0.75), (1, 0.0), (1, 0.0), (2, 0.0))
"""Axis (0 axial, 1 coronal, 2 sagittal) and how far from the nodule's middle, in half its height."""
WINDOW_HU = (-1350.0, 150.0)
"""Lung window: level -600, width 1500."""


def write_lung_sheet(path: Path | str) -> Path:
    """Draw the page as PNG to `path` (its folder is made) and return the path. The same code draws the same page."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(len(CUTS) * 1.5 + 0.4, len(SEEDS) * 1.5), facecolor="black")
    axes = figure.subplots(len(SEEDS), len(CUTS), squeeze=False)
    for row, seed in zip(axes, SEEDS, strict=True):
        _row(row, nodule_case(seed), seed)
    figure.subplots_adjust(left=0.03, right=1, bottom=0, top=1, wspace=0.02, hspace=0.02)
    drawn = BytesIO()
    figure.savefig(drawn, dpi=80, facecolor="black")
    Image.open(drawn).convert("RGB").quantize(palette=palette(), dither=Image.Dither.NONE).save(path, optimize=True)
    return path


def _row(row: npt.NDArray[np.object_], case: Case, seed: int) -> None:
    volume, protocol = case.volumes[0], draw_protocol(seed)
    mask = volume.mask if volume.mask is not None else np.zeros(volume.image.shape, np.uint8)
    where = np.argwhere(mask > 0)
    for number, (axis, (along, part)) in enumerate(zip(row, CUTS, strict=True)):
        low, high = where[:, along].min(), where[:, along].max()
        k = int(np.clip(round((low + high) / 2 + part * (high - low) / 2), 0, mask.shape[along] - 1))
        origin = "upper" if along == 0 else "lower"
        steps = [step for n, step in enumerate(volume.spacing_mm) if n != along]
        axis.imshow(
            np.take(volume.image, k, along), cmap="gray", vmin=WINDOW_HU[0], vmax=WINDOW_HU[1], origin=origin,
            interpolation="bilinear", aspect=steps[0] / steps[1],
        )  # fmt: skip
        drawn = np.take(mask, k, along)
        if number % 2 and drawn.any():
            axis.contour(drawn, [0.5], colors=[tuple(part / 255 for part in COLOURS[0])], linewidths=0.8)
        axis.set_axis_off()
    title = (
        f"{case.endpoints['nodule_type']}, {case.endpoints['diameter_mm']} mm\n"
        f"{protocol.slice_mm:g} mm, {protocol.kernel}, {protocol.noise_hu:.0f} HU"
    )
    row[0].text(-0.08, 0.5, title, transform=row[0].transAxes, color="white", fontsize=6, rotation=90, va="center", ha="center")


if __name__ == "__main__":
    print(write_lung_sheet(sys.argv[1] if len(sys.argv) > 1 else "docs/figures/lungs.png"))
