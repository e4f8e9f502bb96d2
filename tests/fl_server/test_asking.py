"""Questions to hospitals that answer late, twice, unreadably, or go away: on a grid with a clock of the test's own."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity

from fl_server import asking
from fl_server.asking import BACK_S, Asking
from fl_server.strategy import Rounds

A, B, C = 11, 12, 13
NAMES = {A: "a", B: "b", C: "c"}
TIMEOUT_S = 100.0


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        assert seconds > 0
        self.now += seconds


class Scripted(Grid):
    """Node -> what comes of each time it is asked: (seconds until it is there, what), or None for silence."""

    def __init__(self, clock, script, *, online=None):
        self.clock, self.script, self.online = clock, {node: list(steps) for node, steps in script.items()}, online or {}
        self.questions, self.due = [], {}
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1  # without which no message can be made

    def set_run(self, run):
        pass

    run = None

    def create_message(self, *given, **named):
        raise NotImplementedError

    def get_node_ids(self):
        return [node for node in NAMES if self.clock() >= self.online.get(node, 0.0)]

    def push_messages(self, messages):
        ids = []
        for message in messages:
            key = f"q{len(self.questions)}"
            message.metadata.__dict__["_message_id"] = key
            self.questions.append(message)
            node = message.metadata.dst_node_id
            step = self.script[node].pop(0) if self.script[node] else None
            if step is not None:
                self.due[key] = (self.clock() + step[0], message, step[1])
            ids.append(key)
        return ids

    def pull_messages(self, message_ids):
        ready = [key for key in message_ids if key in self.due and self.due[key][0] <= self.clock()]
        replies = []
        for key in ready:
            _, question, what = self.due[key]
            if what == "unreadable":
                raise ValueError("Expecting value: line 1 column 1")
            del self.due[key]
            if isinstance(what, tuple):  # its parts take so long to come in
                self.clock.sleep(what[0])
                what = what[1]
            replies.append(self.answer(question, what))
        return replies

    def answer(self, question, what):
        if isinstance(what, int):
            reply = Message(Error(what, "said by the SuperLink"), reply_to=question)
            reply.metadata.__dict__["_src_node_id"] = 1
            return reply
        arrays = ArrayRecord({"w": Array(np.full(2, what, np.float32))})
        metrics = MetricRecord({"num-examples": 1})
        reply = Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=question)
        reply.metadata.__dict__["_src_node_id"] = question.metadata.dst_node_id
        return reply

    def send_and_receive(self, messages, *, timeout=None):
        raise NotImplementedError


@pytest.fixture
def clock(monkeypatch):
    found = Clock()
    monkeypatch.setattr(asking.time, "sleep", found.sleep)
    return found


def round_of(clock, script, *, retries=1, online=None, timeouts=None):
    grid = Scripted(clock, script, online=online)
    strategy = Rounds(FedAvg(), nodes=NAMES, deadline_s=TIMEOUT_S, deadlines_s=timeouts, ttl_s=2 * TIMEOUT_S)
    sent = ArrayRecord({"w": Array(np.zeros(2, np.float32))})
    questions = strategy.configure_train(1, sent, ConfigRecord(), grid)
    under_way = Asking(grid, clock)
    start = clock()
    unseen = under_way.ask(strategy, questions, timeout_s=TIMEOUT_S, timeouts_s=timeouts, retries=retries)
    seconds = clock() - start
    arrays, _ = strategy.finish(1)
    answers = {**strategy.answers[1], **unseen}
    return grid, strategy, under_way, answers, None if arrays is None else float(arrays["w"].numpy()[0]), seconds


def kinds(answers):
    return {site: entry.answer for site, entry in answers.items()}


def test_a_round_ends_with_its_last_answer(clock):
    *_, answers, model, seconds = round_of(clock, {A: [(1, 3.0)], B: [(5, 6.0)], C: [(20, 9.0)]})
    assert (kinds(answers), model) == ({"a": "used", "b": "used", "c": "used"}, 6.0)
    assert 20 <= seconds < 23
    assert answers["c"].seconds == pytest.approx(20, abs=3)


def test_a_silent_hospital_is_waited_for_until_the_rounds_end_and_told_as_late_when_it_answers_then(clock):
    _, strategy, under_way, answers, model, seconds = round_of(clock, {A: [(1, 3.0)], B: [(150, 6.0)], C: [None]})
    assert (kinds(answers), model) == ({"a": "used", "b": "absent", "c": "absent"}, 3.0)
    assert seconds == pytest.approx(TIMEOUT_S, abs=3)
    assert list(under_way.late()) == []
    clock.now += 60
    ((number, site, entry),) = under_way.late()
    assert (number, site, entry.answer) == (1, "b", "late")
    assert strategy.answers[1]["b"].answer == "late"
    clock.now += 1000
    assert list(under_way.late()) == []


@pytest.mark.parametrize(
    "code", [ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE, ErrorCode.CLIENT_APP_CRASHED]
)
def test_what_was_lost_is_asked_for_again_with_the_time_that_is_left(clock, code):
    grid, *_, answers, model, _ = round_of(clock, {A: [(10, code), (2, 3.0)], B: [(1, 3.0)], C: [(1, 3.0)]})
    assert (kinds(answers), model) == ({"a": "used", "b": "used", "c": "used"}, 3.0)
    assert answers["a"].attempts == 2
    assert len(grid.questions) == 4
    left = grid.questions[-1].content["config"]["left-s"]
    assert TIMEOUT_S - 20 < left < TIMEOUT_S - 10


def test_it_is_asked_no_more_often_than_the_study_says(clock):
    code = ErrorCode.REPLY_MESSAGE_UNAVAILABLE
    grid, *_, answers, _, _ = round_of(clock, {A: [(1, code)] * 9, B: [(1, 3.0)], C: [(1, 3.0)]}, retries=2)
    assert (answers["a"].answer, answers["a"].attempts, len(grid.questions)) == ("absent", 3, 5)
    assert "its answer was lost on the way (asked 3 times)" in answers["a"].reason


def test_a_no_is_not_asked_again(clock):
    grid, *_, answers, _, _ = round_of(clock, {A: [(1, 100), (1, 3.0)], B: [(1, 3.0)], C: [(1, 3.0)]})
    assert len(grid.questions) == 3
    assert answers["a"].answer != "used"


def test_a_machine_that_comes_back_during_the_round_is_asked_again(clock):
    script = {A: [(1, ErrorCode.NODE_UNAVAILABLE), (5, 3.0)], B: [(60, 3.0)], C: [(1, 3.0)]}
    *_, answers, _, seconds = round_of(clock, script, online={A: clock() + 40})
    assert kinds(answers) == {"a": "used", "b": "used", "c": "used"}
    assert seconds < 65


def test_a_machine_that_stays_away_does_not_cost_the_whole_round(clock, monkeypatch):
    monkeypatch.setattr(asking, "BACK_S", 30.0)
    script = {A: [(1, ErrorCode.NODE_UNAVAILABLE)], B: [(2, 3.0)], C: [(1, 3.0)]}
    *_, answers, model, seconds = round_of(clock, script, online={A: clock() + 10**6})
    assert (kinds(answers), model) == ({"a": "absent", "b": "used", "c": "used"}, 3.0)
    assert "its machine went offline during the round" in answers["a"].reason
    assert 30 < seconds < 40
    assert BACK_S > 60  # a restart takes less


def test_an_answer_that_nobody_can_read_is_one_hospitals_and_the_others_count(clock):
    *_, answers, model, _ = round_of(clock, {A: [(1, "unreadable")], B: [(1, 3.0)], C: [(1, 3.0)]})
    assert (kinds(answers), model) == ({"a": "quarantined", "b": "used", "c": "used"}, 3.0)
    assert answers["a"].reason == "its answer can't be read"


def test_an_answer_that_takes_for_ever_to_come_in_makes_nobody_else_late(clock):
    *_, answers, model, _ = round_of(clock, {A: [(50, (80, 3.0))], B: [(60, 3.0)], C: [(1, 3.0)]})
    assert (kinds(answers)["b"], kinds(answers)["c"], model) == ("used", "used", 3.0)


def test_a_hospital_with_less_time_is_not_waited_for_and_one_with_more_is(clock):
    script = {A: [(50, 3.0)], B: [(150, 5.0)], C: [(1, 4.0)]}
    _, strategy, under_way, answers, model, seconds = round_of(clock, script, timeouts={"a": 40.0, "b": 200.0})
    assert (kinds(answers), model) == ({"a": "absent", "b": "used", "c": "used"}, 4.5)
    assert 150 <= seconds < 153
    ((_, site, entry),) = under_way.late()
    assert (site, entry.answer) == ("a", "late")
    assert strategy.answers[1]["a"].answer == "late"


def test_a_round_is_over_when_nobodys_time_is_left(clock):
    *_, answers, model, seconds = round_of(clock, {A: [None], B: [(50, 5.0)], C: [None]}, timeouts={"a": 30.0, "c": 60.0})
    assert (kinds(answers), model) == ({"a": "absent", "b": "used", "c": "absent"}, 5.0)
    assert 60 <= seconds < 63


@pytest.mark.parametrize("after", [40.0, 39.9, 38.5])
def test_an_answer_that_came_just_in_time_counts_whenever_it_is_seen(clock, after):
    script = {A: [(after, 3.0)], B: [(90, 3.0)], C: [(1, 3.0)]}
    *_, answers, _, _ = round_of(clock, script, timeouts={"a": 40.0})
    assert answers["a"].answer == "used"
    assert answers["a"].seconds <= 40.0


def test_a_question_is_valid_for_as_much_longer_as_its_hospital_has_time(clock):
    grid, *_ = round_of(clock, {A: [(1, 3.0)], B: [(1, 3.0)], C: [(1, 3.0)]}, timeouts={"a": 40.0, "b": 200.0})
    assert [question.metadata.ttl for question in grid.questions] == [140.0, 300.0, 200.0]


def test_a_lost_answer_is_not_asked_for_again_when_its_hospitals_time_is_over(clock):
    code = ErrorCode.REPLY_MESSAGE_UNAVAILABLE
    grid, *_, answers, _, _ = round_of(clock, {A: [(38, code), (1, 3.0)], B: [(90, 3.0)], C: [(1, 3.0)]}, timeouts={"a": 40.0})
    assert (answers["a"].answer, len(grid.questions)) == ("absent", 3)
