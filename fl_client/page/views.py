"""What stands on each view: facts of the house, read at the moment of asking, ready for the templates.

Whatever can't be read is told in words in its own place, and the rest stands.
"""

from __future__ import annotations

import json
import time
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, TypeVar

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from conf.study import Study
from fl_client.approval import Approval, Approvals
from fl_client.audit import AuditLog
from fl_client.chain import Body
from fl_client.cohort import Cohort
from fl_client.decision import DAYS, ledger_of
from fl_client.failures import failures
from fl_client.halt import FILE
from fl_client.page.jobs import in_words
from fl_client.privacy import Event
from fl_client.site import Site
from fl_client.standing import Standing, standing

HERE = Path(__file__).parent
LINES = 50
"""Lines of a log on one page."""

T = TypeVar("T")


@dataclass(frozen=True)
class Look(Generic[T]):
    """What was found, or why nothing could be."""

    value: T | None = None
    trouble: str = ""


def look(at: Callable[[], T]) -> Look[T]:
    """Read something; what is wrong with it is told and hides nothing else."""
    try:
        return Look(at())
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        return Look(trouble=in_words(error))


def environment() -> Environment:
    """The templates. What they are given is escaped, and characters that can't be seen are shown by their numbers."""
    made = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=visible,
    )
    made.filters |= {"when": when, "ago": ago, "size": size, "short": lambda text: str(text)[:12], "short_number": short_number}
    return made


def visible(value: Any) -> Any:
    """A text without characters that hide or turn around what stands beside them: a study's text must be what one reads.

    >>> visible("safe\\u202eexe")
    'safe⟨U+202E⟩exe'
    """
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    hidden = {c for c in value if unicodedata.category(c) in ("Cc", "Cf", "Co", "Cs", "Cn", "Zl", "Zp") and c not in "\n\t"}
    for character in hidden:
        value = value.replace(character, f"⟨U+{ord(character):04X}⟩")
    return value


def when(text: Any) -> str:
    """`2026-11-22 08:15` of an ISO time, UTC."""
    return str(text)[:16].replace("T", " ")


def ago(seconds: float) -> str:
    """`3 min ago` of seconds since 1970."""
    since = max(0.0, time.time() - seconds)
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if since >= (2 * length if unit == "days" else length):
            return f"{since / length:.0f} {unit} ago"
    return f"{since:.0f} s ago"


