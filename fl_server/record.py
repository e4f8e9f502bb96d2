"""The study record: one JSON file that says what was asked, who answered in each round, and what came of it.

Every report reads this file and nothing else it would have to guess at. Its schema is versioned; fields are only added
within a version. Numbers that belong to nobody in particular (Dice by arm and seed, timings) stand under `baselines`,
`held_out`, `timings` and `memory_mb`; what concerns a hospital stands under its name in `sites`.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import groupby
from math import isfinite, nan
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict

from conf.study import Study

SCHEMA = "konsil-record/1"
Outcome = Literal["complete", "degraded", "failed"]
NOT_ASKED_YET = "the study has not come to this question, the one after its last round"
LONGEST_REASON = 500  # characters of a site's own words that go into the record
Answer = Literal["used", "declined", "failed", "quarantined", "late", "absent"]
"""What became of one planned hospital in one round. `late`: it answered after the round's end, and the answer was not used."""


def printable(said: str) -> str:
    """A hospital's own words, cut, and with a space for every character that could move a cursor or begin a line."""
    return "".join(letter if letter.isprintable() else " " for letter in said[:LONGEST_REASON])


def moment() -> str:
    """Now, to the second: ISO 8601, UTC."""
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="constants")


class SiteRound(_Part):
    """What one planned site did in one round. Every planned site has one; there are no silent losses."""

    answer: Answer
    reason: str = ""  # words, for every answer but "used"
    epsilon: float | None = None  # total at this hospital's ledger after the round, as the hospital says; None: no privacy
    seconds: float | None = None  # from the question to the answer, also to a late one; None: there was none
    steps: int | None = None  # of training that it took, if it may take fewer than the study says
    attempts: int = 1  # how often it was asked in this round; 0: it was not
    bytes: int | None = None  # of arrays in its answer


class Round(_Part):
    """One round: who answered, how long it took, and the fingerprint of the model it ended with."""

    round: int
    sites: dict[str, SiteRound]
    seconds: float
    arrays_sha256: str
    moved: bool = True  # false: no answer was used, and the model is the one before
    validation: Evaluation | None = None  # of the model after this round
    ended: str = ""  # ISO 8601, UTC; empty: a konsil that did not say


class Evaluation(_Part):
    """What patients held back said of a model: one noisy sum, as its task reads it."""

    sites: dict[str, SiteRound]
    total: list[float]  # empty: nobody answered
    noise_std: float  # on each number of the total; 0: no privacy
    seconds: float
    scores: dict[str, float] = {}  # what the task reads from the sum; the first is the one that chooses
    note: str = ""  # why there is no score although hospitals answered

    @property
    def figures(self) -> dict[str, tuple[float, float]]:
        """Each score with the deviation that the noise alone gives it; without what else stands beside them."""
        beside = ("noise_sd/", "patients/")  # tasks/task.py; how many patients there were is told by the noisy sum
        plain = {name: value for name, value in self.scores.items() if not name.startswith(beside)}
        return {name: (value, self.scores.get(f"noise_sd/{name}", 0.0)) for name, value in plain.items()}


class Matrix(_Part):
    """Every model on every hospital's patients: `scores[model][hospital]`, from one noisy sum each.

    Models are `global` and, under a hospital's name, what that hospital sent in the last round in which it was used.
    """

    metric: str
    scores: dict[str, dict[str, float]]
    noise_std: dict[str, float]  # by hospital, on each number of its sums
    noise_sd: dict[str, dict[str, float]] = {}  # that the noise alone gives each score, in the same places
    sites: dict[str, SiteRound]
    seconds: float
    note: str = ""  # why there is no score although hospitals answered

    @property
    def silent(self) -> list[str]:
        """Hospitals from which no model has a score."""
        return [site for site in self.sites if not any(isfinite(row.get(site, nan)) for row in self.scores.values())]


class Resumption(_Part):
    """The coordinator went on after an interruption, from what stood on its disk."""

    after_round: int
    when: str  # ISO 8601, UTC
    engine: str = ""
    note: str = ""  # why it went on from the checkpoint before the last


class CountTable(_Part):
    """How many training patients all hospitals have of each kind, as a `count` study gives it."""

    fields: list[str]  # what the table is about; empty: everybody
    cells: list[list[str]]  # the kinds, a word for each field
    counts: list[int | None]  # one for each kind; None: fewer than `fewer_than`
    fewer_than: int
    noise_sd: float  # on each count; 0: no privacy


class SiteRecord(_Part):
    """One hospital. Case counts are None where the hospital is real: exact counts don't leave it."""

    declared_size: int | None = None
    cases_expected: int | None = None
    cases_used: int | None = None
    cases_refused: int | None = None
    cases_withdrawn: int | None = None
    cases_synthetic: int | None = None  # given to learn from beside patients, and no patients
    epsilon: float | None = None
    delta: float | None = None
    left_out: str = ""  # since when and why, where it was shown to have broken the protocol of secure sums
    scanner: str = ""
    dice: dict[str, float] = {}  # structure -> mean over the hospital's test patients, private federation, mean over seeds


