"""Each mechanism alone against what is known of it in closed form, or summed up number by number."""

import math

import mpmath
import numpy as np
import pytest
from pydantic import ValidationError
from scipy.special import logsumexp

from tasks.accounting import discrete, gaussian, loss_distributions, renyi
from tasks.accounting.budget import epsilon
from tasks.accounting.events import Event, Law, shared_noise


def laplace(multiplier, **more):
    return Event(**{"mechanism": "laplace", "noise_multiplier": multiplier, "dimension": 1, **more})


def geometric(multiplier, sensitivity=1, **more):
    noise = {"mechanism": "geometric", "noise_multiplier": multiplier, "sensitivity": sensitivity, "dimension": 1}
    return Event(**{**noise, **more})


def shared(*, share_std=1e5, shares=5, sensitivity=1e5, dimension=1000, error=0.0, **more):
    return shared_noise(
        share_std=share_std, shares=shares, sensitivity=sensitivity, dimension=dimension, sampling_error=error, **more
    )


# -- one release with noise of exponential tails: known by hand ----------------------------------------------------------


@pytest.mark.parametrize("multiplier", [0.2, 0.5, 1.0, 3.0, 20.0])
@pytest.mark.parametrize("delta", [1e-3, 1e-6])
def test_one_laplace_release_costs_what_its_closed_form_says_and_never_less(multiplier, delta):
    pure = 1 / multiplier
    exact = max(0.0, pure + 2 * math.log1p(-delta))  # delta(e) = 1 - exp((e - 1/b) / 2)
    found = epsilon([laplace(multiplier)], delta=delta)
    assert exact - 1e-12 <= found <= exact + 1e-3


@pytest.mark.parametrize("multiplier", [0.2, 0.5, 1.0, 3.0, 20.0])
@pytest.mark.parametrize("dimension", [1, 64])
def test_a_histogram_with_geometric_noise_costs_what_its_closed_form_says_and_never_less(multiplier, dimension):
    """A patient is in one bin, and only that one's noise tells: all k <= 0 have the whole loss, at odds of 1 to exp(-e)."""
    delta = 1e-3
    pure = 1 / multiplier
    exact = max(0.0, pure + math.log1p(-delta * (1 + math.exp(-pure))))
    found = epsilon([geometric(multiplier, dimension=dimension)], delta=delta)
    assert exact - 1e-12 <= found <= exact + 1e-3


@pytest.mark.parametrize(("decay", "shift"), [(0.5, 1), (0.5, 4), (0.1, 9), (2.0, 1)])
@pytest.mark.parametrize("order", [1.5, 2.0, 7.0, 33.0])
def test_the_geometric_divergence_is_the_sum_over_all_whole_numbers(decay, shift, order):
    k = np.arange(-2000, 2001)
    scale = -logsumexp(-decay * np.abs(k))
    by_hand = (scale + logsumexp(-order * decay * np.abs(k) - (1 - order) * decay * np.abs(k - shift))) / (order - 1)
    law = Law("geometric", 1 / (decay * shift), sensitivity=shift)
    assert renyi.divergences(law, np.array([order]))[0] == pytest.approx(by_hand, rel=1e-6)


@pytest.mark.parametrize("order", [1.3, 2.0, 8.0])
@pytest.mark.parametrize("multiplier", [0.5, 2.0])
def test_the_laplace_divergence_is_the_integral(order, multiplier):
    shift = 1 / multiplier
    integral = mpmath.quad(
        lambda x: mpmath.exp(-order * abs(x) - (1 - order) * abs(x - shift)) / 2, [-mpmath.inf, 0, shift, mpmath.inf]
    )
    found = renyi.divergences(Law("laplace", multiplier), np.array([order]))[0]
    assert found == pytest.approx(float(mpmath.log(integral)) / (order - 1), rel=1e-8)


@pytest.mark.parametrize("law", [Law("laplace", 0.7), Law("geometric", 0.7, sensitivity=3.0)])
def test_a_shift_in_several_numbers_is_no_worse_than_their_sum_in_one(law):
    """What the bound on the L1 norm relies on: at every order the divergences of the parts add up to less than the whole's."""
    orders = np.array([1.1, 2.0, 5.0, 40.0])
    for share in (1 / 3, 2 / 3):
        size = law.sensitivity
        parts = [law._replace(noise_multiplier=law.noise_multiplier / s, sensitivity=s * size) for s in (share, 1 - share)]
        assert (sum(renyi.divergences(part, orders) for part in parts) <= renyi.divergences(law, orders) + 1e-12).all()


