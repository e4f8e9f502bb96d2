"""How both reports write numbers, names and verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, isfinite

from fl_server.report.statistics import Estimate

VERDICTS = {
    "complete": "Complete: every hospital was used in every round.",
    "degraded": "Degraded: the study ran to its end, but not all of it went as planned.",
    "failed": "Failed: the study did not reach its end.",
}


def structure(name: str) -> str:
    """`blood_pool` as it is said: Blood pool."""
    text = name.replace("_", " ")
    return text[:1].upper() + text[1:]


def number(value: float | None, digits: int = 3, *, sign: bool = False) -> str:
    """A number with a true minus sign; an en dash where there is none."""
    if value is None or not isfinite(value):
        return "–"
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.replace("-", "").replace("+", "")  # rounded to nothing: no direction
    return text.replace("-", "−")


def interval(estimate: Estimate, digits: int = 3, *, sign: bool = False) -> str:
    """`0.781 to 0.823`, or an empty string without an interval."""
    if not isfinite(estimate.low):
        return ""
    while digits < 5 and any(bound and not round(bound, digits) for bound in (estimate.low, estimate.high)):
        digits += 1  # a bound close to 0 must show on which side it lies
    return f"{number(estimate.low, digits, sign=sign)} to {number(estimate.high, digits, sign=sign)}"


def epsilon(value: float | None) -> str:
    """Two digits, rounded up: a report must not state less privacy loss than there was."""
    return "–" if value is None else f"{ceil(value * 100 - 1e-9) / 100:.2f}"


def count(n: int, noun: str) -> str:
    """`1 seed`, `3 seeds`."""
    return f"{n} {noun}" + ("" if n == 1 else "s")


def listed(parts: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}" if parts else ""


def printable(text: str) -> str:
    """The text with a space for every character that could move a cursor, hide others or break a file's syntax."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def share(value: float) -> str:
    """A probability as a percentage that is never rounded to certainty: 73 %, 99.97 %, above 99.99 %."""
    if value > 0.9999:
        return "above 99.99 %" if value < 1 else "100 %"
    digits = 0 if 0.01 <= value <= 0.985 else 1 if value <= 0.9985 else 2
    return f"{100 * value:.{digits}f} %"
