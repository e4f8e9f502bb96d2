"""A hospital's part in a secure sum, question by question: what it keeps between them, and what makes it say no.

The secrets of an attempt live in Flower's context of this node, which is the memory of the hospital's SuperNode: they are
written nowhere, and are gone when it ends. That a vector was masked, a list signed or an attempt unmasked is written, however,
and forced to the disk before the answer is made: a process that is killed before it can hand back what it knows leaves the
SuperNode with an older state, in which a second vector would get the same masks, and the other half of a secret would be given.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message

from conf.study import Study
from fl_client.approval import Declined
from fl_client.keys import private_key
from fl_client.sharing import file_mode, make_folder
from fl_client.site import Site
from tasks.secure.circle import Moment, SecureSumError
from tasks.secure.masks import Vector
from tasks.secure.plan import circle_of, moment_of
from tasks.secure.site import SiteRound
from tasks.weights import force_folder

STATE = "secure"
"""Name of the record in the node's context."""

KEPT_DAYS = 400
"""So long it is known what was done with an attempt's keys; no SuperNode runs so long."""


def node_key(site: Site) -> Path:
    """Where this hospital's own key lies: the one it is known by."""
    return site.coordinator.key if site.coordinator is not None else site.folder / "node.key"


def require_own_key(site: Site, study: Study) -> None:
    """Raise `Declined` if a secure sum knows this hospital by another key than its own, or that can't be read."""
    if study.privacy.secure is not None:
        with _in_words():
            _new(site, study, moment_of(study, number=1, attempt=0))


def attempt_of(question: Message) -> int:
    """Which try at its round the question belongs to. Raises `Declined` for one that says none."""
    attempt = question.content.config_records.get("config", ConfigRecord()).get("attempt")
    if type(attempt) is not int or not 0 <= attempt < 2**31:
        raise Declined(f"a question of a secure sum says which attempt it is, not {attempt!r}")
    return attempt


def begin(site: Site, study: Study, context: Context, *, number: int, attempt: int) -> bytes:
    """Fresh keys for this attempt, signed. Those of any other attempt are forgotten."""
    moment = moment_of(study, number=number, attempt=attempt)
    with _in_words():
        one = _new(site, study, moment)
        keys = one.keys()
    _tidy(site)
    _keep(context, one)
    return keys


def instance_of(site: Site, study: Study, context: Context, *, number: int, attempt: int) -> str:
    """By which keys this hospital is known in this attempt. Raises `Declined` if it has no part in it."""
    with _taken_up(site, study, context, number=number, attempt=attempt) as one:
        return one.instance


def shared_out(
    site: Site, study: Study, context: Context, *, number: int, attempt: int, roster: Mapping[str, bytes]
) -> dict[str, bytes]:
    """For every other hospital of the roster, its share of this one's secrets, which nobody else can read."""
    with _taken_up(site, study, context, number=number, attempt=attempt) as one:
        return one.shares(roster)


def accept(site: Site, study: Study, context: Context, *, number: int, attempt: int, shares: Mapping[str, bytes]) -> None:
    """Take the others' shares; before a patient is touched and anything is paid."""
    with _taken_up(site, study, context, number=number, attempt=attempt) as one:
        one.accept(shares)


def mask(site: Site, study: Study, context: Context, vector: Vector, *, number: int, attempt: int, about: bytes) -> Vector:
    """The vector under its masks, in place; one vector under the same masks, whatever happens to this process."""
    with _taken_up(site, study, context, number=number, attempt=attempt) as one:
        _once(site, one, "masked")
        return one.mask(vector, about=about)


def masked_before(
    site: Site, study: Study, context: Context, *, number: int, attempt: int, shares: Mapping[str, bytes]
) -> None:
    """The vector of this attempt is given again: go on as if it had just been masked."""
    with _taken_up(site, study, context, number=number, attempt=attempt) as one:
        if not one.has_masked:  # this process was killed, or could not hand its vector over
            one.accept(shares)
            one.masked_before()


