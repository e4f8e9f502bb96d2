"""What the models answered about patients they had not seen, and what is said of it: the numbers of `radiomics.json`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fl_server.record import Record
from simulation.radiomics.settings import Classifier
from simulation.radiomics.tables import Table
from tasks.radiomics import curves, histogram
from tasks.radiomics.settings import Settings

Floats = npt.NDArray[np.float64]
Json = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Answers:
    """One arm under one seed: every fold's rows that were held back, and the probability that its model gave them."""

    arm: str
    seed: int
    tables: Sequence[Table]
    probabilities: Sequence[Floats]

    @property
    def table(self) -> Table:
        """All rows."""
        return Table.join(self.tables)

    @property
    def probability(self) -> Floats:
        """Of all rows."""
        return np.concatenate(self.probabilities)


def arm_facts(several: Sequence[Answers], settings: Settings, classifier: Classifier, about: Mapping[str, Any]) -> Json:
    """The entry of one arm: curves of the first seed, areas as the mean over the seeds.

    Intervals are over patients; over several seeds their bounds are averaged, and `auc_seeds` lists the areas.
    """
    first = several[0]
    judged = [judge(answers.table, answers.probability, settings, classifier) for answers in several]
    by_fold = [judge(t, p, settings, classifier) for t, p in zip(first.tables, first.probabilities, strict=True)]
    mean = curves.mean_roc(by_fold)
    hospitals = {}
    for name in dict.fromkeys(first.table.hospital.tolist()):
        own = []
        for answers in several:
            rows = answers.table.hospital == name
            own.append(judge(answers.table[rows], answers.probability[rows], settings, classifier))
        patients = len(np.unique(first.table.patient[first.table.hospital == name]))
        hospitals[name] = {**_mean([(c.auc, c.low, c.high) for c in own]), "patients": patients}
    certain = [c.auc_certain for c in judged if c.auc_certain is not None]
    return {
        **about,
        "folds": [
            {"fold": number, "auc": _number(c.auc), "fpr": _list(c.fpr), "tpr": _list(c.tpr)}
            for number, c in enumerate(by_fold)
        ],
        "roc": {"fpr": _list(mean.fpr), "tpr": _list(mean.tpr), "tpr_sd": _list(mean.tpr_sd)} if mean else {},
        "auc": _mean([(c.auc, c.low, c.high) for c in judged]),
        "auc_certain": _mean([(c.value, c.low, c.high) for c in certain]) if certain else None,
        "auc_seeds": [_number(c.auc) for c in judged],
        "auc_certain_seeds": [_number(c.value) for c in certain],
        "by_hospital": hospitals,
        **cuts(judged[0]),
        "calibration": [asdict(each) for each in judged[0].calibration],
        "brier": _number(np.mean([c.brier for c in judged if c.brier is not None] or [math.nan])),
    }


def judge(table: Table, probability: Floats, settings: Settings, classifier: Classifier) -> curves.Curves:
    """What the exact answers amount to. Rows without a label or an answer are left out."""
    there = ~np.isnan(table.y) & ~np.isnan(probability)
    least = settings.certainty.least if settings.certainty else 0
    certain = (table.certainty[there] >= least) if settings.certainty else None
    patients = np.char.add(np.char.add(table.hospital[there], "/"), table.patient[there])
    return curves.exact(probability[there], table.y[there], patients, certain=certain, at_sensitivity=classifier.sensitivity)


def federated_facts(record: Record, exact: curves.Curves, settings: Settings, classifier: Classifier) -> Json | None:
    """What the hospitals' noisy histogram says of the federation's model, beside the exact answer; None if nobody gave one."""
    told = record.evaluation
    if told is None or not told.total:
        return None
    found = histogram.curves(told.total, bins=settings.bins, noise_std=told.noise_std, at_sensitivity=classifier.sensitivity)
    spent = [site.epsilon for site in record.sites.values() if site.epsilon is not None]
    return {
        "auc": _number(found.auc),
        "auc_noise_sd": _number(found.auc_noise_sd),
        "low": _number(found.low),
        "high": _number(found.high),
        "auc_exact": _number(exact.auc),
        "fpr": _list(found.fpr),
        "tpr": _list(found.tpr),
        **cuts(found),
        "calibration": [asdict(each) for each in found.calibration],
        "brier": _number(found.brier),
        "brier_noise_sd": _number(found.brier_noise_sd),
        "noise_std": told.noise_std,
        "bins": settings.bins,
        "epsilon": max(spent, default=None),
        "words": found.words,
    }


def cuts(found: curves.Curves) -> Json:
    """The two thresholds."""
    return {
        "youden": asdict(found.youden) if found.youden else None,
        "at_sensitivity": asdict(found.at_sensitivity) if found.at_sensitivity else None,
    }


def bullseyes(answers: Answers, uncertainty: Floats) -> tuple[list[Json], Json]:
    """Best, median and worst patient by Brier score, segment by segment, and the mean of all; empty without segments."""
    table, probability = answers.table, answers.probability
    there = ~np.isnan(probability) & ~np.isnan(table.y) & (table.region > 0)
    if not there.any():
        return [], {}
    error = {
        patient: float(np.mean((probability[rows] - table.y[rows]) ** 2))
        for patient in np.unique(table.patient[there])
        if (rows := there & (table.patient == patient)).any()
    }
    order = sorted(error, key=lambda patient: error[patient])
    shown = []
    for which, patient in (("best", order[0]), ("median", order[len(order) // 2]), ("worst", order[-1])):
        rows = there & (table.patient == patient)
        shown.append(
            {
                "which": which,
                "hospital": str(table.hospital[rows][0]),
                "patient": str(patient),
                "call": _segments(table.region[rows], table.y[rows]),
                "certainty": _segments(table.region[rows], table.certainty[rows]),
                "prediction": _segments(table.region[rows], probability[rows]),
                "uncertainty": _segments(table.region[rows], uncertainty[rows]),
            }
        )
    return shown, {
        "truth": _segments(table.region[there], table.y[there]),
        "prediction": _segments(table.region[there], probability[there]),
    }


def _segments(regions: npt.NDArray[np.int64], values: Floats) -> list[float | None]:
    return [_number(np.nanmean(values[regions == n])) if (regions == n).any() else None for n in range(1, 18)]


def _mean(several: Sequence[tuple[float | None, float | None, float | None]]) -> Json:
    parts = [[entry[i] for entry in several if entry[i] is not None] for i in range(3)]
    value, low, high = (float(np.mean(part)) if part else None for part in parts)  # type: ignore[arg-type]
    return {"value": value, "low": low, "high": high}


def _number(value: float | np.floating[Any] | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _list(values: Floats) -> list[float]:
    return [round(float(value), 5) for value in values]
