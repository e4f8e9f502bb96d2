"""The report's charts: matplotlib drawings as inline SVG whose colours and fonts are the page's own.

Every chart is drawn in stand-in colours that are replaced by CSS variables, so that one drawing reads well on white, on
dark and in print. Hospitals are told apart by the colour-blind safe palette of Okabe and Ito (2008) and by their markers.
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Mapping, Sequence
from html import escape
from math import isfinite

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from simulation.report.statistics import Agreement, Estimate, Spread

INK, MUTED, RULE, ACCENT, PAPER = "#010203", "#040506", "#070809", "#0a0b0c", "#0d0e0f"
SERIES = tuple(f"#f0f0{i:02x}" for i in range(1, 9))
MARKERS = "os^Dv<>p"
_VARIABLES = {INK: "--ink", MUTED: "--muted", RULE: "--rule", ACCENT: "--accent", PAPER: "--paper"} | {
    colour: f"--series-{i}" for i, colour in enumerate(SERIES, start=1)
}

STYLE = {
    "svg.fonttype": "none",  # text stays text: it can be searched, copied and read aloud
    "svg.hashsalt": "konsil",
    "font.size": 9.5,
    "font.family": "DejaVu Sans",
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": RULE,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10.0,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.major.size": 3.0,
    "ytick.major.size": 0.0,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


def colour(index: int) -> str:
    """Stand-in colour of the hospital (or arm) with this place in the list."""
    return SERIES[index % len(SERIES)]


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
        return _svg(figure, alt)


def epsilons(title: str, by_name: Mapping[str, Mapping[int, float]], *, promise: float | None, alt: str) -> Markup:
    """Epsilon by round, a line per hospital; dashed, what the study promises never to exceed."""
    with mpl.rc_context(STYLE):
        figure, axes = _panel(title)
        for i, rounds in enumerate(by_name.values()):
            marks = MARKERS[i % len(MARKERS)]
            x = list(rounds)
            axes.plot(
                x, list(rounds.values()), color=colour(i), marker=marks, markevery=_sparse(x), markeredgecolor=PAPER, markeredgewidth=0.6
            )
        axes.set_ylim(bottom=0)
        if promise is not None:
            axes.axhline(promise, color=MUTED, linestyle=(0, (4, 2)), linewidth=1.2)
            axes.set_ylim(top=max(axes.get_ylim()[1], promise * 1.12))
            axes.annotate(f"promised: ε ≤ {promise:g}", (0.0, promise), (4, 4), ("axes fraction", "data"), "offset points", color=MUTED)
        _rounds_axis(axes)
        axes.set_ylabel("ε spent")
        return _svg(figure, alt)


def forest(
    title: str, rows: Mapping[str, tuple[Estimate, Sequence[float]]], *, headline: str, unit: str, zero: bool = False, alt: str
) -> Markup:
    """One row per arm: mean with 95 % interval, small ticks for the single seeds. `headline` is set off in colour."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.2, 0.75 + 0.46 * len(rows)))
        axes = figure.add_axes((0.44, 0.52 / figure.get_figheight(), 0.53, 1 - 0.9 / figure.get_figheight()))
        for y, (name, (estimate, seeds)) in enumerate(rows.items()):
            shade = ACCENT if name == headline else INK
            if len(seeds) > 1:
                axes.plot(seeds, [y + 0.27] * len(seeds), "|", color=MUTED, markersize=5, markeredgewidth=1.0)
            if isfinite(estimate.low):
                axes.plot([estimate.low, estimate.high], [y, y], color=shade, linewidth=2.0, solid_capstyle="butt")
            axes.plot([estimate.value], [y], "o", color=shade, markersize=6)
        if zero:
            axes.axvline(0, color=MUTED, linewidth=1.0)
        axes.set_yticks(range(len(rows)), [_two_lines(name) for name in rows])
        for label, name in zip(axes.get_yticklabels(), rows, strict=True):
            label.set_color(ACCENT if name == headline else INK)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(False)
        axes.xaxis.grid(True)
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.margins(x=0.08)
        axes.set_xlabel(unit)
        figure.text(0.01, 1 - 0.06 / figure.get_figheight(), title, weight="bold", size=10.5, va="top")
        return _svg(figure, alt)


