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
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message
from flwr.clientapp import ClientApp
from pydantic import ValidationError

from conf.study import Study, words
from fl_client import release
from fl_client.approval import Declined, require_approval, require_approved_scores
from fl_client.device import device_of
from fl_client.packed import packed_mod
from fl_client.patients import TrainingPatients, note, usable_patients
from fl_client.price import SCORES, planned, round_event, rounds_paid, scores_event, scores_paid
from fl_client.privacy import BudgetSpent, Event, Ledger, Noise, noisy_total, os_noise, require_private, seeded_noise
from fl_client.privacy import train as dp_sgd
from fl_client.site import Site
from tasks.task import CountingTask, GradientTask, JudgedTask, first_state, load_for

app = ClientApp(mods=[packed_mod])


@app.query("enroll")
@release.guarded
def enroll(question: Message, context: Context) -> Message:
    """Say who this hospital is and whether it takes part in the study, at what price."""
    site = site_of(context)
    refusal, epsilon = "", 0.0
    try:
        study = study_of(question, context)
        past = ledger_of(site).events
        require_approval(site, study, paid=rounds_paid(study, past), wanted=study.rounds)
        if study.privacy.evaluation_share:
            require_approved_scores(site, study, scored=scores_paid(study, past))
        events = planned(site, study, task_of(site, study))
        ledger_of(site).affords(events)
        epsilon = ledger_of(site).planned(events)
    except (Declined, BudgetSpent) as reason:
        refusal = str(reason)
    return release.enrolment(question, site, konsil=version("konsil"), refusal=refusal, epsilon=epsilon)


@app.train()
@release.guarded
def train(question: Message, context: Context) -> Message:
    """Learn one round under the study's privacy, after writing its price in the ledger."""
    site = site_of(context)
    study = study_of(question, context)
    require_approval(site, study, paid=rounds_paid(study, ledger_of(site).events), wanted=1)
    task = task_of(site, study)
    if isinstance(task, CountingTask):
        return count(question, site, study, task)
    return descend(question, site, study, task)


def descend(question: Message, site: Site, study: Study, task: GradientTask) -> Message:
    """A round of a gradient task: noisy steps from the weights that came; the trained parameters leave."""
    model = task.model()
    model.load_state_dict(received(question.content, model.state_dict()))
    require_private(model)
    names = task.trainable(model)
    parameters = dict(model.named_parameters())
    number = round_of(question, study)
    cost = round_event(site, study, task, number=number)
    epsilon = pay(site, study, cost)
    patients = TrainingPatients(task, *usable_patients(site, study, task, "train"))
    noise, sampling = randomness(site, study, round=number, entry=len(ledger_of(site).events))
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
    for patient, reason in report.failed.items():
        note(site, patient=patient, left_out=reason)
    note(site, study=study.hash, round=number, loss=float(np.mean(losses)) if losses else None, patients=len(patients.patients))
    return release.reply(question, model, names=names, declared_size=site.declared_size, epsilon=epsilon)


def count(question: Message, site: Site, study: Study, task: CountingTask) -> Message:
    """The round of a counting task: the noisy sum over the training patients leaves. What came with it is not read."""
    number = round_of(question, study)
    cost = round_event(site, study, task, number=number)
    epsilon = pay(site, study, cost)
    cohort, patients = usable_patients(site, study, task, "train")
    vectors = vectors_of(site, patients, lambda patient: task.contribution(cohort.prepared(task, patient)))
    noise, _ = randomness(site, study, round=number, entry=len(ledger_of(site).events))
    total = summed(vectors, task.length, study, cost, noise)
    note(site, study=study.hash, round=number, counted=task.counted, patients=len(patients))
    return release.total(question, total, noise_std=cost.noise_multiplier, declared_size=site.declared_size, epsilon=epsilon)


