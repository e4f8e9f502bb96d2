import inspect
import re

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.superlink.grid import HttpGrid, http_grid

from fl_client.packed import packed_mod
from fl_server import prompt_grid
from fl_server.prompt_grid import BLOCK, PromptGrid
from simulation.grid import FIRST_NODE, InProcessGrid

INFINITE = b'[["a","<f4",[1e999]]]'


class Clock:
    def __init__(self):
        self.now, self.waits = 0.0, []

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.waits.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(prompt_grid, "time", clock)
    return clock


class Later(InProcessGrid):
    """Every node's answer is there so many seconds after the question."""

    def __init__(self, app, clock, seconds):
        super().__init__(app, [{} for _ in seconds])
        self.clock, self.due = clock, {}
        self.seconds = dict(zip(self.contexts, seconds, strict=True))

    def push_messages(self, messages):
        ids = super().push_messages(messages)
        for message in messages:
            self.due[message.metadata.message_id] = self.clock.now + self.seconds[message.metadata.dst_node_id]
        return ids

    def pull_messages(self, message_ids):
        return super().pull_messages([i for i in message_ids if self.due[i] <= self.clock.now])


def echo(*mods):
    """Answers with twice what came, and says under which names it came."""
    app = ClientApp(mods=list(mods))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        came = message.content["arrays"]
        if list(came) == [BLOCK]:
            return Message(RecordDict({"arrays": came, "metrics": MetricRecord({"n": 1})}), reply_to=message)
        twice = ArrayRecord({name: Array(2 * array.numpy()) for name, array in came.items()})
        return Message(RecordDict({"arrays": twice, "metrics": MetricRecord({"n": len(came)})}), reply_to=message)

    return app


def questions(*nodes):
    arrays = ArrayRecord({"a": Array(np.arange(4.0)), "b": Array(np.ones((2, 3), np.float32))})
    content = RecordDict({"arrays": arrays, "config": ConfigRecord({"server-round": 1})})
    return [Message(content, node, "train", group_id="1", ttl=60) for node in nodes]


def test_a_round_is_over_soon_after_its_last_answer(clock):
    for slowest in (0.3, 5.0, 100.0, 1800.0):
        grid = PromptGrid(Later(echo(packed_mod), clock, [0.0, slowest]))
        start = clock.now
        assert len(grid.send_and_receive(questions(FIRST_NODE, FIRST_NODE + 1), timeout=3600)) == 2
        assert clock.now - start - slowest <= min(max(0.2, 0.0205 * slowest), 2.0)


def test_when_all_have_answered_nobody_waits(clock):
    grid = PromptGrid(Later(echo(packed_mod), clock, [0.0]))
    assert len(grid.send_and_receive(questions(FIRST_NODE), timeout=3600)) == 1
    assert clock.waits == []


def test_who_has_not_answered_in_time_is_left_out(clock):
    grid = PromptGrid(Later(echo(packed_mod), clock, [1.0, 11.0]))
    answers = grid.send_and_receive(questions(FIRST_NODE, FIRST_NODE + 1), timeout=10)
    assert [answer.metadata.src_node_id for answer in answers] == [FIRST_NODE]
    assert clock.now == pytest.approx(10)


def test_a_long_round_is_not_a_busy_one(clock):
    grid = PromptGrid(Later(echo(packed_mod), clock, [3600.0]))
    grid.send_and_receive(questions(FIRST_NODE), timeout=7200)
    assert len(clock.waits) < 2000