def patients(title: str, by_name: Mapping[str, npt.NDArray[np.float64]], *, unit: str, alt: str) -> Markup:
    """One dot per patient, one column per hospital, with the median as a line; seeds averaged."""
    with mpl.rc_context(STYLE):
        figure, axes = _panel(title)
        rng = np.random.default_rng(7)
        for i, values in enumerate(by_name.values()):
            x = i + rng.uniform(-0.2, 0.2, len(values))
            axes.plot(x, values, MARKERS[i % len(MARKERS)], color=colour(i), markersize=4.2, alpha=0.75, markeredgewidth=0)
            if len(values):
                axes.plot([i - 0.33, i + 0.33], [float(np.median(values))] * 2, color=INK, linewidth=1.6)
        _names_axis(axes, list(by_name))
        axes.set_ylabel(unit)
        return _svg(figure, alt)


def scatter(title: str, spreads: Mapping[str, Spread], *, alt: str) -> Markup:
    """Bias and variance: mean Dice of an arm against the standard deviation of its seeds."""
    with mpl.rc_context(STYLE):
        figure, axes = _panel(title)
        for i, arm in enumerate(spreads.values()):
            axes.plot([arm.mean], [arm.between_seeds], MARKERS[i % len(MARKERS)], color=colour(i), markersize=8)
        axes.set_ylim(bottom=0)
        axes.margins(0.12)
        axes.xaxis.grid(True)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel("mean Dice (further right: less error)")
        axes.set_ylabel("SD across seeds")
        return _svg(figure, alt)


def bland_altman(
    title: str,
    points: Mapping[str, tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]],
    limits: Agreement,
    *,
    unit: str,
    means: bool,
    alt: str,
) -> Markup:
    """Model minus reader per patient: against the mean of both where it is known, else one column per hospital.

    `points` holds, by hospital, x (ignored without `means`) and the difference, both of shape (patients,).
    """
    with mpl.rc_context(STYLE):
        figure, axes = _panel(title)
        rng = np.random.default_rng(7)
        for i, (x, y) in enumerate(points.values()):
            place = x if means else i + rng.uniform(-0.2, 0.2, len(y))
            axes.plot(place, y, MARKERS[i % len(MARKERS)], color=colour(i), markersize=4.5, alpha=0.8, markeredgewidth=0)
        for value, style in ((limits.bias, "-"), (limits.low, (0, (4, 2))), (limits.high, (0, (4, 2)))):
            if isfinite(value):
                axes.axhline(value, color=INK, linestyle=style, linewidth=1.2)
                axes.annotate(
                    f"{value:+.1f}".replace("-", "−"),
                    (1.0, value),
                    (4, 0),
                    ("axes fraction", "data"),
                    "offset points",
                    va="center",
                    annotation_clip=False,
                )
        axes.margins(y=0.1)
        axes.set_position((0.15, 0.17, 0.72, 0.69))
        if means:
            axes.set_xlabel(f"mean of model and reader ({unit})")
        else:
            _names_axis(axes, list(points))
        axes.set_ylabel(f"model − reader ({unit})")
        return _svg(figure, alt)


def _panel(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.2, 3.3))
    axes = figure.add_axes((0.13, 0.17, 0.84, 0.69))
    axes.set_title(title, x=-0.13 / 0.84 + 0.01)
    return figure, axes


def _rounds_axis(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    axes.set_xlabel("round")


def _names_axis(axes: Axes, names: Sequence[str]) -> None:
    """Hospital names under the columns, two lines deep when they would touch."""
    longest = max((len(name) for name in names), default=0)
    crowded = longest * len(names) > 46
    shown = [("\n" if crowded and i % 2 else "") + (name if len(name) < 15 else name[:13] + "…") for i, name in enumerate(names)]
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


def _svg(figure: Figure, alt: str) -> Markup:
    """The figure as an `<svg>` element: no preamble, no namespaces, ids of its own, the page's colours and font."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    prefix = f"f{zlib.crc32(text.encode()):08x}-"  # ids must differ between the figures of one page
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"\bid=\"([^\"]+)\"", rf'id="{prefix}\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}\1)", text)
    text = re.sub(r"xlink:href=\"#([^\"]+)\"", rf'href="#{prefix}\1"', text)
    text = re.sub(r"<defs>\s*<style.*?</defs>", "", text, count=1, flags=re.DOTALL)  # would hold for the whole page
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--sans)", text)
    text = re.sub(r"\s*\n\s*", " ", text)
    text = re.sub("|".join(_VARIABLES), lambda found: f"var({_VARIABLES[found.group()]})", text)
    box = re.search(r"viewBox=\"([^\"]+)\"", text)
    if box is None:
        raise RuntimeError("matplotlib wrote an SVG without a viewBox")
    head = f'<svg viewBox="{box.group(1)}" role="img" aria-label="{escape(alt)}">'
    return Markup(re.sub(r"<svg[^>]*>", lambda _: head, text, count=1))
