"""The hospital's ClientApp: a message in, a release out.

Everything a study may decide stands in the study, which travels in the run's configuration and is identified by its hash;
a message brings the weights and the number of the round, and can't change anything else. Which hospital this is stands in
`site.yaml`, whose path comes from the hospital's own node configuration.

A question that was answered already (a retry, a restarted coordinator) gets the same bytes and costs nothing (`sent.py`). One
whose answer is gone, or that brings other weights, is a second release: it is trained with fresh noise and paid for again,
within the rounds that were approved.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message
from flwr.clientapp import ClientApp
from pydantic import ValidationError

from conf.study import Study, words
from fl_client import personal, release, secure, sent
from fl_client.approval import Declined, require_approval
from fl_client.device import device_of
from fl_client.pace import steps_of
from fl_client.packed import packed_mod
from fl_client.patients import note, usable_patients
from fl_client.price import (
    MATRIX,
    SCORES,
    VALIDATION,
    goes_on,
    matrix_event,
    planned,
    require_all_approved,
    require_approved,
    round_event,
    rounds_paid,
    scores_event,
    still_allowed,
    validated_rounds,
    validation_event,
)
from fl_client.privacy import BudgetSpent, Event, Ledger, Noise, noisy_total, os_noise, require_private, seeded_noise
from fl_client.privacy import train as dp_sgd
from fl_client.privacy.dp_sgd import one_sum
from fl_client.sent import Asked, Kept
from fl_client.site import Site
from fl_client.training_cases import as_declared, training_cases
from tasks.secure.noise import Bits, os_bits, seeded_bits
from tasks.secure.plan import about_of, grid_of
from tasks.task import CountingTask, GradientTask, JudgedTask, first_state, load_for, moving
from tasks.task import personal as personal_names

app = ClientApp(mods=[packed_mod])

LENIENT_S = 5.0
"""So long after a round's end by this site's clock it is still begun: two clocks never quite agree."""


@app.query("enroll")
@release.guarded
def enroll(question: Message, context: Context) -> Message:
    """Say who this hospital is and whether it takes part in the study, at what price.

    Before a study begins, the yes and the budget have to cover all of it. One that goes on after its coordinator was killed
    says with which round (`first-round`): then a yes in force is enough, for every further question is paid or declined on its
    own. A coordinator that says it wrongly gains nothing by it. What is said follows from settings, ledger and approval;
    looking at what is kept (`sent.py`) would tell, unpaid, that somebody has withdrawn.
    """
    site = site_of(context)
    refusal, epsilon = "", 0.0
    try:
        study = study_of(question, context)
        secure.require_own_key(site, study)
        past = ledger_of(site).events
        if goes_on(site, study, past, first=(first := first_round_of(question, study))):
            events = still_allowed(site, study, task_of(site, study), past, first=first)
        else:
            require_all_approved(site, study, past)
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
    asked = asked_of(question, site, study, kind="train", number=round_of(question, study))
    if study.privacy.secure is not None:
        return train_masked(question, context, site, study, asked)
    answer = kept_answer(question, site, asked)
    require_approval(site, study, paid=rounds_paid(study, ledger_of(site).events), wanted=0 if answer else 1)
    if answer is not None:
        return release.again(question, answer)
    task = task_of(site, study)
    work = (
        count(question, site, study, task, asked)
        if isinstance(task, CountingTask)
        else descend(question, site, study, task, asked)
    )
    return release.kept(site, asked, work)


def descend(question: Message, site: Site, study: Study, task: GradientTask, asked: Asked) -> Message:
    """A round of a gradient task: noisy steps from the weights that came; what was trained leaves, but for what is personal."""
    model = task.model()
    state = received(question.content, model.state_dict())
    require_private(model)
    names = moving(study, task, model)
    own = personal_names(study, names)
    model.load_state_dict(state | personal.begin(site, asked) if own else state)
    parameters = dict(model.named_parameters())
    before = {name: parameters[name].detach().clone() for name in own}
    steps = steps_of(site, study, task)  # settled before the price is, and before a patient is touched
    cost = round_event(site, study, task, number=asked.round).model_copy(update={"steps": steps})
    epsilon = pay(site, study, cost)
    cases = training_cases(site, study, task)
    noise, sampling = randomness(site, asked)
    report = dp_sgd(
        model,
        cases,
        parameters=[parameters[name] for name in names],
        loss=task.loss,
        steps=cost.steps,
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
    note(
        site,
        study=study.hash,
        round=asked.round,
        loss=float(np.mean(losses)) if losses else None,
        patients=len(cases.real.patients),
        synthetic=len(cases.synthetic),
        steps=cost.steps,
    )
    if own:
        personal.keep(site, asked, before, {name: parameters[name] for name in own})
    leaving = [name for name in names if name not in before]
    return release.reply(question, model, names=leaving, declared_size=site.declared_size, epsilon=epsilon, steps=cost.steps)


def count(question: Message, site: Site, study: Study, task: CountingTask, asked: Asked) -> Message:
    """The round of a counting task: the noisy sum over the training patients leaves. What came with it is not read."""
    cost = round_event(site, study, task, number=asked.round)
    epsilon = pay(site, study, cost)
    cohort, patients = usable_patients(site, study, task, "train")
    vectors = vectors_of(site, patients, lambda patient: task.contribution(cohort.prepared(task, patient)))
    noise, _ = randomness(site, asked)
    total = summed(vectors, task.length, study, cost, noise)
    note(site, study=study.hash, round=asked.round, counted=task.counted, patients=len(patients))
    return release.total(question, total, noise_std=cost.noise_multiplier, declared_size=site.declared_size, epsilon=epsilon)


# -- secure aggregation: the sum of all hospitals leaves, no hospital's own (tasks/secure) ----------------------------------


@app.query("secure_keys")
@release.guarded
def secure_keys(question: Message, context: Context) -> Message:
    """Begin an attempt at a round: fresh public keys, signed by this hospital."""
    site, study, where = part_of(question, context)
    require_approval(site, study, paid=rounds_paid(study, ledger_of(site).events), wanted=1)
    return release.shared(question, {"keys": secure.begin(site, study, context, **where)})


@app.query("secure_shares")
@release.guarded
def secure_shares(question: Message, context: Context) -> Message:
    """Shares of this attempt's secrets, encrypted for each other hospital of the roster that came."""
    site, study, where = part_of(question, context)
    roster = secure.brought(question, "roster")
    return release.shared(question, secure.shared_out(site, study, context, **where, roster=roster))


