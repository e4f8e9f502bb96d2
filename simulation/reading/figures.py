"""How often readers were right, how certain they were when they were, and how far they agree with one another.

Synthetic is what is looked for: sensitivity is the share of synthetic scans that were called synthetic, specificity that of the
real ones called real. Intervals are the exact ones of Clopper and Pearson 1934 (Biometrika 26:404), 95 %.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import betaincinv

from conf.study import Frozen
from simulation.reading.answers import Answer, By, finished
from simulation.reading.deck import KINDS, Kind, Reading

CERTAINTIES = (1, 2, 3, 4, 5)


class Share(NamedTuple):
    """So many of so many, and the interval of the probability behind; without any there is none."""

    right: int
    of: int
    value: float | None
    low: float | None
    high: float | None


class Figures(Frozen):
    """What is said of one reader, or of the answers of all."""

    accuracy: Share
    sensitivity: Share
    specificity: Share
    by_certainty: dict[int, Share]  # accuracy among the answers of this certainty


class Summary(Frozen):
    """What is said of a reading."""

    scans: int
    readers: dict[str, Figures]  # each of what they have answered so far
    finished: tuple[str, ...]
    all_answers: Figures | None  # of readers who have finished, every answer counted alike
    kappa: float | None  # Fleiss, of readers who have finished


class Anchor(NamedTuple):
    """A published figure to hold one's own against."""

    source: str
    accuracy: float
    low: float
    high: float
    kappa: float


HABERL = Anchor("Haberl 2025, EJNMMI 52:2355", 0.48, 0.46, 0.51, 0.18)
"""Readers of real and generated scintigrams."""


def share(right: int, of: int) -> Share:
    """`right` of `of` with the interval that holds the true share in at least 95 of 100 readings."""
    if not 0 <= right <= of:
        raise ValueError(f"{right} of {of} is no share")
    if of == 0:
        return Share(0, 0, None, None, None)
    low = float(betaincinv(right, of - right + 1, 0.025)) if right else 0.0
    high = float(betaincinv(right + 1, of - right, 0.975)) if right < of else 1.0
    return Share(right, of, right / of, low, high)


def figures(answers: Iterable[Answer], kinds: Mapping[str, Kind]) -> Figures:
    """The figures of these answers."""
    said = [(one, kinds[one.scan]) for one in answers]

    def right(among: Sequence[tuple[Answer, Kind]]) -> Share:
        return share(sum(one.answer == kind for one, kind in among), len(among))

    return Figures(
        accuracy=right(said),
        sensitivity=right([pair for pair in said if pair[1] == "synthetic"]),
        specificity=right([pair for pair in said if pair[1] == "real"]),
        by_certainty={level: right([pair for pair in said if pair[0].certainty == level]) for level in CERTAINTIES},
    )


def summary(by: By, reading: Reading) -> Summary:
    """The figures of every reader and of all."""
    done = sorted(finished(by, reading))
    together = [answer for reader in done for answer in by[reader]]
    return Summary(
        scans=len(reading.scans),
        readers={reader: figures(by[reader], reading.kinds) for reader in sorted(by)},
        finished=tuple(done),
        all_answers=figures(together, reading.kinds) if done else None,
        kappa=fleiss_kappa(_counts(together, reading)) if len(done) > 1 else None,
    )


def _counts(answers: Iterable[Answer], reading: Reading) -> npt.NDArray[np.int64]:
    """How many readers called each scan real, and how many synthetic: (scans, 2)."""
    rows = {name: row for row, name in enumerate(reading.scans)}
    counts = np.zeros((len(rows), len(KINDS)), np.int64)
    for one in answers:
        counts[rows[one.scan], KINDS.index(one.answer)] += 1
    return counts


def fleiss_kappa(counts: npt.NDArray[np.integer]) -> float | None:
    """Agreement beyond chance (Fleiss 1971, Psychological Bulletin 76:378) of counts (subjects, categories).

    Each subject has the same number of readers, two or more; None where all readers gave all subjects the same category.
    """
    readers = counts.sum(axis=1)
    if len(counts) == 0 or (readers != readers[0]).any() or readers[0] < 2:
        raise ValueError("every scan needs answers of the same two or more readers")
    n = int(readers[0])
    agreed = float(((counts**2).sum(axis=1) - n).mean() / (n * (n - 1)))  # P-bar, the mean of pairs that agree
    by_chance = float(((counts.sum(axis=0) / counts.sum()) ** 2).sum())  # P-bar of e
    return None if by_chance == 1 else (agreed - by_chance) / (1 - by_chance)
