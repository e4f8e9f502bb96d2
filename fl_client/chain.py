"""A file of lines that can only grow: each carries the SHA-256 of the line before it, and a head beside it says how it ends.

    lock, append and fsync the line, write and fsync the head, unlock

A changed, missing, moved or cut-off line is found at the next reading. A crash leaves a line too many, never one too few: what
was left half-written at the end is cut off before the next line, and its writer had not been told that it was done. Who may
write both files can forge both; so take a copy of the head to another machine now and then.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fl_client.sharing import file_mode

Body = dict[str, Any]
"""One line without its hashes: its number (`line`), its time (ISO 8601, UTC) and what it says."""


class ChainBroken(RuntimeError):
    """The file isn't what was written. A person has to look."""


@dataclass
class Open:
    """The file under its lock: what stands in it, and `append`."""

    bodies: Sequence[Body]
    chain: Chain
    fd: int
    count: int
    last: str
    end: int  # where the last whole line ends, bytes

    def append(self, says: Mapping[str, Any]) -> Body:
        """Write one line; when this returns it is on the disk, and the head knows it."""
        chain = self.chain
        if not chain.head_path.exists():
            chain._write_head(0, chain.first, 0)
        body = {"line": self.count + 1, "time": datetime.now(UTC).isoformat(timespec="seconds"), **says}
        digest = _digest(self.last, body)
        line = (_canonical({**body, "previous": self.last, "hash": digest}) + "\n").encode()
        os.ftruncate(self.fd, self.end)
        os.lseek(self.fd, self.end, os.SEEK_SET)
        _write_all(self.fd, line)
        os.fsync(self.fd)
        _fsync_folder(chain.path.parent)
        self.count, self.last, self.end = self.count + 1, digest, self.end + len(line)
        chain._write_head(self.count, digest, self.end)
        return body


@dataclass(frozen=True)
class Chain:
    """One chained file; any number of processes may hold one on the same path. Nothing is kept in memory.

    `what` names it in errors ("ledger"), `error` is what is raised if it isn't what was written.
    """

    path: Path
    what: str
    error: type[ChainBroken] = ChainBroken
    first: str = field(init=False)  # what the first line follows

    def __post_init__(self) -> None:
        object.__setattr__(self, "first", hashlib.sha256(f"konsil-{self.what}/1".encode()).hexdigest())

    @property
    def head_path(self) -> Path:
        """The small file that says how many lines there are, how the last one ends, and where."""
        return self.path.with_name(self.path.name + ".head")

    @contextmanager
    def whole(self) -> Iterator[Open]:
        """All lines, checked, while no other process can write."""
        with self._locked(os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX) as fd:
            bodies, last, end = self._read(fd)
            yield Open(bodies, self, fd, len(bodies), last, end)

    @contextmanager
    def end(self) -> Iterator[Open]:
        """The end of the file for one more line, without reading what the head vouches for. Checks what it reads."""
        with self._locked(os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX) as fd:
            there = os.fstat(fd).st_size
            written, digest, size = self._head() if self.head_path.exists() else (0, self.first, None if there else 0)
            if size is None or there < size:
                bodies, last, end = self._read(fd)  # says what is wrong
                yield Open(bodies, self, fd, len(bodies), last, end)
                return
            data = _read_from(fd, size)
            whole, last, number = data.rfind(b"\n") + 1, digest, written
            for raw in data[:whole].splitlines():  # whole lines whose writer was killed before the head
                number += 1
                _, last = self._checked(raw, number=number, previous=last)
            yield Open((), self, fd, number, last, size + whole)

    @property
    def bodies(self) -> tuple[Body, ...]:
        """What was written, oldest first. Raises `error` if it isn't what was written."""
        if not self.path.exists() and not self.head_path.exists():
            return ()
        try:
            with self._locked(os.O_RDONLY, fcntl.LOCK_SH) as fd:
                return tuple(self._read(fd)[0])
        except FileNotFoundError:
            raise self.error(f"{self.path} is missing, but {self.head_path.name} beside it says that it was written") from None

    @contextmanager
    def _locked(self, flags: int, lock: int) -> Iterator[int]:
        fd = os.open(self.path, flags | os.O_CLOEXEC, file_mode(self.path.parent))
        try:
            fcntl.flock(fd, lock)
            yield fd
        finally:
            os.close(fd)  # releases the lock

    def _read(self, fd: int) -> tuple[list[Body], str, int]:
        """Check everything: the lines, the last digest, and where the last whole line ends (bytes)."""
        data = _read_from(fd, 0)
        end = data.rfind(b"\n") + 1
        bodies: list[Body] = []
        last, digests = self.first, [self.first]
        for number, raw in enumerate(data[:end].splitlines(), start=1):
            body, last = self._checked(raw, number=number, previous=last)
            bodies.append(body)
            digests.append(last)
        self._check_head(digests, empty=not data)
        return bodies, last, end

    def _checked(self, raw: bytes, *, number: int, previous: str) -> tuple[Body, str]:
        try:
            body = json.loads(raw)
            digest, follows = body.pop("hash"), body.pop("previous")
        except (ValueError, KeyError, TypeError, AttributeError):
            raise self.error(f"{self.path} line {number} is not a {self.what} entry") from None
        if body.get("line") != number or follows != previous:
            raise self.error(
                f"{self.path} line {number} doesn't follow the line before it: a line is missing, moved or changed"
            )
        if _digest(previous, body) != digest:
            raise self.error(f"{self.path} line {number} was changed after it was written")
        return body, digest

    def _head(self) -> tuple[int, str, int | None]:
        try:
            head = json.loads(self.head_path.read_text())
            size = head.get("bytes")
            return int(head["lines"]), str(head["hash"]), None if size is None else int(size)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise self.error(f"{self.head_path} is not readable as the {self.what}'s head") from None

    def _check_head(self, digests: Sequence[str], *, empty: bool) -> None:
        lines = len(digests) - 1
        try:
            written, digest, _ = self._head()
        except FileNotFoundError:
            if empty:
                return
            raise self.error(f"{self.head_path} is missing, so nobody can say whether {self.path.name} is complete") from None
        if lines < written:
            raise self.error(f"{self.path} has {lines} whole lines, but {written} were written: the end is missing")
        if digests[written] != digest:
            raise self.error(f"{self.path} line {written} is not the line that was written there")

    def _write_head(self, lines: int, digest: str, size: int) -> None:
        part = self.head_path.with_suffix(".head.part")
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, file_mode(self.path.parent))
        try:
            _write_all(fd, json.dumps({"lines": lines, "hash": digest, "bytes": size}).encode())
            os.fsync(fd)
        finally:
            os.close(fd)
        part.replace(self.head_path)
        _fsync_folder(self.path.parent)


def _canonical(body: Mapping[str, Any]) -> str:
    return json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _digest(previous: str, body: Mapping[str, Any]) -> str:
    return hashlib.sha256((previous + _canonical(body)).encode()).hexdigest()


def _read_from(fd: int, start: int) -> bytes:
    os.lseek(fd, start, os.SEEK_SET)
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