def last_told(asked: Sequence[tuple[str, bool]]) -> str:
    """The question with whose answer a hospital last told of its ledger, if it was asked again since; else empty.

    `asked` are the questions that it was asked in their order, each with whether the answer told. Whoever was asked again and
    told nothing may have paid before the answer was lost.
    """
    if not asked or asked[-1][1]:
        return ""
    return next((what for what, told in reversed(asked) if told), "")


def _stretches(rounds: Sequence[tuple[int, dict[str, SiteRound]]], one: str, several: str) -> Iterator[str]:
    """A sentence for every hospital and stretch of rounds in which its answer was not used, for one reason."""
    found: list[tuple[int, int, str]] = []  # first round, last round, what
    open_now: dict[str, int] = {}  # what -> place in `found`
    for number, sites in rounds:
        now: dict[str, int] = {}
        for name, site in sites.items():
            if site.answer == "used":
                continue
            what = f"{name} {site.answer}" + (f" ({site.reason})" if site.reason else "")
            place = open_now.get(what)
            if place is None:
                now[what] = len(found)
                found.append((number, number, what))
            else:
                now[what] = place
                found[place] = (found[place][0], number, what)
        open_now = now
    for first, last, what in found:
        yield f"{one} {first}: {what}" if first == last else f"{several} {first} to {last}: {what}"


