"""One page about the masks that a model drew, as PDF: what it is for in large letters, who drew, how much, where. Where the
hospital has reference values a second page shows the patient among them.

It says millilitres and shows outlines; it judges nothing. Of the patient it tells the hospital's number and the day of the
examination and no name: enough to see that a page lies with the wrong patient, and a page that is printed and lost names
nobody. Drawn by matplotlib; the same report gives the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from textwrap import wrap
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_pdf import FigureCanvasPdf, PdfPages
from matplotlib.figure import Figure

from fl_client.reference_chart import draw_panels
from tasks.reference_values.place import Place, source
from tasks.reference_values.values import ReferenceValues

A4_INCHES = (8.27, 11.69)
COLUMNS, MOST_SERIES = 4, 4
COLOURS = ("#e6194b", "#ffe119", "#4cc9f0", "#3cb44b", "#f58231", "#f032e6")
MARGIN = 0.35  # around what was found, as a part of its size

Image = npt.NDArray[np.generic]
Mask = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Drawn:
    """What a model drew on one series. `image` and `mask` are (slices, rows, columns)."""

    series: str
    image: Image
    mask: Mask
    spacing_mm: tuple[float, float, float]
    sure: Mapping[str, str] = field(default_factory=dict)  # how sure the model is, by structure, in figures

    def millilitres(self, value: int) -> float:
        """Volume of all voxels with this value."""
        return float(np.prod(self.spacing_mm)) / 1000 * int((self.mask == value).sum())


@dataclass(frozen=True)
class Report:
    """What stands on the page. `lines` are (what, which), in reading order."""

    title: str
    lines: Sequence[tuple[str, str]]
    structures: Mapping[str, int]  # name: value in the mask
    drawn: Sequence[Drawn]
    values: ReferenceValues | None = None  # what `places` are among
    places: Sequence[Place] = ()
    sure: str = ""  # what the figures in `drawn` are
    told: str = ""  # and what they were learned by


def draw(report: Report) -> bytes:
    """The page as PDF; two, if the patient has a place among reference values."""
    facts = {"CreationDate": None, "Producer": "konsil", "Creator": "konsil"}
    with mpl.rc_context({"pdf.fonttype": 42, "font.family": "DejaVu Sans", "font.size": 8.5}):  # fonts that can be searched
        figure = Figure(figsize=A4_INCHES)
        FigureCanvasPdf(figure)
        _say(figure, 0.5, 0.955, "RESEARCH USE ONLY", size=33, weight="bold", color="#b00020", ha="center")
        warning = "Not for diagnosis. A model drew these outlines, and nobody has checked them."
        _say(figure, 0.5, 0.927, warning, size=11.5, ha="center")
        _say(figure, 0.07, 0.893, report.title, size=12, weight="bold")
        height = 0.872
        for what, which in report.lines:
            _say(figure, 0.07, height, what, color="#555555")
            _say(figure, 0.25, height, which, family="DejaVu Sans Mono" if len(which) == 64 else "DejaVu Sans")  # a hash
            height -= 0.0165
        height = _table(figure, report, height - 0.012)
        height = _sureness(figure, report, height - 0.008)
        _montage(figure, report, height - 0.015)
        _say(figure, 0.5, 0.022, "RESEARCH USE ONLY", size=14, weight="bold", color="#b00020", ha="center")
        page = io.BytesIO()
        if report.values is None or not report.places:
            figure.savefig(page, format="pdf", dpi=150, metadata=facts)
        else:
            with PdfPages(page, metadata=facts) as pages:
                for one in (figure, _among_others(report, report.values)):
                    pages.savefig(one, dpi=150)
    return page.getvalue()


def _among_others(report: Report, values: ReferenceValues) -> Figure:
    """The second page: percentile curves with the patient's dots, percentiles in words, and where the values come from."""
    figure = Figure(figsize=A4_INCHES)
    FigureCanvasPdf(figure)
    _say(figure, 0.5, 0.955, "RESEARCH USE ONLY", size=33, weight="bold", color="#b00020", ha="center")
    warning = "Measured by a model's outlines, which nobody has checked. A percentile is no diagnosis."
    _say(figure, 0.5, 0.927, warning, size=11.5, ha="center")
    _say(figure, 0.07, 0.893, "Among others of the same sex and age", size=12, weight="bold")
    height = 0.872
    for what, which in report.lines[:2]:
        _say(figure, 0.07, height, what, color="#555555")
        _say(figure, 0.25, height, which)
        height -= 0.0165
    height -= 0.01
    for place in report.places:
        _say(figure, 0.07, height, f"{place.measure.words.capitalize()}: {place.figure}", weight="bold")
        _say(figure, 0.09, height - 0.0165, place.words)
        height -= 0.037
    draw_panels(figure, values, report.places[0].sex, report.places, top=height - 0.025, bottom=0.17)
    legend = (
        "Shades: 5th to 95th and 25th to 75th percentile. Line: median. Broken lines: where the median may lie instead, "
        "and how far out the 5th and 95th percentile may (95 %). "
    )
    for number, line in enumerate(wrap(legend + source(values), 118)):
        _say(figure, 0.07, 0.118 - 0.0155 * number, line, size=8, color="#333333")
    _say(figure, 0.5, 0.022, "RESEARCH USE ONLY", size=14, weight="bold", color="#b00020", ha="center")
    return figure


