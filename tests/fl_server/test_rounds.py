import json
import subprocess
import sys

import monai
import numpy as np
import pytest
import scipy
import torch
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fl_client import app as hospital
from fl_server.record import Record
from fl_server.rounds import run, versions
from fl_server.weights import initial_state
from simulation.grid import InProcessGrid
from tasks.fingerprint import fingerprint


def over(hospitals, study, **settings):
    grid = InProcessGrid("fl_client.app:app", hospitals.nodes, {"study": study.to_json()})
    return run(grid, study, initial_state(study), folder=hospitals.folder / "run", **settings)


def test_a_complete_study_leaves_a_model_and_a_record(hospitals):
    study = hospitals.study()
    state, record = over(hospitals, study)
    assert record.verdict == "complete"
    assert record == Record.read(hospitals.folder / "run" / "record.json")
    saved = torch.load(hospitals.folder / "run" / "model.pt", weights_only=True)
    assert fingerprint(saved) == fingerprint(state) == record.rounds[-1].arrays_sha256
    assert {name: site.declared_size for name, site in record.sites.items()} == {"a": 5, "b": 10, "c": 25}
    assert all(7.5 < site.epsilon <= 8 and site.delta == 1e-3 for site in record.sites.values())


class Crash(Exception):
    pass


def crash_in(number: int):
    def observer(entry, model):
        if entry.round == number:
            raise Crash

    return observer


def test_a_coordinator_that_crashes_leaves_the_model_and_the_record_of_the_last_round(hospitals):
    study = hospitals.study(rounds=3, strategy={"ema_decay": 0.5})
    with pytest.raises(Crash):
        over(hospitals, study, observer=crash_in(2))
    record = Record.read(hospitals.folder / "run" / "record.json")
    assert (record.verdict, len(record.rounds)) == ("failed", 2)
    assert record.reasons == ["2 of 3 rounds were run"]
    saved = torch.load(hospitals.folder / "run" / "model.pt", weights_only=True)
    assert fingerprint(saved) == record.rounds[1].arrays_sha256


KILLED = """
import os, sys
from pathlib import Path
from conf.imports import import_monai_alone
from conf.study import Study
from fl_server.rounds import run
from fl_server.weights import initial_state
from simulation.grid import InProcessGrid
import_monai_alone()
study = Study.from_json(sys.argv[1])
grid = InProcessGrid("fl_client.app:app", [{"site": site} for site in sys.argv[3:]], {"study": study.to_json()})
run(grid, study, initial_state(study), folder=Path(sys.argv[2]), observer=lambda entry, model: os._exit(7))
"""


def test_so_does_one_that_is_killed(hospitals):
    sites = [str(path) for path in hospitals.sites.values()]
    command = [sys.executable, "-c", KILLED, hospitals.study().to_json(), str(hospitals.folder / "run"), *sites]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 7, done.stderr
    record = Record.read(hospitals.folder / "run" / "record.json")
    assert (record.verdict, record.reasons) == ("failed", ["1 of 2 rounds were run"])
    saved = torch.load(hospitals.folder / "run" / "model.pt", weights_only=True)
    assert fingerprint(saved) == record.rounds[0].arrays_sha256


def test_a_crash_while_the_model_is_written_leaves_the_model_of_the_round_before(hospitals, monkeypatch):
    def half(model, file):
        file.write(b"half a mod")
        raise Crash

    def save_no_more(entry, model):
        monkeypatch.setattr(torch, "save", half)

    with pytest.raises(Crash):
        over(hospitals, hospitals.study(), observer=save_no_more)
    record = Record.read(hospitals.folder / "run" / "record.json")
    saved = torch.load(hospitals.folder / "run" / "model.pt", weights_only=True)
    assert [fingerprint(saved)] == [entry.arrays_sha256 for entry in record.rounds]


def test_a_run_that_dies_before_its_first_round_leaves_no_verdict_and_no_model_of_an_earlier_one(hospitals):
    study = hospitals.study(rounds=1)
    over(hospitals, study)
    assert Record.read(hospitals.folder / "run" / "record.json").verdict == "complete"

    class Gone(InProcessGrid):
        def get_node_ids(self):
            raise Crash

    with pytest.raises(Crash):
        run(Gone("fl_client.app:app", []), study, initial_state(study), folder=hospitals.folder / "run")
    record = Record.read(hospitals.folder / "run" / "record.json")
    assert (record.verdict, record.reasons, record.rounds) == ("failed", ["0 of 1 rounds were run"], [])
    assert not (hospitals.folder / "run" / "model.pt").exists()


def test_a_run_that_is_refused_before_anybody_is_asked_leaves_the_earlier_ones_results(hospitals):
    over(hospitals, hospitals.study(rounds=1))
    with pytest.raises(ValueError, match="starts from weights 000"):
        over(hospitals, hospitals.study(initial_model_sha256="0" * 64))
    assert Record.read(hospitals.folder / "run" / "record.json").verdict == "complete"
    assert (hospitals.folder / "run" / "model.pt").exists()


def test_a_record_says_which_packages_decided_the_numbers(hospitals):
    record = Record.begin(hospitals.study(), versions=versions(), engine="")
    assert list(record.versions) == ["python", "konsil", "flwr", "torch", "monai", "numpy", "dp-accounting", "scipy"]
    assert record.versions["scipy"] == scipy.__version__
    assert torch.__version__.startswith(record.versions["torch"])  # some builds of one release add "+cu130"
    assert (record.versions["monai"], record.versions["numpy"]) == (monai.__version__, np.__version__)


