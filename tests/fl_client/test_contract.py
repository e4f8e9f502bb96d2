"""What a person says yes to is what happens: the words before a study and the bytes that leave in it."""

from datetime import UTC, datetime, timedelta

import pytest

from conf.study import Privacy, Strategy
from fl_client.__main__ import main
from fl_client.approval import Approvals, Declined, require_approval
from fl_client.audit import AuditLog
from fl_client.contract import contract, leaving, until
from fl_server.app import run
from fl_server.weights import initial_state
from simulation.grid import InProcessGrid


def test_the_arrays_that_were_announced_are_the_arrays_that_leave(hospitals):
    study = hospitals.study()
    (announced,) = leaving(hospitals.site("a"), study)
    grid = InProcessGrid("fl_client.app:app", hospitals.nodes, {"study": study.to_json()})
    left = []
    pull = grid.pull_messages
    grid.pull_messages = lambda ids: [left.append(reply) or reply for reply in pull(ids)]
    run(grid, study, initial_state(study), folder=hospitals.folder / "run")
    trained = [reply for reply in left if reply.has_content() and "arrays" in reply.content]
    assert len(trained) == study.rounds * len(study.sites)
    for reply in trained:
        arrays = {name: array.numpy() for name, array in reply.content["arrays"].items()}
        assert {name: (array.shape, str(array.dtype)) for name, array in arrays.items()} == announced.arrays
        assert sum(array.nbytes for array in arrays.values()) == announced.bytes
        assert sum(array.size for array in arrays.values()) == announced.numbers


def test_the_contract_says_what_runs_on_whom_what_leaves_at_what_price_and_for_how_long(hospitals):
    study = hospitals.study()
    said = dict(contract(hospitals.site("a"), study, days=30))
    assert list(said) == ["Study", "What it runs", "On whom", "What leaves", "Price", "For how long"]
    assert study.hash in said["Study"][0]
    assert "no code comes from outside" in said["What it runs"][0]
    assert "voxels: 16, field_mm: 80" in said["What it runs"][1]
    assert said["What leaves"][0].startswith("each of the 2 rounds, the trained parameters: ")
    assert "a patient's share is cut to length 1" in said["What leaves"][1]
    assert "price epsilon 8 (delta 0.001); the ledger stands at 0 and would stand at " in said["Price"][0]
    assert f"{datetime.now(UTC) + timedelta(days=30):%Y-%m-%d}" in said["For how long"][0]


def test_a_study_that_filters_says_by_whom_and_that_it_asks_nothing_of_the_hospital(hospitals):
    plain, filtered = hospitals.study(), hospitals.study(strategy=Strategy(name="fedwiener", references_sha256="5" * 64))
    said, before = (dict(contract(hospitals.site("a"), study, days=1))["What it runs"] for study in (filtered, plain))
    assert [line for line in said if line not in before][1:] == [
        "the coordinator takes noise out of the mean of all by patients who don't exist (555555555555): nothing is asked of you"
    ]


def test_a_study_without_noise_says_so_where_it_matters(hospitals):
    said = dict(contract(hospitals.site("a"), hospitals.study(privacy=Privacy(kind="none")), days=1))
    assert "NO NOISE: what leaves may tell of single patients" in said["What leaves"]


def test_a_study_that_cannot_be_run_here_says_so_and_would_let_nothing_out(hospitals):
    study = hospitals.study(task={"name": "segmentation", "voxels": 33})
    assert dict(contract(hospitals.site("a"), study, days=1))["What leaves"][0].startswith("nothing: it can't be run here: ")


def test_a_yes_ends_with_its_last_day(hospitals):
    site, study = hospitals.site("a"), hospitals.study()
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    for last, good in ((today, True), (until(-1), False)):
        Approvals(site.folder).decide(study, "approved", who="Dr. Alpha", epsilon=8.0, until=last)
        if good:
            require_approval(site, study, paid=0, wanted=1)
        else:
            with pytest.raises(Declined, match=f"was good until {last}"):
                require_approval(site, study, paid=0, wanted=1)


def test_who_said_what_stands_in_the_audit_log(hospitals, capsys):
    study, path = hospitals.study(), str(hospitals.sites["a"])
    Approvals(hospitals.site("a").folder).put_down(study)
    assert main(["--site", path, "approve", study.hash[:8], "--who", "Dr. Alpha", "--days", "7"]) == 0
    assert main(["--site", path, "decline", study.hash[:8], "--who", "Dr. Beta"]) == 0
    found = AuditLog(hospitals.site("a").folder / "audit.jsonl").lines
    assert [(line["happening"], line["who"], line["until"]) for line in found] == [
        ("approved", "Dr. Alpha", until(7)),
        ("declined", "Dr. Beta", None),
    ]
    assert {line["study"] for line in found} == {study.hash}
    assert f"by Dr. Alpha, good until {until(7)}" in capsys.readouterr().out


def test_an_approval_lasts_between_a_day_and_ten_years(hospitals, capsys):
    for days in ("0", "4000", "x"):
        with pytest.raises(SystemExit):
            main(["--site", str(hospitals.sites["a"]), "approve", "abc", "--days", days])
        assert f"a yes is good for 1 to 3650 days, not '{days}'" in capsys.readouterr().err
