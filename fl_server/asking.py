"""A question to many hospitals, and their answers as they come: until all have answered or the round's time is over.

Answers are taken one by one and forgotten, so that a thousand hospitals need no more memory than ten. A hospital whose message
or machine was lost is asked again, as soon as it is there; one that said no or failed is not. An answer that comes when its
round is over is never used, and told as late.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from flwr.app import Message
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from fl_server.prompt_grid import LONGEST_WAIT_S, PromptGrid, pause, pulled
from fl_server.record import SiteRound
from fl_server.strategy import Rounds

LOST = (
    ErrorCode.MESSAGE_UNAVAILABLE,  # parts of the answer never came
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
    ErrorCode.NODE_UNAVAILABLE,
    ErrorCode.CLIENT_APP_CRASHED,
)
"""Flower's errors after which the same question may find an answer; a hospital that has one keeps it (fl_client/sent.py)."""

REST_S = 5.0
"""Before a hospital is asked again whose machine was lost."""

BACK_S = 180.0
"""How long a round waits for machines that are offline when everybody else has answered: longer than a restart takes."""

AT_ONCE = 64 * 2**20
"""Bytes of answers that are pulled in one look, or one answer if that is larger."""

LATE_S = 3600.0
"""How long after a round's end, at most, an answer may still come and be told as late; and no longer than the round."""


@runtime_checkable
class Simulated(Protocol):
    """A grid with a clock of its own: nobody waits in it for an answer that does not come."""

    def took(self, question: str) -> float:
        """Seconds that a hospital worked on its answer to this question."""


@dataclass(frozen=True)
class _Question:
    site: str
    node: int
    asked: float


@dataclass
class _UnderWay:
    """A round's questions: those that are waited for, and what else is known."""

    waiting: dict[str, _Question]
    attempts: dict[int, int]  # node -> how often it was asked
    ends: dict[int, float]  # node -> when its answer counts no more
    lost: dict[int, tuple[Message, float]] = field(default_factory=dict)  # node -> the error, when it came
    unseen: dict[str, SiteRound] = field(default_factory=dict)


