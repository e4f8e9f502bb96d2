"""How far drawn patients are from real ones: as a set, by radiomic features, and one by one, by their nearest neighbours.

Each distance comes with what it would be between real patients alone, of sets of the same size, because a distance by itself
says nothing: between small sets all are large.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import beta
from sklearn.covariance import ledoit_wolf

from tasks.synthesis.seen import Floats, Seen

Indices = npt.NDArray[np.intp]

LARGEST_SET = 50
"""Patients of each set whose distance is taken, at most: with ever more, every generator would fail, however small its flaw."""

SPLITS = 200
"""Random halves of the real patients: the 95th percentile of the distances between them then lies on ten of them."""


@dataclass(frozen=True)
class Frechet:
    """The distance between sets of `patients` real and as many drawn patients, and that between halves of the real ones.

    `distance` is the median over random draws, where there are more patients than that. `p` is the share of real halves that
    are at least as far apart.
    """

    patients: int
    distance: float
    null_median: float
    null_95: float
    p: float


@dataclass(frozen=True)
class Nearest:
    """How many drawn patients are nearer to training patients than to patients held back, `patients` of each.

    `low` and `high` are Clopper and Pearson's exact 95 % interval of the share. In the control nobody was trained on: both
    sides are halves of those held back, and `control_low` and `control_high` hold 95 % of the splits' shares. They are further
    from a half than the interval where a few real patients are the nearest of many drawn ones.
    """

    drawn: int
    patients: int
    of_training: int
    nearer: int
    share: float
    low: float
    high: float
    control: float
    control_low: float
    control_high: float


def frechet(one: Floats, other: Floats) -> float:
    """Squared Fréchet distance of the normal distributions fitted to (n, features) and (m, features).

    |mean - mean|^2 + trace(A + B - 2 (A^1/2 B A^1/2)^1/2) of covariances A and B (Dowson and Landau 1982, J Multivariate Anal
    12, 450), without a root, as FID is given. Covariances are shrunk by Ledoit and Wolf 2004 (J Multivariate Anal 88, 365):
    those of fewer patients than features have no inverse.
    """
    (a, _), (b, _) = ledoit_wolf(one), ledoit_wolf(other)
    return between(one.mean(axis=0), a, other.mean(axis=0), b)


def between(mean: Floats, a: Floats, other_mean: Floats, b: Floats) -> float:
    """Squared Fréchet distance of two normal distributions, by means (d,) and covariances (d, d)."""
    root = _root(a)
    shared = np.sqrt(np.linalg.eigvalsh(root @ b @ root).clip(0)).sum()
    return float(((mean - other_mean) ** 2).sum() + np.trace(a) + np.trace(b) - 2 * shared)


def frechet_with_null(real: Floats, drawn: Floats, *, splits: int = SPLITS, seed: int = 0) -> Frechet:
    """Feature vectors (patients, features) of real and drawn patients compared, each feature in the real ones' deviations.

    All distances are between sets of equal size, because few patients look further apart than many. A feature that a patient
    lacks counts as the real mean. Raises `ValueError` for fewer than 4 real or 2 drawn patients.
    """
    size = min(len(real) // 2, len(drawn), LARGEST_SET)
    if size < 2:
        raise ValueError(f"a distance needs 4 real patients and 2 drawn ones, not {len(real)} and {len(drawn)}")
    known = ~np.isnan(real).all(axis=0)  # a structure that no real patient has is not compared
    real, drawn = real[:, known], drawn[:, known]
    mean, deviation = np.nanmean(real, axis=0), np.nanstd(real, axis=0)
    real, drawn = (np.nan_to_num((rows - mean) / np.where(deviation > 0, deviation, 1)) for rows in (real, drawn))
    rng = np.random.default_rng(seed)
    null, found = np.zeros(splits), np.zeros(splits)
    for number in range(splits):
        halves, made = rng.permutation(len(real)), rng.permutation(len(drawn))[:size]
        null[number] = frechet(real[halves[:size]], real[halves[size : 2 * size]])
        found[number] = frechet(real[halves[:size]], drawn[made])
    distance = float(np.median(found))
    p = (1 + int((null >= distance).sum())) / (1 + splits)
    return Frechet(size, distance, float(np.median(null)), float(np.quantile(null, 0.95)), p)


def nearest(
    training: Sequence[Seen], held_out: Sequence[Seen], drawn: Sequence[Seen], *, splits: int = SPLITS, seed: int = 0
) -> Nearest:
    """Whom drawn patients are nearer to, patient by patient: the mean over a patient's images of the nearest image's distance.

    The distance is 1 minus the correlation of pooled looks, each voxel in deviations of the real looks. A tie counts as nearer
    to training. Of the larger side as many patients are drawn as the smaller has. Raises `ValueError` for fewer than 4 patients
    held back, and for no others.
    """
    size = min(len(training), len(held_out))
    if len(held_out) < 4 or not training or not drawn:
        raise ValueError(f"4 patients held back are needed and others: {len(training)}, {len(held_out)} and {len(drawn)} given")
    rng = np.random.default_rng(seed)
    real = [*training, *held_out]
    away = _to_each(drawn, real)  # (images, real patients)
    owner = np.repeat(np.arange(len(drawn)), [len(one.looks) for one in drawn])

    def nearer(one: Indices, other: Indices) -> int:
        margin = away[:, other].min(axis=1) - away[:, one].min(axis=1)
        return int((np.bincount(owner, weights=margin) >= 0).sum())

    held = len(training) + rng.permutation(len(held_out))
    found = nearer(rng.permutation(len(training))[:size], held[:size])
    half, shares = len(held) // 2, np.zeros(splits)
    for number in range(splits):
        held = rng.permutation(held)
        shares[number] = nearer(held[:half], held[half : 2 * half]) / len(drawn)
    low, high = (float(edge) for edge in np.quantile(shares, (0.025, 0.975)))
    return Nearest(
        len(drawn),
        size,
        len(training),
        found,
        found / len(drawn),
        *exact_interval(found, len(drawn)),
        control=float(np.median(shares)),
        control_low=low,
        control_high=high,
    )


def exact_interval(positives: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share by Clopper and Pearson 1934 (Biometrika 26, 404): never too narrow."""
    low = float(beta.ppf(0.025, positives, count - positives + 1)) if positives else 0.0
    high = float(beta.ppf(0.975, positives + 1, count - positives)) if positives < count else 1.0
    return low, high


def _to_each(drawn: Sequence[Seen], real: Sequence[Seen]) -> Floats:
    """Correlation distance of each drawn image to the nearest image of each real patient, (images, real patients)."""
    looks = np.concatenate([one.looks for one in real])
    mean, deviation = looks.mean(axis=0), looks.std(axis=0)
    deviation = np.where(deviation > 0, deviation, 1)

    def unit(rows: Floats) -> Floats:
        rows = (rows - mean) / deviation
        rows = rows - rows.mean(axis=1, keepdims=True)
        length = np.linalg.norm(rows, axis=1, keepdims=True)
        return rows / np.where(length > 0, length, 1)

    made = unit(np.concatenate([one.looks for one in drawn]))
    return np.stack([1 - (made @ unit(one.looks).T).max(axis=1) for one in real], axis=1)


def _root(matrix: Floats) -> Floats:
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray((vectors * np.sqrt(values.clip(0))) @ vectors.T)