def test_every_planned_hospital_has_an_entry_in_every_round(hospitals):
    hospitals.save(hospitals.site("b").model_copy(update={"approve_all": False}))
    study = hospitals.study(sites=("a", "b", "nowhere"))
    _, record = over(hospitals, study)
    assert record.verdict == "degraded"
    for entry in record.rounds:
        assert entry.sites["a"].answer == "used"
        assert (entry.sites["b"].answer, entry.sites["nowhere"].answer) == ("declined", "absent")
        assert "nobody at b has approved study" in entry.sites["b"].reason


def test_two_nodes_that_say_they_are_the_same_hospital_are_both_left_out(hospitals):
    study = hospitals.study()
    grid = InProcessGrid("fl_client.app:app", [*hospitals.nodes, hospitals.nodes[1]], {"study": study.to_json()})
    _, record = run(grid, study, initial_state(study), folder=hospitals.folder / "run")
    assert "more than one node says it is b" in record.rounds[0].sites["b"].reason
    assert record.rounds[0].sites["a"].answer == "used"


def test_a_study_that_nobody_joins_has_failed_and_leaves_no_model(hospitals):
    _, record = over(hospitals, hospitals.study(sites=("x", "y")))
    assert record.verdict == "failed"
    assert not (hospitals.folder / "run" / "model.pt").exists()
    assert json.loads((hospitals.folder / "run" / "record.json").read_text())["verdict"] == "failed"


def test_with_fewer_hospitals_than_the_quorum_nobody_is_asked_and_nobody_pays(hospitals):
    for name in ("b", "c"):
        hospitals.save(hospitals.site(name).model_copy(update={"approve_all": False}))
    _, record = over(hospitals, hospitals.study(strategy={"quorum": 2}))
    assert record.verdict == "failed"
    assert record.rounds[0].sites["a"].reason == "not asked: 1 of the 2 hospitals that a round needs take part"
    assert record.rounds[0].sites["b"].answer == "declined"
    assert hospital.ledger_of(hospitals.site("a")).events == ()


def test_the_averaged_model_weights_rounds_by_their_distance_from_the_end(hospitals):
    app = ClientApp()  # answers round r with the value r everywhere
    app.query("enroll")(hospital.enroll)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        number = message.content["config"]["server-round"]
        arrays = {n: Array(np.full_like(a.numpy(), number)) for n, a in message.content["arrays"].items()}
        size = 5 if "/a/" in str(context.node_config["site"]) else 10
        metrics = MetricRecord({"num-examples": size, "epsilon": 1.0})
        return Message(RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics}), reply_to=message)

    study = hospitals.study(sites=("a", "b"), rounds=3, strategy={"ema_decay": 0.5})
    grid, seen = InProcessGrid(app, hospitals.nodes, {"study": study.to_json()}), []
    state, _ = run(
        grid, study, initial_state(study), folder=hospitals.folder / "run", observer=lambda entry, model: seen.append(model)
    )
    expected = [1.0, (2 + 1 / 2) / (1 + 1 / 2), (3 + 2 / 2 + 1 / 4) / (1 + 1 / 2 + 1 / 4)]
    assert [float(model["head.bias"][0]) for model in seen] == pytest.approx(expected)
    assert fingerprint(state) == fingerprint(seen[-1])


def test_the_coordinators_steps_grow_in_the_warm_up_and_shrink_by_half_a_cosine(hospitals):
    app = ClientApp()  # answers every round with one more everywhere
    app.query("enroll")(hospital.enroll)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        arrays = {n: Array((a.numpy() + 1).astype(np.float32)) for n, a in message.content["arrays"].items()}
        metrics = MetricRecord({"num-examples": 5, "epsilon": 1.0})
        return Message(RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics}), reply_to=message)

    def steps(**schedule: object) -> np.ndarray:
        study = hospitals.study(sites=("a",), rounds=6, strategy={"name": "fedadam", "server_learning_rate": 0.1, **schedule})
        start, seen = initial_state(study), []
        grid = InProcessGrid(app, hospitals.nodes, {"study": study.to_json()})
        run(grid, study, start, folder=hospitals.folder / study.hash, observer=lambda entry, model: seen.append(model))
        return np.diff([float(model["head.bias"][0]) for model in (start, *seen)])

    constant = steps()
    cosine = [1, (1 + 3**0.5 / 2) / 2, 0.75, 0.5, 0.25, (1 - 3**0.5 / 2) / 2]  # (1 + cos 0, 30, ..., 150 degrees) / 2
    np.testing.assert_allclose(steps(server_schedule="cosine") / constant, cosine, rtol=1e-4)
    np.testing.assert_allclose(steps(server_warmup=0.5) / constant, [1 / 3, 2 / 3, 1, 1, 1, 1], rtol=1e-4)
    both = [1 / 2, 1, 1, (1 + 2**-0.5) / 2, 0.5, (1 - 2**-0.5) / 2]  # two rounds to warm up, four of 45 degrees each
    np.testing.assert_allclose(steps(server_schedule="cosine", server_warmup=0.34) / constant, both, rtol=1e-4)


def test_a_model_with_another_fingerprint_than_the_studys_is_refused(hospitals):
    study = hospitals.study(initial_model_sha256="0" * 64)
    with pytest.raises(ValueError, match="starts from weights 000"):
        over(hospitals, study)
