"""Scanners made comparable (ComBat), from sums that hospitals can add up, so that the federation finds what pooled data would.

Each scanner gets one shift and one scale per column, drawn towards what its other columns say (empirical Bayes). All of it
depends on the rows through counts, sums and products only. Johnson et al. 2007 (Biostatistics 8:118); Fortin et al. 2018
(NeuroImage 167:104) for imaging; from sums over sites Chen et al. 2022 (Hum Brain Mapp 43:1289).

The sums can come from generated scans of the same patients on every scanner, which costs no privacy; from one bounded vector
per patient under noise (`contribution`, `moments_of`); or, where nothing is promised, from the rows (`Moments.of`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from conf.study import Frozen
from tasks.radiomics.bounded import shortened
from tasks.radiomics.forest import Feature

Floats = npt.NDArray[np.float64]

_STEPS = 1 << 20  # a value's steps between the middle of its bounds and a bound, in a patient's contribution
_COUNT_WEIGHT = 0.5  # of a count beside a sum: the noise of a count matters less, as mean values lie near the middle
_LEAST_VARIANCE = 1e-12  # below this (bounds at -1 and 1) a column doesn't vary: it is where sums of squares round
_LEAST_NOISY_VARIANCE = 1e-3  # what a variance is at least where noise may have made it negative: 1/60 of the bounds' width


def scanner_name(scanner: Mapping[str, float | str]) -> str:
    """The name under which a case's scanner is harmonised: `"SIEMENS 1.5 T"`."""
    return f"{scanner.get('manufacturer', 'unknown')} {float(scanner.get('field_strength_t', 0)):g} T"


@dataclass(frozen=True, eq=False)
class Moments:
    """What a scanner's rows add up to; hospitals with the same scanner add theirs.

    `gram` (columns, 2 + covariates, 2 + covariates): for each column the sum of z z' over the rows that have a value there,
    z = (1, value, covariates...), all between -1 and 1 at their public bounds. So `gram[:, 0, 0]` are counts, `gram[:, 0, 1]`
    sums and `gram[:, 1, 1]` sums of squares.
    """

    features: tuple[Feature, ...]
    covariates: tuple[Feature, ...]
    gram: Floats
    noise_std: float = 0.0  # of each sum, sum of squares, and (times 1 / 0.5) count; 0 for exact ones

    @classmethod
    def of(
        cls,
        X: npt.ArrayLike,
        features: Sequence[Feature],
        *,
        Z: npt.ArrayLike | None = None,
        covariates: Sequence[Feature] = (),
    ) -> Moments:
        """The exact sums of a table `X` (rows, features), and of the rows' covariates `Z` (rows, covariates) if there are any.

        Each row counts one. Missing values (NaN) are left out of their column, rows with a missing covariate out of all.
        Values beyond their bounds count as the bound. Raises `ValueError` for another number of columns or rows.
        """
        table = _unit(X, features)
        beside = _unit(np.empty((len(table), 0)) if Z is None else Z, covariates)
        if len(beside) != len(table):
            raise ValueError(f"one row of covariates per row is needed: {len(table)} rows, but {len(beside)} of covariates")
        whole = ~np.isnan(beside).any(axis=1)
        table, beside = table[whole], beside[whole]
        gram = np.zeros((len(features), 2 + len(covariates), 2 + len(covariates)))
        for column, values in enumerate(table.T):
            there = ~np.isnan(values)
            z = np.column_stack([np.ones(there.sum()), values[there], beside[there]])
            gram[column] = z.T @ z
        return cls(tuple(features), tuple(covariates), gram)

    def __add__(self, other: Moments) -> Moments:
        if (self.features, self.covariates) != (other.features, other.covariates):
            raise ValueError("moments of other columns, covariates or bounds can't be added")
        return replace(self, gram=self.gram + other.gram, noise_std=math.hypot(self.noise_std, other.noise_std))


