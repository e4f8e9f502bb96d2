"""How the house stands: what runs, what waits for a person, what is left of the budget, what left the house."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fl_client import crashes, dialling
from fl_client.approval import Approvals
from fl_client.audit import AuditBroken, AuditLog
from fl_client.chain import Body
from fl_client.cohort import Cohort
from fl_client.halt import halted
from fl_client.privacy import Ledger, LedgerBroken
from fl_client.site import Site
from fl_client.supernode import runtime_folder
from fl_client.synthetic import how_many


@dataclass(frozen=True)
class Standing:
    """The house at one instant. Numbers of patients are exact: they are for the hospital alone."""

    name: str
    halted: str  # "", "paused", "stopped"
    running: dict[str, int]  # role: process
    elsewhere: dict[str, str]  # roles that can't be seen from here, in words
    patients: int
    withdrawn: int
    refused: int  # lines that say what stayed outside
    waiting: tuple[str, ...]  # hashes of studies that nobody has decided about
    approved: tuple[str, ...]
    releases: int
    epsilon: float | None  # None: the ledger is broken
    budget: float
    delta: float
    left_the_house: int  # messages
    last_left: Body | None
    wrong: tuple[str, ...]  # what a person has to look at
    arriving: tuple[str, ...] = ()  # what waits in the identity zone, where this user may see it
    line: tuple[str, ...] = ()  # what is wrong with the line to the coordinator, or was when the SuperNode last dialled
    synthetic: int = 0  # cases that train beside the patients
    crashing: tuple[str, ...] = ()  # parts that end by themselves again and again, as far as this user can see


def standing(site: Site) -> Standing:
    """Look once; what can't be read is told in `wrong`, the rest stands."""
    from fl_client.daemon import elsewhere, running

    wrong: list[str] = []
    cohort = Cohort(site.cohort_folder)
    approvals = Approvals(site.folder)
    releases, epsilon = 0, None
    try:
        book = Ledger(site.ledger_path, epsilon=site.budget.epsilon, delta=site.budget.delta)
        releases, epsilon = len(book.events), book.epsilon
    except LedgerBroken as broken:
        wrong.append(str(broken))
    left: list[Body] = []
    try:
        left = [line for line in AuditLog(site.folder / "audit.jsonl").lines if line["happening"] == "egress"]
    except AuditBroken as broken:
        wrong.append(str(broken))
    decided = {}
    try:
        decided = approvals.decisions
    except ValueError as error:
        wrong.append(str(error))
    refused = 0
    try:
        refused = len(cohort.refused)
    except OSError as error:
        wrong.append(f"{cohort.folder / 'refused.jsonl'} can't be read: {error}")
    studies = {}
    try:
        studies = approvals.studies
    except ValueError as error:
        wrong.append(f"a study in {approvals.studies_folder} can't be read: {error}")
    synthetic = 0
    try:
        synthetic = how_many(site)
    except (OSError, ValueError) as error:
        wrong.append(str(error))
    here, others = running(site), elsewhere(site)
    return Standing(
        name=site.name,
        halted=halted(site.folder),
        running=here,
        elsewhere=others,
        patients=len(cohort),
        withdrawn=len(cohort.withdrawn),
        refused=refused,
        waiting=tuple(key for key in studies if key not in decided),
        approved=tuple(key for key in studies if key in decided and decided[key].decision == "approved"),
        releases=releases,
        epsilon=epsilon,
        budget=site.budget.epsilon,
        delta=site.budget.delta,
        left_the_house=len(left),
        last_left=left[-1] if left else None,
        wrong=tuple(wrong),
        arriving=_arriving(site),
        line=tuple(_line(site, runs={*here, *others})),
        crashing=tuple(crashes.told(site).values()),
        synthetic=synthetic,
    )


def _line(site: Site, *, runs: set[str]) -> list[str]:
    from fl_client.daemon import doing

    folder = runtime_folder(site)
    waits = "trainer" in runs and doing(site) == "waiting"  # else nobody listens at the time
    return dialling.told(folder) + (dialling.silence(folder) if waits else [])


def _arriving(site: Site) -> tuple[str, ...]:
    from fl_client.intake.waiting import waiting

    try:
        return tuple(waiting(site).told())
    except OSError:  # the intake's user can see it
        return ()


def told(now: Standing) -> list[str]:
    """The same in sentences."""
    state = {
        "": "works",
        "paused": "has paused: it declines whatever is asked",
        "stopped": "is stopped: nothing runs or leaves",
    }
    lines = [f"{now.name} {state[now.halted]}"]
    roles = ", ".join(f"{role} (process {pid})" for role, pid in now.running.items())
    if roles or not now.elsewhere:
        lines.append(f"running: {roles}" if roles else "nothing of it is running (konsil-site start)")
    lines += [f"the {role} {words}" for role, words in now.elsewhere.items()]
    lines.append(f"{now.patients} patients inside, {now.withdrawn} withdrawn; {now.refused} lines say what stayed outside")
    if now.synthetic:
        lines.append(f"{now.synthetic} synthetic cases train beside them and are no patients")
    waiting = "; ".join(f"konsil-site show {key[:12]}" for key in now.waiting)
    lines.append(f"{len(now.waiting)} studies wait for a decision: {waiting}" if waiting else "no study waits for a decision")
    if now.epsilon is not None:
        lines.append(f"{now.releases} releases, epsilon {now.epsilon:.4g} of {now.budget:g} at delta {now.delta:g}")
    if now.last_left:
        lines.append(f"{now.left_the_house} messages left the house, the last one on {now.last_left['time']}")
    lines += now.arriving
    return [*lines, *(f"LOOK: {wrong}" for wrong in (*now.wrong, *now.crashing, *now.line))]


def audit_lines(path: Path, *, last: int) -> list[str]:
    """The last `last` lines of the audit log (0: all), one sentence each, after checking the whole chain."""
    lines = AuditLog(path).lines
    return [_sentence(line) for line in (lines[-last:] if last else lines)]


def _sentence(line: Body) -> str:
    facts = {key: value for key, value in line.items() if key not in ("line", "time", "happening") and value is not None}
    for key in ("study", "sha256"):
        if isinstance(facts.get(key), str):
            facts[key] = facts[key][:12]
    return f"{line['line']:5}  {line['time'][:19]}  {line['happening']:9}  " + ", ".join(f"{k} {v}" for k, v in facts.items())
