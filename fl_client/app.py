"""The hospital's ClientApp: a message in, a release out.

Everything a study may decide stands in the study, which travels in the run's configuration and is identified by its hash;
a message brings the weights and the number of the round, and can't change anything else. Which hospital this is stands in
`site.yaml`, whose path comes from the hospital's own node configuration.

A round that is asked for twice (a retry, a restarted coordinator) is a second release: it is trained with fresh noise and
paid for again, within the rounds that were approved. Handing out the old answer would need it to be kept, and refusing the
repetition itself would let one lost message cost a round.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message
from flwr.clientapp import ClientApp
from pydantic import ValidationError

from conf.study import Study, words
from fl_client import release
from fl_client.approval import Declined, require_approval
from fl_client.cohort import Cohort
from fl_client.device import device_of
from fl_client.privacy import BudgetSpent, Event, Ledger, Noise, calibrate, os_noise, require_private, seeded_noise
from fl_client.privacy import train as dp_sgd
from fl_client.site import Site
from tasks.task import GradientTask, load

app = ClientApp()


@app.query("enroll")
@release.guarded
def enroll(question: Message, context: Context) -> Message:
    """Say who this hospital is and whether it takes part in the study, at what price."""
    site = site_of(context)
    refusal, epsilon = "", 0.0
    try:
        study = study_of(question, context)
        require_approval(site, study, paid=rounds_paid(study, ledger_of(site).events), wanted=study.rounds)
        task_of(study)
        planned = [event(site, study, round=number) for number in range(1, study.rounds + 1)]
        ledger_of(site).affords(planned)
        epsilon = ledger_of(site).planned(planned)
    except (Declined, BudgetSpent) as reason:
        refusal = str(reason)
    return release.enrolment(question, site, konsil=version("konsil"), refusal=refusal, epsilon=epsilon)


@app.train()
@release.guarded
def train(question: Message, context: Context) -> Message:
    """Train one round under the study's privacy, after writing its price in the ledger."""
    site = site_of(context)
    study = study_of(question, context)
    ledger = ledger_of(site)
    require_approval(site, study, paid=rounds_paid(study, ledger.events), wanted=1)
    task = task_of(study)
    model = with_weights(task.model(), question.content)
    require_private(model)
    names = task.trainable(model)
    parameters = dict(model.named_parameters())
    number = round_of(question, study)
    cost = event(site, study, round=number)

    # Paid on the disk before a patient is touched: a crash from here on over-counts. Approval is asked for again under the
    # ledger's lock, because another process may have spent the last round that was approved.
    epsilon = ledger.spend(cost, check=lambda past: require_approval(site, study, paid=rounds_paid(study, past), wanted=1))
    patients = training_patients(site, task)
    noise, sampling = randomness(site, study, round=number, entry=len(ledger.events))
    report = dp_sgd(
        model,
        patients,
        parameters=[parameters[name] for name in names],
        loss=task.loss,
        steps=study.training.steps,
        sample_rate=study.training.sample_rate,
        views=study.training.views,
        declared_size=site.declared_size,
        max_grad_norm=study.privacy.max_grad_norm if study.privacy.kind == "patient" else math.inf,
        noise_multiplier=cost.noise_multiplier,
        optimizer=study.training.optimizer,
        learning_rate=study.training.learning_rate,
        weight_decay=study.training.weight_decay,
        proximal_mu=study.strategy.proximal_mu if study.strategy.name == "fedprox" else 0.0,
        noise=noise,
        sampling_rng=sampling,
        device=device_of(site),
    )
    losses = [loss for step in report.losses for loss in step]
    note(site, study=study.hash, round=number, loss=float(np.mean(losses)) if losses else None, patients=len(patients.patients))
    return release.reply(question, model, names=names, declared_size=site.declared_size, epsilon=epsilon)


# -- the steps, in the order above ---------------------------------------------------------------------------------------


def site_of(context: Context) -> Site:
    """The hospital's own settings. Raises `KeyError` if the node was started without them."""
    return Site.load(str(context.node_config["site"]))


def study_of(question: Message, context: Context) -> Study:
    """The study of this run. Raises `Declined` if it can't be read, is not the one meant, or needs another konsil."""
    try:
        study = Study.from_json(str(context.run_config.get("study", "")))
    except ValidationError as error:
        raise Declined(f"this run's study can't be read: {words(error)}") from None
    meant = question.content.config_records.get("config", ConfigRecord()).get("study-hash")
    if meant != study.hash:
        raise Declined(f"this run's study has the hash {study.hash}, but the coordinator means {meant!r}")
    if study.konsil_version != version("konsil"):
        raise Declined(f"study {study.name} was made for konsil {study.konsil_version}; this site runs {version('konsil')}")
    return study


