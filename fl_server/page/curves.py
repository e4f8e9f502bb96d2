"""Curves over the rounds as numbers for a small picture: scores, seconds and epsilon. The templates draw them as SVG.

The picture is small on purpose, 400 by 230 units, so that its letters can be read on a phone. Lines differ in dashes as
well as in colour. What is not finite is left out, and a line is broken where a round has no value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from fl_server.page.course import KEPT, Course

WIDTH, HEIGHT = 400, 230
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 12, 34
MOST_LINES = 6
"""Hospitals with a line each; of more, the middle one and the range are drawn."""

MOST_POINTS = 250

Point = tuple[float, float]
Scale = Callable[[float], float]


@dataclass(frozen=True)
class Line:
    """One curve: its pieces in the picture's units, and which of the styles it has."""

    name: str
    style: str
    pieces: tuple[str, ...]
    dots: tuple[Point, ...]


@dataclass(frozen=True)
class Level:
    """A line across, or down, that the curves are read against."""

    name: str
    at: float
    down: bool = False


@dataclass(frozen=True)
class Chart:
    """One picture."""

    title: str
    unit: str
    lines: tuple[Line, ...]
    band: str  # the outline of a range; empty: none
    band_name: str
    levels: tuple[Level, ...]
    across: tuple[tuple[float, str], ...]  # ticks: x and text
    up: tuple[tuple[float, str], ...]
    said: str  # the picture in a sentence, for who can't see it


def ticks(low: float, high: float, *, about: int = 5, whole: bool = False) -> list[float]:
    """Round numbers from `low` to `high`.

    >>> ticks(0, 7.9)
    [0.0, 2.0, 4.0, 6.0]
    """
    span = high - low
    if not span > 0:
        return [low]
    raw = span / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    step = max(1.0, step) if whole else step
    first = math.ceil(low / step - 1e-9)
    return [round(place * step, 12) for place in range(first, math.floor(high / step + 1e-9) + 1)]


def chart(
    title: str,
    numbers: Sequence[int],
    lines: Sequence[tuple[str, Sequence[float]]],
    *,
    unit: str = "",
    band: tuple[str, Sequence[float], Sequence[float]] | None = None,
    level: tuple[str, float] | None = None,
    mark: tuple[str, int] | None = None,
    from_zero: bool = True,
) -> Chart | None:
    """A picture of `lines` (name, a value for each round number); None if there is nothing to draw."""
    values = [value for _, line in lines for value in line if _drawable(value)]
    if band:
        values += [value for side in band[1:] for value in side if _drawable(value)]
    if not values:
        return None
    if level and _drawable(level[1]):
        values.append(level[1])
    low, high = min(values), max(values)
    if from_zero:
        low = min(0.0, low)
    if high - low < 1e-9 * max(abs(high), 1.0):
        low, high = low - (abs(low) * 0.1 or 1.0), high + (abs(high) * 0.1 or 1.0)
    elif not from_zero:
        low, high = low - 0.06 * (high - low), high + 0.06 * (high - low)
    else:
        high += 0.04 * (high - low)
    begin, end = min(numbers), max(numbers)

    def x(number: float) -> float:
        share = 0.5 if end == begin else (number - begin) / (end - begin)
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def y(value: float) -> float:
        return round(TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

    levels = [Level(level[0], y(level[1]))] if level and _drawable(level[1]) else []
    if mark:
        levels.append(Level(mark[0], x(mark[1]), down=True))
    last = [(name, _last(line)) for name, line in lines]
    said = f"{title} over rounds {begin} to {end}; " + ", ".join(f"{name}: {short(value)} at the end" for name, value in last)
    return Chart(
        title=title,
        unit=unit,
        lines=tuple(_line(name, f"l{place}", numbers, line, x, y) for place, (name, line) in enumerate(lines)),
        band=_band(numbers, band[1], band[2], x, y) if band else "",
        band_name=band[0] if band else "",
        levels=tuple(levels),
        across=tuple((x(tick), f"{tick:.0f}") for tick in ticks(begin, end, whole=True)),
        up=tuple((y(tick), short(tick)) for tick in ticks(low, high, about=4)),
        said=said,
    )


def short(value: float) -> str:
    """A number in three digits.

    >>> short(0.12345), short(1234.5), short(0.0)
    ('0.123', '1230', '0')
    """
    if not math.isfinite(value):
        return "nothing"
    text = f"{value:.3g}"
    return f"{float(text):.0f}" if "e" in text and abs(value) < 1e9 and abs(value) >= 1 else text


def _drawable(value: float) -> bool:
    return math.isfinite(value) and abs(value) < 1e300


def _last(line: Sequence[float]) -> float:
    return next((value for value in reversed(line) if _drawable(value)), math.nan)


def _line(name: str, style: str, numbers: Sequence[int], line: Sequence[float], x: Scale, y: Scale) -> Line:
    pieces: list[list[Point]] = [[]]
    for number, value in _thinned(numbers, line):
        if _drawable(value):
            pieces[-1].append((x(number), y(value)))
        elif pieces[-1]:
            pieces.append([])
    points = [point for piece in pieces for point in piece]
    return Line(
        name,
        style,
        tuple(_path(piece) for piece in pieces if len(piece) > 1),
        tuple(points) if len(points) <= 30 else tuple(piece[0] for piece in pieces if len(piece) == 1),
    )


def _band(numbers: Sequence[int], low: Sequence[float], high: Sequence[float], x: Scale, y: Scale) -> str:
    both = [
        (number, below, above)
        for (number, below), (_, above) in zip(_thinned(numbers, low), _thinned(numbers, high), strict=True)
        if _drawable(below) and _drawable(above)
    ]
    there = [(x(number), y(above)) for number, _, above in both]
    back = [(x(number), y(below)) for number, below, _ in reversed(both)]
    return _path([*there, *back]) if len(both) > 1 else ""


def _thinned(numbers: Sequence[int], line: Sequence[float]) -> Iterable[tuple[int, float]]:
    step = max(1, math.ceil(len(numbers) / MOST_POINTS))
    chosen = sorted({*range(0, len(numbers), step), len(numbers) - 1})
    return [(numbers[index], float(line[index])) for index in chosen]


def _path(points: Sequence[Point]) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in points)


