"""All mechanisms in one composition: what must hold of any of them, drawn at random from fixed seeds."""

import itertools
import math
import random

import numpy as np
import pytest
from scipy.signal import fftconvolve
from scipy.special import ndtr

from tasks.accounting import renyi
from tasks.accounting.budget import epsilon
from tasks.accounting.events import Event, shared_noise

DELTA = 1e-4


def drawn(rng, *, mechanism=None):
    """One event with everyday figures."""
    steps = rng.randint(1, 12)
    mechanism = mechanism or rng.choice(("gaussian", "sampled", "discrete", "laplace", "geometric"))
    if mechanism == "gaussian":
        return Event(noise_multiplier=rng.uniform(4, 30), steps=steps)
    if mechanism == "sampled":
        return Event(noise_multiplier=rng.uniform(1, 4), sample_rate=rng.choice((0.05, 0.2, 0.5)), steps=steps)
    if mechanism == "discrete":
        share, d = rng.uniform(2e5, 6e5), rng.randint(1, 10**5)
        return shared_noise(
            share_std=share, shares=rng.randint(1, 6), sensitivity=1e5, dimension=d, sampling_error=0.0, steps=steps
        )
    if mechanism == "laplace":
        return Event(mechanism="laplace", noise_multiplier=rng.uniform(8, 40), dimension=rng.choice((1, 9)), steps=steps)
    return Event(
        mechanism="geometric", noise_multiplier=rng.uniform(8, 40), sensitivity=1, dimension=rng.choice((1, 9)), steps=steps
    )


def ledgers(count, events=4):
    return [[drawn(random.Random(100 * seed + n)) for n in range(events)] for seed in range(count)]


def quieter(event, factor):
    """The same with more noise."""
    changes = {"noise_multiplier": event.noise_multiplier * factor}
    if event.own_noise_multiplier is not None:
        changes["own_noise_multiplier"] = event.own_noise_multiplier * factor
    return event.model_copy(update=changes)


@pytest.mark.parametrize("mechanism", ["gaussian", "sampled", "discrete", "laplace", "geometric"])
def test_more_noise_never_costs_more_and_more_steps_never_less(mechanism):
    for seed in range(3):
        event = drawn(random.Random(seed), mechanism=mechanism)
        costs = [epsilon([quieter(event, factor)], delta=DELTA) for factor in (1.0, 1.1, 1.7)]
        assert costs == sorted(costs, reverse=True)
        costs = [epsilon([event.model_copy(update={"steps": n})], delta=DELTA) for n in (1, 2, 9)]
        assert costs == sorted(costs)
        assert costs[0] < costs[-1]


def test_a_higher_sampling_rate_never_costs_less():
    costs = [epsilon([Event(noise_multiplier=2.0, sample_rate=q, steps=30)], delta=DELTA) for q in (0.02, 0.1, 0.3, 0.8, 1.0)]
    assert costs == sorted(costs)


@pytest.mark.parametrize("events", ledgers(6), ids=range(6))
def test_one_release_more_never_costs_less(events):
    costs = [epsilon(events[:n], delta=DELTA) for n in range(len(events) + 1)]
    assert costs[0] == 0
    assert all(after >= before - 1e-9 for before, after in itertools.pairwise(costs))


@pytest.mark.parametrize("events", ledgers(5), ids=range(5))
def test_the_order_of_releases_does_not_matter(events):
    shuffled = random.Random(0).sample(events, len(events))
    assert epsilon(shuffled, delta=DELTA) == epsilon(events, delta=DELTA)


@pytest.mark.parametrize("events", ledgers(5), ids=range(5))
def test_releases_one_by_one_cost_as_much_as_their_steps_in_one_event(events):
    apart = [event.model_copy(update={"steps": 1, "round": n}) for event in events for n in range(event.steps)]
    assert epsilon(apart, delta=DELTA) == epsilon(events, delta=DELTA)


@pytest.mark.parametrize("events", ledgers(6), ids=range(6))
def test_the_whole_costs_no_more_than_its_parts_at_their_shares_of_delta(events):
    """Basic composition: epsilons and deltas of the parts add up."""
    together = epsilon(events, delta=DELTA)
    parts = [epsilon([event], delta=DELTA / len(events)) for event in events]
    assert together <= sum(parts) + 1e-6
    assert together >= max(epsilon([event], delta=DELTA) for event in events) - 2e-3  # the grid of the distributions


@pytest.mark.parametrize("events", ledgers(10), ids=range(10))
def test_loss_distributions_and_renyi_accounting_agree(events):
    """The one is never above the other, and no more than a third below: the distance is known to be 7 to 20 %."""
    sums = {}
    for event in events:
        sums[event.law] = sums.get(event.law, 0) + event.steps
    bound = renyi.epsilon_at(DELTA, list(sums.items()))
    found = epsilon(events, delta=DELTA)
    assert 0.66 * bound <= found <= bound


def test_a_mixture_of_gaussian_and_laplace_lies_between_a_distribution_rounded_down_and_up():
    """Every pair of losses is added up by hand, on a grid, and no code is shared."""
    sigma, b, delta, width = 3.0, 2.0, 1e-3, 1e-4
    edges = np.arange(-2, 2 + width / 2, width)
    normal = np.diff(
        ndtr((sigma**2 * edges - 0.5) / sigma)
    )  # the loss of a Gaussian is normal, mean and half variance 1 / 2 s^2
    shift = 1 / b
    below = np.where(edges < -shift, 0.0, np.where(edges >= shift, 1.0, np.exp((edges - shift) / 2) / 2))
    loss = np.diff(below, prepend=0.0)[1:]  # of a Laplace mechanism: atoms at both ends, exp((x - 1/b) / 2) / 4 between
    for up in (False, True):
        together = fftconvolve(normal, loss)
        losses = 2 * edges[0] + width * (np.arange(len(together)) + (2 if up else 0))
        low, high = 0.0, 4.0
        while high - low > 1e-9:
            middle = (low + high) / 2
            over = losses > middle
            spent = float((together[over] * -np.expm1(middle - losses[over])).sum())
            low, high = (middle, high) if spent > delta else (low, middle)
        found = epsilon(
            [Event(noise_multiplier=sigma), Event(mechanism="laplace", noise_multiplier=b, dimension=1)], delta=delta
        )
        if up:
            assert found <= high + 3e-3  # the library's own grid is 1e-3
        else:
            assert found >= high
    assert found < math.inf


PUBLISHED = [
    # rate, sigma, steps, delta, epsilon at least, at most, source
    (0.01, 4.0, 10_000, 1e-5, 0.9, 1.26, "Abadi et al. 2016, section 5.2: the moments accountant gives 1.26"),
    (256 / 60000, 1.1, 14_100, 1e-5, 2.3, 2.93, "TensorFlow Privacy's MNIST tutorial: 60 epochs at 256, 1.1 gives 2.92 by RDP"),
]


@pytest.mark.parametrize(("rate", "sigma", "steps", "delta", "least", "most", "source"), PUBLISHED)
def test_published_figures_are_bounds_that_are_met(rate, sigma, steps, delta, least, most, source):
    assert least <= epsilon([Event(noise_multiplier=sigma, sample_rate=rate, steps=steps)], delta=delta) <= most, source
