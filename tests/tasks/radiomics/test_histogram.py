"""The noisy histogram: what one patient can move, and that what is said of the noise is what the noise does."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, roc_auc_score

from tasks.radiomics.curves import Curves
from tasks.radiomics.histogram import contribution, curves

BINS = 20
SIX_SITES_EPSILON_3 = 1.04 * math.sqrt(6)  # the noise of six sites that each add what epsilon 3, delta 0.001 needs


def cohort(rng: np.random.Generator, patients: int, rows: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Scores and labels (patients, rows), four in ten positive, AUC about 0.85."""
    labels = rng.random((patients, rows)) < 0.41
    logit = 1.3 * rng.normal(size=labels.shape) + np.where(labels, 0.9, -1.0)
    return 1 / (1 + np.exp(-logit)), labels.astype(int)


def total(scores: np.ndarray, labels: np.ndarray, bins: int = BINS) -> np.ndarray:
    return np.sum([contribution(s, y, bins=bins) for s, y in zip(scores, labels, strict=True)], axis=0)


def counted(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The same for patients of one row, faster."""
    return np.concatenate([np.histogram(scores[labels == label], BINS, (0, 1))[0] for label in (0, 1)]).astype(float)


def whole_steps(vector: np.ndarray) -> list[int]:
    steps = [int(entry * 2**30) for entry in vector]
    assert [step / 2**30 for step in steps] == vector.tolist()
    return steps


EXTREMES = np.array([0.0, -0.0, 1.0, 5e-324, np.nextafter(1, 0), np.nextafter(0.05, 0), 0.05, 0.5, 0.29, 1e-300])


@pytest.mark.parametrize("bins", [2, 3, 20, 1000])
def test_no_patient_moves_the_total_by_more_than_one(bins: int) -> None:
    rng = np.random.default_rng(0)
    for rows in (1, 2, 3, 7, 16, 17, 300, 4097):
        for scores in (rng.random(rows), rng.choice(EXTREMES, rows), np.full(rows, 1.0)):
            labels = rng.integers(2, size=rows)
            tiny = rng.choice([0.0, 5e-324, 1.0, np.nextafter(1, 0), 0.5], rows)
            for weights in (None, rng.random(rows), tiny, np.zeros(rows)):
                steps = whole_steps(contribution(scores, labels, bins=bins, weights=weights))
                assert min(steps) >= 0
                assert sum(steps) <= 2**30  # in whole numbers: no rounding hides an excess


def test_neighbouring_data_sets_differ_by_at_most_one() -> None:
    rng = np.random.default_rng(1)
    patients = [cohort(rng, 1, rows) for rows in rng.integers(0, 18, 40)]
    parts = [contribution(s[0], y[0], bins=BINS) for s, y in patients]
    everybody = np.sum(parts, axis=0)
    for left_out, part in enumerate(parts):
        others = np.sum([other for index, other in enumerate(parts) if index != left_out], axis=0)
        assert np.array_equal(everybody - others, part)  # exact: nothing is lost in the sums
        assert np.abs(everybody - others).sum() <= 1
        assert np.linalg.norm(everybody - others) <= 1


def test_sites_sum_to_the_same_in_any_order() -> None:
    rng = np.random.default_rng(2)
    parts = [contribution(*map(np.ravel, cohort(rng, 1, int(rows))), bins=BINS) for rows in rng.integers(1, 18, 200)]
    forward = np.sum(parts, axis=0)
    shuffled = np.zeros(2 * BINS)
    for index in rng.permutation(len(parts)):
        shuffled += parts[index]
    assert shuffled.tobytes() == forward.tobytes()


def test_rows_fall_where_they_belong() -> None:
    # by hand, 4 bins: 0.1 -> 0, 0.25 -> 1, 0.99 and 1 -> 3; a quarter for each row
    found = contribution([0.1, 0.25, 0.99, 1.0], [0, 1, 1, 0], bins=4)
    assert found.tolist() == [0.25, 0, 0, 0.25, 0, 0.25, 0, 0.25]
    halved = contribution([0.1, 0.25], [0, 1], bins=4, weights=[0.5, 0])
    assert halved.tolist() == [0.25, 0, 0, 0, 0, 0, 0, 0]
    assert not contribution([], [], bins=4).any()


@pytest.mark.parametrize(
    ("scores", "labels", "weights", "words"),
    [
        ([0.5, math.nan], [0, 1], None, r"1 of 2 scores are not numbers \(NaN\)"),
        ([0.5, 1.1], [0, 1], None, r"1 of 2 scores are outside 0\.\.1"),
        ([0.5, 0.1], [0, 2], None, "1 of 2 labels are neither 0 nor 1"),
        ([0.5, 0.1], [0, math.nan], None, "1 of 2 labels are neither 0 nor 1"),
        ([0.5, 0.1], [0], None, "one score and one label per row"),
        ([0.5], [0], [1.5], "weights must be one number from 0 to 1"),
        ([0.5], [0], [math.nan], "weights must be one number from 0 to 1"),
        ([0.5], [0], [1, 1], "weights must be one number from 0 to 1"),
    ],
)
def test_what_is_no_score_is_refused_in_words(scores: list[float], labels: list[float], weights: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        contribution(scores, labels, bins=4, weights=weights)  # type: ignore[arg-type]


def test_without_noise_the_histogram_says_what_scikit_learn_says_of_binned_scores() -> None:
    scores, labels = cohort(np.random.default_rng(3), 300)
    told = curves(total(scores, labels), bins=BINS, noise_std=0)
    s, y = scores.ravel(), labels.ravel()
    binned = (np.floor(s * BINS) + 0.5) / BINS
    assert told.auc == pytest.approx(roc_auc_score(y, binned), abs=1e-9)
    assert told.brier == pytest.approx(brier_score_loss(y, binned), abs=1e-6)
    assert told.negatives == (y == 0).sum()
    assert told.positives == (y == 1).sum()
    assert told.auc_noise_sd == told.brier_noise_sd == 0
    assert np.trapezoid(told.tpr, told.fpr) == pytest.approx(told.auc)
    best = max((np.mean(s[y == 1] >= t / BINS) + np.mean(s[y == 0] < t / BINS), t / BINS) for t in range(BINS))
    assert told.youden is not None
    assert told.youden.sensitivity + told.youden.specificity == pytest.approx(best[0])
    point = told.at_sensitivity
    assert point is not None
    assert point.sensitivity == pytest.approx(np.mean(s[y == 1] >= point.threshold))
    assert point.specificity == pytest.approx(np.mean(s[y == 0] < point.threshold))
    assert point.sensitivity >= 0.9 > np.mean(s[y == 1] >= point.threshold + 1 / BINS)
    for item in told.calibration:
        assert item.low <= item.observed <= item.high
    assert sum(item.count for item in told.calibration) == pytest.approx(300)


def draws(clean: np.ndarray, noise_std: float, count: int, seed: int = 4) -> list[Curves]:
    rng = np.random.default_rng(seed)
    return [curves(clean + rng.normal(0, noise_std, clean.shape), bins=BINS, noise_std=noise_std) for _ in range(count)]


@pytest.mark.parametrize(("patients", "noise_std"), [(200, SIX_SITES_EPSILON_3), (600, 1.04)])
def test_what_is_said_of_the_noise_is_what_600_draws_of_it_show(patients: int, noise_std: float) -> None:
    scores, labels = cohort(np.random.default_rng(patients), patients)
    clean = counted(scores, labels)
    assert np.array_equal(clean, total(scores, labels))
    truth = curves(clean, bins=BINS, noise_std=0)
    heard = [one for one in draws(clean, noise_std, 600) if one.auc is not None]
    assert len(heard) > 590
    for value, deviation in (("auc", "auc_noise_sd"), ("brier", "brier_noise_sd")):
        off = np.array([getattr(one, value) - getattr(truth, value) for one in heard])
        told = np.array([getattr(one, deviation) for one in heard])
        assert np.sqrt(np.mean(told**2)) == pytest.approx(off.std(), rel=0.25)
        assert np.mean(np.abs(off) <= 1.96 * told) > 0.9
        assert abs(off.mean()) < 0.6 * off.std()
    points = [one.youden for one in heard if one.youden is not None]
    off = np.array([point.sensitivity - np.mean(scores[labels == 1] >= point.threshold) for point in points])
    told = np.array([point.sensitivity_noise_sd for point in points])
    assert np.sqrt(np.mean(told**2)) == pytest.approx(off.std(), rel=0.25)


@pytest.mark.parametrize(("patients", "noise_std"), [(60, 1.04), (200, SIX_SITES_EPSILON_3), (600, 6.3)])
def test_intervals_hold_what_is_true_of_all_patients_and_not_of_these_alone(patients: int, noise_std: float) -> None:
    rng = np.random.default_rng(7)
    many, truth = cohort(rng, 50_000)
    auc = roc_auc_score(truth.ravel(), many.ravel())
    observed, predicted = (np.histogram(many, 500, (0, 1), weights=values)[0] for values in (truth, np.ones(truth.shape)))

    def near(score: float) -> float:
        around = slice(max(int(500 * score) - 10, 0), int(500 * score) + 11)
        return float(observed[around].sum() / predicted[around].sum())

    told, points = [], []
    for seed in range(160):
        [one] = draws(counted(*cohort(rng, patients)), noise_std, 1, seed)
        if one.low is not None and one.high is not None:
            told.append(one.low <= auc <= one.high)
        points += [item.low <= near(item.predicted) <= item.high for item in one.calibration]
    assert len(told) > 140
    assert np.mean(told) > 0.93
    assert np.mean(points) > 0.92


def test_patients_of_many_rows_have_intervals_that_are_rather_too_wide() -> None:
    rng = np.random.default_rng(8)
    many, truth = cohort(rng, 50_000)
    auc = roc_auc_score(truth.ravel(), many.ravel())
    found = [curves(total(*cohort(rng, 60, 16)), bins=BINS, noise_std=0) for _ in range(40)]
    assert all(one.low is not None and one.high is not None and one.low <= auc <= one.high for one in found)


def two_hills(rng: np.random.Generator, patients: int) -> tuple[np.ndarray, np.ndarray]:
    """Four in ten of the positives look like negatives."""
    labels = rng.random((patients, 1)) < 0.41
    seen = labels & (rng.random((patients, 1)) < 0.6)
    return 1 / (1 + np.exp(-0.6 * rng.normal(size=labels.shape) - np.where(seen, 2.0, -1.5))), labels.astype(int)


def plain_auc(histogram: np.ndarray) -> float:
    negative, positive = histogram.reshape(2, BINS)
    return float(positive @ (np.cumsum(negative) - negative / 2) / (negative.sum() * positive.sum()))


@pytest.mark.parametrize(("make", "least"), [(cohort, 0.9), (two_hills, 1.15)])
def test_a_hill_comes_nearer_to_the_auc_than_other_ways_and_costs_little_where_there_are_two(
    make: object, least: float
) -> None:
    rng = np.random.default_rng(9)
    errors = []
    for patients in (100, 200, 600):
        for _ in range(60):
            clean = counted(*make(rng, patients))  # type: ignore[operator]
            noisy = clean + rng.normal(0, SIX_SITES_EPSILON_3, clean.shape)
            told = curves(noisy, bins=BINS, noise_std=SIX_SITES_EPSILON_3).auc
            if told is not None:
                truth = plain_auc(clean)
                errors.append([told - truth, plain_auc(noisy) - truth, plain_auc(np.maximum(noisy, 0)) - truth])
    ours, raw, cut = np.abs(errors).mean(axis=0)
    assert ours < least * min(raw, cut)


def test_two_hills_that_can_be_seen_are_kept() -> None:
    clean = counted(*two_hills(np.random.default_rng(10), 600))
    found = np.array([one.auc for one in draws(clean, 1.04, 200)])
    assert found.mean() == pytest.approx(plain_auc(clean), abs=0.005)  # one hill for the positives would be 0.1 off


def test_a_classifier_that_knows_nothing_is_not_made_to_look_as_if_it_did() -> None:
    rng = np.random.default_rng(11)
    found = []
    for seed in range(200):
        labels = (rng.random((200, 1)) < 0.41).astype(int)
        clean = counted(np.clip(rng.normal(0.41, 0.15, (200, 1)), 0, 1), labels)
        found += [one for one in draws(clean, SIX_SITES_EPSILON_3, 1, seed) if one.auc is not None]
    assert np.mean([one.auc for one in found]) == pytest.approx(0.5, abs=0.02)
    assert np.mean([one.low > 0.5 for one in found if one.low is not None]) < 0.04


def test_noise_that_swamps_a_class_is_told_and_no_figure_made_up() -> None:
    clean = total(*cohort(np.random.default_rng(12), 200))
    nothing = curves(clean + np.random.default_rng(13).normal(0, 40, clean.shape), bins=BINS, noise_std=40)
    assert nothing.words is not None
    assert "where the noise alone has a standard deviation of 178.9" in nothing.words  # 40 * sqrt(20)
    clean[BINS:] = 0
    absent = curves(clean, bins=BINS, noise_std=0)
    assert absent.words == "no curve can be drawn: counted were 0.0 positives"
    for told in (nothing, absent):
        figures = (told.auc, told.low, told.high, told.youden, told.at_sensitivity, told.brier, told.ece, told.ece_by_chance)
        assert figures == (None,) * 8
        assert not len(told.fpr)
        assert told.calibration == ()
    pure = np.random.default_rng(14).normal(0, 3, (2000, 2 * BINS))
    assert np.mean([curves(one, bins=BINS, noise_std=3).auc is None for one in pure]) > 0.999


@pytest.mark.parametrize(
    ("histogram", "noise_std", "words"),
    [
        (np.ones(39), 1, "must be 40 finite numbers for 20 bins"),
        (np.full(40, math.nan), 1, "must be 40 finite numbers"),
        (np.ones(40), -1, "noise_std must be 0 or a positive number, not -1"),
        (np.ones(40), math.nan, "noise_std must be 0 or a positive number, not nan"),
    ],
)
def test_what_is_no_histogram_is_refused(histogram: np.ndarray, noise_std: float, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        curves(histogram, bins=BINS, noise_std=noise_std)
    with pytest.raises(ValueError, match="at least 2 bins, not 1"):
        curves(histogram, bins=1, noise_std=1)


@pytest.mark.parametrize("size", [1.0, 1e3, 1e6, 1e15])
@pytest.mark.parametrize("noise_std", [0.0, 1.0])
def test_whatever_numbers_are_said_the_figures_are_finite_and_shares(size: float, noise_std: float) -> None:
    rng = np.random.default_rng(3)
    told = 0
    for _ in range(300):
        bins = int(rng.integers(2, 21))
        said = rng.normal(size=2 * bins) * size * rng.choice([0, 1, 1e-8], size=2 * bins) + rng.choice([0, size / 3])
        found = curves(said, bins=bins, noise_std=noise_std)
        shares = [found.auc, found.low, found.high, found.brier, found.ece]
        assert all(-1e-9 <= share <= 1 + 1e-9 for share in shares if share is not None)
        others = [found.auc_noise_sd, found.brier_noise_sd, found.ece_by_chance]
        assert np.isfinite([other for other in others if other is not None]).all()
        told += found.auc is not None
    assert told > 50 or size <= noise_std


def test_more_patients_than_can_be_counted_are_no_histogram() -> None:
    with pytest.raises(ValueError, match=r"counts 1\.7e\+308 in a bin; beyond 9007199254740992"):
        curves([1, 1.7e308, 1, 1], bins=2, noise_std=0)
