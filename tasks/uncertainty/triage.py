"""Whom a person should look at first: patients in the order of the Dice that is expected of them, the lowest first.

One number stands for a volume, the mean over its structures: the expected Dice where there is a calibration, else the plain
agreement of the members, which ranks and has no scale of its own. A patient stands where the worst of the volumes stands.
Of equal numbers (a calibration's curve is level in places) the lower agreement is looked at first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tasks.uncertainty.calibration import Calibration

FIRST = 0.2
"""Part of the patients that a person looks at first, where nothing else is said."""


class Sure(NamedTuple):
    """How sure the members are of a volume: lowest where somebody should look first."""

    value: float  # 0..1, expected Dice or agreement
    agreement: float  # 0..1, which decides between equal values


def sureness(agreement: Mapping[str, float], calibration: Calibration | None) -> Sure | None:
    """How sure the members are of a volume; None where one member alone was asked."""
    values = calibration.expected(agreement) if calibration else agreement
    return Sure(float(np.mean(list(values.values()))), float(np.mean(list(agreement.values())))) if values else None


def order(by_patient: Mapping[str, Sequence[Sure | None]]) -> list[tuple[str, float]]:
    """Patients with their number, who should be looked at first to whom last; those without any number are left out."""
    found = {patient: [one for one in values if one is not None] for patient, values in by_patient.items()}
    ranked = [(min(values), patient) for patient, values in found.items() if values]
    return [(patient, sure.value) for sure, patient in sorted(ranked)]


def first_of(count: int, share: float = FIRST) -> int:
    """How many of so many patients are looked at first: at least one, if there is one."""
    return min(count, max(1, round(share * count)))


def caught(sure: Sequence[float], error: Sequence[float], share: float = FIRST) -> tuple[int, int]:
    """How many of the worst are among the first who are looked at, and how many there are: both this share of all."""
    some = first_of(len(sure), share)
    looked = set(np.argsort(np.asarray(sure), kind="stable")[:some].tolist())
    worst = set(np.argsort(-np.asarray(error), kind="stable")[:some].tolist())
    return len(looked & worst), some


def risk_coverage(sure: Sequence[float], error: Sequence[float]) -> list[tuple[float, float]]:
    """(coverage, risk): the mean error of the surest part of the patients, as the part grows (El-Yaniv and Wiener 2010)."""
    by_sureness = np.asarray(error, np.float64)[np.argsort(np.asarray(sure), kind="stable")[::-1]]
    means = np.cumsum(by_sureness) / np.arange(1, len(by_sureness) + 1)
    return [((number + 1) / len(means), float(mean)) for number, mean in enumerate(means)]


def area_under(curve: Sequence[tuple[float, float]]) -> float:
    """Mean risk over all coverages: lower is better."""
    return float(np.mean([risk for _, risk in curve]))
