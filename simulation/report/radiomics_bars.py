"""Charts of what a classifier looks at: importance, single predictions in parts, and columns by scanner.

Long names stand above their bars and not beside them, so that a phone still shows both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from simulation.report.drawing import ACCENT, INK, MARKERS, MUTED, PAPER, RULE, colour, svg
from simulation.report.radiomics_figures import PLAIN_TEXT

ROW = 0.46  # inches per bar with its name above
UP, DOWN = colour(1), colour(0)
"""Vermilion and blue: towards positive and away from it. The direction is also that of the arrow."""


BEHIND: dict[str, Any] = {"facecolor": PAPER, "edgecolor": "none", "pad": 0.8}
"""Words hide the lines that they stand on."""


def importance(title: str, rows: Sequence[tuple[str, float, float]], *, unit: str, alt: str) -> Markup:
    """(name, mean, standard deviation) from the top down; a bar and, where known, its spread."""
    height = 0.95 + ROW * len(rows)
    with mpl.rc_context(PLAIN_TEXT):
        figure, axes = _listing(title, height)
        for y, (name, mean, sd) in enumerate(rows):
            axes.barh([y], [mean], height=0.32, color=ACCENT, linewidth=0, alpha=0.55)  # the spread is seen on it
            if isfinite(sd):
                axes.plot([mean - sd, mean + sd], [y, y], color=INK, linewidth=1.4, solid_capstyle="butt")
            _above(axes, y, name)
        axes.axvline(0, color=MUTED, linewidth=0.8)
        axes.margins(x=0.04)
        axes.set_ylim(len(rows) - 0.55, -0.85)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.set_xlabel(unit)
        return svg(figure, alt)


def waterfall(title: str, base: float, parts: Sequence[tuple[str, float]], prediction: float, *, alt: str) -> Markup:
    """From the average prediction `base` to this one: each part starts where the one above it ended."""
    height = 1.05 + ROW * (len(parts) + 1)
    with mpl.rc_context(PLAIN_TEXT):
        figure, axes = _listing(title, height)
        axes.grid(False)
        at, ends = base, [base, prediction]
        for y, (name, part) in enumerate(parts):
            shade = UP if part > 0 else DOWN
            axes.barh([y], [part], left=[at], height=0.32, color=shade, linewidth=0)
            axes.plot([at + part] * 2, [y - 0.16, y + 1 + 0.16], color=MUTED, linewidth=0.7)
            _above(axes, y, name, f"{part:+.3f}".replace("-", "−"))
            at += part
            ends.append(at)
        axes.plot([base, base], [-0.6, len(parts) - 0.4], color=MUTED, linestyle=(0, (4, 2)), linewidth=1.0)
        axes.plot([prediction], [len(parts) + 0.05], "D", color=INK, markersize=7)
        _above(axes, len(parts), "prediction", f"{prediction:.3f}")
        low, high = min(ends), max(ends)
        room = 0.06 * (high - low) or 0.05
        axes.set_xlim(low - room, high + 3.6 * room)  # the numbers stand on the right, beyond the bars
        axes.set_ylim(len(parts) + 0.5, -0.85)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.set_xlabel("predicted probability (dashed: average)")
        return svg(figure, alt)


def by_scanner(
    title: str, before: Mapping[int, npt.NDArray[np.float64]], after: Mapping[int, npt.NDArray[np.float64]], *, alt: str
) -> Markup:
    """Quantile boxes (5, 25, 50, 75, 95 %) of one column, a box per scanner under its place in the legend."""
    with mpl.rc_context(PLAIN_TEXT):
        figure = Figure(figsize=(4.6, 2.9))
        left = figure.add_axes((0.15, 0.1, 0.4, 0.68))
        right = figure.add_axes((0.59, 0.1, 0.4, 0.68), sharey=left)
        for axes, boxes, when in ((left, before, "before"), (right, after, "after")):
            for at, (i, (p5, p25, p50, p75, p95)) in enumerate(boxes.items()):
                shade = colour(i)
                axes.plot([at, at], [p5, p95], color=shade, linewidth=1.4, solid_capstyle="butt")
                axes.bar([at], [p75 - p25], bottom=[p25], width=0.56, color=shade, linewidth=0, alpha=0.45)
                axes.plot([at], [p50], MARKERS[i % len(MARKERS)], color=shade, markersize=7, markeredgecolor=PAPER)
            axes.set_title(when, fontsize=10.5, fontweight="normal", color=MUTED, pad=4)
            axes.set_xticks([])
            axes.set_xlim(-0.7, max(len(boxes), 1) - 0.3)
        right.tick_params(labelleft=False)
        left.yaxis.set_major_locator(MaxNLocator(5))
        left.tick_params(labelsize=10)
        figure.text(0, 0.98, title, weight="bold", size=12, va="top")
        return svg(figure, alt)


def share(value: float, *, threshold: float | None = None) -> Markup:
    """A bar of 0 to 1 for a table's cell, whose number stands beside it; below `threshold` it is hollow."""
    if not isfinite(value):
        return Markup("")
    width = 100 * float(np.clip(value, 0, 1))
    kind = "short" if threshold is not None and value < threshold else "full"
    line = "" if threshold is None else f'<path class="threshold" d="M{100 * threshold:g} 0V12"/>'
    return Markup(
        f'<svg class="share" viewBox="0 0 100 12" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="whole" width="100" height="12"/><rect class="{kind}" y="2" width="{width:.1f}" height="8"/>{line}</svg>'
    )


def _listing(title: str, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.6, height))
    axes = figure.add_axes((0.02, 0.55 / height, 0.95, 1 - 0.92 / height))
    axes.set_yticks([])
    axes.grid(False)
    axes.xaxis.grid(True)
    axes.spines["left"].set_visible(False)
    axes.spines["bottom"].set_color(RULE)
    figure.text(0, 1 - 0.05 / height, title, weight="bold", size=12, va="top")
    return figure, axes


def _above(axes: Axes, y: float, name: str, right: str = "") -> None:
    """A name, and a number at the right end, over the bar in row `y`."""
    across = axes.get_yaxis_transform()
    for x, side, words in ((0.0, "left", name), (1.0, "right", right)):
        if words:
            axes.text(x, y - 0.25, words, transform=across, ha=side, va="bottom", fontsize=10.5, color=INK, bbox=BEHIND)
