"""Means with bootstrap confidence intervals, grouped by patient and, where there are several seeds, by seed.

The patient is what is resampled, within the hospital: hospitals are the ones the study has, patients are a sample. A
training seed is resampled as a whole, crossed with patients, because every seed is tested on the same ones. Intervals are
percentile intervals (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, ch. 13) from a fixed generator, so that
a report written twice says the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite, nan

import numpy as np
import numpy.typing as npt

Key = tuple[int, str, str]
"""Whose value it is: (seed, hospital, patient)."""

Values = Mapping[Key, float]
"""One number per seed, hospital and patient. NaN where it is undefined."""

SEEDS_FOR_A_CLAIM = 3
"""Fewer seeds show what one training run did, not what the method does."""


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval; NaN where nothing was measured."""

    value: float
    low: float
    high: float
    patients: int
    seeds: int

    def __bool__(self) -> bool:
        """Whether there is a number at all."""
        return isfinite(self.value)

    @property
    def above_zero(self) -> bool:
        """Shown to be above 0: at least three seeds, and an interval that leaves 0 out."""
        return self.seeds >= SEEDS_FOR_A_CLAIM and self.low > 0

    @property
    def below_zero(self) -> bool:
        """Shown to be below 0: at least three seeds, and an interval that leaves 0 out."""
        return self.seeds >= SEEDS_FOR_A_CLAIM and self.high < 0


NOTHING = Estimate(nan, nan, nan, 0, 0)


def mean(values: Values, *, resamples: int = 2000, seed: int = 20_261, confidence: float = 0.95) -> Estimate:
    """Mean over seeds of the mean over hospitals of the mean over patients, with its bootstrap interval.

    Every hospital counts alike, however many patients it has. With one patient or less per hospital, and one seed,
    there is nothing to resample and the interval is NaN.
    """
    values = {key: value for key, value in values.items() if isfinite(value)}
    if not values:
        return NOTHING
    seeds = sorted({key[0] for key in values})
    hospitals = sorted({key[1] for key in values})
    ones = np.ones((1, len(seeds)))
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(seeds), [1 / len(seeds)] * len(seeds), size=resamples).astype(float)  # (resamples, seeds)

    patients = 0
    points, replicates = [], []
    for hospital in hospitals:
        table = _table(values, hospital, seeds)  # (seeds, patients)
        n = table.shape[1]
        patients += n
        counts = rng.multinomial(n, [1 / n] * n, size=resamples).astype(float)  # (resamples, patients)
        points.append(_weighted(table, np.ones((1, n)), ones)[0])
        replicates.append(_weighted(table, counts, drawn))
    value = float(np.mean(points))
    if patients == len(hospitals) and len(seeds) == 1:
        return Estimate(value, nan, nan, patients, 1)
    # a resample can miss every patient that a hospital has a value for; it then says nothing
    overall = np.mean(replicates, axis=0)
    tail = (1 - confidence) / 2
    low, high = np.quantile(overall[np.isfinite(overall)], [tail, 1 - tail])
    return Estimate(value, float(low), float(high), patients, len(seeds))


def difference(first: Values, second: Values, *, fixed: bool = False) -> Estimate:
    """Mean of first - second over the seeds and patients that both have: paired, so that hard patients cancel.

    `fixed`: second is one given model, with scores of a single seed, and every seed of first is compared with it.
    """
    if fixed:
        given = {key[1:]: value for key, value in second.items()}
        second = {key: given[key[1:]] for key in first if key[1:] in given}
    return mean({key: first[key] - second[key] for key in first if key in second})


@dataclass(frozen=True)
class Spread:
    """How a training method scatters: its mean, and how far apart its seeds are."""

    mean: float
    between_seeds: float  # standard deviation of the seeds' means
    within_patient: float  # root mean square, over patients, of one patient's standard deviation across seeds
    seeds: int


def spread(values: Values) -> Spread:
    """Bias and variance of one arm across seeds. The standard deviations (n - 1) are NaN with a single seed."""
    seeds = sorted({key[0] for key in values})
    by_seed = [mean({key: v for key, v in values.items() if key[0] == s}, resamples=1).value for s in seeds]
    if len(seeds) < 2:
        return Spread(by_seed[0] if by_seed else nan, nan, nan, len(seeds))
    by_patient: dict[tuple[str, str], list[float]] = {}
    for (_, hospital, patient), value in values.items():
        if isfinite(value):
            by_patient.setdefault((hospital, patient), []).append(value)
    variances = [np.var(several, ddof=1) for several in by_patient.values() if len(several) > 1]
    within = float(np.sqrt(np.mean(variances))) if variances else nan
    return Spread(float(np.mean(by_seed)), float(np.std(by_seed, ddof=1)), within, len(seeds))


@dataclass(frozen=True)
class Agreement:
    """Bland and Altman's bias and limits of agreement (Lancet 1986), over patients."""

    bias: float
    low: float
    high: float
    patients: int


def agreement(differences: npt.NDArray[np.float64]) -> Agreement:
    """Bias and bias +- 1.96 standard deviations (n - 1) of the differences, shape (patients,), all finite."""
    bias = float(np.mean(differences))
    half = 1.96 * float(np.std(differences, ddof=1)) if len(differences) > 1 else nan
    return Agreement(bias, bias - half, bias + half, len(differences))


def _table(values: Values, hospital: str, seeds: list[int]) -> npt.NDArray[np.float64]:
    patients = sorted({key[2] for key in values if key[1] == hospital})
    return np.array([[values.get((s, hospital, patient), nan) for patient in patients] for s in seeds])


def _weighted(
    table: npt.NDArray[np.float64], patients: npt.NDArray[np.float64], seeds: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Weighted means (resamples,) of a table (seeds, patients) with holes, patients first, then seeds."""
    there = np.isfinite(table)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = (patients @ np.where(there, table, 0).T) / (patients @ there.T.astype(float))  # (resamples, seeds)
        usable = np.isfinite(means)
        result: npt.NDArray[np.float64] = (seeds * np.where(usable, means, 0)).sum(1) / (seeds * usable).sum(1)
    return result