# -- whole numbers of secure aggregation ---------------------------------------------------------------------------------


def test_shared_noise_on_a_fine_grid_costs_what_the_gaussian_costs_and_not_less():
    event = shared(share_std=3e5)
    assert event.noise_multiplier == pytest.approx(3 * math.sqrt(5))
    exact = epsilon([Event(noise_multiplier=event.noise_multiplier, steps=20)], delta=1e-3)
    found = epsilon([event.model_copy(update={"steps": 20})], delta=1e-3)
    assert exact <= found <= exact * (1 + 1e-6)
    assert found < renyi.epsilon_at(1e-3, [(event.law, 20)])  # concentrated privacy (Kairouz, Liu and Steinke) says more


def test_the_concentrated_bound_is_that_of_the_paper():
    """Proposition 14 worked out with the figures put in by hand: 3 shares of standard deviation 1.2 steps, 10 numbers."""
    law = shared(share_std=1.2, shares=3, sensitivity=2.0, dimension=10).law
    far = 10 * (math.exp(-(math.pi**2) * 1.44) + math.exp(-4 / 3 * math.pi**2 * 1.44))
    assert discrete.tau(law) == pytest.approx(far)
    size2 = 4 / (3 * 1.44)
    first = 3 * size2 + 10 * far
    second = 3 * (size2 + 2 * math.sqrt(size2) * math.sqrt(10) * far + 10 * far**2)
    third = 3 * (math.sqrt(size2) + far * math.sqrt(10)) ** 2
    assert discrete.renyi_divergence(law, 6.0) == pytest.approx(min(first, second, third))


def test_one_discrete_gaussian_is_never_worse_than_its_concentrated_bound():
    """Canonne, Kamath and Steinke 2020, Theorem 14, against the sum over whole numbers."""
    sigma, shift, order = 1.5, 3, 4.0
    k = np.arange(-200, 201)
    scale = -logsumexp(-(k**2) / (2 * sigma**2))
    exact = (scale + logsumexp(-(order * k**2 + (1 - order) * (k - shift) ** 2) / (2 * sigma**2))) / (order - 1)
    law = shared(share_std=sigma, shares=1, sensitivity=shift, dimension=1).law
    assert exact <= discrete.renyi_divergence(law, order) * (1 + 1e-12)
    assert discrete.renyi_divergence(law, order) == pytest.approx(order * shift**2 / (2 * sigma**2))


def test_the_sum_of_shares_is_as_near_to_a_rounded_gaussian_as_is_said():
    """Draw a continuous number, round it at random, and compare with the sum of three discrete ones, outcome by outcome."""
    share, shares, rounding = 1.0, 3, 1.0  # variances; coarse, so that the distance can be seen at all
    k = np.arange(-40, 41)
    weights = np.exp(-(k**2) / (2 * share))
    one = weights / weights.sum()
    summed = np.convolve(np.convolve(one, one, "same"), one, "same")
    x = np.linspace(-40, 40, 80001)
    density = np.exp(-(x**2) / (2 * (shares * share - rounding)))
    density /= density.sum()
    kernel = np.exp(-((k[:, None] - x[None, :]) ** 2) / (2 * rounding))
    rounded = (kernel / kernel.sum(axis=0)) @ density
    middle = np.abs(k) <= 8
    apart = np.abs(np.log(summed[middle] / rounded[middle])).max()
    law = shared(share_std=1.0, shares=shares, sensitivity=1.0, dimension=1).law
    assert 1e-9 < apart <= discrete.tau(law) / 2 + 5 * math.exp(-2 * math.pi**2 * rounding)


def test_a_grid_that_is_too_coarse_is_left_to_the_concentrated_bound():
    coarse = shared(share_std=2.0, sensitivity=1.0)
    assert discrete.as_gaussian(coarse.law) is None
    assert epsilon([coarse], delta=1e-3) == pytest.approx(renyi.epsilon_at(1e-3, [(coarse.law, 1)]))
    assert epsilon([shared(share_std=0.4, sensitivity=0.1)], delta=1e-3) == math.inf  # below the range of the theorem


def test_what_one_patient_changes_grows_by_rounding_and_costs_more():
    costs = [
        epsilon([shared(share_std=3e3, sensitivity=1e3 + math.sqrt(d), dimension=d)], delta=1e-3) for d in (1, 10**4, 10**6)
    ]
    assert costs[0] < costs[1] < costs[2]