def _say(figure: Figure, x: float, y: float, words: str, **how: Any) -> None:
    """Text as it is: a dollar sign in a patient's number is no mathematics."""
    figure.text(x, y, words, parse_math=False, va="baseline", **how)


def _table(figure: Figure, report: Report, top: float) -> float:
    """Millilitres per structure and series; gives where it ends."""
    left, width = 0.25, 0.17
    for column, drawn in enumerate(report.drawn[:MOST_SERIES]):
        _say(figure, left + width * (column + 1) - 0.03, top, drawn.series, weight="bold", ha="right")
    _say(figure, 0.07, top, "Volume in ml", weight="bold")
    for row, (name, value) in enumerate(report.structures.items(), 1):
        height = top - 0.0165 * row
        _say(figure, 0.07, height, "■", color=COLOURS[(row - 1) % len(COLOURS)])
        _say(figure, 0.09, height, name.replace("_", " "))
        for column, drawn in enumerate(report.drawn[:MOST_SERIES]):
            said = f"{drawn.millilitres(value):.1f}" if (drawn.mask == value).any() else "not found"
            _say(figure, left + width * (column + 1) - 0.03, height, said, ha="right")
    return top - 0.0165 * (len(report.structures) + 1)


def _sureness(figure: Figure, report: Report, top: float) -> float:
    """How sure the model is per structure and series, where that can be told, and by what; gives where it ends."""
    lines = wrap(report.told, 118)
    if any(drawn.sure for drawn in report.drawn):
        _say(figure, 0.07, top, report.sure, weight="bold")
        for row, name in enumerate(report.structures, 1):
            _say(figure, 0.09, top - 0.0165 * row, name.replace("_", " "))
            for column, drawn in enumerate(report.drawn[:MOST_SERIES]):
                said = drawn.sure.get(name, "can't be told")
                _say(figure, 0.25 + 0.17 * (column + 1) - 0.03, top - 0.0165 * row, said, ha="right")
        top -= 0.0165 * (len(report.structures) + 1)
    for number, line in enumerate(lines):
        _say(figure, 0.07, top - 0.0155 * number, line, size=8, color="#333333")
    return top - 0.0155 * len(lines)


def _montage(figure: Figure, report: Report, top: float) -> None:
    """Slices with outlines: two rows per series, or one where there are many series."""
    shown, bottom, title = report.drawn[:MOST_SERIES], 0.05, 0.018
    rows = 2 if len(shown) <= 2 else 1
    each = min(0.152, ((top - bottom) / max(1, len(shown)) - title) / rows)
    for done, drawn in enumerate(shown):
        begin = top - done * (title + rows * each)
        _say(figure, 0.07, begin - 0.012, drawn.series, weight="bold")
        low, high = np.percentile(drawn.image.astype(np.float32), (1, 99.5))
        window = _window(drawn.mask)
        for place, number in enumerate(_slices(drawn.mask, COLUMNS * rows)):
            row, column = divmod(place, COLUMNS)
            axes = figure.add_axes((0.07 + 0.217 * column, begin - title - each * (row + 1), 0.213, each - 0.005), anchor="NW")
            axes.imshow(
                drawn.image[number][window],
                cmap="gray",
                vmin=float(low),
                vmax=float(high) if high > low else float(low) + 1,
                aspect=drawn.spacing_mm[1] / drawn.spacing_mm[2],
            )
            for position, value in reversed(list(enumerate(report.structures.values()))):  # the first lies on top
                inside = drawn.mask[number][window] == value
                if inside.any() and not inside.all():
                    axes.contour(inside, levels=[0.5], colors=COLOURS[position % len(COLOURS)], linewidths=0.9)
            axes.text(0.03, 0.04, f"slice {number + 1}", transform=axes.transAxes, color="white", size=6)
            axes.set_axis_off()


def _slices(mask: Mask, most: int) -> list[int]:
    """Which slices are shown: spread over those with something in them, or over all if there is nothing."""
    found = np.flatnonzero(mask.any(axis=(1, 2)))
    among = found if len(found) else np.arange(len(mask))
    return sorted({int(among[round(i)]) for i in np.linspace(0, len(among) - 1, min(most, len(among)))})


def _window(mask: Mask) -> tuple[slice, slice]:
    """Rows and columns around all that was found, the same in each slice; all of them if nothing was."""
    if not mask.any():
        return slice(None), slice(None)
    sides = []
    for axes in ((0, 2), (0, 1)):
        found = np.flatnonzero(mask.any(axis=axes))
        room = round(MARGIN * (found[-1] - found[0] + 1)) + 2
        sides.append(slice(max(0, int(found[0]) - room), int(found[-1]) + room + 1))
    return sides[0], sides[1]
