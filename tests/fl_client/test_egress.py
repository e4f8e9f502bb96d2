"""Every message that leaves has its line, written before it goes; the switch stops what is still being worked on."""

import hashlib
import json

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fl_client import app as hospital
from fl_client import release
from fl_client.audit import AuditLog
from fl_client.egress import egress
from fl_client.halt import halt, halted, resume
from fl_client.packed import BLOCK
from fl_server.app import run
from fl_server.weights import initial_state
from simulation.grid import InProcessGrid
from tasks.packing import pack


def lines(site):
    return [line for line in AuditLog(site.folder / "audit.jsonl").lines if line["happening"] == "egress"]


@pytest.fixture
def asked(hospitals):
    """Ask hospital a for round 1, as the coordinator would."""
    study = hospitals.study()
    grid = InProcessGrid("fl_client.app:app", hospitals.nodes[:1], {"study": study.to_json()})

    def ask(kind="train"):
        content = {"config": ConfigRecord({"server-round": 1, "study-hash": study.hash})}
        if kind == "train":
            content["arrays"] = ArrayRecord(initial_state(study))
        (node,) = grid.get_node_ids()
        (reply,) = grid.send_and_receive([Message(RecordDict(content), node, kind)])
        return reply

    ask.study = study
    return ask


def test_every_message_of_a_study_has_one_line_that_says_what_left(hospitals):
    study = hospitals.study()
    grid = InProcessGrid("fl_client.app:app", hospitals.nodes, {"study": study.to_json()})
    run(grid, study, initial_state(study), folder=hospitals.folder / "run")
    found = lines(hospitals.site("a"))
    assert [(line["asked"], line["kind"], line["round"]) for line in found] == [
        ("query", "words", None),
        *(("train", "arrays", number + 1) for number in range(study.rounds)),
    ]
    assert {line["study"] for line in found} == {study.hash}


def test_the_digest_is_that_of_the_bytes_that_left(hospitals, asked):
    reply = asked()
    (line,) = lines(hospitals.site("a"))
    digest = hashlib.sha256()
    for name, array in reply.content["arrays"].items():
        digest.update(name.encode() + array.data)
    assert line["tensors"] == len(reply.content["arrays"])
    assert line["bytes"] > sum(len(array.data) for array in reply.content["arrays"].values())
    digest.update(json.dumps({"metrics": dict(reply.content["metrics"])}, sort_keys=True).encode())
    assert line["sha256"] == digest.hexdigest()


def test_a_block_has_the_line_of_the_arrays_in_it(asked):
    reply = asked()
    plain = egress(reply, reply, run=1)
    arrays = {name: array.numpy() for name, array in reply.content["arrays"].items()}
    block = pack(arrays)
    reply.content["arrays"] = ArrayRecord({BLOCK: Array("uint8", (len(block),), BLOCK, block)})
    assert egress(reply, reply, run=1) == plain
    assert plain["tensors"] == len(arrays)


def test_the_line_stands_after_the_ledgers_and_before_the_answer_leaves(hospitals, asked, monkeypatch):
    seen = []
    real = AuditLog.append

    def append(self, happening, **facts):
        seen.append(len(hospital.ledger_of(hospitals.site("a")).events))
        real(self, happening, **facts)

    monkeypatch.setattr(AuditLog, "append", append)
    asked()
    assert seen == [1]


def test_without_a_line_nothing_leaves(hospitals, asked):
    asked()
    path = hospitals.site("a").folder / "audit.jsonl"
    path.write_text("")
    reply = asked()
    assert reply.error.code == release.FAILED
    assert "(reason: books, number " in reply.error.reason


def test_refusals_and_failures_have_their_line_too(hospitals, asked, monkeypatch):
    halt(hospitals.site("a").folder, "paused", who="Dr. Alpha")
    assert asked().error.reason == "this site has paused"
    assert resume(hospitals.site("a").folder)
    monkeypatch.setattr(hospital, "dp_sgd", lambda *args, **settings: 1 / 0)
    assert asked().error.code == release.FAILED
    assert [(line["kind"], line["code"]) for line in lines(hospitals.site("a"))] == [
        ("words", release.DECLINED),
        ("words", release.FAILED),
    ]


def test_what_was_still_being_worked_on_when_the_house_was_stopped_stays_inside_and_stays_paid(hospitals, asked, monkeypatch):
    site, train = hospitals.site("a"), hospital.dp_sgd

    def stopped_meanwhile(*args, **settings):
        halt(site.folder, "stopped", who="Dr. Alpha")
        return train(*args, **settings)

    monkeypatch.setattr(hospital, "dp_sgd", stopped_meanwhile)
    assert asked().error.reason == "this site has stopped its work"
    assert len(hospital.ledger_of(site).events) == 1
    assert [line["tensors"] for line in lines(site)] == [0]


def test_a_damaged_switch_counts_as_stopped(tmp_path):
    assert halted(tmp_path) == ""
    (tmp_path / "halt.json").write_text("{")
    assert halted(tmp_path) == "stopped"


def test_what_the_coordinator_writes_into_its_question_is_not_copied_into_the_log(hospitals):
    grid = InProcessGrid("fl_client.app:app", hospitals.nodes[:1], {"study": hospitals.study().to_json()})
    (node,) = grid.get_node_ids()
    content = {"config": ConfigRecord({"server-round": 10**9, "study-hash": "patient 1234"})}
    grid.send_and_receive([Message(RecordDict(content), node, "train")])
    (line,) = lines(hospitals.site("a"))
    assert (line["study"], line["round"]) == (None, None)


@pytest.mark.parametrize(
    ("error", "reason"), [(MemoryError(), "memory"), (OSError(28, "No space left"), "disk"), (KeyError("x"), "work")]
)
def test_the_reason_tells_of_the_machine_never_of_the_work(error, reason):
    assert release.reason_of(error) == reason


def test_a_node_that_is_no_konsil_site_has_no_log_and_still_answers():
    InProcessGrid(ClientApp(), [{}])  # without which no message can be made in this process
    question = Message(RecordDict(), 2, "train")
    context = Context(run_id=1, node_id=2, node_config={}, state=RecordDict(), run_config={})
    answer = release.guarded(lambda q, c: Message(RecordDict(), reply_to=q))(question, context)
    assert answer.has_content()
