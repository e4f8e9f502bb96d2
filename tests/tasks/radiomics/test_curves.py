"""Curves from exact scores agree with scikit-learn, and their intervals are those of patients."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, roc_auc_score, roc_curve

from tasks.radiomics.curves import GRID, Curves, exact, mean_roc
from tasks.radiomics.intervals import resampled_aucs


def cohort(rng: np.random.Generator, patients: int, rows: int, alike: float = 0.3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, labels, patients (rows in all,); `alike` is the correlation of a patient's rows, in labels and in scores."""

    def normal() -> np.ndarray:
        own, shared = rng.normal(size=(patients, rows)), rng.normal(size=(patients, 1))
        return math.sqrt(alike) * shared + math.sqrt(1 - alike) * own

    labels = (normal() > 0.25).astype(int)
    scores = 1 / (1 + np.exp(-normal() - 1.5 * (labels - 0.5)))
    return scores.ravel(), labels.ravel(), np.repeat(np.arange(patients), rows)


def test_exact_curves_are_those_of_scikit_learn() -> None:
    scores, labels, patients = cohort(np.random.default_rng(0), 60, 16)
    told = exact(scores, labels, patients, resamples=50)
    assert told.auc == pytest.approx(roc_auc_score(labels, scores))
    assert told.brier == pytest.approx(brier_score_loss(labels, scores))
    assert told.low is not None
    assert told.high is not None
    assert told.low < told.auc < told.high
    fpr, tpr, _ = roc_curve(labels, scores)
    for rate, found in zip(told.fpr, told.tpr, strict=True):
        assert tpr[fpr <= rate + 1e-12].max() <= found + 1e-9
    assert np.trapezoid(told.tpr, told.fpr) == pytest.approx(told.auc, abs=0.01)
    best = max(np.mean(scores[labels == 1] >= t) + np.mean(scores[labels == 0] < t) for t in scores)
    assert told.youden is not None
    assert told.youden.sensitivity + told.youden.specificity == pytest.approx(best)
    assert told.youden.sensitivity == pytest.approx(np.mean(scores[labels == 1] >= told.youden.threshold))
    point = told.at_sensitivity
    assert point is not None
    stricter = scores[scores > point.threshold].min()
    assert np.mean(scores[labels == 1] >= stricter) < 0.9 <= np.mean(scores[labels == 1] >= point.threshold)
    assert point.specificity == pytest.approx(np.mean(scores[labels == 0] < point.threshold))


def test_certain_rows_are_judged_by_themselves() -> None:
    rng = np.random.default_rng(1)
    scores, labels, patients = cohort(rng, 40, 4)
    certain = rng.random(len(scores)) < 0.6
    told = exact(scores, labels, patients, certain=certain, resamples=50)
    alone = exact(scores[certain], labels[certain], patients[certain], resamples=50)
    assert told.auc_certain is not None
    assert told.auc_certain.value == pytest.approx(roc_auc_score(labels[certain], scores[certain]))
    assert (told.auc_certain.low, told.auc_certain.high) == (alone.low, alone.high)
    assert told.auc == exact(scores, labels, patients, resamples=50).auc


def test_weights_count_rows_as_scikit_learn_does() -> None:
    rng = np.random.default_rng(2)
    scores, labels, patients = cohort(rng, 40, 4)
    weights = rng.choice([0.0, 0.5, 1.0], len(scores))
    told = exact(scores, labels, patients, weights=weights, resamples=50)
    assert told.auc == pytest.approx(roc_auc_score(labels, scores, sample_weight=weights))
    assert told.brier == pytest.approx(brier_score_loss(labels, scores, sample_weight=weights))
    used = weights > 0
    assert told.negatives + told.positives == pytest.approx(len(np.unique(patients[used])))


def test_patients_are_resampled_whole() -> None:
    scores, labels, patients = cohort(np.random.default_rng(3), 30, 5)
    scores = np.round(scores, 1)  # with ties
    weights = np.random.default_rng(4).random(len(scores))
    drawn = resampled_aucs(scores, labels, patients, weights, resamples=40, seed=6)
    times = np.random.default_rng(6).multinomial(30, np.full(30, 1 / 30), size=40)
    for auc, one in zip(drawn, times, strict=True):
        rows = np.concatenate([np.flatnonzero(patients == patient) for patient in np.repeat(np.arange(30), one)])
        assert auc == pytest.approx(roc_auc_score(labels[rows], scores[rows], sample_weight=weights[rows]))


@pytest.mark.parametrize(("patients", "rows"), [(12, 1), (12, 16), (60, 16), (24, 4)])
def test_the_interval_holds_the_auc_of_all_patients(patients: int, rows: int) -> None:
    rng = np.random.default_rng(7)
    scores, labels, _ = cohort(rng, 20_000, rows)
    truth = roc_auc_score(labels, scores)
    held = []
    for seed in range(150):
        told = exact(*cohort(rng, patients, rows), resamples=150, seed=seed)
        if told.low is not None and told.high is not None:
            held.append(told.low <= truth <= told.high)
    assert len(held) > 140
    assert np.mean(held) > 0.91


