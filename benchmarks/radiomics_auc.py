"""The forest under privacy on scikit-learn's breast-cancer table, dealt out to five sites with different shares of cancers.

A row is a patient; adjacency is add or remove one. Each site adds all of its noise itself. Bounds of the features follow from
what they measure, rounded outwards (below), not from the table. Ten repeats of five folds; mean over repeats. The last line is
one JSON object; benchmarks/README.md names its keys.
"""

from __future__ import annotations

import argparse
import json
import math
from statistics import mean, stdev

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold

from fl_client.privacy import calibrate
from tasks.radiomics.forest import Feature, Settings, Structure

SITES, DELTA, FIRST_SEED = 5, 1e-3, 1000
EPSILONS = (0.5, 3.0, math.inf)
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
    """Train and test under each epsilon, and print the areas under the curve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=10)
    repeats = parser.parse_args().repeats
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
    result = {
        "breast_cancer": {f"{e:g}": round(mean(found[e]), 4) for e in EPSILONS},
        "breast_cancer_sd": {f"{e:g}": round(stdev(found[e]), 4) if repeats > 1 else None for e in EPSILONS},
        "breast_cancer_pooled": round(mean(found["pooled"]), 4),
        "breast_cancer_local_mean": round(mean(found["alone"]), 4),
        "delta": DELTA,
        "repeats": repeats,
    }
    print(json.dumps(result))


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
