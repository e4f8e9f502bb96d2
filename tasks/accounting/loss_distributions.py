"""Privacy loss distributions, composed numerically and rounded towards more loss (dp-accounting).

Koskela, Jaelkoe and Honkela 2020; Doroshenko et al. 2022. The only module that sees the library; it takes a second to import.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from tasks.accounting import gaussian
from tasks.accounting.events import Law

if TYPE_CHECKING:
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

Sums = tuple[tuple[Law, int], ...]
"""Laws and how often each, sorted, each law once. No discrete Gaussians: they come as the continuous ones behind them."""


def epsilon_at(delta: float, sums: Sums) -> float:
    """The epsilon of all of these together."""
    return max(0.0, float(_composed(sums).get_epsilon_for_delta(delta)))


@lru_cache(maxsize=128)
def mu_like(law: Law, steps: int, *, apart: float) -> float:
    """The smallest `mu` whose Gaussian curve covers `steps` such sums: delta(e) <= delta_mu(e) + `apart` for all e >= 0.

    On a grid of 0.002 in epsilon; both curves fall, so one is compared with the other a grid point later. Never more than what
    the sums cost without sampling.
    """
    composed = _composed(((law, steps),))
    last = float(composed.get_epsilon_for_delta(apart))
    worst = math.sqrt(steps) / law.noise_multiplier
    if not last < 100:
        return worst
    grid = np.arange(0.0, last + 0.004, 0.002)
    deltas = np.asarray(composed.get_delta_for_epsilon(grid))[:-1] - apart
    low, high = 0.0, worst
    while high - low > 1e-4 * high:
        middle = (low + high) / 2
        covered = bool((deltas <= gaussian.deltas_at(grid[1:], mu=middle)).all())
        low, high = (low, middle) if covered else (middle, high)
    return high


@lru_cache(maxsize=32)
def _composed(sums: Sums) -> PrivacyLossDistribution:
    from dp_accounting.pld import privacy_loss_distribution as pld

    # losses of a sampled step are of the size rate / sigma; where all are small a finer grid keeps its rounding negligible
    sizes = [law.sample_rate / law.noise_multiplier for law, _ in sums if not _is_normal(law)]
    interval = 1e-4 if max(sizes, default=1.0) < 0.05 else 1e-3
    whole = pld.identity(value_discretization_interval=interval)
    mu2 = sum(steps / law.noise_multiplier**2 for law, steps in sums if _is_normal(law))
    if mu2:
        whole = whole.compose(pld.from_gaussian_mechanism(1 / math.sqrt(mu2), value_discretization_interval=interval))
    for law, steps in sums:
        if not _is_normal(law):
            whole = whole.compose(_one(law, interval).self_compose(steps))
    return whole


def _is_normal(law: Law) -> bool:
    return law.mechanism == "gaussian" and law.sample_rate == 1


@lru_cache(maxsize=16)  # a ledger asks after every round, and all of a study's rounds are made of the same step
def _one(law: Law, interval: float) -> PrivacyLossDistribution:
    from dp_accounting.pld import common
    from dp_accounting.pld import privacy_loss_distribution as pld

    sigma = law.noise_multiplier
    if law.mechanism == "gaussian":
        return pld.from_gaussian_mechanism(sigma, sampling_prob=law.sample_rate, value_discretization_interval=interval)
    if law.dimension > 1:  # one patient may move many numbers: the worst mechanism with this epsilon and delta 0
        pure = common.DifferentialPrivacyParameters(1 / sigma, 0.0)
        return pld.from_privacy_parameters(pure, value_discretization_interval=interval)
    if law.mechanism == "laplace":
        return pld.from_laplace_mechanism(sigma, value_discretization_interval=interval)
    shift = round(law.sensitivity)
    return pld.from_discrete_laplace_mechanism(1 / (sigma * shift), shift, value_discretization_interval=interval)
