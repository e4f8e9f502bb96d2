"""Renyi accounting: an upper bound on what any of the mechanisms cost together, by closed forms that no library is needed for.

The cross-check of the loss distributions, and what is asked where those would be too large. Divergences add up over releases
(Mironov 2017); to epsilon by Canonne, Kamath and Steinke 2020, Proposition 12.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln, logsumexp

from tasks.accounting.discrete import renyi_divergence
from tasks.accounting.events import Law

WHOLE = np.array([*range(2, 65), *range(68, 129, 4), 160, 192, 256, 384, 512], dtype=float)
"""Orders at which a sampled sum has a closed form."""
ANY = np.unique(np.concatenate([WHOLE, 1 + np.logspace(-2, 5, 400)]))


def epsilon_at(delta: float, sums: Sequence[tuple[Law, int]]) -> float:
    """What these releases cost together at most."""
    orders = WHOLE if any(law.sample_rate < 1 for law, _ in sums) else ANY
    spent = sum((steps * divergences(law, orders) for law, steps in sums), start=np.zeros(len(orders)))
    found = spent + np.log1p(-1 / orders) - (np.log(delta) + np.log(orders)) / (orders - 1)
    return max(0.0, float(np.min(found)))


def divergences(law: Law, orders: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The Renyi divergence of one release at each order, in the worse direction."""
    if law.mechanism == "discrete_gaussian":
        return np.array([renyi_divergence(law, float(order)) for order in orders])
    if law.mechanism == "laplace":
        return _laplace(1 / law.noise_multiplier, orders)
    if law.mechanism == "geometric":
        return _geometric(1 / (law.noise_multiplier * law.sensitivity), law.sensitivity, orders)
    if law.sample_rate < 1:
        return np.array([_sampled(law.noise_multiplier, law.sample_rate, int(order)) for order in orders])
    return orders / (2 * law.noise_multiplier**2)


def _sampled(sigma: float, rate: float, order: int) -> float:
    """Mironov, Talwar and Zhang 2019, equation 6, for whole orders."""
    k = np.arange(order + 1)
    binomial = gammaln(order + 1) - gammaln(k + 1) - gammaln(order - k + 1)
    terms = binomial + k * math.log(rate) + (order - k) * math.log1p(-rate) + (k * k - k) / (2 * sigma**2)
    return max(0.0, float(logsumexp(terms))) / (order - 1)


def _laplace(shift: float, orders: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Mironov 2017, Table II. It holds for vectors with this L1 bound, too.

    (order - 1) times it is the logarithm of a sum of exponentials of `shift`, so it is convex, and 0 at 0: shifts in several
    numbers never cost more than their sum in one.
    """
    first = np.log(orders) - np.log(2 * orders - 1) + (orders - 1) * shift
    second = np.log(orders - 1) - np.log(2 * orders - 1) - orders * shift
    found: npt.NDArray[np.float64] = np.logaddexp(first, second) / (orders - 1)
    return found


def _geometric(decay: float, shift: float, orders: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The same for probabilities ~ exp(-decay * abs(k)) and a shift by whole numbers: three geometric series.

    Below 0, between 0 and `shift`, and above. Both weights are positive, so the remark on vectors holds here, too.
    """
    beyond = -math.expm1(-decay)  # 1 - exp(-decay)
    inside = -np.expm1(-(2 * orders - 1) * decay)
    scale = math.log(beyond) - math.log1p(math.exp(-decay))
    up = np.log(1 / beyond + np.exp(-(2 * orders - 1) * decay) / inside) + (orders - 1) * decay * shift
    with np.errstate(divide="ignore"):
        down = np.log(np.maximum(1 / beyond - 1 / inside, 0.0)) - orders * decay * shift
    found: npt.NDArray[np.float64] = (scale + np.logaddexp(up, down)) / (orders - 1)
    return found
