"""A study as it stands, as data: `konsil-study status` prints it, `--json` gives it to scripts, `watch` draws it.

What has been comes from the record, what is going on from now.json, what is wanted from run.json. now.json is only believed
while the process that wrote it is there: else the study was interrupted, and the picture says so.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict

from fl_server.console.files import Files, Found
from fl_server.live import Now
from fl_server.record import Answer, Outcome, Record
from fl_server.runs import Standing

State = Literal[
    "waiting",
    "enrolling",
    "round",
    "validation",
    "scores",
    "matrix",
    "stopping",
    "interrupted",
    "stopped",
    "over",
    "unreadable",
]
"""`waiting`: it was started and has not said anything yet. `stopping`: a person has said stop, and its process is still there.
`interrupted`: its process is gone, and nobody has said stop."""

NOISE = "noise_sd/"
"""Before a score's name: what the noise alone may have added (`tasks.task.NOISE_SD`, whose import takes seconds)."""

ABOUT_SCORES = (NOISE, "patients/")
"""How names begin that say something about a score and are none."""

RUNNING = ("waiting", "enrolling", "round", "validation", "scores", "matrix")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SitePicture(_Part):
    """One planned hospital."""

    answers: dict[str, int]  # how often it gave each kind of answer in the rounds so far
    last: list[Answer]  # its answers in the latest rounds, the oldest first
    reason: str = ""  # its own words, or the coordinator's, about the latest answer that was not used
    awaited_s: float | None = None  # since it was asked; None: it is not being waited for
    seconds: float | None = None  # that it took in the latest round in which it answered
    epsilon: float | None = None  # its ledger's, other studies included, at `delta`; None: not told, or no privacy
    delta: float | None = None
    told_in: str = ""  # the question in whose answer it told that epsilon, if it was asked again since


class Picture(_Part):
    """One study. Times are ISO 8601, UTC."""

    name: str
    study_hash: str = ""
    state: State
    said: str  # the state in a sentence
    run: int | None = None  # Flower's number
    round: int = 0  # under way, or the last that ended
    ended_rounds: int = 0
    rounds: int = 0  # planned
    started: str = ""
    ended: str = ""
    deadline_s: float | None = None  # until the round, or the waiting for enough hospitals, is over, whoever has answered
    left_s: float | None = None  # by the median of the rounds so far; None: not known, or not running
    verdict: Outcome | None = None  # so far, as long as the study is not over; None: nothing has been heard yet
    reasons: list[str] = []
    remarks: list[str] = []  # about scores; the verdict doesn't depend on them
    interruptions: int = 0  # from which it went on
    promise: float | None = None  # epsilon for a patient of each hospital, in this study; None: no privacy
    selected_round: int | None = None
    stopped_early: str = ""
    scores: dict[str, list[tuple[int, float]]] = {}  # of validation patients: name -> round and value
    final_scores: dict[str, float] = {}  # of the final model, on patients that nobody chose by
    missing: dict[str, str] = {}  # while it waits for hospitals to take part: those that don't, and why
    sites: dict[str, SitePicture] = {}

    @property
    def over(self) -> bool:
        """True when nothing more will happen unless a person does something."""
        return self.state in ("over", "stopped", "unreadable")

    @property
    def awaited(self) -> dict[str, float]:
        """Hospital -> seconds since it was asked, the longest first."""
        found = {name: site.awaited_s for name, site in self.sites.items() if site.awaited_s is not None}
        return dict(sorted(found.items(), key=lambda item: -item[1]))


LAST = 24
"""Answers that a picture keeps of each hospital."""


def picture(files: Files, name: str = "") -> Picture:
    """The study in a folder as it stands now; a folder that can't be read gives a picture that says so.

    `name` is what the study is called on this screen, if it is not its folder's name.
    """
    name = name or files.folder.name
    try:
        found = seen(files, name, files.read())
        if found.state == "interrupted":  # or its process said its last word and ended between two of our looks
            found = seen(files, name, files.read())
        return found
    except (OSError, ValueError) as error:
        return Picture(name=name, state="unreadable", said=f"its files can't be read: {error}")


def seen(files: Files, name: str, read: Found) -> Picture:
    """The picture of what was read in a folder; before its first line, with what is known of the study that is to be run."""
    one = drawn(name, read)
    study = files.study() if read[0] is None and one.state != "unreadable" else None
    if study is None or study.hash != one.study_hash:
        return one
    asked = {
        "rounds": study.rounds,
        "sites": {site: SitePicture(answers={}, last=[]) for site in study.sites},
        "promise": study.privacy.epsilon if study.privacy.kind == "patient" else None,
    }
    return one.model_copy(update=asked)


def drawn(name: str, found: Found, at: float | None = None) -> Picture:
    """The picture of what was read, at the time `at` (seconds since 1970)."""
    record, now, standing = found
    at = time.time() if at is None else at
    if record is None:
        return _unsaid(name, standing)
    live = now if now is not None and now.alive and now.study_hash == record.study_hash else None
    done = len(record.rounds)
    state, said = _state(record, now, live, standing)
    awaited = {site: at - live.asked[site] for site in live.awaited if site in live.asked} if live is not None else {}
    privacy = record.study.get("privacy", {})
    return Picture(
        name=name,
        study_hash=record.study_hash,
        state=state,
        said=said,
        run=standing.run if standing is not None else None,
        round=max(live.round, done) if live is not None else done,
        ended_rounds=done,
        rounds=int(record.study["rounds"]),
        started=min(filter(None, [record.started, standing.started if standing is not None else ""]), default=""),
        ended=record.ended,
        deadline_s=live.deadline - at if live is not None and live.deadline is not None else None,
        left_s=_left(record, live, at) if live is not None else None,
        verdict=verdict_so_far(record, over=state in ("over", "stopped")),
        reasons=reasons_so_far(record, over=state in ("over", "stopped")),
        remarks=list(record.remarks),
        interruptions=len(record.resumed),
        promise=privacy.get("epsilon") if privacy.get("kind", "patient") == "patient" else None,
        selected_round=record.selected_round,
        stopped_early=record.stopped_early,
        scores=_scores(record),
        final_scores=dict(record.evaluation.scores) if record.evaluation is not None else {},
        missing=dict(live.missing) if live is not None else {},
        sites={site: _site(site, record, awaited) for site in record.study["sites"]},
    )