class Reference(Frozen):
    """What a column is brought to: mean and standard deviation within scanners, and the slope along each covariate.

    On the scale where the column's and the covariates' public bounds are -1 and 1.
    """

    mean: float
    sd: Annotated[float, Field(gt=0)]
    slopes: tuple[float, ...] = ()


class Harmonisation(Frozen):
    """What harmonises a table: public settings, which can stand in a study.

    `scanners` holds, by scanner and column, (shift, scale): how far the scanner's values lie above the reference, in units
    of half the width of the bounds, and by which factor they spread more. A column that a scanner doesn't have there stays
    as it is, because too few values were seen or they never vary.
    """

    features: tuple[Feature, ...]
    covariates: tuple[Feature, ...] = ()
    references: dict[str, Reference]
    scanners: dict[str, dict[str, tuple[float, Annotated[float, Field(gt=0)]]]]

    @model_validator(mode="after")
    def _columns_are_known(self) -> Self:
        names = {feature.name for feature in self.features}
        for scanner, columns in self.scanners.items():
            if strange := sorted(set(columns) - (names & set(self.references))):
                raise ValueError(f"{scanner} has a shift for {', '.join(strange)}, without bounds or a reference for it")
        for name, reference in self.references.items():
            if len(reference.slopes) != len(self.covariates):
                raise ValueError(f"{name} has {len(reference.slopes)} slopes for {len(self.covariates)} covariates")
        return self

    def apply(
        self,
        X: npt.ArrayLike,
        scanner: str,
        *,
        Z: npt.ArrayLike | None = None,
        unknown: Literal["refuse", "keep"] = "refuse",
    ) -> Floats:
        """The table `X` (rows, features) of one scanner as the reference scanner would have measured it; NaN stays NaN.

        `Z` (rows, covariates) is needed where covariates were fitted: what they explain is kept. Harmonised values beyond
        their bounds are taken as the bound first. A scanner that nobody calibrated is refused (`ValueError`), or with
        `unknown="keep"` its table comes back as it is.
        """
        table = np.array(X, dtype=np.float64)
        unit = _unit(table, self.features)
        if scanner not in self.scanners:
            if unknown == "keep":
                return table
            raise ValueError(
                f"nobody calibrated the scanner '{scanner}'; there are shifts for {', '.join(self.scanners)}. "
                "Calibrate it, or keep its values as they are (unknown='keep')"
            )
        beside = _unit(np.empty((len(table), 0)) if Z is None else Z, self.covariates)
        if len(beside) != len(table) or np.isnan(beside).any():
            names = ", ".join(covariate.name for covariate in self.covariates)
            raise ValueError(f"every one of {len(table)} rows needs its covariates ({names})")
        for column, feature in enumerate(self.features):
            if feature.name in self.scanners[scanner]:
                shift, scale = self.scanners[scanner][feature.name]
                reference = self.references[feature.name]
                expected = reference.mean + beside @ np.array(reference.slopes)
                unit[:, column] = (unit[:, column] - expected - shift) / scale + expected
                table[:, column] = _from_unit(unit[:, column], feature)
        return table


