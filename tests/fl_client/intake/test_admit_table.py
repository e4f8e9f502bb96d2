"""Patients without images: rows become cases, each problem is told with its line, and nothing undeclared passes."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from fl_client.__main__ import main
from fl_client.cohort import Cohort
from fl_client.intake.deidentify import Deidentifier
from fl_client.intake.endpoints import EndpointRules, EndpointsUnreadable
from fl_client.intake.table import admit_table
from fl_client.site import Site

KEY = b"sixteen bytes at least"
RULES = EndpointRules.only({"numbers": ["age", "chol", "target"], "missing": {"chol": [0], "every column": [-9]}})


def pseudonym(identifier):
    return Deidentifier(KEY).pseudonym(identifier)


@pytest.fixture
def let_in(tmp_path):
    """Let a table in: `let_in(text, rules)` gives the intake's outcome and the cohort."""

    def enter(text, rules=RULES):
        path = tmp_path / "Abendroth.csv"
        path.write_text(text)
        cohort = Cohort(tmp_path / "cohort")
        return admit_table(path, cohort, key=KEY, rules=rules), cohort

    return enter


def test_a_row_becomes_a_case_without_images_under_a_pseudonym(let_in):
    intake, cohort = let_in("mrn,age,chol,name,target\n17,63,233.5,Abendroth,1\n")
    assert intake.admitted == cohort.patients == (pseudonym("17"),)
    case = cohort.case(pseudonym("17"))
    assert case.volumes == ()
    assert case.endpoints == {"age": 63, "chol": 233.5, "target": 1}
    assert list(intake.left_out.values()) == ["columns number 4 of the table are not declared in the endpoint rules"]


@pytest.mark.parametrize("cell", ["", " ", "?", "NA", "n/a", "0", "0.0", "-9", "-9.00"])
def test_what_is_declared_missing_is_missing_however_it_is_written(let_in, cell):
    _, cohort = let_in(f"mrn,age,chol,target\n1,50,{cell},0\n")
    assert cohort.case(pseudonym("1")).endpoints == {"age": 50, "chol": None, "target": 0}


def test_a_code_of_one_column_is_a_value_in_another(let_in):
    _, cohort = let_in("mrn,age,chol,target\n1,0,200,0\n")
    assert cohort.case(pseudonym("1")).endpoints == {"age": 0, "chol": 200, "target": 0}


def test_what_nobody_declared_missing_is_a_value(let_in):
    _, cohort = let_in("mrn,chol\n1,0\n2,-9\n", EndpointRules.only({"numbers": ["chol"]}))
    assert [cohort.case(pseudonym(name)).endpoints["chol"] for name in "12"] == [0, -9]


def test_rows_that_cannot_be_taken_are_told_with_their_line_and_the_others_get_in(let_in):
    text = (
        "mrn,age,chol,target\n1,50,200,0\n2,51,200\n3,fifty,200,0\n4,52,210,1\n5,53,190,1\n4,54,210,1\n,55,200,1\n6,56,inf,0\n"
    )
    intake, cohort = let_in(text)
    assert set(cohort.patients) == {pseudonym("1"), pseudonym("5")}
    assert intake.refused == {
        pseudonym("3"): "line 4 of the table: age is no number",
        pseudonym("4"): "the table holds two different rows for this patient, the second on line 7",
        pseudonym("6"): "line 9 of the table: chol is not a finite number",
    }
    assert sorted(intake.left_out.values()) == [
        "line 3 of the table has 3 cells, its first line 4",
        "line 8 of the table names no patient",
    ]
    assert intake.expected == 5


def test_nothing_that_is_stored_names_a_person_or_repeats_a_cell(let_in, tmp_path):
    let_in("mrn,age,chol,target\nAbendroth,fifty,200,0\nBirnbaum,50,200,1\nCordes,7\n")
    stored = "".join(path.read_text() for path in (tmp_path / "cohort").rglob("*") if path.is_file())
    assert "age is no number" in stored
    for word in ("Abendroth", "Birnbaum", "Cordes", "fifty"):
        assert word not in stored


def test_the_same_table_twice_gives_the_same_cohort(let_in):
    text = "mrn,age,chol,target\n1,50,200,0\n2,x,200,0\n3,1\n"
    _, cohort = let_in(text)
    before = cohort.refused, cohort.patients
    let_in(text)
    assert (cohort.refused, cohort.patients) == before
    assert len(cohort.refused) == 2