def task_of(study: Study) -> GradientTask:
    """The study's task, as this hospital has it installed. Raises `Declined` if it hasn't."""
    try:
        return load(study.task)
    except ValueError as error:
        raise Declined(str(error)) from None


def with_weights(model: torch.nn.Module, content: object) -> torch.nn.Module:
    """`model` with the weights that were received. Raises `Declined` unless names, shapes and dtypes fit exactly."""
    records = list(getattr(content, "array_records", {}).values())
    if len(records) != 1 or not isinstance(records[0], ArrayRecord):
        raise Declined(f"a training message brings one array record, not {len(records)}")
    own = model.state_dict()
    if set(records[0]) != set(own):
        raise Declined(f"the weights received differ in names: {sorted(set(records[0]) ^ set(own))[:4]}")
    received = {}
    for name, array in records[0].items():
        tensor = torch.from_numpy(array.numpy())
        if tensor.shape != own[name].shape or tensor.dtype != own[name].dtype:
            found, right = f"{tensor.dtype} {list(tensor.shape)}", f"{own[name].dtype} {list(own[name].shape)}"
            raise Declined(f"the weight '{name}' received is {found}; the model has {right}")
        if not bool(torch.isfinite(tensor).all()):
            raise Declined(f"the weight '{name}' received is not finite")
        received[name] = tensor
    model.load_state_dict(received)
    return model


def round_of(question: Message, study: Study) -> int:
    """The number of the round, from 1. Raises `Declined` for one that the study does not have."""
    number = question.content.config_records["config"].get("server-round")
    if not isinstance(number, int) or not 1 <= number <= study.rounds:
        raise Declined(f"study {study.name} has rounds 1 to {study.rounds}, not {number!r}")
    return number


def event(site: Site, study: Study, *, round: int) -> Event:
    """What one round of the study releases: its noise comes from the study's total epsilon, over all rounds."""
    multiplier = 0.0
    if study.privacy.kind == "patient":
        multiplier = calibrate(
            epsilon=study.privacy.epsilon,
            delta=study.privacy.delta,
            sample_rate=study.training.sample_rate,
            steps=study.noise_steps,
        )
    return Event(
        noise_multiplier=multiplier,
        sample_rate=study.training.sample_rate,
        steps=study.training.steps,
        study=study.hash,
        study_name=study.name,
        round=round,
        kind="gradient",
        noise="os" if site.noise_seed is None else "seeded",
    )


@dataclass(frozen=True)
class TrainingPatients:
    """The hospital's training patients as the training loop draws them."""

    cohort: Cohort
    task: GradientTask
    patients: Sequence[str]

    def example(self, patient: str, views: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """`views` augmented rows of one patient."""
        return self.task.example(self.cohort.prepared(self.task, patient), views, rng)


def training_patients(site: Site, task: GradientTask) -> TrainingPatients:
    """The patients of the training split whom the task can use; the others are named in the site's log.

    Perhaps nobody is left: the round goes on and releases noise alone. A refusal would say, exactly and unpaid, that nobody
    here has what the study is about.
    """
    cohort = Cohort(site.cohort_folder)
    usable, left_out = cohort.usable(task, cohort.split("train", test_fraction=site.test_fraction))
    for patient, reason in left_out.items():
        note(site, patient=patient, left_out=reason)
    if not usable:
        note(site, warning="no training patient that the task can use: what this round releases, and pays for, is noise alone")
    return TrainingPatients(cohort, task, usable)


def ledger_of(site: Site) -> Ledger:
    """The hospital's privacy ledger, with its budget."""
    budget = site.budget
    return Ledger(site.ledger_path, epsilon=budget.epsilon, delta=budget.delta, accept_no_privacy=site.accept_no_privacy)


def rounds_paid(study: Study, events: Sequence[Event]) -> int:
    """How many of the ledger's events are rounds of this study, repeated ones counted each time."""
    return sum(entry.study == study.hash for entry in events)


def randomness(site: Site, study: Study, *, round: int, entry: int) -> tuple[Noise, np.random.Generator]:
    """Noise and sampling of one release: from the operating system, or repeatable for a rehearsal.

    Sampling is never seeded by the study: who knew the draw would get no protection from it. In a rehearsal both differ
    between hospitals, studies, rounds and ledger entries, so that no noise is ever used twice.
    """
    if site.noise_seed is None:
        return os_noise(), np.random.default_rng()
    text = f"{site.name}/{study.hash}/{round}/{entry}"
    key = int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big")
    return seeded_noise(site.noise_seed, key), np.random.default_rng([site.noise_seed, key])


def note(site: Site, **facts: object) -> None:
    """Write a line in the hospital's own training log, which never leaves it."""
    folder = site.folder / "log"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    log = os.open(folder / "training.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    with open(log, "a") as file:
        file.write(json.dumps(facts) + "\n")
