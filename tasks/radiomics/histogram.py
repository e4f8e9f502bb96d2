"""How good a federated classifier is, from a noisy histogram of its scores in which one patient moves entries by at most 1.

Every hospital counts its patients' scores in equal bins, negatives and positives apart, adds noise and publishes; ROC curve,
calibration and scores are computed from the sum and cost no privacy beyond it. Which part of all this noise, and which the
number of patients, leaves uncertain is said with every figure.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import isotonic_regression
from scipy.special import chdtri

from conf.study import LARGEST_NUMBER
from tasks.radiomics.bounded import divided
from tasks.radiomics.curves import CalibrationBin, Curves, Floats, OperatingPoint, calibration_error, checked
from tasks.radiomics.intervals import auc_interval, share_interval

_WEIGHT_ONE = 1 << 12  # a row's weight in whole steps
_HEARD = 3.0  # a class is heard if its number exceeds this many standard deviations of the noise on it
_BIN_HEARD = 4.0  # likewise for the patients in one point of the calibration curve
_BIN_PATIENTS = 5.0  # and at least so many,
_BIN_SHARE = 0.1  # and at least this share of all


def contribution(scores: npt.ArrayLike, labels: npt.ArrayLike, *, bins: int, weights: npt.ArrayLike | None = None) -> Floats:
    """What ONE patient with `scores` (rows,) in 0..1 and `labels` (rows,) 0 or 1 adds: (2 * bins,), of L1 norm at most 1.

    A row falls into bin floor(score * bins), a score of 1 into the last, and counts 1 / rows, times its weight (rows,) in
    0..1 where there are weights. Negatives stand first, then positives. No rows: zeros.

    The bound, for any rows: a row's weight is cut off to w whole steps of 2^-12, w at most 2^12, and falls into one entry.
    An entry that collects W steps becomes W * 2^30 // (rows * 2^12) steps of 2^-30, in integers of any size. All W add up to
    at most rows * 2^12, hence the entries to at most 2^30 steps, which is 1. All are positive, so this is the L1 norm, and
    the L2 norm is at most that. Results are whole multiples of 2^-30: a sum of fewer than 2^23 patients is exact and the
    same in any order, over any sites.

    Raises `ValueError` for scores that are NaN or outside 0..1, other labels, weights outside 0..1, fewer than 2 bins.
    """
    _require_bins(bins)
    s, y = checked(scores, labels)
    given = np.ones(len(s)) if weights is None else np.asarray(weights, dtype=np.float64)
    if given.shape != s.shape or not ((given >= 0) & (given <= 1)).all():
        raise ValueError(f"weights must be one number from 0 to 1 per row; there are {len(s)} rows")
    collected = np.zeros(2 * bins, np.int64)
    entry = np.minimum((s * bins).astype(np.int64), bins - 1) + bins * y
    np.add.at(collected, entry, np.floor(given * _WEIGHT_ONE).astype(np.int64))
    divisor = max(len(s), 1) * _WEIGHT_ONE
    return divided(collected.tolist(), divisor)


def curves(histogram: npt.ArrayLike, *, bins: int, noise_std: float, at_sensitivity: float = 0.9) -> Curves:
    """Curves from the sum over all patients and sites (2 * bins,), each entry with Gaussian noise of `noise_std` in total.

    For n sites that each add multiplier z that is z * sqrt(n). Rows of one bin are ties. Where one class, or either, is no
    more than three standard deviations of the noise on its number, nothing is said but that (`words`).

    Noise makes entries negative. Where a class's entries are, within the noise, a single hill (rising, then falling), the
    nearest hill replaces them; then all are lowered alike until what is left above 0 has the sum that was there. In
    simulations this came nearest to the AUC without noise, by a tenth to a third nearer than entries as they are (others:
    cut at 0; lowered alone; smoothed). Where a class has two hills that the noise hides it costs a tenth; once they can be
    seen, they are kept.

    `auc_noise_sd` is what the noise alone does to the AUC given here (delta method). With few patients per bin the AUC is,
    beside that, too near to 0.5 by up to half of it: noise that is kept from being negative looks like patients without a
    rank. The interval takes the noise as if no hill had been assumed, which makes room for this. And it adds the chance of
    who the patients are, as if a patient were one row: with several rows it is rather too wide.

    How far the AUC is from that of the exact scores, on average, for scores of an AUC of 0.85 that fill 20 bins: with six
    sites at epsilon 3 and delta 0.001 each 0.12 for 60 patients (nine such cohorts in ten give none), 0.04 for 200, 0.014 for
    600; with the noise of one such site in all 0.06, 0.02 and 0.006. Scores that lie in few bins look worse by their ties:
    by about 0.01 in seven of 20 bins.

    Raises `ValueError` for a histogram of another length or with entries that aren't finite or beyond 2^53, and for a negative
    noise.
    """
    _require_bins(bins)
    entries = np.asarray(histogram, dtype=np.float64)
    if entries.shape != (2 * bins,) or not np.isfinite(entries).all():
        raise ValueError(f"the histogram must be {2 * bins} finite numbers for {bins} bins, not an array of {entries.shape}")
    if (most := float(np.abs(entries).max())) > LARGEST_NUMBER:
        raise ValueError(f"the histogram counts {most:.3g} in a bin; beyond {LARGEST_NUMBER} numbers are no longer exact")
    if not 0 <= noise_std < math.inf:
        raise ValueError(f"noise_std must be 0 or a positive number, not {noise_std}")
    raw = entries.reshape(2, bins)
    n, p = (float(total) for total in raw.sum(axis=1))
    told = Curves(n, p, noise_std=float(noise_std), bins=bins)
    noise = noise_std * math.sqrt(bins)
    if lost := [f"{found:.1f} {what}" for what, found in (("negatives", n), ("positives", p)) if found <= _HEARD * noise]:
        heard = f" where the noise alone has a standard deviation of {noise:.1f}" if noise else ""
        return replace(told, words=f"no curve can be drawn: counted were {' and '.join(lost)}{heard}")
    (negative, of_negative), (positive, of_positive) = (_cleaned(one, noise_std) for one in raw)

    below = (np.cumsum(negative) - negative / 2) / n  # per positive in a bin: the share of negatives that it beats
    above = 1 - (np.cumsum(positive) - positive / 2) / p
    auc = float(positive @ below / p)
    slopes = (above - auc) / n, (below - auc) / p  # of the AUC by each entry of a class
    auc_sd = math.hypot(_deviation(slopes[0], of_negative), _deviation(slopes[1], of_positive)) * noise_std
    unshaped = math.hypot(*(float(np.linalg.norm(slope)) for slope in slopes)) * noise_std
    low, high = auc_interval(auc, positives=p, negatives=n, noise_sd=unshaped)

    thresholds = np.arange(bins, -1, -1) / bins
    tpr = np.concatenate([[0], np.cumsum(positive[::-1])]) / p
    fpr = np.concatenate([[0], np.cumsum(negative[::-1])]) / n
    tpr[-1] = fpr[-1] = 1.0

    def point(chosen: OperatingPoint) -> OperatingPoint:
        called = np.arange(bins) >= round(chosen.threshold * bins)
        return replace(
            chosen,
            sensitivity_noise_sd=_deviation((called - chosen.sensitivity) / p, of_positive) * noise_std,
            specificity_noise_sd=_deviation((~called - chosen.specificity) / n, of_negative) * noise_std,
        )

    centres: Floats = (np.arange(bins) + 0.5) / bins
    brier = float(negative @ centres**2 + positive @ (1 - centres) ** 2) / (n + p)
    brier_slopes = (centres**2 - brier) / (n + p), ((1 - centres) ** 2 - brier) / (n + p)
    groups = _groups(raw.sum(axis=0), noise_std)
    calibration = tuple(_calibration_bin(raw[:, one], negative[one] + positive[one], centres[one], noise_std) for one in groups)
    chance = [
        b.predicted * (1 - b.predicted) / b.count
        + (one.stop - one.start) * (noise_std / b.count) ** 2 * (b.predicted**2 + (1 - b.predicted) ** 2)
        for b, one in zip(calibration, groups, strict=True)
    ]
    ece, by_chance = calibration_error(calibration, chance) if groups else (None, None)
    return replace(
        told,
        auc=auc,
        low=low,
        high=high,
        auc_noise_sd=auc_sd,
        fpr=fpr,
        tpr=tpr,
        youden=point(OperatingPoint.youden(thresholds[1:], tpr[1:], 1 - fpr[1:])),
        at_sensitivity=point(OperatingPoint.reaching(at_sensitivity, thresholds[1:], tpr[1:], 1 - fpr[1:])),
        calibration=calibration,
        brier=brier,
        brier_noise_sd=math.hypot(_deviation(brier_slopes[0], of_negative), _deviation(brier_slopes[1], of_positive))
        * noise_std,
        ece=ece,
        ece_by_chance=by_chance,
    )


def _require_bins(bins: int) -> None:
    if bins < 2:
        raise ValueError(f"a histogram of scores needs at least 2 bins, not {bins}")


def _cleaned(entries: Floats, noise_std: float) -> tuple[Floats, npt.NDArray[np.intp]]:
    """Entries without negatives and of the same sum; and which of them move as one, by number, -1 for those held at 0."""
    shaped = entries
    if noise_std > 0:
        hill = _hill(entries)
        if float(((hill - entries) ** 2).sum()) <= noise_std**2 * chdtri(len(entries), 0.5):  # chi-square, its median
            shaped = hill
    total, falling = entries.sum(), np.sort(shaped)[::-1]
    lowered = (np.cumsum(falling) - total) / np.arange(1, len(entries) + 1)  # the nearest point of a simplex
    cleaned = np.maximum(shaped - lowered[np.flatnonzero(falling > lowered)[-1]], 0)
    new = np.ones(len(entries), bool) if shaped is entries else np.diff(cleaned, prepend=-1.0) != 0
    return cleaned, np.where(cleaned > 0, np.cumsum(new) - 1, -1)


def _hill(entries: Floats) -> Floats:
    """The nearest sequence that rises and then falls (least squares)."""
    top = int(np.argmin(_rising_errors(entries) + _rising_errors(entries[::-1])[::-1]))
    pieces = [isotonic_regression(piece).x if len(piece) else piece for piece in (entries[:top], entries[top:][::-1])]
    return np.concatenate([pieces[0], pieces[1][::-1]])


def _rising_errors(entries: Floats) -> Floats:
    """The squared distance of every beginning of the entries from the nearest rising sequence, (len(entries) + 1,)."""
    level: list[tuple[float, int]] = []  # pieces that are flat in the nearest sequence so far: sum, length
    errors, square, explained = [0.0], 0.0, 0.0
    for entry in entries.tolist():
        total, size = entry, 1
        while level and level[-1][0] * size >= total * level[-1][1]:
            more, longer = level.pop()
            explained -= more**2 / longer
            total, size = total + more, size + longer
        level.append((total, size))
        explained += total**2 / size
        square += entry**2
        errors.append(square - explained)
    return np.array(errors)


def _deviation(slope: npt.NDArray[np.floating[Any]], moving: npt.NDArray[np.intp]) -> float:
    """How much noise of deviation 1 on every entry moves what changes by `slope` per cleaned entry (delta method).

    Entries of a flat piece share their mean noise, entries held at 0 hand theirs to all others alike.
    """
    alive = moving >= 0
    group = np.unique(moving[alive], return_inverse=True)[1]
    means = np.bincount(group, weights=slope[alive]) / np.bincount(group)
    return math.sqrt(float((means[group] ** 2).sum()) + float((~alive).sum()) * float(slope[alive].mean()) ** 2)


def _groups(counts: Floats, noise_std: float) -> list[slice]:
    """Neighbouring bins, as few in a group as give it clearly more patients than noise; what is left joins the last."""
    groups: list[slice] = []
    least = max(_BIN_PATIENTS, _BIN_SHARE * float(counts.sum()))
    start = 0
    for stop in range(1, len(counts) + 1):
        if counts[start:stop].sum() >= max(least, _BIN_HEARD * noise_std * math.sqrt(2 * (stop - start))):
            groups.append(slice(start, stop))
            start = stop
    if groups and start < len(counts) and counts[groups[-1].start :].sum() > 0:  # noise may be more negative than all of it
        groups[-1] = slice(groups[-1].start, len(counts))
    return groups


def _calibration_bin(raw: Floats, cleaned: Floats, centres: Floats, noise_std: float) -> CalibrationBin:
    count, positives = float(raw.sum()), float(raw[1].sum())
    low, high = share_interval(positives, count, noise_variance=noise_std**2 * raw.shape[1])
    observed = min(max(positives / count, 0.0), 1.0)
    predicted = float(cleaned @ centres / cleaned.sum()) if cleaned.any() else float(centres.mean())
    return CalibrationBin(predicted, observed, min(low, observed), max(high, observed), count)
