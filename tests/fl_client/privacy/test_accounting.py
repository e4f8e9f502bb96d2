"""Three computations that share no code with the accountant: the exact Gaussian, Renyi orders by hand, and a loss
distribution that is rounded down and rounded up, so that the truth lies between."""

import math

import mpmath
import numpy as np
import pytest
from scipy.special import log_ndtr, logsumexp, ndtr

from fl_client.privacy import Event, calibrate, epsilon
from tasks.accounting import renyi as renyi_accounting
from tasks.accounting.events import Law


def sums(sigma, rate, steps):
    return [Event(noise_multiplier=sigma, sample_rate=rate, steps=steps)]


# -- sums over everybody: the exact curve of Balle and Wang, in 50 digits ---------------------------------------------


def exact_delta(mu, eps):
    with mpmath.workdps(50):
        mu, eps = mpmath.mpf(mu), mpmath.mpf(eps)
        return mpmath.ncdf(mu / 2 - eps / mu) - mpmath.exp(eps) * mpmath.ncdf(-mu / 2 - eps / mu)


@pytest.mark.parametrize("sigma", [0.05, 0.5, 1.0, 4.0, 60.0])
@pytest.mark.parametrize("steps", [1, 50, 2000])
@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-9])
def test_unsampled_sums_cost_what_the_exact_curve_says(sigma, steps, delta):
    eps = epsilon(sums(sigma, 1.0, steps), delta=delta)
    mu = mpmath.sqrt(steps) / mpmath.mpf(sigma)
    assert exact_delta(mu, eps * (1 + 1e-7) + 1e-9) <= delta
    assert eps == 0 or exact_delta(mu, eps * (1 - 1e-7)) >= delta


def test_unlike_unsampled_sums_compose_into_one_gaussian():
    together = [Event(noise_multiplier=3.0, steps=9), Event(noise_multiplier=4.0, steps=16, kind="scores")]  # 1 + 1
    assert epsilon(together, delta=1e-5) == pytest.approx(epsilon(sums(1.0, 1.0, 2), delta=1e-5), rel=1e-9)


# -- sums over sampled patients ---------------------------------------------------------------------------------------


def renyi_by_hand(sigma, rate, steps, delta):
    """Integer orders, Mironov et al. 2019 equation 6; conversion by Canonne et al. 2020, proposition 12."""
    best = math.inf
    for order in range(2, 200):
        k = np.arange(order + 1)
        binomial = np.array([math.lgamma(order + 1) - math.lgamma(i + 1) - math.lgamma(order - i + 1) for i in k])
        terms = binomial + k * math.log(rate) + (order - k) * math.log1p(-rate) + (k * k - k) / (2 * sigma**2)
        spent = steps * logsumexp(terms) / (order - 1)
        best = min(best, spent + math.log1p(-1 / order) - math.log(delta * order) / (order - 1))
    return best


