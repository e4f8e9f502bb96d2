import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from fl_server.rounds import run
from fl_server.weights import initial_state
from simulation.grid import FIRST_NODE, InProcessGrid, _begin

echo = ClientApp()


@echo.train()
def train(message: Message, context: Context) -> Message:
    seen = context.state.config_records.setdefault("seen", ConfigRecord({"count": 0}))
    seen["count"] = int(seen["count"]) + 1
    array = message.content["arrays"]["w"].numpy() + float(context.node_config["plus"])
    message.content["arrays"].pop("w")  # a site may do with its copy what it likes
    content = {"arrays": ArrayRecord([array]), "metrics": MetricRecord({"num-examples": 1, "count": seen["count"]})}
    return Message(RecordDict(content), reply_to=message)


@echo.query("raise")
def fail(message: Message, context: Context) -> Message:
    raise RuntimeError("as any app may")


@echo.query("die")
def die(message: Message, context: Context) -> Message:
    if context.node_config["plus"] == 0:
        os._exit(9)
    return Message(RecordDict(), reply_to=message)


@echo.query("sleep")
def sleep(message: Message, context: Context) -> Message:
    time.sleep(float(context.node_config["plus"]) / 10)
    return Message(RecordDict(), reply_to=message)


APP = f"{__name__}:echo"


