import json
import subprocess
import sys

import monai
import numpy as np
import pytest
import scipy
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAdam, FedAvg, FedMedian

from fl_client import app as hospital
from fl_client import release
from fl_server.record import Record
from fl_server.rounds import DECLINED, Rounds, run, versions
from fl_server.weights import initial_state
from simulation.grid import InProcessGrid
from tasks.fingerprint import fingerprint

START = {"w": np.array([1.0, 2.0], np.float32), "frozen": np.array([7, 8], np.int64)}


def answer(message: Message, values: list[float], *, weight: float = 1, **metrics: float) -> Message:
    arrays = ArrayRecord({"w": Array(np.array(values, np.float32))})
    metric = MetricRecord({"num-examples": weight, "epsilon": 1.0, **metrics})
    return Message(RecordDict({"arrays": arrays, "metrics": metric}), reply_to=message)


def one_round(strategy: Rounds, *answers, number: int = 1, start=START):
    """Ask the nodes 2, 3, 4 once; each function of `answers` makes one node's reply or list of replies."""
    grid = InProcessGrid(ClientApp(), [{}, {}, {}])
    arrays = ArrayRecord({name: Array(array) for name, array in start.items()})
    questions = strategy.configure_train(number, arrays, ConfigRecord(), grid)
    for i, question in enumerate(questions):
        question.metadata.__dict__["_message_id"] = f"question {i}"
    replies = []
    for question, make in zip(questions, answers, strict=True):
        made = make(question) if make is not None else []
        replies += made if isinstance(made, list) else [made]
    result, _ = strategy.aggregate_train(number, reversed(replies))
    return None if result is None else {name: array.numpy() for name, array in result.items()}


def rounds(aggregator: FedAvg | None = None, **settings) -> Rounds:
    fields = {"trainable": ["w"], "nodes": {2: "a", 3: "b", 4: "c"}}
    return Rounds(aggregator or FedAvg(), **{**fields, **settings})


def good(values, weight=1.0):
    return lambda message: answer(message, values, weight=weight)


def test_fedavg_is_the_mean_weighted_by_declared_sizes():
    result = one_round(rounds(), good([0, 0], 5), good([3, 6], 10), good([8, 0], 25))
    np.testing.assert_allclose(result["w"], [(3 * 10 + 8 * 25) / 40, 60 / 40], rtol=1e-6)
    assert result["w"].dtype == np.float32


def test_what_no_site_trains_is_kept_as_it_was():
    result = one_round(rounds(), good([0, 0]), good([0, 0]), good([0, 0]))
    np.testing.assert_array_equal(result["frozen"], START["frozen"])
    assert result["frozen"].dtype == np.int64


def test_fedmedian_ignores_one_site_that_is_far_off():
    result = one_round(rounds(FedMedian()), good([1, 1]), good([2, 2]), good([1e30, -1e30]))
    np.testing.assert_array_equal(result["w"], [2, 1])
    assert result["w"].dtype == np.float32


def test_fedadam_steps_along_the_mean_update_and_keeps_float32():
    strategy = rounds(FedAdam(eta=0.1, beta_1=0.9, beta_2=0.99, tau=1e-3))
    result = one_round(strategy, good([2, 2]), good([2, 2]), good([2, 2]))
    update = np.array([1.0, 0.0])  # mean of the answers minus what was sent
    m, v = 0.1 * update, 0.01 * update**2  # Reddi et al. 2020, Algorithm 2, from zero moments
    rate = 0.1 * np.sqrt(1 - 0.99**2) / (1 - 0.9**2)  # bias correction as Flower counts it, from round + 1
    np.testing.assert_allclose(result["w"], START["w"] + rate * m / (np.sqrt(v) + 1e-3), rtol=1e-6)
    assert result["w"].dtype == np.float32


