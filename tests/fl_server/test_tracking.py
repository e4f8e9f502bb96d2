"""Studies in MLflow and TensorBoard, read back through their own readers."""

import importlib.util
import json
import logging
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fl_server import tracking
from fl_server.record import Record
from fl_server.rounds import run
from fl_server.tracking import QUIET, SETTINGS, Tracker, Tracking, facts
from fl_server.tracking.__main__ import once
from fl_server.weights import initial_state
from simulation.grid import InProcessGrid

LONG_S = 120.0
needs_mlflow = pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="MLflow is not installed")
needs_tensorboard = pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="TensorBoard is not installed")

READ = """
import json, sys
from pathlib import Path
from fl_server.record import Record
from fl_server.tracking import Tracking
from fl_server.tracking.__main__ import once
from mlflow import MlflowClient
from mlflow.telemetry.utils import is_telemetry_disabled

def read():
    client, found = MlflowClient(tracking_uri=sys.argv[1]), []
    for experiment in client.search_experiments():
        for run in client.search_runs([experiment.experiment_id]):
            number = run.info.run_id
            told = {name: client.get_metric_history(number, name) for name in run.data.metrics}
            curves = {name: [(m.step, m.value, m.timestamp) for m in metrics] for name, metrics in told.items()}
            files = sorted(file.path for file in client.list_artifacts(number))
            found.append({"id": number, "name": run.info.run_name, "status": run.info.status, "experiment": experiment.name,
                          "params": run.data.params, "tags": run.data.tags, "curves": curves, "files": files})
    return found

states = [read()]
folder = Path(sys.argv[2])
for text in sys.argv[3:]:
    (folder / "record.json").write_text(text)
    if not once(folder, Tracking(), folder.parent):
        sys.exit(1)
    states.append(read())
print(json.dumps({"states": states, "silent": is_telemetry_disabled()}))
"""


def stored(folder, *records):
    """What is in the store beside `folder`, by MLflow's own client in a process of its own: now, and after each record."""
    texts = []
    for record in records:
        record.write(folder / "next.json")
        texts.append((folder / "next.json").read_text())
    command = [sys.executable, "-W", "ignore", "-c", READ, f"sqlite:///{folder.parent / 'mlflow.db'}", str(folder), *texts]
    outside = {key: value for key, value in os.environ.items() if key not in ("CI", "PYTEST_CURRENT_TEST")}
    said = subprocess.run(command, capture_output=True, text=True, check=True, env={**outside, **QUIET})
    return json.loads(said.stdout.splitlines()[-1])


def over(hospitals, study, tracker, folder):
    grid = InProcessGrid("fl_client.app:app", hospitals.nodes, {"study": study.to_json()})
    return run(grid, study, initial_state(study), folder=folder, observer=tracker.after_round)[1]


