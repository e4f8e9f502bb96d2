"""The hospital's privacy ledger: every release that concerns its patients, written down before it leaves.

One ledger belongs to one patient population, and outlives rounds, restarts, studies and kinds of model. Each line carries
the SHA-256 of the line before it, and a small file beside the ledger (`.head`) says how many lines there are and how the
last one ends, so that a changed, missing or cut-off line is found. A crash leaves an event too many, never one too few:

    lock, check approval and budget, append and fsync the line, write and fsync the head, unlock; only then may it leave.

What the chain can't show is told in docs/privacy.md: who may write both files can forge both.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fl_client.privacy.budget import epsilon as epsilon_of
from fl_client.privacy.events import Event

_FIRST = hashlib.sha256(b"konsil-ledger/1").hexdigest()  # what the first line follows


class BudgetSpent(RuntimeError):
    """A release would cost more than the hospital allows. Nothing was written and nothing may leave."""


class LedgerBroken(RuntimeError):
    """The ledger isn't what was written. A person has to look; until then nothing may leave."""


class Ledger:
    """The releases of one patient population and what they cost.

    Any number of processes may hold a `Ledger` on the same path. Nothing is kept in memory: every question is answered
    from the file, under a lock.

    Parameters
    ----------
    path : Path
        The JSONL file; made at the first event, readable by its owner only.
    epsilon, delta : float
        The most these patients' data may cost, over everything, for ever. The hospital may change either at any time:
        the ledger holds events, and what they cost is worked out when it is asked.
    accept_no_privacy : bool
        Let releases without noise be written (rehearsals). They make `epsilon` infinite and it stays so. The budget then
        goes on binding the releases that do have noise. Without it, an infinite epsilon is over every budget.
    """

    def __init__(self, path: Path | str, *, epsilon: float, delta: float, accept_no_privacy: bool = False) -> None:
        if not epsilon > 0:
            raise ValueError(f"a hospital's epsilon must be positive, not {epsilon}")
        if not 0 < delta < 1:
            raise ValueError(f"a hospital's delta must lie between 0 and 1, not {delta}")
        self.path = Path(path)
        self.budget = epsilon
        self.delta = delta
        self.accept_no_privacy = accept_no_privacy

    # -- what a release does ------------------------------------------------------------------------------------------

    def spend(self, event: Event, *, check: Callable[[Sequence[Event]], None] | None = None) -> float:
        """Write `event` down and return the epsilon of everything so far. When this returns, the release may leave.

        `check` is called with everything that was spent before, while no other process can spend: what it raises is
        raised, and nothing is written. It must not ask this ledger anything, which would wait for ever.

        The line is on the disk before the call returns (file and folder are fsynced). A release that is repeated is
        spent again: its noise is new. What a crash left half-written at the end is cut off first: its `spend` had not
        returned, so its release did not leave.

        Raises
        ------
        BudgetSpent
            Before anything is written, if the event would bring epsilon over the budget, or has no noise and the
            hospital doesn't accept that.
        LedgerBroken
            Before anything is written, if the ledger isn't what was written.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._locked(os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX) as fd:
            past, count, last, end = self._read(fd)
            if check is not None:
                check(past)
            self._require_affordable(past, [event])
            if not _head(self.path).exists():
                self._write_head(0, _FIRST)
            line, digest = _line(event, number=count + 1, previous=last)
            os.ftruncate(fd, end)
            os.lseek(fd, end, os.SEEK_SET)
            _write_all(fd, line)
            os.fsync(fd)
            _fsync_folder(self.path.parent)
            self._write_head(count + 1, digest)
            return epsilon_of([*past, event], delta=self.delta)

    def planned(self, events: Sequence[Event]) -> float:
        """The epsilon there would be after `events`: what a study costs, asked before anyone approves it."""
        return epsilon_of([*self.events, *events], delta=self.delta)

    def affords(self, events: Sequence[Event]) -> None:
        """Return if the budget covers all of `events`; otherwise raise `BudgetSpent` as `spend` would. Writes nothing."""
        self._require_affordable(self.events, events)

    # -- what the data protection officer reads -----------------------------------------------------------------------

    @property
    def events(self) -> tuple[Event, ...]:
        """Everything that was spent, oldest first. Raises `LedgerBroken`."""
        if not self.path.exists() and not _head(self.path).exists():
            return ()
        try:
            with self._locked(os.O_RDONLY, fcntl.LOCK_SH) as fd:
                return tuple(self._read(fd)[0])
        except FileNotFoundError:
            raise LedgerBroken(
                f"{self.path} is missing, but {_head(self.path).name} beside it says that it was written"
            ) from None

    @property
    def epsilon(self) -> float:
        """What one patient's data have cost so far, at the hospital's delta."""
        return epsilon_of(self.events, delta=self.delta)

    def verify(self) -> None:
        """Read every line and check the chain. Raises `LedgerBroken` naming the first line that isn't right."""
        _ = self.events

    # -- inside -------------------------------------------------------------------------------------------------------

    def _require_affordable(self, past: Sequence[Event], new: Sequence[Event]) -> None:
        limit = f"this hospital's {self.budget:g} (delta {self.delta:g})"
        for event in new:
            if event.noise_multiplier == 0 and not self.accept_no_privacy:
                raise BudgetSpent(
                    f"{_name(event)} would leave without noise and bring epsilon to infinity, over {limit}; "
                    "the hospital's settings don't accept a release without privacy"
                )
        noisy = [event for event in new if event.noise_multiplier > 0]
        counted = [event for event in past if event.noise_multiplier > 0 or not self.accept_no_privacy]
        if noisy and (after := epsilon_of([*counted, *noisy], delta=self.delta)) > self.budget:
            raise BudgetSpent(f"{_name(noisy[-1])} would bring epsilon to {_over(after, self.budget)}, over {limit}")

    @contextmanager
    def _locked(self, flags: int, lock: int) -> Iterator[int]:
        fd = os.open(self.path, flags | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, lock)
            yield fd
        finally:
            os.close(fd)  # releases the lock

    def _read(self, fd: int) -> tuple[list[Event], int, str, int]:
        """Check everything: the events, their number, the last digest, and where the last whole line ends (bytes)."""
        data = _read_all(fd)
        end = data.rfind(b"\n") + 1
        events, last, digests = [], _FIRST, [_FIRST]
        for number, raw in enumerate(data[:end].splitlines(), start=1):
            event, last = _checked(raw, number=number, previous=last, path=self.path)
            events.append(event)
            digests.append(last)
        self._check_head(digests, empty=not data)
        return events, len(events), last, end

    def _check_head(self, digests: Sequence[str], *, empty: bool) -> None:
        lines = len(digests) - 1
        try:
            head = json.loads(_head(self.path).read_text())
            written, digest = int(head["lines"]), str(head["hash"])
        except FileNotFoundError:
            if empty:
                return
            raise LedgerBroken(
                f"{_head(self.path)} is missing, so nobody can say whether {self.path.name} is complete"
            ) from None
        except (ValueError, KeyError, TypeError):
            raise LedgerBroken(f"{_head(self.path)} is not readable as the ledger's head") from None
        if lines < written:
            raise LedgerBroken(f"{self.path} has {lines} whole lines, but {written} were written: the end is missing")
        if digests[written] != digest:
            raise LedgerBroken(f"{self.path} line {written} is not the line that was written there")

    def _write_head(self, lines: int, digest: str) -> None:
        part = _head(self.path).with_suffix(".head.part")
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            _write_all(fd, json.dumps({"lines": lines, "hash": digest}).encode())
            os.fsync(fd)
        finally:
            os.close(fd)
        part.replace(_head(self.path))
        _fsync_folder(self.path.parent)


