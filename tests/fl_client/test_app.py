import errno
import json
import re
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from fl_client import app as hospital
from fl_client import release
from fl_client.approval import Approvals
from fl_client.price import planned
from fl_client.privacy import Event, epsilon
from fl_client.release import DECLINED, FAILED, FAILED_WORDS
from fl_client.sent import Asked
from fl_client.site import Budget
from fl_server.rounds import run
from fl_server.weights import initial_state
from simulation.grid import InProcessGrid
from tasks.task import load


def ask(hospitals, study, *, kind="train", number=1, arrays=None, told=None, only=None):
    """One message to every hospital, or to one of them; their replies in order."""
    nodes = [{"site": str(path)} for name, path in hospitals.sites.items() if only in (None, name)]
    grid = InProcessGrid("fl_client.app:app", nodes, {"study": study.to_json()})
    config = ConfigRecord({"study-hash": told or study.hash, "server-round": number})
    content = RecordDict({"arrays": arrays or ArrayRecord(dict(initial_state(study))), "config": config})
    return grid.send_and_receive([Message(content, node, kind) for node in grid.get_node_ids()])


def declined(reply) -> str:
    assert reply.has_error()
    assert reply.error.code == DECLINED
    return reply.error.reason


def test_nothing_leaves_but_trained_parameters_the_declared_size_and_epsilon(hospitals):
    study = hospitals.study(task={**hospitals.study().task, "trainable": "head"})
    (reply, *_) = ask(hospitals, study)
    assert set(reply.content) == {"arrays", "metrics"}
    assert set(reply.content["metrics"]) == {"num-examples", "epsilon", "steps"}
    assert reply.content["metrics"]["num-examples"] == 5  # there are 4 patients: the exact count stays
    assert all(array.numpy().dtype == np.float32 for array in reply.content["arrays"].values())
    assert all(name.startswith(("head.", "activation.")) for name in reply.content["arrays"])
    assert not reply.content.config_records


def test_the_price_is_in_the_ledger_with_the_round_and_the_study(hospitals):
    study = hospitals.study()
    ask(hospitals, study, number=2)
    (event,) = hospital.ledger_of(hospitals.site("a")).events
    assert (event.study, event.round, event.kind, event.noise) == (study.hash, 2, "gradient", "seeded")


def test_the_ledger_is_written_before_training_begins(hospitals, monkeypatch):
    def crash(*args, **settings):
        raise RuntimeError("power failure")

    monkeypatch.setattr(hospital, "dp_sgd", crash)
    (reply, *_) = ask(hospitals, hospitals.study())
    assert reply.error.code == FAILED
    assert len(hospital.ledger_of(hospitals.site("a")).events) == 1


def other_weights(study):
    """Weights that a restarted coordinator may send for a round: not those that it sent before."""
    return ArrayRecord({name: Array(tensor.numpy() * 0.5) for name, tensor in initial_state(study).items()})


def test_a_round_that_is_asked_for_with_other_weights_is_paid_twice_and_has_other_noise(hospitals):
    study = hospitals.study(rounds=4)
    first = ask(hospitals, study)[0].content
    again = ask(hospitals, study, arrays=other_weights(study))[0].content
    assert len(hospital.ledger_of(hospitals.site("a")).events) == 2
    assert again["metrics"]["epsilon"] > first["metrics"]["epsilon"]
    assert not np.array_equal(first["arrays"]["head.bias"].numpy(), again["arrays"]["head.bias"].numpy())


def test_no_text_of_an_exception_reaches_the_coordinator(hospitals, monkeypatch):
    def crash(*args, **settings):
        raise RuntimeError("patient 1234 in /data/secret.dcm")

    monkeypatch.setattr(hospital, "dp_sgd", crash)
    study = hospitals.study()
    grid = InProcessGrid("fl_client.app:app", hospitals.nodes, {"study": study.to_json()})
    _, record = run(grid, study, initial_state(study), folder=hospitals.folder / "run")
    assert record.verdict == "failed"
    assert {site.answer for entry in record.rounds for site in entry.sites.values()} == {"failed"}
    told = re.fullmatch(FAILED_WORDS + r" \(reason: work, number [0-9a-f]{8}\)", record.rounds[0].sites["a"].reason)
    assert told
    assert "1234" not in (hospitals.folder / "run" / "record.json").read_text()
    log = hospitals.folder / "a" / "log" / "failures.log"
    assert "patient 1234 in /data/secret.dcm" in log.read_text()
    assert told.group(0)[-9:-1] in log.read_text()  # the number by which both sides know it
    assert log.stat().st_mode & 0o777 == 0o600


