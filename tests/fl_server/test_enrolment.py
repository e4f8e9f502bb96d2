import itertools
from importlib.metadata import version
from types import SimpleNamespace

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from conf.study import Study
from fl_server import enrolment, rounds
from fl_server.enrolment import LATE_S, Enrolment
from fl_server.live import Now
from fl_server.prompt_grid import PromptGrid
from simulation.grid import FIRST_NODE, InProcessGrid

A, B, C = FIRST_NODE, FIRST_NODE + 1, FIRST_NODE + 2


class Clock:
    """In place of the module `time`: nobody waits, and busy machines change no number."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


class WaitingGrid(InProcessGrid):
    """Waits for answers as Flower's own grids do. Node a, b, c; some connect late, some never answer."""

    def __init__(self, app, study, clock, *, silent=(), connect_s=None):
        super().__init__(app, [{"name": name} for name in "abc"], {"study": study.to_json()})
        self.silent, self.clock = set(silent), clock
        self.connect = {node: clock.now + seconds for node, seconds in (connect_s or {}).items()}
        self.asked = []  # the node of every enrolment question
        self.lost = {}  # questions of silent nodes, by id

    def get_node_ids(self):
        return [node for node in super().get_node_ids() if self.connect.get(node, 0) <= self.clock.now]

    def push_messages(self, messages):
        ids = []
        for message in messages:
            node = message.metadata.dst_node_id
            if message.metadata.message_type == "query.enroll":
                self.asked.append(node)
            if node in self.silent:
                message.metadata.__dict__["_message_id"] = f"lost {len(self.asked)}"
                self.lost[message.metadata.message_id] = message
                ids.append(message.metadata.message_id)
            else:
                ids += super().push_messages([message])
        return ids

    def speak(self):
        """The silent nodes answer what they were asked."""
        self.silent.clear()
        for lost, message in self.lost.items():
            InProcessGrid.push_messages(self, [message])
            [reply] = InProcessGrid.pull_messages(self, [message.metadata.message_id])
            reply.metadata.__dict__["_reply_to_message_id"] = lost
            self._replies[lost] = reply


def hospitals(*, errors=0, refusal=lambda name: ""):
    """An app that says who it is, and answers every round with what it was sent; b's first answers are errors.

    `refusal` is why a hospital does not take part at this moment.
    """
    app, seen = ClientApp(), []

    @app.query("enroll")
    def enroll(message: Message, context: Context) -> Message:
        if context.node_config["name"] == "b" and len(seen) < errors:
            seen.append("error")
            reply = Message(Error(8, "stopped responding"), reply_to=message)
            reply.metadata.__dict__["_src_node_id"] = 1  # as Flower's SuperLink writes errors
            return reply
        name = context.node_config["name"]
        no = refusal(name)
        answer = ConfigRecord({"site": name, "declared-size": 5, "takes-part": not no, "reason": no, "delta": 1e-3})
        return Message(RecordDict({"enrolment": answer}), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        arrays = ArrayRecord({"w": Array(message.content["arrays"]["w"].numpy())})
        return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 5})}), reply_to=message)

    return app


def study_of(**settings):
    fields = {"konsil_version": version("konsil"), "task": {"name": "none"}, "rounds": 3, "sites": ("a", "b", "c")}
    return Study.model_validate({**fields, **settings})


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(enrolment, "time", clock)
    monkeypatch.setattr(rounds, "_trainable", lambda study: ["w"])
    return clock


def over(grid, study, folder, *, enrol_timeout_s):
    """What became of every site in every round, and the seconds that all of it took on the clock."""
    start = grid.clock.now
    _, record = rounds.run(grid, study, {"w": torch.zeros(2)}, folder=folder, enrol_timeout_s=enrol_timeout_s)
    found = {name: [entry.sites[name].answer for entry in record.rounds] for name in study.sites}
    return found, grid.clock.now - start, record


def test_a_silent_node_costs_the_enrolment_time_and_no_round_waits_for_it_again(clock, tmp_path):
    study = study_of()
    grid = WaitingGrid(hospitals(), study, clock, silent={B})
    found, seconds, _ = over(grid, study, tmp_path, enrol_timeout_s=60)
    assert found == {"a": ["used"] * 3, "b": ["absent"] * 3, "c": ["used"] * 3}
    assert seconds == pytest.approx(60)
    assert grid.asked.count(B) == 1


def test_without_enrolment_time_the_first_round_still_waits_a_little_for_connected_nodes(clock, tmp_path):
    study = study_of()
    found, seconds, _ = over(WaitingGrid(hospitals(), study, clock, silent={B}), study, tmp_path, enrol_timeout_s=0)
    assert found == {"a": ["used"] * 3, "b": ["absent"] * 3, "c": ["used"] * 3}
    assert seconds == pytest.approx(LATE_S)


