"""A study's record as the page needs it: its rounds packed into one small array, so that 1,000 hospitals fit as well as three.

A record of 1,000 hospitals and 500 rounds is a file of 74 MB. It is read once per change, in a thread of its own, round by
round through the types of `fl_server.record`; what is kept is a few numbers for each hospital and round, and the reasons.
"""

from __future__ import annotations

import json
import math
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from conf.study import words
from fl_server.record import SCHEMA, Answer, Evaluation, Record, Round, SiteRound

ANSWERS: tuple[str, ...] = get_args(Answer)
NOTHING = 255
"""In place of an answer: the record says nothing about this hospital in this round."""

KEPT = 6
"""Courses in memory, and what was made of so many; a large one has 15 MB."""


@dataclass(frozen=True, eq=False)  # one is itself alone, so what is made of it can be remembered
class Told:
    """What hospitals answered to one kind of question, rounds down, hospitals across: arrays of shape (rounds, sites)."""

    numbers: tuple[int, ...]  # of the rounds
    answers: npt.NDArray[np.uint8]  # index into ANSWERS, or NOTHING
    epsilon: npt.NDArray[np.float32]  # NaN: not told
    seconds: npt.NDArray[np.float32]
    steps: npt.NDArray[np.float32]
    bytes: npt.NDArray[np.float64]
    attempts: npt.NDArray[np.uint16]
    reasons: Mapping[tuple[int, int], str]  # (row, column) -> a hospital's own words, or ours


@dataclass(frozen=True, eq=False)
class Course:
    """One record. `record.rounds` is empty: the rounds are in `told`."""

    record: Record
    sites: tuple[str, ...]
    told: Told
    validated: Told  # the rounds after which hospitals were asked for scores
    seconds: tuple[float, ...]  # of each round
    moved: tuple[bool, ...]
    scores: tuple[tuple[int, Mapping[str, float]], ...]  # round -> scores on the validation patients
    written: float  # when the record was, seconds since 1970

    @property
    def planned(self) -> int:
        """Rounds of the study, or those that were run if it was stopped early."""
        return self.done if self.record.stopped_early else whole(self.record.study.get("rounds"), self.done)

    @property
    def done(self) -> int:
        """Rounds that are over."""
        return len(self.told.numbers)


@dataclass(frozen=True)
class Summary:
    """What the list of studies says of one."""

    verdict: str
    done: int
    planned: int
    sites: int
    started: str  # ISO 8601, UTC; empty: not known
    ended: str  # when there was nothing left to ask; empty: it runs, was interrupted, or an older konsil didn't say
    study_hash: str


