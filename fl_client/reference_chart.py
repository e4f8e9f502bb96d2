"""Reference values drawn: percentile curves over age, a panel for each measure, with one patient's own dot.

The shades are the 5th to 95th and 25th to 75th percentile, the line is the median. Broken lines: where the median may lie
instead, and how far out the 5th and 95th percentile may (95 %). Ages of which nothing can be said stay empty.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tasks.reference_values.place import PEOPLE, Place
from tasks.reference_values.values import Curve, ReferenceValues

COLUMNS = 3
SHADE, LINE, DOT = "#2f6f9f", "#12415f", "#b00020"


def draw_panels(
    figure: Figure, values: ReferenceValues, sex: str, places: Sequence[Place] = (), *, top: float, bottom: float
) -> None:
    """Fill a figure from `top` to `bottom` (parts of its height) with a panel for each measure of this sex."""
    measures = values.settings.measures
    rows = -(-len(measures) // COLUMNS)
    grid = figure.add_gridspec(rows, COLUMNS, left=0.07, right=0.985, top=top, bottom=bottom, hspace=0.5, wspace=0.25)
    for number, measure in enumerate(measures):
        axes = figure.add_subplot(grid[number // COLUMNS, number % COLUMNS])
        curve = values.curve(measure, sex)
        dot = next((one for one in places if one.measure == measure and one.sex == sex), None)
        axes.set_title(
            f"{measure.words.removesuffix(' by body surface area').capitalize()}, {measure.unit}", size=8.5, loc="left"
        )
        axes.set_xlim(values.settings.age_edges[0], values.settings.age_edges[-1])
        axes.set_ylim(*(measure.female if sex == "F" else measure.male))
        if number + COLUMNS >= len(measures):
            axes.set_xlabel("years", size=8)
        axes.tick_params(labelsize=7.5)
        axes.grid(color="#e6e6e6", linewidth=0.6)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        if curve is None or not curve.ages:
            axes.text(0.5, 0.5, "nothing can be said", transform=axes.transAxes, ha="center", size=8, color="#777777")
        else:
            for ages in stretches(curve.ages):
                _draw(axes, curve, ages)
        if dot is not None:
            _draw_dot(axes, dot)


def figure_of(values: ReferenceValues, sex: str, places: Sequence[Place] = (), *, title: str = "") -> Figure:
    """A picture of its own."""
    rows = -(-len(values.settings.measures) // COLUMNS)
    figure = Figure(figsize=(9.2, 2.6 * rows + 0.5), facecolor="white")
    said = title or f"Left ventricle of {PEOPLE[sex]} by age: 5th, 25th, 50th, 75th and 95th percentile"
    figure.text(0.015, 1 - 0.3 / (2.6 * rows + 0.5), said, size=10, weight="bold", parse_math=False)
    draw_panels(figure, values, sex, places, top=1 - 0.75 / (2.6 * rows + 0.5), bottom=0.09 / rows + 0.03)
    return figure


def stretches(ages: Sequence[int]) -> list[list[int]]:
    """Ages without a gap between them.

    >>> stretches([40, 41, 42, 60, 61])
    [[40, 41, 42], [60, 61]]
    """
    found: list[list[int]] = []
    for age in ages:
        if found and age == found[-1][-1] + 1:
            found[-1].append(age)
        else:
            found.append([age])
    return found


def _draw(axes: Axes, curve: Curve, ages: Sequence[int]) -> None:
    along = np.append(np.array(ages, np.float64), ages[-1] + 1.0)  # to the end of the last year
    drawn, (low, high) = curve.percentiles(along.tolist()), curve.interval(along.tolist())
    axes.fill_between(along, drawn[:, 0], drawn[:, 4], color=SHADE, alpha=0.16, linewidth=0)
    axes.fill_between(along, drawn[:, 1], drawn[:, 3], color=SHADE, alpha=0.26, linewidth=0)
    axes.plot(along, drawn[:, 2], color=LINE, linewidth=1.4)
    for index in (0, 4):
        axes.plot(along, drawn[:, index], color=LINE, linewidth=0.7)
    for bound in (low[:, 0], low[:, 2], high[:, 2], high[:, 4]):
        axes.plot(along, bound, color=LINE, linewidth=0.7, linestyle=(0, (2, 3)), alpha=0.8)


def _draw_dot(axes: Axes, dot: Place) -> None:
    """The patient; at the panel's border, as an arrow, where the value lies beyond it."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    inside = bottom <= dot.value <= top
    marker = "o" if inside else "^" if dot.value > top else "v"
    x, y = float(np.clip(dot.age, left, right)), float(np.clip(dot.value, bottom, top))
    axes.plot([x], [y], marker=marker, color=DOT, markersize=6, markeredgecolor="white", zorder=5, clip_on=False)
    above = y > bottom + 0.8 * (top - bottom)
    late = x > left + 0.7 * (right - left)
    axes.annotate(
        dot.figure,
        (x, y),
        xytext=(-6 if late else 6, -9 if above else 6),
        textcoords="offset points",
        ha="right" if late else "left",
        size=7.5,
        color=DOT,
        bbox={"boxstyle": "round,pad=0.12", "facecolor": "white", "edgecolor": "none", "alpha": 0.7},
        parse_math=False,
    )
