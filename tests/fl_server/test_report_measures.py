"""The clinician's report's figures, by hand and against SciPy."""

from math import exp, isnan, sqrt

import numpy as np
import pytest
import scipy.stats

from fl_server.report import measures
from fl_server.report.statistics import group
from fl_server.report.words import share


def test_rank_correlation_is_spearmans():
    rng = np.random.default_rng(4)
    first = rng.normal(size=40)
    second = first + rng.normal(size=40)
    ours = measures.rank_correlation(first.tolist(), second.tolist())
    assert ours.value == pytest.approx(scipy.stats.spearmanr(first, second).statistic)
    assert ours.low < ours.value < ours.high
    assert measures.rank_correlation(first.tolist(), second.tolist()) == ours


def test_ties_share_a_rank():
    assert measures.rank_correlation([1, 1, 2, 3], [1, 2, 3, 4]).value == pytest.approx(
        scipy.stats.spearmanr([1, 1, 2, 3], [1, 2, 3, 4]).statistic
    )


def test_there_is_no_correlation_of_two_patients_or_of_a_constant():
    assert isnan(measures.rank_correlation([1, 2], [2, 1]).value)
    assert isnan(measures.rank_correlation([1, 2, 3], [5, 5, 5]).value)
    assert isnan(measures.rank_correlation([1, 2, float("nan")], [2, 1, 3]).value)


def test_below_ten_patients_the_correlation_has_no_interval():
    assert isnan(measures.rank_correlation([1, 2, 3, 4], [1, 2, 4, 3]).low)


def test_looking_at_the_tenth_with_the_most_doubt():
    doubt = [i / 20 for i in range(20)]
    error = [0.1] * 20
    error[19], error[3] = 0.9, 0.8  # the two worst; doubt knows of one of them
    found = measures.look_first(doubt, error)
    assert (found.patients, found.looked, found.caught) == (20, 2, 1)
    assert found.expected == pytest.approx(2 * 2 / 20)
    assert found.error_looked == pytest.approx((0.9 + 0.1) / 2)
    assert found.error_rest == pytest.approx((0.8 + 17 * 0.1) / 18)
    assert measures.look_first([0.5], [0.1]) is None


def test_repeatability_by_hand():
    # differences 2, -4, 4: within variance 36 / 6 = 6, coefficient 1.96 * sqrt(2) * sqrt(6)
    found = measures.repeatability([10, 20, 30], [12, 16, 34])
    assert found.within == pytest.approx(sqrt(6))
    assert found.coefficient == pytest.approx(1.96 * sqrt(12))
    assert found.change == pytest.approx(2 / 3)
    low = 1.96 * sqrt(2) * sqrt(36 / 2 / scipy.stats.chi2.ppf(0.975, 3))
    assert found.low == pytest.approx(low)
    assert found.low < found.coefficient < found.high


def test_repeatability_of_one_patient_has_no_interval_and_of_none_is_none():
    assert isnan(measures.repeatability([1.0], [2.0]).low)
    assert measures.repeatability([1.0], [float("nan")]) is None


def test_nine_of_ten_repeated_studies_hold_the_true_coefficient():
    rng = np.random.default_rng(8)
    true = 1.96 * sqrt(2) * 3
    held = 0
    for _ in range(300):
        one, two = rng.normal(0, 3, (2, 15))
        found = measures.repeatability(one.tolist(), two.tolist())
        held += found.low <= true <= found.high
    assert held / 300 == pytest.approx(0.95, abs=0.035)


def test_the_best_guess_is_that_of_the_optimal_test():
    for epsilon, delta in ((0.5, 0.0), (2.0, 1e-3)):
        # a mechanism that shows who took part with probability delta, and else answers by randomised response
        right = delta + (1 - delta) * exp(epsilon) / (1 + exp(epsilon))
        assert measures.best_guess(epsilon, delta) == pytest.approx(right)
    assert measures.best_guess(0, 0) == 0.5
    assert measures.best_guess(5000, 0) == 1.0


def test_a_belief_grows_by_the_factor_on_its_odds():
    assert measures.raised(0.5, 1.0) == pytest.approx(exp(1) / (1 + exp(1)))
    assert measures.raised(0.1, 0.0) == pytest.approx(0.1)


def test_an_interval_of_a_noisy_sum_holds_noise_and_the_largest_possible_spread_of_patients():
    noise, both = measures.sum_interval(0.9, 0.02, 36)
    assert noise == pytest.approx((0.9 - 1.96 * 0.02, 0.9 + 1.96 * 0.02))
    assert both[0] == pytest.approx(0.9 - 1.96 * sqrt(0.02**2 + 0.9 * 0.1 / 36))
    assert both[1] <= 1.0
    assert isnan(measures.sum_interval(0.9, 0.02, 0.3)[1][0])


def test_reliability_by_hand():
    # 100 voxels at 0.2 of which 30 were drawn, 100 at 0.8 of which 70 were
    found = measures.reliability([[(100, 20.0, 30), (100, 80.0, 70)]])
    assert found.points == ((0.2, 0.3), (0.8, 0.7))
    assert found.error == pytest.approx(0.1)
    assert found.excess == pytest.approx(0.0)
    assert measures.reliability([]) is None
    assert measures.reliability([[(0, 0.0, 0)]]) is None


def test_a_groups_interval_is_students_t_where_that_is_wider():
    values = {(0, h, f"{i}"): v for i, (h, v) in enumerate(zip("AABBBC", (0.7, 0.9, 0.8, 0.85, 0.75, 0.95), strict=True))}
    numbers = list(values.values())
    half = scipy.stats.t.ppf(0.975, 5) * np.std(numbers, ddof=1) / sqrt(6)
    found = group(values)
    assert found.value == pytest.approx(np.mean(numbers))
    assert (found.low, found.high) == pytest.approx((np.mean(numbers) - half, np.mean(numbers) + half))


def test_four_patients_have_a_mean_and_no_interval():
    found = group({(s, "A", f"{i}"): 0.1 * i for i in range(4) for s in range(3)})
    assert (found.value, found.patients) == (pytest.approx(0.15), 4)
    assert isnan(found.low)


@pytest.mark.parametrize(
    ("value", "told"),
    [(0.5, "50 %"), (0.731, "73 %"), (0.995, "99.5 %"), (0.99966, "99.97 %"), (0.999999, "above 99.99 %"), (1.0, "100 %")],
)
def test_a_percentage_is_never_rounded_to_certainty(value, told):
    assert share(value) == told