def whole(value: Any, otherwise: int) -> int:
    """A count out of a study that an older or newer konsil has written."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else otherwise


def read(path: Path) -> Course:
    """Read `record.json`. Raises `OSError`, and `ValueError` in words for what is no record."""
    written = path.stat().st_mtime
    try:
        data = json.loads(path.read_text())
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"it is no JSON: {error}") from None
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        said = data.get("schema") if isinstance(data, dict) else None
        raise ValueError(f"it has schema {said!r}; this konsil reads {SCHEMA!r}")
    data["schema_name"] = data.pop("schema")
    rounds = data.pop("rounds", [])
    try:
        record = Record.model_validate(data, extra="ignore")
        if not isinstance(rounds, list):
            raise ValueError("its rounds are no list")
        return _packed(record, rounds, written)
    except ValidationError as error:
        raise ValueError(f"it is no record that this konsil knows: {words(error)}") from None


def _packed(record: Record, rounds: list[Any], written: float) -> Course:
    columns: dict[str, int] = {}
    for name in [*(str(name) for name in record.study.get("sites") or ()), *record.sites]:
        columns.setdefault(name, len(columns))
    entries, validations = [], []
    seconds, moved, scores = [], [], []
    for index, raw in enumerate(rounds):
        one = Round.model_validate(raw, extra="ignore")
        rounds[index] = None  # what was packed is not needed twice
        entries.append((one.round, _row(one.sites, columns)))
        seconds.append(one.seconds)
        moved.append(one.moved)
        if one.validation is not None:
            validations.append((one.round, _row(one.validation.sites, columns)))
            scores.append((one.round, _finite(one.validation)))
    return Course(
        record=record,
        sites=tuple(columns),
        told=_told(entries, len(columns)),
        validated=_told(validations, len(columns)),
        seconds=tuple(seconds),
        moved=tuple(moved),
        scores=tuple(scores),
        written=written,
    )


def _finite(evaluation: Evaluation) -> dict[str, float]:
    return {name: value for name, (value, _) in evaluation.figures.items() if math.isfinite(value)}


@dataclass
class _Row:
    columns: list[int] = field(default_factory=list)
    numbers: list[tuple[int, float, float, float, float, int]] = field(default_factory=list)
    reasons: list[tuple[int, str]] = field(default_factory=list)


_CODE = {answer: code for code, answer in enumerate(ANSWERS)}


def _row(sites: Mapping[str, SiteRound], columns: dict[str, int]) -> _Row:
    row = _Row()
    nan = math.nan
    for name, said in sites.items():
        column = columns.setdefault(name, len(columns))
        row.columns.append(column)
        row.numbers.append(
            (
                _CODE[said.answer],
                nan if said.epsilon is None else said.epsilon,
                nan if said.seconds is None else said.seconds,
                nan if said.steps is None else said.steps,
                nan if said.bytes is None else said.bytes,
                said.attempts,
            )
        )
        if said.reason:
            row.reasons.append((column, said.reason))
    return row


def _told(entries: list[tuple[int, _Row]], sites: int) -> Told:
    shape = (len(entries), sites)
    answers = np.full(shape, NOTHING, np.uint8)
    epsilon, seconds, steps = (np.full(shape, np.nan, np.float32) for _ in range(3))
    size = np.full(shape, np.nan)
    attempts = np.zeros(shape, np.uint16)
    reasons = {}
    for index, (_, row) in enumerate(entries):
        if not row.columns:
            continue
        table = np.array(row.numbers, np.float64)
        at = (index, row.columns)
        answers[at] = table[:, 0]
        with np.errstate(over="ignore"):  # what is beyond a float is shown as infinite
            epsilon[at], seconds[at], steps[at] = table[:, 1], table[:, 2], table[:, 3]
        size[at] = table[:, 4]
        attempts[at] = np.clip(table[:, 5], 0, 65535)
        reasons.update({(index, column): reason for column, reason in row.reasons})
    return Told(tuple(number for number, _ in entries), answers, epsilon, seconds, steps, size, attempts, reasons)


@dataclass
class Book:
    """What is known of one record: the latest course that could be read, or why there is none."""

    course: Course | None = None
    summary: Summary | None = None
    trouble: str = ""
    reading: bool = False  # a newer one is on its way
    made_of: tuple[int, int, int] | None = None
    over: threading.Event = field(default_factory=threading.Event)


class Shelf:
    """The records of all studies, read again when they change. Any thread may ask."""

    def __init__(self, *, kept: int = KEPT) -> None:
        self._books: OrderedDict[Path, Book] = OrderedDict()
        self._kept = kept
        self._lock = threading.Lock()
        self._one_at_a_time = threading.Lock()

    def book(self, folder: Path, *, whole: bool = True, wait_s: float = 0.7) -> Book:
        """The record in `folder`, as it is now; as it was, with `reading`, if reading takes longer than `wait_s`.

        Without `whole` the summary is enough. A folder without a record has an empty book.
        """
        path = folder / "record.json"
        try:
            found = path.stat()
        except FileNotFoundError:
            return Book()
        except OSError as error:
            return Book(trouble=error.strerror or str(error))
        stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
        with self._lock:
            book = self._books.setdefault(folder, Book())
            self._books.move_to_end(folder)
            enough = book.made_of == stamp and (book.trouble or (book.course if whole else book.summary) is not None)
            if not enough and not book.reading:
                book.reading = True
                book.over = threading.Event()
                threading.Thread(target=self._read, args=(path, book, stamp), daemon=True).start()
            over = book.over
        if not enough:
            over.wait(wait_s)
        with self._lock:
            return Book(book.course, book.summary, book.trouble, book.reading)

    def _read(self, path: Path, book: Book, stamp: tuple[int, int, int]) -> None:
        course, trouble = None, ""
        try:
            with self._one_at_a_time:  # two large ones at once would need the memory of two
                course = read(path)
        except (OSError, ValueError) as error:
            trouble = str(error)
        except Exception as error:  # the page has to say so, whatever it was
            trouble = f"it can't be read ({type(error).__name__})"
        with self._lock:
            book.made_of, book.trouble, book.reading = stamp, trouble, False
            book.course = course
            book.summary = None
            if course is not None:
                record = course.record
                book.summary = Summary(
                    verdict=record.verdict,
                    done=course.done,
                    planned=course.planned,
                    sites=len(course.sites),
                    started=record.started,
                    ended=record.ended,
                    study_hash=record.study_hash,
                )
            loaded = [folder for folder, other in self._books.items() if other.course is not None]
            for folder in loaded[: max(0, len(loaded) - self._kept)]:
                if self._books[folder] is not book:
                    self._books[folder].course = None
        book.over.set()