def fit(moments: Mapping[str, Moments], *, empirical_bayes: bool = True) -> Harmonisation:
    """ComBat from each scanner's moments.

    As the published method, whose iteration is continued here until it is settled. Two things are ours: a column counts the
    rows that have a value in it, and noise that is known to lie on the moments is taken as such: estimates are drawn further
    towards what the scanner's columns have in common, and that towards no difference. Without `empirical_bayes`, or with one
    column, each column is shifted and scaled by its own mean and variance.

    Raises `ValueError` for fewer than two scanners, for moments of unlike tables, and for covariates that can't be told from
    the scanners.
    """
    if len(moments) < 2:
        raise ValueError(f"there is nothing to harmonise with {len(moments)} scanner(s); two or more are needed")
    first = next(iter(moments.values()))
    for name, each in moments.items():
        if (each.features, each.covariates) != (first.features, first.covariates):
            raise ValueError(f"the moments of {name} are of other columns, covariates or bounds than the others'")
    gram = np.stack([each.gram for each in moments.values()])  # (scanners, columns, 2 + q, 2 + q)
    gram = np.where(gram[:, :, :1, :1] >= 2, gram, 0)  # one value has no spread
    n = gram[:, :, 0, 0]
    mean = gram[:, :, 0, 1:] / np.maximum(n, 1)[..., None]  # (scanners, columns, 1 + q)
    within = gram[:, :, 1:, 1:] - n[..., None, None] * mean[..., None] * mean[..., None, :]
    varies = (within.sum(axis=0)[:, 0, 0] > _LEAST_VARIANCE * n.sum(axis=0)) & ((n > 0).sum(axis=0) >= 2)
    slopes = np.zeros((len(first.features), len(first.covariates)))
    for column in np.flatnonzero(varies):
        slopes[column] = _slopes(within[:, column].sum(axis=0), first.features[column].name, first.covariates)
    residual = np.concatenate([np.ones((len(slopes), 1)), -slopes], axis=1)  # value less what covariates explain
    squares = np.maximum(np.einsum("ci,scij,cj->sc", residual, within, residual), 0)
    centre = np.einsum("sci,ci->sc", mean, residual)
    everybody = np.maximum(n.sum(axis=0), 1)
    reference, variance = (n * centre).sum(axis=0) / everybody, squares.sum(axis=0) / everybody
    varies &= variance > _LEAST_VARIANCE
    sd = np.sqrt(np.where(varies, variance, 1))

    scanners: dict[str, dict[str, tuple[float, float]]] = {}
    for row, (name, each) in enumerate(moments.items()):
        here = np.flatnonzero(varies & (n[row] > 0))
        shift_error, spread_error = _noise(each, here, sd[here])
        one = _Standardised(
            n=n[row, here],
            shift=(centre[row] - reference)[here] / sd[here],
            squares=squares[row, here] / variance[here],
            shift_error=shift_error,
            spread_error=spread_error,
        )
        shift, spread = one.settled() if empirical_bayes and len(here) > 1 else (one.shift, one.spread)
        found = zip(here, shift * sd[here], np.sqrt(spread), strict=True)
        scanners[name] = {first.features[column].name: (float(up), float(scale)) for column, up, scale in found}
    references = {
        first.features[c].name: Reference(mean=float(reference[c]), sd=float(sd[c]), slopes=tuple(slopes[c].tolist()))
        for c in np.flatnonzero(varies)
    }
    return Harmonisation(features=first.features, covariates=first.covariates, references=references, scanners=scanners)


@dataclass(frozen=True, eq=False)
class _Standardised:
    """One scanner's columns (columns,) in units of the reference's standard deviation."""

    n: Floats
    shift: Floats
    squares: Floats  # sum of squares about the scanner's own mean
    shift_error: Floats  # variance that noise adds to `shift`
    spread_error: Floats  # variance that noise adds to `spread`

    @property
    def spread(self) -> Floats:
        """The scanner's variance over the reference's; 1, as published, where the column doesn't vary on it."""
        spread = self.squares / (self.n - 1)
        return np.where(spread > 0, spread, 1)

    def settled(self) -> tuple[Floats, Floats]:
        """Shift and spread (a variance) by empirical Bayes: normal and inverse gamma priors across columns.

        Johnson et al. 2007, equations 3.1 and their iteration. An inverse gamma prior of mean m and variance s has
        a = 2 + m^2 / s and b = m + m^3 / s; fractions are extended by s, which may be 0.
        """
        shift, spread = self.shift, self.spread
        shift_mean, shift_between = _prior(shift, self.shift_error, neutral=0)
        m, s = _prior(spread, self.spread_error, neutral=1)
        n_spread = self.n / (1 + self.n * self.spread_error / (2 * m * m))  # as few exact values tell as much
        squares = self.squares * n_spread / self.n
        new_shift, new_spread = shift, spread
        for _ in range(1000):  # ten are typical
            old = new_shift, new_spread
            n_shift = self.n / (1 + self.n * self.shift_error / old[1])
            new_shift = (shift_between * n_shift * shift + old[1] * shift_mean) / (shift_between * n_shift + old[1])
            about = squares + n_shift * (shift - new_shift) ** 2
            new_spread = (0.5 * about * s + m * s + m**3) / ((n_spread / 2 + 1) * s + m * m)
            if max(np.abs(new_shift - old[0]).max(), np.abs(new_spread - old[1]).max()) < 1e-12:
                break
        return new_shift, new_spread