def test_endpoints_join_the_images_of_the_same_patient(hospitals, tmp_path):
    cohort = hospitals.site("a").cohort_folder
    case = next(iter(Cohort(cohort)))
    moved = Cohort(tmp_path / "cohort")
    moved.admit(type(case)(pseudonym("17"), case.volumes, case.endpoints, case.scanner))
    (tmp_path / "table.csv").write_text("mrn,chol\n17,180\n")
    admit_table(tmp_path / "table.csv", moved, key=KEY, rules=EndpointRules.only({"numbers": ["chol"]}))
    assert moved.case(pseudonym("17")).endpoints == {**case.endpoints, "chol": 180}
    assert [v.series for v in moved.case(pseudonym("17")).volumes] == [v.series for v in case.volumes]


def test_a_table_of_another_country_is_read_as_its_rules_say(let_in):
    rules = EndpointRules.only({"numbers": ["chol"], "separator": ";", "decimal": ","})
    intake, cohort = let_in("mrn;chol\n1;233,5\n2;1.200\n", rules)
    assert cohort.case(pseudonym("1")).endpoints == {"chol": 233.5}
    assert intake.refused == {pseudonym("2"): "line 3 of the table: chol is no number"}  # 1.2 or 1200: not guessed


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "has no column"),
        ("age,chol,target\n63,233,1\n", "the first column of the table, 'age', is declared as a value"),
        ("mrn,name\n1,Abendroth\n", "no column that is declared"),
        ("mrn,age,age\n1,2,3\n", "names a column twice"),
    ],
)
def test_a_table_that_cannot_be_understood_lets_nobody_in(let_in, tmp_path, text, told):
    with pytest.raises(EndpointsUnreadable, match=told):
        let_in(text)
    assert Cohort(tmp_path / "cohort").patients == ()


def test_another_separator_is_recognised_and_named(let_in):
    rules = RULES.model_copy(update={"patient_id": "mrn"})
    with pytest.raises(EndpointsUnreadable, match="the cells of the table seem to be parted by ';', and the rules say ','"):
        let_in("mrn;age\n1;2\n", rules)


@pytest.mark.parametrize(
    ("declared", "told"),
    [
        ({"numbers": ["chol"], "missing": {"cohl": [0]}}, "missing names cohl, which is no declared column"),
        ({"numbers": ["sex"], "categories": {"sex": ["F", "M"]}}, "sex can be only one of number, category and date"),
        ({"numbers": ["mrn"], "patient_id": "mrn"}, "can't be a value, too"),
        ({"numbers": ["chol"], "decimal": ","}, "can't both part the cells and stand in numbers"),
    ],
)
def test_rules_that_contradict_themselves_are_refused(declared, told):
    with pytest.raises(ValidationError, match=told):
        EndpointRules.only(declared)


def test_rare_ages_are_capped_in_tables_as_beside_images(let_in):
    _, cohort = let_in("mrn,age\n1,97\n")
    assert cohort.case(pseudonym("1")).endpoints == {"age": 89}


def test_a_hospital_admits_a_table_by_command_line(tmp_path, capsys):
    path = tmp_path / "clinic" / "site.yaml"
    assert main(["--site", str(path), "init", "--name", "clinic", "--declared-size", "5"]) == 0
    (tmp_path / "table.csv").write_text("ward,mrn,chol\nA,1,200\nA,2,0\nB,2,5\nB,3,x\n")
    (tmp_path / "columns.yaml").write_text("numbers: [chol]\nmissing: {chol: [0]}\n")
    table = ["--site", str(path), "admit", str(tmp_path / "table.csv"), "--columns", str(tmp_path / "columns.yaml")]
    capsys.readouterr()
    assert main([*table, "--id-column", "mrn"]) == 0
    said = capsys.readouterr().out
    assert "3 patients: 1 admitted, 2 refused" in said
    assert "the second on line 4" in said
    assert main(["--site", str(path), "cohort"]) == 0
    assert "1 patients in" in capsys.readouterr().out
    assert main([*table, "--id-column", "chol"]) == 1
    assert "'chol' is the patients' identifier and can't be a value, too" in capsys.readouterr().err
    inside = Cohort(Site.load(path).cohort_folder)
    assert json.loads(next(Path(inside.folder).rglob("case.json")).read_text())["endpoints"] == {"chol": 200}
