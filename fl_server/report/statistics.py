"""Means with bootstrap confidence intervals, grouped by patient and, where there are several seeds, by seed.

The patient is what is resampled, within the hospital: hospitals are the ones the study has, patients are a sample. A
training seed is resampled as a whole, crossed with patients, because every seed is tested on the same ones. Intervals are
percentile intervals (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, ch. 13) from a fixed generator, so that
a report written twice says the same.

Three seeds are too few to be resampled: where their luck is all there is, the percentile interval leaves 0 out whenever
three seeds share a sign, one time in four. A difference therefore also has to stand against Student's t, over the seeds and
over the patients; its interval is the widest of the three.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf, isfinite, nan, sqrt

import numpy as np
import numpy.typing as npt
from scipy import stats

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


FEWEST = 5
"""Patients below which a group has a mean, but no interval: no interval over so few means what it says."""


def group(values: Values, *, resamples: int = 2000, confidence: float = 0.95) -> Estimate:
    """Mean over patients, each counting alike whichever hospital they were in, with the interval of a small group.

    The interval holds the bootstrap's and Student's t over the patients (their means over the seeds): the bootstrap's alone is
    too narrow for ten. NaN below `FEWEST` patients.

    >>> group({(0, "A", f"{i}"): v for i, v in enumerate([0.8, 0.9])}).patients
    2
    """
    alike = {(seed, "", f"{hospital}/{patient}"): value for (seed, hospital, patient), value in values.items()}
    found = mean(alike, resamples=resamples, confidence=confidence)
    if found.patients < FEWEST:
        return replace(found, low=nan, high=nan)
    half = _half_width(_over_patients({key: value for key, value in alike.items() if isfinite(value)}), confidence)
    return replace(found, low=min(found.low, found.value - half), high=max(found.high, found.value + half))


def difference(
    first: Values, second: Values, *, fixed: bool = False, resamples: int = 2000, confidence: float = 0.95
) -> Estimate:
    """Mean of first - second over the seeds and patients that both have: paired, so that hard patients cancel.

    The interval holds the bootstrap's and two t intervals: over the seeds' means (seeds - 1 degrees of freedom) where there
    are several seeds, and over the patients within their hospitals. It is NaN where no hospital has two patients.
    `fixed`: second is one given model, with scores of a single seed, and every seed of first is compared with it.
    """
    if fixed:
        given = {key[1:]: value for key, value in second.items()}
        second = {key: given[key[1:]] for key in first if key[1:] in given}
    gaps = {key: first[key] - second[key] for key in first if key in second and isfinite(first[key] - second[key])}
    found = mean(gaps, resamples=resamples, confidence=confidence)
    if not found:
        return found
    half = max(_half_width(_over_seeds(gaps), confidence), _half_width(_over_patients(gaps), confidence))
    if not isfinite(half):
        return replace(found, low=nan, high=nan)
    return replace(found, low=min(found.low, found.value - half), high=max(found.high, found.value + half))


def seed_means(values: Values) -> list[float]:
    """The mean of each seed by itself, in the seeds' order; every hospital counts alike."""
    return [
        mean({key: v for key, v in values.items() if key[0] == s}, resamples=1).value for s in sorted({k[0] for k in values})
    ]


@dataclass(frozen=True)
class Spread:
    """How a training method scatters: its mean, and how far apart its seeds are."""

    mean: float
    between_seeds: float  # standard deviation of the seeds' means
    within_patient: float  # root mean square, over patients, of one patient's standard deviation across seeds
    seeds: int


def spread(values: Values) -> Spread:
    """Bias and variance of one arm across seeds. The standard deviations (n - 1) are NaN with a single seed."""
    by_seed = seed_means(values)
    if len(by_seed) < 2:
        return Spread(by_seed[0] if by_seed else nan, nan, nan, len(by_seed))
    by_patient: dict[tuple[str, str], list[float]] = {}
    for (_, hospital, patient), value in values.items():
        if isfinite(value):
            by_patient.setdefault((hospital, patient), []).append(value)
    variances = [np.var(several, ddof=1) for several in by_patient.values() if len(several) > 1]
    within = float(np.sqrt(np.mean(variances))) if variances else nan
    return Spread(float(np.mean(by_seed)), float(np.std(by_seed, ddof=1)), within, len(by_seed))


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


Parts = list[tuple[float, int]]
"""What a mean is uncertain by: squared standard errors that add up, each with its degrees of freedom."""


def _over_seeds(values: Values) -> Parts:
    by_seed = [one for one in seed_means(values) if isfinite(one)]
    if len(by_seed) < 2:
        return [(0.0, 1)]  # one seed's luck can't be told; nothing is claimed from it either
    return [(float(np.var(by_seed, ddof=1)) / len(by_seed), len(by_seed) - 1)]


def _over_patients(values: Values) -> Parts:
    """A hospital with a single patient adds nothing; without any hospital that has two, the error is infinite."""
    hospitals: dict[str, dict[str, list[float]]] = {}
    for (_, hospital, patient), value in values.items():
        hospitals.setdefault(hospital, {}).setdefault(patient, []).append(value)
    means = [[float(np.mean(several)) for several in patients.values()] for patients in hospitals.values()]
    parts = [(float(np.var(m, ddof=1)) / len(m) / len(means) ** 2, len(m) - 1) for m in means if len(m) > 1]
    return parts or [(inf, 1)]


def _half_width(parts: Parts, confidence: float) -> float:
    """Half of a t interval's width, with Welch and Satterthwaite's degrees of freedom."""
    total = sum(squared for squared, _ in parts)
    if total == 0 or not isfinite(total):
        return total
    freedom = total**2 / sum(squared**2 / df for squared, df in parts)
    return float(stats.t.ppf((1 + confidence) / 2, freedom)) * sqrt(total)


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
