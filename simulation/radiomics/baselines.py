"""What can be had without privacy and without a federation: scikit-learn's own models, pooled, alone, or trees united."""

from __future__ import annotations

import copy

import numpy as np
import numpy.typing as npt
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier

from simulation.radiomics.tables import Table

Floats = npt.NDArray[np.float64]
TREES = 300
LEAST = 3  # rows in a leaf: labels are uncertain

LABELS = {
    "pooled_random_forest": "All data in one place, random forest",
    "pooled_boosting": "All data in one place, gradient boosting",
    "union_of_trees": "Union of the hospitals' trees, without privacy",
    "alone_random_forest": "Each hospital alone, random forest",
}


def baselines(train: Table, test: Table, *, seed: int) -> dict[str, Floats]:
    """Probability of being positive of each row of `test`, (rows,), by baseline; NaN where a hospital can't learn alone.

    Every model learns from the labelled rows of `train` with the weights of their labels. Alone, each patient is judged by the
    forest of the patient's own hospital; the union has the trees of all of them.
    """
    whole = _forest(train, seed)
    boosting = HistGradientBoostingClassifier(max_iter=150, learning_rate=0.05, random_state=seed)
    known = train.weight > 0
    boosting.fit(train.X[known], train.y[known], sample_weight=train.weight[known])
    alone = {name: _forest(train[train.hospital == name], seed) for name in np.unique(train.hospital)}
    own = np.full(len(test.y), np.nan)
    for name, forest in alone.items():
        rows = test.hospital == name
        if forest is not None and rows.any():
            own[rows] = forest.predict_proba(test.X[rows])[:, 1]
    able = [forest for forest in alone.values() if forest is not None]
    found = {"pooled_boosting": np.asarray(boosting.predict_proba(test.X)[:, 1]), "alone_random_forest": own}
    if whole is not None:
        found["pooled_random_forest"] = np.asarray(whole.predict_proba(test.X)[:, 1])
    if able:
        union = copy.copy(able[0])
        union.estimators_ = [tree for forest in able for tree in forest.estimators_]
        union.n_estimators = len(union.estimators_)
        found["union_of_trees"] = np.asarray(union.predict_proba(test.X)[:, 1])
    return found


def _forest(train: Table, seed: int) -> RandomForestClassifier | None:
    """None where there is only one class to learn from."""
    known = train.weight > 0
    if len(np.unique(train.y[known])) < 2:
        return None
    forest = RandomForestClassifier(TREES, min_samples_leaf=LEAST, random_state=seed, n_jobs=1)
    return forest.fit(train.X[known], train.y[known], sample_weight=train.weight[known])