@dataclass
class Asking:
    """The questions of a study that are under way."""

    grid: Grid
    clock: Callable[[], float] = time.monotonic
    _over: dict[str, tuple[Rounds, _Question, float]] = field(default_factory=dict)  # of rounds gone; forgotten at the time

    def ask(
        self,
        strategy: Rounds,
        questions: Sequence[Message],
        *,
        timeout_s: float,
        timeouts_s: Mapping[str, float] | None = None,
        retries: int = 0,
        heard: Callable[[str], None] = lambda site: None,
    ) -> dict[str, SiteRound]:
        """Send the questions, and give `strategy` what comes within `timeout_s` seconds; of some sites, within `timeouts_s`.

        `heard` is told of each hospital that has answered. Returns the entries of hospitals that were lost, of whom `strategy`
        only saw an error.
        """
        start = self.clock()
        nodes = [question.metadata.dst_node_id for question in questions]
        ends = {node: start + (timeouts_s or {}).get(strategy.site(node), timeout_s) for node in nodes}
        simulated = self.grid if isinstance(self.grid, Simulated) else None
        under_way = _UnderWay(self._push(strategy, questions), dict.fromkeys(nodes, 1), ends)
        batch = max(1, AT_ONCE // max(1, _size(questions)))
        others_done = None  # when nobody was waited for but machines that are offline
        while under_way.waiting or under_way.lost:
            now = self.clock()
            found = self._look(strategy, under_way, batch, retries, heard, simulated)
            again = [node for node in under_way.lost if simulated is not None or self.clock() < ends[node]]
            again = [node for node in again if self._may_be_asked(under_way, node, rest=0.0 if simulated else REST_S)]
            for node in again:
                del under_way.lost[node]
                under_way.attempts[node] += 1
                repeated = strategy.ask_again(strategy.site(node), left_s=ends[node] - self.clock())
                under_way.waiting |= self._push(strategy, [repeated])
            if simulated is not None:  # its clock is not this one, and nobody waits in it
                if not found and not again:
                    break
                continue
            for question, asked in list(under_way.waiting.items()):
                if ends[asked.node] <= now:  # a whole look began after its time, and did not find it
                    del under_way.waiting[question]
                    self._listen_on(strategy, question, asked, start, ends[asked.node])
            open_ends = [ends[one.node] for one in under_way.waiting.values()] + [ends[node] for node in under_way.lost]
            if not under_way.waiting and max(open_ends, default=now) <= now:
                break
            others_done = (others_done or self.clock()) if not under_way.waiting else None
            if others_done is not None and self.clock() - others_done > BACK_S:
                break
            if not found and (left := min(end for end in open_ends if end > now) - self.clock()) > 0:
                time.sleep(pause(self.clock() - start, left))
        for node, (reply, _) in under_way.lost.items():  # it did not come back in time
            strategy.take(reply)
            if reply.error.code != ErrorCode.CLIENT_APP_CRASHED:
                under_way.unseen[strategy.site(node)] = _gone(reply, under_way.attempts[node])
        for question, asked in under_way.waiting.items():
            self._listen_on(strategy, question, asked, start, ends[asked.node])
        return under_way.unseen

    def _listen_on(self, strategy: Rounds, question: str, asked: _Question, start: float, end: float) -> None:
        self._over[question] = (strategy, asked, end + min(end - start, LATE_S))

    def _look(
        self,
        strategy: Rounds,
        under_way: _UnderWay,
        batch: int,
        retries: int,
        heard: Callable[[str], None],
        simulated: Simulated | None,
    ) -> int:
        """Take what is there; how many questions were answered.

        A question is looked after until a look that began when its time was over does not find its answer: the pause between
        two looks, or somebody's answer that is large, makes nobody late.
        """
        found = 0
        for some in _batches(list(under_way.waiting), batch):
            now = self.clock()
            left = max(under_way.ends[under_way.waiting[question].node] for question in some) - now
            replies, unreadable = self._pulled(some, max(left, LONGEST_WAIT_S))
            for question_id in unreadable:
                question = under_way.waiting.pop(question_id)
                found += 1
                under_way.unseen[question.site] = SiteRound(answer="quarantined", reason="its answer can't be read")
                heard(question.site)
            for reply in replies:
                asked = under_way.waiting.pop(reply.metadata.reply_to_message_id, None)
                if asked is None:  # a second answer to one question
                    strategy.take(reply)
                    continue
                found += 1
                end = under_way.ends[asked.node]
                seconds = min(now, end) - asked.asked
                if simulated is not None:
                    seconds = simulated.took(reply.metadata.reply_to_message_id)
                if _is_lost(reply) and under_way.attempts[asked.node] <= retries and (simulated is not None or now < end):
                    under_way.lost[asked.node] = (reply, self.clock())
                    continue
                strategy.take(reply, seconds=seconds)
                if _is_lost(reply) and reply.error.code != ErrorCode.CLIENT_APP_CRASHED:
                    under_way.unseen[asked.site] = _gone(reply, under_way.attempts[asked.node])
                heard(asked.site)
        return found

    def _pulled(self, questions: list[str], left_s: float) -> tuple[list[Message], list[str]]:
        """As `pulled`, with no more than `left_s` for the parts of an answer that is on its way."""
        if isinstance(self.grid, PromptGrid):
            self.grid.within(left_s)
        return pulled(self.grid, questions)

    def late(self) -> Iterator[tuple[int, str, SiteRound]]:
        """Round, hospital and entry of every answer that has come since its round was over."""
        now = self.clock()
        simulated = self.grid if isinstance(self.grid, Simulated) else None
        for some in _batches(list(self._over), 1):  # one by one: what comes is not used, and need not fit into memory
            for reply in self._pulled(some, LONGEST_WAIT_S)[0]:
                strategy, question, _ = self._over.pop(some[0], (None, None, 0.0))
                if strategy is not None and question is not None:
                    seconds = now - question.asked if simulated is None else simulated.took(some[0])
                    told = strategy.late(reply, seconds=seconds)
                    if told is not None:
                        yield told
        self._over = {key: kept for key, kept in self._over.items() if kept[2] > now}

    def _push(self, strategy: Rounds, questions: Sequence[Message]) -> dict[str, _Question]:
        now = self.clock()
        self.grid.push_messages(questions)
        return {
            question.metadata.message_id: _Question(
                strategy.site(question.metadata.dst_node_id), question.metadata.dst_node_id, now
            )
            for question in questions
        }

    def _may_be_asked(self, under_way: _UnderWay, node: int, *, rest: float) -> bool:
        return self.clock() - under_way.lost[node][1] >= rest and node in set(self.grid.get_node_ids())


def _gone(reply: Message, attempts: int) -> SiteRound:
    """The entry of a hospital that was lost on the way; one whose work crashed has failed, which `strategy` says."""
    offline = reply.error.code == ErrorCode.NODE_UNAVAILABLE  # else parts of an answer, or all of it, did not come
    reason = "its machine went offline during the round" if offline else "its answer was lost on the way"
    return SiteRound(answer="absent", reason=reason + (f" (asked {attempts} times)" if attempts > 1 else ""), attempts=attempts)


def _is_lost(reply: Message) -> bool:
    return reply.has_error() and reply.error.code in LOST


def _size(questions: Sequence[Message]) -> int:
    """Bytes of one question's arrays, which are about those of its answer."""
    records = questions[0].content.array_records.values() if questions else ()
    return sum(len(array.data) for record in records for array in record.values())


def _batches(ids: list[str], size: int) -> Iterator[list[str]]:
    for at in range(0, len(ids), size):
        yield ids[at : at + size]
