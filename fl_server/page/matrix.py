"""The matrix of hospitals and rounds: what became of every planned answer, small enough to look at.

Up to `COLUMNS` rounds have a column each; more are put together in blocks, whose cells tell the worst that happened in them.
Up to `ROWS` hospitals have a row each; more are paged, and the shares of all of them stand in a picture above.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from fl_server.live import Now
from fl_server.page.course import ANSWERS, KEPT, NOTHING, Course, Told

COLUMNS = 40
ROWS = 40
BLOCKS = 120
"""Bars in the picture of shares."""

LETTERS = {"used": "U", "declined": "D", "failed": "F", "quarantined": "Q", "late": "L", "absent": "A"}
WORDS = {
    "used": "used: the answer is part of the model",
    "declined": "declined: the hospital said no",
    "failed": "failed: something went wrong at the hospital",
    "quarantined": "quarantined: the answer came, but was not sound",
    "late": "late: the answer came after the round's end",
    "absent": "absent: no answer came",
}
WORST = ("quarantined", "failed", "absent", "late", "declined", "used")
"""What a block of rounds is shown as: the first of these that happened in it."""


@dataclass(frozen=True)
class Cell:
    """One field of the matrix."""

    kind: str  # an answer; "awaited", "nothing"
    text: str
    title: str
    mixed: bool = False  # a block in which several things happened
    now: bool = False  # of the round under way


@dataclass(frozen=True)
class Column:
    """One round, or several in a row."""

    first: int
    last: int
    kept: bool = False  # the model is the one before
    now: bool = False

    @property
    def text(self) -> str:
        """How the column is headed."""
        return f"{self.first}" if self.first == self.last else f"{self.first}–{self.last}"


@dataclass(frozen=True)
class Row:
    """One hospital."""

    site: str
    used: int
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Matrix:
    """What is drawn."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    blocks: int  # rounds in one column
    page: int
    pages: int
    worst_first: bool
    first: int  # of the rounds shown
    last: int
    whole: bool  # all rounds are


@dataclass(frozen=True)
class Share:
    """One bar of the picture of shares, for some rounds: how many answers were what."""

    x: float
    width: float
    title: str
    parts: tuple[tuple[str, float, float], ...]  # answer, y, height, in percent from above


@lru_cache(maxsize=KEPT)
def tally(told: Told) -> dict[str, int]:
    """How many planned answers were what."""
    counted = np.bincount(told.answers.ravel(), minlength=256)
    return {answer: int(counted[code]) for code, answer in enumerate(ANSWERS)}


def matrix(
    course: Course,
    now: Now | None,
    *,
    page: int = 1,
    worst_first: bool | None = None,
    first: int = 1,
    last: int | None = None,
    rows: Sequence[str] = (),
) -> Matrix:
    """The rounds `first` to `last` of one page of hospitals; `rows` names some instead of a page."""
    told = course.told
    order = list(range(len(course.sites)))
    pages = max(1, math.ceil(len(order) / ROWS))
    if worst_first is None:
        worst_first = pages > 1
    missed = np.count_nonzero(told.answers != 0, axis=0) if told.numbers else np.zeros(len(order), int)
    if worst_first:
        order.sort(key=lambda column: -missed[column])
    page = min(max(1, page), pages)
    chosen = [course.sites.index(name) for name in rows] if rows else order[(page - 1) * ROWS : page * ROWS]
    highest = max([*told.numbers, now.round if now and now.phase == "round" else 0, 1])
    last = highest if last is None else min(max(last, 1), highest)
    first = min(max(first, 1), last)
    indices = [index for index, number in enumerate(told.numbers) if first <= number <= last]
    live = now if now and now.phase == "round" and now.round not in told.numbers and first <= now.round <= last else None
    blocks = 1 if len(indices) <= COLUMNS else math.ceil(len(indices) / COLUMNS)
    groups = [indices[start : start + blocks] for start in range(0, len(indices), blocks)]
    columns = [
        Column(told.numbers[group[0]], told.numbers[group[-1]], kept=not any(course.moved[index] for index in group))
        for group in groups
    ]
    if live:
        columns.append(Column(live.round, live.round, now=True))
    shown = []
    for column in chosen:
        name = course.sites[column]
        cells = [_cell(told, group, column) for group in groups]
        if live:
            cells.append(_live(live, name))
        shown.append(Row(name, len(told.numbers) - int(missed[column]), tuple(cells)))
    return Matrix(
        tuple(columns), tuple(shown), blocks, page, pages, worst_first, first, last, whole=first == 1 and last == highest
    )