def agree(site: Site, study: Study, context: Context, *, number: int, attempt: int, survivors: list[str]) -> bytes:
    """A signature on the list of who answered; on one list."""
    with _taken_up(site, study, context, number=number, attempt=attempt) as one:
        _once(site, one, "agreed")
        return one.agree(survivors)


def unmask(
    site: Site,
    study: Study,
    context: Context,
    *,
    number: int,
    attempt: int,
    survivors: list[str],
    agreed: Mapping[str, bytes],
) -> dict[str, bytes]:
    """One share of each hospital's secrets; once, whatever happens to this process."""
    with _taken_up(site, study, context, number=number, attempt=attempt) as one:
        _once(site, one, "unmasked")
        return one.unmask(survivors, agreed)


def _once(site: Site, one: SiteRound, what: str) -> None:
    """Write down that this has been done with these keys, forced to the disk. Raises `Declined` if it had been."""
    marker = site.folder / "secure" / f"{one.instance[:32]}.{what}"
    make_folder(marker.parent)
    try:
        os.close(os.open(marker, os.O_WRONLY | os.O_CREAT | os.O_EXCL, file_mode(marker.parent)))
    except FileExistsError:
        where = f"attempt {one.moment.attempt} at round {one.moment.round}"
        raise Declined(f"this site has {what} once with its keys of {where}, and does so once only") from None
    force_folder(marker.parent)


def _tidy(site: Site) -> None:
    """Forget what was done with keys so old that no SuperNode has them any more."""
    oldest = time.time() - KEPT_DAYS * 86400
    for marker in (site.folder / "secure").glob("*"):
        with contextlib.suppress(FileNotFoundError):
            if marker.stat().st_mtime < oldest:
                marker.unlink()


def survivors_of(question: Message) -> list[str]:
    """Who answered, as the coordinator says. Raises `Declined` for what is no list of names."""
    names = question.content.config_records.get("config", ConfigRecord()).get("survivors")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise Declined("a question to unmask says who answered, as a list of names")
    return [str(name) for name in names]


def brought(question: Message, record: str) -> dict[str, bytes]:
    """Bytes by hospital that a question brings in this record. Raises `Declined` for anything else in it."""
    found = dict(question.content.config_records.get(record, ConfigRecord()))
    if not all(isinstance(value, bytes) for value in found.values()):
        raise Declined(f"the record '{record}' of a secure sum holds bytes by hospital, nothing else")
    return {name: value for name, value in found.items() if isinstance(value, bytes)}


def _new(site: Site, study: Study, moment: Moment, state: bytes | None = None) -> SiteRound:
    circle, key = circle_of(study), private_key(node_key(site))
    if state is None:
        return SiteRound(circle, moment, site=site.name, key=key)
    return SiteRound.restored(circle, moment, site=site.name, key=key, state=state)


@contextmanager
def _taken_up(site: Site, study: Study, context: Context, *, number: int, attempt: int) -> Iterator[SiteRound]:
    """The attempt as it was left, kept again when it has been asked."""
    moment = moment_of(study, number=number, attempt=attempt)
    record = context.state.config_records.get(STATE, ConfigRecord())
    state = record.get("state")
    if record.get("moment") != moment.context("state").hex() or not isinstance(state, bytes):
        raise Declined(
            f"this site has no part in attempt {attempt} at round {number}: it was started anew in between, or never had one"
        )
    with _in_words():
        one = _new(site, study, moment, state)
        try:
            yield one
        finally:
            _keep(context, one)


def _keep(context: Context, one: SiteRound) -> None:
    context.state[STATE] = ConfigRecord({"moment": one.moment.context("state").hex(), "state": one.state()})


@contextmanager
def _in_words() -> Iterator[None]:
    """What the protocol refuses is about the coordinator's questions, never about patients: the coordinator may read it."""
    try:
        yield
    except SecureSumError as refusal:
        raise Declined(str(refusal)) from None
    except (FileNotFoundError, PermissionError):
        raise Declined("this site's own key can't be read, and without it nothing can be signed") from None
