"""The bull's eye of the left ventricle: one number for each of the 17 segments, seen from the apex, as radiologists draw it.

Cerqueira et al. 2002, Circulation 105:539: basal ring outside, the apex in the middle, the anterior wall on top and the septum
on the left. Numbers stand in their segments, so that nobody has to read them off the colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite, isinf, isnan

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Wedge

from simulation.report.drawing import INK, MUTED, STYLE

SEGMENTS = 17
MISSING = "#c4c9ce"
"""Grey of a segment without a number; no colour map here has it."""

# ring: first segment, outer radius, first segment's beginning in degrees (0 is lateral, on the right; 90 anterior), width
_RINGS = ((1, 1.0, 60, 60), (7, 0.76, 60, 60), (13, 0.52, 45, 90), (17, 0.27, 0, 360))
_WALLS = ("anterior", "anteroseptal", "inferoseptal", "inferior", "inferolateral", "anterolateral")


def bullseye(
    values: Sequence[float],
    *,
    title: str = "",
    unit: str = "",
    limits: tuple[float, float] | None = None,
    digits: int = 0,
    colours: str = "viridis",
    axes: Axes | None = None,
) -> Figure:
    """Draw 17 values, segment 1 first, and return the figure (a new one unless `axes` says where).

    NaN is a segment without a number: grey, with a dash. `limits` are the values at the ends of the colour scale (default: the
    smallest and the largest), `digits` the decimals written. Raises `ValueError` for other than 17 values, infinite ones, or
    limits in the wrong order.
    """
    numbers = [float(value) for value in values]
    if len(numbers) != SEGMENTS:
        raise ValueError(f"a bull's eye has 17 values, one per segment, not {len(numbers)}")
    if any(isinf(number) for number in numbers):
        raise ValueError(f"a segment's value is a number or NaN; infinite in segments {_infinite(numbers)}")
    known = [number for number in numbers if isfinite(number)]
    low, high = limits if limits is not None else (min(known, default=0.0), max(known, default=1.0))
    if limits is not None and not low < high:
        raise ValueError(f"limits are (lower, upper), not {limits}")
    if low == high:  # all values equal: the middle of the colours
        low, high = low - 0.5, high + 0.5
    longest = max((len(f"{number:.{digits}f}") for number in known), default=1)
    size = 12 if longest < 4 else 9.5 if longest < 5 else 7.5  # a field of the sides is as wide as four small digits
    with mpl.rc_context(STYLE):
        if axes is None:
            axes = Figure(figsize=(5.0, 4.1), layout="constrained").add_subplot()
        scale = ScalarMappable(Normalize(low, high, clip=True), mpl.colormaps[colours])
        for first, radius, begin, width in _RINGS:
            inner = max((r for _, r, _, _ in _RINGS if r < radius), default=0.0)
            for i in range(360 // width):
                segment = first + i
                _segment(axes, segment, numbers[segment - 1], scale, (inner, radius), (begin + i * width, width), digits, size)
        for i, wall in enumerate(_WALLS):
            angle = 90 + 60 * i
            x, y = 1.09 * np.cos(np.deg2rad(angle)), 1.09 * np.sin(np.deg2rad(angle))
            turn = (angle - 90) % 180 if (angle - 90) % 180 <= 90 else (angle - 90) % 180 - 180
            axes.text(x, y, wall, ha="center", va="center", rotation=turn, fontsize=9, color=MUTED)
        axes.set(xlim=(-1.18, 1.18), ylim=(-1.18, 1.18), aspect="equal")
        axes.set_axis_off()
        if title:
            axes.set_title(title, color=INK)
        figure = axes.get_figure(root=True)
        if figure is None:
            raise ValueError("these axes belong to no figure")
        if known:
            bar = figure.colorbar(scale, ax=axes, shrink=0.72, aspect=18, pad=0.04, extend=_beyond(known, low, high))
            bar.outline.set_visible(False)
            bar.ax.tick_params(color=MUTED, labelcolor=MUTED, labelsize=9, size=3)
            if unit:
                bar.ax.set_title(unit, fontsize=10, fontweight="normal", color=MUTED, loc="left", pad=8)
    return figure


def _segment(
    axes: Axes,
    segment: int,
    number: float,
    scale: ScalarMappable,
    radii: tuple[float, float],
    turn: tuple[float, float],
    digits: int,
    size: float,
) -> None:
    """One field with its number, and the segment's own in small."""
    (inner, outer), (begin, width) = radii, turn
    missing = isnan(number)
    fill = to_rgb(MISSING) if missing else to_rgb(tuple(scale.to_rgba(np.array([number]))[0]))
    axes.add_patch(Wedge((0, 0), outer, begin, begin + width, width=outer - inner, facecolor=fill, edgecolor="white", lw=1.6))
    # dark on light and light on dark, by relative luminance (weights of Rec. 709)
    ink = "#10161c" if float(np.dot(fill, (0.2126, 0.7152, 0.0722))) > 0.42 else "#ffffff"
    middle, radius = np.deg2rad(begin + width / 2), 0.0 if inner == 0 else (inner + outer) / 2
    x, y = radius * np.cos(middle), radius * np.sin(middle)
    text = "–" if missing else f"{number:.{digits}f}"
    axes.text(x, y - 0.025, text, ha="center", va="center", fontsize=size, fontweight="bold", color=ink)
    axes.text(x, y + 0.068, str(segment), ha="center", va="center", fontsize=6.5, color=ink)


def _infinite(numbers: Sequence[float]) -> str:
    return ", ".join(str(i) for i, number in enumerate(numbers, start=1) if isinf(number))


def _beyond(known: Sequence[float], low: float, high: float) -> str:
    """Which ends of the colour bar are pointed because values lie beyond them."""
    return {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}[
        min(known) < low, max(known) > high
    ]