def _unsaid(name: str, standing: Standing | None) -> Picture:
    if standing is None:
        return Picture(name=name, state="unreadable", said="there is neither a record nor a run of it")
    stopped = standing.wanted != "running"
    return Picture(
        name=name,
        study_hash=standing.study_hash,
        state="stopped" if stopped else "waiting",
        said=(f"stopped before its first line: {standing.why or 'by a person'}" if stopped else "started; has not begun yet"),
        run=standing.run,
        started=standing.started,
    )


def _state(record: Record, now: Now | None, live: Now | None, standing: Standing | None) -> tuple[State, str]:
    done, planned = len(record.rounds), int(record.study["rounds"])
    if record.finished or (now is None and standing is None and done >= record.planned_rounds):
        still = f", {len(record.unmoved)} of which changed nothing" if record.unmoved else ""
        return "over", f"over: {record.verdict}, {done} of {planned} rounds{still}" + _early(record)
    stopped = standing is not None and standing.wanted == "stopped"
    if live is not None:
        phases: dict[str, tuple[State, str]] = {
            "enrolling": ("enrolling", _enrolling(live, planned=len(record.study["sites"]))),
            "validation": ("validation", f"asking for scores of the model after round {live.round}"),
            "scores": ("scores", "asking for the final scores"),
            "matrix": ("matrix", "asking for every model's scores at every hospital"),
        }
        phase, doing = phases.get(live.phase, ("round", f"in round {live.round} of {planned}"))
        return ("stopping", f"stopping; it was {doing}") if stopped else (phase, doing)
    rest = f"after round {done} of {planned}"
    if standing is not None and stopped:
        return "stopped", f"stopped {rest}" + (f": {standing.why}" if standing.why else "")
    if now is None:
        if standing is not None:
            return "waiting", f"started; nothing has been heard of it {rest}"
        return "interrupted", f"interrupted {rest}: nothing says that a process is still at it"
    seen = f"{datetime.fromtimestamp(now.updated).astimezone():%Y-%m-%d %H:%M:%S}"
    return "interrupted", f"interrupted {rest}: its process ({now.pid}) is not there any more; last heard of at {seen}"


def _enrolling(live: Now, *, planned: int) -> str:
    if not live.needed:
        return "asking hospitals whether they take part"
    return f"waiting for hospitals: {planned - len(live.missing)} of the {live.needed} that it needs take part"


def _early(record: Record) -> str:
    return f" ({record.stopped_early})" if record.stopped_early else ""


def verdict_so_far(record: Record, *, over: bool) -> Outcome | None:
    """The verdict as if the study had no further rounds, as long as it has some; None before the first."""
    if over:
        return record.verdict
    if not record.rounds:
        return None
    answers = [site.answer for entry in record.rounds for site in entry.sites.values()]
    if "used" not in answers:
        return "failed"
    return "degraded" if reasons_so_far(record, over=False) else "complete"


def reasons_so_far(record: Record, *, over: bool) -> list[str]:
    """Why the verdict is not `complete`; what is only still to come is no reason."""
    if over:
        return list(record.reasons)
    copy = record.model_copy(update={"study": {**record.study, "rounds": len(record.rounds)}})
    copy.study["privacy"] = {
        name: value for name, value in record.study.get("privacy", {}).items() if not name.endswith("_share")
    }
    copy.judge()
    return copy.reasons


def _site(name: str, record: Record, awaited: Mapping[str, float]) -> SitePicture:
    entries = [entry.sites[name] for entry in record.rounds if name in entry.sites]
    answers = [entry.answer for entry in entries]
    reason = next((entry.reason for entry in reversed(entries) if entry.answer != "used"), "")
    known = record.sites.get(name)
    return SitePicture(
        answers={kind: answers.count(kind) for kind in get_args(Answer) if kind in answers},
        last=answers[-LAST:],
        reason=reason,
        awaited_s=awaited.get(name),
        seconds=next((entry.seconds for entry in reversed(entries) if entry.seconds is not None), None),
        epsilon=known.epsilon if known is not None else None,
        delta=known.delta if known is not None else None,
        told_in=record.told_in(name),
    )


def _scores(record: Record) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for entry in record.rounds:
        if entry.validation is not None:
            for name, (value, _) in entry.validation.figures.items():
                found.setdefault(name, []).append((entry.round, value))
    return found


def _left(record: Record, live: Now, at: float) -> float | None:
    """Seconds until the last round's end, if rounds go on as half of them did."""
    lengths = [entry.seconds for entry in record.rounds]
    if not lengths or live.phase not in ("round", "validation"):
        return None
    median = statistics.median(lengths)
    to_come = record.planned_rounds - len(record.rounds)
    gone = at - live.began if live.phase == "round" else 0.0
    return max(0.0, median - gone) + median * max(0, to_come - 1) if to_come else 0.0
