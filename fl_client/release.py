"""The door out: the only place where an answer to the coordinator is built.

What passes: trained parameters by name, or one noisy sum and how much noise is in it, or one with a share of the noise under
masks and what these are agreed on with, with the size that the hospital
declares in public, the epsilon of its ledger and the steps that it took; or a refusal in words; or the bare fact that
something failed. What does not pass: buffers, losses, counts of patients, texts of exceptions, timings (Flower's own is set to
zero in supernode.py; when an answer comes can be seen from outside). The reader of this file has read everything that leaves
the hospital. The ledger has its line before an answer is built here, the audit log gets one before it goes.
"""

from __future__ import annotations

import errno
import functools
import logging
from collections.abc import Collection, Mapping
from contextvars import ContextVar
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp.typing import ClientAppCallable

from fl_client.approval import Declined
from fl_client.audit import AuditLog
from fl_client.chain import ChainBroken
from fl_client.egress import egress
from fl_client.failures import new_number, places, write_failure
from fl_client.halt import halted
from fl_client.privacy.ledger import BudgetSpent
from fl_client.sent import Asked, Kept, Piece, keep
from fl_client.site import Site

DECLINED = 100
"""Code of an error reply that is a refusal in words. Flower's own strategies leave error replies out and go on."""

FAILED = 101
"""Code of an error reply for work that failed at the site. The reason stays in the site's log."""

FAILED_WORDS = "the work failed at this site; its log says why"
"""How every failure begins that the coordinator hears of."""


def reply(
    question: Message, model: torch.nn.Module, *, names: Collection[str], declared_size: int, epsilon: float, steps: int
) -> Message:
    """The trained parameters `names` of `model`, and what the hospital says in public.

    `epsilon` is what its ledger stands at; infinite once anything has left without noise. `steps` were taken and paid for: they
    follow from the study and from the machine's pace on drawn data (`pace.py`).

    Raises `ValueError` for a name that is no parameter (a buffer, say), for an array that is not of floating point or
    not finite, and when nothing is left to send.
    """
    parameters = dict(model.named_parameters())
    arrays = ArrayRecord()
    for name in names:
        if name not in parameters:
            raise ValueError(f"'{name}' is no parameter of the model; only parameters may leave")
        tensor = parameters[name].detach().cpu()
        if not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"parameter '{name}' is not finite floating point; it may not leave")
        arrays[name] = Array(tensor.numpy())
    if not arrays:
        raise ValueError("no parameter was named; an empty answer may not leave")
    metrics = MetricRecord({"num-examples": declared_size, "epsilon": float(epsilon), "steps": steps})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=question)


def total(
    question: Message, total: npt.NDArray[np.float64], *, noise_std: float, declared_size: int, epsilon: float
) -> Message:
    """One sum over patients with its noise, of standard deviation `noise_std` on each number.

    That is public: it follows from the study. Raises `ValueError` for a sum that is not finite.
    """
    if not np.isfinite(total).all():
        raise ValueError("the sum is not finite; it may not leave")
    arrays = ArrayRecord({"total": Array(total), "noise_variance": Array(np.array([noise_std**2]))})
    metrics = MetricRecord({"num-examples": declared_size, "epsilon": float(epsilon)})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=question)


def masked(question: Message, vector: npt.NDArray[np.uint32], *, declared_size: int, epsilon: float) -> Message:
    """One sum over patients with this hospital's share of the noise, under masks: the coordinator can read it in a sum alone.

    Raises `ValueError` for anything that is no masked vector.
    """
    if vector.dtype != np.uint32 or vector.ndim != 1:
        raise ValueError(f"a masked vector is uint32 of one axis, not {vector.dtype} of {vector.ndim}; it may not leave")
    metrics = MetricRecord({"num-examples": declared_size, "epsilon": float(epsilon)})
    return Message(RecordDict({"arrays": ArrayRecord({"masked": Array(vector)}), "metrics": metrics}), reply_to=question)


