"""Every fault alone, and all of them together: the run ends, nobody is lost without a word, and the others' model is theirs.

Four small hospitals, three rounds under privacy; the fault is in round 2 at hospital d. What the model has to be equal to, bit
for bit, is another run: one that nobody disturbed, or one in which d's answer to round 2 got nowhere.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message
from pydantic import ValidationError

import simulation.faults.grid as faulty
from conf.study import LocalTraining, Privacy, Strategy, Study
from fl_client.app import ledger_of
from fl_client.cohort import Cohort
from fl_client.site import Budget
from fl_server.record import Record
from fl_server.rounds import run
from fl_server.weights import State, initial_state
from simulation.__main__ import settings_of
from simulation.arms import Arm
from simulation.faults.accounting import Account, Cases, account, cases
from simulation.faults.plan import KNOWN, Plan, planned
from simulation.grid import FIRST_NODE, InProcessGrid
from simulation.settings import read, sentences

NAMES = ("a", "b", "c", "d")


class Listening(InProcessGrid):
    """A wire that remembers what has come out of each hospital: the digests of its answers to training."""

    left: dict[str, set[str]] = {}

    def pull_messages(self, message_ids):
        replies = super().pull_messages(message_ids)
        for reply in replies:
            if not reply.has_error() and reply.content.array_records:
                digest = str([array.data for record in reply.content.array_records.values() for array in record.values()])
                self.left.setdefault(NAMES[reply.metadata.src_node_id - FIRST_NODE], set()).add(digest)
        return replies


class Keeping(InProcessGrid):
    """A wire that keeps the weights of each question and answer of training, by round and hospital."""

    sent: dict[tuple[str, str], State] = {}
    answered: dict[tuple[str, str], State] = {}

    def push_messages(self, messages):
        messages = list(messages)
        for message in messages:
            if message.metadata.message_type == "train":
                self.sent[message.metadata.group_id, NAMES[message.metadata.dst_node_id - FIRST_NODE]] = weights(message)
        return super().push_messages(messages)

    def pull_messages(self, message_ids):
        replies = super().pull_messages(message_ids)
        for reply in replies:
            if reply.has_content() and reply.metadata.message_type == "train":
                self.answered[reply.metadata.group_id, NAMES[reply.metadata.src_node_id - FIRST_NODE]] = weights(reply)
        return replies


def weights(message: Message) -> State:
    """In float64, so that sums of them are exact enough to compare with."""
    (record,) = message.content.array_records.values()
    return {name: torch.from_numpy(array.numpy()).double() for name, array in record.items()}


class Deaf(InProcessGrid):
    """A wire on which nothing arrives of what hospital d answers in the rounds `deaf_in`."""

    deaf_in: tuple[int, ...] = ()

    def pull_messages(self, message_ids):
        return [reply for reply in super().pull_messages(message_ids) if not self._from_d(reply)]

    def _from_d(self, reply: Message) -> bool:
        return reply.metadata.src_node_id == FIRST_NODE + 3 and reply.metadata.group_id in map(str, self.deaf_in)


@dataclass
class Ended:
    """A run that came to its end."""

    state: State
    record: Record
    hospitals: Any
    left: dict[str, set[str]]

    def answers(self, site: str) -> list[str]:
        return [entry.sites[site].answer for entry in self.record.rounds]

    def paid(self, site: str) -> int:
        return sum(event.study == self.record.study_hash for event in ledger_of(self.hospitals.site(site)).events)

    @property
    def others(self) -> set[str]:
        return {answer for name in NAMES[:3] for answer in self.answers(name)}


class World:
    """The four hospitals as they were, and the study; every run gets copies."""

    def __init__(self, folder: Path, hospitals_in: Callable[[Path], Any]) -> None:
        self.folder, self.hospitals_in = folder, hospitals_in
        self.runs = 0
        before = self._hospitals(folder / "before", fill=True)
        self.study = before.study(
            rounds=3,
            training=LocalTraining(views=1),
            privacy=Privacy(epsilon=8.0),
            strategy=Strategy(quorum=2, outlier_factor=5.0, round_timeout_s=600.0),
        )
        self.start = initial_state(self.study)
        self.kept: dict[str, Ended] = {}

    def _hospitals(self, place: Path, *, fill: bool) -> Any:
        small = self.hospitals_in(place)
        for name, size in zip(NAMES, (5, 10, 25, 10), strict=True):
            small.add(name, patients=2 if fill else 0, declared_size=size, budget=Budget(epsilon=12.0, delta=1e-3))
        return small

    def place(self) -> Any:
        self.runs += 1
        place = self.folder / str(self.runs)
        shutil.copytree(self.folder / "before", place)
        return self._hospitals(place, fill=False)

    def with_faults(self, *plan: dict[str, Any], study: Study | None = None) -> Ended:
        hospitals = self.place()
        Listening.left = {}
        state, record = faulty.federate(
            Plan.model_validate({"plan": plan}), study or self.study, hospitals.sites, self.start, hospitals.folder / "run"
        )
        return Ended(state, record, hospitals, Listening.left)

    def without(self, *deaf_in: int, change: Callable[[Any], None] = lambda hospitals: None) -> Ended:
        hospitals = self.place()
        change(hospitals)
        grid = Deaf("fl_client.app:app", hospitals.nodes, {"study": self.study.to_json()})
        grid.deaf_in = deaf_in
        state, record = run(grid, self.study, self.start, folder=hospitals.folder / "run")
        return Ended(state, record, hospitals, {})

    def deaf(self, *rounds: int) -> Ended:
        return (
            self.kept.setdefault(str(rounds), self.without(*rounds)) if str(rounds) not in self.kept else self.kept[str(rounds)]
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory, hospitals_in):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(faulty, "InProcessGrid", Listening)
        yield World(tmp_path_factory.mktemp("world"), hospitals_in)


def same(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def kept_its_books(ended: Ended) -> bool:
    return all(ended.paid(name) >= len(ended.left.get(name, ())) for name in NAMES)


@dataclass(frozen=True)
class Case:
    """What a fault of hospital d in round 2 has to come to."""

    fault: dict[str, Any]
    answers: tuple[str, str, str]  # of d
    words: str = ""  # in the reason of round 2
    deaf_in: tuple[int, ...] | None = ()  # the model is that of a run in which d was not heard in these rounds; None: another
    paid: int = 3  # rounds in d's ledger

    @property
    def name(self) -> str:
        return " ".join(str(value) for value in self.fault.values())


DIED = "its konsil process ended while it worked on this"

MATRIX = (
    Case({"fault": "crash_before_training"}, ("used", "failed", "used"), DIED, (2,), 2),
    Case({"fault": "crash_before_training", "times": 1}, ("used", "used", "used")),
    Case({"fault": "crash_before_ledger"}, ("used", "failed", "used"), DIED, (2,), 2),
    Case({"fault": "crash_before_ledger", "times": 1}, ("used", "used", "used")),
    Case({"fault": "crash_in_training", "times": 1}, ("used", "used", "used"), paid=4),
    Case({"fault": "crash_before_reply"}, ("used", "failed", "used"), DIED, (2,)),
    Case({"fault": "crash_before_reply", "times": 1}, ("used", "used", "used")),
    Case({"fault": "nan_update"}, ("used", "quarantined", "used"), "not finite", (2,)),
    Case({"fault": "exploding_update"}, ("used", "quarantined", "used"), "times", (2,)),
    Case({"fault": "sign_flipped_update"}, ("used", "used", "used"), deaf_in=None),
    Case({"fault": "wrong_shapes"}, ("used", "quarantined", "used"), "expected float32", (2,)),
    Case({"fault": "wrong_names"}, ("used", "quarantined", "used"), "names differ", (2,)),
    Case({"fault": "wrong_dtype"}, ("used", "quarantined", "used"), "float64", (2,)),
    Case({"fault": "disk_full"}, ("used", "failed", "used"), "reason: disk", (2,)),
    Case({"fault": "corrupt_case"}, ("used", "used", "used"), deaf_in=None),
    Case({"fault": "empty_cohort"}, ("used", "used", "used"), deaf_in=None),
    Case({"fault": "budget_spent"}, ("used", "declined", "declined"), "over this hospital's 12", (2, 3), 1),
    Case({"fault": "older_version"}, ("used", "declined", "used"), "this site runs 0.0.1", (2,), 2),
    Case({"fault": "clock_off"}, ("used", "declined", "used"), "over", (2,), 2),
    Case({"fault": "clock_off", "hours": -1.0}, ("used", "used", "used")),
    Case({"fault": "offline"}, ("used", "absent", "used"), "offline", (2,), 2),
    Case({"fault": "slow"}, ("used", "used", "used")),
    Case({"fault": "slow", "factor": 1e9}, ("used", "late", "used"), "the round took answers for 600 s", (2,)),
    Case({"fault": "late_reply"}, ("used", "late", "used"), "when the round was over, 660 s after the question", (2,)),
    Case({"fault": "lost_reply"}, ("used", "used", "used")),
    Case({"fault": "lost_reply", "times": 2}, ("used", "absent", "used"), "lost on the way (asked 2 times)", (2,)),
    Case({"fault": "duplicate_reply"}, ("used", "used", "used")),
    Case({"fault": "duplicate_reply", "contents": "different"}, ("used", "quarantined", "used"), "different contents", (2,)),
)


@pytest.mark.parametrize("case", MATRIX, ids=lambda case: case.name)
def test_a_fault_of_one_hospital_costs_no_more_than_its_answer(world, case):
    ended = world.with_faults({"site": "d", "rounds": 2, **case.fault})
    assert (tuple(ended.answers("d")), ended.others) == (case.answers, {"used"})
    entry = ended.record.rounds[1].sites["d"]
    assert case.words in entry.reason
    assert ended.record.verdict == ("complete" if set(case.answers) == {"used"} else "degraded")
    assert ended.record.faults == [{**case.fault, "site": "d", "rounds": [2, 2], "words": ended.record.faults[0]["words"]}]
    assert account(ended.record).silent == ()
    assert ended.paid("d") == case.paid
    assert kept_its_books(ended)
    if case.deaf_in is None:
        assert not same(ended.state, world.deaf().state)
    else:
        assert same(ended.state, world.deaf(*case.deaf_in).state)


def test_the_matrix_and_the_tests_after_it_have_every_fault():
    elsewhere = {"partition", "coordinator_killed", "superlink_killed"}
    assert {case.fault["fault"] for case in MATRIX} == set(KNOWN) - elsewhere


def test_a_hospital_three_times_slower_takes_a_third_of_the_steps_pays_for_those_and_pulls_as_hard(world, monkeypatch):
    monkeypatch.setattr(faulty, "InProcessGrid", Keeping)
    monkeypatch.setattr("fl_client.pace.measured", lambda site, study, task: 1.0)
    training = LocalTraining(views=1, steps=3, work_s=3.0)
    study = world.study.model_copy(update={"training": training, "strategy": Strategy(name="fedavg", quorum=2)})
    ended = world.with_faults({"fault": "slow", "site": "d", "rounds": 2}, study=study)
    told = [{name: entry.sites[name].steps for name in NAMES} for entry in ended.record.rounds]
    all_of_them = dict.fromkeys(NAMES, 3)
    assert told == [all_of_them, all_of_them | {"d": 1}, all_of_them]
    for name in NAMES:
        paid = [event.steps for event in ledger_of(ended.hospitals.site(name)).events]
        assert paid == [entry[name] for entry in told]
        log = (ended.hospitals.site(name).folder / "log" / "training.jsonl").read_text().splitlines()
        assert [json.loads(line)["steps"] for line in log] == paid

    share = dict(zip(NAMES, (0.1, 0.2, 0.5, 0.2), strict=True))  # of the declared sizes 5, 10, 25 and 10
    mean = 3 * 0.8 + 1 * 0.2  # Wang et al. 2020, section 4: the way of a step, times the mean number of steps
    came = [Keeping.answered["2", name] for name in NAMES]
    for name, start in Keeping.sent["2", "a"].items():
        ways = [(answer[name] - start) / told[1][site] * share[site] for site, answer in zip(NAMES, came, strict=True)]
        torch.testing.assert_close(Keeping.sent["3", "a"][name], start + mean * sum(ways), rtol=0, atol=1e-6)


def test_a_process_that_another_fault_starts_in_a_slow_hospital_is_slow_too():
    plan = Plan.model_validate(
        {"plan": [{"fault": "crash_in_training", "site": "d", "rounds": 2}, {"fault": "slow", "site": "d", "rounds": 2}]}
    )
    assert [fault.fault for fault in plan.inside("d")] == ["slow", "crash_in_training"]  # from the inside outwards
    assert [fault.fault for fault in plan.on_wire] == ["slow"]
    with pytest.raises(ValidationError, match="times"):
        Plan.model_validate({"plan": [{"fault": "slow", "site": "d", "rounds": 2, "times": 1}]})


def test_hospitals_on_the_other_side_of_a_cut_cable_are_absent_and_go_on_afterwards(world):
    ended = world.with_faults({"fault": "partition", "sites": ["c", "d"], "rounds": [1, 2]})
    assert {name: ended.answers(name) for name in NAMES} == {
        **{name: ["used", "used", "used"] for name in "ab"},
        **{name: ["absent", "absent", "used"] for name in "cd"},
    }
    assert [ended.paid(name) for name in NAMES] == [3, 3, 1, 1]
    assert account(ended.record).silent == ()


@pytest.mark.parametrize("answers", [0, 2, 4])
def test_a_coordinator_that_is_killed_in_a_round_ends_where_an_undisturbed_one_does(world, answers):
    ended = world.with_faults({"fault": "coordinator_killed", "rounds": 2, "answers": answers})
    assert ended.record.verdict == "complete"
    assert [(one.after_round, one.engine) for one in ended.record.resumed] == [(1, "inprocess")]
    assert same(ended.state, world.deaf().state)
    assert [ended.paid(name) for name in NAMES] == [3, 3, 3, 3]


def test_a_study_that_was_killed_before_its_last_record_is_over_all_the_same(world):
    ended = world.without()
    folder = ended.hospitals.folder / "run"
    path = folder / "record.json"
    whole = path.read_text()
    path.write_text(whole.replace(f'"ended": "{ended.record.ended}"', '"ended": ""'))  # the checkpoint is written before it
    (folder / "model.pt").unlink()
    grid = InProcessGrid("fl_client.app:app", ended.hospitals.nodes, {"study": world.study.to_json()})
    state, _ = run(grid, world.study, world.start, folder=folder, resume=True)
    assert same(state, ended.state)
    assert path.read_text() == whole
    assert (folder / "model.pt").exists()
    with pytest.raises(ValueError, match="is over"):
        run(grid, world.study, world.start, folder=folder, resume=True)


def test_a_damaged_case_costs_the_hospital_one_patient_and_no_more(world):
    def without_the_first(hospitals):
        cohort = Cohort(hospitals.site("d").cohort_folder)
        shutil.rmtree(cohort.folder / "cases" / cohort.patients[0])

    ended = world.with_faults({"fault": "corrupt_case", "site": "d", "rounds": [1, 3]})
    assert ended.record.verdict == "complete"
    assert same(ended.state, world.without(change=without_the_first).state)
    site = ended.hospitals.site("d")
    log = [json.loads(line) for line in (site.folder / "log" / "training.jsonl").read_text().splitlines()]
    assert {(line["patient"], "is cut short" in line["left_out"]) for line in log if "left_out" in line} == {("p3-0", True)}
    assert Cohort(site.cohort_folder).patients == ("p3-0", "p3-1")  # in a room of its own again, unharmed
    assert [volume.image.shape for volume in Cohort(site.cohort_folder).case("p3-0").volumes] == [(3, 32, 32)] * 2


def test_every_case_is_used_refused_or_withdrawn(world):
    ended = world.with_faults({"fault": "corrupt_case", "site": "d", "rounds": [1, 3]})
    study = Study.model_validate(ended.record.study)
    whole = ended.hospitals.site("a")
    Cohort(whole.cohort_folder).withdraw("p0-1")
    assert cases(whole, study, ("p0-0", "p0-1")) == Cases(came=2, used=1, refused=0, withdrawn=1)
    cut = ended.hospitals.site("d").cohort_folder / "cases" / "p3-0" / "cine_ed.image.npy"
    shutil.rmtree(ended.hospitals.site("d").cohort_folder / "prepared", ignore_errors=True)
    cut.write_bytes(cut.read_bytes()[:99])
    assert cases(ended.hospitals.site("d"), study, ("p3-0", "p3-1")) == Cases(came=2, used=1, refused=1, withdrawn=0)
    assert cases(ended.hospitals.site("d"), study, ("p3-0", "p3-1", "nobody knows")).silent == 1


def test_all_faults_together_lose_nobody_without_a_word(world):
    several = {"partition": {"sites": ["c"], "rounds": 7}, "coordinator_killed": {"answers": 1, "rounds": 5}}
    plan = [
        {"fault": name, **several.get(name, {"site": NAMES[place % 4], "rounds": 1 + place // 3})}
        for place, name in enumerate(KNOWN)
        if name not in ("superlink_killed", "budget_spent")
    ]
    plan.append({"fault": "budget_spent", "rounds": [8, 8], "site": "a"})
    alone = world.study.strategy.model_copy(update={"quorum": 1})  # in round 1 three of four crash
    study = world.study.model_copy(update={"rounds": 8, "strategy": alone})
    ended = world.with_faults(*plan, study=study)
    assert (ended.record.verdict, len(ended.record.rounds)) == ("degraded", 8)
    assert account(ended.record) == Account(planned=32, accounted=32, silent=())
    assert {fault["fault"] for fault in ended.record.faults} == set(KNOWN) - {"superlink_killed"}
    kinds = {answer.answer for entry in ended.record.rounds for answer in entry.sites.values()}
    assert kinds == {"used", "declined", "failed", "quarantined", "late", "absent"}
    assert all(entry.moved for entry in ended.record.rounds)
    assert kept_its_books(ended)


WRONG = {
    "no such fault as 'gremlin'; there are crash_before_training, ": {"fault": "gremlin", "site": "donau", "rounds": 1},
    "faults.plan.0.round: no such setting": {"fault": "offline", "site": "donau", "round": 1},
    "the rounds go from 3 to 2": {"fault": "offline", "site": "donau", "rounds": [3, 2]},
    "no hospital elbe in this study; there are alster, isar, donau, spree, rhein": {
        **{"fault": "offline", "site": "elbe", "rounds": 1}
    },
    "offline is planned for round 9; the study has 8": {"fault": "offline", "site": "donau", "rounds": [8, 9]},
    "the simulator has no SuperLink that could be killed": {"fault": "superlink_killed", "rounds": 1},
}


@pytest.mark.parametrize("words", WRONG)
def test_a_plan_that_cant_be_made_is_refused_in_words(words):
    settings = settings_of([]).model_dump(mode="json", exclude_unset=True)
    with pytest.raises(ValidationError) as refused:
        read({**settings, "faults": {"plan": [WRONG[words]]}})
    assert words in sentences(refused.value)


def test_the_bad_week_has_every_fault_that_the_simulator_can_make():
    week = settings_of(["faults=hospital_week"])
    assert {fault.fault for fault in week.faults.plan} == set(KNOWN) - {"superlink_killed"}
    assert (settings_of([]).faults.plan, week.strategy.quorum) == ((), 2)


def test_a_plan_keeps_everything_when_it_is_written_down():
    week = planned("hospital_week")
    assert Plan.model_validate_json(week.model_dump_json()) == week
    assert week.model_dump(mode="json")["plan"][0] == {"fault": "offline", "site": "donau", "rounds": [1, 2]}


def test_an_arm_with_other_faults_is_another_arm(world, tmp_path):
    arms = [
        Arm("federation_private", world.study, {}, tmp_path, settings_of(words).faults)
        for words in ([], ["faults=hospital_week"])
    ]
    assert arms[0].identity != arms[1].identity
    assert arms[0].identity == Arm("federation_private", world.study, {}, tmp_path).identity
