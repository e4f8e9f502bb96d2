"""A round under secure aggregation, seen from the coordinator: it learns the sum over the hospitals and nobody's own numbers.

Four questions to each hospital, five where lists have to be agreed on (tasks/secure): keys, shares, the masked vector,
agreement, unmasking. Only the third brings weights and costs privacy. What comes before it may be asked again when too few have
answered; after it a round that fails is lost.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from conf.study import Study
from fl_server.asking import LATE_S, Asking, Simulated
from fl_server.prompt_grid import pause, pulled
from fl_server.record import SiteRound, printable
from fl_server.sound import sound_pieces
from fl_server.strategy import DECLINED, Rounds
from fl_server.weights import State
from tasks.secure.circle import SecureSumError
from tasks.secure.coordinator import CoordinatorRound
from tasks.secure.grid import Grid as Steps
from tasks.secure.plan import about_of, circle_of, grid_of, moment_of
from tasks.task import CountingTask, GradientTask

WORDS_S = 120.0
"""So long a question without weights waits for an answer, at most, and no longer than a quarter of the round."""


CLOCKS_S = 300.0
"""By which a hospital's clock may be ahead and its answer to such a question still come."""


@dataclass
class MaskedRound:
    """What came of it. `sums` are over `survivors` alone, by name, in float64; None if there is no sum.

    `guilty` are hospitals that were shown to have broken the protocol, whether there is a sum or not, and how.
    """

    sites: dict[str, SiteRound] = field(default_factory=dict)
    survivors: tuple[str, ...] = ()
    sums: dict[str, npt.NDArray[np.float64]] | None = None
    guilty: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SecureSum:
    """Secure sums of one study over the hospitals behind `grid`, which are asked by way of `asking`."""

    grid: Grid
    asking: Asking
    study: Study
    task: GradientTask | CountingTask
    folder: Path | None = None
    clock: Callable[[], float] = time.monotonic

    @cached_property
    def steps(self) -> Steps:
        """How totals become whole numbers in this study."""
        return grid_of(self.study, self.task)

    def ask(
        self,
        number: int,
        state: State,
        nodes: Mapping[int, str],
        sizes: Mapping[str, int],
        *,
        attempt: int,
        heard: Callable[[str], None] = lambda site: None,
        asked: Callable[[Rounds], None] = lambda strategy: None,
    ) -> MaskedRound:
        """Round `number` from the weights `state`. `attempt` is a number that this round of the study has not had yet.

        `heard` is told who has answered the question that brings weights, `asked` what that question is.
        """
        start, tries = self.clock(), self.study.strategy.retries + 1
        told: dict[str, SiteRound] = {}
        nodes, too_large = self._that_fit(nodes, sizes)
        trouble, about = "no attempt was made", about_of(self.task, state)
        for which in range(tries):
            told = dict(too_large)
            try:
                one, shares = self._prepared(number, attempt + which, about, nodes, told)
            except SecureSumError as error:
                trouble = str(error)
                continue
            left = {node: site for node, site in nodes.items() if site in shares}
            return self._summed(
                number,
                attempt + which,
                state,
                left,
                sizes,
                one,
                shares,
                told,
                spent_s=self.clock() - start,
                heard=heard,
                asked=asked,
            )
        waiting = {site: SiteRound(answer="absent", reason=f"not asked for its sum: {trouble}") for site in nodes.values()}
        return MaskedRound({**waiting, **told})

    def _that_fit(self, nodes: Mapping[int, str], sizes: Mapping[str, int]) -> tuple[dict[int, str], dict[str, SiteRound]]:
        """The hospitals that declare no more together than the grid is made for; those that declare most are left out first."""
        most, left, out = self._most(), dict(nodes), dict[str, SiteRound]()
        while (declared := sum(sizes[site] for site in left.values())) > most:
            node = max(left, key=lambda one: sizes[left[one]])
            said = f"the hospitals declare {declared} patients together, {sizes[left[node]]} of them here"
            reason = f"{said}; privacy.secure.patients allows {most}"
            out[left.pop(node)] = SiteRound(answer="quarantined", reason=reason)
        return left, out

    def _most(self) -> int:
        secure = self.study.privacy.secure
        return 0 if secure is None else secure.patients

    def _prepared(
        self, number: int, attempt: int, about: bytes, nodes: Mapping[int, str], told: dict[str, SiteRound]
    ) -> tuple[CoordinatorRound, dict[str, dict[str, bytes]]]:
        """Keys and shares. Raises `TooFew`; `told` then says what became of who is out."""
        moment = moment_of(self.study, number=number, attempt=attempt)
        one = CoordinatorRound(circle_of(self.study), moment, length=self.steps.length, about=about)
        try:
            keys = {
                site: found["keys"]
                for site, found in self._words("keys", number, attempt, nodes, told).items()
                if "keys" in found
            }
            roster = one.keys(keys)
            left = {node: site for node, site in nodes.items() if site in roster}
            said = self._words("shares", number, attempt, left, told, bring={site: {"roster": roster} for site in roster})
            return one, one.shares(said)
        finally:
            for site, reason in one.left.items():
                if site in nodes.values():
                    told.setdefault(site, SiteRound(answer="quarantined", reason=printable(reason)))

    def _summed(
        self,
        number: int,
        attempt: int,
        state: State,
        nodes: Mapping[int, str],
        sizes: Mapping[str, int],
        one: CoordinatorRound,
        shares: Mapping[str, Mapping[str, bytes]],
        told: dict[str, SiteRound],
        *,
        spent_s: float,
        heard: Callable[[str], None],
        asked: Callable[[Rounds], None],
    ) -> MaskedRound:
        plan = self.study.strategy
        strategy = Rounds(
            FedAvg(),
            quorum=self.study.quorum,
            nodes=nodes,
            weights=sizes,
            ttl_s=plan.round_timeout_s + min(plan.round_timeout_s, LATE_S),
            deadline_s=plan.round_timeout_s,
            deadlines_s=plan.site_timeouts_s,
            expected={"masked": np.zeros(one.length, dtype=np.uint32)},
            used=lambda site, arrays: one.add(site, np.array(arrays["masked"])),
            unread=True,
            folder=self.folder,
        )
        config = ConfigRecord({"study-hash": self.study.hash, "attempt": attempt})
        questions = strategy.configure_train(number, ArrayRecord(dict(state)), config, self.grid)
        for question in questions:
            question.content["shares"] = ConfigRecord(dict(shares[strategy.site(question.metadata.dst_node_id)]))
        asked(strategy)
        unseen = self.asking.ask(
            strategy,
            questions,
            timeout_s=max(plan.round_timeout_s - spent_s, 1.0),
            timeouts_s={site: max(limit - spent_s, 1.0) for site, limit in plan.site_timeouts_s.items()},
            retries=plan.retries,
            heard=heard,
        )
        strategy.finish(number)
        sites = {**told, **strategy.answers[number], **unseen}
        used = [site for site, entry in sites.items() if entry.answer == "used"]
        try:
            sums = self._unmasked(one, number, attempt, nodes)
        except SecureSumError as error:
            for site in used:
                reason = f"sound, but the masks could not be taken off the sum: {printable(str(error))}"
                sites[site] = sites[site].model_copy(update={"answer": "quarantined", "reason": reason})
            return MaskedRound(sites, guilty=one.guilty)
        return MaskedRound(sites, tuple(used), sums, one.guilty)

    def _unmasked(
        self, one: CoordinatorRound, number: int, attempt: int, nodes: Mapping[int, str]
    ) -> dict[str, npt.NDArray[np.float64]]:
        """The sum over who answered. Raises `SecureSumError`."""
        survivors = one.survivors()
        left = {node: site for node, site in nodes.items() if site in survivors}
        names = {"survivors": list(survivors)}
        agreed: dict[str, bytes] = {}
        if one.circle.must_agree:
            said = self._words("agree", number, attempt, left, {}, config=names)
            agreed = one.agreed({site: found["signature"] for site, found in said.items() if "signature" in found})
        bring = {site: {"agreed": agreed} for site in survivors}
        answers = self._words("unmask", number, attempt, left, {}, config=names, bring=bring)
        return self.steps.decode(one.unmask(answers), sites=survivors)

    def _words(
        self,
        what: str,
        number: int,
        attempt: int,
        nodes: Mapping[int, str],
        told: dict[str, SiteRound],
        *,
        config: Mapping[str, Any] | None = None,
        bring: Mapping[str, Mapping[str, Mapping[str, bytes]]] | None = None,
    ) -> dict[str, dict[str, bytes]]:
        """Answers of the hospitals to one question without weights, by name; `told` gets why one has none."""
        limit = min(WORDS_S, self.study.strategy.round_timeout_s / 4)
        common = {"study-hash": self.study.hash, "server-round": number, "attempt": attempt, **(config or {})}
        questions = []
        for node, site in nodes.items():
            content = RecordDict({"config": ConfigRecord(dict(common))})
            for record, pieces in (bring or {}).get(site, {}).items():
                content[record] = ConfigRecord(dict(pieces))
            questions.append(
                Message(content, node, f"{MessageType.QUERY}.secure_{what}", ttl=limit + CLOCKS_S, group_id=str(number))
            )
        found: dict[str, dict[str, bytes]] = {}
        for node, reply in self._replies(questions, limit).items():
            site = nodes[node]
            if reply.has_error():
                refused = reply.error.code == DECLINED
                told[site] = SiteRound(
                    answer="declined" if refused else "failed",
                    reason=printable(reply.error.reason or f"error {reply.error.code}"),
                )
                continue
            try:
                found[site] = sound_pieces(reply.content)
            except ValueError as error:
                told[site] = SiteRound(answer="quarantined", reason=f"asked for {what}: {error}")
        for site in nodes.values():
            if site not in found:
                told.setdefault(site, SiteRound(answer="absent", reason=f"no answer in time when it was asked for {what}"))
        return found

    def _replies(self, questions: Sequence[Message], limit: float) -> dict[int, Message]:
        """Node -> the first answer, until all have answered or the time is over."""
        if not questions:
            return {}
        start = self.clock()
        self.grid.push_messages(questions)
        waiting = {question.metadata.message_id: question.metadata.dst_node_id for question in questions}
        found: dict[int, Message] = {}
        while waiting:
            replies, unreadable = pulled(self.grid, list(waiting))
            for reply in replies:
                node = waiting.pop(reply.metadata.reply_to_message_id, None)
                if node is not None:
                    found[node] = reply
            for question in unreadable:
                waiting.pop(question)
            left = limit - (self.clock() - start)
            if (isinstance(self.grid, Simulated) and not replies) or left <= 0:
                break
            if not replies:
                time.sleep(pause(self.clock() - start, left))
        return found
