"""Radiomics under privacy: two public tables (breast cancer, four hospitals of heart disease) and six generated hospitals.

Breast cancer is dealt out to five sites with different shares of cancers; bounds of the features follow from what they measure,
rounded outwards (below), not from the table. Heart disease stays where it was: each hospital's rows come in through its intake
(conf/hospitals/heart_disease.yaml, conf/task/heart_disease.yaml), every model is tested on each hospital's own patients.

In both a row is a patient; adjacency is add or remove one. Each site adds all of its noise itself. Ten repeats of five folds;
mean over repeats. The generated hospitals' study, which takes most of an hour, stands in `myocarditis.py`. The last line is one
JSON object; benchmarks/README.md names its keys.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from myocarditis import myocarditis
from omegaconf import OmegaConf
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from fl_client.intake.endpoints import EndpointRules
from fl_client.privacy import calibrate
from simulation.settings import TableHospitals
from simulation.tables import listed
from tasks.radiomics.forest import Feature, Settings, Structure
from tasks.radiomics.perceptron import scaled
from tasks.radiomics.task import ForestTask
from tasks.task import load

ALONE = "alone: "
CONF = Path(__file__).parents[1] / "conf"
Floats = npt.NDArray[np.float64]

SITES, DELTA, FIRST_SEED = 5, 1e-3, 1000
EPSILONS = (0.5, 3.0, math.inf)
HEART_EPSILON = 3.0
STEPS, LEARNING_RATE, MAX_GRAD_NORM = 10, 1.0, 1.0  # of the logistic regression; chosen on heart disease with other folds
BOUNDS = {  # of a cell's nucleus; lengths in pixels of the digitised slide
    "radius": (4, 40),
    "texture": (5, 60),
    "perimeter": (25, 250),
    "area": (50, 5000),
    "smoothness": (0.02, 0.3),
    "compactness": (0.01, 1.5),
    "concavity": (0.005, 1.5),
    "concave points": (0.005, 0.5),
    "symmetry": (0.05, 1),
    "fractal dimension": (0.03, 0.3),
}


def feature(name: str) -> Feature:
    """Public bounds of one column: an error is between a fiftieth and a tenth of what it is the error of."""
    lower, upper = BOUNDS[name.removeprefix("mean ").removeprefix("worst ").removesuffix(" error")]
    if name.endswith(" error"):
        lower, upper = lower / 50, upper / 10
    return Feature(name=name, lower=lower, upper=upper, scale="log")


def main() -> None:
    """Train and test, and print the areas under the curve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--only", choices=("breast_cancer", "heart", "myocarditis"), help="one of the three")
    parser.add_argument("--runs", default="runs", help="folder of runs and cache, for myocarditis")
    parser.add_argument("overrides", nargs="*", help="further settings of the myocarditis study, key=value")
    options = parser.parse_args()
    result: dict[str, object] = {"delta": DELTA, "repeats": options.repeats}
    if options.only in (None, "breast_cancer"):
        result = {**breast_cancer(options.repeats), **result}
    if options.only in (None, "heart"):
        result = {**result, **heart(options.repeats)}
    if options.only in (None, "myocarditis"):
        result = {**result, **myocarditis(options.runs, options.overrides)}
    print(json.dumps(result))


def breast_cancer(repeats: int) -> dict[str, object]:
    """Five sites under each epsilon."""
    table = load_breast_cancer()
    X, y = np.asarray(table.data), 1 - np.asarray(table.target)  # 1: malignant
    features = tuple(feature(str(name)) for name in table.feature_names)
    noise = {e: calibrate(epsilon=e, delta=DELTA, sample_rate=1.0, steps=1) if e < math.inf else 0.0 for e in EPSILONS}
    found: dict[object, list[float]] = {}
    for repeat in range(repeats):
        trees = Structure.draw(Settings(features=features, classes=(0, 1), seed=FIRST_SEED + repeat))
        rng = np.random.default_rng([FIRST_SEED, repeat])
        folds: dict[object, list[float]] = {}
        for train, test in StratifiedKFold(5, shuffle=True, random_state=FIRST_SEED + repeat).split(X, y):
            share = rng.dirichlet([1.0] * SITES, 2)
            site = np.array([rng.choice(SITES, p=share[label]) for label in y[train]])
            mine = [train[site == s] for s in range(SITES)]
            totals = [trees.total(X[rows], y[rows], rows) for rows in mine]
            for epsilon, z in noise.items():
                total = np.sum([own + z * rng.normal(size=own.size) for own in totals], axis=0)
                leaves = trees.probabilities(total, noise_std=z * math.sqrt(SITES))
                folds.setdefault(epsilon, []).append(auc(y[test], trees.predict_proba(leaves, X[test])[:, 1]))
            if repeat < 2:  # what it is compared with needs no more
                folds.setdefault("pooled", []).append(alone(X, y, train, test))
                several = [rows for rows in mine if len(np.unique(y[rows])) == 2]
                folds.setdefault("alone", []).append(mean(alone(X, y, rows, test) for rows in several))
        for key, values in folds.items():
            found.setdefault(key, []).append(mean(values))
    return {
        "breast_cancer": {f"{e:g}": round(mean(found[e]), 4) for e in EPSILONS},
        "breast_cancer_sd": {f"{e:g}": round(stdev(found[e]), 4) if repeats > 1 else None for e in EPSILONS},
        "breast_cancer_pooled": round(mean(found["pooled"]), 4),
        "breast_cancer_local_mean": round(mean(found["alone"]), 4),
    }


