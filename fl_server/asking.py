"""A question to many hospitals, and their answers as they come: until all have answered or the round's time is over.

Answers are taken one by one and forgotten, so that a thousand hospitals need no more memory than ten. A hospital whose message
or machine was lost is asked again, as soon as it is there; one that said no or failed is not. An answer that comes when its
round is over is never used, and told as late.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from flwr.app import Message
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from fl_server.record import SiteRound
from fl_server.strategy import Rounds

LOST = (ErrorCode.REPLY_MESSAGE_UNAVAILABLE, ErrorCode.NODE_UNAVAILABLE, ErrorCode.CLIENT_APP_CRASHED)
"""Flower's errors after which the same question may find an answer; a hospital that has one keeps it (fl_client/sent.py)."""

FIRST_WAIT_S, LONGEST_WAIT_S = 0.2, 2.0
"""Between two looks for answers: at first, and at most."""

SHARE = 0.02
"""Of the time that has passed: what waiting may add to a round."""

REST_S = 5.0
"""Before a hospital is asked again whose machine was lost."""

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
    asked: float


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
        retries: int = 0,
        heard: Callable[[str], None] = lambda site: None,
    ) -> dict[str, SiteRound]:
        """Send the questions, and give `strategy` what comes within `timeout_s` seconds.

        `heard` is told of each hospital that has answered. Returns the entries of hospitals that were lost, of whom `strategy`
        only saw an error.
        """
        start = self.clock()
        simulated = self.grid if isinstance(self.grid, Simulated) else None
        unseen: dict[str, SiteRound] = {}
        lost: dict[int, tuple[Message, float]] = {}  # node -> the error, when it came
        attempts = {question.metadata.dst_node_id: 1 for question in questions}
        batch = max(1, AT_ONCE // max(1, _size(questions)))
        waiting = self._push(strategy, questions)
        nodes = {question.metadata.message_id: question.metadata.dst_node_id for question in questions}
        while waiting or lost:
            found = 0
            for some in _batches(list(waiting), batch):
                for reply in self.grid.pull_messages(some):
                    question = waiting.pop(reply.metadata.reply_to_message_id, None)
                    if question is None:  # a second answer to one question
                        strategy.take(reply)
                        continue
                    found += 1
                    node = nodes[reply.metadata.reply_to_message_id]
                    seconds = self.clock() - question.asked
                    if simulated is not None:
                        seconds = simulated.took(reply.metadata.reply_to_message_id)
                    if _is_lost(reply) and attempts[node] <= retries:
                        lost[node] = (reply, self.clock())
                        continue
                    strategy.take(reply, seconds=seconds)
                    if _is_lost(reply) and reply.error.code != ErrorCode.CLIENT_APP_CRASHED:
                        unseen[question.site] = _gone(reply, attempts[node])
                    heard(question.site)
            again = [node for node in lost if self._may_be_asked(node, lost[node][1], rest=0.0 if simulated else REST_S)]
            for node in again:
                del lost[node]
                attempts[node] += 1
                repeated = strategy.ask_again(strategy.site(node))
                waiting |= self._push(strategy, [repeated])
                nodes[repeated.metadata.message_id] = node
            passed = self.clock() - start
            if passed >= timeout_s or (simulated is not None and not found and not again):
                break
            if not found and simulated is None:
                time.sleep(min(max(FIRST_WAIT_S, SHARE * passed), LONGEST_WAIT_S, timeout_s - passed))
        for node, (reply, _) in lost.items():  # it did not come back in time
            strategy.take(reply)
            if reply.error.code != ErrorCode.CLIENT_APP_CRASHED:
                unseen[strategy.site(node)] = _gone(reply, attempts[node])
        until = start + timeout_s + min(timeout_s, LATE_S)
        self._over |= {question: (strategy, asked, until) for question, asked in waiting.items()}
        return unseen

    def late(self) -> Iterator[tuple[int, str, SiteRound]]:
        """Round, hospital and entry of every answer that has come since its round was over."""
        now = self.clock()
        for some in _batches(list(self._over), 1):  # one by one: what comes is not used, and need not fit into memory
            for reply in self.grid.pull_messages(some):
                strategy, question, _ = self._over.pop(some[0], (None, None, 0.0))
                if strategy is not None and question is not None:
                    told = strategy.late(reply, seconds=now - question.asked)
                    if told is not None:
                        yield told
        self._over = {key: kept for key, kept in self._over.items() if kept[2] > now}

    def _push(self, strategy: Rounds, questions: Sequence[Message]) -> dict[str, _Question]:
        now = self.clock()
        self.grid.push_messages(questions)
        return {
            question.metadata.message_id: _Question(strategy.site(question.metadata.dst_node_id), now) for question in questions
        }

    def _may_be_asked(self, node: int, since: float, *, rest: float) -> bool:
        return self.clock() - since >= rest and node in set(self.grid.get_node_ids())


def _gone(reply: Message, attempts: int) -> SiteRound:
    """The entry of a hospital that was lost on the way; one whose work crashed has failed, which `strategy` says."""
    offline = reply.error.code == ErrorCode.NODE_UNAVAILABLE
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
