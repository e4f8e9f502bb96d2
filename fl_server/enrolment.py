"""Who is who: which node of the federation is which hospital, and which hospitals take part in a study.

Flower knows nodes by number; a study names hospitals. Each node is asked once, by name and before any round, so that every
planned hospital has an entry in every round, and a refusal is told with its reason.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from conf.study import Study
from fl_server.record import LONGEST_REASON, SiteRound


class Enrolment:
    """Which node is which hospital, and which hospitals take part: learned from their answers to `query.enroll`."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.nodes: dict[int, str] = {}  # of hospitals that take part, in the study's order
        self.sizes: dict[str, int] = {}  # declared, public
        self.deltas: dict[str, float] = {}  # at which a hospital's ledger states its epsilon
        self.reasons: dict[str, str] = {}  # why a planned hospital does not take part
        self.failures: list[str] = []  # of nodes that gave no name
        self._names: dict[int, str] = {}  # every node that has answered

    def wait(self, grid: Grid, *, timeout_s: float) -> None:
        """Ask until every planned hospital has answered or the time is over."""
        end = time.monotonic() + timeout_s
        self.ask(grid)
        while not set(self.study.sites) <= set(self._names.values()) and time.monotonic() < end:
            if set(grid.get_node_ids()) <= set(self._names):
                time.sleep(min(1.0, max(0.0, end - time.monotonic())))
            self.ask(grid)

    def ask(self, grid: Grid) -> None:
        """Ask the nodes that have not answered yet."""
        if set(self.study.sites) <= set(self._names.values()):
            return
        content = RecordDict({"config": ConfigRecord({"study-hash": self.study.hash})})
        new = [node for node in grid.get_node_ids() if node not in self._names]
        kind, ttl = f"{MessageType.QUERY}.enroll", self.study.strategy.round_timeout_s
        for reply in grid.send_and_receive([Message(content, n, kind, ttl=ttl) for n in new], timeout=ttl) if new else []:
            node = reply.metadata.src_node_id
            if reply.has_error():  # whose it is can't be known: it gives no name
                self._names[node] = ""
                self.failures.append(f"node {node}: {(reply.error.reason or '')[:LONGEST_REASON]}")
            else:
                self._enter(node, dict(reply.content.config_records.get("enrolment", {})))

    def _enter(self, node: int, answer: Mapping[str, object]) -> None:
        name, size = str(answer.get("site", "")), answer.get("declared-size")
        self._names[node] = name
        if name not in self.study.sites:
            return
        if list(self._names.values()).count(name) > 1:
            self.reasons[name] = f"more than one node says it is {name}; none of them is asked"
            self.nodes = {n: site for n, site in self.nodes.items() if site != name}
        elif answer.get("takes-part") is not True:
            self.reasons[name] = str(answer.get("reason", ""))[:LONGEST_REASON] or "declined without a reason"
        elif not isinstance(size, int) or size < 1:
            self.reasons[name] = f"declared the size {size!r}; it must be a whole number, 1 or more"
        else:
            self.sizes[name] = size
            if isinstance(delta := answer.get("delta"), float):
                self.deltas[name] = delta
            order = self.study.sites.index
            self.nodes = dict(sorted({**self.nodes, node: name}.items(), key=lambda item: order(item[1])))

    def missing(self, site: str) -> SiteRound:
        """The entry of a planned hospital that was not asked in a round."""
        if site in self.reasons:
            return SiteRound(answer="declined", reason=self.reasons[site])
        if site in self.nodes.values():
            found, wanted = len(self.nodes), self.study.strategy.quorum
            return SiteRound(
                answer="absent", reason=f"not asked: {found} of the {wanted} hospitals that a round needs take part"
            )
        unnamed = f"; without a name answered {', '.join(self.failures)}" if self.failures else ""
        return SiteRound(answer="absent", reason=f"no node has enrolled under this name{unnamed}")
