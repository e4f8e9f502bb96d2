"""ROC curve, operating points, calibration and scores of a classifier, each with the interval that belongs to it.

What is said of a classifier has one form, `Curves`, wherever it comes from: from every patient's own scores (`exact`, here),
or from a noisy histogram that hospitals have summed (`tasks.radiomics.histogram`). The unit of every interval is the patient,
never the row: a patient's segments resemble each other, and intervals over rows would be too narrow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import roc_auc_score, roc_curve

from tasks.radiomics.intervals import clustered_auc_interval, resampled_aucs, share_interval

Floats = npt.NDArray[np.float64]

GRID = np.linspace(0, 1, 101)
"""The false-positive rates at which exact ROC curves are given, so that curves of different folds can be averaged."""

_QUANTILE_BINS = 10


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval; the bounds are None where there are too few patients for one."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class OperatingPoint:
    """Who scores at least `threshold` is called positive. The deviations are those caused by the noise, 0 without any.

    The threshold was chosen on the same patients, so sensitivity and specificity are those of a choice that suited them.
    """

    threshold: float
    sensitivity: float
    specificity: float
    sensitivity_noise_sd: float = 0.0
    specificity_noise_sd: float = 0.0
    wanted: float | None = None  # the sensitivity that was asked for

    @classmethod
    def youden(cls, thresholds: Floats, sensitivity: Floats, specificity: Floats) -> OperatingPoint:
        """The point (of points) at which sensitivity + specificity is greatest, the first of several."""
        best = int(np.argmax(np.round(sensitivity + specificity, 12)))
        return cls(float(thresholds[best]), float(sensitivity[best]), float(specificity[best]))

    @classmethod
    def reaching(cls, wanted: float, thresholds: Floats, sensitivity: Floats, specificity: Floats) -> OperatingPoint:
        """The first point whose sensitivity is at least `wanted`; thresholds fall, and the last calls all positive.

        Raises `ValueError` for a sensitivity that is not in 0..1.
        """
        if not 0 < wanted <= 1:
            raise ValueError(f"the wanted sensitivity must be above 0 and at most 1, not {wanted}")
        first = int(np.argmax(sensitivity >= wanted - 1e-12))
        return cls(float(thresholds[first]), float(sensitivity[first]), float(specificity[first]), wanted=wanted)


@dataclass(frozen=True)
class CalibrationBin:
    """Rows with neighbouring scores: the mean score, the share that was positive with its 95 % interval, and how many.

    `count` is in rows for exact curves, in patients for those from a histogram, where a patient's rows share 1.
    """

    predicted: float
    observed: float
    low: float
    high: float
    count: float


@dataclass(frozen=True, eq=False)
class Curves:
    """What is known of a classifier. Where something can't be known it is None (or empty), and `words` say why.

    `low` and `high` are the 95 % interval of the AUC over patients and, from a histogram, noise. `negatives` and `positives`
    are numbers of patients, a patient of several rows being divided between the classes. `fpr` and `tpr` (points,) rise from
    a strict threshold to a lax one. `ece`, the expected calibration error, can't fall to 0 with few patients or with noise:
    `ece_by_chance` is what a perfectly calibrated classifier would show on average.
    """

    negatives: float
    positives: float
    words: str | None = None
    auc: float | None = None
    low: float | None = None
    high: float | None = None
    auc_noise_sd: float = 0.0
    auc_certain: Interval | None = None
    fpr: Floats = field(default_factory=lambda: np.zeros(0))
    tpr: Floats = field(default_factory=lambda: np.zeros(0))
    youden: OperatingPoint | None = None
    at_sensitivity: OperatingPoint | None = None
    calibration: tuple[CalibrationBin, ...] = ()
    brier: float | None = None
    brier_noise_sd: float = 0.0
    ece: float | None = None
    ece_by_chance: float | None = None
    noise_std: float = 0.0
    bins: int | None = None


@dataclass(frozen=True, eq=False)
class MeanRoc:
    """Mean and standard deviation over folds of the true-positive rate, at the false-positive rates of `GRID`."""

    fpr: Floats
    tpr: Floats
    tpr_sd: Floats


def exact(
    scores: npt.ArrayLike,
    labels: npt.ArrayLike,
    patients: npt.ArrayLike,
    *,
    certain: npt.ArrayLike | None = None,
    weights: npt.ArrayLike | None = None,
    at_sensitivity: float = 0.9,
    resamples: int = 2000,
    seed: int = 0,
) -> Curves:
    """Curves from every row's own score (rows,) in 0..1, label (rows,) 0 or 1, and patient (rows,).

    Rows count alike, or by `weights`; to compare with a histogram, where patients count alike, give each row 1 / the number
    of its patient's rows. `certain` (rows,) says which rows count for `auc_certain`, the AUC of these alone.

    Intervals are those of as many independent rows as tell as much as these patients do: for the AUC by drawing patients
    with replacement (`intervals.clustered_auc_interval`), for each of the ten calibration bins by the spread between its
    patients (Rao and Scott 1992, Biometrics 48, 577). Where fewer than 2 patients have a row of one class there is none.

    A class that is absent gives Curves without AUC, which say so. Raises `ValueError` for arrays that don't fit each other,
    and for scores, labels or weights outside their range.
    """
    s, y = checked(scores, labels)
    w = np.ones(len(s)) if weights is None else np.asarray(weights, dtype=np.float64)
    names = np.asarray(patients)
    sure = np.ones(len(s), bool) if certain is None else np.asarray(certain).astype(bool)
    for what, array in (("patient", names), ("weight", w), ("certainty", sure)):
        if array.shape != s.shape:
            raise ValueError(f"one {what} per row is needed: {len(s)} rows, but an array of shape {array.shape}")
    if not (np.isfinite(w) & (w >= 0)).all():
        raise ValueError("weights must be 0 or positive numbers")
    kept = w > 0
    s, y, names, sure, w = s[kept], y[kept], names[kept], sure[kept], w[kept]
    if not len(s):
        return Curves(0, 0, words="no rows")
    owner = np.unique(names, return_inverse=True)[1]
    per_patient = np.bincount(owner, weights=w)
    share = w / per_patient[owner]
    positives, negatives = float(share[y == 1].sum()), float(share[y == 0].sum())
    bins, ece, by_chance = _quantile_bins(s, y, owner, w)
    common: dict[str, Any] = {
        "brier": float(np.average((s - y) ** 2, weights=w)),
        "calibration": bins,
        "ece": ece,
        "ece_by_chance": by_chance,
    }
    auc = _auc(s, y, owner, w, resamples, seed)
    if auc is None:
        absent = "positive" if not (y == 1).any() else "negative"
        words = f"no {absent} row among {len(per_patient)} patients: no ROC curve"
        return Curves(negatives, positives, words=words, **common)
    fpr, tpr, thresholds = roc_curve(y, s, sample_weight=w, drop_intermediate=False)
    return Curves(
        negatives,
        positives,
        words="fewer than 2 patients have a row of one class: no interval" if auc.low is None else None,
        auc=auc.value,
        low=auc.low,
        high=auc.high,
        auc_certain=None if certain is None else _auc(s[sure], y[sure], owner[sure], w[sure], resamples, seed),
        fpr=GRID.copy(),
        tpr=_on_grid(fpr, tpr),
        youden=OperatingPoint.youden(thresholds[1:], tpr[1:], 1 - fpr[1:]),  # the first calls nobody positive
        at_sensitivity=OperatingPoint.reaching(at_sensitivity, thresholds[1:], tpr[1:], 1 - fpr[1:]),
        **common,
    )


def mean_roc(folds: Sequence[Curves]) -> MeanRoc | None:
    """Mean and SD over folds (n - 1) at the false-positive rates of `GRID`; None if no fold has an ROC curve.

    Folds are averaged at equal false-positive rates. At 0 it is the share found before the first false alarm.
    """
    curves = np.array([_on_grid(fold.fpr, fold.tpr) for fold in folds if len(fold.fpr)])
    if not len(curves):
        return None
    spread = curves.std(axis=0, ddof=1) if len(curves) > 1 else np.zeros(len(GRID))
    return MeanRoc(GRID.copy(), curves.mean(axis=0), spread)


def checked(scores: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[Floats, npt.NDArray[np.intp]]:
    """Scores (rows,) and labels (rows,) as arrays. Raises `ValueError`, in words, unless they are in 0..1 and 0 or 1."""
    s, y = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    if s.ndim != 1 or y.shape != s.shape:
        raise ValueError(f"one score and one label per row are needed, not arrays of shape {s.shape} and {y.shape}")
    if missing := int(np.isnan(s).sum()):
        raise ValueError(f"{missing} of {len(s)} scores are not numbers (NaN); leave these rows out, or give them a score")
    if outside := int(((s < 0) | (s > 1)).sum()):
        raise ValueError(f"{outside} of {len(s)} scores are outside 0..1; scores must be probabilities")
    if strange := int((~np.isin(y, (0, 1))).sum()):
        raise ValueError(f"{strange} of {len(y)} labels are neither 0 nor 1")
    return s, y.astype(np.intp)


def calibration_error(bins: Sequence[CalibrationBin], variances: Sequence[float]) -> tuple[float, float]:
    """Expected calibration error, and its mean if every bin were calibrated: deviations are then normal around 0.

    `variances` are those of each bin's observed share where the predicted one is the true one.
    """
    share = np.array([item.count for item in bins]) / sum(item.count for item in bins)
    off = np.array([abs(item.observed - item.predicted) for item in bins])
    return float(share @ off), float(share @ np.sqrt(np.asarray(variances) * 2 / np.pi))


def _quantile_bins(
    s: Floats, y: npt.NDArray[np.intp], owner: npt.NDArray[np.intp], w: Floats
) -> tuple[tuple[CalibrationBin, ...], float, float]:
    edges = np.unique(np.quantile(s, np.linspace(0, 1, _QUANTILE_BINS + 1)[1:-1]))
    place = np.searchsorted(edges, s, side="right")
    bins, variances = [], []
    for index in np.unique(place):
        mine = place == index
        weight, theirs = w[mine], np.unique(owner[mine], return_inverse=True)[1]
        observed, predicted = (float(np.average(of[mine], weights=weight)) for of in (y, s))
        off = np.bincount(theirs, weights=weight * (y[mine] - observed))  # (patients,)
        size = people = float(len(off))  # all rows of a patient alike, unless their spread shows that they tell more
        if 0 < observed < 1 and people > 1:
            variance = people / (people - 1) * float(off @ off) / float(weight.sum()) ** 2
            size = min(max(observed * (1 - observed) / max(variance, 1e-12), people), float(len(theirs)))
        bins.append(CalibrationBin(predicted, observed, *share_interval(observed * size, size), count=len(theirs)))
        variances.append(predicted * (1 - predicted) / size)
    return tuple(bins), *calibration_error(bins, variances)


def _auc(
    s: Floats, y: npt.NDArray[np.intp], owner: npt.NDArray[np.intp], w: Floats, resamples: int, seed: int
) -> Interval | None:
    have = [len(np.unique(owner[y == label])) for label in (0, 1)]
    if not min(have):
        return None
    value = float(roc_auc_score(y, s, sample_weight=w))
    if min(have) < 2:
        return Interval(value, None, None)
    drawn = resampled_aucs(s, y, owner, w, resamples=resamples, seed=seed)
    negative, positive = (float(one.sum() ** 2 / (one**2).sum()) for one in (w[y == 0], w[y == 1]))
    low, high = clustered_auc_interval(value, drawn, patients=(have[0], have[1]), rows=(negative, positive))
    return Interval(value, low, high)


def _on_grid(fpr: Floats, tpr: Floats) -> Floats:
    return np.asarray(np.interp(GRID + 1e-12, fpr, tpr), dtype=np.float64)  # at a jump, its upper end