def shared(question: Message, pieces: Mapping[str, bytes]) -> Message:
    """What a secure sum is agreed on with: public keys, signatures, shares that one other hospital can read. No patient."""
    return Message(RecordDict({"secure": ConfigRecord(dict(pieces))}), reply_to=question)


def enrolment(question: Message, site: Site, *, konsil: str, refusal: str, epsilon: float) -> Message:
    """Who this hospital is, and whether it takes part: `refusal` is empty or says why not.

    `epsilon` is what its ledger would stand at after the whole study, or after all that the yes still covers of one that goes
    on; 0 with a refusal.
    """
    answer = ConfigRecord({"site": site.name, "declared-size": site.declared_size, "konsil-version": konsil})
    answer["takes-part"], answer["reason"] = not refusal, refusal
    answer["epsilon"], answer["delta"] = float(epsilon), site.budget.delta
    return Message(RecordDict({"enrolment": answer}), reply_to=question)


def kept(site: Site, asked: Asked, answer: Message) -> Message:
    """The answer, once it is on the disk for the case that the same question comes again.

    Where it can't be written (a full disk) it leaves all the same, for it is paid: the hospital's log says so, and the question
    costs anew should it come again.
    """
    (arrays,), (metrics,) = answer.content.array_records.values(), answer.content.metric_records.values()
    pieces = [Piece(name, array.dtype, tuple(array.shape), array.stype, array.data) for name, array in arrays.items()]
    numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
    try:
        keep(site, asked, Kept(tuple(pieces), numbers))
    except OSError as error:
        logging.getLogger("konsil").warning(
            "%s: the answer to round %d of study %s could not be kept (%s): if it is asked for again, it is paid for again",
            site.name,
            asked.round,
            asked.study[:12],
            error.strerror,
        )
    return answer


def again(question: Message, answer: Kept) -> Message:
    """An answer that was given before, byte for byte. The audit log's line about it says `again`."""
    arrays = ArrayRecord({one.name: Array(one.dtype, one.shape, one.stype, one.data) for one in answer.pieces})
    _repeated.set(True)
    return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord(dict(answer.metrics))}), reply_to=question)


Shapes = dict[str, tuple[tuple[int, ...], str]]
"""Name -> (shape, dtype) of arrays."""


def shapes(message: Message) -> Shapes:
    """What arrays a message holds."""
    arrays = {name: array.numpy() for record in message.content.array_records.values() for name, array in record.items()}
    return {name: (array.shape, str(array.dtype)) for name, array in arrays.items()}


def checked(question: Message, answer: Message, *, sent: Shapes, metrics: Collection[str]) -> Message:
    """The answer of an app that is not konsil's, rebuilt from what may leave: one ArrayRecord and the listed metrics.

    `sent` is what the app was sent. Raises `ValueError` for an error reply, for other arrays than some of those sent,
    and for arrays that are not of floating point or not finite.
    """
    if answer.has_error():
        raise ValueError(f"the app answered with an error: {answer.error.code} {answer.error.reason}")
    if len(answer.content.array_records) != 1 or len(answer.content.metric_records) > 1:
        raise ValueError("an answer holds one array record and at most one metric record")
    (key, arrays), *_ = answer.content.array_records.items()
    out = ArrayRecord()
    for name, array in arrays.items():
        values = array.numpy()
        if sent.get(name) != (values.shape, str(values.dtype)):
            raise ValueError(f"array '{name}' is {values.dtype}{list(values.shape)}; {sent.get(name)} was sent")
        if not np.issubdtype(values.dtype, np.floating) or not np.isfinite(values).all():
            raise ValueError(f"array '{name}' is not finite floating point; buffers and counters may not leave")
        out[name] = Array(values)
    records: dict[str, ArrayRecord | MetricRecord] = {key: out}
    for name, record in answer.content.metric_records.items():
        records[name] = MetricRecord({metric: value for metric, value in record.items() if metric in metrics})
    return Message(RecordDict(dict(records)), reply_to=question)


def decline(question: Message, reason: str) -> Message:
    """A refusal; `reason` is read by the coordinator."""
    return Message(Error(DECLINED, reason), reply_to=question)