class Record(_Part):
    """The whole study, as `record.json` holds it."""

    schema_name: str = SCHEMA
    verdict: Outcome = "failed"
    reasons: list[str] = []  # why the verdict is not "complete"
    remarks: list[str] = []  # what a reader of the scores should know; the verdict doesn't depend on them
    name: str
    study: dict[str, Any]
    study_hash: str
    versions: dict[str, str] = {}
    seed: int = 0
    seeds: list[int] = []
    profile: str = ""  # small, standard, ...: figures of a small profile are shown as such
    engine: str = ""
    device: str = ""
    rounds: list[Round] = []
    evaluation: Evaluation | None = None  # None: the study sets nothing of its promise aside for scores
    matrix: Matrix | None = None
    selected_round: int | None = None  # whose model is the result, where validation chose it; None: the last round's
    stopped_early: str = ""  # why there are fewer rounds than planned, where validation or a person said so
    identity: str = ""  # of this run of the study, drawn by chance: its checkpoints have the same
    started: str = ""  # ISO 8601, UTC
    ended: str = ""  # when there was nothing left to ask; empty: it runs, or was interrupted
    resumed: list[Resumption] = []
    faults: list[dict[str, Any]] = []  # that a simulation made on purpose
    counts: list[CountTable] = []  # of a study that counts patients
    sites: dict[str, SiteRecord] = {}
    held_out: dict[str, Any] = {}
    baselines: dict[str, Any] = {}
    timings: dict[str, float] = {}
    memory_mb: dict[str, float] = {}  # peak by phase
    peak_memory_mb: float | None = None

    @classmethod
    def begin(cls, study: Study, **fields: Any) -> Record:
        """A record of a study that has not run yet; its verdict is `failed` until rounds say otherwise."""
        sites = {name: SiteRecord() for name in study.sites}
        given: dict[str, Any] = {"identity": secrets.token_hex(8), "started": moment(), **fields}
        return cls(
            name=study.name, study=study.model_dump(mode="json"), study_hash=study.hash, seed=study.seed, sites=sites, **given
        )

    @property
    def finished(self) -> bool:
        """True when nothing is left to ask anybody."""
        return bool(self.ended)

    @property
    def planned_rounds(self) -> int:
        """Rounds of the study, or those that were run if it was stopped early."""
        return len(self.rounds) if self.stopped_early else int(self.study["rounds"])

    @property
    def unmoved(self) -> list[int]:
        """Rounds that changed nothing: no answer was used, and the model is the one before."""
        return [entry.round for entry in self.rounds if not entry.moved]

    @property
    def model_sha256(self) -> str:
        """Fingerprint of the model that is the result: that of the chosen round, else of the last; empty without a round."""
        chosen = [entry for entry in self.rounds if entry.round == self.selected_round] or self.rounds[-1:]
        return chosen[0].arrays_sha256 if chosen else ""

    @property
    def accounting(self) -> dict[str, int]:
        """Planned hospitals times planned rounds, by what became of them: the answers, and `not_run` for rounds that were not.

        The numbers add up to `planned`; there is no other place for one to go.
        """
        sites = list(self.study["sites"])
        count = dict.fromkeys([*get_args(Answer), "not_run"], 0)
        for entry in self.rounds:
            for name in sites:
                count[entry.sites[name].answer if name in entry.sites else "not_run"] += 1
        count["not_run"] += (self.planned_rounds - len(self.rounds)) * len(sites)
        return {"planned": self.planned_rounds * len(sites), **count}

    def told_in(self, site: str) -> str:
        """The question in whose answer this hospital last told the epsilon that stands here, if it was asked again since.

        Empty where it is the ledger's last word: a rehearsal reads the ledgers themselves.
        """
        parts: list[tuple[str, dict[str, SiteRound]]] = []
        for done in self.rounds:
            parts.append((f"round {done.round}", done.sites))
            parts += [(f"validation after round {done.round}", done.validation.sites)] if done.validation else []
        parts += [("the scores", self.evaluation.sites)] if self.evaluation else []
        parts += [("the matrix", self.matrix.sites)] if self.matrix else []
        asked = [(what, sites[site].epsilon is not None) for what, sites in parts if site in sites and sites[site].attempts]
        return "" if self.profile else last_told(asked)

    def judge(self) -> None:
        """Set `verdict`, `reasons`, `remarks` from the rounds: complete only if every planned site was used in every round."""
        self.reasons = [
            *self._of_still_rounds(),
            *_stretches([(r.round, r.sites) for r in self.rounds], "round", "rounds"),
            *self._of_scores(),
        ]
        self.remarks = [*self._of_what_was_said()]
        if len(self.rounds) < self.planned_rounds:
            self.reasons.append(f"{len(self.rounds)} of {self.planned_rounds} rounds were run")
        used = any(site.answer == "used" for r in self.rounds for site in r.sites.values())
        if not used or len(self.rounds) < self.planned_rounds:
            self.verdict = "failed"
        else:
            self.verdict = "degraded" if self.reasons else "complete"

    def _of_still_rounds(self) -> Iterator[str]:
        """Which rounds are counted and changed nothing, those that follow one another together."""
        for _, group in groupby(enumerate(self.unmoved), key=lambda one: one[1] - one[0]):
            numbers = [number for _, number in group]
            rounds = f"round {numbers[0]}" if len(numbers) == 1 else f"rounds {numbers[0]} to {numbers[-1]}"
            yield f"{rounds}: no answer was used and nothing changed, the model is the one before"

    def _of_scores(self) -> Iterator[str]:
        """Why the scores that the study pays for are not complete."""
        validated = [(r.round, r.validation.sites) for r in self.rounds if r.validation]
        yield from _stretches(validated, "validation after round", "validations after rounds")
        asked: list[tuple[str, dict[str, SiteRound]]] = [("scores", self.evaluation.sites)] if self.evaluation else []
        asked += [("matrix", self.matrix.sites)] if self.matrix else []
        for what, sites in asked:
            for name, site in sites.items():
                if site.answer != "used":
                    yield f"{what}: {name} {site.answer}" + (f" ({site.reason})" if site.reason else "")
        if self.study["privacy"].get("evaluation_share") and not (self.evaluation and self.evaluation.total):
            yield "no scores: " + ("nobody gave any" if self.evaluation else self._unasked)
        if self.study["privacy"].get("matrix_share") and not (self.matrix and self.matrix.scores):
            yield "no matrix of hospitals: " + ("nobody gave any scores" if self.matrix else self._unasked)

    @property
    def _unasked(self) -> str:
        """Why hospitals were never asked for scores that the study has paid for."""
        if any(entry.moved for entry in self.rounds) or not self.rounds:
            return NOT_ASKED_YET
        return "there is no model to judge, because no answer of any round was used"

    def _of_what_was_said(self) -> Iterator[str]:
        """Where everything went as planned and there is no score all the same: the noise was too much for so few patients."""
        unread = [(r.round, r.validation.note) for r in self.rounds if r.validation]
        for note, group in groupby(unread, key=lambda one: one[1]):
            if note:
                numbers = [number for number, _ in group]
                several = f"validations after rounds {numbers[0]} to {numbers[-1]}"
                yield f"{several if len(numbers) > 1 else f'validation after round {numbers[0]}'}: {note}"
        for what, told in (("scores", self.evaluation), ("matrix", self.matrix)):
            if told and told.note:
                yield f"{what}: {told.note}"

    def write(self, path: Path) -> None:
        """Write the record as JSON, atomically. The key of the schema's name is `schema`."""
        data = self.model_dump(mode="json")
        text = json.dumps({"schema": data.pop("schema_name"), **data}, indent=1)
        part = path.with_suffix(".part")
        with open(part, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)

    @classmethod
    def read(cls, path: Path) -> Record:
        """Read a record; fields that a newer konsil has added are left out. Raises `ValueError` for another schema."""
        try:
            data = json.loads(path.read_text())
        except ValueError:  # no text, or no JSON
            raise ValueError(f"{path} is no record of a study: it holds no JSON") from None
        if not isinstance(data, dict) or "schema" not in data:
            raise ValueError(f"{path} is no record of a study: its schema is not {SCHEMA!r}")
        if data["schema"] != SCHEMA:
            raise ValueError(f"{path} has schema {data.get('schema')!r}; this konsil reads {SCHEMA!r}")
        data["schema_name"] = data.pop("schema")
        return cls.model_validate(data, extra="ignore")