@pytest.mark.parametrize(
    "huge",
    [
        [1e38, 0],  # its square is over the largest float32, 3.4e38: the second moment overflows
        [-3.4e38, 0],  # so does its distance from what was sent
    ],
)
def test_a_round_whose_sums_overflow_is_discarded_and_later_rounds_move_the_model_as_if_it_had_not_been(huge):
    sent = {"w": np.array([3e37, 2.0], np.float32), "frozen": START["frozen"]}
    strategy, twin = (rounds(FedAdam(eta=0.1, tau=1e-3), nodes={2: "a", 3: "b"}) for _ in range(2))
    near = [3e37, 3.0]
    before = [one_round(s, good(near), good(near), start=sent) for s in (strategy, twin)]
    assert before[0]["w"].tobytes() == before[1]["w"].tobytes()
    assert one_round(strategy, good(huge, 1000), good(near), number=2, start=sent) is None
    assert {site: a.answer for site, a in strategy.answers[2].items()} == {"a": "quarantined", "b": "quarantined"}
    assert "the aggregation of this round was not finite" in strategy.answers[2]["b"].reason
    after, expected = (one_round(s, good(near), good(near), number=3, start=sent) for s in (strategy, twin))
    assert after["w"].tobytes() == expected["w"].tobytes()
    assert after["w"][1] > 2.0


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (lambda m: answer(m, [np.nan, 0]), "array 'w' holds values that are not finite"),
        (lambda m: answer(m, [1, 2, 3]), "array 'w' is float32[3], expected float32[2]"),
        (lambda m: answer(m, [1, 2], loss=float("nan")), "the metric 'loss' is not finite"),
        (lambda m: answer(m, [1, 2], weight=0), "must be a positive number, not 0"),
        (lambda m: Message(RecordDict(), reply_to=m), "0 metric records instead of one"),
        (
            lambda m: Message(RecordDict({"metrics": MetricRecord({"num-examples": 1})}), reply_to=m),
            "0 array records instead of one",
        ),
        (
            lambda m: Message(
                RecordDict(
                    {
                        "arrays": ArrayRecord({"v": Array(np.ones(2, np.float32))}),
                        "metrics": MetricRecord({"num-examples": 1}),
                    }
                ),
                reply_to=m,
            ),
            "missing ['w'], unknown ['v']",
        ),
        (
            lambda m: Message(
                RecordDict(
                    {
                        "arrays": ArrayRecord({"w": Array("float32", (2,), "numpy.ndarray", b"no array")}),
                        "metrics": MetricRecord({"num-examples": 1}),
                    }
                ),
                reply_to=m,
            ),
            "array 'w' can't be read",
        ),
        (
            lambda m: Message(
                RecordDict(
                    {
                        "arrays": ArrayRecord({"w": Array(np.ones(2, np.float64))}),
                        "metrics": MetricRecord({"num-examples": 1}),
                    }
                ),
                reply_to=m,
            ),
            "array 'w' is float64[2], expected float32[2]",
        ),
    ],
)
def test_an_unsound_answer_is_quarantined_under_its_sites_name_and_the_others_count(bad, reason):
    strategy = rounds()
    result = one_round(strategy, good([1, 1]), bad, good([3, 3]))
    np.testing.assert_array_equal(result["w"], [2, 2])
    assert strategy.answers[1]["b"].answer == "quarantined"
    assert reason in strategy.answers[1]["b"].reason
    assert strategy.answers[1]["a"].answer == strategy.answers[1]["c"].answer == "used"


def test_two_different_answers_of_one_site_are_quarantined_and_equal_ones_count_once():
    strategy = rounds()
    twice = one_round(strategy, good([1, 1]), lambda m: [answer(m, [9, 9]), answer(m, [5, 5])], good([3, 3]))
    np.testing.assert_array_equal(twice["w"], [2, 2])
    assert "answered twice" in strategy.answers[1]["b"].reason
    same = one_round(strategy, good([1, 1]), lambda m: [answer(m, [9, 9]), answer(m, [9, 9])], good([2, 2]), number=2)
    np.testing.assert_allclose(same["w"], [4, 4])
    assert strategy.answers[2]["b"].answer == "used"


def test_errors_are_declines_or_failures_and_are_told_apart_from_silence():
    strategy = rounds()
    one_round(
        strategy,
        lambda m: Message(Error(100, "budget spent"), reply_to=m),
        lambda m: Message(Error(8, "stopped responding"), reply_to=m),
        None,
    )
    said = {site: (a.answer, a.reason) for site, a in strategy.answers[1].items()}
    assert said["a"] == ("declined", "budget spent")
    assert said["b"] == ("failed", "stopped responding")
    assert said["c"] == ("absent", "no answer before the round's end")


