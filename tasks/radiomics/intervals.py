"""95 % intervals of an AUC and of a share, with room for noise of known size beside the chance of who the patients are.

Both ask which true values are within 1.96 standard deviations of what was found, the deviations being those at the true value
(score intervals). So they stay within 0..1, and few patients who were all right do not look like certainty. Where rows are
several per patient, resampled patients tell how many independent ones they are worth.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.stats import t as student

Floats = npt.NDArray[np.float64]

Z = 1.959963984540054
"""95 % of a normal distribution lie within this many standard deviations."""


def auc_interval(auc: float, *, positives: float, negatives: float, noise_sd: float = 0.0) -> tuple[float, float]:
    """The interval of an AUC from so many independent patients, on which there is noise of standard deviation `noise_sd`.

    Without noise it is method 5 of Newcombe 2006 (Statistics in Medicine 25, 559), from Hanley and McNeil's 1982 deviation.
    """
    m, n = max(positives, 1.0), max(negatives, 1.0)

    def beyond(true: float) -> float:
        return (auc - true) ** 2 - Z**2 * (_auc_variance(true, m, n) + noise_sd**2)

    inside = min(max(auc, 1e-9), 1 - 1e-9)
    if beyond(inside) >= 0:  # so many patients, or so large a number said to be theirs, that nothing is left uncertain
        return inside, inside
    low = float(brentq(beyond, 0, inside)) if beyond(0) > 0 else 0.0
    high = float(brentq(beyond, inside, 1)) if beyond(1) > 0 else 1.0
    return low, high


def clustered_auc_interval(
    auc: float, resampled: Floats, *, patients: tuple[int, int], rows: tuple[float, float]
) -> tuple[float, float]:
    """The interval of an AUC over rows, from the AUCs of resampled patients: that of as many independent rows as tell as much.

    `patients` who have a row of (negative, positive) label, two at least, and `rows` of each, are the least and the most
    that number can be. Student's factor is for the spread being estimated. Percentiles of the resampled AUCs are too narrow
    for few patients and near 1: in simulations of 5 to 60 patients they held the true AUC in 38 to 96 of 100 cohorts, this
    interval in 84 to 100.
    """
    few = min(patients)
    spread = float(np.nanvar(resampled)) * few / (few - 1) * (float(student.ppf(0.975, few - 1)) / Z) ** 2
    least = _auc_variance(auc, *patients)
    more = min(max(least / spread, 1.0), max(rows)) if 0 < auc < 1 and spread > 0 else 1.0
    negatives, positives = (min(people * more, most) for people, most in zip(patients, rows, strict=True))
    return auc_interval(auc, positives=positives, negatives=negatives)


def share_interval(positives: float, count: float, *, noise_variance: float = 0.0) -> tuple[float, float]:
    """The interval of a share, `positives` of `count`, where positives and negatives each carry noise of that variance.

    Without noise it is Wilson's 1927; where noise swamps the count it is 0..1.
    """
    noise = Z**2 * noise_variance
    square = count**2 + Z**2 * count - 2 * noise  # square * p^2 + linear * p + constant <= 0 for the shares p that fit
    linear = -2 * positives * count - Z**2 * count + 2 * noise
    constant = positives**2 - noise
    root = linear**2 - 4 * square * constant
    if count <= 0 or square <= 0 or root < 0:
        return 0.0, 1.0
    low, high = ((-linear + sign * math.sqrt(root)) / (2 * square) for sign in (-1, 1))
    return (max(low, 0.0), min(high, 1.0)) if low < 1 and high > 0 else (0.0, 1.0)


def resampled_aucs(
    scores: Floats, labels: npt.NDArray[np.intp], patients: npt.NDArray[Any], weights: Floats, *, resamples: int, seed: int
) -> Floats:
    """The AUC of each of `resamples` cohorts drawn from these patients with replacement; NaN where one lacks a class."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-1.0))  # rows of equal score are ties
    mine = np.unique(patients, return_inverse=True)[1][order]
    weight = np.stack([weights[order] * (labels[order] == label) for label in (0, 1)])  # (2, rows)
    count = int(mine.max()) + 1
    rng = np.random.default_rng(seed)
    drawn = np.zeros(resamples)
    for first in range(0, resamples, 64):  # a few MB at a time stay in the cache
        size = min(64, resamples - first)
        times = rng.multinomial(count, np.full(count, 1 / count), size=size)[:, mine].astype(np.float64)
        negative, positive = (np.add.reduceat(times * one, starts, axis=1) for one in weight)
        below = np.cumsum(negative, axis=1) - negative / 2
        pairs = negative.sum(axis=1) * positive.sum(axis=1)
        won = (positive * below).sum(axis=1)
        drawn[first : first + size] = np.divide(won, pairs, out=np.full(size, np.nan), where=pairs > 0)
    return drawn


def _auc_variance(auc: float, m: float, n: float) -> float:
    others = (m + n) / 2 - 1
    return auc * (1 - auc) * (1 + others * ((1 - auc) / (2 - auc) + auc / (1 + auc))) / (m * n)
