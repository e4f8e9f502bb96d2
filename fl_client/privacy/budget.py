"""From events to epsilon, and from epsilon to the noise a study needs.

Adjacency is add or remove one patient. Sums over all patients are plain Gaussian mechanisms and compose exactly into one.
Sums over sampled patients are composed numerically as privacy loss distributions, rounded towards more loss (dp-accounting;
Koskela et al. 2020, Doroshenko et al. 2022); where those would be too large, Renyi accounting alone is asked.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from scipy.special import log_ndtr, ndtr

from fl_client.privacy.events import Event

if TYPE_CHECKING:
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

Sums = tuple[tuple[float, float, int], ...]
"""(noise_multiplier, sample_rate, steps), sorted, each pair once: all that epsilon depends on."""

_LARGEST_EPSILON = 200.0  # above, a loss distribution takes seconds to say more exactly what no hospital would allow
_MOST_STEPS = 1_000_000  # above, one step's loss is smaller than the grid of the distributions
_RENYI_ORDERS = (*range(2, 33), *range(36, 65, 4), 80, 96, 128, 192, 256)  # integers: the closed form always converges


def epsilon(events: Iterable[Event], *, delta: float) -> float:
    """The epsilon that these releases have together at `delta`, for one patient who is in all of them.

    An upper bound: exact without sampling, within about 1 % with it. 0 for no events; infinite as soon as one release had
    no noise.

    >>> round(epsilon([Event(noise_multiplier=4, steps=50)], delta=1e-5), 2)
    8.6
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta must lie between 0 and 1, not {delta}")
    steps: Counter[tuple[float, float]] = Counter()
    for event in events:
        if event.noise_multiplier == 0:
            return math.inf
        steps[event.noise_multiplier, event.sample_rate] += event.steps
    return _epsilon(tuple(sorted((sigma, rate, count) for (sigma, rate), count in steps.items())), delta)


def calibrate(*, epsilon: float, delta: float, sample_rate: float, steps: int, alongside: Sequence[Event] = ()) -> float:
    """The smallest noise multiplier (to 1e-3 of itself) with which `steps` noisy sums cost at most `epsilon` at `delta`.

    `alongside` are the study's other releases (validation scores, statistics), paid from the same epsilon. The returned
    multiplier never exceeds the target. Raises `ValueError` if `alongside` alone does, or epsilon isn't positive.
    """
    if not epsilon > 0 or math.isinf(epsilon):
        raise ValueError(f"epsilon must be a positive finite number, not {epsilon}")
    others = tuple(alongside)
    if others and _total(others, delta) >= epsilon:
        cost = f"{_total(others, delta):.3g}"
        raise ValueError(f"the other releases alone cost epsilon {cost}, which leaves nothing of {epsilon:g} (delta {delta:g})")
    return _calibrate(epsilon, delta, sample_rate, steps, others)


@lru_cache(maxsize=256)
def _calibrate(target: float, delta: float, sample_rate: float, steps: int, alongside: tuple[Event, ...]) -> float:
    def cost(multiplier: float) -> float:
        return _total((*alongside, Event(noise_multiplier=multiplier, sample_rate=sample_rate, steps=steps)), delta)

    low, high = 0.0, 1.0
    while cost(high) > target:
        low, high = high, 2 * high
        if high > 1e8:
            raise ValueError(f"no noise is enough for epsilon {target:g} at delta {delta:g} over {steps} steps")
    while high - low > 1e-3 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if cost(middle) > target else (low, middle)
    return high


def _total(events: Sequence[Event], delta: float) -> float:
    return epsilon(events, delta=delta)  # a name of its own: `calibrate` has an argument called epsilon


@lru_cache(maxsize=4096)
def _epsilon(sums: Sums, delta: float) -> float:
    # sampling only ever helps, so the same sums over everybody are an upper bound, exact where nothing was sampled
    unsampled = _gaussian_epsilon(math.sqrt(sum(count / sigma**2 for sigma, _, count in sums)), delta)
    if all(rate == 1 for _, rate, _ in sums):
        return unsampled
    renyi = _renyi_epsilon(sums, delta)
    if min(unsampled, renyi) > _LARGEST_EPSILON or sum(count for _, _, count in sums) > _MOST_STEPS:
        return min(unsampled, renyi)
    return min(unsampled, renyi, _loss_distribution_epsilon(sums, delta))


def _gaussian_epsilon(mu: float, delta: float) -> float:
    """Exact epsilon of a Gaussian mechanism with sensitivity/noise ratio `mu` (Balle and Wang 2018, Theorem 8)."""

    def delta_at(eps: float) -> float:
        return float(ndtr(mu / 2 - eps / mu) - math.exp(min(eps + float(log_ndtr(-mu / 2 - eps / mu)), 0.0)))

    if mu == 0 or delta_at(0.0) <= delta:
        return 0.0
    low, high = 0.0, 1.0
    while delta_at(high) > delta:
        low, high = high, 2 * high
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if delta_at(middle) > delta else (low, middle)
    return high


def _loss_distribution_epsilon(sums: Sums, delta: float) -> float:
    from dp_accounting.pld import privacy_loss_distribution as pld  # here: a second to import, needed for sampling only

    # losses of a step are of the size rate / sigma; where all are small a finer grid keeps its rounding negligible
    interval = 1e-4 if max(rate / sigma for sigma, rate, _ in sums) < 0.05 else 1e-3
    composed = pld.identity(value_discretization_interval=interval)
    for sigma, rate, count in sums:
        composed = composed.compose(_one_step(sigma, rate, interval).self_compose(count))
    return max(0.0, float(composed.get_epsilon_for_delta(delta)))


@lru_cache(maxsize=8)  # a ledger asks after every round, and all of a study's rounds are made of the same step
def _one_step(sigma: float, rate: float, interval: float) -> PrivacyLossDistribution:
    from dp_accounting.pld import privacy_loss_distribution as pld

    return pld.from_gaussian_mechanism(sigma, sampling_prob=rate, value_discretization_interval=interval)


def _renyi_epsilon(sums: Sums, delta: float) -> float:
    import dp_accounting  # here: a second to import, needed for sampling only
    from dp_accounting import rdp

    accountant = rdp.RdpAccountant(orders=_RENYI_ORDERS)
    for sigma, rate, count in sums:
        accountant.compose(dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(sigma)), count)
    return float(accountant.get_epsilon(delta))