def failure(question: Message, error: BaseException | None = None, *, number: str = "") -> Message:
    """The fact that the work failed, with a reason from a fixed list, and nothing else.

    `number` stands beside the exception in the site's log, so that the two sides can speak of one failure.
    """
    words = FAILED_WORDS + (f" (reason: {reason_of(error)}, number {number})" if error is not None else "")
    return Message(Error(FAILED, words), reply_to=question)


def reason_of(error: BaseException) -> str:
    """What kind of failure it was: a property of the machine or of the books, never of a patient."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return "memory"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "disk"
    if isinstance(error, ChainBroken):
        return "books"
    return "work"


_asked: ContextVar[bool] = ContextVar("konsil_asked", default=False)
_repeated: ContextVar[bool] = ContextVar("konsil_repeated", default=False)


def guarded(answer: ClientAppCallable) -> ClientAppCallable:
    """The threshold: what `answer` gives leaves after a line in the audit log; no exception of it leaves.

    Refusals become declines, everything else a bare failure and an entry in the site's log. A hospital that has paused
    declines; in one that was stopped nothing leaves that was still being worked on. Within another `guarded` it is that one's
    matter.
    """

    @functools.wraps(answer)
    def inside(question: Message, context: Context) -> Message:
        if _asked.get():
            return answer(question, context)
        tokens = _asked.set(True), _repeated.set(False)
        try:
            return _let_out(question, _answered(answer, question, context), context)
        finally:
            _asked.reset(tokens[0])
            _repeated.reset(tokens[1])

    return inside


def _answered(answer: ClientAppCallable, question: Message, context: Context) -> Message:
    try:
        if state := halted(_folder(context)) if "site" in context.node_config else "":
            raise Declined(f"this site has {'paused' if state == 'paused' else 'stopped its work'}")
        return answer(question, context)
    except (Declined, BudgetSpent) as refusal:
        return decline(question, str(refusal))
    except Exception as error:
        return _failed(question, context, error)


def _let_out(question: Message, answer: Message, context: Context) -> Message:
    """The answer, once the audit log has a line about it."""
    if "site" not in context.node_config:
        return answer
    try:
        folder = _folder(context)
        if not answer.has_error() and halted(folder) == "stopped":
            answer = decline(question, "this site has stopped its work")
        facts = egress(question, answer, run=context.run_id, again=_repeated.get() and not answer.has_error())
        AuditLog(folder / "audit.jsonl").append("egress", **facts)
    except Exception as error:
        return _failed(question, context, error)
    return answer


def _failed(question: Message, context: Context, error: Exception) -> Message:
    number = new_number()
    site = None
    try:
        site = Site.load(str(context.node_config["site"]))
        write_failure(site.folder / "log", error, run=context.run_id, number=number)
    except Exception as unwritten:  # a full disk must not turn into a text that leaves
        name = "this site" if site is None else site.name
        shown = error if site is None else None  # of a node that has no hospital the texts concern nobody, and help
        logging.getLogger("konsil").error("%s: %s", name, _unwritten(error, unwritten, number=number), exc_info=shown)
    return failure(question, error, number=number)


def _unwritten(error: Exception, unwritten: Exception, *, number: str) -> str:
    """A sentence on a failure that stands in no log: kinds of exceptions and a place in the code, not their texts."""
    facts = places(error)
    what = f"failure {number} ({' from '.join(facts['kinds'])} at {(facts['where'] or ['elsewhere'])[-1]})"
    full = {reason_of(error), reason_of(unwritten)} == {"disk"}
    why = "the disk is full" if reason_of(unwritten) == "disk" else type(unwritten).__name__
    return f"the disk is full, and {what} stands in no log" if full else f"{what} could not be written to the log: {why}"


def guarded_mod(question: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """`guarded` as a Flower mod: what comes after it in the chain lets no exception out."""
    return guarded(call_next)(question, context)


def _folder(context: Context) -> Path:
    return Site.load(str(context.node_config["site"])).folder