def _prior(estimates: Floats, error: Floats, *, neutral: float) -> tuple[float, float]:
    """Mean and variance of what is estimated, across columns, freed of the noise on the estimates."""
    mean, between = float(estimates.mean()), float(estimates.var(ddof=1))
    if error.any():
        away = mean - neutral  # shrunken by the positive part of James and Stein
        mean = neutral + away * max(0.0, 1 - float(error.mean()) / len(error) / max(away * away, 1e-300))
        between = max(0.0, between - float(error.mean()))
    return mean, between


def _noise(moments: Moments, here: npt.NDArray[np.intp], sd: Floats) -> tuple[Floats, Floats]:
    """The variances that noise on the sums brings to standardised mean and variance, to first order."""
    n, total, squares = moments.gram[here, 0, 0], moments.gram[here, 0, 1], moments.gram[here, 1, 1]
    mean, square = total / n, squares / n
    per_row = (moments.noise_std / n) ** 2
    of_mean = per_row * (1 + (mean / _COUNT_WEIGHT) ** 2)
    of_variance = per_row * (1 + (2 * mean) ** 2 + ((2 * mean**2 - square) / _COUNT_WEIGHT) ** 2)
    return of_mean / sd**2, of_variance / sd**4


def _slopes(within: Floats, column: str, covariates: Sequence[Feature]) -> Floats:
    """Least squares within scanners: the slopes of (1 + q, 1 + q) sums of products about the scanners' means."""
    if not covariates:
        return np.empty(0)
    size = np.sqrt(np.diag(within)[1:])
    if (size <= 1e-6).any() or np.linalg.eigvalsh(within[1:, 1:] / np.outer(size, size))[0] < 1e-8:
        names = ", ".join(covariate.name for covariate in covariates)
        raise ValueError(
            f"what {names} does to {column} can't be told from the scanners: within them, covariates are constant or "
            "follow each other; leave one out, or calibrate on scans of the same patients on every scanner"
        )
    return np.asarray(np.linalg.solve(within[1:, 1:], within[1:, 0]), np.float64)


def contribution(X: npt.ArrayLike, features: Sequence[Feature]) -> Floats:
    """What ONE patient with rows `X` adds to the sums of their scanner: (3 * columns,), of L2 norm at most 1.

    Per column: the share of rows with a value (times 0.5), the mean over all rows of the values with missing ones as 0, and
    the mean of their squares, values being -1 and 1 at their public bounds. All rows together count as one patient. A patient
    of typical values is divided by the public length 0.75 * sqrt(columns); one who would be longer than 1 is shortened to it
    as a whole, and so counts for less than one, in counts as in sums.

    The bound, for any rows: entries v are computed in whole numbers; the result is v / r in steps of 2^-30, cut off towards
    zero, with a whole number r that is at least the square root of the sum of v's squares. So each entry's square is at most
    v_i^2 / r^2, and these add up to at most 1. A patient stands in the sums of one scanner; sums of several scanners, one
    after the other with zeros for the others, change by as much when a patient is added or removed.
    """
    table = _unit(X, features)
    there = ~np.isnan(table)
    steps = np.rint(np.where(there, table, 0) * _STEPS).astype(np.int64)
    squares = (steps * steps) // _STEPS
    entries = np.stack([there.sum(axis=0) * int(_COUNT_WEIGHT * _STEPS), steps.sum(axis=0), squares.sum(axis=0)], axis=1)
    whole = [int(entry) for entry in entries.ravel()]
    return shortened(whole, unit=max(_typical(features) * len(table), 1))


