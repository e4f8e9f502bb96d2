"""What the gate asks of drawn scans beside their images: who was learned from, who is missing, and what they are good for.

A score per patient is attacked, cases are counted, and Dice figures that were measured elsewhere are compared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

from tasks.case import Case
from tasks.radiomics.intervals import auc_interval, resampled_aucs

Floats = npt.NDArray[np.float64]
Counts = Mapping[str, Mapping[str, int]]
"""Patients by a fact's name and value."""

RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float

    def words(self, form: str = ".2f") -> str:
        """As it stands in a sentence."""
        return f"{self.value:{form}} ({self.low:{form}} to {self.high:{form}})"


@dataclass(frozen=True)
class Membership:
    """How well a score tells `members`, who were trained on, from `others`, who were not: AUC with 95 % interval.

    `start` is the same attack on the model that training started from, and `excess` how much more the trained one gives away.
    """

    members: int
    others: int
    auc: Estimate
    start: Estimate | None
    excess: Estimate | None


@dataclass(frozen=True)
class Subgroup:
    """Patients with one value of one fact: how many were wanted, and how many were made."""

    fact: str
    value: str
    wanted: int
    made: int


@dataclass(frozen=True)
class Utility:
    """Dice on real patients of who learned from drawn scans, of who learned from real ones, and the difference by patient."""

    patients: int
    drawn: float
    real: float
    difference: Estimate
    deviation: float  # of the differences, between patients


def membership(
    members: npt.ArrayLike,
    others: npt.ArrayLike,
    *,
    start: tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
    seed: int = 0,
) -> Membership:
    """The attack by one score for each patient, higher for who is taken for a member; `start` holds the start model's scores.

    Intervals are Newcombe's; that of the excess is drawn from patients with replacement, the same for both models. Raises
    `ValueError` for an empty side, values that aren't finite and start scores of other patients.
    """
    scores, labels = _joined(members, others)
    own = _auc(scores, labels)
    sides = int(labels.sum()), int((1 - labels).sum())
    if start is None:
        return Membership(*sides, own, None, None)
    before, same = _joined(*start)
    if len(before) != len(scores) or (same != labels).any():
        raise ValueError(f"the start model's scores are of {len(before)} patients, the trained one's of {len(scores)}")
    control = _auc(before, labels)
    trained, untrained = (
        resampled_aucs(rankdata(one) / len(one), labels, np.arange(len(one)), np.ones(len(one)), resamples=RESAMPLES, seed=seed)
        for one in (scores, before)
    )
    low, high = (float(edge) for edge in np.nanquantile(trained - untrained, (0.025, 0.975)))
    return Membership(*sides, own, control, Estimate(own.value - control.value, low, high))


def counts(cases: Iterable[Case], facts: Sequence[str]) -> dict[str, dict[str, int]]:
    """Patients by value of each fact: an endpoint, or else what is known of the scanner, as in `prepare.facts`."""
    cases = list(cases)
    found = {
        name: Counter(str(case.endpoints.get(name, case.scanner.get(name, "unknown"))) for case in cases) for name in facts
    }
    return {name: dict(sorted(values.items())) for name, values in found.items()}


def subgroups(wanted: Counts, made: Counts) -> tuple[Subgroup, ...]:
    """Every value that was wanted or made, in the order of the names."""
    rows = []
    for fact in sorted({*wanted, *made}):
        here, there = wanted.get(fact, {}), made.get(fact, {})
        rows += [Subgroup(fact, value, here.get(value, 0), there.get(value, 0)) for value in sorted({*here, *there})]
    return tuple(rows)


def utility(drawn: npt.ArrayLike, real: npt.ArrayLike, *, seed: int = 0) -> Utility:
    """Two Dice figures of each real test patient, (patients,) both, compared; the interval is a bootstrap over patients.

    Raises `ValueError` for fewer than 2 patients, unequal numbers of them, and figures outside 0..1.
    """
    made, true = np.asarray(drawn, np.float64), np.asarray(real, np.float64)
    if made.ndim != 1 or made.shape != true.shape or len(made) < 2:
        raise ValueError(f"two Dice figures of each of 2 patients or more are needed, not arrays of {made.shape}, {true.shape}")
    if not ((made >= 0) & (made <= 1) & (true >= 0) & (true <= 1)).all():
        raise ValueError("a Dice lies in 0..1; leave out patients who have none")
    gap = made - true
    rows = np.random.default_rng(seed).integers(len(gap), size=(RESAMPLES, len(gap)))
    low, high = (float(edge) for edge in np.quantile(gap[rows].mean(axis=1), (0.025, 0.975)))
    difference = Estimate(float(gap.mean()), low, high)
    return Utility(len(gap), float(made.mean()), float(true.mean()), difference, float(gap.std(ddof=1)))


def _joined(members: npt.ArrayLike, others: npt.ArrayLike) -> tuple[Floats, npt.NDArray[np.intp]]:
    one, other = np.asarray(members, np.float64), np.asarray(others, np.float64)
    if one.ndim != 1 or other.ndim != 1 or not len(one) or not len(other):
        raise ValueError(f"one score for each patient of two sides is needed, not arrays of {one.shape} and {other.shape}")
    scores = np.concatenate([one, other])
    if not np.isfinite(scores).all():
        raise ValueError(f"{int((~np.isfinite(scores)).sum())} of {len(scores)} scores are not finite")
    return scores, np.repeat(np.array([1, 0], np.intp), [len(one), len(other)])


def _auc(scores: Floats, labels: npt.NDArray[np.intp]) -> Estimate:
    value = float(roc_auc_score(labels, scores))
    positives = int(labels.sum())
    return Estimate(value, *auc_interval(value, positives=positives, negatives=len(labels) - positives))
