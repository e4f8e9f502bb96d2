"""The report's part about how sure the model is: whom to look at first, and whether any of it can be believed.

Reads `uncertainty.json` and `overlays/uncertainty.npz` of a run's folder; a run in which nobody measured it has no such part.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from simulation.report import pictures, words
from simulation.report.drawing import INK, MARKERS, MUTED, PAPER, STYLE, colour, svg
from simulation.uncertainty.found import PICTURE, Ranked, Unsure, read
from tasks.uncertainty import triage

SHOWN = 8
"""Patients at the head of the triage order who are listed."""


@dataclass(frozen=True)
class Sureness:
    """What the template shows."""

    sentences: list[str]
    charts: list[tuple[Markup, str]]  # drawing, what it shows
    calibrated: bool
    first: list[Ranked]
    rest: int
    picture: pictures.Unsure | None


def sureness(folder: Path, *, cardiac: bool) -> Sureness | None:
    """What the report says of it; None if nobody measured it."""
    found = read(folder)
    if found is None:
        return None
    charts = [(_reliability(found), _about_probabilities(found))]
    if found.calibration:
        charts.append((_expected(found), _about_expected(found)))
    charts.append((_risk(found), _about_risk(found)))
    shown = max(SHOWN, found.figures.looked)
    return Sureness(
        sentences(found),
        charts,
        found.calibration is not None,
        list(found.patients[:shown]),
        max(0, len(found.patients) - shown),
        pictures.unsure(folder / "overlays" / PICTURE, cardiac=cardiac),
    )


def sentences(found: Unsure) -> list[str]:
    """What was done, and what it is worth."""
    told, learned = found.figures, found.calibration
    lines = [
        f"{found.members} members looked at every test patient: the model as it is, and through views within the range that it "
        "was trained to be indifferent to. Where they draw differently, the model has learned too little."
    ]
    if learned:
        lines.append(
            f"What their agreement means as a Dice was learned from {learned.patients} generated patients whom no training and "
            "no hospital has seen, so it cost no privacy. On the test patients the expected Dice is off by "
            f"{words.number(told.miss)} on average, and {words.number(100 * (told.held or 0), 0)} % reach the Dice that nine "
            "in ten should."
        )
    else:
        lines.append(f"Agreement was not calibrated: {found.trouble}. It ranks patients, and its size means nothing by itself.")
    verdict = f"A person who looks at the {told.looked} of {told.patients} patients of whom the least is expected finds "
    verdict += f"{told.caught} of the {told.looked} worst outlines (by chance {words.number(told.caught_by_chance, 1)})."
    if told.rank is not None:
        verdict += f" Rank correlation of what was expected and what a reader found: {words.number(told.rank, 2)}."
        if told.rank < 0.3:
            verdict += " So little is no reason to choose whom to look at by it."
    return [*lines, verdict]


def _about_probabilities(found: Unsure) -> str:
    told = found.figures
    text = f"Voxels near the outlines. Expected calibration error {words.number(told.error_before)}"
    if found.calibration:
        temperature = words.number(found.calibration.temperature, 2)
        text += f" as they are (dashed), {words.number(told.error_after)} at temperature {temperature}"
    return text + ". On the diagonal, voxels that were given 0.7 are right in 7 of 10."


def _about_expected(found: Unsure) -> str:
    return (
        f"One mark per patient, mean over the structures. On the diagonal the model keeps its word; n = {len(found.patients)}."
    )


def _about_risk(found: Unsure) -> str:
    told = found.figures
    return (
        f"Mean error of the surest part of the patients. All of them: {words.number(told.risk)}; mean over all parts "
        f"{words.number(told.area)}, at best {words.number(told.area_at_best)} (dashed)."
    )


def _panel(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.6, 3.4), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title)
    axes.xaxis.grid(True)
    return figure, axes


def _reliability(found: Unsure) -> Markup:
    with mpl.rc_context(STYLE):
        figure, axes = _panel("Probabilities of voxels")
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8)
        for number, name in enumerate(found.classes[1:]):
            for tables, line in ((found.before, (0, (3, 2))), (found.after, "-")):
                if len(tables) <= number + 1 or (line != "-" and found.calibration is None):
                    continue
                x, y = [row[0] for row in tables[number + 1]], [row[1] for row in tables[number + 1]]
                mark = MARKERS[number % len(MARKERS)] if line == "-" else ""
                label = words.structure(name) if line == "-" else None
                axes.plot(x, y, color=colour(number), linestyle=line, marker=mark, markeredgecolor=PAPER, label=label)
        axes.set_xlabel("probability that was given")
        axes.set_ylabel("part that a reader drew so")
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.legend(frameon=False, fontsize=9, loc="upper left")
        alt = f"Reliability by structure; expected calibration error {found.figures.error_after:.3f}."
        return svg(figure, alt)


def _expected(found: Unsure) -> Markup:
    with mpl.rc_context(STYLE):
        figure, axes = _panel("Expected and true Dice")
        hospitals = dict.fromkeys(one.hospital for one in found.patients)
        for number, hospital in enumerate(hospitals):
            points = [
                (float(np.mean([one.expected[name] for name in names])), float(np.mean([one.dice[name] for name in names])))
                for one in found.patients
                if one.hospital == hospital and (names := [name for name in one.expected if name in one.dice])
            ]
            if points:
                x, y = zip(*points, strict=True)
                mark = MARKERS[number % len(MARKERS)]
                axes.plot(x, y, mark, color=colour(number), markersize=6, markeredgecolor=PAPER, label=hospital)
        low = min(axes.get_xlim()[0], axes.get_ylim()[0])
        axes.plot([low, 1], [low, 1], color=MUTED, linewidth=0.8)
        axes.set_xlim(low, 1)
        axes.set_ylim(low, 1)
        axes.set_xlabel("Dice that was expected")
        axes.set_ylabel("Dice with the reader")
        axes.legend(frameon=False, fontsize=9, loc="upper left")
        return svg(figure, f"Expected against true Dice of {len(found.patients)} test patients.")


def _risk(found: Unsure) -> Markup:
    sure, error = [one.sureness for one in found.patients], [one.error for one in found.patients]
    with mpl.rc_context(STYLE):
        figure, axes = _panel("Error of the surest")
        orders = ((sure, INK, "-", "as told"), ([-one for one in error], MUTED, (0, (4, 2)), "at best"))
        for by, shade, line, label in orders:
            x, y = zip(*triage.risk_coverage(by, error), strict=True)
            axes.plot(x, y, color=shade, linestyle=line, label=label)
        axes.axhline(found.figures.risk, color=MUTED, linewidth=0.8)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("part of the patients, surest first")
        axes.set_ylabel("mean error (1 − Dice)")
        axes.legend(frameon=False, fontsize=9, loc="lower right")
        return svg(
            figure, f"Mean error by coverage; all patients {found.figures.risk:.3f}, mean over parts {found.figures.area:.3f}."
        )