@app.query("secure_agree")
@release.guarded
def secure_agree(question: Message, context: Context) -> Message:
    """A signature on who answered."""
    site, study, where = part_of(question, context)
    names = secure.survivors_of(question)
    return release.shared(question, {"signature": secure.agree(site, study, context, **where, survivors=names)})


@app.query("secure_unmask")
@release.guarded
def secure_unmask(question: Message, context: Context) -> Message:
    """One share for each hospital, with which the masks come off the sum; given once for an attempt."""
    site, study, where = part_of(question, context)
    names, agreed = secure.survivors_of(question), secure.brought(question, "agreed")
    return release.shared(question, secure.unmask(site, study, context, **where, survivors=names, agreed=agreed))


def train_masked(question: Message, context: Context, site: Site, study: Study, asked: Asked) -> Message:
    """A round whose answer can be read in the sum of all alone. The others' shares are looked at before anything is paid."""
    where = {"number": asked.round, "attempt": secure.attempt_of(question)}
    shares = secure.brought(question, "shares")
    # the same vector under the same keys, or none: what was masked with other keys can't be unmasked with these
    these_keys = secure.instance_of(site, study, context, **where)
    this_try = dataclasses.replace(asked, kind="train-masked", digest=f"{asked.digest}-{these_keys}")
    if (answer := kept_answer(question, site, this_try)) is not None:
        require_approval(site, study, paid=rounds_paid(study, ledger_of(site).events), wanted=0)
        secure.masked_before(site, study, context, **where, shares=shares)
        return release.again(question, answer)
    require_approval(site, study, paid=rounds_paid(study, ledger_of(site).events), wanted=1)
    task = task_of(site, study)
    grid = grid_of(study, task)
    bare: Callable[[], tuple[dict[str, npt.NDArray[Any]], dict[str, int]]]
    if isinstance(task, CountingTask):
        came = received(question.content, first_state(task))
        bare = partial(bare_count, site, study, task)
    else:
        model = task.model()
        came = received(question.content, model.state_dict())
        model.load_state_dict(came)
        require_private(model)
        bare = partial(bare_gradient, site, study, task, model, list(grid.shapes), asked)
    secure.accept(site, study, context, **where, shares=shares)
    epsilon = pay(site, study, round_event(site, study, task, number=asked.round))
    total, took_part = bare()
    vector = grid.encode(total, patients=site.declared_size, bits=bits_of(site, asked))
    note(site, study=study.hash, round=asked.round, **took_part, masked=True)
    vector = secure.mask(site, study, context, vector, **where, about=about_of(task, came))
    work = release.masked(question, vector, declared_size=site.declared_size, epsilon=epsilon)
    return release.kept(site, this_try, work)


