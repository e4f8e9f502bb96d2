"""The report's charts: what is drawn where. Data come ready; nothing is computed here but positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

from fl_server.report.drawing import Drawing, place, series, ticks

FULL = 490.0  # points: the text's width on A4
HALF = 236.0
SMALL = 158.0


@dataclass(frozen=True)
class Row:
    """A line of a forest plot: an estimate with its interval (NaN: none), or a heading (`value` NaN and no count)."""

    label: str
    value: float
    low: float
    high: float
    patients: int | None
    told: str  # the numbers in words, at the right
    small: bool = False  # few patients: drawn hollow and pale


def forest(rows: Sequence[Row], *, unit: str) -> Drawing:
    """Estimates with 95 % intervals under one another, headings between them, numbers at the right."""
    step, top, left, right = 13.6, 16.0, 150.0, 342.0
    drawn = Drawing(FULL, top + step * len(rows) + 30)
    bounds = [b for row in rows for b in (row.value, row.low, row.high) if isfinite(b)]
    low, high = min(bounds, default=0.0), max(bounds, default=1.0)
    room = 0.06 * max(high - low, 0.02)
    domain = (low - room, high + room)
    bottom = top + step * len(rows) + 2
    for tick, shown in _labelled(ticks(*domain, most=5)):
        x = place(tick, domain, (left, right))
        drawn.line((x, top - 4), (x, bottom), colour="rule", width=0.6)
        drawn.word(x, bottom + 10, shown, size=7.5, colour="muted", anchor="middle")
    drawn.word((left + right) / 2, bottom + 22, unit, size=8, colour="muted", anchor="middle")
    drawn.word(368, 9, "n", size=7.5, colour="muted", anchor="end")
    drawn.word(FULL, 9, "mean (95% interval)", size=7.5, colour="muted", anchor="end")
    for i, row in enumerate(rows):
        y = top + step * (i + 0.5)
        if row.patients is None:
            drawn.word(0, y + 3, row.label, size=8.5, bold=True)
            continue
        shade = "muted" if row.small else "ink"
        drawn.word(10, y + 3, _cut(row.label, 28), size=8.5, colour=shade)
        drawn.word(368, y + 3, str(row.patients), size=8, colour=shade, anchor="end")
        drawn.word(FULL, y + 3, row.told, size=8, colour=shade, anchor="end")
        if not isfinite(row.value):
            continue
        x = place(row.value, domain, (left, right))
        if isfinite(row.low):
            ends = [place(bound, domain, (left, right)) for bound in (row.low, row.high)]
            drawn.line((ends[0], y), (ends[1], y), colour=shade, width=1.4)
        drawn.dot(x, y, 3.0, fill="muted" if row.small else "accent")
        if row.small:
            drawn.dot(x, y, 1.7, fill="paper")
    return drawn


@dataclass(frozen=True)
class Level:
    """A horizontal line across a scatter plot, named at its right end."""

    value: float
    dashed: bool = False
    name: str = ""


def scatter(
    groups: Mapping[str, Sequence[tuple[float, float]]],
    *,
    title: str,
    x_unit: str,
    y_unit: str,
    levels: Sequence[Level] = (),
    width: float = HALF,
) -> Drawing:
    """One mark per point, a mark and colour per group; a legend below where there are several groups."""
    height = 0.78 * width
    legend = _legend_rows(list(groups), width)
    drawn = Drawing(width, height + 12 * legend + (4 if legend else 0))
    named = any(level.name for level in levels)
    left, right, top, bottom = 38.0, width - (34.0 if named else 6.0), 20.0, height - 28.0
    points = [point for several in groups.values() for point in several]
    x_domain = _domain([x for x, _ in points])
    y_domain = _domain([y for _, y in points] + [level.value for level in levels if isfinite(level.value)])
    drawn.word(0, 10, title, size=9, bold=True)
    _axes(drawn, (left, right), (bottom, top), x_domain, y_domain, x_unit, y_unit)
    for level in levels:
        if isfinite(level.value):
            y = place(level.value, y_domain, (bottom, top))
            drawn.line((left, y), (right, y), width=1.0, dashed=level.dashed)
            if level.name:
                drawn.word(right + 3, y + 2.5, level.name, size=7)
    for index, several in enumerate(groups.values()):
        for x, y in several:
            drawn.mark(place(x, x_domain, (left, right)), place(y, y_domain, (bottom, top)), index, size=2.1)
    if legend:
        _legend(drawn, list(groups), height + 6, width)
    return drawn


def curves(
    lines: Mapping[str, Sequence[tuple[float, float]]],
    *,
    title: str,
    x_unit: str,
    y_unit: str,
    bars: Sequence[tuple[float, float, float]] = (),
) -> Drawing:
    """Shares against probabilities, both 0 to 1, with the diagonal on which both agree; `bars` are (x, low, high)."""
    width = HALF
    legend = _legend_rows(list(lines), width)
    drawn = Drawing(width, width + 12 * legend)
    left, right, top, bottom = 38.0, width - 6.0, 20.0, width - 28.0
    drawn.word(0, 10, title, size=9, bold=True)
    unit = (0.0, 1.0)
    _axes(drawn, (left, right), (bottom, top), unit, unit, x_unit, y_unit)
    drawn.line((left, bottom), (right, top), colour="muted", dashed=True, width=0.8)
    for x, low, high in bars:
        if isfinite(low) and isfinite(high):
            at = place(x, unit, (left, right))
            drawn.line(
                (at, place(low, unit, (bottom, top))), (at, place(high, unit, (bottom, top))), colour=series(0), width=0.8
            )
    for index, points in enumerate(lines.values()):
        placed = [(place(x, unit, (left, right)), place(y, unit, (bottom, top))) for x, y in points]
        if len(placed) > 1:
            drawn.line(*placed, colour=series(index), width=1.2)
        for x, y in placed:
            drawn.mark(x, y, index, size=2.1)
    if legend:
        _legend(drawn, list(lines), width + 4, width)
    return drawn


ANSWERS = {
    "used": ("accent", ""),
    "declined": ("warn", "d"),
    "failed": ("bad", "f"),
    "quarantined": ("series-5", "q"),
    "late": ("series-7", "l"),
    "absent": ("muted", "a"),
}
"""Colour and letter of what became of a planned hospital in a round."""


def rounds(answers: Mapping[str, Sequence[str]]) -> Drawing:
    """A square for each hospital and round: who was used, and what became of the others."""
    most = max((len(row) for row in answers.values()), default=0)
    side = min(13.0, (FULL - 110) / max(most, 1))
    drawn = Drawing(FULL, 17.0 * len(answers) + 34)
    for i, (name, row) in enumerate(answers.items()):
        y = 4 + 17.0 * i
        drawn.word(0, y + 9, _cut(name, 20), size=8.5)
        for j, answer in enumerate(row):
            fill, letter = ANSWERS.get(answer, ("muted", "?"))
            gap = 1.0 if side > 4 else 0.0
            drawn.box(104 + side * j, y, side - gap, 12, fill=fill)
            if letter and side > 8:
                drawn.word(104 + side * (j + 0.46), y + 9, letter, size=7.5, colour="paper", anchor="middle", bold=True)
    y = 17.0 * len(answers) + 18
    x = 104.0
    for answer in dict.fromkeys(a for row in answers.values() for a in row):
        fill, letter = ANSWERS.get(answer, ("muted", "?"))
        drawn.box(x, y - 8, 10, 10, fill=fill)
        if letter:
            drawn.word(x + 5, y, letter, size=7, colour="paper", anchor="middle", bold=True)
        drawn.word(x + 14, y, answer, size=8, colour="muted")
        x += 26 + 5.2 * len(answer)
    return drawn


def _axes(
    drawn: Drawing,
    across: tuple[float, float],
    up: tuple[float, float],
    x_domain: tuple[float, float],
    y_domain: tuple[float, float],
    x_unit: str,
    y_unit: str,
) -> None:
    for tick, shown in _labelled(ticks(*y_domain, most=4)):
        y = place(tick, y_domain, up)
        drawn.line((across[0], y), (across[1], y), colour="rule", width=0.6)
        drawn.word(across[0] - 3, y + 2.5, shown, size=7, colour="muted", anchor="end")
    for tick, shown in _labelled(ticks(*x_domain, most=5)):
        x = place(tick, x_domain, across)
        drawn.line((x, up[0]), (x, up[0] + 3), colour="rule", width=0.6)
        drawn.word(x, up[0] + 11, shown, size=7, colour="muted", anchor="middle")
    drawn.line((across[0], up[0]), (across[1], up[0]), colour="rule", width=0.8)
    drawn.word((across[0] + across[1]) / 2, up[0] + 22, x_unit, size=7.5, colour="muted", anchor="middle")
    drawn.word(9, (up[0] + up[1]) / 2, y_unit, size=7.5, colour="muted", anchor="middle", turned=True)


def _legend_rows(names: Sequence[str], width: float) -> int:
    return 0 if len(names) < 2 else len(_laid_out(names, width))


def _laid_out(names: Sequence[str], width: float) -> list[list[tuple[int, float, str]]]:
    """Rows of (index, x, name) that fit the width."""
    rows: list[list[tuple[int, float, str]]] = [[]]
    x = 0.0
    for index, name in enumerate(names):
        shown = _cut(name, 24)
        need = 18 + 4.6 * len(shown)
        if x and x + need > width:
            rows.append([])
            x = 0.0
        rows[-1].append((index, x, shown))
        x += need
    return rows


def _legend(drawn: Drawing, names: Sequence[str], y: float, width: float) -> None:
    for line, row in enumerate(_laid_out(names, width)):
        for index, x, name in row:
            drawn.mark(x + 4, y + 12 * line, index)
            drawn.word(x + 11, y + 12 * line + 2.8, name, size=7.8, colour="muted")


def _domain(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values, default=0.0), max(values, default=1.0)
    room = 0.08 * (high - low) or max(abs(high), 1.0) * 0.1
    return low - room, high + room


def _labelled(values: Sequence[float]) -> list[tuple[float, str]]:
    """Each tick with its number, all with as many decimals as the one that needs most."""
    decimals = max((len(f"{value:g}".partition(".")[2]) for value in values), default=0)
    return [(value, f"{value:.{decimals}f}".replace("-", "−")) for value in values]


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
