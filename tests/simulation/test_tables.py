"""Hospitals whose patients come from tables: the four real ones, and what is wrong with a table is told."""

import math
from pathlib import Path

import numpy as np
import pytest
import yaml
from omegaconf import OmegaConf

from fl_client.intake.deidentify import Deidentifier
from simulation.hospital import KEY, pooled
from simulation.settings import TableHospitals
from simulation.tables import listed
from tasks.task import load

ROOT = Path(__file__).parents[2]
PATIENTS = {"cleveland": 303, "hungary": 294, "switzerland": 123, "long_beach": 200}


def nothing(done, total):
    pass


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """The four hospitals as the shipped choice makes them."""
    settings = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "hospitals" / "heart_disease.yaml"), resolve=True)
    settings["sites"] = {name: str(ROOT / file) for name, file in settings["sites"].items()}
    sites, _ = listed(TableHospitals.model_validate(settings), cache=tmp_path_factory.mktemp("cache"), advance=nothing)
    return {name: list(hospital.cohort) for name, hospital in sites.items()}, sites


def test_every_patient_of_the_four_hospitals_is_let_in(real):
    cases, sites = real
    assert {name: len(found) for name, found in cases.items()} == PATIENTS
    assert all(not hospital.refused for hospital in sites.values())
    assert {hospital.cases_expected for hospital in sites.values()} == set(PATIENTS.values())


def test_as_many_values_are_missing_as_the_collections_description_says(real):
    cases, _ = real
    missing = {name: sum(value is None for case in found for value in case.endpoints.values()) for name, found in cases.items()}
    # cells without a number, as README.txt counts them, and the zeros declared missing: all 123 cholesterols of Switzerland;
    # 49 cholesterols and one blood pressure of Long Beach
    assert missing == {"cleveland": 6, "hungary": 782, "switzerland": 273 + 123, "long_beach": 698 + 49 + 1}
    assert min(case.endpoints["chol"] or math.inf for found in cases.values() for case in found) == 85


def test_the_hospitals_differ_in_how_many_are_diseased(real):
    cases, _ = real
    healthy = {name: sum(case.endpoints["target"] == 0 for case in found) for name, found in cases.items()}
    assert healthy == {"cleveland": 164, "hungary": 188, "switzerland": 8, "long_beach": 51}


def test_patients_of_different_hospitals_can_be_pooled(real, tmp_path):
    _, sites = real
    assert len(pooled("pooled", sites, tmp_path).cohort) == sum(PATIENTS.values())


def test_the_first_patient_of_cleveland_has_the_columns_of_the_study(real):
    cases, _ = real
    task = load(yaml.safe_load((ROOT / "conf" / "task" / "heart_disease.yaml").read_text()))
    first = {"age": 63, "chol": 233, "trestbps": 145, "thalach": 150}
    (case,) = [c for c in cases["cleveland"] if first.items() <= c.endpoints.items()]
    numbers = [63, 145, 233, 150, 2.3, 1, 1, 0]  # age, trestbps, chol, thalach, oldpeak, sex, fbs, exang
    categories = [1, 0, 0, 0, 0, 0, 1, 0, 0, 1, 1, 0, 0, 0, 0, 1, 0]  # cp 1, restecg 2, slope 3, ca 0, thal 6
    rows = task.rows(task.prepare(case))
    np.testing.assert_array_equal(rows.X, [numbers + categories])
    np.testing.assert_array_equal(rows.y, [0])


def test_what_is_missing_reaches_the_study_as_missing(real):
    cases, _ = real
    task = load(yaml.safe_load((ROOT / "conf" / "task" / "heart_disease.yaml").read_text()))
    X = np.concatenate([task.rows(task.prepare(case)).X for case in cases["switzerland"]])
    missing = dict(zip([column.name for column in task.settings.columns], np.isnan(X).sum(axis=0), strict=True))
    assert missing["chol"] == 123
    assert {name: count for name, count in missing.items() if name.startswith("ca=")} == dict.fromkeys(
        ("ca=0", "ca=1", "ca=2", "ca=3"), 118
    )


# -- tables of one's own ----------------------------------------------------------------------------------------------


def hospitals(tmp_path, *texts, held_out=(), **columns):
    files = {}
    for number, text in enumerate(texts):
        files[f"h{number}"] = str(tmp_path / f"{number}.csv")
        Path(files[f"h{number}"]).write_text(text)
    apart = {name: files.pop(name) for name in held_out}
    declared = {"numbers": ["chol", "target"], **columns}
    settings = TableHospitals(source="tables", columns=declared, sites=files, held_out=apart)
    sites, others = listed(settings, cache=tmp_path / "cache", advance=nothing)
    return {**sites, **others}


def test_row_one_of_two_tables_is_two_people(tmp_path):
    found = hospitals(tmp_path, "chol,target\n200,1\n", "chol,target\n200,1\n", held_out=["h1"])
    one, other = (hospital.cohort.patients for hospital in found.values())
    assert len(one) == len(other) == 1
    assert one != other


def test_a_column_of_identifiers_is_used_where_there_is_one(tmp_path):
    found = hospitals(tmp_path, "chol,target,mrn\n200,1,17\n210,0,18\n", patient_id="mrn")
    pseudonym = Deidentifier(KEY + b"h0").pseudonym
    assert set(found["h0"].cohort.patients) == {pseudonym("17"), pseudonym("18")}


def test_what_is_wrong_with_a_row_is_told_with_its_line_in_the_hospitals_file(tmp_path):
    found = hospitals(tmp_path, 'chol,target,remark\n200,1,\n?,0,"two\nlines"\nhigh,0,\n190,1\n')["h0"]
    assert len(found.cohort) == 2
    assert sorted(found.refused.values()) == [
        "columns number 3 of the table are not declared in the endpoint rules",
        "line 5 of the table: chol is no number",
        "line 6 of the table has 2 cells, its first line 3",
    ]


def test_a_second_look_finds_the_cohort_in_the_cache_and_a_changed_table_is_let_in_again(tmp_path):
    first = hospitals(tmp_path, "chol,target\n200,1\n")["h0"]
    mark = (first.cohort_folder.parent / "done").stat().st_mtime_ns
    again = hospitals(tmp_path, "chol,target\n200,1\n")["h0"]
    assert again == first
    assert (again.cohort_folder.parent / "done").stat().st_mtime_ns == mark
    assert hospitals(tmp_path, "chol,target\n201,1\n")["h0"].identity != first.identity


@pytest.mark.parametrize(
    ("text", "columns", "told"),
    [
        ("chol,target\n200,1\n", {"numbrs": ["chol"]}, r"hospitals\.columns\.numbrs: no such setting"),
        ("age,sex\n50,1\n", {}, r"0\.csv \(h0\): the table has no column that is declared"),
        ("chol;target\n200;1\n", {}, r"0\.csv \(h0\): .*parted by ';'"),
        ("", {}, r"0\.csv \(h0\): the table has no column that is declared"),
    ],
)
def test_a_table_that_cannot_be_read_is_told_with_file_and_hospital(tmp_path, text, columns, told):
    with pytest.raises(ValueError, match=told):
        hospitals(tmp_path, text, **columns)
