"""A wire with faults: a grid around the grid of a simulation, and a study over both.

What the plan says of the wire and of the coordinator happens here, on the clock of the simulation: nobody sleeps, and silence
costs no time. Hospitals get theirs with their nodes' configuration (`simulation.faults.hospital`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from flwr.app import Error, Message

from conf.study import Study
from fl_server.prompt_grid import GridAround
from fl_server.record import Record, Round
from fl_server.rounds import Observer, run
from fl_server.weights import State
from simulation.faults.coordinator import CoordinatorKilled, Killed
from simulation.faults.fault import OnWire, number_of
from simulation.faults.plan import Plan
from simulation.grid import FIRST_NODE, InProcessGrid

SUPERLINK = 1
"""The node number under which Flower's SuperLink writes errors of its own."""

UNREACHABLE = (5, "The node can't be reached.")


@dataclass
class Story:
    """How far the plan has come: it outlives the coordinator's processes, as the world does."""

    plan: Plan
    number: int = 1  # of the round that is under way, or is to come
    kills: set[int] = field(default_factory=set)  # of the plan's faults, by place: those that have happened
    lost: Counter[tuple[str, int]] = field(default_factory=Counter)  # answers, by hospital and round

    def over(self, number: int) -> None:
        """Round `number` has come to its end."""
        self.number = max(self.number, number + 1)

    def wire(self, site: str, number: int) -> list[OnWire]:
        """The faults between this hospital and the coordinator in this round."""
        return [fault for fault in self.plan.on_wire if site in fault.hospitals and fault.covers(number)]

    def kill(self, number: int, *, heard: int) -> None:
        """Raise `Killed` if it is planned that the coordinator dies in this round, after so many answers."""
        for place, fault in enumerate(self.plan.plan):
            due = isinstance(fault, CoordinatorKilled) and fault.covers(number) and heard >= fault.answers
            if due and place not in self.kills:
                self.kills.add(place)
                raise Killed


class FaultyGrid(GridAround):
    """`inside`, whose nodes are the hospitals `sites`, with the faults of a story on its wire.

    `timeout_s` tells how long a round is for a hospital.
    """

    def __init__(self, inside: InProcessGrid, story: Story, sites: Sequence[str], *, timeout_s: Callable[[str], float]) -> None:
        self.inside: InProcessGrid = inside
        self.story, self.timeout_s = story, timeout_s
        self.sites = {FIRST_NODE + place: name for place, name in enumerate(sites)}
        self._asked: dict[str, tuple[Message, str, int]] = {}  # question -> itself, hospital, round
        self._errors: dict[str, Message] = {}
        self._gone: set[str] = set()  # questions that arrive nowhere
        self._held: dict[str, list[Message]] = {}
        self._heard = 0  # answers in this round

    def get_node_ids(self) -> list[int]:
        """The nodes that the coordinator sees now."""
        number = self.story.number
        return [
            node
            for node in self.inside.get_node_ids()
            if all(fault.connected() for fault in self.story.wire(self.sites[node], number))
        ]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send them, as far as they arrive."""
        messages = list(messages)
        through = []
        for message in messages:
            faults = [fault for fault in self._faults(message) if fault.stops(message)]
            if not faults:
                through.append(message)
                continue
            message.metadata.__dict__["_message_id"] = question = uuid4().hex
            self._gone.add(question)
            told = next((error for fault in faults if (error := fault.error())), None)
            if told is None and message.metadata.message_type.startswith("query"):
                told = UNREACHABLE  # else who it is would be waited for, by the clock on the wall
            if told is not None:
                self._errors[question] = _error(message, *told)
        self.inside.push_messages(through)
        for message in messages:
            site = self.sites[message.metadata.dst_node_id]
            self._asked[message.metadata.message_id] = (message, site, self._number(message))
        if any(_trains(message) for message in messages):
            self._heard = 0
            self.story.kill(self.story.number, heard=0)
        return [message.metadata.message_id for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """What has arrived of the answers to these questions."""
        ids = list(message_ids)
        found = [self._errors.pop(question) for question in ids if question in self._errors]
        for question in ids:
            if question in self._held and self._asked[question][2] < self.story.number:
                found += self._held.pop(question)
        alive = [question for question in ids if question not in self._gone]
        while not found and (replies := self.inside.pull_messages(alive)):  # what is lost or held is not all there was
            for reply in replies:
                found += self._arrived(reply)
        return found

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Push, and pull until nothing more comes, what took no longer than `timeout` seconds."""
        ids, replies = self.push_messages(messages), []
        while found := self.pull_messages(ids):
            replies += [reply for reply in found if timeout is None or self.took(reply.metadata.reply_to_message_id) <= timeout]
        return replies

    def took(self, question: str) -> float:
        """Seconds that a hospital worked on its answer, as they seem to the coordinator."""
        _, site, number = self._asked[question]
        seconds = 0.0 if question in self._gone else self.inside.took(question)
        for fault in self.story.wire(site, number):
            seconds = fault.seconds(seconds, timeout_s=self.timeout_s(site))
        return seconds

    def _arrived(self, reply: Message) -> list[Message]:
        question = reply.metadata.reply_to_message_id
        asked, site, number = self._asked[question]
        arrived = [reply]
        train = _trains(asked)
        for fault in self.story.wire(site, number) if train else ():
            if fault.loses(times=self.story.lost[site, number]):
                self.story.lost[site, number] += 1
                arrived = [_error(asked, *told)] if (told := fault.error()) else []
            arrived += [copy for one in arrived for copy in fault.copies(one)]
            if fault.holds():
                self._held[question] = arrived
                return []
        if train:
            self._heard += 1
            self.story.kill(number, heard=self._heard)
        return arrived

    def _faults(self, question: Message) -> list[OnWire]:
        return self.story.wire(self.sites[question.metadata.dst_node_id], self._number(question))

    def _number(self, message: Message) -> int:
        """The round that a question belongs to; the story goes with it."""
        if _trains(message):
            number = number_of(message)
            self.story.number = max(self.story.number, number)
            return number
        return self.story.number


