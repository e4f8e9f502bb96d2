"""From events to epsilon, and from epsilon to the noise a study needs.

Adjacency is add or remove one patient. Sums over all patients with Gaussian noise compose exactly into one. Everything else is
composed numerically as privacy loss distributions, and bounded by Renyi accounting; the smaller of the two counts, and the
latter alone where the distributions would be too large. What stands here is right for releases whose parameters were fixed
beforehand; whether one more may follow when they weren't is what fl_client/privacy/filters.py decides.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

from tasks.accounting import gaussian, renyi
from tasks.accounting.discrete import as_gaussian
from tasks.accounting.events import Event, Law

Sums = tuple[tuple[Law, int], ...]
"""Laws and how often each, sorted, each law once."""

CLOSE = 1e-3
"""Noise that is found is larger than needed by no more than this share of itself."""
_LARGEST_EPSILON = 200.0  # above, a loss distribution takes seconds to say more exactly what no hospital would allow
_MOST_STEPS = 1_000_000  # above, one step's loss is smaller than the grid of the distributions


def epsilon(events: Iterable[Event], *, delta: float) -> float:
    """The epsilon that these releases have together at `delta`, for one patient who is in all of them.

    An upper bound: exact for Gaussian noise without sampling, within about 1 % else. 0 for no events; infinite as soon as one
    release had no noise.

    >>> round(epsilon([Event(noise_multiplier=4, steps=50)], delta=1e-5), 2)
    8.6
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta must lie between 0 and 1, not {delta}")
    steps: Counter[Law] = Counter()
    error = 0.0
    for event in events:
        if event.noise_multiplier == 0:
            return math.inf
        steps[event.law] += event.steps
        error += event.sampling_error or 0.0
    return of_sums(tuple(sorted(steps.items())), delta, error)


def of_sums(sums: Sums, delta: float, error: float = 0.0) -> float:
    """`epsilon` of laws and how often each, whose noise is `error` away from them in total variation.

    Noise that is drawn a little wrongly, in either of two neighbouring worlds, adds (1 + exp(epsilon)) * error to delta.
    """
    found = _epsilon(sums, delta)
    if error == 0:
        return found
    for _ in range(100):
        left = delta - (1 + math.exp(min(found * (1 + 1e-9), 700))) * error
        if left <= 0:
            return math.inf
        again = _epsilon(sums, left)
        if again <= found * (1 + 1e-9):
            return found * (1 + 1e-9)
        found = again
    return math.inf


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

    def renyi_cost(multiplier: float) -> float:
        sums = Counter({Law("gaussian", multiplier, sample_rate): steps})
        for event in alongside:
            sums[event.law] += event.steps
        return renyi.epsilon_at(delta, list(sums.items()))

    def is_enough(multiplier: float) -> bool:
        return cost(multiplier) <= target

    words = f"no noise is enough for epsilon {target:g} at delta {delta:g} over {steps} steps"
    if sample_rate == 1:
        return least(is_enough, low=0.0, high=1.0, words=words)
    # Renyi accounting takes milliseconds, says a little too much and so where to look
    high = least(lambda multiplier: renyi_cost(multiplier) <= target, low=0.0, high=1.0, words=words)
    low = 0.9 * high
    while is_enough(low):
        low, high = 0.9 * low, low
    return least(is_enough, low=low, high=high, words=words)


def least(is_enough: Callable[[float], bool], *, low: float, high: float, words: str, faster: float = 2.0) -> float:
    """The least noise that is enough, to `CLOSE` of itself; `low` isn't, unless `high` is the same.

    `high` grows by the factor `faster` until it is enough. Raises `ValueError` with `words` where nothing is.
    """
    while not is_enough(high):
        low, high = high, faster * high
        if high > 1e8:
            raise ValueError(words)
    while high - low > CLOSE * high:
        middle = (low + high) / 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high


def _total(events: Sequence[Event], delta: float) -> float:
    return epsilon(events, delta=delta)  # a name of its own: `calibrate` has an argument called epsilon


@lru_cache(maxsize=4096)
def _epsilon(sums: Sums, delta: float) -> float:
    mu2, apart, others = 0.0, 0.0, []
    for law, steps in sums:
        rounded = as_gaussian(law) if law.mechanism == "discrete_gaussian" else None
        if rounded is not None:
            mu2, apart = mu2 + steps * rounded.mu**2, apart + steps * rounded.apart
        elif law.mechanism == "gaussian" and law.sample_rate == 1:
            mu2 += steps / law.noise_multiplier**2
        else:
            others.append((law, steps))
    # what is closer than exp(apart) in both worlds costs twice that, at a delta smaller by as much
    near, pad = delta * math.exp(-apart), 2 * apart
    if not others:
        exact = gaussian.epsilon_at(near, mu=math.sqrt(mu2)) + pad
        return exact if apart == 0 else min(exact, renyi.epsilon_at(delta, sums))
    bounds = [renyi.epsilon_at(delta, sums)]
    if all(law.mechanism == "gaussian" for law, _ in others):
        # sampling only ever helps, so the same sums over everybody are an upper bound
        unsampled = mu2 + sum(steps / law.noise_multiplier**2 for law, steps in others)
        bounds.append(gaussian.epsilon_at(near, mu=math.sqrt(unsampled)) + pad)
    coarse = any(law.mechanism == "discrete_gaussian" for law, _ in others)
    if not coarse and min(bounds) <= _LARGEST_EPSILON and sum(steps for _, steps in sums) <= _MOST_STEPS:
        from tasks.accounting import loss_distributions  # here: a second to import, not needed for Gaussian noise alone

        normal = [(Law("gaussian", 1 / math.sqrt(mu2)), 1)] if mu2 else []
        bounds.append(loss_distributions.epsilon_at(near, (*normal, *others)) + pad)
    return min(bounds)
