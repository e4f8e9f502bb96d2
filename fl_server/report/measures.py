"""Single figures of the report: how well doubt finds errors, how far two scans differ, how honest a probability is.

Each is a small function of arrays over patients. Intervals by bootstrap come from a fixed generator: a report that is written
twice says the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, exp, inf, isfinite, nan, sqrt

import numpy as np
import numpy.typing as npt
from scipy import stats

Floats = npt.NDArray[np.float64]
Z = 1.96
"""Standard deviations on either side that hold 95 % of a normal distribution."""


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval (NaN: none) over so many patients."""

    value: float
    low: float
    high: float
    patients: int


NONE = Interval(nan, nan, nan, 0)


def rank_correlation(first: Sequence[float], second: Sequence[float], *, resamples: int = 2000) -> Interval:
    """Spearman's rank correlation of two numbers per patient, with the bootstrap's percentile interval from ten patients on.

    NaN with fewer than three patients, or where one of the numbers is the same for everybody.
    """
    table = np.array([pair for pair in zip(first, second, strict=True) if all(map(isfinite, pair))], np.float64)
    n = len(table)
    if n < 3 or not np.ptp(table, axis=0).all():
        return Interval(nan, nan, nan, n)
    value = float(_spearman(table))
    if n < 10:
        return Interval(value, nan, nan, n)
    drawn = table[np.random.default_rng(20_262).integers(n, size=(resamples, n))]  # (resamples, n, 2)
    found = _spearman(drawn)
    low, high = np.quantile(found[np.isfinite(found)], [0.025, 0.975])
    return Interval(value, float(low), float(high), n)