def test_a_full_disk_is_told_in_one_line_that_names_the_hospital_and_quotes_nothing(hospitals, monkeypatch, caplog):
    def full(*args, **settings):
        raise OSError(errno.ENOSPC, "No space left on device", "/data/patient 1234")

    monkeypatch.setattr(hospital, "dp_sgd", full)
    monkeypatch.setattr(release, "write_failure", full)
    study = hospitals.study(sites=("a",))
    grid = InProcessGrid("fl_client.app:app", hospitals.nodes[:1], {"study": study.to_json()})
    _, record = run(grid, study, initial_state(study), folder=hospitals.folder / "run")
    assert re.fullmatch(FAILED_WORDS + r" \(reason: disk, number [0-9a-f]{8}\)", record.rounds[0].sites["a"].reason)
    lines = [line for line in caplog.records if line.name == "konsil" and line.levelname == "ERROR"]
    assert lines
    for line in lines:
        assert re.fullmatch(
            r"a: the disk is full, and failure [0-9a-f]{8} \(OSError at \S+:\d+ full\) stands in no log", line.getMessage()
        )
        assert line.exc_info is None
    assert "1234" not in caplog.text


def test_a_failure_that_no_log_takes_is_told_by_kind_and_place(hospitals, monkeypatch, caplog):
    def crash(*args, **settings):
        raise RuntimeError("patient 1234") from KeyError("patient 5678")

    def closed(*args, **settings):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(hospital, "dp_sgd", crash)
    monkeypatch.setattr(release, "write_failure", closed)
    study = hospitals.study(sites=("a",), rounds=1)
    grid = InProcessGrid("fl_client.app:app", hospitals.nodes[:1], {"study": study.to_json()})
    run(grid, study, initial_state(study), folder=hospitals.folder / "run")
    (line,) = [line.getMessage() for line in caplog.records if line.name == "konsil" and line.levelname == "ERROR"]
    assert re.fullmatch(
        r"a: failure [0-9a-f]{8} \(RuntimeError from KeyError at \S+:\d+ crash\) could not be written to the log: "
        "PermissionError",
        line,
    )


def test_a_node_without_settings_says_only_that_it_failed():
    grid = InProcessGrid("fl_client.app:app", [{"site": "/nowhere/patient 1234/site.yaml"}, {}])
    for kind in ("train", "query.enroll"):
        for reply in grid.send_and_receive([Message(RecordDict(), node, kind) for node in grid.get_node_ids()]):
            assert reply.error.code == FAILED
            assert re.fullmatch(FAILED_WORDS + r" \(reason: work, number [0-9a-f]{8}\)", reply.error.reason)


def test_a_study_with_another_hash_or_another_konsil_is_refused_in_words(hospitals):
    study, other = hospitals.study(), hospitals.study(seed=1)
    assert f"the coordinator means '{other.hash}'" in declined(ask(hospitals, study, told=other.hash)[0])
    old = hospitals.study(konsil_version="0.0.1")
    assert declined(ask(hospitals, old)[0]).startswith("study rehearsal was made for konsil 0.0.1; this site runs ")
    assert all(hospital.ledger_of(hospitals.site(name)).events == () for name in "abc")


def test_a_study_that_is_no_study_is_refused_in_words(hospitals):
    grid = InProcessGrid("fl_client.app:app", hospitals.nodes, {"study": '{"rounds": "many"}'})
    (reply, *_) = grid.send_and_receive([Message(RecordDict(), node, "train") for node in grid.get_node_ids()])
    assert "this run's study can't be read" in declined(reply)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda state: state | {"backdoor": torch.ones(1)}, "differ in names: ['backdoor']"),
        (lambda state: state | {"head.bias": torch.ones(9)}, "'head.bias' received is torch.float32 [9]"),
        (lambda state: state | {"head.bias": state["head.bias"].double()}, "received is torch.float64"),
        (lambda state: state | {"head.bias": state["head.bias"] / 0}, "'head.bias' received is not finite"),
    ],
)
def test_weights_that_do_not_fit_are_refused_before_anything_is_spent(hospitals, spoil, reason):
    study = hospitals.study()
    arrays = ArrayRecord({n: Array(t.numpy()) for n, t in spoil(initial_state(study)).items()})
    assert reason in declined(ask(hospitals, study, arrays=arrays)[0])
    assert hospital.ledger_of(hospitals.site("a")).events == ()


def test_a_round_the_study_does_not_have_is_refused(hospitals):
    assert "has rounds 1 to 2, not 3" in declined(ask(hospitals, hospitals.study(), number=3)[0])


def test_a_task_this_hospital_has_not_installed_is_refused(hospitals):
    study = hospitals.study()
    missing = study.model_copy(update={"task": {"name": "os"}})
    reply = ask(hospitals, missing, arrays=ArrayRecord(dict(initial_state(study))))[0]
    assert "no task named 'os'" in declined(reply)


