"""No patient stands on both sides of a fold, and a leak is caught."""

from __future__ import annotations

import numpy as np
import pytest

from tasks.radiomics.folds import PatientOnBothSides, grouped_folds, require_grouped


def table(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    patients = np.repeat([f"patient-{number}" for number in range(40)], rng.integers(1, 17, 40))
    return patients, (rng.random(len(patients)) < 0.4).astype(int)


def test_folds_hold_every_row_once_and_no_patient_twice() -> None:
    patients, labels = table(np.random.default_rng(0))
    folds = grouped_folds(patients, labels, folds=5, seed=3)
    assert sorted(np.concatenate([test for _, test in folds])) == list(range(len(patients)))
    for train, test in folds:
        assert not set(patients[train]) & set(patients[test])
        assert len(train) + len(test) == len(patients)
        assert labels[test].mean() == pytest.approx(labels.mean(), abs=0.12)
    again = grouped_folds(patients, labels, folds=5, seed=3)
    assert all(np.array_equal(one[1], other[1]) for one, other in zip(folds, again, strict=True))
    other = grouped_folds(patients, labels, folds=5, seed=4)
    assert not all(np.array_equal(one[1], another[1]) for one, another in zip(folds, other, strict=True))


def test_a_leak_is_caught_and_names_a_number_and_nobody() -> None:
    patients, labels = table(np.random.default_rng(1))
    train, test = grouped_folds(patients, labels, folds=5, seed=0)[0]
    require_grouped(patients, train, test)
    with pytest.raises(PatientOnBothSides, match="1 of 40 patients have rows both") as caught:
        require_grouped(patients, np.append(train, test[0]), test)
    assert "patient-" not in str(caught.value)
    rows = np.random.default_rng(2).permutation(len(patients))
    with pytest.raises(PatientOnBothSides):
        require_grouped(patients, rows[50:], rows[:50])  # as a split by rows would do
    with pytest.raises(PatientOnBothSides, match="40 of 40"):
        require_grouped(patients, np.ones(len(patients), bool), np.ones(len(patients), bool))


def test_few_positives_leave_folds_without_one_and_do_not_crash() -> None:
    folds = grouped_folds(np.arange(30), [1, 1] + [0] * 28, folds=5, seed=0)
    assert sorted(sum(1 for row in test if row < 2) for _, test in folds) == [0, 0, 0, 1, 1]


@pytest.mark.parametrize(
    ("patients", "labels", "folds", "words"),
    [
        ([0, 0, 1, 1], [0, 1, 0, 1], 3, "at most the number of patients, 2; not 3"),
        ([0, 1, 2, 3, 4, 5], [0, 1, 0, 1, 0, 1], 5, "5 folds need a class of at least 5 rows; the most frequent has 3"),
        ([0, 1, 2], [0, 1], 2, "one patient and one label per row"),
        ([0, 1, 2], [0, 1, 1], 1, "folds must be at least 2"),
    ],
)
def test_folds_that_cannot_be_are_refused_in_words(patients: list[int], labels: list[int], folds: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        grouped_folds(patients, labels, folds=folds, seed=0)
