"""What has happened in a study, one line for each thing: `konsil-study log`.

The record gives the rounds, scores and interruptions that are behind it, now.json the present moment. A line that changes (a
hospital's answer came late) is told again.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict

from fl_server.console.files import Found
from fl_server.console.words import scored, spoken
from fl_server.live import Now
from fl_server.record import Evaluation, Record, SiteRound
from fl_server.runs import Standing

FEW = 12
"""So many hospitals of one answer are named; more are counted."""

Key = tuple[str, int, str]


class Event(BaseModel):
    """One thing that happened."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: Key  # kind, round, hospital: of one key there is one line, unless it changes
    when: str  # ISO 8601, UTC; empty: the record does not say
    text: str

    @property
    def line(self) -> str:
        """The event for a person, in the time of this machine."""
        if not self.when:
            return f"{'':19}  {self.text}"
        return f"{datetime.fromisoformat(self.when).astimezone():%Y-%m-%d %H:%M:%S}  {self.text}"

    @property
    def json_line(self) -> str:
        """The event for a script."""
        kind, number, site = self.key
        return json.dumps({"when": self.when, "what": kind, "round": number, "site": site, "text": self.text})


def events(read: Found) -> list[Event]:
    """Everything that is known to have happened, the latest last."""
    record, now, standing = read
    found = list(_begun(record, standing))
    if record is not None:
        found += _behind(record)
        if now is not None and now.study_hash == record.study_hash and now.phase != "ended":
            found += _present(record, now)
    if standing is not None and standing.wanted == "stopped" and not (record is not None and record.finished):
        found.append(
            _event("stopped", when=standing.stopped, text="stopped" + (f": {standing.why}" if standing.why else " by a person"))
        )
    return found


class Teller:
    """Tells of everything that happens, once; and again what has changed since."""

    def __init__(self, tell: Callable[[Event], None]) -> None:
        self._tell = tell
        self._told: dict[Key, str] = {}

    def __call__(self, read: Found) -> None:
        """Tell of what is new."""
        for event in events(read):
            if self._told.get(event.key) != event.text:
                self._told[event.key] = event.text
                self._tell(event)


def _event(kind: str, number: int = 0, site: str = "", *, when: str = "", text: str) -> Event:
    return Event(key=(kind, number, site), when=when, text=text)


def _begun(record: Record | None, standing: Standing | None) -> Iterator[Event]:
    if record is not None:
        names = record.study["sites"]
        sites = ", ".join(names) if len(names) <= FEW else f"{len(names)} sites"
        text = f"study {record.name} ({record.study_hash[:12]}) begins: {record.study['rounds']} rounds, {sites}"
        yield _event("begun", when=record.started, text=text)
    elif standing is not None:
        yield _event("begun", when=standing.started, text=f"started as run {standing.run}; has not begun yet")


def _behind(record: Record) -> Iterator[Event]:
    for entry in record.rounds:
        text = f"round {entry.round} of {record.study['rounds']}, {spoken(entry.seconds)}: {_answers(entry.sites)}"
        if not entry.moved:
            text += "; nothing was used, the model is the one before"
        yield _event("round", entry.round, when=entry.ended, text=text)
        if entry.validation is not None:
            yield _event("validation", entry.round, text=f"validation after round {entry.round}: {_scores(entry.validation)}")
        for count, again in enumerate(record.resumed):
            if again.after_round == entry.round:
                text = f"goes on after round {entry.round} and an interruption" + (f" ({again.note})" if again.note else "")
                yield _event("resumed", count + 1, when=again.when, text=text)
    for count, again in enumerate(record.resumed):
        if again.after_round == 0:
            yield _event("resumed", count + 1, when=again.when, text="goes on from the beginning after an interruption")
    if record.stopped_early:
        yield _event("early", text=f"no more rounds: {record.stopped_early}")
    if record.evaluation is not None:
        yield _event("scores", text=f"final scores: {_scores(record.evaluation)}")
    if record.matrix is not None:
        models, sites = len(record.matrix.scores), _answers(record.matrix.sites)
        note = f"; {record.matrix.note}" if record.matrix.note else ""
        yield _event("matrix", text=f"{models} models at every hospital ({record.matrix.metric}): {sites}{note}")
    if record.finished:
        yield _event("ended", when=record.ended, text=f"over: {record.verdict}")


def _present(record: Record, now: Now) -> Iterator[Event]:
    number, when = now.round, _iso(now.began)
    if now.phase == "enrolling":
        yield _event("enrolling", len(record.resumed), when=when, text="asking hospitals whether they take part")
        if now.needed:
            number = len(record.rounds)
            yield _event("waiting", number, when=when, text=f"waiting until {now.needed} hospitals take part")
            for site, why in now.missing.items():
                text = f"{site} does not take part: {why}"
                yield _event("waiting", number, site, when=_iso(now.asked.get(site, now.began)), text=text)
        return
    if now.phase == "round" and any(entry.round == number for entry in record.rounds):
        return  # the record has it
    what = {"round": f"round {number}", "validation": f"validation after round {number}"}.get(now.phase, now.phase)
    asked = ", ".join(now.asked) if len(now.asked) <= FEW else f"{len(now.asked)} hospitals"
    yield _event(f"{now.phase} asked", number, when=when, text=f"{what}: asking {asked or 'nobody'}")
    for site, heard in sorted(now.heard.items(), key=lambda item: item[1].at):
        took = spoken(heard.at - now.asked[site]) if site in now.asked else "some time"
        text = f"{what}: {site} has answered after {took}"
        if heard.answer not in ("used", "late"):  # whether it counts is decided when the round is over
            text += f": {heard.answer}" + (f" ({heard.reason})" if heard.reason else "")
        yield _event(f"{now.phase} heard", number, site, when=_iso(heard.at), text=text)


def _answers(sites: dict[str, SiteRound]) -> str:
    """`a, b used; c declined (why)`; of many with one answer only how many they are."""
    parts = []
    kinds = Counter((entry.answer, entry.reason) for entry in sites.values())
    for (answer, reason), count in kinds.items():
        names = [name for name, entry in sites.items() if (entry.answer, entry.reason) == (answer, reason)]
        who = ", ".join(names) if count <= FEW else f"{count} hospitals"
        parts.append(f"{who} {answer}" + (f" ({reason})" if reason else ""))
    return "; ".join(parts)


def _scores(evaluation: Evaluation) -> str:
    said = ", ".join(scored(evaluation.scores))
    used = sum(site.answer == "used" for site in evaluation.sites.values())
    answers = f"{used} of {len(evaluation.sites)} hospitals"
    if said:
        return f"{said} from {answers}"
    return f"no scores, though {answers} answered: {evaluation.note}" if evaluation.note else f"no scores from {answers}"


def _iso(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"