def bare_count(site: Site, study: Study, task: CountingTask) -> tuple[dict[str, npt.NDArray[Any]], dict[str, int]]:
    """The sum over the training patients without noise, which only masks may cover, and how many took part."""
    cohort, patients = usable_patients(site, study, task, "train")
    vectors = vectors_of(site, patients, lambda patient: task.contribution(cohort.prepared(task, patient)))
    total = noisy_total(vectors, length=task.length, bound=1.0, noise_multiplier=0.0, noise=os_noise())
    return {"total": total}, {"patients": len(patients)}


def bare_gradient(
    site: Site, study: Study, task: GradientTask, model: torch.nn.Module, names: Sequence[str], asked: Asked
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, int]]:
    """The sum of clipped gradients over training patients and synthetic cases without noise, and how many: as `bare_count`."""
    cases = training_cases(site, study, task)
    parameters = dict(model.named_parameters())
    _, sampling = randomness(site, asked)
    sums, failed = one_sum(
        model,
        cases,
        parameters=[parameters[name] for name in names],
        loss=task.loss,
        views=study.training.views,
        max_grad_norm=study.privacy.max_grad_norm,
        sampling_rng=sampling,
        device=device_of(site),
    )
    for patient, reason in failed.items():
        note(site, patient=patient, left_out=reason)
    if cases.synthetic:
        sums = as_declared(sums, longest=site.declared_size * study.privacy.max_grad_norm)
    took_part = {"patients": len(cases.real.patients), "synthetic": len(cases.synthetic)}
    return {name: gradient.cpu().numpy() for name, gradient in zip(names, sums, strict=True)}, took_part


def part_of(question: Message, context: Context) -> tuple[Site, Study, dict[str, int]]:
    """Hospital, study, and which try at which round. Raises `Declined` for a study without secure aggregation."""
    site, study = site_of(context), study_of(question, context)
    if study.privacy.secure is None:
        raise Declined(f"study {study.name} has no secure aggregation")
    return site, study, {"number": round_of(question, study), "attempt": secure.attempt_of(question)}


