"""The report of a rehearsed study of a generator: what it draws beside what it was learned from, and how much it has learned.

Reads `record.json`, `scores.jsonl`, `gate.json`, `overlays/synthetic.npz` and `overlays/tone.npz` of a run's folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from PIL import Image

from fl_server.report.statistics import mean
from simulation import gated
from simulation.report import words
from simulation.report.drawing import png
from simulation.report.layout import rendered
from simulation.report.results import ROLES, Run

TASK = "synthesis"
WINDOW = 1.2
"""Brightness (0..1.5) that is shown as white."""
LEARNED, DRAWN = "#0b5c9e", "#b8860b"
LARGER = 3  # screen pixels for each of the generator's

ROWS = {"patient": "A test patient of this hospital", "sketch": "The drawn patient that drawing began with"}

LIMITS = (
    words.visible("Patients beside what was drawn"),
    "Hospitals' patients and those that drawing begins with come from one program, with other scanners: what was learned is a "
    "scanner's style, and nothing of an anatomy that the program doesn't know.",
    "How much of the noise is told says nothing of how real a scan looks to a reader, or of what a network learns from it.",
)


def page(folder: Path) -> str:
    """The whole report as one HTML text. Raises `FileNotFoundError` for a folder without a record."""
    run = Run(folder)
    contents = {
        "banner": words.rehearsal_banner(run),
        "epsilons": [(name, words.epsilon(run.epsilon(name))) for name in run.sites if run.epsilon(name) is not None],
        "afterwards": "Scans that the model draws cost nothing more, however many: they are made of the model alone.",
        "limits": words.limits_of(run.record, *LIMITS),
        "promise": run.record.study.get("privacy", {}).get("epsilon"),
        "begin": run.record.study.get("task", {}).get("begin", 1.0),
        "tables": [table for role in ROLES if (table := _table(run, role))],
        "hospitals": _gallery(run),
        "tone": _tone(run),
        "gate": gated.read(folder),
    }
    return rendered("synthesis.html", run.record, contents)


def summary_lines(folder: Path) -> list[str]:
    """The verdict, what was explained by arm, and epsilon by hospital."""
    run = Run(folder)
    lines = words.opening(run.record)
    if banner := words.rehearsal_banner(run):
        lines.append(banner)
    for arm in run.arms("site"):
        found = mean(run.values("explained", arm, "site")).value
        lines.append(f"  {run.words_of(arm)}: {words.number(found)} of the noise told on test patients")
    for name in run.sites:
        if run.epsilon(name) is not None:
            lines.append(f"  {name}  ε {words.epsilon(run.epsilon(name))}")
    return [*lines, f"  {gated.in_a_line(gated.read(folder))}"]


def _table(run: Run, role: str) -> dict[str, Any] | None:
    """`explained` of each arm at each hospital of a role, and its mean."""
    names = run.hospitals(role)
    rows = [
        {
            "arm": run.words_of(arm),
            "headline": arm == run.headline,
            "mean": words.number(mean(run.values("explained", arm, role)).value),
            "each": [words.number(mean(run.values("explained", arm, role, name)).value) for name in names],
        }
        for arm in run.arms(role)
    ]
    return {"title": ROLES[role], "names": names, "rows": rows} if rows else None


def _gallery(run: Run) -> list[dict[str, Any]]:
    path = run.overlays / "synthetic.npz"
    if not path.exists():
        return []
    with np.load(path) as file:
        pictures: Mapping[str, npt.NDArray[Any]] = dict(file)
    found: dict[str, list[dict[str, str]]] = {}
    for key, slices in pictures.items():
        name, _, kind = key.rpartition("/")
        words_of = ROWS.get(kind) or f"Drawn by: {run.words_of(kind)}"
        found.setdefault(name, []).append({"words": words_of, "png": _row(slices)})
    return [{"name": name, "rows": rows} for name, rows in found.items()]


def _tone(run: Run) -> str | None:
    """The learned curve as a data URL; none where no tone is learned."""
    path = run.overlays / "tone.npz"
    if not path.exists():
        return None
    with np.load(path) as file:
        at, curve = file["at"], file["curve"]
    figure = Figure(figsize=(4.6, 4.2), facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color=DRAWN, linestyle="--", label="as drawn")
    axes.plot(at, curve, color=LEARNED, marker="o", markersize=4, label="learned")
    axes.set_xlabel("brightness of a drawn scan")
    axes.set_ylabel("brightness in the hospitals")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_aspect("equal")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return png(figure)


def _row(slices: npt.NDArray[Any]) -> str:
    """One row of pictures as a data URL."""
    row = np.concatenate([np.pad(one, 1) for one in slices], axis=1)
    grey = (255 * np.clip(row / WINDOW, 0, 1)).astype(np.uint8)
    return png(Image.fromarray(grey).resize((grey.shape[1] * LARGER, grey.shape[0] * LARGER), Image.Resampling.BICUBIC))
