"""What stands on each view: facts of the studies' folders, read at the moment of asking, ready for the templates.

Whatever can't be read is told in words in its own place, and the rest stands.
"""

from __future__ import annotations

import math
import re
import time
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from pydantic import ValidationError

from conf.study import SecureAggregation
from fl_server.console.files import studies
from fl_server.live import Now
from fl_server.page.course import ANSWERS, KEPT, NOTHING, Book, Course, Shelf, Summary, whole
from fl_server.page.matrix import spans
from fl_server.record import NOT_ASKED_YET, last_told
from fl_server.runs import Standing

HERE = Path(__file__).parent
SHOWN_REASONS, MORE_REASONS = 6, 30
SHOWN_AWAITED = 24
MOST_MATRIX = 24
"""Models and hospitals in one cross-site table."""

PER_PAGE = 250
"""Rounds on one page of a hospital."""

STATES = {
    "running": "runs",
    "ended": "ended",
    "interrupted": "interrupted",
    "stopped": "stopped",
    "waiting": "has not begun",
    "unknown": "not known",
}
PHASES = {
    "enrolling": "waits for hospitals to say that they take part",
    "round": "asks for updates",
    "validation": "asks for scores on validation patients",
    "scores": "asks for the final scores",
    "matrix": "has every model judged at every hospital",
    "ended": "has ended",
}
_ROUND = re.compile(r"rounds? (\d{1,6})(?: to (\d{1,6}))?: (.*)", re.DOTALL)
_NOT_YET = re.compile(rf"\d+ of \d+ rounds were run|no (?:scores|matrix of hospitals): {re.escape(NOT_ASKED_YET)}")


def environment() -> Environment:
    """The templates. What they are given is escaped, and characters that can't be seen are shown by their numbers."""
    made = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=visible,
    )
    made.filters |= {
        "when": when,
        "lasting": lasting,
        "size": size,
        "short": lambda text: str(text)[:12],
        "number": number,
        "thousands": lambda count: f"{count:,}".replace(",", "\u202f"),  # a narrow space at which no line ends
    }
    return made


def visible(value: Any) -> Any:
    """A text without characters that hide or turn around what stands beside them.

    >>> visible("safe\\u202eexe")
    'safe⟨U+202E⟩exe'
    """
    if not isinstance(value, str) or isinstance(value, Markup) or (value.isascii() and value.isprintable()):
        return value
    hidden = {c for c in value if unicodedata.category(c) in ("Cc", "Cf", "Co", "Cs", "Cn", "Zl", "Zp") and c not in "\n\t"}
    for character in hidden:
        value = value.replace(character, f"⟨U+{ord(character):04X}⟩")
    return value


def when(moment: Any) -> str:
    """`2026-11-22 08:15` of an ISO time or of seconds since 1970, UTC."""
    if isinstance(moment, int | float):
        try:
            return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M")
        except (OverflowError, OSError, ValueError):
            return "at no time"
    return str(moment)[:16].replace("T", " ")