# -- the pictures of a study ------------------------------------------------------------------------------------------


@lru_cache(maxsize=KEPT)
def of_study(course: Course) -> list[Chart]:
    """Scores on validation patients, seconds and epsilon, where there is something to draw."""
    found = [*_scores(course), _seconds(course), _epsilon(course)]
    return [one for one in found if one is not None]


def _scores(course: Course) -> list[Chart | None]:
    if not course.scores:
        return []
    names = dict.fromkeys(name for _, scores in course.scores for name in scores)
    wanted = str((course.record.study.get("validation") or {}).get("metric") or "")
    ordered = sorted(names, key=lambda name: name != wanted)  # the one that chooses first; else as the task reads them
    numbers = [number for number, _ in course.scores]
    chosen = course.record.selected_round
    mark = ("chosen", chosen) if chosen in numbers else None
    return [
        chart(
            f"{name}, on validation patients",
            numbers,
            [(name, [scores.get(name, math.nan) for _, scores in course.scores])],
            mark=mark,
            from_zero=False,
        )
        for name in ordered[:3]
    ]


def _seconds(course: Course) -> Chart | None:
    told = course.told
    lines = [("the round", list(course.seconds))]
    if np.isfinite(told.seconds).any():
        lines.append(("a hospital, median", _each(told.seconds, np.median)))
    return chart("Seconds per round", told.numbers or (1,), lines, unit="s") if told.numbers else None


def _epsilon(course: Course) -> Chart | None:
    told = course.told
    known = np.flatnonzero(np.isfinite(told.epsilon).any(axis=0)) if told.numbers else np.array([], int)
    if not len(known):
        return None
    privacy = course.record.study.get("privacy") or {}
    promise = privacy.get("epsilon") if privacy.get("kind") == "patient" else None
    level = ("promised", float(promise)) if isinstance(promise, int | float) else None
    title = "Epsilon in the hospitals' ledgers"
    values = told.epsilon[:, known]
    if len(known) > 1 and np.array_equal(values, np.broadcast_to(values[:, :1], values.shape), equal_nan=True):
        return chart(title, told.numbers, [(f"all {len(known)} hospitals", values[:, 0].tolist())], level=level)
    if len(known) <= MOST_LINES:
        lines = [(course.sites[column], told.epsilon[:, column].tolist()) for column in known]
        return chart(title, told.numbers, lines, level=level)
    middle = ("median hospital", _each(told.epsilon, np.median))
    band = ("from the lowest to the highest", _each(told.epsilon, np.min), _each(told.epsilon, np.max))
    return chart(title, told.numbers, [middle], band=band, level=level)


def of_site(course: Course, name: str) -> list[Chart]:
    """One hospital's seconds and epsilon."""
    told, column = course.told, course.sites.index(name)
    if not told.numbers:
        return []
    privacy = course.record.study.get("privacy") or {}
    promise = privacy.get("epsilon") if privacy.get("kind") == "patient" else None
    level = ("promised", float(promise)) if isinstance(promise, int | float) else None
    lines = [(name, told.seconds[:, column].tolist()), ("all hospitals, median", _each(told.seconds, np.median))]
    found = [
        chart("Seconds until the answer", told.numbers, lines, unit="s"),
        chart("Epsilon in its ledger", told.numbers, [(name, told.epsilon[:, column].tolist())], level=level),
    ]
    return [one for one in found if one is not None]


def _each(table: npt.NDArray[np.float32], of: Callable[[npt.NDArray[np.float32]], Any]) -> list[float]:
    """`of` the finite values of each row; NaN where there is none."""
    rows = [row[np.isfinite(row)] for row in table]
    return [float(of(row)) if len(row) else math.nan for row in rows]