@app.evaluate()
@release.guarded
def evaluate(question: Message, context: Context) -> Message:
    """Judge the model that came on patients held back from training: a noisy sum leaves, after the ledger.

    The question says to what purpose: `scores` of the finished model by the test patients, `validation` of a round's model, or
    the scores of one model of the `matrix`, both by the validation patients.
    """
    site = site_of(context)
    study = study_of(question, context)
    kind, cost = purpose_of(question, site, study)
    asked = asked_of(question, site, study, kind=kind, number=cost.round)
    if (answer := kept_answer(question, site, asked)) is not None:
        require_approval(site, study, paid=rounds_paid(study, ledger_of(site).events), wanted=0)
        return release.again(question, answer)
    require_approved(site, study, cost, ledger_of(site).events)
    task = task_of(site, study)
    if not isinstance(task, JudgedTask):
        raise Declined(f"task {study.task['name']} can't be judged by hospitals")
    device = device_of(site) if isinstance(task, GradientTask) else torch.device("cpu")
    judged = personal.worn(site, study, received(question.content, first_state(task)))
    state = {name: tensor.to(device) for name, tensor in judged.items()}
    epsilon = pay(site, study, cost)
    cohort, patients = usable_patients(site, study, task, "test" if cost.kind == SCORES else "validation")
    vectors = vectors_of(site, patients, lambda patient: task.judgement(state, cohort.prepared(task, patient)))
    noise, _ = randomness(site, asked)
    total = summed(vectors, task.judgement_length, study, cost, noise)
    note(site, study=study.hash, scored=len(patients), what=kind, round=cost.round)
    work = release.total(question, total, noise_std=cost.noise_multiplier, declared_size=site.declared_size, epsilon=epsilon)
    return release.kept(site, asked, work)


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
    meant = config_of(question).get("study-hash")
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


def asked_of(question: Message, site: Site, study: Study, *, kind: str, number: int) -> Asked:
    """The question as it is known again.

    Raises `Declined`, before anything is paid, if nobody can be waiting for its answer any more, or if the answer could not
    count because this site declares another size than the one that it enrolled with (`declared-size`).
    """
    enrolled = config_of(question).get("declared-size", site.declared_size)
    if enrolled != site.declared_size:
        raise Declined(
            f"this site declares {site.declared_size} now and {enrolled!r} when it enrolled; its answers count if it declares "
            f"{enrolled!r} again (declared_size in site.yaml), or once study {study.name} was interrupted and goes on"
        )
    whole, age = study.strategy.timeout_s(site.name), time.time() - question.metadata.created_at
    left = left_s(question, whole)
    if not age <= left + LENIENT_S:  # before the ledger: what is worked on now would be paid for nothing
        asked = f"the round is over: it was asked for {age:.0f} s ago by this site's clock, and "
        lasts = f"a round of study {study.name} lasts {whole:g} s"
        raise Declined(asked + (lasts if left == whole else f"then had {left:.0f} s left of its {whole:g} s"))
    return Asked.of(site, study, kind=kind, number=number, records=question.content.array_records)


def left_s(question: Message, whole: float) -> float:
    """Seconds of the round's `whole` that were left when the question was written: all, unless it was asked before.

    A question that is asked again brings a clock of its own, so that its age alone doesn't tell. Raises `Declined` for
    something that is no number.
    """
    said = config_of(question).get("left-s", whole)
    if not isinstance(said, int | float) or not math.isfinite(said):
        raise Declined(f"a question says how many seconds its round has left, not {said!r}")
    return min(float(said), whole)


def kept_answer(question: Message, site: Site, asked: Asked) -> Kept | None:
    """The answer that was given to this very question, if it is kept.

    Raises `Declined` for one that says another declared size than the question brings: it could not count.
    """
    answer = sent.look(site, asked)
    if answer is None:
        return None
    enrolled, said = config_of(question).get("declared-size"), answer.metrics.get("num-examples")
    if enrolled is not None and enrolled != said:
        raise Declined(
            f"this site declared {said} when it answered this question and {enrolled!r} when it enrolled; the answer would not "
            "count, and is not given twice"
        )
    return answer


def config_of(question: Message) -> ConfigRecord:
    """What a message says beside its arrays. Empty if it says nothing."""
    return question.content.config_records.get("config", ConfigRecord())


