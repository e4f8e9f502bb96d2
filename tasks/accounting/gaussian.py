"""The Gaussian mechanism's privacy curve, which is known exactly (Balle and Wang 2018, Theorem 8).

All that counts is `mu`, the ratio of sensitivity to noise: mechanisms compose by the squares of their ratios. `mu` is also the
parameter of Gaussian differential privacy (Dong, Roth and Su 2022), in which other mechanisms can be bounded.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy.special import log_ndtr, ndtr, ndtri


def delta_at(epsilon: float, *, mu: float) -> float:
    """The smallest delta at `epsilon`, exactly."""
    if mu == 0:
        return 0.0
    if math.isinf(mu):
        return 1.0
    upper = float(ndtr(mu / 2 - epsilon / mu))
    return max(0.0, upper - math.exp(min(epsilon + float(log_ndtr(-mu / 2 - epsilon / mu)), 0.0)))


def deltas_at(epsilons: npt.NDArray[np.float64], *, mu: float) -> npt.NDArray[np.float64]:
    """`delta_at` for many."""
    found: npt.NDArray[np.float64] = ndtr(mu / 2 - epsilons / mu) - np.exp(
        np.minimum(epsilons + log_ndtr(-mu / 2 - epsilons / mu), 0.0)
    )
    return found


def epsilon_at(delta: float, *, mu: float) -> float:
    """The smallest epsilon at `delta`; what is returned is on the safe side of the last digit."""
    if delta_at(0.0, mu=mu) <= delta:
        return 0.0
    if math.isinf(mu):
        return math.inf
    low, high = 0.0, 1.0
    while delta_at(high, mu=mu) > delta:
        low, high = high, 2 * high
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if delta_at(middle, mu=mu) > delta else (low, middle)
    return high


def mu_of_pure(epsilon: float) -> float:
    """The `mu` that covers every mechanism of this epsilon with delta 0.

    The trade-off curve of randomised response, the worst of them (Kairouz, Oh and Viswanath 2015), has one corner, at which it
    meets the Gaussian's; the latter is convex and goes through the same ends, so it lies below everywhere.
    """
    return 2 * float(-ndtri(1 / (1 + math.exp(epsilon)))) if epsilon < 700 else math.inf


def mu_at(epsilon: float, delta: float) -> float:
    """The largest ratio whose curve is within `epsilon` and `delta`: what a budget comes to in the measure that adds up."""
    low, high = 0.0, 1.0
    while delta_at(epsilon, mu=high) <= delta:
        low, high = high, 2 * high
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if delta_at(epsilon, mu=middle) <= delta else (low, middle)
    return low
