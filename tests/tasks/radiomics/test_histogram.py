"""The noisy histogram: what one patient can move, and that what is said of the noise is what the noise does."""

from __future__ import annotations

import json
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


def draws(patients: int, noise_std: float, count: int = 2000, seed: int = 4) -> tuple[Curves, list[Curves]]:
    rng = np.random.default_rng(seed)
    clean = total(*cohort(rng, patients))
    noisy = [curves(clean + rng.normal(0, noise_std, clean.shape), bins=BINS, noise_std=noise_std) for _ in range(count)]
    return curves(clean, bins=BINS, noise_std=0), noisy


def test_what_is_said_of_the_noise_is_what_2000_draws_show() -> None:
    truth, noisy = draws(200, SIX_SITES_EPSILON_3)
    heard = [one for one in noisy if one.auc is not None]
    assert len(heard) > 1990
    for value, deviation in (("auc", "auc_noise_sd"), ("brier", "brier_noise_sd")):
        off = np.array([getattr(one, value) - getattr(truth, value) for one in heard])
        told = np.array([getattr(one, deviation) for one in heard])
        assert np.sqrt(np.mean(told**2)) == pytest.approx(off.std(), rel=0.2)
        assert np.mean(np.abs(off) <= 1.96 * told) > 0.9