def _head(path: Path) -> Path:
    return path.with_name(path.name + ".head")


def _canonical(body: dict[str, Any]) -> str:
    return json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _digest(previous: str, body: dict[str, Any]) -> str:
    return hashlib.sha256((previous + _canonical(body)).encode()).hexdigest()


def _line(event: Event, *, number: int, previous: str) -> tuple[bytes, str]:
    body = {"line": number, "time": datetime.now(UTC).isoformat(timespec="seconds"), "event": event.model_dump(mode="json")}
    digest = _digest(previous, body)
    return (_canonical({**body, "previous": previous, "hash": digest}) + "\n").encode(), digest


def _checked(raw: bytes, *, number: int, previous: str, path: Path) -> tuple[Event, str]:
    try:
        entry = json.loads(raw)
        digest, follows = entry.pop("hash"), entry.pop("previous")
        event = Event.model_validate(entry["event"])
    except (ValueError, KeyError, TypeError, AttributeError, ValidationError):
        raise LedgerBroken(f"{path} line {number} is not a ledger entry") from None
    if entry.get("line") != number or follows != previous:
        raise LedgerBroken(f"{path} line {number} doesn't follow the line before it: a line is missing, moved or changed")
    if _digest(previous, entry) != digest:
        raise LedgerBroken(f"{path} line {number} was changed after it was written")
    return event, digest


def _name(event: Event) -> str:
    what = "scores" if event.kind == "scores" else f"round {event.round}"
    return f"study {event.study_name or event.study[:12] or '(unnamed)'} {what}"


def _over(after: float, budget: float) -> str:
    """`after` with as many digits as show that it is over `budget`."""
    if math.isinf(after):
        return "infinity"
    return next((text for digits in range(3, 17) if float(text := f"{after:.{digits}g}") > budget), repr(after))


def _read_all(fd: int) -> bytes:
    os.lseek(fd, 0, os.SEEK_SET)
    pieces = []
    while piece := os.read(fd, 1 << 20):
        pieces.append(piece)
    return b"".join(pieces)


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _fsync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
