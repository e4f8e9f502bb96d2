import json

import pytest
from pydantic import ValidationError

from fl_server.record import Record, Round, SiteRound


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