def test_a_study_without_privacy_needs_the_hospitals_own_consent(hospitals):
    study = hospitals.study(privacy={"kind": "none"})
    assert "lets nothing leave without noise" in declined(ask(hospitals, study)[0])
    hospitals.save(hospitals.site("a").model_copy(update={"accept_no_privacy": True}))
    assert ask(hospitals, study)[0].content["metrics"]["epsilon"] == float("inf")


def test_a_person_decides_and_the_last_word_counts(hospitals):
    hospitals.save(hospitals.site("a").model_copy(update={"approve_all": False}))
    study = hospitals.study()
    assert "nobody at a has approved study rehearsal" in declined(ask(hospitals, study)[0])
    approvals = Approvals(hospitals.site("a").folder)
    assert approvals.find(study.hash[:8]) == study  # it was put down to be read
    approvals.decide(study, "approved", who="Dr. Alpha", epsilon=8.0)
    assert ask(hospitals, study)[0].has_content()
    assert declined(ask(hospitals, hospitals.study(rounds=3))[0])  # another hash is another study
    approvals.decide(study, "declined", who="Dr. Beta", epsilon=None)
    assert "a declined study rehearsal" in declined(ask(hospitals, study)[0])


def test_one_yes_is_good_for_the_studys_rounds_once_however_often_they_are_asked_for(hospitals):
    hospitals.save(hospitals.site("a").model_copy(update={"approve_all": False}))
    study, approvals = hospitals.study(), Approvals(hospitals.site("a").folder)
    approvals.decide(study, "approved", who="Dr. Alpha", epsilon=8.0)
    assert ask(hospitals, study, number=1)[0].has_content()
    assert ask(hospitals, study, number=1, arrays=other_weights(study))[0].has_content()  # one of the two rounds, too
    assert re.search("of the 2 rounds of study rehearsal .* 0 are left; 1 need", declined(ask(hospitals, study, number=2)[0]))
    assert len(hospital.ledger_of(hospitals.site("a")).events) == 2
    hospitals.save(hospitals.site("a").model_copy(update={"budget": Budget(epsilon=20.0)}))
    for _ in range(2):  # saying yes twice is no more than saying it once
        approvals.decide(study, "approved", who="Dr. Alpha", epsilon=8.0, paid=2)
    assert ask(hospitals, study, number=1)[0].has_content()
    assert ask(hospitals, study, kind="query.enroll")[0].content["enrolment"]["takes-part"]  # killed in round 1: it goes on
    assert ask(hospitals, study, number=2)[0].has_content()
    assert "0 are left; 1 need" in declined(ask(hospitals, study, number=2, arrays=other_weights(study))[0])
    assert "0 are left; 2 need" in ask(hospitals, study, kind="query.enroll")[0].content["enrolment"]["reason"]


def test_two_nodes_of_one_hospital_cannot_both_spend_the_last_round_that_was_approved(hospitals, monkeypatch):
    hospitals.save(hospitals.site("a").model_copy(update={"approve_all": False, "budget": Budget(epsilon=20.0)}))
    study = hospitals.study()
    Approvals(hospitals.site("a").folder).decide(study, "approved", who="Dr. Alpha", epsilon=8.0)
    ask(hospitals, study, number=1, only="a")  # one of two; the budget has room for more than the second
    both, real = threading.Barrier(2, timeout=120), hospital.received

    def waits_for_the_other(content, own):
        both.wait()  # both have been told that one round is left, and neither has spent it
        return real(content, own)

    monkeypatch.setattr(hospital, "received", waits_for_the_other)
    with ThreadPoolExecutor(2) as nodes:
        asked = [nodes.submit(ask, hospitals, study, number=2, only="a") for _ in range(2)]
        replies = sorted((future.result()[0] for future in asked), key=lambda reply: reply.has_error())
    assert replies[0].has_content()
    assert "0 are left; 1 need" in declined(replies[1])
    assert [event.round for event in hospital.ledger_of(hospitals.site("a")).events] == [1, 2]


def test_a_hospital_with_a_smaller_delta_prices_the_study_at_its_own_and_refuses(hospitals):
    hospitals.save(hospitals.site("b").model_copy(update={"budget": Budget(epsilon=10.0, delta=1e-5)}))
    study = hospitals.study()  # epsilon 8 at delta 1e-3 costs more at 1e-5
    reason = ask(hospitals, study, kind="query.enroll")[1].content["enrolment"]["reason"]
    cost = planned(hospitals.site("b"), study, load(study.task))
    assert epsilon(cost, delta=1e-3) <= 8 < 10 < epsilon(cost, delta=1e-5)
    assert reason.endswith("over this hospital's 10 (delta 1e-05)")


