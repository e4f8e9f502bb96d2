"""Columns of dates become days from an index day, and no date of them passes."""

import pytest
from pydantic import ValidationError

from fl_client.cohort import Cohort
from fl_client.intake.deidentify import Deidentifier
from fl_client.intake.endpoints import EndpointRules, EndpointsUnreadable
from fl_client.intake.table import admit_table

KEY = b"sixteen bytes at least"
DECLARED = {
    "index": "scan",
    "days": {"days_to_surgery": "surgery"},
    "survival": [{"event_on": "died", "last_seen": "visit"}],
    "missing": {"died": ["alive"]},
}
HEADER = "mrn,scan,surgery,died,visit\n"


@pytest.fixture
def let_in(tmp_path):
    def enter(text, declared=DECLARED):
        (tmp_path / "table.csv").write_text(text)
        cohort = Cohort(tmp_path / "cohort")
        return admit_table(tmp_path / "table.csv", cohort, key=KEY, rules=EndpointRules.only(declared)), cohort

    return enter


def endpoints(cohort, number="1"):
    return dict(cohort.case(Deidentifier(KEY).pseudonym(number)).endpoints)


@pytest.mark.parametrize(
    ("row", "surgery", "time", "event"),
    [
        ("2020-03-01,2020-03-31,,2021-03-01", 30, 365, 0),
        ("20200301,20200201,2020-04-01,2021-03-01", -29, 31, 1),
        ("2020-03-01,,alive,2020-03-01", None, 0, 0),
        ("2020-03-01,,,", None, None, None),
        ("2020-03-01,,,2020-02-01", None, None, None),
        (",2020-03-31,2020-04-01,", None, None, None),
    ],
)
def test_days_are_counted_from_the_index_day_and_missing_ends_are_missing(let_in, row, surgery, time, event):
    _, cohort = let_in(f"{HEADER}1,{row}\n")
    assert endpoints(cohort) == {"days_to_surgery": surgery, "time_days": time, "event": event}


def test_dates_themselves_stay_outside(let_in, tmp_path):
    intake, cohort = let_in(f"{HEADER}1,2020-03-01,2020-03-31,2020-07-19,2021-03-01\n")
    stored = b"".join(path.read_bytes() for path in cohort.folder.rglob("*") if path.is_file())
    assert b"2020" not in stored
    assert not intake.left_out  # the columns are declared


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("2020-03-01,,2020-02-01,", "line 2 of the table: died: the event lies before the index day"),
        ("2020-03-01,soon,,", "line 2 of the table: surgery is no date YYYY-MM-DD"),
        ("2020-02-30,,,", "line 2 of the table: scan is no date YYYY-MM-DD"),
        ("2020-1-11,,,", "line 2 of the table: scan is no date YYYY-MM-DD"),  # not 1 November 2020
        ("2020111,,,", "line 2 of the table: scan is no date YYYY-MM-DD"),
        ("20-20-03-01,,,", "line 2 of the table: scan is no date YYYY-MM-DD"),
        ("2020-03-01,2020-3-1,,", "line 2 of the table: surgery is no date YYYY-MM-DD"),
    ],
)
def test_dates_that_cannot_be_right_refuse_the_row(let_in, row, told):
    intake, _ = let_in(f"{HEADER}1,{row}\n")
    assert list(intake.refused.values()) == [told]


def test_a_table_without_a_column_that_days_are_counted_from_is_refused(let_in):
    with pytest.raises(EndpointsUnreadable, match="the table has no column died, from which the rules count days"):
        let_in("mrn,scan,surgery,visit\n1,2020-03-01,,\n")


@pytest.mark.parametrize(
    ("declared", "told"),
    [
        ({**DECLARED, "index": ""}, "is counted from an index day, and 'index' names no column"),
        ({**DECLARED, "numbers": ["event"]}, "event is given twice"),
        ({**DECLARED, "days": {"event": "surgery"}}, "event is given twice"),
    ],
)
def test_rules_about_days_that_contradict_themselves_are_refused(declared, told):
    with pytest.raises(ValidationError, match=told):
        EndpointRules.only(declared)
