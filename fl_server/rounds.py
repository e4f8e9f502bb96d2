"""The coordinator's rounds: who was asked, who answered, what was used, and the model that came of it.

`run` is konsil's loop: hospitals are known by name from an enrolment, and every planned hospital has an entry in every round.
After each round everything that the next one needs is on the disk, so that a study whose process is killed goes on from there.
Scores are questions of their own: between rounds (they choose the model), after the last one, and across hospitals.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import secrets
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy.fedopt import FedOpt

from conf.study import Study
from fl_server import checkpoint, judging
from fl_server.asking import LATE_S, Asking
from fl_server.checkpoint import Progress
from fl_server.counts import counts_of
from fl_server.enrolment import Enrolment
from fl_server.live import Heard, Now, Phase
from fl_server.record import Record, Resumption, Round, SiteRound, moment, printable
from fl_server.references import References
from fl_server.run_lock import PATIENCE_S, alone_in
from fl_server.secure_sum import MaskedRound, SecureSum
from fl_server.spool import Arrays
from fl_server.strategies import aggregator
from fl_server.strategy import Rounds
from fl_server.weights import State
from fl_server.wiener import FedWiener
from tasks.fingerprint import fingerprint
from tasks.secure.blame import accused, at_fault
from tasks.task import CountingTask, load, load_for, released
from tasks.weights import save

ALIVE_S = 30.0
"""Seconds after which a study that waits for people writes that it is still there."""

Observer = Callable[[Round, State], None]
"""Called after each round with who answered and the model as it would be released now."""


def run(
    grid: Grid,
    study: Study,
    initial: Mapping[str, torch.Tensor],
    *,
    folder: Path,
    observer: Observer | None = None,
    enrol_timeout_s: float = 0.0,
    quorum_timeout_s: float = 0.0,
    wait_for: int = 0,
    engine: str = "",
    resume: bool = False,
    run_id: int | None = None,
    references: Mapping[str, torch.Tensor] | None = None,
) -> tuple[State, Record]:
    """Run the study over the hospitals behind `grid`, from the weights `initial`.

    Writes into `folder`: at the start a `record.json` with the verdict `failed`, in place of an earlier run's results; after
    every round a checkpoint, then, when any answer was used, `model.pt` (`torch.load` with `weights_only=True`), then the
    record as it stands. The model is that of the last round or, with `strategy.ema_decay` d, the mean of all rounds' models
    weighted d^(rounds still to come); where the study is validated, that of the round with the best score. Hospitals that have
    not enrolled within `enrol_timeout_s` may still join before a later round. While fewer hospitals take part than the quorum,
    and before round 1 fewer than `wait_for`, no round begins: `quorum_timeout_s` seconds in all, because a person may have to
    say yes first. After that it goes on with those who are there, and rounds without a quorum ask nobody.

    With `resume` the study goes on after the last round whose checkpoint is there, or from the start if there is none;
    the round that was under way is asked for again, and hospitals that have answered it send the same bytes for nothing (but
    for masked ones: their masks are gone with the coordinator, and they are made and paid anew).
    `references` are the free patients by whose gradients the study filters, if its strategy does.
    Raises `ValueError` if the study names other initial weights or references, if its strategy can't be run, or if what is to
    be resumed is over or another study's; the folder is as it was then. So it is after a `RunFolderInUse`.
    """
    aggregator(study)  # says here what is wrong with it
    free = None
    if study.strategy.name == "fedwiener":
        free = References(study, references or {}, dict(initial))
    with alone_in(folder, patience_s=PATIENCE_S if resume else 0.0):
        course = _Course.resumed(study, folder, initial, engine) if resume else _Course.begun(study, folder, initial, engine)
        course.grid, course.observer, course.run_id = grid, observer, run_id
        if course.record.finished:
            return course.model, course.record
        course.patience_s, course.wait_for, course.references = quorum_timeout_s, wait_for, free
        return course.follow(enrol_timeout_s)


@dataclass
class _Course:
    """One study on its way, from enrolment to the verdict."""

    study: Study
    folder: Path
    progress: Progress
    grid: Grid = None  # type: ignore[assignment]  # given before anything is asked
    observer: Observer | None = None
    run_id: int | None = None
    patience_s: float = 0.0  # that are left of the waiting for enough hospitals
    wait_for: int = 0  # so many before round 1, if that is more than the quorum
    references: References | None = None  # free patients by whose gradients the rounds' noise is filtered
    masked: Rounds | None = None  # under secure aggregation, what hospitals are being asked

    @classmethod
    def begun(cls, study: Study, folder: Path, initial: Mapping[str, torch.Tensor], engine: str) -> _Course:
        """From round 1. An earlier run's results are removed."""
        state = {name: tensor.detach().cpu().clone() for name, tensor in initial.items()}
        if study.initial_model_sha256 not in (None, fingerprint(state)):
            raise ValueError(f"the study starts from weights {study.initial_model_sha256}, but was given {fingerprint(state)}")
        folder.mkdir(parents=True, exist_ok=True)
        record = Record.begin(study, versions=versions(), engine=engine)
        record.judge()
        record.write(folder / "record.json")  # first: whose identity no checkpoint has that is still there
        checkpoint.remove(folder)
        (folder / "model.pt").unlink(missing_ok=True)
        shutil.rmtree(folder / "local", ignore_errors=True)
        return cls(study, folder, Progress(record, state, {name: tensor.clone() for name, tensor in state.items()}))

    @classmethod
    def resumed(cls, study: Study, folder: Path, initial: Mapping[str, torch.Tensor], engine: str) -> _Course:
        """From the round after the last checkpoint."""
        path = folder / "record.json"
        if not path.exists():
            return cls.begun(study, folder, initial, engine)
        before = Record.read(path)
        if before.study_hash != study.hash:
            raise ValueError(f"{folder} holds the study {before.study_hash[:12]}, not {study.name} ({study.hash[:12]})")
        if before.finished:
            raise ValueError(f"study {study.name} is over ({before.verdict}); there is nothing to go on with")
        progress = Progress.to_go_on_from(folder, study, before)
        if progress is None:
            return cls.begun(study, folder, initial, engine)
        if not progress.record.finished:  # else it was killed between its last checkpoint and its last record
            resumption = Resumption(
                after_round=len(progress.record.rounds), when=moment(), engine=engine, note=printable(progress.instead)
            )
            progress.record.resumed.append(resumption)
        course = cls(study, folder, progress)
        course._write()
        return course

    # -- the walk -------------------------------------------------------------------------------------------------------

    def follow(self, enrol_timeout_s: float) -> tuple[State, Record]:
        """Everything that is left to do, in order."""
        study, record = self.study, self.record
        self.strategy = Rounds(
            aggregator(study, None if self.references is None else self.references.gradients),
            quorum=study.strategy.quorum,
            trainable=_trainable(study),
            nodes={},
            weights={},
            ttl_s=study.strategy.round_timeout_s + min(study.strategy.round_timeout_s, LATE_S),  # to be told as late
            deadline_s=study.strategy.round_timeout_s,
            deadlines_s=study.strategy.site_timeouts_s,
            steps=study.training.steps if study.training.work_s is not None else None,
            outlier_factor=study.strategy.outlier_factor,
            used=self._keep_local if study.privacy.matrix_share else None,
            folder=self.folder,
            check=judging.require_noise(study) if study.strategy.name == "sum" else None,
        )
        self.strategy.restore(self.progress.strategy)
        self.asking = Asking(self.grid)
        self.now = Now(
            study=study.name,
            study_hash=study.hash,
            run=self.run_id,
            pid=os.getpid(),
            rounds=study.rounds,
            round=len(record.rounds),
            began=time.time(),
            updated=time.time(),
        )
        self.now.write(self.folder)
        self.enrolment = Enrolment(study, first_round=len(record.rounds) + 1)
        for name, known in record.sites.items():
            if known.left_out:
                self.enrolment.leave_out(name, known.left_out)
        self.enrolment.wait(self.grid, timeout_s=enrol_timeout_s, tell=self._tell_missing)
        if not record.rounds:
            self._await(max(self.wait_for, study.quorum))
        self._validate()  # of the round before an interruption
        while len(record.rounds) < study.rounds and not record.stopped_early:
            self._await(study.quorum)
            self._round(len(record.rounds) + 1)
            self._validate()
        self._hear_late()
        if study.strategy.name == "sum" and self._has_model:
            record.counts = counts_of(study, self.model)
        self._score()
        self._hear_late()
        record.ended = moment()
        self._write()
        self._enter("ended")
        return self.model, record

    def _await(self, count: int) -> None:
        """Return when so many hospitals take part, or when patience is at its end, or so many can't be any more."""
        possible = len(self.study.sites) - len(self.enrolment.left_out)
        if len(self.enrolment.nodes) >= count or self.patience_s <= 0 or possible < count:
            return
        self._enter("enrolling")
        self.now.needed, self.now.deadline = count, time.time() + self.patience_s
        self._tell_missing()
        self.patience_s = self.enrolment.wait_for(self.grid, count, timeout_s=self.patience_s, tell=self._tell_missing)

    def _round(self, number: int) -> None:
        study, progress, strategy, enrolment = self.study, self.progress, self.strategy, self.enrolment
        start = time.monotonic()
        self._hear_late()
        enrolment.before_round(self.grid)  # who came late may join from here on
        strategy.nodes, strategy.weights = enrolment.nodes, enrolment.sizes
        if isinstance(strategy.aggregator, FedOpt | FedWiener):
            strategy.aggregator.eta = study.strategy.server_step(number, study.rounds)
        enough = len(enrolment.nodes) >= study.quorum  # else every answer would be paid for and none would count
        unseen: dict[str, SiteRound] = {}
        arrays = None
        if enough and study.privacy.secure is not None:
            unseen, arrays = self._masked_round(number)
        elif enough:
            config = ConfigRecord({"study-hash": study.hash})
            questions = strategy.configure_train(number, ArrayRecord(dict(progress.state)), config, self.grid)
            self._enter("round", number, asked=list(enrolment.nodes.values()))
            unseen = self.asking.ask(
                strategy,
                questions,
                timeout_s=study.strategy.round_timeout_s,
                timeouts_s=study.strategy.site_timeouts_s,
                retries=study.strategy.retries,
                heard=self._heard,
            )
            arrays, _ = strategy.finish(number)
            progress.strategy = strategy.state()
        if arrays is not None:
            self._move(dict(arrays.to_torch_state_dict()))
        answered = {**strategy.answers.get(number, {}), **unseen}
        answers = {site: answered.get(site) or enrolment.missing(site) for site in study.sites}
        entry = Round(
            round=number,
            sites=answers,
            seconds=time.monotonic() - start,
            arrays_sha256=fingerprint(progress.mean),
            moved=arrays is not None,
            ended=moment(),
        )
        self.record.rounds.append(entry)
        self._note_sites(answers)
        self._write()
        if self.observer is not None:
            self.observer(entry, {name: tensor.clone() for name, tensor in progress.mean.items()})

    def _masked_round(self, number: int) -> tuple[dict[str, SiteRound], ArrayRecord | None]:
        """A round under secure aggregation: what became of each hospital, and the arrays that came of all together."""
        study, progress, enrolment = self.study, self.progress, self.enrolment
        task = load_for(study)
        secure = SecureSum(grid=self.grid, asking=self.asking, study=study, task=task, folder=self.folder)
        self._enter("round", number, asked=list(enrolment.nodes.values()))
        came = secure.ask(
            number,
            progress.state,
            enrolment.nodes,
            enrolment.sizes,
            attempt=secrets.randbelow(2**30),  # one that a killed coordinator began must not come back under its number
            heard=self._heard,
            asked=self._ask_masked,
        )
        self.masked = None
        self._leave_out(number, came)
        if came.sums is None:
            return came.sites, None
        if isinstance(task, CountingTask):
            variance = (secure.steps.share_std * secure.steps.step) ** 2 * len(came.survivors)
            return came.sites, ArrayRecord({"total": Array(came.sums["total"]), "noise_variance": Array(np.array([variance]))})
        declared = [enrolment.sizes[site] for site in came.survivors]
        patients = sum(declared)  # as hospitals alone divide by
        before = {name: progress.state[name].numpy() for name in came.sums}
        training = study.training
        mean = {
            name: before[name].astype(np.float64) * (1 - training.learning_rate * training.weight_decay)
            - training.learning_rate / patients * total
            for name, total in came.sums.items()
        }
        moved = self.strategy.move(number, before, mean, sizes=declared)
        progress.strategy = self.strategy.state()
        if moved is None:
            return {site: _not_finite(entry) for site, entry in came.sites.items()}, None
        state = {**progress.state, **{name: torch.from_numpy(np.array(array)) for name, array in moved.items()}}
        return came.sites, ArrayRecord(state)

    def _leave_out(self, number: int, came: MaskedRound) -> None:
        """Who broke the protocol of secure sums is asked for nothing from here on: by proof, or by complaints of several."""
        secure, sites = self.study.privacy.secure, self.study.sites
        out = {*self.enrolment.left_out, *came.guilty}
        spare = len(sites) - len(out) - self.study.quorum
        told = [came.sites] if spare < 1 else [*(entry.sites for entry in self.record.rounds), came.sites]
        disputes = {
            frozenset((site, name))
            for answers in told
            for site, entry in answers.items()
            if entry.answer == "declined" and site not in out
            for name in (accused(entry.reason) & set(sites)) - {site, *out}
        }
        liars = 0 if spare < 1 or secure is None else max(1, secure.colluding)  # nobody to spare: not another round is paid
        why = {
            site: f"what one sealed the other can't open, it and {count} of the others"
            for site, count in at_fault(disputes, liars=liars).items()
        }
        for site, said in {**why, **came.guilty}.items():
            reason = f"left out since round {number}: {said}"
            self.record.sites[site].left_out = reason
            self.enrolment.leave_out(site, reason)
            if came.sums is None and site in came.sites:
                came.sites[site] = came.sites[site].model_copy(update={"answer": "quarantined", "reason": reason})

    def _ask_masked(self, strategy: Rounds) -> None:
        self.masked = strategy

    def _move(self, state: State) -> None:
        """The model after a round in which answers were used."""
        progress, decay = self.progress, self.study.strategy.ema_decay
        progress.state = state
        if not decay:
            progress.mean = state
            return
        progress.weight = 1.0 + decay * progress.weight
        progress.mean = {
            name: mean + (state[name] - mean) / progress.weight if mean.is_floating_point() else state[name]
            for name, mean in progress.mean.items()
        }

    def _validate(self) -> None:
        """Ask for the scores of the model as it is, if they are due and have not been given."""
        study, record = self.study, self.record
        if study.validation is None or not record.rounds or len(record.rounds) % study.validation.every:
            return
        entry = record.rounds[-1]
        if entry.validation is not None or not entry.moved:  # the model of a round that did not move it is judged already
            return
        self._judged("validation", entry.round)
        entry.validation = judging.judge(
            self.grid, study, self.progress.mean, self.enrolment, purpose="validation", number=entry.round
        )
        if judging.is_best(study, record):
            record.selected_round = entry.round
            self.progress.best = {name: tensor.clone() for name, tensor in self.progress.mean.items()}
        record.stopped_early = judging.stop_early(study, record)
        self._note_sites(entry.validation.sites)
        self._write()

    def _score(self) -> None:
        """The questions after the last round, as far as the study has any and they have not been answered."""
        study, record = self.study, self.record
        if study.privacy.evaluation_share and record.evaluation is None and self._has_model:
            self._judged("scores", len(record.rounds))
            record.evaluation = judging.judge(
                self.grid, study, self.model, self.enrolment, purpose="scores", number=study.rounds
            )
            self._note_sites(record.evaluation.sites)
            self._write()
        if study.privacy.matrix_share and record.matrix is None and self._has_model:
            self._judged("matrix", len(record.rounds))
            models = {"global": self.model, **self._local_models()}
            record.matrix = judging.matrix(self.grid, study, models, self.enrolment)
            self._note_sites(record.matrix.sites)
            self._write()

    # -- what it stands on ----------------------------------------------------------------------------------------------

    @property
    def record(self) -> Record:
        """What has been, so far."""
        return self.progress.record

    @property
    def model(self) -> State:
        """The study's result as it stands."""
        return self.progress.mean if self.progress.best is None else self.progress.best

    @property
    def _has_model(self) -> bool:
        return any(entry.moved for entry in self.record.rounds)

    def _local_models(self) -> dict[str, State]:
        """What each hospital sent in the last round in which its answer was used, among the parts that it does not train."""
        found = {}
        for site in self.study.sites:
            path = self.folder / "local" / f"{site}.pt"
            if path.exists():
                found[site] = {**self.progress.state, **torch.load(path, map_location="cpu", weights_only=True)}
        return found

    def _keep_local(self, site: str, arrays: Arrays) -> None:
        """The answer of a hospital that was used, for the matrix after the last round."""
        folder = self.folder / "local"
        folder.mkdir(exist_ok=True)
        save({name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}, folder / f"{site}.pt")

    def _hear_late(self) -> None:
        late = list(self.asking.late())
        for number, site, entry in late:
            self.record.rounds[number - 1].sites[site] = entry
        if late:
            self._write()

    def _note_sites(self, answers: Mapping[str, SiteRound]) -> None:
        for name, answer in answers.items():
            site = self.record.sites[name]
            site.declared_size = self.enrolment.sizes.get(name, site.declared_size)
            if answer.epsilon is not None:
                site.epsilon, site.delta = answer.epsilon, self.enrolment.deltas.get(name)

    def _write(self) -> None:
        """Checkpoint, model, record, in this order: whatever a kill leaves behind, the checkpoint makes good."""
        self.record.judge()
        self.progress.save(self.folder)
        if self._has_model:
            save(self.model, self.folder / "model.pt")
        self.record.write(self.folder / "record.json")

    # -- what it is doing now -------------------------------------------------------------------------------------------

    def _enter(self, phase: Phase, number: int | None = None, *, asked: list[str] | None = None) -> None:
        now = time.time()
        self.now.phase, self.now.began, self.now.heard = phase, now, {}
        self.now.round = len(self.record.rounds) if number is None else number
        self.now.asked = dict.fromkeys(asked or (), now)
        self.now.deadline = now + max(map(self.study.strategy.timeout_s, asked)) if asked else None
        self.now.needed, self.now.missing = 0, {}
        self.now.write(self.folder)

    def _tell_missing(self) -> None:
        """Who is waited for before a round can begin, and why: at every change, and now and then as a sign of life."""
        now, missing = time.time(), self.enrolment.lacking
        if missing != self.now.missing or now - self.now.updated > ALIVE_S:
            self.now.missing = missing
            self.now.asked = {site: self.now.asked.get(site, now) for site in missing}
            self.now.write(self.folder)

    def _judged(self, phase: Phase, number: int) -> None:
        self.enrolment.before_round(self.grid)
        self._enter(phase, number, asked=list(self.enrolment.nodes.values()))

    def _heard(self, site: str) -> None:
        entry = (self.masked or self.strategy).outcome(site)
        if entry is not None:
            self.now.heard[site] = Heard(answer=entry.answer, at=time.time(), reason=entry.reason)
        if time.time() - self.now.updated > 0.5 or not self.now.awaited:
            self.now.write(self.folder)


def _trainable(study: Study) -> list[str]:
    task = load(study.task)
    with torch.random.fork_rng(devices=[]):
        return released(study, task)


def versions() -> dict[str, str]:
    """What the coordinator runs on: konsil and the packages that decide the numbers."""
    packages = ("konsil", "flwr", "torch", "monai", "numpy", "dp-accounting", "scipy")  # the last two: how much noise
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in packages}}


def _not_finite(entry: SiteRound) -> SiteRound:
    if entry.answer != "used":
        return entry
    return entry.model_copy(update={"answer": "quarantined", "reason": "sound, but the model after this round was not finite"})
