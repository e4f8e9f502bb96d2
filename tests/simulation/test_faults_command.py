"""A rehearsal with faults, by the command that a person types."""

import json

import pytest

from simulation.__main__ import main
from simulation.arms import Arm
from simulation.report import summary_lines

PLAN = "faults.plan=[{fault: nan_update, site: donau, rounds: 1}, {fault: coordinator_killed, rounds: 2, answers: 1}]"


@pytest.fixture(scope="module")
def broken(tiny):
    """The tiny rehearsal, whose hospital donau answers with NaN in round 1 and whose coordinator dies in round 2."""
    words = ["name=broken", "repeats=1", "arms=[federation_private,alone]", PLAN]
    return tiny.folder.parent / "broken", tiny.again(*words), [*tiny.overrides, *words]


def test_the_exit_status_says_that_the_study_was_degraded_and_the_record_what_was_done_to_it(broken):
    folder, status, _ = broken
    record = json.loads((folder / "record.json").read_text())
    assert (status, record["verdict"]) == (3, "degraded")
    assert [(fault["fault"], fault.get("site"), fault["rounds"]) for fault in record["faults"]] == [
        ("nan_update", "donau", [1, 1]),
        ("coordinator_killed", None, [2, 2]),
    ]
    assert record["faults"][0]["words"] == "One number of the update is not a number."
    assert record["rounds"][0]["sites"]["donau"]["answer"] == "quarantined"
    assert record["rounds"][1]["sites"]["donau"]["answer"] == "used"
    assert len(record["resumed"]) == 1
    assert any("donau quarantined" in reason for reason in record["reasons"])


def test_report_and_screen_tell_what_was_made_on_purpose(broken):
    folder, _, _ = broken
    report = (folder / "report.html").read_text()
    assert "2 faults made on purpose" in report
    assert "round 1, donau: nan update. One number of the update is not a number." in report
    assert "round 2, coordinator: coordinator killed." in report
    assert "  2 faults were made on purpose; the report names them" in summary_lines(folder)


def test_comparisons_are_spared(broken):
    folder, _, _ = broken
    for name in ("donau", "rhein"):
        record = Arm(f"alone/{name}", None, {}, folder / "arms" / "alone" / name / "0").record()
        assert (record.verdict, record.faults) == ("complete", [])


def test_an_arm_is_trained_anew_when_the_plan_changes_and_not_before(broken, capsys):
    folder, _, words = broken
    trained = folder / "arms" / "federation_private" / "0" / "record.json"
    before = trained.stat().st_mtime_ns
    assert main(words) == 3
    assert trained.stat().st_mtime_ns == before
    assert main([*words[:-1], "faults=none"]) == 0
    assert trained.stat().st_mtime_ns != before
    assert json.loads((folder / "record.json").read_text())["faults"] == []


def test_a_wrong_plan_is_refused_before_anything_runs(tiny, capsys):
    assert main([*tiny.overrides, "name=wrong", "faults.plan=[{fault: gremlin, site: donau, rounds: 1}]"]) == 2
    assert "no such fault as 'gremlin'; there are crash_before_training" in capsys.readouterr().err
    assert main([*tiny.overrides, "name=wrong", "faults=no_such_week"]) == 2
    assert "faults is one of" in capsys.readouterr().err
    assert not (tiny.folder.parent / "wrong").exists()
