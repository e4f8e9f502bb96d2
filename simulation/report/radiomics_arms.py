"""The arms of a radiomics study as radiomics.json tells them: what each was, and how it was judged.

Nothing is computed here; `tasks.radiomics.curves` has computed it and says what each number means.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import isfinite, nan

import numpy as np

from fl_server.report.statistics import Estimate
from simulation.report.lenient import Floats, mapping, mappings, number, numbers, text

PRIVATE, PLAIN, UNET, ALONE = "forest_private", "forest_plain", "forest_unet_private", "alone_random_forest"
POOLED, BOOSTING = "pooled_random_forest", "pooled_boosting"
ARMS = {
    PRIVATE: "Federated forest with privacy",
    PLAIN: "Federated forest without privacy",
    UNET: "Federated forest with privacy, U-Net masks",
    "logistic_private": "Federated logistic regression with privacy",
    "mlp_private": "Federated neural network with privacy",
    "union_of_trees": "Union of the hospitals' trees",
    POOLED: "All data in one place, random forest",
    BOOSTING: "All data in one place, gradient boosting",
    ALONE: "Each hospital alone, random forest",
}
"""The arms in the order in which the page lists them, in words for those that bring none."""


@dataclass(frozen=True)
class Curve:
    """A receiver operating characteristic: sensitivity (`tpr`) over false positive rate (`fpr`), (points,) each."""

    fpr: Floats
    tpr: Floats
    sd: Floats  # of tpr over the folds; NaN where unknown

    def __bool__(self) -> bool:
        """Whether there is a line to draw."""
        return len(self.fpr) > 1


@dataclass(frozen=True)
class Cut:
    """What one threshold gives."""

    threshold: float
    sensitivity: float
    specificity: float
    wanted: float  # sensitivity that was asked for; NaN at the Youden threshold
    sensitivity_noise_sd: float  # what the noise alone does; NaN or 0 without any
    specificity_noise_sd: float

    def __bool__(self) -> bool:
        """Whether sensitivity and specificity are known."""
        return isfinite(self.sensitivity) and isfinite(self.specificity)


@dataclass(frozen=True)
class Bin:
    """Predictions of about the same height, and how often they came true."""

    predicted: float
    observed: float
    low: float
    high: float
    count: float


@dataclass(frozen=True)
class Judged:
    """What is known of one way of learning, exactly or from noisy histograms."""

    key: str
    label: str
    epsilon: float | None
    curve: Curve
    auc: Estimate
    youden: Cut
    at_sensitivity: Cut
    calibration: list[Bin]
    brier: float
    ece: float  # expected calibration error
    ece_by_chance: float  # the same of a perfectly calibrated classifier
    words: str  # why something can't be known


@dataclass(frozen=True)
class Arm(Judged):
    """One arm as the simulation sees it, exactly."""

    masks: str
    learner: str
    folds: list[Curve]
    fold_aucs: list[float]
    auc_certain: Estimate
    by_hospital: dict[str, Estimate]

    @property
    def hospital_mean(self) -> float:
        """Mean of the hospitals' own AUCs; 0 where none is known."""
        known = [estimate.value for estimate in self.by_hospital.values() if isfinite(estimate.value)]
        return sum(known) / len(known) if known else 0.0


@dataclass(frozen=True)
class Federated(Judged):
    """One arm as a federation sees it, through noisy histograms; `exact` is the same without the noise."""

    exact: float
    auc_noise_sd: float
    brier_noise_sd: float
    noise_std: float
    bins: float


def estimate(value: object) -> Estimate:
    """A number with its interval; half an interval is none."""
    entry = mapping(value)
    low, high = number(entry.get("low")), number(entry.get("high"))
    whole = isfinite(low) and isfinite(high)
    patients = number(entry.get("patients"))
    return Estimate(
        number(entry.get("value")), low if whole else nan, high if whole else nan, int(patients) if isfinite(patients) else 0, 1
    )


def curve(value: object) -> Curve:
    """Points of a curve that are known in both directions."""
    entry = mapping(value)
    fpr, tpr, sd = (numbers(entry.get(key)) for key in ("fpr", "tpr", "tpr_sd"))
    n = min(len(fpr), len(tpr))
    fpr, tpr = fpr[:n], tpr[:n]
    sd = sd[:n] if len(sd) >= n else np.full(n, nan)
    known = np.isfinite(fpr) & np.isfinite(tpr)
    return Curve(fpr[known], tpr[known], sd[known])


def spoken(arm: str) -> str:
    """An arm that brings no words of its own."""
    return ARMS.get(arm, arm.replace("_", " ").capitalize())


def _cut(value: object) -> Cut:
    entry = mapping(value)
    return Cut(*(number(entry.get(field.name)) for field in fields(Cut)))


def _bins(values: object) -> list[Bin]:
    found = [Bin(*(number(entry.get(field.name)) for field in fields(Bin))) for entry in mappings(values)]
    return sorted((b for b in found if isfinite(b.predicted) and isfinite(b.observed)), key=lambda b: b.predicted)


def _epsilon(entry: Mapping[str, object]) -> float | None:
    value = number(entry.get("epsilon"))
    return value if isfinite(value) else None


def arm_of(key: str, value: object) -> Arm:
    """One entry of `arms`."""
    entry = mapping(value)
    folds = mappings(entry.get("folds"))
    return Arm(
        key=key,
        label=text(entry.get("label")) or spoken(key),
        epsilon=_epsilon(entry),
        curve=curve(entry.get("roc")),
        auc=estimate(entry.get("auc")),
        youden=_cut(entry.get("youden")),
        at_sensitivity=_cut(entry.get("at_sensitivity")),
        calibration=_bins(entry.get("calibration")),
        brier=number(entry.get("brier")),
        ece=number(entry.get("ece")),
        ece_by_chance=number(entry.get("ece_by_chance")),
        words=text(entry.get("words")),
        masks=text(entry.get("masks")),
        learner=text(entry.get("learner")),
        folds=[line for line in map(curve, folds) if line],
        fold_aucs=[auc for auc in (number(fold.get("auc")) for fold in folds) if isfinite(auc)],
        auc_certain=estimate(entry.get("auc_certain")),
        by_hospital={name: e for name, part in mapping(entry.get("by_hospital")).items() if (e := estimate(part))},
    )


def federated_of(key: str, value: object, arms: Mapping[str, Arm]) -> Federated:
    """One entry of `federated`, with the words of its arm."""
    entry = mapping(value)
    return Federated(
        key=key,
        label=arms[key].label if key in arms else spoken(key),
        epsilon=_epsilon(entry),
        curve=curve(entry),
        auc=estimate({**entry, "value": entry.get("auc")}),
        youden=_cut(entry.get("youden")),
        at_sensitivity=_cut(entry.get("at_sensitivity")),
        calibration=_bins(entry.get("calibration")),
        brier=number(entry.get("brier")),
        ece=number(entry.get("ece")),
        ece_by_chance=number(entry.get("ece_by_chance")),
        words=text(entry.get("words")),
        exact=number(entry.get("auc_exact")),
        auc_noise_sd=number(entry.get("auc_noise_sd")),
        brier_noise_sd=number(entry.get("brier_noise_sd")),
        noise_std=number(entry.get("noise_std")),
        bins=number(entry.get("bins")),
    )
