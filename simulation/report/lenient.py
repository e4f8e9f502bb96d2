"""JSON that others wrote, read with care: a key may be missing, a list empty, a number null.

A number that is not there becomes NaN, a word an empty one, so that whoever draws has one way of not knowing each.
"""

from __future__ import annotations

from math import isfinite, nan
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def number(value: object) -> float:
    """The number, or NaN for null, words and what is not finite."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value) else nan


def numbers(values: object) -> Floats:
    """(n,) numbers of a list, NaN for each that is none."""
    return np.array([number(value) for value in values] if isinstance(values, list) else [], dtype=np.float64)


def text(value: object) -> str:
    """A word, or an empty one for null."""
    return "" if value is None else str(value)


def texts(values: object) -> list[str]:
    """The words of a list."""
    return [text(value) for value in values] if isinstance(values, list) else []


def mapping(value: object) -> dict[str, Any]:
    """The object, or an empty one."""
    return value if isinstance(value, dict) else {}


def mappings(values: object) -> list[dict[str, Any]]:
    """The objects in a list."""
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []
