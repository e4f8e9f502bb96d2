import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fl_client import Event, Ledger, ledger_mod
from fl_client.release import DECLINED, FAILED, FAILED_WORDS
from simulation.grid import InProcessGrid

DOCUMENT = Path(__file__).parents[2] / "docs" / "flower_plugin.md"
EVENT = Event(noise_multiplier=1.0, study_name="foreign")


def reply_of(tmp_path, answer, *, budget=10.0, metrics=("num-examples",)):
    """What the coordinator gets when a foreign app's train function is `answer`."""
    app = ClientApp()
    ledger = Ledger(tmp_path / "ledger.jsonl", epsilon=budget, delta=1e-3)
    app.train(mods=[ledger_mod(ledger, lambda message, context: EVENT, metrics=metrics)])(answer)
    grid = InProcessGrid(app, [{}])
    sent = ArrayRecord({"w": Array(np.zeros(2, np.float32)), "steps": Array(np.zeros(1, np.int64))})
    (reply,) = grid.send_and_receive([Message(RecordDict({"arrays": sent}), 2, "train")])
    return reply, ledger


def answering(arrays, **metrics):
    def answer(message: Message, context: Context) -> Message:
        content = {
            "arrays": ArrayRecord({name: Array(array) for name, array in arrays.items()}),
            "metrics": MetricRecord({"num-examples": 4, **metrics}),
            "notes": ConfigRecord({"patients": "1234"}),
        }
        return Message(RecordDict(content), reply_to=message)

    return answer


def test_only_arrays_and_listed_metrics_leave(tmp_path):
    reply, ledger = reply_of(tmp_path, answering({"w": np.ones(2, np.float32)}, loss=0.25))
    assert set(reply.content) == {"arrays", "metrics"}
    assert dict(reply.content["metrics"]) == {"num-examples": 4}
    assert ledger.events == (EVENT,)


@pytest.mark.parametrize(
    "arrays",
    [
        {"w": np.array([np.nan, 0], np.float32)},
        {"w": np.zeros(3, np.float32)},
        {"w": np.zeros(2, np.float64)},
        {"steps": np.ones(1, np.int64)},
        {"memory": np.zeros(2, np.float32)},
    ],
)
def test_other_arrays_than_those_that_came_stay_inside(tmp_path, arrays):
    reply, ledger = reply_of(tmp_path, answering(arrays))
    assert reply.error.code == FAILED
    assert re.fullmatch(FAILED_WORDS + r" \(reason: work, number [0-9a-f]{8}\)", reply.error.reason)
    assert len(ledger.events) == 1


def test_neither_exceptions_nor_the_apps_own_errors_are_told(tmp_path):
    def raising(message, context):
        raise KeyError("patient 1234")

    def telling(message, context):
        return Message(Error(2, "patient 1234"), reply_to=message)

    for answer in (raising, telling):
        reply, _ = reply_of(tmp_path, answer)
        assert re.fullmatch(FAILED_WORDS + r" \(reason: work, number [0-9a-f]{8}\)", reply.error.reason)


def test_over_budget_the_app_is_not_run(tmp_path):
    def must_not_run(message, context):
        (tmp_path / "ran").touch()
        return Message(RecordDict(), reply_to=message)

    reply, ledger = reply_of(tmp_path, must_not_run, budget=0.5)
    assert reply.error.code == DECLINED
    assert "study foreign round 0 would bring epsilon to" in reply.error.reason
    assert ledger.events == ()
    assert not (tmp_path / "ran").exists()


def blocks() -> dict[str, str]:
    """The document's files: code blocks that begin with `# name.py`."""
    return dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", DOCUMENT.read_text(), re.DOTALL))


def test_the_documented_example_runs_and_is_refused_once_the_budget_is_spent(tmp_path, monkeypatch, capsys):
    for name, code in blocks().items():
        (tmp_path / name).write_text(code)
    rng = np.random.default_rng(0)
    for hospital in ("north", "south", "east"):
        (tmp_path / "data" / hospital).mkdir(parents=True)
        for patient in range(4):
            mask = rng.integers(0, 2, size=(3, 16, 16))
            image = (mask + 0.1 * rng.normal(size=mask.shape)).astype(np.float32)
            np.savez(tmp_path / "data" / hospital / f"p{patient}.npz", image=image, mask=mask)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for time in ("first", "second"):
        for name in ("task", "client_app", "server_app"):
            sys.modules.pop(name, None)
        runpy.run_path("try_it.py")
        said = capsys.readouterr().out
        assert said.count("'used'") == {"first": 9, "second": 3}[time], said
    assert "would bring epsilon to" in said
    assert Ledger("data/north/ledger.jsonl", epsilon=10, delta=1e-3).epsilon <= 10


def test_the_example_changes_fewer_than_forty_lines():
    lines = [line for name in ("client_app.py", "server_app.py") for line in blocks()[name].splitlines() if line.strip()]
    assert len(lines) < 40


def test_every_public_name_of_the_document_can_be_imported():
    for package, names in re.findall(r"`from ([\w.]+) import ([\w, ]+)`", DOCUMENT.read_text()):
        module = __import__(package, fromlist=["_"])
        assert all(hasattr(module, name.strip()) for name in names.split(","))
