"""Pages that show what the generator makes: scanners in rows, slices from base to apex in columns, contours on every second.

Run `python -m simulation.contact_sheet` to draw docs/figures/contact_sheet.png and right_heart.png, pictures in
docs/generated_patients.md.
"""

from __future__ import annotations

import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from PIL import Image

from simulation.patient import Disease, draw_patient
from simulation.scanner import Scanner, Series, random_scanner, scan

Rows = tuple[tuple[str, Scanner, Disease, int, Series], ...]
ROWS: Rows = (
    (
        "1.5 T GE, cine ED\ndilated",
        Scanner(
            name="GE", manufacturer="GE MEDICAL SYSTEMS", matrix=256, pixel_mm=1.37, slice_thickness_mm=10, slice_gap_mm=0,
            tr_ms=3.35, flip_deg=45, circular_view=True, snr=45, coil_bias=0.9,
        ),
        "dcm", 12, "cine_ed",
    ),
    ("1.5 T Siemens, cine ED\nnormal", Scanner(name="A", snr=40), "normal", 7, "cine_ed"),
    ("1.5 T Siemens, cine ES\nthe same heart", Scanner(name="A", snr=40), "normal", 7, "cine_es"),
    (
        "3 T Philips, cine ED\nthe same heart",
        Scanner(
            name="E", manufacturer="PHILIPS", field_strength_t=3.0, pixel_mm=1.25, matrix=256, slice_thickness_mm=8,
            slice_gap_mm=0, flip_deg=42, coil_bias=0.8, banding=0.35, snr=55,
        ),
        "normal", 7, "cine_ed",
    ),
    ("1.5 T Siemens, PSIR\ninfarct", Scanner(name="A", snr=28), "infarct", 2, "lge"),
    (
        "1.5 T Canon, magnitude LGE\nthe same infarct",
        Scanner(name="C", manufacturer="CANON", psir=False, snr=18, resolution=0.75, ghosting=0.05, inversion_time_error_ms=20),
        "infarct", 2, "lge",
    ),
    ("1.5 T Siemens, PSIR\nmyocarditis", Scanner(name="A", snr=28), "myocarditis", 12, "lge"),
    ("1.5 T Siemens, PSIR\namyloid", Scanner(name="A", snr=28), "amyloid", 8, "lge"),
    ("a scanner of no hospital\nhypertrophic, cine ED", random_scanner(19), "hcm", 31, "cine_ed"),
)  # fmt: skip
RIGHT_HEARTS: Rows = (
    ("normal\ncine ED", Scanner(name="A", snr=40), "normal", 7, "cine_ed"),
    ("pulmonary hypertension\ncine ED", Scanner(name="A", snr=40), "ph", 2, "cine_ed"),
    ("pulmonary hypertension\ncine ES", Scanner(name="A", snr=40), "ph", 2, "cine_es"),
    ("pulmonary hypertension\nPSIR", Scanner(name="A", snr=28), "ph", 2, "lge"),
    ("arrhythmogenic\ncine ED", Scanner(name="A", snr=40), "arvc", 2, "cine_ed"),
    ("arrhythmogenic\ncine ES", Scanner(name="A", snr=40), "arvc", 2, "cine_es"),
    ("arrhythmogenic\nPSIR", Scanner(name="A", snr=28), "arvc", 2, "lge"),
)
COLUMNS = 8
VIEW_MM = 230.0
COLOURS = ((255, 80, 80), (96, 224, 96), (255, 208, 48))  # blood pool, epicardium, right ventricle


def write_contact_sheet(path: Path | str, rows: Rows = ROWS) -> Path:
    """Draw the page as PNG to `path` (its folder is made) and return the path. The same code draws the same page."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(COLUMNS * 1.5 + 1.0, len(rows) * 1.5), facecolor="black")
    axes = figure.subplots(len(rows), COLUMNS, squeeze=False)
    for row, (title, scanner, disease, seed, series) in zip(axes, rows, strict=True):
        _row(row, title, scanner, disease, seed, series)
    figure.subplots_adjust(left=0.05, right=1, bottom=0, top=1, wspace=0.015, hspace=0.015)
    drawn = BytesIO()
    figure.savefig(drawn, dpi=80, facecolor="black")
    Image.open(drawn).convert("RGB").quantize(palette=palette(), dither=Image.Dither.NONE).save(path, optimize=True)
    return path


def palette() -> Image.Image:
    """Greys and shades of the contours' colours: a third of the file's size."""
    greys = [(level, level, level) for level in range(0, 256, 3)]
    shades = [tuple(int(part * strength) for part in colour) for colour in COLOURS for strength in (0.4, 0.55, 0.7, 0.85, 1.0)]
    image = Image.new("P", (1, 1))
    image.putpalette([part for colour in (*greys, *shades) for part in colour])
    return image


def _row(row: npt.NDArray[np.object_], title: str, scanner: Scanner, disease: Disease, seed: int, series: Series) -> None:
    volume = scan(draw_patient(seed, {disease: 1.0}), scanner, series, seed=0)
    order = np.argsort(volume.grid.levels_mm)
    heart = np.argwhere(volume.mask > 0).mean(axis=0)
    half = round(VIEW_MM / 2 / scanner.pixel_mm)
    low = [int(np.clip(centre - half, 0, max(scanner.matrix - 2 * half, 0))) for centre in heart[1:]]
    window = (slice(low[0], low[0] + 2 * half), slice(low[1], low[1] + 2 * half))
    pool = volume.image[volume.mask == 1]
    dark = float(np.percentile(volume.image[volume.mask == 2], 2)) * 0.9 if series == "lge" and scanner.psir else 0.0
    bright = float(np.percentile(pool, 95)) * (1.15 if series != "lge" else 1.25)
    for column, k in enumerate(np.linspace(0, len(order) - 1, COLUMNS).round().astype(int)):
        axis, level = row[column], order[k]
        axis.imshow(volume.image[level][window], cmap="gray", vmin=dark, vmax=bright, interpolation="bilinear")
        mask = volume.mask[level][window]
        if column % 2:
            for labels, colour in zip(((1,), (1, 2), (3,)), COLOURS, strict=True):
                outline = np.isin(mask, labels)
                if outline.any() and not outline.all():
                    axis.contour(outline, [0.5], colors=[tuple(part / 255 for part in colour)], linewidths=0.8)
        axis.set_axis_off()
    row[0].text(-0.06, 0.5, title, transform=row[0].transAxes, color="white", fontsize=6, rotation=90, va="center", ha="center")


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/figures")
    print(write_contact_sheet(folder / "contact_sheet.png"))
    print(write_contact_sheet(folder / "right_heart.png", RIGHT_HEARTS))