def test_site_and_coordinator_mean_the_same_by_a_decline_and_words_are_cut_short():
    assert DECLINED == release.DECLINED != release.FAILED
    strategy = rounds()
    one_round(strategy, lambda m: release.decline(m, "no " * 10_000), good([1, 1]), good([1, 1]))
    assert strategy.answers[1]["a"].answer == "declined"
    assert len(strategy.answers[1]["a"].reason) == 500


def test_an_error_that_flowers_superlink_writes_under_its_own_number_is_put_down_to_the_site():
    def unavailable(message):
        reply = Message(Error(5, "node unavailable"), reply_to=message)
        reply.metadata.__dict__["_src_node_id"] = 1
        return reply

    strategy = rounds()
    one_round(strategy, good([1, 1]), unavailable, good([1, 1]))
    assert strategy.answers[1]["b"].answer == "failed"
    assert set(strategy.answers[1]) == {"a", "b", "c"}


def test_an_answer_in_the_name_of_another_node_is_quarantined():
    def forged(message):
        reply = answer(message, [9, 9])
        reply.metadata.__dict__["_src_node_id"] = 2
        return reply

    strategy = rounds()
    one_round(strategy, good([1, 1]), forged, good([1, 1]))
    assert "node 2, which was not asked" in strategy.answers[1]["b"].reason


def test_a_weight_other_than_the_declared_one_is_quarantined():
    strategy = rounds(weights={"a": 1, "b": 1, "c": 1})
    one_round(strategy, good([1, 1]), good([9, 9], 1000), good([1, 1]))
    assert "this site declared 1" in strategy.answers[1]["b"].reason


def test_below_the_quorum_the_old_model_is_kept_and_no_answer_counts():
    strategy = rounds(quorum=2)
    assert one_round(strategy, good([5, 5]), None, None) is None
    assert strategy.answers[1]["a"].answer == "quarantined"
    assert "1 of the 2 answers" in strategy.answers[1]["a"].reason


def test_sites_may_send_different_further_metrics_without_ending_the_run():
    strategy = rounds()
    result = one_round(strategy, lambda m: answer(m, [1, 1], loss=3.0), good([2, 2]), good([3, 3]))
    np.testing.assert_allclose(result["w"], [2, 2])


def test_the_order_of_arrival_changes_no_bit():
    values = np.random.default_rng(0).normal(size=(3, 2))
    results = []
    for order in ([0, 1, 2], [2, 0, 1]):
        grid = InProcessGrid(ClientApp(), [{}, {}, {}])
        strategy = rounds()
        arrays = ArrayRecord({name: Array(array) for name, array in START.items()})
        questions = strategy.configure_train(1, arrays, ConfigRecord(), grid)
        for i, question in enumerate(questions):
            question.metadata.__dict__["_message_id"] = str(i)
        replies = [answer(questions[i], list(values[i]), weight=3 + i) for i in order]
        results.append(strategy.aggregate_train(1, replies)[0]["w"].numpy())
    assert results[0].tobytes() == results[1].tobytes()


def test_it_serves_a_foreign_app_through_flowers_own_start():
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        value = np.nan if context.node_config["sick"] else 1.0
        arrays = ArrayRecord({"w": Array(message.content["arrays"]["w"].numpy() + np.float32(value))})
        return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 2})}), reply_to=message)

    strategy = Rounds(FedAvg(fraction_evaluate=0.0), quorum=2)
    grid = InProcessGrid(app, [{"sick": False}, {"sick": True}, {"sick": False}])
    result = strategy.start(grid, ArrayRecord({"w": Array(np.zeros(2, np.float32))}), num_rounds=2)
    np.testing.assert_array_equal(result.arrays["w"].numpy(), [2, 2])
    assert strategy.answers[2]["node 3"].answer == "quarantined"


# -- the whole loop, over small hospitals -----------------------------------------------------------------------------


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
from conf.study import Study
from fl_server.rounds import run
from fl_server.weights import initial_state
from simulation.grid import InProcessGrid
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
