"""Who is who: which node of the federation is which hospital, and which hospitals take part in a study.

Flower knows nodes by number; a study names hospitals. Each node is asked who it is before it is asked for anything else,
so that every planned hospital has an entry in every round, and a refusal is told with its reason.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from conf.study import Study
from fl_server.prompt_grid import PromptGrid, pulled
from fl_server.record import SiteRound, printable
from fl_server.sound import sound_delta, sound_size

LATE_S = 10.0
"""Seconds from a question on that a round is held up for its answer; a node that answered with an error is asked again no
sooner than after as long. An answer that comes later still is heard before the next round."""

POLL_S = 1.0
"""Seconds between two looks for answers and new nodes."""

PATIENT_POLL_S = 5.0
"""The same where people are waited for: an approval may take days."""

AGAIN_S = (60.0, 600.0)
"""Seconds until a hospital that said no is asked again while a study waits: at first, and in the end (each time a line in its
audit log)."""


class Enrolment:
    """Which node is which hospital, and which hospitals take part: learned from their answers to `query.enroll`.

    A node is asked once. It is asked again when it answered with an error, or when its question's time (that of a round) is
    over. Until then one that is silent costs nobody anything. Where the coordinator has registered the nodes' keys under
    names, a node is the hospital that it is registered as, whatever it says.
    """

    def __init__(self, study: Study, *, first_round: int = 1) -> None:
        self.study = study
        self.first_round = first_round  # the next there is; more than 1 in a study that goes on after an interruption
        self.nodes: dict[int, str] = {}  # of hospitals that take part, in the study's order
        self.sizes: dict[str, int] = {}  # declared, public
        self.deltas: dict[str, float] = {}  # at which a hospital's ledger states its epsilon
        self.reasons: dict[str, str] = {}  # why a planned hospital does not take part
        self.left_out: dict[str, str] = {}  # hospitals that have no part in this study any more, and why
        self.failures: dict[int, str] = {}  # of nodes that have given no name yet: what was wrong with the last answer
        self._names: dict[int, str] = {}  # every node that has answered
        self._registered: dict[int, str] = {}  # node -> the name that its key is registered under; empty: none is
        self._open: dict[str, tuple[int, float]] = {}  # question without an answer -> node, when it was asked
        self._failed: dict[int, float] = {}  # node -> when its error was heard
        self._twice: set[str] = set()  # names that more than one node has said
        self._there: set[int] = set()  # nodes that were connected when last looked at
        self._rest_s = LATE_S  # before a node that has failed is asked again

    @property
    def complete(self) -> bool:
        """True when every planned hospital has answered: nobody else has to be asked."""
        return set(self.study.sites) <= set(self._names.values())

    @property
    def lacking(self) -> dict[str, str]:
        """Planned hospitals that don't take part, and why not, as far as it is known."""
        asked = {self._registered.get(node) for node, _ in self._open.values()}

        def why(site: str) -> str:
            if site in self.left_out:
                return self.left_out[site]
            if site not in self.reasons and site in asked:
                return "asked, and has not answered yet"
            if site not in self.reasons and not self.failures:
                return "no machine is connected under this name"
            return self.missing(site).reason

        return {site: why(site) for site in self.study.sites if site not in self.nodes.values()}

    def wait(self, grid: Grid, *, timeout_s: float, tell: Callable[[], None] = lambda: None) -> None:
        """Ask until every planned hospital has answered or the time is over; `tell` is called after each look."""
        end = time.monotonic() + timeout_s
        self._ask(grid)
        self._hear(grid)
        while not self.complete and (left := end - time.monotonic()) > 0:
            tell()
            time.sleep(min(POLL_S, left))
            self._ask(grid)
            self._hear(grid)

    def wait_for(self, grid: Grid, count: int, *, timeout_s: float, tell: Callable[[], None] = lambda: None) -> float:
        """Ask, until so many hospitals take part or the time is over, whoever said no or failed; the seconds that are left.

        A no is asked for again because its reason may pass: nobody there has approved the study yet, say.
        """
        start = asked = time.monotonic()
        while len(self.nodes) < count and (left := start + timeout_s - time.monotonic()) > 0:
            tell()
            time.sleep(min(PATIENT_POLL_S, left))
            self._rest_s = min(max(AGAIN_S[0], (asked - start) / 20), AGAIN_S[1])
            if time.monotonic() - asked >= self._rest_s:
                asked = time.monotonic()
                self._forget_refusals()
            self._ask(grid)
            self._hear(grid)
        self._rest_s = LATE_S
        return max(0.0, start + timeout_s - time.monotonic())

    def leave_out(self, site: str, reason: str) -> None:
        """From here on this hospital is asked for nothing, whatever it says."""
        self.left_out[site] = reason
        self.nodes = {node: name for node, name in self.nodes.items() if name != site}

    def _forget_refusals(self) -> None:
        for node in [node for node, name in self._names.items() if name in self.reasons and name not in self._twice]:
            del self._names[node]  # a person may have said yes since

    def before_round(self, grid: Grid) -> None:
        """Hear who has answered since, ask who is new, whose answer was an error or a no; wait `LATE_S` for these at most."""
        self._failed.clear()
        self._forget_refusals()
        self._ask(grid)
        self._hear(grid)
        while not self.complete and (left := self._last_asked() + LATE_S - time.monotonic()) > 0:
            time.sleep(min(POLL_S, left))
            self._hear(grid)

    def _last_asked(self) -> float:
        return max((asked for _, asked in self._open.values()), default=-math.inf)

    def _ask(self, grid: Grid) -> None:
        """Send the question to every node that has said no name, unless it has one already or has just failed."""
        now, ttl = time.monotonic(), self.study.strategy.round_timeout_s
        self._open = {question: (node, asked) for question, (node, asked) in self._open.items() if now < asked + ttl}
        asked_already = {node for node, _ in self._open.values()}
        resting = {node for node, heard in self._failed.items() if now < heard + self._rest_s}
        names = grid.names() if isinstance(grid, PromptGrid) else dict.fromkeys(grid.get_node_ids(), "")
        self._registered |= names
        self._there = set(names)
        if self.complete and self._there >= {node for node, name in self._names.items() if name in self.study.sites}:
            return  # one that is away may come back under another number
        content = RecordDict({"config": ConfigRecord({"study-hash": self.study.hash, "first-round": self.first_round})})
        questions = [
            Message(content, node, f"{MessageType.QUERY}.enroll", ttl=ttl)
            for node in names
            if node not in {*self._names, *asked_already, *resting}
        ]
        if questions:
            grid.push_messages(questions)  # not send_and_receive: that waits for the slowest, and drops what comes later
        self._open |= {question.metadata.message_id: (question.metadata.dst_node_id, now) for question in questions}

    def _hear(self, grid: Grid) -> None:
        while self._open:
            replies, unreadable = pulled(grid, list(self._open))
            for question in unreadable:
                node, _ = self._open.pop(question)
                self.failures[node] = f"node {node}: its answer can't be read"
                self._failed[node] = time.monotonic()
            if not replies:  # a simulated grid gives one at a time
                return
            self._take(replies)

    def _take(self, replies: list[Message]) -> None:
        for reply in replies:
            # the SuperLink writes errors under a number of its own: whose answer it is stands in the question
            node, _ = self._open.pop(reply.metadata.reply_to_message_id, (None, 0.0))
            if node is None:  # a second answer to one question
                continue
            if reply.has_error():  # which hospital it is can't be known: it gives no name
                self.failures[node] = f"node {node}: {printable(reply.error.reason or '')}"
                self._failed[node] = time.monotonic()
            else:
                self.failures.pop(node, None)
                self._enter(node, dict(reply.content.config_records.get("enrolment", {})))

    def _enter(self, node: int, answer: Mapping[str, object]) -> None:
        said = str(answer.get("site", ""))
        name = self._registered.get(node) or said
        for other in [other for other, known in self._names.items() if known == name and other not in self._there]:
            del self._names[other]  # it has come back under another number
            self.nodes.pop(other, None)
        self._names[node] = name
        self.reasons.pop(name, None)
        if name not in self.study.sites or name in self.left_out:
            return
        if name != said:
            self.reasons[name] = (
                f"its key is registered for {name}, but it says it is {printable(said)[:64]}; name in its site.yaml"
            )
            return
        if list(self._names.values()).count(name) > 1:
            self._twice.add(name)
            self.reasons[name] = f"more than one node says it is {name}; none of them is asked"
            self.nodes = {n: site for n, site in self.nodes.items() if site != name}
        elif answer.get("takes-part") is not True:
            self.reasons[name] = printable(str(answer.get("reason", ""))) or "declined without a reason"
        else:
            try:
                self.sizes[name], self.deltas[name] = sound_size(answer.get("declared-size")), sound_delta(answer.get("delta"))
            except ValueError as error:
                self.reasons[name] = str(error)
                return
            order = self.study.sites.index
            self.nodes = dict(sorted({**self.nodes, node: name}.items(), key=lambda item: order(item[1])))

    def missing(self, site: str) -> SiteRound:
        """The entry of a planned hospital that was not asked in a round."""
        if site in self.left_out:
            return SiteRound(answer="quarantined", reason=self.left_out[site], attempts=0)
        if site in self.reasons:
            return SiteRound(answer="declined", reason=self.reasons[site], attempts=0)
        if site in self.nodes.values():
            found, wanted = len(self.nodes), self.study.quorum
            return SiteRound(
                answer="absent",
                reason=f"not asked: {found} of the {wanted} hospitals that a round needs take part",
                attempts=0,
            )
        unnamed = f"; without a name answered {', '.join(self.failures.values())}" if self.failures else ""
        return SiteRound(answer="absent", reason=f"no node has enrolled under this name{unnamed}", attempts=0)
