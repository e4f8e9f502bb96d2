"""The report's means, intervals and claims, against SciPy, against the slow obvious way, and by hand."""

import numpy as np
import pytest
import scipy.stats

from fl_server.report import statistics
from fl_server.report.statistics import agreement, difference, mean, spread
from simulation.report import words


def values(table, *, hospital="A", first_seed=0):
    """A table (seeds, patients) as the statistics take it."""
    return {(first_seed + s, hospital, f"p{i:03d}"): float(v) for s, row in enumerate(table) for i, v in enumerate(row)}


@pytest.fixture
def rng():
    return np.random.default_rng(11)


def test_an_interval_over_patients_is_scipys_percentile_bootstrap(rng):
    dice = np.clip(rng.normal(0.8, 0.07, 30), 0, 1)
    theirs = scipy.stats.bootstrap((dice,), np.mean, n_resamples=20_000, method="percentile", rng=1).confidence_interval
    ours = mean(values([dice]), resamples=20_000)
    assert ours.value == pytest.approx(dice.mean())
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.0012)
    assert (ours.patients, ours.seeds) == (30, 1)


def test_every_hospital_counts_alike_and_patients_are_resampled_within_it(rng):
    small, large = rng.normal(0.7, 0.05, 6), rng.normal(0.9, 0.02, 40)
    theirs = scipy.stats.bootstrap(
        (small, large),
        lambda a, b, axis: (a.mean(axis) + b.mean(axis)) / 2,
        n_resamples=20_000,
        method="percentile",
        rng=2,
    ).confidence_interval
    ours = mean(values([small]) | values([large], hospital="B"), resamples=20_000)
    assert ours.value == pytest.approx((small.mean() + large.mean()) / 2)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.0012)


def test_seeds_and_patients_are_resampled_together_as_a_slow_loop_does(rng):
    table = rng.normal(0.8, 0.04, 12) + rng.normal(0, 0.03, (3, 1)) + rng.normal(0, 0.01, (3, 12))
    slow = [table[np.ix_(rng.integers(0, 3, 3), rng.integers(0, 12, 12))].mean() for _ in range(20_000)]
    ours = mean(values(table), resamples=20_000)
    assert ours.value == pytest.approx(table.mean())
    assert (ours.low, ours.high) == pytest.approx(tuple(np.quantile(slow, [0.025, 0.975])), abs=0.002)
    assert ours.seeds == 3


def test_a_patient_without_a_value_is_left_out_and_no_value_gives_no_estimate():
    found = mean(values([[0.5, np.nan, 0.7]]))
    assert found.value == pytest.approx(0.6)
    assert found.patients == 2
    assert not mean({})
    assert not mean(values([[np.nan]]))
    assert np.isnan(mean(values([[0.5]])).low)


def test_the_same_scores_give_the_same_interval_every_time(rng):
    table = values(rng.random((2, 9)))
    assert mean(table) == mean(dict(reversed(table.items())))


def test_a_paired_difference_is_free_of_what_makes_patients_hard(rng):
    hard = rng.normal(0.6, 0.2, (3, 10))
    gap = difference(values(hard + 0.02), values(hard))
    assert (gap.value, gap.low, gap.high) == pytest.approx((0.02, 0.02, 0.02))
    assert gap.above_zero


def test_a_difference_counts_only_what_both_have():
    gap = difference(values([[0.5, 0.6], [0.7, 0.8]]), values([[0.4, 0.5]], first_seed=1))
    assert gap.value == pytest.approx(0.3)
    assert gap.seeds == 1
    given = difference(values([[0.5, 0.6], [0.7, 0.8]]), values([[0.4, 0.5]]), fixed=True)
    assert given.value == pytest.approx(0.2)
    assert given.seeds == 2


@pytest.mark.parametrize(
    ("seeds", "shift", "said"), [(3, 0.05, "higher"), (3, -0.05, "lower"), (3, 0.0, "not shown"), (2, 0.05, "not shown")]
)
def test_one_arm_beats_another_only_with_three_seeds_and_an_interval_without_zero(rng, seeds, shift, said):
    base = rng.normal(0.8, 0.03, (seeds, 20))
    noise = rng.normal(0, 0.01, (seeds, 20))
    gap = difference(values(base + shift + noise - noise.mean()), values(base))
    assert words.comparison(gap) == said
    if seeds < statistics.SEEDS_FOR_A_CLAIM:
        assert words.why_not(gap) == "2 seeds; 3 are needed"


