"""One patient's vector of length at most 1, computed in whole numbers, so that no rounding can lift it above the bound.

Entries come as integers of any size, are divided by an integer that is at least their length, and cut off towards zero in steps
of 2^-30. Each entry's square is thus at most v_i^2 / r^2, and these add up to at most 1. Results are whole multiples of 2^-30,
so a sum of fewer than 2^23 patients is exact in float64 and the same in any order, over any sites.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_ONE = 1 << 30


def divided(entries: Sequence[int], divisor: int) -> npt.NDArray[np.float64]:
    """Every entry over `divisor`, (entries,), cut off towards zero; what of the bound holds is the caller's to show."""
    return np.array([math.copysign(abs(entry) * _ONE // divisor / _ONE, entry) for entry in entries], np.float64)


def shortened(entries: Sequence[int], *, unit: int) -> npt.NDArray[np.float64]:
    """The entries over `unit`, or over their own length where that is more: (entries,) of L2 norm at most 1."""
    return divided(entries, max(unit, ceil_sqrt(sum(entry * entry for entry in entries))))


def ceil_sqrt(number: int) -> int:
    """The smallest whole number whose square is at least `number`."""
    return math.isqrt(number - 1) + 1 if number > 0 else 0