def federate(
    plan: Plan,
    study: Study,
    sites: Mapping[str, Path],
    initial: State,
    folder: Path,
    look: Observer | None = None,
    *,
    pool: Executor | None = None,
    references: State | None = None,
) -> tuple[State, Record]:
    """Run a study over hospitals whose settings files are `sites`, with the plan's faults. Returns model and record.

    A coordinator that was killed is started again and goes on from its folder. The record says which faults were made.
    Raises `BrokenProcessPool` if a worker of `pool` dies, and `ValueError` for a plan that this study can't have.
    """
    plan.require(sites=list(sites), rounds=study.rounds, processes=False)
    nodes = [
        {"site": str(path), "faults": json.dumps([fault.model_dump(mode="json") for fault in plan.inside(name)])}
        for name, path in sites.items()
    ]
    story = Story(plan)

    def observer(answers: Round, state: State) -> None:
        story.over(answers.round)
        if look is not None:
            look(answers, state)

    resume = False
    while True:
        grid = InProcessGrid("simulation.faults.hospital:app", nodes, {"study": study.to_json()}, pool=pool)
        faulty = FaultyGrid(grid, story, list(sites), timeout_s=study.strategy.timeout_s)
        try:
            state, record = run(
                faulty,
                study,
                initial,
                folder=folder,
                observer=observer,
                engine="inprocess",
                resume=resume,
                references=references,
            )
        except Killed:
            resume = True
            continue
        grid.require_workers()  # a hospital that failed because this machine did has not failed in this comparison
        record.faults = plan.told()
        record.write(folder / "record.json")
        return state, record


def _trains(question: Message) -> bool:
    return question.metadata.message_type.startswith("train")


def _error(question: Message, code: int, words: str) -> Message:
    """An error that Flower's SuperLink writes in a node's place."""
    reply = Message(Error(code, words), reply_to=question)
    reply.metadata.__dict__["_src_node_id"] = SUPERLINK
    reply.metadata.__dict__["_message_id"] = uuid4().hex
    return reply
