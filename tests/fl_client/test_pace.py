"""A round that has a time: as many steps as the machine's pace on drawn data allows, and a ledger charged with those."""

import json
import time

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from fl_client import app as hospital
from fl_client import pace
from fl_client.privacy import epsilon
from fl_server.weights import initial_state
from simulation.grid import InProcessGrid
from tasks.task import load, load_for

TEN_STEPS = {"views": 2, "steps": 10, "work_s": 6.0}


@pytest.fixture
def two(new_hospitals):
    """Two hospitals that declare the same size and have very different numbers of patients; noise differs by name."""
    houses = new_hospitals("two")
    houses.add("few", patients=1)
    houses.add("many", patients=9)
    return houses


def measures(monkeypatch, seconds):
    calls = []
    monkeypatch.setattr(pace, "measured", lambda site, study, task: calls.append(site.name) or seconds)
    return calls


def round_of(houses, study, number=1):
    grid = InProcessGrid("fl_client.app:app", houses.nodes, {"study": study.to_json()})
    config = ConfigRecord({"study-hash": study.hash, "server-round": number})
    content = RecordDict({"arrays": ArrayRecord(dict(initial_state(study))), "config": config})
    replies = grid.send_and_receive([Message(content, node, "train") for node in grid.get_node_ids()])
    return [reply.content["metrics"]["steps"] for reply in replies]


def charged(houses, name):
    return [event.steps for event in hospital.ledger_of(houses.site(name)).events]


def test_hospitals_of_equal_pace_and_declared_size_take_the_same_steps_however_many_patients_they_have(two, monkeypatch):
    measures(monkeypatch, 2.5)
    assert round_of(two, two.study(training=TEN_STEPS)) == [2, 2]
    assert charged(two, "few") == charged(two, "many") == [2]


def test_the_pace_is_measured_without_looking_at_a_patient(two, monkeypatch):
    study = two.study(training=TEN_STEPS)

    def never(*args, **settings):
        raise AssertionError("a patient was touched")

    monkeypatch.setattr("fl_client.cohort.Cohort.case", never)
    monkeypatch.setattr("fl_client.cohort.Cohort.prepared", never)
    monkeypatch.setattr("fl_client.cohort.Cohort.split", never)
    assert 1 <= pace.steps_of(two.site("few"), study, load_for(study)) <= 10


def test_it_is_measured_before_the_ledger_is_written(two, monkeypatch):
    def fails(site, study, task):
        raise RuntimeError("no such device")

    monkeypatch.setattr(pace, "measured", fails)
    study = two.study(training=TEN_STEPS)
    grid = InProcessGrid("fl_client.app:app", two.nodes, {"study": study.to_json()})
    content = RecordDict(
        {
            "arrays": ArrayRecord(dict(initial_state(study))),
            "config": ConfigRecord({"study-hash": study.hash, "server-round": 1}),
        }
    )
    (reply, *_) = grid.send_and_receive([Message(content, node, "train") for node in grid.get_node_ids()])
    assert reply.has_error()
    assert charged(two, "few") == []


@pytest.mark.parametrize(("seconds", "steps"), [(100.0, 1), (6.0, 1), (3.0, 2), (0.61, 9), (0.001, 10)])
def test_steps_are_at_least_one_and_at_most_the_studys(two, monkeypatch, seconds, steps):
    measures(monkeypatch, seconds)
    study = two.study(training=TEN_STEPS)
    assert pace.steps_of(two.site("few"), study, load(study.task)) == steps


def test_a_study_without_a_time_takes_all_steps_and_measures_nothing(two, monkeypatch):
    calls = measures(monkeypatch, 100.0)
    study = two.study(training={"views": 2, "steps": 3})
    assert round_of(two, study) == [3, 3]
    assert calls == []


def test_fewer_steps_cost_less_and_never_more_than_the_study_promised(two, monkeypatch):
    measures(monkeypatch, 2.5)
    study = two.study(training=TEN_STEPS)
    for number in (1, 2):
        round_of(two, study, number)
    events = hospital.ledger_of(two.site("few")).events
    assert [event.steps for event in events] == [2, 2]
    whole = [event.model_copy(update={"steps": 10}) for event in events]
    assert epsilon(events, delta=1e-3) < epsilon(whole, delta=1e-3) <= 8


def test_what_was_measured_is_believed_for_a_day_on_the_same_device(two, monkeypatch):
    calls, site, study = measures(monkeypatch, 2.5), two.site("few"), two.study(training=TEN_STEPS)
    task = load(study.task)
    assert [pace.pace(site, study, task) for _ in range(3)] == [2.5] * 3
    assert calls == ["few"]
    known = json.loads((site.folder / "pace.json").read_text())
    for spoilt in (
        {study.hash: known[study.hash] | {"when": time.time() - 86500}},
        {study.hash: known[study.hash] | {"when": time.time() + 3600}},  # a clock that was put back
        {study.hash: known[study.hash] | {"device": "cuda:7"}},
        {study.hash: known[study.hash] | {"seconds": 0}},
        [],
    ):
        calls.clear()
        (site.folder / "pace.json").write_text(json.dumps(spoilt))
        pace.pace(site, study, task)
        assert calls == ["few"], spoilt
    (site.folder / "pace.json").write_text('{"')
    pace.pace(site, study, task)
    assert calls == ["few", "few"]


def test_a_step_takes_what_it_takes_without_anybody_and_as_much_more_as_the_declared_patients_add(two, monkeypatch):
    study = two.study(training={"views": 2, "steps": 10, "work_s": 6.0, "sample_rate": 0.5})
    monkeypatch.setattr(pace, "_timed", lambda site, study, task, model, drawn: 0.5 + 0.25 * len(drawn.patients))
    site = two.site("few").model_copy(update={"declared_size": 200})
    assert pace.measured(site, study, load(study.task)) == pytest.approx(0.5 + 0.25 * 100)


def test_what_is_measured_is_the_studys_own_loop_and_draws_nothing_from_torchs_generator(two, monkeypatch):
    handed, real = [], pace.dp_sgd
    monkeypatch.setattr(pace, "dp_sgd", lambda *a, **k: handed.append((len(a[1].patients), k["views"])) or real(*a, **k))
    study = two.study(training={"views": 3, "steps": 10, "work_s": 6.0})
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert pace.measured(two.site("few"), study, load(study.task)) > 0
    assert torch.equal(torch.get_rng_state(), before)
    assert handed == [(1, 3), (0, 3), (4, 3)]


def test_a_task_of_which_no_pace_can_be_told_is_refused_in_words(two):
    counted = {"name": "count", "tables": [{"axes": [{"field": "endpoint.age", "edges": [40, 60]}]}]}
    study = two.study(task=counted, training={"work_s": 6.0}, strategy={"name": "sum"}, rounds=1)
    with pytest.raises(ValueError, match=r"task count takes can't be told beforehand; training\.work_s must be left out"):
        load_for(study)
