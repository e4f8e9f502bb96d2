"""Folds for cross-validation in which no patient stands on both sides.

Rows of one patient resemble each other; a model that has seen some of them is not tested by the others.
"""

from __future__ import annotations

import warnings

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import StratifiedGroupKFold

Indices = npt.NDArray[np.intp]


class PatientOnBothSides(ValueError):
    """Some patients have rows both to learn from and to test on."""


def grouped_folds(patients: npt.ArrayLike, labels: npt.ArrayLike, *, folds: int, seed: int) -> list[tuple[Indices, Indices]]:
    """(train, test) row indices for each fold: patients whole, labels spread as evenly as they allow (scikit-learn's).

    For tables that are held in one place without privacy. A fold may lack a class where few patients have it.
    Raises `ValueError` where there are too few patients, or too few rows of every class, for so many folds.
    """
    names, y = np.asarray(patients), np.asarray(labels)
    if names.ndim != 1 or names.shape != y.shape:
        raise ValueError(f"one patient and one label per row are needed, not arrays of shape {names.shape} and {y.shape}")
    different = len(np.unique(names))
    if folds < 2 or different < folds:
        raise ValueError(f"folds must be at least 2 and at most the number of patients, {different}; not {folds}")
    most = int(np.unique(y, return_counts=True)[1].max())
    if most < folds:
        raise ValueError(f"{folds} folds need a class of at least {folds} rows; the most frequent has {most}")
    splitter = StratifiedGroupKFold(n_splits=folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)  # see the docstring
        split = [(train.astype(np.intp), test.astype(np.intp)) for train, test in splitter.split(np.zeros(len(y)), y, names)]
    for train, test in split:
        require_grouped(names, train, test)
    return split


def require_grouped(patients: npt.ArrayLike, train: npt.ArrayLike, test: npt.ArrayLike) -> None:
    """Raise `PatientOnBothSides` if any patient has rows (indices, or booleans per row) in both `train` and `test`."""
    names = np.asarray(patients)
    both = np.intersect1d(names[np.asarray(train)], names[np.asarray(test)])
    if len(both):
        raise PatientOnBothSides(
            f"{len(both)} of {len(np.unique(names))} patients have rows both to learn from and to test on; "
            "split by patient, as grouped_folds does"
        )