def lasting(seconds: float) -> str:
    """`3 min` of seconds."""
    if not math.isfinite(seconds):
        return "?"
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if abs(seconds) >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def size(count: Any) -> str:
    """`1.3 MB` of bytes."""
    amount = float(count or 0)
    for unit in ("bytes", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "bytes" else f"{amount:.3g} {unit}"
        amount /= 1000
    return f"{amount:.3g} GB"


def number(value: Any) -> str:
    """Three digits of a number; a dash for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return "–"
    return f"{value:.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.3g}"


# -- the studies ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Study:
    """One study's folder, as far as it can be read."""

    key: str  # in addresses
    name: str
    folder: Path
    now: Now | None
    standing: Standing | None
    state: str  # one of STATES
    trouble: str  # why something of it can't be read
    reading: bool
    summary: Summary | None

    @property
    def running(self) -> bool:
        """Whether its process is there."""
        return self.state == "running"

    @property
    def decided(self) -> bool:
        """Whether its verdict stands: it is over, or nobody can tell that it isn't."""
        return self.state in ("ended", "stopped", "unknown")

    @property
    def started(self) -> str:
        """When it was started, ISO 8601; empty: not known."""
        known = [self.summary.started if self.summary else "", self.standing.started if self.standing else ""]
        return min(filter(None, known), default="")

    @property
    def changed(self) -> float:
        """When its record was written last, seconds since 1970; 0: there is none."""
        try:
            return (self.folder / "record.json").stat().st_mtime
        except OSError:
            return 0.0

    @property
    def round(self) -> int:
        """The round under way, or the last that ended."""
        done = self.summary.done if self.summary else 0
        return max(done, self.now.round) if self.now and self.running else done


def folders(where: Path) -> dict[str, tuple[str, Path]]:
    """Key -> name and folder of all studies, the latest first. Those of a rehearsal's arms have a path for a name."""
    try:
        found = studies(where)
    except ValueError:  # there is none
        return {}
    return {name.replace("/", "~"): (name, folder) for name, folder in reversed(found.items())}


def study(key: str, where: Path, shelf: Shelf, *, whole: bool = False, wait_s: float = 0.7) -> tuple[Study, Book]:
    """How a study stands, with what is known of its record. Raises `KeyError` if there is none of this key."""
    name, folder = folders(where)[key]
    return _study(key, name, folder, shelf, whole=whole, wait_s=wait_s)


def every(where: Path, shelf: Shelf, *, wait_s: float) -> list[Study]:
    """All studies, the latest first; `wait_s` for all of them together."""
    until = time.monotonic() + wait_s
    return [
        _study(key, name, folder, shelf, wait_s=max(0.0, until - time.monotonic()))[0]
        for key, (name, folder) in folders(where).items()
    ]


def _study(key: str, name: str, folder: Path, shelf: Shelf, *, wait_s: float, whole: bool = False) -> tuple[Study, Book]:
    now = Now.read(folder)  # before the record: what it says of a round's end is not newer than the record
    book = shelf.book(folder, whole=whole, wait_s=wait_s)
    standing, trouble = None, f"its record can't be read: {book.trouble}" if book.trouble else ""
    try:
        standing = Standing.read(folder)
    except (OSError, ValueError) as error:
        trouble = "; ".join(filter(None, [trouble, str(error)]))
    state = _state(now, standing, book)
    return Study(key, name, folder, now, standing, state, trouble, book.reading, book.summary), book


def _state(now: Now | None, standing: Standing | None, book: Book) -> str:
    summary = book.summary
    if summary is not None and (
        summary.ended or (now is None and standing is None and summary.done >= summary.planned)  # an older konsil's
    ):
        return "ended"
    if now is not None and now.alive and (summary is None or now.study_hash == summary.study_hash):
        return "running"
    if standing is not None and standing.wanted != "running":
        return "stopped" if standing.wanted == "stopped" else "ended"
    if summary is None:
        return "waiting" if standing is not None and not book.trouble and not book.reading else "unknown"
    return "waiting" if now is None and standing is not None and not summary.done else "interrupted"


@lru_cache(maxsize=KEPT)
def reasons(course: Course, *, over: bool) -> tuple[list[str], list[str]]:
    """Why the verdict is what it is, in the record's words: what is said of the study, and what of rounds, put together.

    As long as a study goes on or may go on, that it isn't over yet is no reason.
    """
    plain: list[str] = []
    by_text: dict[str, list[tuple[int, int]]] = {}
    for text in course.record.reasons:
        if found := _ROUND.fullmatch(text):
            first, last = int(found[1]), int(found[2] or found[1])
            by_text.setdefault(found[3], []).append((first, last))
        elif over or not _NOT_YET.fullmatch(text):
            plain.append(text)
    said = {text: spans(at) for text, at in by_text.items()}
    return plain, [f"{'round' if rounds.isdecimal() else 'rounds'} {rounds}: {text}" for text, rounds in said.items()]


def awaited(now: Now | None) -> list[tuple[str, float]]:
    """Hospitals whose answers are awaited, and for how many seconds, the longest first."""
    if now is None:
        return []
    at = time.time()
    waiting = [(name, max(0.0, at - now.asked[name])) for name in now.awaited]
    return sorted(waiting, key=lambda item: -item[1])


def unasked(course: Course, now: Now | None) -> list[str]:
    """Hospitals of the study that the question under way went past, because they had not said that they take part."""
    if now is None or now.phase == "enrolling" or not now.asked:
        return []
    return [name for name in course.sites if name not in now.asked]


def facts(course: Course) -> list[tuple[str, str]]:
    """What was agreed, in a few words each; what an older record doesn't say is left out."""
    study, record = course.record.study, course.record
    privacy, strategy = _part(study, "privacy"), _part(study, "strategy")
    found = [("Task", str(_part(study, "task").get("name", "")))]
    if privacy.get("kind") == "patient":
        promise = f"epsilon {number(privacy.get('epsilon'))}, delta {number(privacy.get('delta'))} for every patient"
        shares = [(words, privacy.get(f"{key}_share") or 0) for key, words in SHARES.items()]
        told = ", ".join(f"{share:.0%} of it for {words}" for words, share in shares if share)
        found.append(("Promise", promise + (f"; {told}" if told else "")))
    elif privacy:
        found.append(("Promise", "none: answers carry no noise, and protect nobody"))
    if strategy:
        said = f"{strategy.get('name', '?')}; a round counts with {_quorum(study)} usable answers or more, "
        found.append(("Rounds", said + f"and waits for {lasting(float(strategy.get('round_timeout_s') or 0))} at most"))
    if free := strategy.get("references_sha256"):
        found.append(("Filtered", f"noise is taken out of the mean update by generated patients, {str(free)[:12]}"))
    found.append(("Study hash", record.study_hash))
    made = ", ".join(f"{name} {version}" for name, version in record.versions.items() if name in ("konsil", "flwr", "torch"))
    found += [("Made with", made), ("Engine", " on ".join(filter(None, [record.engine, record.device])))]
    return [(name, text) for name, text in found if text]


SHARES = {"evaluation": "the final scores", "validation": "choosing among rounds", "matrix": "every model at every hospital"}


def _quorum(study: Mapping[str, Any]) -> int | str:
    """Usable answers that a round needs; secure aggregation may need more than the strategy asks for."""
    quorum = _part(study, "strategy").get("quorum", "?")
    try:
        least = SecureAggregation.model_validate(_part(_part(study, "privacy"), "secure")).least
    except ValidationError:  # there is none, or an older konsil's
        return str(quorum)
    return max(least, whole(quorum, 0))


def _part(study: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = study.get(name)
    return part if isinstance(part, dict) else {}


def final_scores(course: Course) -> list[tuple[str, str]]:
    """What patients that were held back say of the final model, and the deviation that the noise alone gives each score."""
    evaluation = course.record.evaluation
    figures = evaluation.figures if evaluation else {}
    return [
        (name, number(value) + (f" (noise alone: ± {number(noise)})" if noise else ""))
        for name, (value, noise) in figures.items()
    ]


@dataclass(frozen=True)
class Question:
    """A question besides the rounds that every planned hospital was asked: for scores."""

    name: str
    used: int
    planned: int
    missing: tuple[tuple[str, str, str], ...]  # hospital, answer, reason


def questions(course: Course) -> list[Question]:
    """Who answered when scores were asked for."""
    found = []
    for name, part in (("Final scores", course.record.evaluation), ("Every model at every hospital", course.record.matrix)):
        if part is not None:
            missing = tuple((site, said.answer, said.reason) for site, said in part.sites.items() if said.answer != "used")
            found.append(Question(name, len(part.sites) - len(missing), len(part.sites), missing))
    return found


@dataclass(frozen=True)
class Crossed:
    """Every model on every hospital's patients: `rows` of (model, [(score, shade 0..4, its noise)])."""

    metric: str
    sites: tuple[str, ...]
    rows: tuple[tuple[str, tuple[tuple[str, int, str], ...]], ...]
    left_out: int  # models and hospitals beyond the table


def crossed(course: Course) -> Crossed | None:
    """The cross-site matrix, as far as it can be looked at."""
    matrix = course.record.matrix
    if matrix is None or not any(matrix.scores.values()):
        return None
    sites = list(dict.fromkeys(site for row in matrix.scores.values() for site in row))
    values = [value for row in matrix.scores.values() for value in row.values() if math.isfinite(value)]
    low, high = (min(values), max(values)) if values else (0.0, 0.0)
    shown = sites[:MOST_MATRIX]

    def shade(value: float | None) -> int:
        if value is None or not math.isfinite(value) or high <= low:
            return 0
        return min(4, int(5 * (value - low) / (high - low)))

    def cell(model: str, site: str) -> tuple[str, int, str]:
        value, noise = matrix.scores[model].get(site), matrix.noise_sd.get(model, {}).get(site)
        return number(value), shade(value), f"noise alone: ± {number(noise)}" if noise else ""

    return Crossed(
        metric=matrix.metric,
        sites=tuple(shown),
        rows=tuple((model, tuple(cell(model, site) for site in shown)) for model in list(matrix.scores)[: MOST_MATRIX + 1]),
        left_out=max(0, len(sites) - len(shown)),
    )


def faults(course: Course) -> list[tuple[str, str]]:
    """What a simulation did on purpose: its name, and the rest in words."""
    found = []
    for fault in course.record.faults:
        rest = dict(fault)
        name = next((str(rest.pop(key)) for key in ("fault", "name", "kind") if key in rest), "a fault")
        words = str(rest.pop("words", ""))
        when = _rounds(rest.pop("rounds", None))
        told = ", ".join([*when, *(f"{key} {_plain(value)}" for key, value in rest.items() if value not in (None, "", []))])
        found.append((name.replace("_", " "), f"{words} ({told})" if words and told else words or told))
    return found


def _rounds(rounds: Any) -> list[str]:
    """The first and the last round of a fault, in words; nothing if a record has something else there."""
    if not isinstance(rounds, list) or len(rounds) != 2:
        return [f"rounds {_plain(rounds)}"] if rounds else []
    first, last = rounds
    return [f"round {first}" if first == last else f"rounds {first} to {last}"]


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(inner)}" for key, inner in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)


# -- one hospital -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SiteRow:
    """One round at one hospital."""

    round: int
    answer: str  # empty: the record says nothing
    reason: str
    seconds: float
    steps: float
    epsilon: float
    attempts: int
    bytes: float


def site_rows(course: Course, name: str, page: int) -> tuple[list[SiteRow], int, int]:
    """One page of a hospital's rounds, the newest first; the page, and how many there are."""
    told, column = course.told, course.sites.index(name)
    pages = max(1, math.ceil(len(told.numbers) / PER_PAGE))
    page = min(max(page, 1), pages)
    indices = list(range(len(told.numbers)))[::-1][(page - 1) * PER_PAGE : page * PER_PAGE]
    rows = []
    for index in indices:
        code = int(told.answers[index, column])
        rows.append(
            SiteRow(
                told.numbers[index],
                "" if code == NOTHING else ANSWERS[code],
                told.reasons.get((index, column), ""),
                seconds=float(told.seconds[index, column]),
                steps=float(told.steps[index, column]),
                epsilon=float(told.epsilon[index, column]),
                attempts=int(told.attempts[index, column]),
                bytes=float(told.bytes[index, column]),
            )
        )
    return rows, page, pages


def told_in(course: Course, name: str) -> str:
    """The question in whose answer the hospital last told of its ledger, if it was asked again since (`Record.told_in`)."""
    asked: list[tuple[int, str, bool]] = []
    for told, what in ((course.told, "round"), (course.validated, "validation after round")):
        column = course.sites.index(name)
        asked += [
            (number, f"{what} {number}", math.isfinite(told.epsilon[index, column]))
            for index, number in enumerate(told.numbers)
            if told.attempts[index, column]
        ]
    asked.sort(key=lambda one: one[0])  # a round before the validation after it
    parts = [("the scores", course.record.evaluation), ("the matrix", course.record.matrix)]
    found = [(what, told) for _, what, told in asked]
    found += [
        (what, p.sites[name].epsilon is not None) for what, p in parts if p and name in p.sites and p.sites[name].attempts
    ]
    return "" if course.record.profile else last_told(found)


def site_tally(course: Course, name: str) -> dict[str, int]:
    """How many of a hospital's rounds were what."""
    counted = np.bincount(course.told.answers[:, course.sites.index(name)], minlength=256)
    return {answer: int(counted[code]) for code, answer in enumerate(ANSWERS)}


def site_scores(course: Course, name: str) -> list[tuple[str, str, str]]:
    """What the hospital answered when it was asked for scores: the question, the answer, the reason."""
    told, column = course.validated, course.sites.index(name)
    rounds: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for index, number in enumerate(told.numbers):
        code = int(told.answers[index, column])
        if code != NOTHING:
            rounds.setdefault((ANSWERS[code], told.reasons.get((index, column), "")), []).append((number, number))
    found = [
        (f"validation after round{'s' if len(at) > 1 else ''} {spans(at)}", answer, reason)
        for (answer, reason), at in rounds.items()
    ]
    for words, part in (("final scores", course.record.evaluation), ("every model here", course.record.matrix)):
        if part is not None and name in part.sites:
            said = part.sites[name]
            found.append((words, said.answer, said.reason))
    return found[:PER_PAGE]