def workers(count: int) -> ProcessPoolExecutor:
    """Worker processes forked from one that has imported what they need: imports are most of a worker's life."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["simulation.preload", "fl_client.app", "fl_server.rounds"])
    return ProcessPoolExecutor(count, context, initializer=_begin, initargs=(sys.path,))


@pytest.fixture(scope="module")
def two_workers() -> Iterator[Executor]:
    with workers(2) as pool:
        yield pool


@pytest.fixture(params=["in this process", "in two workers"])
def pool(request: pytest.FixtureRequest) -> Executor | None:
    return request.getfixturevalue("two_workers") if request.param == "in two workers" else None


NODES = [{"plus": 0}, {"plus": 1}, {"plus": 2}]


def messages(grid: Grid, kind: str = "train", **more: float) -> list[Message]:
    arrays = ArrayRecord({"w": Array(np.ones(3, np.float32))})
    return [Message(RecordDict({"arrays": arrays}), node, kind, **more) for node in grid.get_node_ids()]


def test_every_message_is_answered_by_the_node_it_was_sent_to(pool):
    with InProcessGrid(APP, NODES, pool=pool) as grid:
        asked = messages(grid)
        replies = grid.send_and_receive(asked)
    assert [r.metadata.reply_to_message_id for r in replies] == [m.metadata.message_id for m in asked]
    assert [r.metadata.src_node_id for r in replies] == [FIRST_NODE, FIRST_NODE + 1, FIRST_NODE + 2]
    assert [r.content["arrays"]["0"].numpy()[0] for r in replies] == [1.0, 2.0, 3.0]


def test_a_nodes_state_lives_from_message_to_message_and_messages_are_copied_at_the_wall(pool):
    with InProcessGrid(APP, NODES, pool=pool) as grid:
        asked = messages(grid)
        grid.send_and_receive(asked)
        assert all("w" in message.content["arrays"] for message in asked)
        again = [m for node in grid.get_node_ids() for m in messages(grid) if m.metadata.dst_node_id == node]
        counts = [r.content["metrics"]["count"] for r in grid.send_and_receive(again + messages(grid))]
    assert counts == [2, 2, 2, 3, 3, 3]


def test_an_exception_becomes_the_error_reply_that_flowers_runtimes_send():
    (reply, *_) = InProcessGrid(echo, NODES).send_and_receive(messages(InProcessGrid(echo, NODES), "query.raise"))
    assert reply.error.code == 2
    assert "as any app may" in reply.error.reason


def test_a_dead_worker_is_an_error_reply_and_the_grid_goes_on():
    with InProcessGrid(APP, NODES[:1], workers=1) as grid:
        (reply,) = grid.send_and_receive(messages(grid, "query.die"))
        assert reply.error.code == 8
        (reply,) = grid.send_and_receive(messages(grid))
        assert reply.has_content()


def test_when_a_worker_of_a_given_pool_dies_every_site_at_work_is_answered_for_and_the_next_round_cant_begin():
    with workers(1) as pool:
        grid = InProcessGrid(APP, NODES, pool=pool)
        replies = grid.send_and_receive(messages(grid, "query.die"))
        assert [r.metadata.src_node_id for r in replies] == grid.get_node_ids()
        assert {r.error.reason for r in replies} == {"a worker process died, perhaps for lack of memory"}
        with pytest.raises(BrokenProcessPool, match="no other can take its place"):
            grid.send_and_receive(messages(grid))


def test_a_pool_that_was_broken_before_is_an_error_reply_of_every_site():
    with workers(1) as pool:
        with pytest.raises(BrokenProcessPool):
            pool.submit(os._exit, 9).result()
        grid = InProcessGrid(APP, NODES, pool=pool)
        assert [r.error.code for r in grid.send_and_receive(messages(grid))] == [8, 8, 8]


def test_a_site_that_takes_longer_than_the_timeout_is_not_heard():
    grid = InProcessGrid(echo, NODES)
    replies = grid.send_and_receive(messages(grid, "query.sleep"), timeout=0.15)
    assert [r.metadata.src_node_id for r in replies] == [FIRST_NODE, FIRST_NODE + 1]


def seen(grid: Grid) -> list[int]:
    return [int(c.state.config_records["seen"]["count"]) if "seen" in c.state.config_records else 0 for c in contexts(grid)]


def contexts(grid: Grid) -> list[Context]:
    return list(grid.contexts.values())


def test_a_site_works_when_its_answer_is_asked_for_and_one_answer_is_there_at_a_time():
    grid = InProcessGrid(echo, NODES)
    ids = grid.push_messages(messages(grid))
    assert seen(grid) == [0, 0, 0]
    for done in (1, 2, 3):
        assert len(grid.pull_messages(ids)) == 1
        assert sum(seen(grid)) == done
    assert grid.pull_messages(ids) == []


def test_a_message_says_what_it_said_when_it_was_sent():
    grid = InProcessGrid(echo, NODES[:1])
    sent = messages(grid)
    ids = grid.push_messages(sent)
    sent[0].content = RecordDict()
    [reply] = grid.pull_messages(ids)
    assert reply.content.array_records["arrays"]["0"].numpy().tolist() == [1.0, 1.0, 1.0]


def test_with_workers_every_answer_comes_once_and_nobody_works_twice(two_workers):
    grid = InProcessGrid(APP, NODES * 4, pool=two_workers)
    ids = grid.push_messages(messages(grid))
    replies = []
    while found := grid.pull_messages(ids):
        replies += found
    assert sorted(r.metadata.reply_to_message_id for r in replies) == sorted(ids)
    assert seen(grid) == [1] * 12


def test_a_node_answers_its_messages_in_the_order_of_their_sending_whichever_is_pulled(pool):
    grid = InProcessGrid(APP, NODES, pool=pool)
    first, second = (grid.push_messages(messages(grid)[:1])[0] for _ in range(2))
    [reply] = grid.pull_messages([second])
    assert reply.content["metrics"]["count"] == 2
    [reply] = grid.pull_messages([first])
    assert reply.content["metrics"]["count"] == 1


def test_a_grid_says_how_long_a_site_worked_and_not_how_long_it_waited_for_its_turn():
    grid = InProcessGrid(echo, NODES)
    ids, start = list(grid.push_messages(messages(grid, "query.sleep"))), time.perf_counter()
    while grid.pull_messages(ids):
        pass
    took = [grid.took(i) for i in ids]
    assert took[1] >= 0.1
    assert took[2] >= 0.2
    assert sum(took) <= time.perf_counter() - start
    with pytest.raises(KeyError):
        grid.took("never sent")


def test_an_answer_that_took_longer_than_its_message_lives_is_not_delivered():
    grid = InProcessGrid(echo, [{"plus": 0}, {"plus": 6}, {"plus": 0}])
    ids = grid.push_messages(messages(grid, "query.sleep", ttl=0.5))
    answers = [found for _ in range(3) for found in grid.pull_messages(ids)]
    assert [answer.metadata.src_node_id for answer in answers] == [FIRST_NODE, FIRST_NODE + 2]


def test_a_message_whose_time_is_over_is_not_worked_on():
    grid = InProcessGrid(echo, NODES)
    late = messages(grid, ttl=1.0)
    for message in late:
        message.metadata.created_at -= 10
    assert grid.send_and_receive(late) == []
    assert all(not context.state for context in grid.contexts.values())


def test_flowers_own_strategies_run_on_it():
    def evaluate(number, arrays):
        return MetricRecord({"mean": float(arrays["0"].numpy().mean())})

    app = ClientApp()

    @app.train()
    def one_step(message: Message, context: Context) -> Message:
        array = message.content["arrays"]["0"].numpy() + float(context.node_config["plus"])
        return Message(
            RecordDict({"arrays": ArrayRecord([array]), "metrics": MetricRecord({"num-examples": 1})}), reply_to=message
        )

    strategy = FedAvg(fraction_evaluate=0.0)
    start = ArrayRecord([np.zeros(2, np.float32)])
    result = strategy.start(InProcessGrid(app, NODES), start, num_rounds=3, evaluate_fn=evaluate)
    assert result.evaluate_metrics_serverapp[3]["mean"] == pytest.approx(3.0)  # the mean of 0, 1, 2, three times


def test_workers_must_be_able_to_import_the_app():
    with pytest.raises(ValueError, match="import path"):
        InProcessGrid(echo, NODES, workers=1)


def test_a_study_has_the_same_numbers_at_any_number_of_workers(new_hospitals, two_workers):
    ends = []
    for pool in (None, two_workers):
        hospitals = new_hospitals(f"{pool is None}")
        for name in ("a", "b", "c"):
            hospitals.add(name)
        study = hospitals.study()
        with InProcessGrid("fl_client.app:app", hospitals.nodes, {"study": study.to_json()}, pool=pool) as grid:
            state, record = run(grid, study, initial_state(study), folder=hospitals.folder / "run")
        assert record.verdict == "complete"
        ends.append(state)
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