def test_an_answer_that_comes_after_the_wait_is_heard_before_the_next_round(clock):
    study = study_of()
    found, grid = Enrolment(study), WaitingGrid(hospitals(), study, clock, silent={B})
    found.wait(grid, timeout_s=60)
    assert list(found.nodes.values()) == ["a", "c"]
    grid.speak()
    found.before_round(grid)
    assert list(found.nodes.values()) == ["a", "b", "c"]
    assert sorted(grid.asked) == [A, B, C]


def test_a_silent_node_is_asked_again_when_the_time_of_its_question_is_over(clock):
    study = study_of(strategy={"round_timeout_s": 100})
    found, grid = Enrolment(study), WaitingGrid(hospitals(), study, clock, silent={B})
    found.wait(grid, timeout_s=60)
    found.before_round(grid)
    assert grid.asked.count(B) == 1
    clock.sleep(50)
    found.before_round(grid)
    assert (grid.asked.count(A), grid.asked.count(B)) == (1, 2)
    assert clock.now == pytest.approx(1000 + 60 + 50 + LATE_S)


def test_a_node_that_answered_with_an_error_is_asked_again_before_the_next_round(clock, tmp_path):
    study = study_of()
    found, seconds, record = over(WaitingGrid(hospitals(errors=2), study, clock), study, tmp_path, enrol_timeout_s=0)
    assert found == {"a": ["used"] * 3, "b": ["absent", "used", "used"], "c": ["used"] * 3}
    assert record.rounds[0].sites["b"].reason.endswith("without a name answered node 3: stopped responding")
    assert seconds == 0


def test_while_hospitals_enrol_an_error_is_asked_about_again_but_not_at_once(clock, tmp_path):
    study = study_of()
    grid = WaitingGrid(hospitals(errors=2), study, clock)
    found, seconds, record = over(grid, study, tmp_path, enrol_timeout_s=60)
    assert (found["b"], record.verdict) == (["used"] * 3, "complete")
    assert seconds == pytest.approx(2 * LATE_S)
    assert grid.asked.count(B) == 3


def test_a_node_that_connects_while_hospitals_enrol_takes_part_from_the_first_round(clock, tmp_path):
    study = study_of()
    grid = WaitingGrid(hospitals(), study, clock, connect_s={C: 20})
    _, seconds, record = over(grid, study, tmp_path, enrol_timeout_s=60)
    assert record.verdict == "complete"
    assert seconds == pytest.approx(20)


def test_a_node_that_connects_later_takes_part_from_a_later_round_beside_a_silent_one(clock):
    study = study_of()
    found, grid = Enrolment(study), WaitingGrid(hospitals(), study, clock, silent={B}, connect_s={C: 100})
    found.wait(grid, timeout_s=60)
    found.before_round(grid)
    assert list(found.nodes.values()) == ["a"]
    clock.sleep(100)  # a round
    found.before_round(grid)
    assert list(found.nodes.values()) == ["a", "c"]
    assert clock.now == pytest.approx(1000 + 60 + 100)


def test_when_all_planned_hospitals_have_answered_nobody_else_is_asked(clock):
    study = study_of(sites=("a", "b"))
    found, grid = Enrolment(study), WaitingGrid(hospitals(), study, clock, connect_s={C: 100})
    found.wait(grid, timeout_s=60)
    clock.sleep(100)
    found.before_round(grid)
    assert grid.asked == [A, B]
    assert found.sizes == {"a": 5, "b": 5}


class RegisteredGrid(WaitingGrid):
    """A grid whose coordinator has registered the nodes' keys under names."""

    def __init__(self, app, study, clock, names):
        super().__init__(app, study, clock)
        self.names = names

    def get_nodes(self):
        return [SimpleNamespace(node_id=node, name=self.names[node]) for node in self.get_node_ids()]


def test_a_node_is_the_hospital_that_its_key_is_registered_for_whatever_it_says(clock):
    study = study_of()
    found = Enrolment(study)
    found.wait(PromptGrid(RegisteredGrid(hospitals(), study, clock, {A: "a", B: "c", C: "other"})), timeout_s=0)
    assert found.nodes == {A: "a"}  # b's node has the key of c, and c's that of a hospital outside the study
    assert found.reasons == {"c": "its key is registered for c, but it says it is b; name in its site.yaml"}
    assert found.missing("b").reason == "no node has enrolled under this name"


DAY = 24 * 3600.0