def first_round_of(question: Message, study: Study) -> int:
    """The round with which the study begins or goes on; one more than it has where only its scores are to come.

    Raises `Declined` for a beginning that the study does not have.
    """
    first = config_of(question).get("first-round", 1)
    if not isinstance(first, int) or not 1 <= first <= study.rounds + 1:
        raise Declined(f"study {study.name} has rounds 1 to {study.rounds} and can't go on with round {first!r}")
    return first


def round_of(question: Message, study: Study) -> int:
    """The number of the round, from 1. Raises `Declined` for one that the study does not have."""
    number = config_of(question).get("server-round")
    if not isinstance(number, int) or not 1 <= number <= study.rounds:
        raise Declined(f"study {study.name} has rounds 1 to {study.rounds}, not {number!r}")
    return number


def purpose_of(question: Message, site: Site, study: Study) -> tuple[str, Event]:
    """What scores are asked for, under the name that their answer is kept by, and what they cost.

    Raises `Declined` for a purpose that there isn't or that the study doesn't have, a round after which it isn't validated, and
    a model that no matrix of it has.
    """
    config = config_of(question)
    purpose = config.get("purpose", SCORES)
    if purpose == SCORES:
        if not study.privacy.evaluation_share:
            raise Declined(f"study {study.name} sets nothing of its promise aside for scores (privacy.evaluation_share is 0)")
        return "evaluate", scores_event(site, study)
    if purpose == VALIDATION:
        if not study.validations:
            raise Declined(f"study {study.name} asks for no scores between rounds (it has no validation)")
        number = round_of(question, study)
        if number not in (due := validated_rounds(study)):
            raise Declined(f"study {study.name} is validated after every {due.step}. round, and not after round {number}")
        return VALIDATION, validation_event(site, study, number=number)
    if purpose == MATRIX:
        if not study.privacy.matrix_share:
            raise Declined(f"study {study.name} sets nothing of its promise aside for a matrix (privacy.matrix_share is 0)")
        model = config.get("model")
        if model not in ("global", *study.sites):
            raise Declined(f"a matrix of study {study.name} has the models 'global' and those of its sites, not {model!r}")
        return f"{MATRIX}-{model}", matrix_event(site, study)
    raise Declined(f"scores are asked for as '{SCORES}', '{VALIDATION}' or '{MATRIX}', not as {purpose!r}")


def pay(site: Site, study: Study, cost: Event) -> float:
    """Write the price in the ledger, and on the disk, before a patient is touched: a crash from here on over-counts.

    Approval is asked for again under the ledger's lock, because another process may have spent what was approved. Returns the
    epsilon of everything so far.
    """
    return ledger_of(site).spend(cost, check=lambda past: require_approved(site, study, cost, past))


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


def randomness(site: Site, asked: Asked) -> tuple[Noise, np.random.Generator]:
    """Noise and sampling of one release: from the operating system, or repeatable for a rehearsal.

    Sampling is never seeded by the study: who knew the draw would get no protection from it. In a rehearsal both differ
    between hospitals and between questions (study, kind, round, arrays that came), so that a question which is worked on twice
    because of a crash gets the same bytes. The price of that: should the cohort have changed in between, the same noise lies on
    both answers and cancels in their difference. A rehearsal promises nothing anyway: its noise is known to who knows the seed.
    """
    if site.noise_seed is None:
        return os_noise(), np.random.default_rng()
    key = _rehearsed(site, asked)
    return seeded_noise(site.noise_seed, key), np.random.default_rng([site.noise_seed, key])


def _rehearsed(site: Site, asked: Asked) -> int:
    """What differs between hospitals and between questions of a rehearsal."""
    return int.from_bytes(hashlib.sha256(f"{site.name}/{asked.digest}".encode()).digest()[:16], "big")


def bits_of(site: Site, asked: Asked) -> Bits:
    """Where the noise in whole numbers comes from; as `randomness`."""
    if site.noise_seed is None:
        return os_bits()
    key = _rehearsed(site, asked)
    return seeded_bits(site.noise_seed, key)
