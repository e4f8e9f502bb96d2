"""Folds of hospitals: nobody on both sides, everybody tested once, nothing copied."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from table_hospitals import FOREST, row

from fl_client.cohort import Cohort
from simulation.hospital import Hospital
from simulation.machine import Immediately
from simulation.radiomics.folds import folds
from simulation.radiomics.tables import gather, prepare
from tasks.task import load


@pytest.fixture
def hospitals(tmp_path):
    found = {}
    for name, patients in (("a", 11), ("b", 20)):
        cohort = Cohort(tmp_path / name / "cohort")
        for number in range(patients):
            cohort.admit(row(f"{name}{number:02d}", number, **({"ill": None} if number == 3 else {})))
        found[name] = Hospital(name, cohort.folder, 0.2, "", patients, {})
    return found


def prepared(hospitals):
    return prepare(Immediately(), FOREST, hospitals, models=None, advance=lambda done, total: None)


def test_who_has_no_label_is_left_out_with_the_reason(hospitals):
    usable, left_out = prepared(hospitals)
    assert left_out["a"] == {"a03": "case a03 has no label: its endpoint ill is missing"}
    assert {name: len(found) for name, found in usable.items()} == {"a": 10, "b": 19}
    assert set(usable["b"].values()) == {0, 1}


def test_every_patient_is_tested_once_and_trains_in_every_other_fold(hospitals, tmp_path):
    usable, _ = prepared(hospitals)
    split = folds(hospitals, usable, 3, tmp_path / "folds")
    for name in hospitals:
        tested = [patient for fold in split for patient in fold.tested[name]]
        assert sorted(tested) == sorted(usable[name])
        for fold in split:
            assert sorted([*fold.tested[name], *fold.hospitals[name].training_patients]) == sorted(usable[name])
            assert fold.hospitals[name].test_patients == ()
            positive = [usable[name][patient] for patient in fold.tested[name]]
            assert {0, 1} == set(positive)  # each fold has its share of both


def test_the_folds_of_one_hospital_do_not_move_when_another_has_more_patients(hospitals, tmp_path):
    usable, _ = prepared(hospitals)
    before = [fold.tested["a"] for fold in folds(hospitals, usable, 3, tmp_path / "one")]
    usable["b"].popitem()
    assert [fold.tested["a"] for fold in folds(hospitals, usable, 3, tmp_path / "two")] == before


def test_a_folds_hospital_shares_what_was_prepared(hospitals, tmp_path, monkeypatch):
    usable, _ = prepared(hospitals)
    (fold, *_) = folds(hospitals, usable, 3, tmp_path / "folds")
    task = load(FOREST)
    monkeypatch.setattr(type(task), "prepare", lambda self, case: pytest.fail("prepared again"))
    cohort = fold.hospitals["b"].cohort
    rows = [task.rows(cohort.prepared(task, patient)) for patient in cohort.patients]
    assert len(rows) == len(usable["b"]) - len(fold.tested["b"])


def test_more_folds_than_patients_are_refused_in_words(hospitals, tmp_path):
    usable, _ = prepared(hospitals)
    with pytest.raises(ValueError, match=r"radiomics.folds is 12, more than the usable patients of a \(10\)"):
        folds(hospitals, usable, 12, tmp_path / "folds")


def test_a_table_holds_whose_each_row_is(hospitals):
    prepared(hospitals)
    table = gather(load(FOREST), hospitals, {"a": ("a01", "a02"), "b": ("b07",)})
    assert table.patient.tolist() == ["a01", "a02", "b07"]
    assert table.hospital.tolist() == ["a", "a", "b"]
    assert table.X.shape == (3, 2)
    assert np.isnan(table.certainty).all()
    assert table.weight.tolist() == [1, 1, 1]
    only = table[table.hospital == "b"]
    assert (only.patient.tolist(), only.X.shape) == (["b07"], (1, 2))


def test_a_hospital_is_given_the_models_that_a_study_leans_on(hospitals, tmp_path):
    model = tmp_path / f"{'0' * 64}.pt"
    model.write_bytes(b"weights")
    usable, _ = prepared(hospitals)
    fold = folds(hospitals, usable, 3, tmp_path / "folds")[0].with_models(model)
    from fl_client.site import Budget, Site

    settings = fold.hospitals["a"].settle(tmp_path / "site", budget=Budget(), private=True, noise_seed=0)
    assert (Site.load(settings).models_folder / model.name).read_bytes() == b"weights"
    assert dataclasses.replace(fold.hospitals["a"], models=()).identity == fold.hospitals["a"].identity
    assert isinstance(settings, Path)