@app.evaluate()
@release.guarded
def evaluate(question: Message, context: Context) -> Message:
    """Judge the model that came on the patients held back from training: a noisy sum leaves, after the ledger."""
    site = site_of(context)
    study = study_of(question, context)
    require_approved_scores(site, study, scored=scores_paid(study, ledger_of(site).events))
    task = task_of(site, study)
    if not isinstance(task, JudgedTask):
        raise Declined(f"task {study.task['name']} can't be judged by hospitals")
    state = received(question.content, first_state(task))
    cost = scores_event(site, study)
    epsilon = pay(site, study, cost)
    cohort, patients = usable_patients(site, study, task, "test")
    vectors = vectors_of(site, patients, lambda patient: task.judgement(state, cohort.prepared(task, patient)))
    noise, _ = randomness(site, study, round=study.rounds, entry=len(ledger_of(site).events))
    total = summed(vectors, task.judgement_length, study, cost, noise)
    note(site, study=study.hash, scored=len(patients))
    return release.total(question, total, noise_std=cost.noise_multiplier, declared_size=site.declared_size, epsilon=epsilon)


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


def task_of(site: Site, study: Study) -> GradientTask | CountingTask:
    """The study's task, as this hospital has it installed. Raises `Declined` if it hasn't, or can't be run under this study."""
    try:
        return load_for(study, models=site.models_folder)
    except ValueError as error:
        raise Declined(str(error)) from None


def received(content: object, own: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The arrays that came. Raises `Declined` unless names, shapes and dtypes are those of `own`, and all are finite."""
    records = list(getattr(content, "array_records", {}).values())
    if len(records) != 1 or not isinstance(records[0], ArrayRecord):
        raise Declined(f"a message brings one array record, not {len(records)}")
    if set(records[0]) != set(own):
        raise Declined(f"the weights received differ in names: {sorted(set(records[0]) ^ set(own))[:4]}")
    found = {}
    for name, array in records[0].items():
        tensor = torch.from_numpy(array.numpy())
        if tensor.shape != own[name].shape or tensor.dtype != own[name].dtype:
            came, right = f"{tensor.dtype} {list(tensor.shape)}", f"{own[name].dtype} {list(own[name].shape)}"
            raise Declined(f"the weight '{name}' received is {came}; the model has {right}")
        if not bool(torch.isfinite(tensor).all()):
            raise Declined(f"the weight '{name}' received is not finite")
        found[name] = tensor
    return found


def round_of(question: Message, study: Study) -> int:
    """The number of the round, from 1. Raises `Declined` for one that the study does not have."""
    number = question.content.config_records["config"].get("server-round")
    if not isinstance(number, int) or not 1 <= number <= study.rounds:
        raise Declined(f"study {study.name} has rounds 1 to {study.rounds}, not {number!r}")
    return number


def pay(site: Site, study: Study, cost: Event) -> float:
    """Write the price in the ledger, and on the disk, before a patient is touched: a crash from here on over-counts.

    Approval is asked for again under the ledger's lock, because another process may have spent what was approved. Returns the
    epsilon of everything so far.
    """

    def check(past: Sequence[Event]) -> None:
        if cost.kind == SCORES:
            require_approved_scores(site, study, scored=scores_paid(study, past))
        else:
            require_approval(site, study, paid=rounds_paid(study, past), wanted=1)

    return ledger_of(site).spend(cost, check=check)


def vectors_of(
    site: Site, patients: Sequence[str], vector: Callable[[str], npt.NDArray[np.float64]]
) -> Iterator[npt.NDArray[np.float64]]:
    """One vector per patient. Who raises adds nothing and is named in the site's log.

    A message that fails is visible outside: a model made so that it breaks on one kind of patient would ask, exactly and
    unpaid, whether there is one.
    """
    for patient in patients:
        try:
            found = vector(patient)
        except Exception as error:
            note(site, patient=patient, left_out=f"{type(error).__name__}: {error}")
            continue
        yield found


def summed(
    vectors: Iterable[npt.NDArray[np.float64]], length: int, study: Study, cost: Event, noise: Noise
) -> npt.NDArray[np.float64]:
    """The sum of one bounded vector per patient (length,), with the noise that was paid for."""
    bound = 1.0 if study.privacy.kind == "patient" else math.inf
    return noisy_total(vectors, length=length, bound=bound, noise_multiplier=cost.noise_multiplier, noise=noise)


def ledger_of(site: Site) -> Ledger:
    """The hospital's privacy ledger, with its budget."""
    budget = site.budget
    return Ledger(site.ledger_path, epsilon=budget.epsilon, delta=budget.delta, accept_no_privacy=site.accept_no_privacy)


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