def heart(repeats: int) -> dict[str, object]:
    """Four hospitals together under privacy, and each alone without. Alone is whichever model turns out best there."""
    task, tables = heart_tables()
    by_repeat = [heart_folds(task, tables, FIRST_SEED + repeat) for repeat in range(repeats)]
    found = {name: {key: [folds[name][key] for folds in by_repeat] for key in by_repeat[0][name]} for name in tables}
    alone = {
        name: max((key for key in keys if key.startswith(ALONE)), key=lambda k: mean(keys[k])) for name, keys in found.items()
    }
    pairs = {name: {"federated": found[name]["forest"], "alone": found[name][alone[name]]} for name in found}
    means = {name: {what: round(mean(values), 4) for what, values in pair.items()} for name, pair in pairs.items()}
    others = {
        "heart_no_noise": "forest without noise",
        "heart_logistic": "logistic regression",
        "heart_same_forest_alone": "the same forest by itself",
    }
    return {
        "heart": means,
        "heart_sd": {
            name: {what: round(stdev(values), 4) if repeats > 1 else None for what, values in pair.items()}
            for name, pair in pairs.items()
        },
        "heart_mean": {what: round(mean(row[what] for row in means.values()), 4) for what in ("federated", "alone")},
        "heart_alone_is": {name: key.removeprefix(ALONE) for name, key in alone.items()},
        **{key: {name: round(mean(found[name][of]), 4) for name in found} for key, of in others.items()},
        "heart_epsilon": HEART_EPSILON,
        "heart_patients": {name: len(table.y) for name, table in tables.items()},
    }


@dataclass(frozen=True, eq=False)
class Patients:
    """A hospital's: `X` (patients, columns of the study), `findings` (patients, 13) as recorded, NaN if missing; `y` 0 or 1."""

    X: Floats
    findings: Floats
    y: npt.NDArray[np.int64]


def heart_folds(task: ForestTask, tables: Mapping[str, Patients], seed: int) -> dict[str, dict[str, float]]:
    """Mean AUC over five folds, by hospital and model. A fold is a fifth of every hospital."""
    once, descent = (calibrate(epsilon=HEART_EPSILON, delta=DELTA, sample_rate=1.0, steps=steps) for steps in (1, STEPS))
    rng = np.random.default_rng(seed)
    trees = Structure.draw(task.settings.forest.model_copy(update={"seed": seed}))
    counts = {
        name: np.array([trees.contribution(table.X[[i]], table.y[[i]]) for i in range(len(table.y))])
        for name, table in tables.items()
    }
    shuffled = StratifiedKFold(5, shuffle=True, random_state=seed)
    splits = {name: list(shuffled.split(table.y, table.y)) for name, table in tables.items()}
    found: dict[str, dict[str, list[float]]] = {name: {} for name in tables}
    for fold in range(5):
        totals = {name: counts[name][splits[name][fold][0]].sum(axis=0) for name in tables}
        noisy = [total + once * rng.normal(size=total.size) for total in totals.values()]
        private = trees.probabilities(np.sum(noisy, axis=0), noise_std=once * math.sqrt(len(tables)))
        exact = trees.probabilities(np.sum(list(totals.values()), axis=0), noise_std=0)
        columns = task.settings.columns
        training = {name: (table.X[splits[name][fold][0]], table.y[splits[name][fold][0]]) for name, table in tables.items()}
        weights = descended([(scaled(X, columns), y) for X, y in training.values()], descent, rng)
        for name, table in tables.items():
            train, test = splits[name][fold]
            by_itself = trees.probabilities(totals[name], noise_std=0)
            scores = {
                "forest": trees.predict_proba(private, table.X[test])[:, 1],
                "forest without noise": trees.predict_proba(exact, table.X[test])[:, 1],
                "the same forest by itself": trees.predict_proba(by_itself, table.X[test])[:, 1],
                "logistic regression": scaled(table.X[test], columns) @ weights,
            }
            for kind, model in plain_models(seed).items():
                for of, values in (("findings", table.findings), ("columns", table.X)):
                    model.fit(values[train], table.y[train])
                    scores[f"{ALONE}{kind} on {of}"] = model.predict_proba(values[test])[:, 1]
            for key, score in scores.items():
                found[name].setdefault(key, []).append(auc(table.y[test], score))
    return {name: {key: mean(values) for key, values in keys.items()} for name, keys in found.items()}


