"""Charts of how well a classifier ranks and how honest its probabilities are: ROC, calibration, AUC by hospital.

Lines are told apart by mark and by colour, in the order of `drawing.MARKERS`, which the legends of the page repeat.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fl_server.report.statistics import Estimate
from simulation.report.drawing import ACCENT, INK, MARKERS, MUTED, PAPER, RULE, STYLE, colour, svg
from simulation.report.radiomics_arms import Arm, Bin, Curve

PLAIN_TEXT: dict[Any, Any] = {**STYLE, "text.parse_math": False}
"""The page's style for words that others wrote: a dollar sign in a name is a dollar sign."""


def roc(title: str, arm: Arm, *, alt: str) -> Markup:
    """One arm: the mean over folds with a band of one standard deviation, the folds thin, and the two thresholds."""
    with mpl.rc_context(PLAIN_TEXT):
        figure, axes = _square(title)
        for fold in arm.folds:
            axes.plot(fold.fpr, fold.tpr, color=MUTED, linewidth=0.7, alpha=0.5)
        if arm.curve:
            mean = arm.curve
            low, high = np.clip(mean.tpr - mean.sd, 0, 1), np.clip(mean.tpr + mean.sd, 0, 1)
            known = np.isfinite(low)
            axes.fill_between(mean.fpr[known], low[known], high[known], color=ACCENT, alpha=0.18, linewidth=0)
            axes.plot(mean.fpr, mean.tpr, color=ACCENT, linewidth=2.4)
        for cut, marker in ((arm.youden, "o"), (arm.at_sensitivity, "s")):
            if cut:
                where = ([1 - cut.specificity], [cut.sensitivity])
                axes.plot(*where, marker, markersize=8, markerfacecolor=PAPER, markeredgecolor=INK, markeredgewidth=1.6)
        return svg(figure, alt)