def moments_of(total: npt.ArrayLike, features: Sequence[Feature], *, noise_std: float) -> Moments:
    """The moments of one scanner, read from the noisy sum over sites of its patients' contributions.

    `noise_std` is the known standard deviation of the noise on each entry of `total`. Whatever noise has made impossible is
    brought back: means lie within the bounds, variances are at least a public minimum. A column with fewer patients than two,
    or than twice the noise on their number, counts as not seen. Raises `ValueError` for another length of `total`.
    """
    sums = np.array(total, dtype=np.float64)
    if sums.shape != (3 * len(features),) or not np.isfinite(sums).all():
        raise ValueError(f"the total must be {3 * len(features)} finite numbers, not an array of shape {sums.shape}")
    if not 0 <= noise_std < math.inf:
        raise ValueError(f"noise_std must be 0 or a positive number, not {noise_std}")
    length = _typical(features) / _STEPS
    count, values, squares = (sums.reshape(-1, 3) * length / [_COUNT_WEIGHT, 1, 1]).T
    count = np.where(count >= max(2.0, 2 * noise_std * length / _COUNT_WEIGHT), count, 0)
    mean = np.clip(values / np.maximum(count, 1), -1, 1)
    square = np.clip(squares / np.maximum(count, 1), mean**2 + (_LEAST_NOISY_VARIANCE if noise_std else 0), None)
    gram = np.empty((len(features), 2, 2))
    gram[:, 0, 0], gram[:, 1, 1] = count, count * square
    gram[:, 0, 1] = gram[:, 1, 0] = count * mean
    return Moments(tuple(features), (), gram, noise_std * length)


def scanner_share(X: npt.ArrayLike, scanners: Sequence[str]) -> Floats:
    """The share of each column's variance that lies between scanners (eta squared), (columns,), from 0 to 1.

    `X` (rows, columns), `scanners` (rows,); missing values are left out; NaN where a column doesn't vary.
    """
    table = np.asarray(X, dtype=np.float64)
    names = np.asarray(scanners)
    if table.ndim != 2 or names.shape != table.shape[:1]:
        raise ValueError(f"one scanner per row is needed: a table of shape {table.shape}, scanners of shape {names.shape}")
    share = np.full(table.shape[1], np.nan)
    for column, values in enumerate(table.T):
        there = np.isfinite(values)
        value, where = values[there], names[there]
        if len(value) and np.ptp(value) > 0:
            groups = [value[where == name] for name in np.unique(where)]
            between = sum(len(group) * (group.mean() - value.mean()) ** 2 for group in groups)
            share[column] = between / (len(value) * value.var())
    return share


def _typical(features: Sequence[Feature]) -> int:
    """The length of a patient with all values half-way to a bound (times `_STEPS`): 0.5, 0.5 and 0.25 in each column."""
    return math.isqrt((9 * len(features) * _STEPS**2 - 1) // 16) + 1


def _unit(X: npt.ArrayLike, features: Sequence[Feature]) -> Floats:
    table = np.asarray(X, dtype=np.float64)
    if table.ndim != 2 or table.shape[1] != len(features):
        raise ValueError(f"a table of {len(features)} columns with bounds is needed, not one of shape {table.shape}")
    unit = np.empty(table.shape)
    for column, feature in enumerate(features):
        low, high = feature.lower, feature.upper
        values = np.clip(table[:, column], low, high)
        if feature.scale == "log":
            low, high, values = math.log(low), math.log(high), np.log(values)
        unit[:, column] = np.clip((values - low) / (high - low) * 2 - 1, -1, 1)
    return unit


def _from_unit(unit: Floats, feature: Feature) -> Floats:
    if feature.scale == "log":
        low, high = math.log(feature.lower), math.log(feature.upper)
        return np.exp(low + (unit + 1) / 2 * (high - low))
    return feature.lower + (unit + 1) / 2 * (feature.upper - feature.lower)
