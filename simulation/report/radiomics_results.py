"""What radiomics.json of a run folder says, read with care: a key may be missing, a list empty, a number null.

A number that is not there becomes NaN, so that everything behind this file has one way of not knowing. Nothing is computed
here; the study's own recipe has computed all of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fl_server.record import Record
from simulation.report.statistics import Estimate

Floats = npt.NDArray[np.float64]

FILE = "radiomics.json"
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


@dataclass(frozen=True)
class Arm(Judged):
    """One arm as the simulation sees it, exactly."""

    masks: str
    learner: str
    folds: list[Curve]
    fold_aucs: list[float]
    auc_certain: Estimate
    by_hospital: dict[str, Estimate]


@dataclass(frozen=True)
class Federated(Judged):
    """One arm as a federation sees it, through noisy histograms; `exact` is the same without the noise."""

    exact: float
    auc_noise_sd: float
    brier_noise_sd: float
    noise_std: float
    bins: float


class Findings:
    """One radiomics run folder, read once.

    Raises `FileNotFoundError` without a record, `ValueError` where radiomics.json holds no JSON object.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.record = Record.read(folder / "record.json")
        try:
            data = json.loads((folder / FILE).read_text())
        except json.JSONDecodeError as error:
            raise ValueError(f"{folder / FILE} is no JSON: {error}") from None
        if not isinstance(data, dict):
            raise ValueError(f"{folder / FILE} must hold a JSON object, not {type(data).__name__}")
        self.data: dict[str, Any] = data
        arms = {key: _arm(key, entry) for key, entry in mapping(data.get("arms")).items()}
        self.arms = {key: arms[key] for key in [*(k for k in ARMS if k in arms), *(k for k in arms if k not in ARMS)]}
        self.federated = {key: _federated(key, entry, self.arms) for key, entry in mapping(data.get("federated")).items()}
        known = [arm for arm in self.arms.values() if arm.auc or arm.curve or arm.auc_certain]
        private = [arm for arm in known if arm.epsilon is not None and arm.key != UNET]
        first = [arm for arm in known if arm.key == PRIVATE] + private + [arm for arm in known if arm.key == PLAIN] + known
        self.headline: Arm | None = first[0] if first else None

    @property
    def pooled(self) -> Arm | None:
        """What all data in one place would give."""
        return self.arms.get(POOLED) or self.arms.get(BOOSTING)

    @property
    def sites(self) -> list[str]:
        """Hospitals in the record's order, then those that only results name."""
        named = [name for arm in self.arms.values() for name in arm.by_hospital]
        return list(dict.fromkeys([*self.record.sites, *named]))

    @property
    def unit(self) -> str:
        """What a row of the table is: a segment of the left ventricle, or a patient."""
        predictions = mappings(self.data.get("shapley"))
        by_segment = bool(mappings(self.data.get("bullseye"))) or any(p.get("segment") is not None for p in predictions)
        return "segment" if by_segment or any(arm.masks for arm in self.arms.values()) else "patient"

    def columns(self, kind: str) -> list[str]:
        """Names of the columns of this kind, radiomic or clinical."""
        return [text(c.get("name")) for c in mappings(self.data.get("columns")) if c.get("kind") == kind]

    def spent(self, hospital: str) -> float | None:
        """Epsilon on this hospital's ledger, or None where no privacy was promised."""
        site = self.record.sites.get(hospital)
        return site.epsilon if site and site.epsilon is not None and isfinite(site.epsilon) else None

    @property
    def highest_epsilon(self) -> float | None:
        """The most that any hospital's ledger says."""
        spent = [value for value in map(self.spent, self.record.sites) if value is not None]
        return max(spent, default=None)

    @property
    def private(self) -> bool:
        """Whether patients were promised anything."""
        return bool(self.record.study.get("privacy", {}).get("kind", "none") != "none")


def number(value: object) -> float:
    """The number, or NaN for null, words and what is not finite."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value) else nan


def numbers(values: object) -> Floats:
    """(n,) numbers of a list, NaN for each that is none."""
    return np.array([number(value) for value in values] if isinstance(values, list) else [], dtype=np.float64)


def text(value: object) -> str:
    """A word, or an empty one for null."""
    return "" if value is None else str(value)


def texts(values: object) -> list[str]:
    """The words of a list."""
    return [text(value) for value in values] if isinstance(values, list) else []


def mapping(value: object) -> dict[str, Any]:
    """The object, or an empty one."""
    return value if isinstance(value, dict) else {}


def mappings(values: object) -> list[dict[str, Any]]:
    """The objects in a list."""
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []


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
    return Cut(*(number(entry.get(key)) for key in ("threshold", "sensitivity", "specificity", "wanted")))


def _bins(values: object) -> list[Bin]:
    found = [
        Bin(*(number(entry.get(key)) for key in ("predicted", "observed", "low", "high", "count")))
        for entry in mappings(values)
    ]
    return sorted((b for b in found if isfinite(b.predicted) and isfinite(b.observed)), key=lambda b: b.predicted)


def _epsilon(entry: Mapping[str, Any]) -> float | None:
    value = number(entry.get("epsilon"))
    return value if isfinite(value) else None


def _arm(key: str, value: object) -> Arm:
    entry = mapping(value)
    folds: Sequence[dict[str, Any]] = mappings(entry.get("folds"))
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
        masks=text(entry.get("masks")),
        learner=text(entry.get("learner")),
        folds=[line for line in map(curve, folds) if line],
        fold_aucs=[auc for auc in (number(fold.get("auc")) for fold in folds) if isfinite(auc)],
        auc_certain=estimate(entry.get("auc_certain")),
        by_hospital={name: e for name, part in mapping(entry.get("by_hospital")).items() if (e := estimate(part))},
    )


def _federated(key: str, value: object, arms: Mapping[str, Arm]) -> Federated:
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
        exact=number(entry.get("auc_exact")),
        auc_noise_sd=number(entry.get("auc_noise_sd")),
        brier_noise_sd=number(entry.get("brier_noise_sd")),
        noise_std=number(entry.get("noise_std")),
        bins=number(entry.get("bins")),
    )