def size(count: Any) -> str:
    """`1.3 MB` of bytes."""
    number = float(count or 0)
    for unit in ("bytes", "kB", "MB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "bytes" else f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} GB"


def short_number(value: float) -> str:
    """Four digits of a number, large ones in full.

    >>> short_number(0.123456), short_number(12345.6)
    ('0.1235', '12346')
    """
    return f"{value:.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:.4g}"


# -- status -----------------------------------------------------------------------------------------------------------


def status(site: Site) -> dict[str, Any]:
    """How the house stands."""
    now = look(lambda: standing(site))
    return {
        "now": now.value,
        "trouble": now.trouble,
        "halt": _halt(site) if now.value is None or now.value.halted else {},
        "doing": _doing(site),
        "budget": _budget(now.value) if now.value else None,
        "recent": look(lambda: _named(site, left_lines(site)[-5:][::-1])),
        "wrong": wrong(site, now.value) if now.value else [],
        "idle": bool(now.value and absent(site, now.value)),
        "rehearsal": rehearsal(site),
    }


def rehearsal(site: Site) -> list[str]:
    """Settings that no hospital should run with."""
    said = {
        "noise_seed is set: the noise can be repeated and protects nobody": site.noise_seed is not None,
        "accept_no_privacy is set: updates may leave without noise": site.accept_no_privacy,
        "approve_all is set: nobody is asked": site.approve_all,
    }
    return [text for text, applies in said.items() if applies]


def wrong(site: Site, now: Standing) -> list[str]:
    """What a person has to look at."""
    found = [*now.wrong, *now.crashing, *now.line]
    if not now.halted:
        found += [f"the {role} isn't running; konsil-site start runs it" for role in absent(site, now)]
    if now.patients < site.minimum_cohort:
        found.append(
            f"{now.patients} patients are inside; with fewer than minimum_cohort {site.minimum_cohort} no study can be approved"
        )
    return found


def absent(site: Site, now: Standing) -> list[str]:
    """Roles that the settings ask for and that don't run."""
    expected = {
        "intake": site.dicom is not None or site.arrivals.watch is not None,
        "trainer": site.coordinator is not None,
    }
    return [role for role, wanted in expected.items() if wanted and role not in {*now.running, *now.elsewhere}]


def _halt(site: Site) -> dict[str, str]:
    try:
        told = json.loads((site.folder / FILE).read_text())
        return {key: str(told.get(key, "")) for key in ("state", "who", "why", "when")}
    except (OSError, ValueError, AttributeError):
        return {"state": "stopped", "who": "", "why": f"{FILE} can't be read, so everything is stopped", "when": ""}


def _doing(site: Site) -> dict[str, Any]:
    """What the worker said last."""
    try:
        told = json.loads((site.folder / "run" / "supernode" / "worker.json").read_text())
        return {"doing": str(told["doing"]), "since": float(told["since"])}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


@dataclass(frozen=True)
class Spent:
    """The budget as a bar."""

    epsilon: float
    budget: float
    delta: float
    releases: int

    @property
    def share(self) -> float:
        """How much of the budget is spent, 0 to 100."""
        return round(100 * min(1.0, self.epsilon / self.budget), 2)

    @property
    def left(self) -> str:
        """What is left, in words."""
        if self.epsilon > self.budget:
            return "more than the budget is spent"
        return f"{self.budget - self.epsilon:.4g} below the budget"


def _budget(now: Standing) -> Spent | None:
    return None if now.epsilon is None else Spent(now.epsilon, now.budget, now.delta, now.releases)


# -- studies ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """A study that this hospital was asked to join, and what was decided."""

    study: Study
    decision: Approval | None
    paid: int | None  # rounds in the ledger; None: the ledger can't be read

    @property
    def state(self) -> str:
        """`waiting`, `approved`, `declined` or `over` (a yes whose last day has passed)."""
        if self.decision is None:
            return "waiting"
        over = self.decision.until is not None and f"{datetime.now(UTC):%Y-%m-%d}" > self.decision.until
        return "over" if over and self.decision.decision == "approved" else self.decision.decision

    @property
    def price(self) -> str:
        """What it promises to cost at most."""
        privacy = self.study.privacy
        return "no privacy" if privacy.kind == "none" else f"epsilon {privacy.epsilon:g} (delta {privacy.delta:g})"


def asked(site: Site) -> tuple[list[Asked], list[str]]:
    """Every study, waiting ones first, and what can't be read."""
    approvals = Approvals(site.folder)
    troubles: list[str] = []
    decisions = look(lambda: approvals.decisions)
    events = look(lambda: ledger_of(site).events)
    troubles += [found.trouble for found in (decisions, events) if found.trouble]
    found = []
    for path in sorted(approvals.studies_folder.glob("*.json"), key=lambda path: path.stat().st_mtime, reverse=True):
        read = look(lambda path=path: _study(path))  # type: ignore[misc]
        if read.value is None:
            troubles.append(f"{path}: {read.trouble}")
            continue
        found.append(_asked(read.value, decisions.value, events.value))
    order = {"waiting": 0, "approved": 1, "over": 2, "declined": 3}
    return sorted(found, key=lambda one: order[one.state]), troubles


def _study(path: Path) -> Study:
    study = Study.from_json(path.read_text())
    if study.hash != path.stem:
        raise ValueError("its text doesn't have the hash that it is kept under")
    return study


def _asked(study: Study, decisions: Mapping[str, Approval] | None, events: tuple[Event, ...] | None) -> Asked:
    scores = ("scores", "validation", "matrix")  # kinds of events that are no rounds: fl_client/price.py, which needs torch
    paid = None if events is None else sum(event.study == study.hash and event.kind not in scores for event in events)
    return Asked(study, (decisions or {}).get(study.hash), paid)


def one_study(site: Site, key: str) -> Asked | None:
    """The study of this hash, in full; None if there is none."""
    approvals = Approvals(site.folder)
    path = next((path for path in approvals.studies_folder.glob("*.json") if path.stem == key), None)
    if path is None:
        return None
    decisions, events = look(lambda: approvals.decisions), look(lambda: ledger_of(site).events)
    return _asked(_study(path), decisions.value, events.value)


def clauses(site: Site, study: Study) -> list[tuple[str, list[str]]]:
    """The contract in words, as the command line shows it."""
    from fl_client.contract import contract  # here: tasks import torch

    return list(contract(site, study, days=DAYS))


# -- what left --------------------------------------------------------------------------------------------------------


def left_lines(site: Site) -> list[Body]:
    """Every message that left, oldest first, after checking the chain. Raises `AuditBroken`."""
    return [line for line in AuditLog(site.folder / "audit.jsonl").lines if line["happening"] == "egress"]


def _named(site: Site, lines: list[Body]) -> list[Body]:
    """The lines with the studies' names where they are known here."""
    names = look(lambda: {path.stem: _study(path).name for path in Approvals(site.folder).studies_folder.glob("*.json")})
    known = names.value or {}
    return [{**line, "name": known.get(str(line.get("study")), "")} for line in lines]


def left(site: Site, page: int) -> dict[str, Any]:
    """What left the house, the ledger beside it, and who decided."""
    lines = look(lambda: left_lines(site))
    shown = Shown.of(lines.value or [], page)
    return {
        "trouble": lines.trouble,
        "shown": shown,
        "lines": _named(site, shown.items),
        "bytes": sum(int(line.get("bytes") or 0) for line in lines.value or ()),
        "checked": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}",
        "ledger": look(lambda: _ledger(site)),
        "decisions": look(lambda: list(Approvals(site.folder).decisions.values())[::-1]),
    }