def roc_lines(title: str, lines: Mapping[int, Curve], *, band: bool = False, alt: str) -> Markup:
    """Several curves, each under its place in the legend. `band`: with one standard deviation over the folds."""
    with mpl.rc_context(PLAIN_TEXT):
        figure, axes = _square(title)
        for nth, (i, line) in enumerate(lines.items()):
            low, high = np.clip(line.tpr - line.sd, 0, 1), np.clip(line.tpr + line.sd, 0, 1)
            known = np.isfinite(low)
            if band and known.any():
                axes.fill_between(line.fpr[known], low[known], high[known], color=colour(i), alpha=0.14, linewidth=0)
            step = max(1, len(line.fpr) // 7)
            axes.plot(
                line.fpr,
                line.tpr,
                color=colour(i),
                marker=MARKERS[i % len(MARKERS)],
                markevery=(1 + nth * step // max(len(lines), 1), step),  # not on one another where lines lie together
                markersize=6,
                markeredgecolor=PAPER,
                markeredgewidth=0.7,
            )
        return svg(figure, alt)


def roc_noisy(title: str, exact: Curve, noisy: Curve, *, alt: str) -> Markup:
    """The curve that noisy histograms give, on the exact one."""
    with mpl.rc_context(PLAIN_TEXT):
        figure, axes = _square(title)
        axes.plot(exact.fpr, exact.tpr, color=MUTED, linewidth=5, alpha=0.45, solid_capstyle="butt")
        axes.plot(noisy.fpr, noisy.tpr, color=ACCENT, linewidth=1.8)
        return svg(figure, alt)


def calibration(title: str, bins: Sequence[Bin], *, noisy: Sequence[Bin] = (), alt: str) -> Markup:
    """How often a prediction came true, with intervals, and below how many predictions there were. `noisy`: hollow."""
    with mpl.rc_context(PLAIN_TEXT):
        figure, axes = _square(title, bottom=1.26)
        axes.set(xlabel="", ylabel="share that was positive")
        axes.tick_params(labelbottom=False)
        for b in bins:
            if isfinite(b.low) and isfinite(b.high):
                axes.plot([b.predicted] * 2, [b.low, b.high], color=ACCENT, linewidth=1.6, solid_capstyle="butt")
        axes.plot([b.predicted for b in bins], [b.observed for b in bins], "o", color=ACCENT, markersize=6.5)
        for b in noisy:
            if isfinite(b.low) and isfinite(b.high):
                axes.plot([b.predicted + 0.012] * 2, [b.low, b.high], color=INK, linewidth=0.9)
        axes.plot(
            [b.predicted + 0.012 for b in noisy],
            [b.observed for b in noisy],
            "s",
            markerfacecolor=PAPER,
            markeredgecolor=INK,
            markersize=5,
        )
        counts = [(b.predicted, b.count) for b in bins or noisy if isfinite(b.count)]
        below = figure.add_axes((0.17, 0.54 / 4.9, 0.79, 0.5 / 4.9))
        below.bar([x for x, _ in counts], [n for _, n in counts], width=0.035, color=MUTED, linewidth=0)
        below.set(xlim=(-0.02, 1.02), xlabel="predicted probability", yticks=[])
        below.set_xticks(np.linspace(0, 1, 6))
        below.spines["left"].set_visible(False)
        if counts:
            below.text(-0.03, 0, "count", ha="right", va="bottom", fontsize=9, color=MUTED)
        return svg(figure, alt)


def forest(title: str, rows: Mapping[str, Mapping[int, Estimate]], *, alt: str) -> Markup:
    """AUC of several things in each row (an arm or a hospital): a mark with interval, under its place in the legend."""
    arms = sorted({i for row in rows.values() for i in row})
    names = [textwrap.fill(name, 24) for name in rows]
    lines = max((name.count("\n") + 1 for name in names), default=1)
    height = 0.95 + max(0.22 + 0.16 * len(arms), 0.12 + 0.19 * lines) * len(rows)
    with mpl.rc_context(PLAIN_TEXT):
        figure = Figure(figsize=(5.2, height))
        axes = figure.add_axes((0.37, 0.52 / height, 0.61, 1 - 0.92 / height))
        for y, row in enumerate(rows.values()):
            for i, e in row.items():
                at = y + 0.72 * ((arms.index(i) + 0.5) / len(arms) - 0.5)
                if isfinite(e.low):
                    axes.plot([e.low, e.high], [at, at], color=colour(i), linewidth=1.8, solid_capstyle="butt")
                axes.plot([e.value], [at], MARKERS[i % len(MARKERS)], color=colour(i), markersize=6.5)
        for y in range(1, len(rows)):
            axes.axhline(y - 0.5, color=RULE, linewidth=0.6)
        axes.axvline(0.5, color=MUTED, linestyle=(0, (4, 2)), linewidth=1.0)
        axes.set_yticks(range(len(rows)), names)
        axes.tick_params(axis="y", labelcolor=INK, labelsize=9.5)
        axes.tick_params(axis="x", labelsize=9.5)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(False)
        axes.xaxis.grid(True)
        axes.spines["left"].set_visible(False)
        axes.set_xlim(min(0.45, axes.get_xlim()[0]), min(1.02, axes.get_xlim()[1]))
        axes.set_xlabel("AUC (dashed: 0.5, chance)")
        figure.text(0, 1 - 0.05 / height, title, weight="bold", size=12, va="top")
        return svg(figure, alt)


def _square(title: str, bottom: float = 0.54) -> tuple[Figure, Axes]:
    """Axes of one shape from 0 to 1 with the diagonal; `bottom` in inches, of a drawing 4.6 wide."""
    height = 3.64 + 0.46 + bottom
    figure = Figure(figsize=(4.6, height))
    axes = figure.add_axes((0.17, bottom / height, 0.79, 3.64 / height))
    axes.set_title(title, x=-0.17 / 0.79)
    axes.plot([0, 1], [0, 1], color=MUTED, linestyle=(0, (4, 2)), linewidth=1.0)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="1 − specificity (false alarms)", ylabel="sensitivity")
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.set_yticks(np.linspace(0, 1, 6))
    axes.xaxis.grid(True)
    return figure, axes
