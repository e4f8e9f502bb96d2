"""The report's charts, drawn with matplotlib: what is plotted against what. How it looks stands in `drawing`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fl_server.report.statistics import Agreement, Estimate, Spread
from simulation.report.drawing import ACCENT, INK, MARKERS, MUTED, PAPER, STYLE, colour, svg


def curves(
    title: str, by_name: Mapping[str, Mapping[int, Sequence[float]]], *, reference: Mapping[int, Sequence[float]], alt: str
) -> Markup:
    """Dice by round: a line per hospital through the mean over seeds; dashed, the federation without privacy."""
    with mpl.rc_context(STYLE):
        figure, axes = _panel(title)
        for i, (_, rounds) in enumerate(by_name.items()):
            x = list(rounds)
            y = [float(np.mean(values)) for values in rounds.values()]
            several = [values for values in rounds.values() if len(values) > 1]
            if len(several) == len(x) and x:
                low, high = [min(v) for v in several], [max(v) for v in several]
                axes.fill_between(x, low, high, color=colour(i), alpha=0.14, linewidth=0)
            marks = MARKERS[i % len(MARKERS)]
            axes.plot(x, y, color=colour(i), marker=marks, markevery=_sparse(x), markeredgecolor=PAPER, markeredgewidth=0.6)
        if reference:
            axes.plot(list(reference), [float(np.mean(v)) for v in reference.values()], color=MUTED, linestyle=(0, (4, 2)))
        _rounds_axis(axes)
        axes.set_ylabel("Dice")
        axes.set_ylim(top=min(1.0, axes.get_ylim()[1]))
        return svg(figure, alt)


def epsilons(title: str, by_name: Mapping[str, Mapping[int, float]], *, promise: float | None, alt: str) -> Markup:
    """Epsilon by round, a line per hospital; dashed, what the study promises never to exceed."""
    with mpl.rc_context(STYLE):
        figure, axes = _panel(title)
        for i, rounds in enumerate(by_name.values()):
            marks = MARKERS[i % len(MARKERS)]
            x = list(rounds)
            axes.plot(
                x,
                list(rounds.values()),
                color=colour(i),
                marker=marks,
                markevery=_sparse(x),
                markeredgecolor=PAPER,
                markeredgewidth=0.6,
            )
        axes.set_ylim(bottom=0)
        if promise is not None:
            axes.axhline(promise, color=MUTED, linestyle=(0, (4, 2)), linewidth=1.2)
            axes.set_ylim(top=max(axes.get_ylim()[1], promise * 1.12))
            axes.annotate(
                f"promised: ε ≤ {promise:g}", (0.0, promise), (4, 4), ("axes fraction", "data"), "offset points", color=MUTED
            )
        _rounds_axis(axes)
        axes.set_ylabel("ε spent")
        return svg(figure, alt)


def forest(title: str, rows: Mapping[str, tuple[Estimate, Sequence[float]]], *, headline: str, unit: str, alt: str) -> Markup:
    """One row per arm: mean with 95 % interval, small ticks for the single seeds. `headline` is set off in colour."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.6, 0.85 + 0.44 * len(rows)))
        axes = figure.add_axes((0.41, 0.52 / figure.get_figheight(), 0.56, 1 - 0.86 / figure.get_figheight()))
        for y, (name, (estimate, seeds)) in enumerate(rows.items()):
            shade = ACCENT if name == headline else INK
            if len(seeds) > 1:
                axes.plot(seeds, [y + 0.27] * len(seeds), "|", color=MUTED, markersize=5, markeredgewidth=1.0)
            if isfinite(estimate.low):
                axes.plot([estimate.low, estimate.high], [y, y], color=shade, linewidth=2.0, solid_capstyle="butt")
            axes.plot([estimate.value], [y], "o", color=shade, markersize=6)
        axes.set_yticks(range(len(rows)), [_two_lines(name) for name in rows])
        for label, name in zip(axes.get_yticklabels(), rows, strict=True):
            label.set_color(ACCENT if name == headline else INK)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(False)
        axes.xaxis.grid(True)
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.margins(x=0.08)
        axes.set_xlabel(unit)
        figure.text(0, 1 - 0.05 / figure.get_figheight(), title, weight="bold", size=12, va="top")
        return svg(figure, alt)


