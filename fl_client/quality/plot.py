"""A picture of the cohort's quality: a strip of points for each parameter, over its reference range.

What differs by factors is drawn on a logarithmic axis, as outliers are judged by it (`reference.RATIOS`).
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from conf.quality import METRICS
from fl_client.quality.reference import OUTLYING, RATIOS, Found, Range, Reference, scores_of, values_of

BAND, BAND_MEDIAN, POINT, FAR, ONE, FAINT = "#cfe3d4", "#4c8a66", "#33658a", "#c1440e", "#e08600", "#5a6672"
GEOMETRY = ("slices", "pixel_mm", "slice_spacing_mm", "slice_gap_mm", "anisotropy")
WIDE = 3.0
"""Values that differ by more than this factor get a logarithmic axis, if they are ratios."""


def quality_plot(
    found: Found, series: str, *, reference: Reference | None = None, highlight: str = "", metrics: tuple[str, ...] = ()
) -> Figure:
    """One strip per parameter of `series`, patients as points; `highlight` is a pseudonym to show.

    Without `metrics`, every one that was measured, geometry left out. The band is the reference range (5th to 95th percentile)
    with its median, the bar the cohort's median. Save it with `figure.savefig(file, format="png")`. Raises `ValueError` if
    there is nothing to show.
    """
    wanted = metrics or tuple(metric for metric in METRICS if metric not in GEOMETRY)
    strips = {metric: values for metric in wanted if (values := values_of(found, series, metric))}
    if not strips:
        raise ValueError(f"of series {series} nothing was measured in this cohort")
    figure = Figure(figsize=(9.4, 0.74 * len(strips) + 1.0), layout="constrained")
    axes = figure.subplots(len(strips), 1, squeeze=False)[:, 0]
    ranges = reference.ranges.get(series, {}) if reference else {}
    for axis, (metric, values) in zip(axes, strips.items(), strict=True):
        _strip(axis, metric, values, known=ranges.get(metric), highlight=highlight)
    shown = any(highlight in values for values in strips.values())
    told = list(_legend(reference=bool(set(ranges) & set(strips)), highlight=highlight if shown else ""))
    figure.legend(
        handles=told,
        loc="outside upper center",
        ncol=len(told),
        frameon=False,
        fontsize=8,
        handletextpad=0.5,
        title=f"{series}: {max(map(len, strips.values()))} patients",
        title_fontproperties={"size": 10.5, "weight": "bold"},
    )
    return figure


def _strip(axis: Axes, metric: str, values: dict[str, float], *, known: Range | None, highlight: str) -> None:
    """One parameter: its points, the range behind them, which side is the better one."""
    numbers = np.array(list(values.values()))
    far = np.abs(scores_of(metric, numbers)) > OUTLYING
    if known is not None:
        axis.axvspan(known.low, known.high, color=BAND, lw=0)
        axis.vlines(known.median, -0.5, 0.5, color=BAND_MEDIAN, lw=1.2, linestyle=(0, (3, 2)))
    heights = np.random.default_rng(0).uniform(-0.3, 0.3, len(numbers))  # so that equal values can be told apart
    axis.vlines(np.median(numbers), -0.45, 0.45, color=POINT, lw=1.8)
    axis.scatter(numbers[~far], heights[~far], s=15, color=POINT, alpha=0.7, lw=0)
    axis.scatter(numbers[far], heights[far], s=28, color=FAR, marker="D", lw=0)
    if highlight in values:
        axis.scatter(values[highlight], heights[list(values).index(highlight)], s=80, facecolor="none", edgecolor=ONE, lw=2.4)
    _scale(axis, metric, numbers if known is None else np.append(numbers, [known.low, known.high]))
    unit = f" [{METRICS[metric].unit}]" if METRICS[metric].unit else ""
    axis.text(-0.02, 0.68, f"{metric}{unit}", transform=axis.transAxes, ha="right", va="center", fontsize=9)
    words = "\n".join(textwrap.wrap(METRICS[metric].words, 36))
    axis.text(-0.02, 0.42, words, transform=axis.transAxes, ha="right", va="top", fontsize=7.8, color=FAINT, linespacing=1.1)
    better = {"high": (1.0, "right", "better →"), "low": (0.0, "left", "← better")}.get(METRICS[metric].better)
    if better is not None:
        place, side, text = better
        axis.text(place, 1.02, text, transform=axis.transAxes, ha=side, va="bottom", fontsize=7.8, color=FAINT)
    axis.set(ylim=(-0.5, 0.5), yticks=[])
    axis.tick_params(axis="x", labelsize=8)
    axis.spines[["left", "right", "top"]].set_visible(False)


def _scale(axis: Axes, metric: str, shown: npt.NDArray[np.float64]) -> None:
    """Logarithmic for ratios over a wide range, with plain numbers at the ticks; a margin on either side."""
    low, high = float(shown.min()), float(shown.max())
    if metric in RATIOS and low > 0 and high / low > WIDE:
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.xaxis.set_minor_locator(NullLocator())
        room = (high / low) ** 0.06
        axis.set_xlim(low / room, high * room)
    else:
        margin = 0.06 * (high - low) or abs(high) * 0.05 or 1.0
        axis.set_xlim(low - margin, high + margin)


def _legend(*, reference: bool, highlight: str) -> Iterator[Artist]:
    def mark(shape: str, colour: str, text: str, **more: object) -> Line2D:
        return Line2D([], [], color=colour, marker=shape, linestyle="", label=text, **more)  # type: ignore[arg-type]

    yield mark("o", POINT, "a patient", markersize=4)
    yield mark("D", FAR, "far from the rest", markersize=5)
    yield Line2D([], [], color=POINT, lw=1.8, label="median here")
    if reference:
        yield Patch(color=BAND, label="reference, 5 to 95 %")
        yield Line2D([], [], color=BAND_MEDIAN, lw=1.2, linestyle=(0, (3, 2)), label="its median")
    if highlight:
        yield mark("o", ONE, highlight, markersize=8, markerfacecolor="none", markeredgewidth=2)
