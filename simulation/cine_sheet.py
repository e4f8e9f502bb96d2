"""A page of whole beats: the volume curve of three hearts, and below it a strip of phases of each at mid-level.

Run `python -m simulation.cine_sheet` to draw docs/figures/cine.png, a picture in docs/generated_patients.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from simulation.cine import Cine, scan_cine
from simulation.contact_sheet import COLOURS
from simulation.cycle import left_beat, volume_ml
from simulation.patient import Disease, Patient, draw_patient
from simulation.scanner import Scanner

HEARTS: tuple[tuple[str, Disease, int], ...] = (("normal", "normal", 7), ("dilated", "dcm", 12), ("hypertrophic", "hcm", 31))
SCANNER = Scanner(matrix=128, pixel_mm=2.0, slice_thickness_mm=5.0, slice_gap_mm=0.0, snr=40)
LINES = ("#4477aa", "#cc6677", "#228833")
RATE_PER_MIN = 60.0
COUNTED = 20
"""Phases of each cine, counted in voxels."""
SHOWN = 10
VIEW_MM = 130.0
MIDDLE_MM = 40.0
"""Level of the strips below the diastolic valve plane."""


def write_cine_sheet(path: Path | str) -> Path:
    """Draw the page as PNG to `path` (its folder is made) and return the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(11, 7.4), facecolor="white", layout="constrained")
    plan = figure.add_gridspec(len(HEARTS) + 1, SHOWN, height_ratios=[2.6, *[1] * len(HEARTS)])
    curves = figure.add_subplot(plan[0, :])
    for row, (name, disease, seed) in enumerate(HEARTS):
        patient = draw_patient(seed, {disease: 1.0})
        cine = scan_cine(patient, SCANNER, seed=0, phases=COUNTED, heart_rate_per_min=RATE_PER_MIN, oversampling=1, subslices=2)
        _curve(curves, name, patient, cine, LINES[row])
        strip = [figure.add_subplot(plan[row + 1, column]) for column in range(SHOWN)]
        _strip(strip, name, cine)
    curves.set_xlabel(f"time after the R wave, ms ({RATE_PER_MIN:g} beats a minute)")
    curves.set_ylabel("volume, ml")
    curves.set_xlim(0, 60000 / RATE_PER_MIN)
    curves.set_ylim(0, None)
    curves.spines[["top", "right"]].set_visible(False)
    curves.legend(frameon=False, ncols=len(HEARTS), loc="upper center", bbox_to_anchor=(0.5, 1.16), fontsize=8)
    figure.savefig(path, dpi=80)
    return path


def _curve(axis: Axes, name: str, patient: Patient, cine: Cine, colour: str) -> None:
    """The left ventricle as drawn and as counted, the right one as counted."""
    times = np.linspace(0, cine.cycle_ms, 400)
    words = f"{name}: ejection fraction {patient.ejection_fraction:.2f}, ejects {_ejection_ms(patient):.0f} ms"
    axis.plot(times, volume_ml(patient, times, RATE_PER_MIN), color=colour, label=words)
    axis.plot(cine.trigger_times_ms, cine.volumes_ml(1), "o", color=colour, markersize=4)
    axis.plot(cine.trigger_times_ms, cine.volumes_ml(3), ":", color=colour, linewidth=1)


def _ejection_ms(patient: Patient) -> float:
    beat = left_beat(patient, RATE_PER_MIN)
    return beat.closes - beat.opens


def _strip(axes: list[Axes], name: str, cine: Cine) -> None:
    level = int(np.abs(cine.grid.levels_mm - np.float32(MIDDLE_MM)).argmin())
    middle = np.argwhere(np.isin(cine.mask[0, level], (1, 2))).mean(axis=0)
    half = round(VIEW_MM / 2 / SCANNER.pixel_mm)
    low = [int(np.clip(centre - half, 0, SCANNER.matrix - 2 * half)) for centre in middle]
    window = (slice(low[0], low[0] + 2 * half), slice(low[1], low[1] + 2 * half))
    bright = float(np.percentile(cine.image[0][cine.mask[0] == 1], 97))
    for axis, phase in zip(axes, np.arange(SHOWN) * COUNTED // SHOWN, strict=True):
        axis.imshow(cine.image[phase, level][window], cmap="gray", vmin=0, vmax=1.1 * bright, interpolation="bilinear")
        for labels, colour in zip(((1,), (1, 2), (3,)), COLOURS, strict=True):
            outline = np.isin(cine.mask[phase, level][window], labels)
            if outline.any():
                axis.contour(outline, [0.5], colors=[tuple(part / 255 for part in colour)], linewidths=0.7)
        axis.set_title(f"{cine.trigger_times_ms[phase]:.0f} ms", fontsize=7, pad=2)
        axis.set_xticks([])
        axis.set_yticks([])
    axes[0].set_ylabel(name, fontsize=8)


if __name__ == "__main__":
    print(write_cine_sheet(sys.argv[1] if len(sys.argv) > 1 else "docs/figures/cine.png"))
