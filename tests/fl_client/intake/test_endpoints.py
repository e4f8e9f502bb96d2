from __future__ import annotations

from pathlib import Path

import pytest

from fl_client.intake.deidentify import Deidentifier
from fl_client.intake.endpoints import EndpointRules, EndpointsUnreadable, read_endpoints

DEIDENTIFY = Deidentifier(b"sixteen bytes at least")
P1 = DEIDENTIFY.pseudonym("1")


def table(folder: Path, text: str) -> Path:
    path = folder / "endpoints.csv"
    path.write_text(text)
    return path


def test_declared_columns_pass_and_others_stay_outside_without_being_named(tmp_path: Path) -> None:
    path = table(tmp_path, "patient_id,name,event,ef,sex,age\n1,Abendroth,1,0.5,F,97\n2,B,,,,\n")
    rows, notes = read_endpoints(path, EndpointRules(), DEIDENTIFY)
    assert rows[P1].values == {"event": 1, "ef": 0.5, "sex": "F", "age": 89.0}
    assert rows[DEIDENTIFY.pseudonym("2")].values == {"event": None, "ef": None, "sex": None, "age": None}
    assert notes == ["columns number 2 of endpoints.csv are not declared in the endpoint rules"]


def test_dates_move_with_the_patients_dicom_dates(tmp_path: Path) -> None:
    rules = EndpointRules(dates=("operation",))
    rows, _ = read_endpoints(table(tmp_path, "patient_id,operation\n1,2024-01-15\n"), rules, DEIDENTIFY)
    assert rows[P1].values == {"operation": DEIDENTIFY.date("20240115", "1")}


@pytest.mark.parametrize("cell", ["2020-1-11", "2020111", "2020-11-1", "2020-01-112", "20200111120000"])
def test_a_date_that_is_not_written_in_full_is_refused_and_never_read_as_another_day(tmp_path: Path, cell: str) -> None:
    rules = EndpointRules(dates=("operation",))
    rows, _ = read_endpoints(table(tmp_path, f"patient_id,operation\n1,{cell}\n"), rules, DEIDENTIFY)
    assert rows[P1].problem == "line 2 of endpoints.csv: operation is no date YYYY-MM-DD"


@pytest.mark.parametrize("date", ["2020111", "2020 111", "202011", "2020.1.1", ""])
def test_a_dicom_date_without_its_eight_digits_moves_nowhere(date: str) -> None:
    assert DEIDENTIFY.date(date, "1") == ""


@pytest.mark.parametrize(
    ("cell", "problem"),
    [("x", "event is no number"), ("nan", "event is not a finite number")],
)
def test_a_bad_cell_is_this_patients_problem_and_is_not_repeated(tmp_path: Path, cell: str, problem: str) -> None:
    rows, _ = read_endpoints(table(tmp_path, f"patient_id,event\n1,{cell}\n2,0\n"), EndpointRules(), DEIDENTIFY)
    assert rows[P1].problem == f"line 2 of endpoints.csv: {problem}"
    assert rows[DEIDENTIFY.pseudonym("2")].problem is None


def test_two_rows_that_differ_are_refused_and_two_equal_ones_are_one(tmp_path: Path) -> None:
    rows, _ = read_endpoints(table(tmp_path, "patient_id,event\n1,0\n1,1\n2,0\n2,0\n"), EndpointRules(), DEIDENTIFY)
    assert "two different rows" in str(rows[P1].problem)
    assert rows[DEIDENTIFY.pseudonym("2")].problem is None


def test_lines_of_another_length_and_without_patient_are_reported(tmp_path: Path) -> None:
    rows, notes = read_endpoints(table(tmp_path, "patient_id,event\n1,0,5\n,1\n\n2,1\n"), EndpointRules(), DEIDENTIFY)
    assert len(rows) == 1
    assert notes == ["line 2 of endpoints.csv has 3 cells, its first line 2", "line 3 of endpoints.csv names no patient"]


@pytest.mark.parametrize(
    "content",
    [b"", b"name,event\nAbendroth,1\n", b"\xff\xfe\x00p\x00a", b"patient_id,event,event\n1,0,0\n", b'patient_id\n"1\n'],
)
def test_an_unreadable_table_is_refused_as_a_whole(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "endpoints.csv"
    path.write_bytes(content)
    with pytest.raises(EndpointsUnreadable, match=r"endpoints\.csv") as raised:
        read_endpoints(path, EndpointRules(), DEIDENTIFY)
    assert "Abendroth" not in str(raised.value)
