"""What may be given away holds nobody's name, whatever was written where."""

import json
import zipfile
from pathlib import Path

import pytest

from fl_client.__main__ import main
from fl_client.audit import AuditLog
from fl_client.cohort import Cohort
from fl_client.failures import failures, write_failure
from fl_client.metrics import metrics

NAME = "Mueller^Erika"


@pytest.fixture
def site(hospitals):
    """A hospital in whose logs somebody's name stands: in an exception, in a reason for a pause, in a folder's name."""
    site = hospitals.site("a")
    try:
        try:
            Path(f"/data/{NAME}/IM0001.dcm").read_bytes()
        except OSError as error:
            text = f'{NAME}: cut short\nMuellerError: no kind\n  File "/data/{NAME}.py", line 3, in {NAME}'
            raise ValueError(text) from error
    except ValueError as error:
        write_failure(site.folder / "log", error, run=7, number="0a1b2c3d")
    AuditLog(site.folder / "audit.jsonl").append("paused", who=f"Dr. {NAME}", why=f"{NAME} asked for it")
    return site


def read(path):
    with zipfile.ZipFile(path) as bundle:
        return {name: bundle.read(name).decode() for name in bundle.namelist()}


def test_no_name_is_in_the_bundle(hospitals, site, tmp_path, capsys):
    assert NAME in (site.folder / "log" / "failures.log").read_text()
    assert main(["--site", str(hospitals.sites["a"]), "support-bundle", str(tmp_path / "help.zip")]) == 0
    found = read(tmp_path / "help.zip")
    assert found.keys() == {"about.json", "audit.jsonl", "failures.jsonl"}
    for name, text in found.items():
        assert "Mueller" not in text, name
        assert "Erika" not in text, name
        assert str(site.folder) not in text, name
    assert "p0-0" not in "".join(found.values())


def test_a_failure_is_told_by_its_number_its_kind_and_its_place_in_the_code(site):
    (failure,) = failures(site.folder / "log")
    assert (failure["number"], failure["run"], failure["kinds"]) == ("0a1b2c3d", 7, ["ValueError", "FileNotFoundError"])
    assert [place.partition(" ")[2] for place in failure["where"]][:2] == ["site", "site"]


def test_an_audit_line_loses_who_and_why_and_keeps_what_happened(hospitals, site, tmp_path):
    main(["--site", str(hospitals.sites["a"]), "support-bundle", str(tmp_path / "help.zip")])
    (line,) = map(json.loads, read(tmp_path / "help.zip")["audit.jsonl"].splitlines())
    assert line.keys() == {"time", "happening"}
    assert line["happening"] == "paused"


def test_the_number_of_patients_stays_at_home(hospitals, site, tmp_path):
    main(["--site", str(hospitals.sites["a"]), "support-bundle", str(tmp_path / "one.zip")])
    before = json.loads(read(tmp_path / "one.zip")["about.json"])
    main(["--site", str(hospitals.sites["a"]), "withdraw", "P0123456789ABCDEF"])
    Cohort(hospitals.site("a").cohort_folder).withdraw("p0-0")
    main(["--site", str(hospitals.sites["a"]), "support-bundle", str(tmp_path / "two.zip")])
    after = json.loads(read(tmp_path / "two.zip")["about.json"])
    assert {**before, "when": ""} == {**after, "when": ""}


def test_the_audit_log_of_the_bundle_counts_nobody(hospitals, site, tmp_path):
    log = AuditLog(site.folder / "audit.jsonl")
    for happening in ("withdrawn", "returned", "quarantine", "withdrawn", "resumed"):
        log.append(happening, who="x")
    place = tmp_path / "help.zip"
    assert main(["--site", str(hospitals.sites["a"]), "support-bundle", str(place)]) == 0
    lines = [json.loads(line) for line in read(place)["audit.jsonl"].splitlines()]
    assert [line["happening"] for line in lines] == ["paused", "resumed"]
    assert not any("line" in line for line in lines)  # a gap in the numbers would tell
    assert place.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.glob("help*")) == [place]


def test_a_bundle_is_not_written_over_another(hospitals, site, tmp_path, capsys):
    (tmp_path / "help.zip").write_text("mine")
    assert main(["--site", str(hospitals.sites["a"]), "support-bundle", str(tmp_path / "help.zip")]) == 1
    assert (tmp_path / "help.zip").read_text() == "mine"


def test_metrics_are_numbers_of_the_house_and_name_nobody(site):
    text = metrics(site).decode()
    values = {line.split()[0]: float(line.split()[1]) for line in text.splitlines() if not line.startswith("#")}
    assert values["konsil_patients"] == 4
    assert values["konsil_budget_epsilon"] == 10
    assert values["konsil_halted"] == 0
    assert values['konsil_running{role="trainer"}'] == 0
    assert values["konsil_messages_left_total"] == 0
    assert "Mueller" not in text