def _spearman(tables: Floats) -> Floats:
    """Of tables (..., n, 2): correlation of the columns' ranks (...); NaN where a column is constant."""
    ranks = stats.rankdata(tables, axis=-2)
    ranks -= ranks.mean(axis=-2, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Floats = (ranks[..., 0] * ranks[..., 1]).sum(-1) / np.sqrt((ranks**2).sum(-2).prod(-1))
    return found


@dataclass(frozen=True)
class Looked:
    """What a person finds who looks first at the patients with the most doubt.

    Of `patients`, `looked` were looked at. Of the same number with the largest errors `caught` were among them, by chance
    `expected` would be. `error_looked` and `error_rest` are the mean errors of those looked at and of the others.
    """

    patients: int
    looked: int
    caught: int
    expected: float
    error_looked: float
    error_rest: float


def look_first(doubt: Sequence[float], error: Sequence[float], *, share: float = 0.1) -> Looked | None:
    """Look at the `share` of patients (at least one) with the most doubt. None with fewer than two patients.

    >>> look_first([0.1, 0.9, 0.2, 0.3], [0.05, 0.5, 0.06, 0.07], share=0.25).caught
    1
    """
    pairs = [pair for pair in zip(doubt, error, strict=True) if all(map(isfinite, pair))]
    n = len(pairs)
    if n < 2:
        return None
    k = max(1, ceil(share * n - 1e-9))
    by_doubt = sorted(range(n), key=lambda i: (-pairs[i][0], i))[:k]
    worst = sorted(range(n), key=lambda i: (-pairs[i][1], i))[:k]
    rest = [pairs[i][1] for i in range(n) if i not in by_doubt]
    return Looked(
        patients=n,
        looked=k,
        caught=len(set(by_doubt) & set(worst)),
        expected=k * k / n,
        error_looked=float(np.mean([pairs[i][1] for i in by_doubt])),
        error_rest=float(np.mean(rest)) if rest else nan,
    )


@dataclass(frozen=True)
class Repeatability:
    """Two measurements of each patient: mean change, within-patient standard deviation, coefficient of repeatability.

    95 % of pairs are expected to differ by less than the coefficient, whose 95 % interval is low..high.
    """

    change: float
    within: float
    coefficient: float
    low: float
    high: float
    patients: int


def repeatability(first: Sequence[float], second: Sequence[float]) -> Repeatability | None:
    """Within-patient variance = sum of squared differences / 2n; coefficient = 1.96 sqrt(2) times its root.

    Bland and Altman 1999, Stat Methods Med Res 8:135; the interval from chi-squared with n degrees of freedom. None without
    a patient with two measurements.
    """
    gaps = np.array([b - a for a, b in zip(first, second, strict=True) if isfinite(a) and isfinite(b)], np.float64)
    n = len(gaps)
    if not n:
        return None
    within = sqrt(float((gaps**2).sum()) / (2 * n))
    coefficient = Z * sqrt(2) * within
    low, high = nan, nan
    if n > 1:
        low, high = (coefficient * sqrt(n / float(stats.chi2.ppf(q, n))) for q in (0.975, 0.025))
    return Repeatability(float(gaps.mean()), within, coefficient, low, high, n)


def sum_interval(value: float, noise_sd: float, patients: float) -> tuple[tuple[float, float], tuple[float, float]]:
    """Two 95 % intervals of a mean of numbers between 0 and 1 that was read from a noisy sum.

    The first holds the noise alone. The second also holds the luck of which patients were there, of which a sum tells nothing
    but a limit: a mean m of numbers in 0..1 has a variance of at most m (1 - m) per patient. NaN for less than one patient.
    """
    spread = max(value * (1 - value), 0.0) / patients if patients >= 1 else inf
    both = []
    for variance in (noise_sd**2, noise_sd**2 + spread):
        half = Z * sqrt(variance) if isfinite(variance) else nan
        both.append((max(value - half, 0.0), min(value + half, 1.0)) if isfinite(half) else (nan, nan))
    return both[0], both[1]


def best_guess(epsilon: float, delta: float) -> float:
    """How often the best possible guess whether somebody took part is right, if both were equally likely before: at most so.

    (e^epsilon + delta) / (1 + e^epsilon), from the trade-off between false alarms and misses; Kairouz, Oh and Viswanath 2015,
    arXiv:1311.0776.

    >>> round(best_guess(1.0, 0.0), 3)
    0.731
    """
    odds = exp(min(epsilon, 700.0))
    return min((odds + delta) / (1 + odds), 1.0)


def raised(prior: float, epsilon: float) -> float:
    """What a belief of probability `prior` can grow to at most, if its odds are multiplied by e^epsilon.

    >>> round(raised(0.1, 1.0), 3)
    0.232
    """
    odds = exp(min(epsilon, 700.0)) * prior / (1 - prior)
    return odds / (1 + odds)


@dataclass(frozen=True)
class Reliability:
    """Predicted probability against what was drawn: a point per bin that is not empty, and what it amounts to.

    `error` is the expected calibration error (Guo et al. 2017, arXiv:1706.04599), `excess` mean probability minus drawn share:
    above 0 the model claims more than is there.
    """

    points: tuple[tuple[float, float], ...]
    error: float
    excess: float
    voxels: int


def reliability(tables: Sequence[Sequence[tuple[int, float, int]]]) -> Reliability | None:
    """Of patients' tables (bins x (voxels, sum of probabilities, drawn)), added up. None without a voxel."""
    if not tables:
        return None
    bins = max(len(table) for table in tables)
    total = np.zeros((bins, 3))
    for table in tables:
        total[: len(table)] += np.array(table, np.float64).reshape(-1, 3)
    there = total[total[:, 0] > 0]
    voxels = float(there[:, 0].sum())
    if not voxels:
        return None
    predicted, drawn = there[:, 1] / there[:, 0], there[:, 2] / there[:, 0]
    return Reliability(
        points=tuple((float(p), float(d)) for p, d in zip(predicted, drawn, strict=True)),
        error=float((there[:, 0] * abs(predicted - drawn)).sum() / voxels),
        excess=float((there[:, 1] - there[:, 2]).sum() / voxels),
        voxels=int(voxels),
    )