def drawn_gap(rng, *, patients, by_patient, by_seed, residual, shift=0.0):
    """A difference between two arms over three seeds: a patient's part, a seed's part and the rest."""
    table = (
        shift + rng.normal(0, by_patient, patients) + rng.normal(0, by_seed, (3, 1)) + rng.normal(0, residual, (3, patients))
    )
    return difference(values(table), values(np.zeros_like(table)), resamples=200)


@pytest.mark.parametrize(
    ("patients", "by_patient", "by_seed"),
    [(10, 0.0, 0.01), (4, 0.02, 0.0), (10, 0.02, 0.006)],
    ids=["the seeds' luck", "four patients", "both"],
)
def test_where_there_is_no_difference_one_is_rarely_claimed(rng, patients, by_patient, by_seed):
    gaps = [drawn_gap(rng, patients=patients, by_patient=by_patient, by_seed=by_seed, residual=0.003) for _ in range(250)]
    assert np.mean([words.comparison(gap) != "not shown" for gap in gaps]) < 0.078  # 5 % and two standard errors


def test_a_clear_difference_is_claimed(rng):
    gaps = [drawn_gap(rng, patients=30, by_patient=0.02, by_seed=0.002, residual=0.005, shift=0.02) for _ in range(60)]
    assert np.mean([words.comparison(gap) == "higher" for gap in gaps]) > 0.95


def test_the_interval_of_a_difference_holds_students_t_over_the_seeds_and_over_the_patients(rng):
    for by_patient, by_seed, axis in ((0.0, 0.02, 1), (0.05, 0.0, 0)):
        table = 0.1 + rng.normal(0, by_patient, 5) + rng.normal(0, by_seed, (3, 1)) + rng.normal(0, 1e-4, (3, 5))
        theirs = scipy.stats.ttest_1samp(table.mean(axis), 0).confidence_interval(0.95)
        ours = difference(values(table), values(np.zeros_like(table)))
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high))


def test_patients_of_two_hospitals_are_weighed_as_welch_does(rng):
    a, b = rng.normal(0.1, 0.02, 3), rng.normal(0.0, 0.05, 4)
    welch = scipy.stats.ttest_ind(a, -b, equal_var=False).confidence_interval(0.95)  # of mean(a) + mean(b)
    both = values([a]) | values([b], hospital="B")
    ours = difference(both, dict.fromkeys(both, 0.0))
    assert (ours.low, ours.high) == pytest.approx((welch.low / 2, welch.high / 2))


def test_three_seeds_of_one_patient_claim_nothing():
    gap = difference(values([[0.9], [0.9], [0.91]]), values([[0.5], [0.5], [0.5]]))
    assert words.comparison(gap) == "not shown"
    assert words.why_not(gap) == "too few patients for an interval"


def test_spread_across_seeds_by_hand():
    found = spread(values([[0.7, 0.9], [0.8, 0.8], [0.9, 0.7]]))
    assert found.mean == pytest.approx(0.8)
    assert found.between_seeds == pytest.approx(0.0)  # each seed's mean is 0.8
    assert found.within_patient == pytest.approx(0.1)  # each patient has 0.7, 0.8, 0.9
    assert np.isnan(spread(values([[0.7, 0.9]])).between_seeds)


def test_limits_of_agreement_by_hand():
    found = agreement(np.array([1.0, 2.0, 3.0]))
    assert (found.bias, found.low, found.high) == pytest.approx((2, 0.04, 3.96))


def test_epsilon_is_never_rounded_down():
    assert [words.epsilon(e) for e in (7.901, 8.0, 0.1 + 0.2, None)] == ["7.91", "8.00", "0.30", "–"]


def test_a_bound_near_zero_shows_its_side():
    assert words.interval(statistics.Estimate(-0.01, -0.02, -0.0003, 9, 3)) == "−0.0200 to −0.0003"
    assert words.number(-0.0001) == "0.000"


@pytest.mark.parametrize(
    ("epsilon", "told"),
    [(1.1, "3.0"), (8.0, "2,981"), (13.8, "984,609"), (13.9, "10 to the power of 7"), (1000.0, "10 to the power of 435")],
)
def test_a_factor_nobody_can_read_is_told_by_its_power_of_ten(epsilon, told):
    assert words.odds(epsilon) == told