def loss_distribution_by_hand(sigma, rate, steps, delta, *, up, width=3e-4, size=1 << 17):
    """Epsilon of the composed loss distribution on a grid, losses rounded up (too much) or down (too little)."""
    edges = (np.arange(size + 1) - size // 2) * width  # of the privacy loss

    def cells(adding):
        # the loss of one sum with the patient (removing) is log(1 - q + q exp((2x - 1) / 2 s^2)), rising in x
        level = -edges if adding else edges
        ratio = np.maximum((np.expm1(level) + rate) / rate, 1e-300)
        x = sigma**2 * np.log(ratio) + 0.5
        without, with_ = ndtr(x / sigma), ndtr((x - 1) / sigma)
        below = without if adding else (1 - rate) * without + rate * with_
        return -np.diff(below) if adding else np.diff(below)

    worst = 0.0
    for adding in (False, True):
        mass = np.roll(cells(adding), 1 if up else 0)
        # the cell that stands for loss 0 goes to index 0, so that powers of the transform add losses
        spectrum = np.fft.rfft(np.roll(mass, -(size // 2)))
        composed = np.roll(np.fft.irfft(spectrum**steps, size), size // 2).clip(0)
        losses = edges[:-1]

        def spent(eps, composed=composed, losses=losses):
            over = losses > eps
            return float((composed[over] * -np.expm1(eps - losses[over])).sum())

        low, high = 0.0, float(losses[-1])
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if spent(middle) > delta else (low, middle)
        worst = max(worst, high)
    return worst


CASES = [(1.0, 0.1, 100), (2.0, 0.1, 300), (8.0, 0.5, 200), (4.0, 0.25, 60), (1.0, 0.01, 500)]


@pytest.mark.parametrize(("sigma", "rate", "steps"), CASES)
def test_sampled_sums_lie_between_distributions_rounded_down_and_up(sigma, rate, steps):
    eps = epsilon(sums(sigma, rate, steps), delta=1e-5)
    too_little = loss_distribution_by_hand(sigma, rate, steps, 1e-5, up=False)
    too_much = loss_distribution_by_hand(sigma, rate, steps, 1e-5, up=True)
    assert too_little <= eps <= too_much
    assert too_much - too_little < 2 * steps * 3e-4  # the test has teeth: the two are as close as their rounding


@pytest.mark.parametrize(("sigma", "rate"), [(1.0, 0.1), (3.0, 0.5), (0.7, 0.02)])
def test_one_sampled_sum_has_its_closed_form(sigma, rate):
    delta = 1e-4
    eps = epsilon(sums(sigma, rate, 1), delta=delta)

    def delta_at(e):  # removing a patient: P = mixture, Q = N(0, s^2); the loss exceeds e above the threshold x
        x = sigma**2 * math.log((math.expm1(e) + rate) / rate) + 0.5
        tail, tail_with = math.exp(log_ndtr(-x / sigma)), math.exp(log_ndtr(-(x - 1) / sigma))
        return (1 - rate) * tail + rate * tail_with - math.exp(e) * tail

    assert delta_at(eps) <= delta * (1 + 1e-6)
    assert delta_at(eps * 0.99 - 1e-3) > delta


# shared figures of dp-accounting's own accountants, measured apart: delta 1e-5, (sigma, rate, steps, renyi, distribution)
TABLE = [
    (1, 0.1, 100, 7.90, 7.05),
    (1, 0.1, 1000, 27.16, 25.21),
    (2, 0.1, 1000, 8.95, 8.28),
    (4, 0.1, 1000, 3.74, 3.44),
    (1, 0.01, 1000, 2.10, 1.83),
    (8, 0.5, 200, 4.16, 3.84),
    (4, 1, 50, 9.24, 8.60),
]


@pytest.mark.parametrize(("sigma", "rate", "steps", "renyi", "distribution"), TABLE)
def test_the_table_of_known_values_is_met(sigma, rate, steps, renyi, distribution):
    assert epsilon(sums(sigma, rate, steps), delta=1e-5) == pytest.approx(distribution, abs=0.011)
    if rate < 1:
        # the table's orders include fractions, ours are integers: up to 2 % more
        assert renyi - 0.011 <= renyi_by_hand(sigma, rate, steps, 1e-5) <= 1.02 * renyi
        assert renyi_accounting.epsilon_at(1e-5, [(Law("gaussian", sigma, rate), steps)]) == pytest.approx(
            renyi_by_hand(sigma, rate, steps, 1e-5), rel=0.01
        )


@pytest.mark.parametrize(("sigma", "rate", "steps"), CASES)
def test_it_is_tighter_than_renyi_by_hand_and_not_by_much(sigma, rate, steps):
    assert 0.75 < epsilon(sums(sigma, rate, steps), delta=1e-5) / renyi_by_hand(sigma, rate, steps, 1e-5) < 1


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(("sigma", "rate", "steps"), [(1.0, 0.1, 100), (4.0, 0.25, 60)])
def test_opacus_accountants_agree(sigma, rate, steps):
    from opacus.accountants import PRVAccountant, RDPAccountant

    eps = epsilon(sums(sigma, rate, steps), delta=1e-5)
    renyi, numeric = RDPAccountant(), PRVAccountant()
    renyi.history = numeric.history = [(sigma, rate, steps)]
    assert renyi.get_epsilon(delta=1e-5) == pytest.approx(renyi_by_hand(sigma, rate, steps, 1e-5), rel=0.01)
    assert eps <= renyi.get_epsilon(delta=1e-5)
    assert numeric.get_epsilon(delta=1e-5) == pytest.approx(eps, rel=0.01)


def test_three_tasks_on_the_same_patients_cost_less_together_than_their_epsilons_added():
    tasks = [(4.0, 0.25, 200), (6.0, 0.5, 100), (2.0, 0.1, 500)]
    events = [Event(noise_multiplier=s, sample_rate=q, steps=t) for s, q, t in tasks]
    together = epsilon(events, delta=1e-3)
    assert together < 6.97  # Renyi accounting of the three, measured apart
    assert together < sum(epsilon([event], delta=1e-3) for event in events) < 10.64
    assert together > max(epsilon([event], delta=1e-3) for event in events)


def test_order_and_grouping_of_events_change_nothing():
    events = [Event(noise_multiplier=2.0, sample_rate=0.2, round=r) for r in range(10)] + sums(5.0, 1.0, 3)
    grouped = sums(5.0, 1.0, 3) + sums(2.0, 0.2, 10)
    assert epsilon(events, delta=1e-3) == epsilon(events[::-1], delta=1e-3) == epsilon(grouped, delta=1e-3)


def test_sampling_never_costs_and_a_rate_near_one_costs_as_much_as_one():
    whole = epsilon(sums(3.0, 1.0, 40), delta=1e-3)
    rates = [epsilon(sums(3.0, q, 40), delta=1e-3) for q in (0.05, 0.2, 0.6, 0.999)]
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(whole, rel=0.01)
    assert rates[-1] <= whole


def test_nothing_released_costs_nothing_and_no_noise_costs_everything():
    assert epsilon([], delta=1e-5) == 0.0
    assert epsilon([*sums(1.0, 1.0, 1), Event(noise_multiplier=0.0)], delta=1e-5) == math.inf


@pytest.mark.parametrize(("sigma", "rate", "steps"), [(0.01, 0.5, 10**6), (1e4, 0.1, 10**9), (1e-3, 1.0, 1)])
def test_absurd_events_are_priced_too(sigma, rate, steps):
    assert 0 < epsilon(sums(sigma, rate, steps), delta=1e-5) < math.inf


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan])
def test_a_delta_that_is_no_probability_is_refused(delta):
    with pytest.raises(ValueError, match="delta must lie between 0 and 1"):
        epsilon([], delta=delta)


# -- calibration ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("target", "rate", "steps"), [(8.0, 1.0, 60), (1.0, 1.0, 100), (3.0, 0.25, 100), (0.2, 1.0, 1)])
def test_the_calibrated_noise_keeps_the_target_and_a_little_less_would_not(target, rate, steps):
    sigma = calibrate(epsilon=target, delta=1e-3, sample_rate=rate, steps=steps)
    assert epsilon(sums(sigma, rate, steps), delta=1e-3) <= target
    assert epsilon(sums(sigma * 0.998, rate, steps), delta=1e-3) > target


def test_rounds_spent_one_by_one_end_where_calibration_said():
    sigma = calibrate(epsilon=8.0, delta=1e-3, sample_rate=1.0, steps=60)
    one_by_one = [Event(noise_multiplier=sigma, steps=3, round=r) for r in range(20)]
    assert epsilon(one_by_one, delta=1e-3) == epsilon(sums(sigma, 1.0, 60), delta=1e-3) <= 8.0


def test_scores_released_alongside_are_paid_from_the_same_epsilon():
    scores = [Event(noise_multiplier=10.0, steps=20, kind="scores")]
    sigma = calibrate(epsilon=3.0, delta=1e-3, sample_rate=1.0, steps=20, alongside=scores)
    assert sigma > calibrate(epsilon=3.0, delta=1e-3, sample_rate=1.0, steps=20)
    assert 2.99 < epsilon([*scores, *sums(sigma, 1.0, 20)], delta=1e-3) <= 3.0


def test_other_releases_that_leave_nothing_are_refused_in_words():
    with pytest.raises(ValueError, match=r"the other releases alone cost epsilon .* leaves nothing of 1"):
        calibrate(epsilon=1.0, delta=1e-3, sample_rate=1.0, steps=1, alongside=sums(0.5, 1.0, 1))


@pytest.mark.parametrize("target", [0.0, -1.0, math.inf])
def test_a_target_that_is_no_promise_is_refused(target):
    with pytest.raises(ValueError, match="epsilon must be a positive finite number"):
        calibrate(epsilon=target, delta=1e-3, sample_rate=1.0, steps=1)


@pytest.mark.parametrize(
    "bad", [{"noise_multiplier": -1}, {"noise_multiplier": 1, "sample_rate": 0}, {"noise_multiplier": 1, "steps": 0}]
)
def test_events_that_can_not_have_happened_are_refused(bad):
    with pytest.raises(ValueError, match=r"greater than"):
        Event(**bad)
