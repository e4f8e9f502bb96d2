"""A hospital with exactly one patient and the same hospital without that patient send the same messages, but for noise."""

import json

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from fl_client import app as hospital
from fl_client import cohort
from fl_server.weights import initial_state
from simulation.grid import InProcessGrid


def nobody(new_hospitals):
    small = new_hospitals("nobody")
    small.add("a", patients=0)
    return small


def one_whom_the_task_cannot_use(new_hospitals):
    small = new_hospitals("unusable")
    folder = small.add("a", patients=1).cohort_folder / "cases" / "p0-0"
    text = json.loads((folder / "case.json").read_text())
    for volume in text["volumes"]:
        volume["mask"] = False
    (folder / "case.json").write_text(json.dumps(text))
    return small


def said(small, study):
    """Everything that hospital `a` says in a run: its enrolment and its answers to both rounds."""
    grid = InProcessGrid("fl_client.app:app", small.nodes, {"study": study.to_json()})
    arrays = ArrayRecord(dict(initial_state(study)))
    replies = []
    for kind, number in (("query.enroll", 0), ("train", 1), ("train", 2)):
        config = ConfigRecord({"study-hash": study.hash, "server-round": number})
        content = RecordDict({"arrays": arrays, "config": config})
        replies += grid.send_and_receive([Message(content, node, kind) for node in grid.get_node_ids()])
    return replies


@pytest.mark.parametrize("without", [nobody, one_whom_the_task_cannot_use])
def test_one_patient_and_none_leave_the_same_messages_but_for_noise(new_hospitals, without):
    small, neighbour = new_hospitals("one"), without(new_hospitals)
    small.add("a", patients=1)
    study = small.study()
    with_one, with_none = said(small, study), said(neighbour, study)
    assert dict(with_one[0].content["enrolment"]) == dict(with_none[0].content["enrolment"])
    for one, none in zip(with_one[1:], with_none[1:], strict=True):
        assert (one.has_content(), none.has_content()) == (True, True)
        assert set(one.content) == set(none.content)
        assert dict(one.content["metrics"]) == dict(none.content["metrics"])
        arrays = [{name: array.numpy() for name, array in reply.content["arrays"].items()} for reply in (one, none)]
        assert [[(n, a.shape, a.dtype) for n, a in each.items()] for each in arrays] == [
            [(n, a.shape, a.dtype) for n, a in arrays[0].items()]
        ] * 2
        # both rehearse with the same noise, so that the difference is what the patient did: one bound at most, and not nothing
        moved = np.concatenate([(arrays[0][name] - arrays[1][name]).ravel() for name in arrays[0]]).astype(float)
        bound = study.training.learning_rate * study.privacy.max_grad_norm / 5  # the declared size
        assert 0 < np.linalg.norm(moved) <= bound * 1.0001
        sent = initial_state(study)
        noise = np.concatenate([(arrays[1][name] - sent[name].numpy()).ravel() for name in arrays[1]]).astype(float)
        (sigma,) = {event.noise_multiplier for event in hospital.ledger_of(neighbour.site("a")).events}
        assert np.std(noise) == pytest.approx(bound * sigma, rel=0.1)
    assert hospital.ledger_of(small.site("a")).events == hospital.ledger_of(neighbour.site("a")).events


def test_a_hospital_that_sends_noise_alone_is_told_so_in_its_own_log(new_hospitals):
    small = nobody(new_hospitals)
    said(small, small.study())
    log = [json.loads(line) for line in (small.site("a").folder / "log" / "training.jsonl").read_text().splitlines()]
    assert ["noise alone" in line.get("warning", "") for line in log] == [True, False] * 2
    assert [line["patients"] for line in log if "patients" in line] == [0, 0]


def emptied(folder):
    (folder / "cine_ed.image.npy").write_bytes(b"")


def cut(folder):
    data = (folder / "cine_ed.image.npy").read_bytes()
    (folder / "cine_ed.image.npy").write_bytes(data[: len(data) // 2])


def missing(folder):
    (folder / "cine_ed.mask.npy").unlink()


def without_case(folder):
    (folder / "case.json").unlink()


def another_case(folder):
    (folder / "case.json").write_text("[]")


def not_json(folder):
    (folder / "case.json").write_text('{"patient": "p0')


def not_a_folder(folder):
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    folder.write_text("notes on this patient")


@pytest.mark.parametrize("spoil", [emptied, cut, missing, without_case, another_case, not_json, not_a_folder])
def test_a_patient_who_cannot_be_read_is_left_out_and_named_to_the_hospital_only(new_hospitals, spoil):
    small = new_hospitals("spoiled")
    site = small.add("a", patients=3)
    spoil(site.cohort_folder / "cases" / "p0-1")
    enrolment, *rounds = said(small, small.study())
    assert enrolment.content["enrolment"]["takes-part"] is True
    assert [reply.has_content() for reply in rounds] == [True, True]
    log = [json.loads(line) for line in (site.folder / "log" / "training.jsonl").read_text().splitlines()]
    assert [line["patient"] for line in log if line.get("left_out")] == ["p0-1", "p0-1"]
    assert [line["patients"] for line in log if "patients" in line] == [2, 2]


def test_prepared_arrays_that_cannot_be_read_leave_that_patient_out(new_hospitals):
    small = new_hospitals("spoiled")
    site = small.add("a", patients=3)
    study = small.study(rounds=4)
    said(small, study)
    (prepared,) = (site.cohort_folder / "prepared").glob("*/p0-1*")
    for file in prepared.iterdir():
        file.write_bytes(b"")
    cohort._small.cache_clear()  # as in a process that has not read them yet
    assert [reply.has_content() for reply in said(small, study)[1:]] == [True, True]
    log = [json.loads(line) for line in (site.folder / "log" / "training.jsonl").read_text().splitlines()]
    assert [line["patients"] for line in log if "patients" in line] == [3, 3, 2, 2]
