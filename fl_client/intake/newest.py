"""Of a series that was let in and one that comes now, which counts: the one of the later day, whatever came first.

Two phases of one cine are taken from one day: of the latest that has both, or else of the latest. What nobody knows the day of
can't be compared; then what comes now counts, as it would for somebody who brings it by hand.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

PHASES = {"ed": "end-diastole", "es": "end-systole"}
"""What a cine's phases are called, by what their names end in."""

Days = Mapping[str, str]
"""By series name, the day of its examination, YYYYMMDD, moved as all the patient's dates are; empty: nobody knows."""


@dataclass(frozen=True)
class Choice:
    """What becomes of the series, by name, with the reason in words."""

    stays: Mapping[str, str]  # of what comes now: left out, since what is inside stays, or since it has no place there
    goes: Mapping[str, str]  # of what is inside: it goes, and nothing takes its place
    replaced: Mapping[str, str]  # of what is inside: what comes now takes its place
    decided: frozenset[str] = frozenset()  # series of which all days are known


def newest(inside: Days, coming: Days) -> Choice:
    """Choose between the series that are inside and those that come."""
    stays: dict[str, str] = {}
    goes: dict[str, str] = {}
    replaced: dict[str, str] = {}
    decided: set[str] = set()
    for names in _together({*inside, *coming}):
        if not any(name in coming for name in names):
            continue
        if not all(days[name] for days in (inside, coming) for name in names if name in days):
            continue
        best = _day(names, inside, coming)
        decided.update(names)
        for name in names:
            if coming.get(name) == best:
                if name in inside and inside[name] != best:
                    was = "an earlier day" if inside[name] < best else "a later day without the cine's other phase"
                    replaced[name] = f"{name}: one of {was} was inside; what came now takes its place"
            elif inside.get(name) == best:
                if name in coming:
                    stays[name] = _why_not(name, coming[name], best)
            else:
                if name in coming:
                    stays[name] = _why_not(name, coming[name], best)
                if name in inside:
                    goes[name] = f"{name}: of another day than the cine's later phase; the two phases are taken from one day"
    return Choice(stays, goes, replaced, frozenset(decided))


def _why_not(name: str, day: str, best: str) -> str:
    if day < best:
        return f"{name}: of an earlier day than what is inside, which stays"
    return f"{name}: of a later day without the cine's other phase; the two that are inside, of one day, stay"


def _day(names: tuple[str, ...], inside: Days, coming: Days) -> str:
    """The latest day that has all of the names, or else the latest."""
    of = [{days[name] for days in (inside, coming) if name in days} for name in names]
    return max(set.intersection(*of) or set.union(*of))


def _together(names: set[str]) -> Iterator[tuple[str, ...]]:
    """The two phases of a cine together, every other series alone."""
    for name in sorted(names):
        stem, _, phase = name.rpartition("_")
        if not stem or phase not in PHASES:
            yield (name,)
            continue
        both = tuple(f"{stem}_{each}" for each in PHASES)
        there = tuple(each for each in both if each in names)
        if name == there[0]:
            yield there