def _cell(told: Told, group: list[int], column: int) -> Cell:
    if len(group) == 1:
        code = int(told.answers[group[0], column])
        if code == NOTHING:
            return Cell("nothing", "", f"round {told.numbers[group[0]]}: the record says nothing")
        answer, reason = ANSWERS[code], told.reasons.get((group[0], column), "")
        return Cell(answer, LETTERS[answer], f"round {told.numbers[group[0]]}: {answer}" + (f" ({reason})" if reason else ""))
    counted = Counter(told.answers[group, column].tolist())
    kinds = {ANSWERS[code]: number for code, number in counted.items() if code != NOTHING}
    where = f"rounds {told.numbers[group[0]]} to {told.numbers[group[-1]]}: "
    if not kinds:
        return Cell("nothing", "", where + "the record says nothing")
    worst = next(answer for answer in WORST if answer in kinds)
    title = where + ", ".join(f"{kinds[answer]} {answer}" for answer in WORST[::-1] if answer in kinds)
    mixed = len(kinds) > 1
    return Cell(worst, LETTERS[worst] + (str(kinds[worst]) if worst != "used" else ""), title, mixed=mixed)


def _live(now: Now, name: str) -> Cell:
    where = f"round {now.round}, under way: "
    if name in now.heard:
        heard = now.heard[name]
        text = where + heard.answer + (f" ({heard.reason})" if heard.reason else "")
        return Cell(heard.answer, LETTERS[heard.answer], text, now=True)
    if name in now.asked:
        return Cell("awaited", "?", where + "asked, no answer yet", now=True)
    return Cell("nothing", "", where + "not asked yet", now=True)


@lru_cache(maxsize=KEPT)
def shares(told: Told) -> list[Share]:
    """What became of all hospitals' answers, over the rounds, as bars of 100 percent."""
    total = len(told.numbers)
    if not total:
        return []
    blocks = math.ceil(total / BLOCKS)
    starts = range(0, total, blocks)
    width = 100.0 / len(starts)
    bars = []
    for place, start in enumerate(starts):
        part = told.answers[start : start + blocks]
        counted = np.bincount(part.ravel(), minlength=256)
        known = max(1, int(counted[: len(ANSWERS)].sum()))
        kinds = [(answer, int(counted[ANSWERS.index(answer)])) for answer in WORST[::-1]]
        numbers = told.numbers[start : start + blocks]
        where = f"round {numbers[0]}" if len(numbers) == 1 else f"rounds {numbers[0]} to {numbers[-1]}"
        parts, below = [], 0.0
        for answer, number in kinds:  # used lies at the foot
            height = 100.0 * number / known
            if number:
                parts.append((answer, round(100.0 - below - height, 3), round(height, 3)))
            below += height
        title = f"{where}: " + ", ".join(f"{number} {answer}" for answer, number in kinds if number)
        bars.append(Share(round(place * width, 4), round(width, 4), title, tuple(parts)))
    return bars


@dataclass(frozen=True)
class Why:
    """The same thing that happened for the same reason, once or often."""

    answer: str
    reason: str
    sites: tuple[str, ...]
    rounds: str
    times: int


@lru_cache(maxsize=KEPT)
def why(course: Course, told: Told, *, most: int) -> tuple[list[Why], int]:
    """What was not used, and why: hospital by hospital, or reason by reason where there are too many; how many are left out."""
    rows, columns = np.nonzero((told.answers != 0) & (told.answers != NOTHING))
    by_site: dict[tuple[int, int, str], list[int]] = defaultdict(list)
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        by_site[column, int(told.answers[row, column]), told.reasons.get((row, column), "")].append(row)
    found: list[Why]
    if len(by_site) <= most:
        found = [
            Why(ANSWERS[code], reason, (course.sites[column],), _rounds(told, at), len(at))
            for (column, code, reason), at in sorted(by_site.items(), key=lambda item: (item[0][0], item[1][0]))
        ]
        return found, 0
    by_reason: dict[tuple[int, str], tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    for (column, code, reason), at in by_site.items():
        who, rounds = by_reason[code, reason]
        who.append(column)
        rounds.extend(at)
    ordered = sorted(by_reason.items(), key=lambda item: -len(item[1][1]))
    found = [
        Why(
            ANSWERS[code],
            reason,
            tuple(course.sites[column] for column in sorted(who)),
            _rounds(told, at),
            len(at),
        )
        for (code, reason), (who, at) in ordered[:most]
    ]
    return found, len(ordered) - len(found)


def _rounds(told: Told, rows: Iterable[int]) -> str:
    return spans((told.numbers[row], told.numbers[row]) for row in rows)


def spans(stretches: Iterable[tuple[int, int]], *, most: int = 8) -> str:
    """Stretches of rounds in words.

    >>> spans([(1, 1), (2, 3), (9, 10), (7, 7)])
    '1–3, 7, 9–10'
    """
    runs: list[list[int]] = []
    for low, high in sorted(stretches):
        if runs and low <= runs[-1][1] + 1:
            runs[-1][1] = max(runs[-1][1], high)
        else:
            runs.append([low, high])
    said = [f"{low}" if low == high else f"{low}–{high}" for low, high in runs[:most]]
    return ", ".join(said) + (f" and {len(runs) - most} more stretches" if len(runs) > most else "")


def legend(counted: Mapping[str, int]) -> list[tuple[str, str, str, int]]:
    """Answer, letter, words and how many, in the order of the letters' use."""
    return [(answer, LETTERS[answer], WORDS[answer], counted.get(answer, 0)) for answer in WORDS]