def test_rows_that_repeat_a_patient_narrow_nothing() -> None:
    scores, labels, patients = cohort(np.random.default_rng(8), 60, 1)
    once = exact(scores, labels, patients)
    often = exact(np.repeat(scores, 16), np.repeat(labels, 16), np.repeat(patients, 16))
    naive = exact(np.repeat(scores, 16), np.repeat(labels, 16), np.arange(960))
    widths = [one.high - one.low for one in (once, often, naive) if one.high is not None and one.low is not None]
    assert widths[1] == pytest.approx(widths[0], rel=0.15)
    assert widths[2] < 0.35 * widths[0]
    for single, repeated in zip(once.calibration, often.calibration, strict=True):
        assert (repeated.low, repeated.high) == pytest.approx((single.low, single.high), abs=0.02)


def test_calibration_intervals_hold_what_a_calibrated_classifier_predicts() -> None:
    rng = np.random.default_rng(9)
    held, off, chance = [], [], []
    for _ in range(100):
        scores = rng.beta(2, 3, 400)
        told = exact(scores, rng.random(400) < scores, np.arange(400), resamples=2)
        held += [item.low <= item.predicted <= item.high for item in told.calibration]
        off.append(told.ece)
        chance.append(told.ece_by_chance)
        assert [item.count for item in told.calibration] == [40] * 10
    assert np.mean(held) > 0.93
    assert np.mean(off) == pytest.approx(np.mean(chance), rel=0.05)  # all of this error is chance, and said to be


def test_perfect_ranking_of_few_patients_is_not_certainty() -> None:
    told = exact([0.1, 0.2, 0.3, 0.7, 0.8, 0.9], [0, 0, 0, 1, 1, 1], range(6))
    assert (told.auc, told.high) == (1, 1)
    assert told.low is not None
    assert told.low < 0.7


@pytest.mark.parametrize(("labels", "absent"), [([0, 0, 0, 0], "positive"), ([1, 1, 1, 1], "negative")])
def test_a_hospital_without_one_class_is_told_and_does_not_crash(labels: list[int], absent: str) -> None:
    told = exact([0.1, 0.4, 0.4, 0.9], labels, ["a", "a", "b", "c"], certain=[True, True, False, True])
    assert told.words == f"no {absent} row among 3 patients: no ROC curve"
    assert (told.auc, told.low, told.high, told.youden, told.at_sensitivity, told.auc_certain) == (None,) * 6
    assert told.brier == pytest.approx(np.mean((np.array([0.1, 0.4, 0.4, 0.9]) - labels[0]) ** 2))
    assert told.calibration


def test_one_patient_of_a_class_gives_no_interval() -> None:
    told = exact([0.1, 0.4, 0.6, 0.9], [0, 0, 1, 1], ["a", "b", "c", "c"])
    assert (told.auc, told.low, told.high) == (1, None, None)
    assert told.words == "fewer than 2 patients have a row of one class: no interval"
    assert exact([], [], []).words == "no rows"


def test_a_classifier_that_always_says_the_same_is_drawn_as_one() -> None:
    told = exact(np.full(40, 0.4), np.tile([0, 1], 20), np.arange(40))
    assert told.auc == 0.5
    assert told.youden is not None
    assert math.isfinite(told.youden.threshold)
    assert len(told.calibration) == 1


def test_folds_are_averaged_at_equal_false_positive_rates() -> None:
    # by hand: one fold ranks perfectly, one by chance, one has no curve
    perfect = exact([0.1, 0.9], [0, 1], [0, 1])
    chance = Curves(1, 1, fpr=np.array([0.0, 1.0]), tpr=np.array([0.0, 1.0]))
    mean = mean_roc([perfect, chance, Curves(1, 0, words="no positives")])
    assert mean is not None
    assert mean.tpr == pytest.approx((1 + GRID) / 2, abs=1e-9)
    assert mean.tpr_sd == pytest.approx((1 - GRID) / math.sqrt(2), abs=1e-9)
    assert mean_roc([Curves(1, 0)]) is None
    assert mean_roc([chance]).tpr_sd.tolist() == [0.0] * 101  # type: ignore[union-attr]


def test_2000_resamples_of_240_patients_with_16_rows_take_less_than_two_seconds() -> None:
    arrays = cohort(np.random.default_rng(10), 240, 16)
    start = time.process_time()
    exact(*arrays)
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"scores": [0.5, math.nan, 0.1]}, r"1 of 3 scores are not numbers \(NaN\)"),
        ({"labels": [0, 1, 3]}, "1 of 3 labels are neither 0 nor 1"),
        ({"patients": [0, 1]}, "one patient per row"),
        ({"certain": [True]}, "one certainty per row"),
        ({"weights": [1, 1, -1]}, "weights must be 0 or positive"),
        ({"at_sensitivity": 90}, "wanted sensitivity must be above 0 and at most 1, not 90"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(changed: dict[str, object], words: str) -> None:
    fitting: dict[str, object] = {"scores": [0.5, 0.4, 0.1], "labels": [0, 1, 1], "patients": [0, 1, 2]}
    with pytest.raises(ValueError, match=words):
        exact(**(fitting | changed))  # type: ignore[arg-type]
