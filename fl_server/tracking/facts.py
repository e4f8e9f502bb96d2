"""What of a record is worth a curve: parameters, tags, and points that are new since the last time.

Every point has a time that follows from the record alone, so that the same record gives the same points, however often.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from conf.study import Frozen
from fl_server.record import Record, Round

LONGEST_VALUE = 500
"""Characters of a parameter or a tag; MLflow's servers take 500 at least."""

_OTHER = re.compile(r"[^A-Za-z0-9_\-. :/]")


class Published(Frozen):
    """How much of a record has been written down already."""

    rounds: int = 0
    validated: int = 0  # the last round whose validation scores were
    final: bool = False  # whatever comes after the last round


@dataclass(frozen=True)
class Point:
    """One number of one curve."""

    name: str
    value: float
    step: int  # the round
    at_ms: int  # since 1970


def key(record: Record) -> str:
    """What one course of one study is known by: the same when it was interrupted and goes on, another when it begins anew."""
    return f"{record.study_hash} {record.started}"


def published(record: Record) -> Published:
    """What is known when all of the record has been written down."""
    validated = [entry.round for entry in record.rounds if entry.validation is not None]
    return Published(rounds=len(record.rounds), validated=max(validated, default=0), final=record.finished)


def points(record: Record, before: Published) -> Iterator[Point]:
    """The points that are new since `before`, in the order of rounds. What is not finite is left out."""
    for entry, at_ms in zip(record.rounds, _times(record), strict=True):
        numbers: dict[str, float | None] = {}
        if entry.round > before.rounds:
            numbers |= _of_round(entry)
        if entry.validation is not None and entry.round > before.validated:
            numbers |= {f"validation/{name}": value for name, value in entry.validation.scores.items()}
        yield from _points(numbers, entry.round, at_ms)
    if record.finished and not before.final:
        yield from _points(_of_the_end(record), len(record.rounds), _ms(record.ended))


def started_ms(record: Record) -> int:
    """When the study began, in milliseconds since 1970; 0 if the record does not say."""
    return _ms(record.started)


def ended_ms(record: Record) -> int:
    """When it was over."""
    return _ms(record.ended)


def parameters(record: Record) -> dict[str, str]:
    """The study's settings, `strategy.quorum: 2`."""
    return {name: value[:LONGEST_VALUE] for name, value in _flat(record.study)}


def tags(record: Record) -> dict[str, str]:
    """What one searches runs by: hash, verdict, versions, the model's fingerprint."""
    found = {
        "konsil.key": key(record),
        "konsil.study": record.name,
        "konsil.hash": record.study_hash,
        "konsil.verdict": record.verdict if record.finished else "none yet",
        "konsil.reasons": "; ".join(record.reasons) if record.finished else "",
        "konsil.interruptions": str(len(record.resumed)),
        "konsil.engine": record.engine,
        **{f"konsil.version.{name}": version for name, version in record.versions.items()},
    }
    if record.rounds:
        found["konsil.model_sha256"] = record.rounds[-1].arrays_sha256
    if record.selected_round is not None:
        found["konsil.selected_round"] = str(record.selected_round)
        found["konsil.model_sha256"] = record.rounds[record.selected_round - 1].arrays_sha256
    return {name: value[:LONGEST_VALUE] for name, value in found.items()}


def fingerprints(record: Record) -> str:
    """A table of the model's fingerprint after each round, as CSV."""
    lines = [f"{entry.round},{entry.arrays_sha256},{'yes' if entry.moved else 'no'}" for entry in record.rounds]
    return "\n".join(["round,model_sha256,moved", *lines, ""])


def _of_round(entry: Round) -> dict[str, float | None]:
    numbers: dict[str, float | None] = {
        "round/seconds": entry.seconds,
        "round/used": float(sum(site.answer == "used" for site in entry.sites.values())),
    }
    for name, site in entry.sites.items():
        numbers[f"used/{name}"] = float(site.answer == "used")
        numbers[f"epsilon/{name}"] = site.epsilon
        numbers[f"seconds/{name}"] = site.seconds
        numbers[f"steps/{name}"] = site.steps
    return numbers


def _of_the_end(record: Record) -> dict[str, float | None]:
    numbers: dict[str, float | None] = {f"final_epsilon/{name}": site.epsilon for name, site in record.sites.items()}
    if record.evaluation is not None:
        numbers |= {f"final/{name}": value for name, value in record.evaluation.scores.items()}
    for name, site in record.sites.items():
        numbers |= {f"dice/{structure}/{name}": value for structure, value in site.dice.items()}
    if record.matrix is not None:
        for model, scores in record.matrix.scores.items():
            numbers |= {f"matrix/{model}/{site}": value for site, value in scores.items()}
    return numbers


def _points(numbers: Mapping[str, float | None], step: int, at_ms: int) -> Iterator[Point]:
    for name, value in numbers.items():
        if value is not None and math.isfinite(value):
            yield Point(_OTHER.sub("_", name), float(value), step, at_ms)


def _times(record: Record) -> Iterator[int]:
    """When each round ended; from the start and the rounds' lengths, where the record does not say."""
    at = _ms(record.started)
    for entry in record.rounds:
        at = _ms(entry.ended) if entry.ended else at + round(1000 * entry.seconds)
        yield at


def _ms(when: str) -> int:
    return round(1000 * datetime.fromisoformat(when).timestamp()) if when else 0


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _flat(inner, f"{path}.{name}" if path else str(name))
    else:
        yield path, value if isinstance(value, str) else json.dumps(value)