def _ledger(site: Site) -> dict[str, Any]:
    book = ledger_of(site)
    events = book.events
    return {
        "events": [(number, event) for number, event in enumerate(events, start=1)][::-1][:200],
        "count": len(events),
        "epsilon": book.epsilon,
        "budget": book.budget,
        "delta": book.delta,
        "repeatable": sum(event.noise == "seeded" for event in events),
        "bare": sum(event.noise_multiplier == 0 for event in events),
    }


def ledger_png(site: Site) -> bytes:
    """Where the budget went, as a picture. Raises `LedgerBroken`."""
    from io import BytesIO

    from fl_client.page.people import drawing  # matplotlib's fonts are shared between threads
    from fl_client.spending import spending  # here: the accountant and matplotlib take a second to import
    from fl_client.spending_plot import spending_plot

    account, out = spending(ledger_of(site), hospital=site.name), BytesIO()
    with drawing:
        spending_plot(account).savefig(out, format="png", dpi=160)
    return out.getvalue()


@dataclass(frozen=True)
class Shown(Generic[T]):
    """One page of many lines, the newest first."""

    items: list[T]
    page: int
    pages: int
    count: int

    @classmethod
    def of(cls, everything: list[T], page: int, *, each: int = LINES, newest_first: bool = True) -> Shown[T]:
        """Page `page` from 1 on; a page that isn't there is the nearest one."""
        pages = max(1, -(-len(everything) // each))
        page = min(max(1, page), pages)
        ordered = everything[::-1] if newest_first else everything
        return cls(ordered[(page - 1) * each : page * each], page, pages, len(everything))


# -- log --------------------------------------------------------------------------------------------------------------


def log(site: Site, page: int) -> dict[str, Any]:
    """What failed, as numbers and places, and what people and the daemon did."""
    failed = look(lambda: list(failures(site.folder / "log")))
    happened = look(lambda: [line for line in AuditLog(site.folder / "audit.jsonl").lines if line["happening"] != "egress"])
    return {
        "failed": failed,
        "shown": Shown.of(failed.value or [], page, each=20),
        "happened": [_happening(line) for line in (happened.value or [])[-100:][::-1]],
        "trouble": happened.trouble,
    }


def _happening(line: Body) -> tuple[str, str, str, str]:
    """Time, what, who, and the rest in words."""
    said = ("line", "time", "happening", "what", "who")
    facts = {key: value for key, value in line.items() if key not in said and value is not None}
    for key in ("study", "sha256"):
        if isinstance(facts.get(key), str):
            facts[key] = facts[key][:12]
    rest = "; ".join(
        f"{key}: {', '.join(value) if isinstance(value, list) else value}" for key, value in facts.items() if value != ""
    )
    return str(line["time"]), f"{line['happening']} {line.get('what') or ''}".strip(), str(line.get("who") or ""), rest


def people(site: Site, found: Any, *, place: str, start: str) -> Iterator[tuple[str, str]]:
    """Pseudonyms in one place with the reason why they are there, those that begin with `start`."""
    if place == "inside":
        everybody: Mapping[str, str] = dict.fromkeys(found.inside if found else Cohort(site.cohort_folder).patients, "")
    elif found is None:
        everybody = {}
    else:
        everybody = {"refused": found.refused, "quarantine": found.quarantined, "damaged": found.damaged}.get(place, {})
    for patient in sorted(everybody):
        if patient.lower().startswith(start.lower()):
            yield patient, everybody[patient]