def test_if_secure_aggregation_fails_a_site_stands_where_its_own_share_leaves_it():
    event = shared(share_std=2e5, shares=5, error=5e-12)
    assert event.own_noise_multiplier == 2.0
    assert (event.alone.noise_multiplier, event.alone.shares) == (2.0, 1)
    alone = epsilon([event.alone], delta=1e-3)
    assert alone == pytest.approx(epsilon([Event(noise_multiplier=2.0)], delta=1e-3), rel=1e-5)
    assert alone > epsilon([event], delta=1e-3)
    plain = Event(noise_multiplier=2.0)
    assert plain.alone is plain


def test_noise_that_is_drawn_a_little_wrongly_is_added_to_delta():
    exact = epsilon([shared()], delta=1e-3)
    error = 1e-5
    found = epsilon([shared(error=error)], delta=1e-3)
    assert found > exact
    left = 1e-3 - (1 + math.exp(found)) * error  # what is left of delta for the noise as it should be
    assert gaussian.delta_at(found, mu=1 / math.sqrt(5)) <= left * (1 + 1e-6)
    assert epsilon([shared(error=1e-3)], delta=1e-3) == math.inf


# -- bounds of one kind by another ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("pure", [0.01, 0.3, 1.0, 4.0])
def test_the_gaussian_that_covers_a_pure_mechanism_covers_randomised_response_everywhere(pure):
    mu = gaussian.mu_of_pure(pure)
    for e in np.linspace(0, pure, 50):
        response = (math.exp(pure) - math.exp(e)) / (1 + math.exp(pure))
        assert response <= gaussian.delta_at(float(e), mu=mu) + 1e-12
    assert response == pytest.approx(0)
    at_zero = (math.exp(pure) - 1) / (1 + math.exp(pure))
    assert gaussian.delta_at(0.0, mu=mu) == pytest.approx(at_zero)  # a smaller one wouldn't


@pytest.mark.parametrize(("sigma", "rate", "steps"), [(2.0, 0.1, 200), (1.0, 0.05, 50)])
def test_the_gaussian_that_covers_sampled_sums_covers_them_everywhere(sigma, rate, steps):
    from dp_accounting.pld import privacy_loss_distribution as pld

    mu = loss_distributions.mu_like(Law("gaussian", sigma, rate), steps, apart=1e-7)
    composed = pld.from_gaussian_mechanism(sigma, sampling_prob=rate, value_discretization_interval=1e-3).self_compose(steps)
    points = np.random.default_rng(0).uniform(0, 12, 400)
    deltas = np.asarray(composed.get_delta_for_epsilon(np.sort(points)))
    assert (deltas <= gaussian.deltas_at(np.sort(points), mu=mu) + 1e-7).all()
    assert mu < math.sqrt(steps) / sigma
    smaller = gaussian.deltas_at(np.sort(points), mu=0.99 * mu) + 1e-7
    assert (deltas > smaller).any()  # not much more than is needed


# -- events --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"mechanism": "laplace", "noise_multiplier": 1.0}, "laplace noise needs dimension"),
        ({"mechanism": "geometric", "noise_multiplier": 1.0, "dimension": 2}, "geometric noise needs sensitivity"),
        ({"noise_multiplier": 1.0, "shares": 2}, "gaussian noise has no shares"),
        ({"mechanism": "laplace", "noise_multiplier": 0.0, "dimension": 1}, "written as gaussian noise"),
        ({"mechanism": "laplace", "noise_multiplier": 1.0, "dimension": 1, "sample_rate": 0.5}, "not at a sample_rate of 0.5"),
        (
            {"mechanism": "geometric", "noise_multiplier": 1.0, "dimension": 1, "sensitivity": 1.5},
            "not by a sensitivity of 1.5",
        ),
        ({"mechanism": "exponential", "noise_multiplier": 1.0}, "discrete_gaussian"),
    ],
)
def test_an_event_whose_cost_could_not_be_told_is_refused(bad, words):
    with pytest.raises(ValidationError, match=words):
        Event(**bad)


def test_an_event_that_claims_more_noise_than_its_shares_have_is_refused():
    honest = shared(share_std=2e5, shares=4).model_dump()
    with pytest.raises(ValidationError, match="4 shares of multiplier 2 have 4 together, not 5"):
        Event(**{**honest, "noise_multiplier": 5.0})