def patients(title: str, by_name: Mapping[str, npt.NDArray[np.float64]], *, unit: str, alt: str) -> Markup:
    """One dot per patient, one column per hospital, with the median as a line; seeds averaged."""
    with mpl.rc_context(STYLE):
        figure, axes = _panel(title)
        _dots(axes, by_name)
        for i, values in enumerate(by_name.values()):
            if len(values):
                axes.plot([i - 0.33, i + 0.33], [float(np.median(values))] * 2, color=INK, linewidth=1.6)
        _names_axis(axes, list(by_name))
        axes.set_ylabel(unit)
        return svg(figure, alt)


def scatter(title: str, spreads: Mapping[str, Spread], *, alt: str) -> Markup:
    """Bias and variance: mean Dice of an arm against the standard deviation of its seeds."""
    with mpl.rc_context(STYLE):
        figure, axes = _panel(title)
        for i, arm in enumerate(spreads.values()):
            axes.plot([arm.mean], [1000 * arm.between_seeds], MARKERS[i % len(MARKERS)], color=colour(i), markersize=8)
        axes.set_ylim(bottom=0)
        axes.margins(0.12)
        axes.xaxis.grid(True)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel("mean Dice (further right: less error)")
        axes.set_ylabel("SD across seeds (× 0.001)")
        return svg(figure, alt)


def bland_altman(
    title: str, by_name: Mapping[str, npt.NDArray[np.float64]], limits: Agreement, *, unit: str, alt: str
) -> Markup:
    """Model minus reader, one dot per patient and one column per hospital, with bias and limits of agreement."""
    with mpl.rc_context(STYLE):
        figure, axes = _panel(title)
        axes.set_position((0.17, 0.18, 0.69, 0.69))
        axes.set_title(title, x=-0.17 / 0.69)
        _dots(axes, by_name)
        for value, style in ((limits.bias, "-"), (limits.low, (0, (4, 2))), (limits.high, (0, (4, 2)))):
            if isfinite(value):
                axes.axhline(value, color=INK, linestyle=style, linewidth=1.2)
                axes.annotate(
                    f"{value:+.1f}".replace("-", "−"),
                    (1.0, value),
                    xytext=(4, 0),
                    xycoords=("axes fraction", "data"),
                    textcoords="offset points",
                    va="center",
                    annotation_clip=False,
                )
        axes.margins(y=0.1)
        _names_axis(axes, list(by_name))
        axes.set_ylabel(f"model − reader ({unit})")
        return svg(figure, alt)


def _dots(axes: Axes, by_name: Mapping[str, npt.NDArray[np.float64]]) -> None:
    rng = np.random.default_rng(7)  # spread sideways only, so that dots don't hide one another
    for i, values in enumerate(by_name.values()):
        x = i + rng.uniform(-0.22, 0.22, len(values))
        axes.plot(x, values, MARKERS[i % len(MARKERS)], color=colour(i), markersize=4.5, alpha=0.8, markeredgewidth=0)


def _panel(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.6, 3.1))
    axes = figure.add_axes((0.17, 0.18, 0.81, 0.69))
    axes.set_title(title, x=-0.17 / 0.81)
    return figure, axes


def _rounds_axis(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 5, 10], prune="lower"))
    axes.set_xlabel("round")


def _names_axis(axes: Axes, names: Sequence[str]) -> None:
    """Hospital names under the columns, two lines deep when they would touch."""
    longest = max((len(name) for name in names), default=0)
    crowded = longest * len(names) > 40
    shown = [
        ("\n" if crowded and i % 2 else "") + (name if len(name) < 15 else name[:13] + "…") for i, name in enumerate(names)
    ]
    axes.set_xticks(range(len(names)), shown)
    axes.set_xlim(-0.6, len(names) - 0.4)


def _sparse(x: Sequence[int]) -> int:
    return max(1, len(x) // 8)


def _two_lines(name: str) -> str:
    """A long label broken at its comma, or at the blank nearest to its middle."""
    if len(name) <= 22:
        return name
    breaks = [i for i, c in enumerate(name) if c == " "]
    at = next((i for i in breaks if name[i - 1] == ","), min(breaks, key=lambda i: abs(i - len(name) / 2), default=0))
    return f"{name[:at]}\n{name[at + 1 :]}" if at else name