def test_arrays_travel_as_one_block_and_nobody_on_either_side_sees_it(clock):
    wire = []

    class Tapped(Later):
        def push_messages(self, messages):
            wire.extend([list(message.content["arrays"]) for message in messages])
            return super().push_messages(messages)

        def pull_messages(self, message_ids):
            answers = super().pull_messages(message_ids)
            wire.extend([list(answer.content["arrays"]) for answer in answers])
            return answers

    asked = questions(FIRST_NODE, FIRST_NODE + 1)
    answers = PromptGrid(Tapped(echo(packed_mod), clock, [0.0, 0.0])).send_and_receive(asked, timeout=10)
    assert wire == [[BLOCK]] * 4
    assert [list(question.content["arrays"]) for question in asked] == [["a", "b"]] * 2
    for answer in answers:
        assert answer.content["metrics"]["n"] == 2
        assert answer.content["arrays"]["a"].numpy().tolist() == [0.0, 2.0, 4.0, 6.0]
        assert answer.content["arrays"]["b"].numpy().dtype == np.float32
    assert {answer.metadata.reply_to_message_id for answer in answers} == {q.metadata.message_id for q in asked}


def test_a_hospital_that_is_asked_in_plain_arrays_answers_in_plain_arrays(clock):
    [answer] = InProcessGrid(echo(packed_mod), [{}]).send_and_receive(questions(FIRST_NODE))
    assert list(answer.content["arrays"]) == ["a", "b"]


@pytest.mark.parametrize("block", [b"abc", len(INFINITE).to_bytes(8, "little") + INFINITE])
def test_a_block_that_can_not_be_read_is_passed_on_as_it_is(clock, block):
    broken = ArrayRecord({BLOCK: Array("uint8", (len(block),), BLOCK, block)})

    class Forging(Later):
        def pull_messages(self, message_ids):
            answers = super().pull_messages(message_ids)
            for answer in answers:
                answer.content["arrays"] = broken
            return answers

    [answer] = PromptGrid(Forging(echo(packed_mod), clock, [0.0])).send_and_receive(questions(FIRST_NODE), timeout=1)
    assert list(answer.content["arrays"]) == [BLOCK]
    message = Message(RecordDict({"arrays": broken, "config": ConfigRecord({})}), FIRST_NODE, "train", ttl=60)
    [answer] = InProcessGrid(echo(packed_mod), [{}]).send_and_receive([message])
    assert list(answer.content["arrays"]) == [BLOCK]


def test_flowers_grid_still_has_what_is_used_of_it():
    for name in ("push_messages", "pull_messages", "get_node_ids"):
        assert list(inspect.signature(getattr(HttpGrid, name)).parameters) == list(
            inspect.signature(getattr(Grid, name)).parameters
        )
    assert callable(HttpGrid.get_nodes)
    assert {"node_id", "name"} <= {field.name for field in NodeInfo.DESCRIPTOR.fields}
    assert "time.sleep(3)" in inspect.getsource(HttpGrid.send_and_receive)  # the reason for all this


def test_parts_of_an_answer_that_are_still_on_their_way_are_looked_for_again_soon(clock, monkeypatch):
    monkeypatch.setattr(http_grid.pull_objects, "__kwdefaults__", dict(http_grid.pull_objects.__kwdefaults__))
    call = inspect.getsource(HttpGrid.pull_messages).split("pull_objects(", 1)[1].split("except")[0]
    assert not re.search("initial_backoff|backoff_cap|max_tries_per_object", call)  # Flower's grid takes the defaults
    PromptGrid(Later(echo(packed_mod), clock, [0.0]))
    assert http_grid.pull_objects.__kwdefaults__["initial_backoff"] == 0.1
    assert http_grid.pull_objects.__kwdefaults__["max_time"] >= 3600


def test_nodes_go_by_the_names_that_their_keys_are_registered_under():
    class Node:
        def __init__(self, node_id, name):
            self.node_id, self.name = node_id, name

    class Deployed(InProcessGrid):
        def get_nodes(self):
            return [Node(FIRST_NODE, "clinic")]

    assert PromptGrid(Deployed(ClientApp(), [{}])).names() == {FIRST_NODE: "clinic"}
    assert PromptGrid(InProcessGrid(ClientApp(), [{}, {}])).names() == {FIRST_NODE: "", FIRST_NODE + 1: ""}