def undecided(clock, *, until_s):
    """Hospitals of which a says yes at once, and the others when somebody there has approved; and who was asked when."""
    start, asked = clock.now, []

    def refusal(name):
        asked.append((name, clock.now - start))
        return "not approved here" if name != "a" and clock.now - start < until_s else ""

    return hospitals(refusal=refusal), asked


def waits(grid, study, folder, *, patience_s, **settings):
    """As `over`, with patience for people who decide."""
    start = grid.clock.now
    given = {"enrol_timeout_s": 60.0, "quorum_timeout_s": patience_s, **settings}
    _, record = rounds.run(grid, study, {"w": torch.zeros(2)}, folder=folder, **given)
    found = {name: [entry.sites[name].answer for entry in record.rounds] for name in study.sites}
    return found, grid.clock.now - start, record


def test_a_study_waits_for_approvals_and_loses_no_round_to_them(clock, tmp_path):
    study = study_of(strategy={"quorum": 3})
    app, asked = undecided(clock, until_s=3 * DAY)
    found, seconds, record = waits(WaitingGrid(app, study, clock), study, tmp_path, patience_s=14 * DAY)
    assert found == {name: ["used"] * 3 for name in "abc"}
    assert record.verdict == "complete"
    assert 3 * DAY <= seconds <= 3 * DAY + 600 + 60
    assert [name for name, _ in asked].count("a") == 1  # who has said yes is not asked again
    pauses = [later - sooner for (_, sooner), (_, later) in itertools.pairwise(one for one in asked if one[0] == "b")]
    assert 60 <= pauses[0] < 70
    assert 600 <= max(pauses) < 610
    assert len(pauses) < 500


def test_while_it_waits_it_tells_for_whom_and_why(clock, tmp_path, monkeypatch):
    study = study_of(strategy={"quorum": 2})
    app, _ = undecided(clock, until_s=DAY)
    grid, seen = WaitingGrid(app, study, clock, connect_s={C: 2 * DAY}), []

    class Looking(Clock):
        def sleep(self, seconds):
            now = Now.read(tmp_path)
            if now.needed and now.missing not in [one.missing for one in seen]:
                seen.append(now)
            clock.sleep(seconds)
            self.now = clock.now

    monkeypatch.setattr(enrolment, "time", Looking())
    waits(grid, study, tmp_path, patience_s=14 * DAY)
    (now,) = seen
    assert (now.phase, now.needed, now.round) == ("enrolling", 2, 0)
    assert now.missing == {"b": "not approved here", "c": "no machine is connected under this name"}
    assert now.awaited == ["b", "c"]
    assert now.deadline - now.began == pytest.approx(14 * DAY, abs=5)
    after = Now.read(tmp_path)
    assert (after.phase, after.needed, after.missing) == ("ended", 0, {})


def test_before_its_first_round_a_study_can_wait_for_more_than_its_quorum(clock, tmp_path):
    study = study_of(strategy={"quorum": 1})
    app, _ = undecided(clock, until_s=DAY)
    found, seconds, _ = waits(WaitingGrid(app, study, clock), study, tmp_path, patience_s=14 * DAY, wait_for=3)
    assert found == {name: ["used"] * 3 for name in "abc"}
    assert seconds >= DAY


def test_when_patience_is_at_its_end_it_goes_on_with_those_who_are_there(clock, tmp_path):
    app, _ = undecided(clock, until_s=100 * DAY)
    enough = study_of(strategy={"quorum": 1})
    found, seconds, _ = waits(WaitingGrid(app, enough, clock), enough, tmp_path / "one", patience_s=DAY, wait_for=3)
    assert found == {"a": ["used"] * 3, "b": ["declined"] * 3, "c": ["declined"] * 3}
    assert seconds == pytest.approx(DAY)
    few = study_of(strategy={"quorum": 2})
    found, seconds, record = waits(WaitingGrid(app, few, clock), few, tmp_path / "two", patience_s=DAY)
    assert found == {"a": ["absent"] * 3, "b": ["declined"] * 3, "c": ["declined"] * 3}
    assert seconds == pytest.approx(DAY)  # once, and not before every round
    assert "rounds 1 to 3: a absent (not asked: 1 of the 2 hospitals that a round needs take part)" in record.reasons
    assert "rounds 1 to 3: b declined (not approved here)" in record.reasons


def test_without_patience_nobody_is_waited_for(clock, tmp_path):
    study = study_of(strategy={"quorum": 2})
    app, _ = undecided(clock, until_s=DAY)
    found, seconds, _ = waits(WaitingGrid(app, study, clock), study, tmp_path, patience_s=0.0)
    assert set(found["b"]) == {"declined"}
    assert seconds < 60
