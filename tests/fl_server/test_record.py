import json
import os

import pytest
from pydantic import ValidationError

from fl_server.__main__ import main
from fl_server.live import Now
from fl_server.record import Record, Round, SiteRound
from fl_server.report import compose
from fl_server.report.findings import Findings


@pytest.fixture
def written(hospitals, tmp_path):
    """A record on disk, and the same as the JSON that stands in it."""
    record = Record.begin(hospitals.study(rounds=1), engine="inprocess")
    sites = {name: SiteRound(answer="used", epsilon=1.0) for name in "abc"}
    record.rounds.append(Round(round=1, sites=sites, seconds=1.5, arrays_sha256="0" * 64))
    record.judge()
    record.write(tmp_path / "record.json")
    return record, tmp_path / "record.json", json.loads((tmp_path / "record.json").read_text())


def test_a_record_is_read_as_it_was_written(written):
    record, path, _ = written
    assert Record.read(path) == record


def test_a_record_of_a_newer_konsil_is_read_without_the_fields_it_has_added(written):
    record, path, data = written
    for part in (data, data["rounds"][0], data["rounds"][0]["sites"]["b"], data["sites"]["a"]):
        part["added_later"] = {"by": 1}
    path.write_text(json.dumps(data))
    assert Record.read(path) == record


def test_a_field_that_no_record_has_is_refused_where_a_record_is_made(hospitals):
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        Record.begin(hospitals.study(), verdikt="complete")


def test_another_schema_is_refused_with_its_name(written):
    _, path, data = written
    path.write_text(json.dumps({**data, "schema": "konsil-record/2"}))
    with pytest.raises(ValueError, match=r"has schema 'konsil-record/2'; this konsil reads 'konsil-record/1'"):
        Record.read(path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"name": "pilot"}', "\x00\x01"])
def test_a_file_that_is_no_record_is_refused_and_named_once(tmp_path, capsys, text):
    path = tmp_path / "other.json"
    path.write_text(text)
    assert main(["record", str(path)]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"{path} is no record of a study")
    assert said.count(str(path)) == 1


def test_a_file_that_is_not_even_text_is_refused_in_the_same_words(tmp_path, capsys):
    (tmp_path / "other.json").write_bytes(b"\xff\xfe\x00")
    assert main(["record", str(tmp_path / "other.json")]) == 1
    assert "is no record of a study" in capsys.readouterr().err


def test_a_study_that_runs_or_broke_off_has_no_verdict_yet(written, capsys):
    record, path, _ = written
    running = record.model_copy(update={"study": {**record.study, "rounds": 3}})
    running.judge()
    running.write(path)
    now = Now(
        study=record.name, study_hash=record.study_hash, pid=os.getpid(), phase="round", round=2, rounds=3, began=0, updated=0
    )
    now.write(path.parent)
    assert main(["record", str(path)]) == 5
    said = capsys.readouterr().out
    assert "in round 2 of 3; no verdict yet" in said
    assert "failed" not in said
    now.model_copy(update={"pid": 2**22 + 1}).write(path.parent)  # more than Linux gives out
    assert main(["record", str(path)]) == 5
    assert "interrupted after round 1 of 3" in capsys.readouterr().out


def test_why_scores_were_not_asked_for_is_said(hospitals):
    study = hospitals.study(rounds=1, privacy={"epsilon": 8.0, "evaluation_share": 0.2})
    record = Record.begin(study)
    nobody = dict.fromkeys(study.sites, SiteRound(answer="declined", reason="not approved"))
    record.rounds.append(Round(round=1, sites=nobody, seconds=0.1, arrays_sha256="0" * 64, moved=False))
    record.judge()
    assert "no scores: there is no model to judge, because no answer of any round was used" in record.reasons


def test_a_round_that_changed_nothing_is_said_to_in_the_reasons_the_status_and_the_report(hospitals, tmp_path, capsys):
    study = hospitals.study(rounds=4)
    record = Record.begin(study)
    for number in range(1, 5):
        kind = "used" if number == 1 else "quarantined"
        sites = dict.fromkeys(study.sites, SiteRound(answer=kind, reason="" if number == 1 else "sound, but too few"))
        record.rounds.append(Round(round=number, sites=sites, seconds=1, arrays_sha256="0" * 64, moved=number == 1))
    record.ended = record.started
    record.judge()
    assert record.reasons[0] == "rounds 2 to 4: no answer was used and nothing changed, the model is the one before"
    assert record.verdict == "degraded"
    record.write(tmp_path / "record.json")
    assert main(["record", str(tmp_path / "record.json")]) == 3
    assert "degraded, 4 rounds, 3 of which changed nothing\n" in capsys.readouterr().out
    assert main(["status", tmp_path.name, "--runs", str(tmp_path)]) == 3
    assert "over: degraded, 4 of 4 rounds, 3 of which changed nothing\n" in capsys.readouterr().out
    document = compose(Findings(tmp_path))
    assert document.reasons[0] == record.reasons[0]
    assert "3 rounds of these changed nothing" in str(document.sections[0])
    record.rounds[2].moved = True
    record.judge()
    assert [reason.partition(":")[0] for reason in record.reasons[:2]] == ["round 2", "round 4"]