def test_enrolment_names_the_price_of_the_whole_study_or_the_reason_against(hospitals):
    hospitals.save(hospitals.site("b").model_copy(update={"budget": Budget(epsilon=3.0)}))
    a, b, _ = (reply.content["enrolment"] for reply in ask(hospitals, hospitals.study(), kind="query.enroll"))
    assert (a["site"], a["declared-size"], a["takes-part"], a["reason"]) == ("a", 5, True, "")
    assert 7.9 < a["epsilon"] <= 8
    assert b["takes-part"] is False
    assert "over this hospital's 3" in b["reason"]


def test_an_enrolment_is_the_same_whoever_the_patients_are(hospitals):
    study = hospitals.study()
    (before, *_) = ask(hospitals, study, kind="query.enroll")
    cases = hospitals.site("a").cohort_folder / "cases"
    for patient in list(cases.iterdir()):
        shutil.rmtree(patient)
    (after, *_) = ask(hospitals, study, kind="query.enroll")
    assert dict(before.content["enrolment"]) == dict(after.content["enrolment"])


def test_a_budget_that_runs_out_midway_declines_from_then_on_and_degrades_the_verdict(hospitals):
    study = hospitals.study(rounds=4)

    def another_study_comes_between(entry, state):
        if entry.round == 2:
            hospital.ledger_of(hospitals.site("b")).spend(Event(noise_multiplier=0.55, study_name="between"))

    grid = InProcessGrid("fl_client.app:app", hospitals.nodes, {"study": study.to_json()})
    folder = hospitals.folder / "run"
    _, record = run(grid, study, initial_state(study), folder=folder, observer=another_study_comes_between)
    assert [entry.sites["b"].answer for entry in record.rounds] == ["used", "used", "declined", "declined"]
    assert [entry.sites["a"].answer for entry in record.rounds] == ["used"] * 4
    assert "study rehearsal round 3 would bring epsilon to" in record.rounds[2].sites["b"].reason
    assert record.verdict == "degraded"


def test_fedprox_reaches_the_training_from_the_approved_study_only(hospitals, monkeypatch):
    seen = []
    real = hospital.dp_sgd
    monkeypatch.setattr(hospital, "dp_sgd", lambda *a, **k: seen.append(k["proximal_mu"]) or real(*a, **k))
    ask(hospitals, hospitals.study(strategy={"name": "fedprox", "proximal_mu": 0.25}))
    ask(hospitals, hospitals.study(strategy={"name": "fedavg", "proximal_mu": 0.25}))
    assert seen == [0.25] * 3 + [0.0] * 3


def test_rehearsal_noise_differs_between_hospitals_studies_rounds_kinds_and_weights(hospitals):
    study, other = hospitals.study(), hospitals.study(seed=1)
    a, b = (hospitals.site(name).model_copy(update={"noise_seed": 1}) for name in "ab")
    draws = set()
    weights = {"arrays": other_weights(study)}
    for site, which, number, kind, records in [
        (a, study, 1, "train", {}),
        (b, study, 1, "train", {}),
        (a, other, 1, "train", {}),
        (a, study, 2, "train", {}),
        (a, study, 1, "evaluate", {}),
        (a, study, 1, "train", weights),
    ]:
        noise, sampling = hospital.randomness(site, Asked.of(site, which, kind=kind, number=number, records=records))
        draws.add((float(noise.gaussian(torch.zeros(1), 1.0)), sampling.random()))
    assert len(draws) == 6
    assert len({number for pair in draws for number in pair}) == 12


def test_real_hospitals_draw_noise_and_patients_from_the_operating_system(hospitals):
    site = hospitals.site("a").model_copy(update={"noise_seed": None})
    asked = Asked.of(site, hospitals.study(), kind="train", number=1, records={})
    (noise, first), (_, second) = (hospital.randomness(site, asked) for _ in range(2))
    assert noise.source == "os"
    assert first.random() != second.random()


def test_a_patient_the_task_cannot_use_is_left_out_and_named_in_the_hospitals_log(hospitals):
    site = hospitals.site("a")
    folder = site.cohort_folder / "cases" / "p0-1"
    text = json.loads((folder / "case.json").read_text())
    for volume in text["volumes"]:
        volume["mask"] = False
    (folder / "case.json").write_text(json.dumps(text))
    assert ask(hospitals, hospitals.study())[0].has_content()
    log = site.folder / "log" / "training.jsonl"
    assert log.stat().st_mode & 0o777 == 0o600
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["patient"] for line in lines if "left_out" in line] == ["p0-1"]
    assert lines[-1]["patients"] == 3
