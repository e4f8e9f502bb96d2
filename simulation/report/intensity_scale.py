"""The report of a rehearsed study of an intensity scale: the landmarks that left, and what free patients look like in them.

Reads `record.json`, `intensity_scale.json`, `intensity_facts.json` and `overlays/intensities.npz` of a run's folder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from fl_server.record import Record
from simulation.report import words
from simulation.report.drawing import png
from simulation.report.layout import rendered
from tasks.intensity_scale.released import IntensityScale

TASK = "intensity_scale"
SCALE, FACTS, PICTURES = "intensity_scale.json", "intensity_facts.json", "overlays/intensities.npz"
RELEASED, OWN, FREE = "#0b5c9e", "#8a94a0", "#b8860b"
WINDOW = 1.2
"""Brightness (0..1.5) that is shown as white."""

LIMITS = (
    words.visible("Hospitals' own curves and pictures of patients"),
    "A scale moves grey values. Texture, blur, noise, artifacts, cut and contours stay as they are drawn.",
    "One scale is the mean of whoever took part. Where scanners lie far apart it is nobody's; a study can have one for each.",
)


def page(folder: Path) -> str:
    """The whole report as one HTML text; a run that left no scale has the verdict alone."""
    record = Record.read(folder / "record.json")
    scale = _scale(folder)
    facts = json.loads((folder / FACTS).read_text()) if (folder / FACTS).exists() else None
    contents = {
        "banner": "The patients do not exist: they were drawn, and their scanners were made up.",
        "source": scale.words if scale else None,
        "chart": png(_chart(scale, facts)) if scale else None,
        "pictures": _pictures(folder) if scale else [],
        "rows": _rows(scale, facts) if scale else [],
        "afterwards": "By each hospital's ledger. A study that starts from patients in this scale costs its own ε on top.",
        "limits": words.limits_of(record, *LIMITS),
    }
    return rendered("intensity_scale.html", record, contents)


def summary_lines(folder: Path) -> list[str]:
    """The verdict and the landmarks."""
    found = words.opening(Record.read(folder / "record.json"))
    if scale := _scale(folder):
        pairs = zip(scale.settings.percentiles, scale.landmarks, strict=True)
        found.append("  percentile: place between the 1st and the 99th: " + ", ".join(f"{p:g}: {v:.2f}" for p, v in pairs))
        wide = max(high - low for low, high in zip(*scale.interval, strict=True))
        found.append(f"  the noise may have moved them: 95 % intervals are up to {wide:.2f} wide")
        found.append(f"  generated patients in it: konsil-simulate pretraining.intensities=[{folder}]")
    return found


def _scale(folder: Path) -> IntensityScale | None:
    path = folder / SCALE
    return IntensityScale.model_validate_json(path.read_text()) if path.exists() else None


def _rows(scale: IntensityScale, facts: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Of each percentile: what was released, how far the noise reaches, and the free patients as they are drawn."""
    low, high = scale.interval
    free = facts["free"] if facts else [None] * len(low)
    columns = zip(scale.settings.percentiles, scale.landmarks, low, high, free, strict=True)
    return [{"percentile": p, "released": r, "low": a, "high": b, "free": f} for p, r, a, b, f in columns]


def _chart(scale: IntensityScale, facts: dict[str, Any] | None) -> Figure:
    figure = Figure(figsize=(8.4, 4.4), facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    at = [1.0, *scale.settings.percentiles, 99.0]

    def line(own: Any, **look: Any) -> None:
        axes.plot(at, [0.0, *own, 1.0], **look)

    if facts:
        for number, own in enumerate(facts["hospitals"].values()):
            line(own, color=OWN, linewidth=1.0, label=None if number else "each hospital, without noise")
        line(facts["free"], color=FREE, linestyle="--", label="generated patients as they are drawn")
    low, high = scale.interval
    axes.fill_between(at, [0.0, *low, 1.0], [0.0, *high, 1.0], color=RELEASED, alpha=0.18, linewidth=0)
    line(scale.landmarks, color=RELEASED, marker="o", markersize=4, label="released, with 95 % of the noise")
    axes.set_xlabel("percentile of the grey values")
    axes.set_ylabel("place between the 1st and the 99th")
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def _pictures(folder: Path) -> list[dict[str, Any]]:
    """Free patients as drawn and in the scale, and a patient of each hospital."""
    if not (folder / PICTURES).exists():
        return []
    with np.load(folder / PICTURES) as file:
        every = {name: file[name] for name in file.files}
    rows = []
    for kind, title in (
        ("hospital", "A test patient of each hospital"),
        ("free", "Generated patients as they are drawn"),
        ("worn", "The same in the released scale"),
    ):
        found = [(name.partition("/")[2], image) for name, image in every.items() if name.startswith(f"{kind}/")]
        images = [{"words": name if kind == "hospital" else title, "png": _picture(image)} for name, image in found]
        rows.append({"title": title, "named": kind == "hospital", "images": images})
    return rows


def _picture(image: npt.NDArray[np.float32]) -> str:
    figure = Figure(figsize=(1.9, 1.9), facecolor="black")
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.imshow(image, cmap="gray", vmin=0.0, vmax=WINDOW, interpolation="bicubic")
    axes.axis("off")
    return png(figure, dpi=100)