@pytest.fixture
def listener():
    """A port at which somebody takes every connection and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def cut(record, rounds):
    """The record as it stood after so many rounds."""
    early = record.model_copy(deep=True)
    early.rounds, early.ended = early.rounds[:rounds], ""
    return early


@needs_mlflow
def test_a_study_is_one_run_of_mlflow_with_every_hospitals_curves(hospitals):
    study, folder = hospitals.study(sites=("a", "b", "nowhere")), hospitals.folder / "runs" / "rehearsal"
    folder.mkdir(parents=True)
    with Tracker(study, folder, Tracking()) as tracker:
        record = over(hospitals, study, tracker, folder)
        tracker.close(wait_s=LONG_S)
    anew = record.model_copy(update={"started": "2030-01-01T00:00:00Z"})
    found = stored(folder, cut(record, 1), record, record, anew)
    assert found["silent"]  # MLflow reports nothing to its makers
    first, early, *same, last = found["states"]
    (one,) = first
    assert (one["name"], one["status"], one["experiment"]) == ("rehearsal", "FINISHED", "konsil")
    assert one["tags"]["konsil.hash"] == study.hash
    assert one["tags"]["konsil.verdict"] == record.verdict == "degraded"
    assert one["tags"]["konsil.model_sha256"] == record.rounds[-1].arrays_sha256
    assert one["tags"]["konsil.version.konsil"] == record.versions["konsil"]
    assert one["params"]["privacy.epsilon"] == "8.0"
    assert one["params"]["task.name"] == "segmentation"
    assert one["params"]["sites"] == '["a", "b", "nowhere"]'
    for site in ("a", "b"):
        told = [(step, value) for step, value, _ in one["curves"][f"epsilon/{site}"]]
        assert told == [(entry.round, entry.sites[site].epsilon) for entry in record.rounds]
        assert [value for _, value, _ in one["curves"][f"used/{site}"]] == [1.0, 1.0]
        assert all(value > 0 for _, value, _ in one["curves"][f"seconds/{site}"])
    assert [value for _, value, _ in one["curves"]["used/nowhere"]] == [0.0, 0.0]
    assert "epsilon/nowhere" not in one["curves"]
    assert one["files"] == ["fingerprints.csv", "model.pt", "record.json"]
    kept = folder.parent / "mlruns" / one["id"] / "artifacts" / "record.json"
    assert Record.read(kept) == record
    table = kept.with_name("fingerprints.csv").read_text().splitlines()
    assert table == ["round,model_sha256,moved", *(f"{r.round},{r.arrays_sha256},yes" for r in record.rounds)]

    # what is written down again, and what goes on after an interruption, is the same run and doubles nothing
    assert [(run["id"], run["status"]) for run in early] == [(one["id"], "RUNNING")]
    for (after,) in same:
        assert (after["curves"], after["status"]) == (one["curves"], "FINISHED")
    assert {run["tags"]["konsil.key"] for run in last} == {facts.key(record), facts.key(anew)}  # begun anew: another run
    assert (folder / tracking.LOG).read_text() == ""


@needs_mlflow
def test_a_server_that_never_answers_disturbs_no_study(hospitals, listener):
    study, folder = hospitals.study(), hospitals.folder / "runs" / "rehearsal"
    folder.mkdir(parents=True)
    tracker = Tracker(study, folder, Tracking(mlflow=f"http://127.0.0.1:{listener}"))
    spent = []

    def after_round(entry, state):
        start = time.monotonic()
        for _ in range(20_000):  # far more than a pipe holds
            tracker.update()
        spent.append(time.monotonic() - start)

    grid = InProcessGrid("fl_client.app:app", hospitals.nodes, {"study": study.to_json()})
    _, record = run(grid, study, initial_state(study), folder=folder, observer=after_round)
    worker = tracker._process
    start = time.monotonic()
    tracker.close()
    assert time.monotonic() - start < 1
    assert record.verdict == "complete"
    assert max(spent) < 10
    worker.kill()


@needs_mlflow
def test_what_went_wrong_stands_in_the_studys_folder(hospitals):
    study, folder = hospitals.study(), hospitals.folder / "runs" / "rehearsal"
    folder.mkdir(parents=True)
    Record.begin(study).write(folder / "record.json")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]  # nobody listens there afterwards
    worker = tracking.start(folder, Tracking(mlflow=f"http://127.0.0.1:{port}"), folder.parent)
    worker.communicate(timeout=LONG_S)
    assert worker.returncode == 1
    assert f"127.0.0.1:{port}" in (folder / tracking.LOG).read_text().replace("port=", "").replace("', ", ":")


@needs_tensorboard
def test_tensorboard_shows_the_same_curves_once(hospitals):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    study, folder = hospitals.study(), hospitals.folder / "run"
    grid = InProcessGrid("fl_client.app:app", hospitals.nodes, {"study": study.to_json()})
    _, record = run(grid, study, initial_state(study), folder=folder)
    settings = Tracking(mlflow=None, tensorboard=True)
    for again in (cut(record, 1), cut(record, 1), record, record):
        again.write(folder / "record.json")
        assert once(folder, settings, folder)
    seen = EventAccumulator(str(folder / "tensorboard")).Reload()
    curve = [(event.step, event.value) for event in seen.Scalars("epsilon/a")]
    assert curve == [(entry.round, pytest.approx(entry.sites["a"].epsilon)) for entry in record.rounds]
    assert [event.value for event in seen.Scalars("used/c")] == [1.0, 1.0]


def test_the_same_record_gives_the_same_points_and_the_rest_gives_the_rest(hospitals):
    study, folder = hospitals.study(rounds=2), hospitals.folder / "run"
    grid = InProcessGrid("fl_client.app:app", hospitals.nodes, {"study": study.to_json()})
    _, record = run(grid, study, initial_state(study), folder=folder)
    everything = list(facts.points(record, facts.Published()))
    assert everything == list(facts.points(Record.read(folder / "record.json"), facts.Published()))
    first = list(facts.points(cut(record, 1), facts.Published()))
    rest = list(facts.points(record, facts.published(cut(record, 1))))
    assert {*first, *rest} == set(everything)
    assert len(first) + len(rest) == len(everything)
    assert list(facts.points(record, facts.published(record))) == []


def test_without_mlflow_one_line_says_how_to_get_it(hospitals, monkeypatch, caplog):
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
    with caplog.at_level(logging.INFO, "konsil.tracking"):
        tracker = Tracker(hospitals.study(), hospitals.folder, Tracking())
        tracker.update()
    assert [line.message for line in caplog.records] == [
        "study rehearsal is not tracked: MLflow is not installed; pip install 'konsil[tracking]' brings it"
    ]
    assert tracker._process is None


def test_settings_come_from_the_coordinator_by_the_environment(hospitals, monkeypatch, caplog):
    monkeypatch.delenv(SETTINGS, raising=False)
    assert Tracker.from_environment(hospitals.study(), hospitals.folder)._settings.mlflow is None
    monkeypatch.setenv(SETTINGS, '{"mlflow": "nowhere"}')
    assert Tracker.from_environment(hospitals.study(), hospitals.folder)._settings.mlflow is None
    assert "so nothing is tracked" in caplog.text
    assert "neither `local` nor a URI" in caplog.text


def test_a_study_goes_on_when_no_process_can_be_started(hospitals, monkeypatch, caplog):
    monkeypatch.setattr(sys, "executable", str(Path("/nowhere/python")))
    tracker = Tracker(hospitals.study(), hospitals.folder, Tracking(mlflow="http://127.0.0.1:9"))
    tracker.update()
    tracker.close()
    assert tracker._process is None
    assert "the study goes on, but is not tracked" in caplog.text
