"""Why a classifier answers as it does: importance by permutation, Shapley values of single answers, and the map of features."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import roc_auc_score

from simulation.radiomics.answers import Answers
from simulation.radiomics.tables import Table
from tasks.radiomics.perceptron import scaled
from tasks.radiomics.settings import Settings
from tasks.radiomics.task import ForestTask, RadiomicsTask
from tasks.task import State

Floats = npt.NDArray[np.float64]
Json = dict[str, Any]

SHUFFLES = 5
MOST_ROWS = 400  # of the map


def importance(
    answers: Answers, tasks: Sequence[tuple[RadiomicsTask, State]], names: Sequence[str], *, seed: int
) -> list[Json]:
    """How much the AUC falls when a column is shuffled among the rows held back: mean and SD over folds and shuffles.

    `tasks` are each fold's task and model. Folds without both classes are left out.
    """
    falls: dict[str, list[float]] = {name: [] for name in names}
    rng = np.random.default_rng([seed, 5])
    for table, before, (task, state) in zip(answers.tables, answers.probabilities, tasks, strict=True):
        known = ~np.isnan(table.y)
        X, y = table.X[known], table.y[known]
        if len(np.unique(y)) < 2:
            continue
        whole = roc_auc_score(y, before[known])
        for index, name in enumerate(names):
            for _ in range(SHUFFLES):
                shuffled = X.copy()
                shuffled[:, index] = rng.permutation(shuffled[:, index])
                falls[name].append(float(whole - roc_auc_score(y, task.predict(state, shuffled))))
    told = [
        {"column": name, "mean": float(np.mean(f)), "sd": float(np.std(f, ddof=1))} for name, f in falls.items() if len(f) > 1
    ]
    return sorted(told, key=lambda entry: -float(entry["mean"]))


def shapley(answers: Answers, task: ForestTask, state: State, names: Sequence[str], *, fold: int) -> list[Json]:
    """What each column adds to three answers of one fold's forest: a confident yes, a confident no, one in between."""
    table, probability = answers.tables[fold], answers.probabilities[fold]
    known = np.flatnonzero(~np.isnan(table.y))
    if not len(known):
        return []
    order = known[np.argsort(probability[known])]
    chosen = list(dict.fromkeys([int(order[-1]), int(order[len(order) // 2]), int(order[0])]))
    forest = task.structure.to_sklearn(state["total"].numpy(), noise_std=float(state["noise_variance"][0]) ** 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # shap colours its plots, which aren't used, by an old way of matplotlib
        import shap

        explainer = shap.TreeExplainer(forest)
        values = np.asarray(explainer.shap_values(np.asarray(table.X[chosen], np.float64), check_additivity=True))
    base = float(np.asarray(explainer.expected_value)[1])
    return [
        {
            "hospital": str(table.hospital[row]),
            "patient": str(table.patient[row]),
            "segment": int(table.region[row]) or None,
            "base": base,
            "prediction": float(probability[row]),
            "values": [
                {"column": name, "value": _number(table.X[row, column]), "shapley": float(values[index, column, 1])}
                for column, name in enumerate(names)
            ],
        }
        for index, row in enumerate(chosen)
    ]


def feature_map(table: Table, settings: Settings) -> Json:
    """Rows of the map: labelled rows of all patients, every column as a z-score over all rows; missing values are null.

    At most `MOST_ROWS`, evenly taken. Values are taken on the scale of their public bounds first.
    """
    rows = np.flatnonzero(~np.isnan(table.y))
    rows = rows[np.linspace(0, len(rows) - 1, min(MOST_ROWS, len(rows))).round().astype(int)] if len(rows) else rows
    X = np.where(np.isnan(table.X[rows]), np.nan, scaled(table.X[rows], settings.columns))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of columns that nobody has
        spread = np.nanstd(X, axis=0)
        z = (X - np.nanmean(X, axis=0)) / np.where(spread > 0, spread, 1)
    labels = [f"{p} {n}" if n else str(p) for p, n in zip(table.patient[rows], table.region[rows], strict=True)]
    return {
        "columns": [feature.name for feature in settings.columns],
        "rows": labels,
        "row_hospital": [str(name) for name in table.hospital[rows]],
        "row_positive": [int(value) for value in table.y[rows]],
        "values": [[_number(value) for value in row] for row in z],
        "of": int((~np.isnan(table.y)).sum()),
    }


def spread_over_trees(task: ForestTask, state: State, X: Floats) -> Floats:
    """Standard deviation over the trees of the probability that each gives a row, (rows,): how far they disagree."""
    probabilities = task.structure.probabilities(state["total"].numpy(), noise_std=float(state["noise_variance"][0]) ** 0.5)
    trees = np.arange(len(probabilities))[:, None]
    spread: Floats = probabilities[trees, task.structure.leaves(X)][:, :, 1].std(axis=0)
    return spread


def _number(value: float) -> float | None:
    return float(round(value, 6)) if np.isfinite(value) else None