def heart_tables() -> tuple[ForestTask, dict[str, Patients]]:
    """The task, and the patients of each hospital after its intake."""
    hospitals = TableHospitals.model_validate(composed("hospitals"))
    task = load(composed("task"))
    if not isinstance(task, ForestTask):
        raise ValueError("conf/task/heart_disease.yaml has another learner than a forest")
    names = [name for name in EndpointRules.only(hospitals.columns).numbers if name != task.settings.label.endpoint]
    tables = {}
    with tempfile.TemporaryDirectory() as folder:
        sites, _ = listed(hospitals, cache=Path(folder), advance=lambda done, total: None)
        for name, hospital in sites.items():
            cases = list(hospital.cohort)
            rows = [task.prepare(case) for case in cases]
            findings = np.array([[case.endpoints[column] for column in names] for case in cases], np.float64)
            labels = np.array([int(row["y"][0]) for row in rows])
            tables[name] = Patients(np.concatenate([row["X"] for row in rows]), findings, labels)
    return task, tables


def composed(choice: str) -> dict[str, Any]:
    """One choice of conf/ that is called heart_disease."""
    return cast("dict[str, Any]", OmegaConf.to_container(OmegaConf.load(CONF / choice / "heart_disease.yaml"), resolve=True))


def descended(
    sites: Sequence[tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]], noise: float, rng: np.random.Generator
) -> Floats:
    """Weights of a logistic regression after `STEPS` noisy sums of clipped gradients per site, added up.

    The sum is divided by the sizes that the sites declare. The constant is learned too and left out here: it ranks nobody.
    """
    weights = np.zeros(sites[0][0].shape[1] + 1)
    declared = sum(5 * round(len(y) / 5) for _, y in sites)
    for _ in range(STEPS):
        total = np.zeros_like(weights)
        for columns, y in sites:
            X = np.column_stack([columns, np.ones(len(y))])
            gradients = (1 / (1 + np.exp(-X @ weights)) - y)[:, None] * X
            length = np.linalg.norm(gradients, axis=1, keepdims=True)
            clipped = gradients / np.maximum(1, length / MAX_GRAD_NORM)
            total += clipped.sum(axis=0) + noise * MAX_GRAD_NORM * rng.normal(size=weights.size)
        weights -= LEARNING_RATE * total / declared
    return weights[:-1]


def plain_models(seed: int) -> dict[str, Pipeline]:
    """What a hospital would use by itself; medians and scales come from its training patients."""
    return {
        "random forest": make_pipeline(
            SimpleImputer(strategy="median", keep_empty_features=True), RandomForestClassifier(100, random_state=seed)
        ),
        "logistic regression": make_pipeline(
            SimpleImputer(strategy="median", keep_empty_features=True), StandardScaler(), LogisticRegression(max_iter=1000)
        ),
    }


def alone(
    X: npt.NDArray[np.float64], y: npt.NDArray[np.int64], train: npt.NDArray[np.intp], test: npt.NDArray[np.intp]
) -> float:
    """scikit-learn's own forest on these rows, without privacy."""
    forest = RandomForestClassifier(100, random_state=0).fit(X[train], y[train])
    return auc(y[test], forest.predict_proba(X[test])[:, 1])


def auc(truth: npt.NDArray[np.int64], score: npt.NDArray[np.float64]) -> float:
    """Area under the receiver operating characteristic."""
    return float(roc_auc_score(truth, score))


if __name__ == "__main__":
    main()
