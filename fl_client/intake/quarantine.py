"""Originals that may not pass: kept in the identity zone, each with the reason, until a person has looked at them.

    <identity>/quarantine/<name>.dcm          the bytes as they came
    <identity>/quarantine/quarantine.jsonl    one line each: file, reason, when, whose it is by pseudonym, of which new series

Reasons are our own sentences; they name no person and repeat nothing of a header.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Any
from uuid import uuid4

Bytes = bytes | bytearray | memoryview
LIST, PART = "quarantine.jsonl", ".part"


class Quarantine:
    """The folder of originals that may not pass. `fsync=False` is for measurements only."""

    def __init__(self, folder: Path, *, fsync: bool = True) -> None:
        self.folder, self._fsync = Path(folder), fsync
        self._lock = Lock()
        self._noted: set[tuple[str, str]] = set()  # files with reasons, as far as the list has been read
        self._images: dict[str, set[tuple[str, str]]] = {}  # by pseudonym
        self._read = (0, 0)  # which file that was, and to which byte
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def note(self, what: str, reason: str, *, pseudonym: str = "", series: str = "", instance: str = "") -> None:
        """Write a reason down; `what` is a file here, or a handle of something that stays where it is. Raises `OSError`.

        `series` and `instance` are the new UIDs of an image whose place in the clean store stays empty.
        """
        path, image = self.folder / LIST, {"series": series, "instance": instance} if series else {}
        with self._lock, self._turn():
            self._read_on(path)
            if (what, reason) not in self._noted:
                line = {"file": what, "reason": reason, "pseudonym": pseudonym, **image, "when": _now()}
                append_line(path, line, fsync=self._fsync)
                self._learn([line])
                self._read = _identity(path)

    def images(self, pseudonym: str) -> frozenset[tuple[str, str]]:
        """The patient's images in the list, each by its new series and instance UID."""
        with self._lock, self._turn():
            self._read_on(self.folder / LIST)
            return frozenset(self._images.get(pseudonym, ()))

    def _read_on(self, path: Path) -> None:
        """Learn what other processes wrote since the last time, and all of it anew if lines were removed."""
        now = _identity(path)
        if now == self._read:
            return
        if now[0] != self._read[0] or now[1] < self._read[1]:
            self._noted, self._images, self._read = set(), {}, (now[0], 0)
            if now == self._read:
                return
        with open(path, "rb") as file:
            file.seek(self._read[1])
            text = file.read().decode("utf-8", "replace")
        self._learn(_objects(text))
        self._read = now

    def _learn(self, lines: Iterable[dict[str, Any]]) -> None:
        for line in lines:
            self._noted.add((str(line.get("file")), str(line.get("reason", ""))))
            if line.get("series"):
                image = (str(line["series"]), str(line.get("instance", "")))
                self._images.setdefault(str(line.get("pseudonym", "")), set()).add(image)

    def drop(self, file: str) -> None:
        """Delete a file and its lines. Raises `ValueError` for a name that is none of the list's, `OSError`."""
        if file not in {line["file"] for line in self.lines()} or Path(file).name != file:
            raise ValueError(f"{file} is no file of the quarantine")
        (self.folder / file).unlink(missing_ok=True)
        self.forget(files=[file])

    def forget(self, *, files: Collection[str] = (), pseudonym: str = "") -> None:
        """Take away the lines of these files, or all of a patient; the list is whole or as it was. Raises `OSError`."""
        with self._lock, self._turn():
            without(
                self.folder / LIST,
                lambda line: line.get("file") in files or (pseudonym != "" and line.get("pseudonym") == pseudonym),
            )

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """One process after the other writes the list."""
        folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)

    def lines(self) -> list[dict[str, Any]]:
        """What is written down, oldest first."""
        return [line for line in lines_of(self.folder / LIST) if isinstance(line.get("file"), str)]

    def sweep(self) -> int:
        """Remove what killed processes were writing. Gives how many files."""
        left = list(self.folder.glob(f".*{PART}"))
        for part in left:
            part.unlink()
        return len(left)

    def __len__(self) -> int:
        """How many things are written down, each counted once."""
        return len({line["file"] for line in self.lines()})


def lines_of(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a file of JSON objects. One cut short by a power failure, or damaged on the disk, is left out."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return
    yield from _objects(text)


def _objects(text: str) -> Iterator[dict[str, Any]]:
    for line in text.split("\n"):
        with contextlib.suppress(ValueError, RecursionError):
            if isinstance(found := json.loads(line), dict):
                yield found


def without(path: Path, gone: Callable[[dict[str, Any]], bool]) -> None:
    """The file of JSON objects without some of its lines, whole or as it was. Raises `OSError`."""
    if not path.exists():
        return
    lines = list(lines_of(path))
    kept = [line for line in lines if not gone(line)]
    if len(kept) < len(lines):
        part = path.with_name(f".{uuid4().hex}{PART}")
        write_whole(part.with_suffix(".new"), part, ["".join(json.dumps(line) + "\n" for line in kept).encode()])
        part.replace(path)
        sync_folder(path.parent)


def append_line(path: Path, line: dict[str, Any], *, fsync: bool = True) -> None:
    """Add a JSON object as a line, on the disk. Raises `OSError`."""
    new = not path.exists()
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        end = os.lseek(file, 0, os.SEEK_END)
        broken = end > 0 and os.pread(file, 1, end - 1) != b"\n"  # a line that a power failure cut short
        text = (b"\n" if broken else b"") + json.dumps(line).encode() + b"\n"
        if os.write(file, text) < len(text):
            raise OSError(errno.ENOSPC, "the disk took a part of a line only")
        if fsync:
            os.fsync(file)
            if new:
                sync_folder(path.parent)
    finally:
        os.close(file)


def write_whole(part: Path, place: Path, parts: Sequence[Bytes], *, fsync: bool = True) -> None:
    """All of the bytes at `place`, on the disk, or nothing at all (`OSError`). `part` is a name on the same file system.

    The file takes its name before it is flushed, so that one commit of the file system's journal carries both; a power failure
    in between can leave a cut file that nobody was told is safe.
    """
    file = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    named = False
    try:
        left = [memoryview(piece).cast("B") for piece in parts if len(piece)]
        while left:
            written = os.writev(file, left)
            while left and written >= len(left[0]):
                written -= len(left.pop(0))
            if left:
                left[0] = left[0][written:]
        part.rename(place)
        named = True
        if fsync:
            os.fsync(file)
            sync_folder(place.parent)
    except BaseException:
        (place if named else part).unlink(missing_ok=True)
        raise
    finally:
        os.close(file)


def sync_folder(folder: Path) -> None:
    """The names in the folder are on the disk."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _identity(path: Path) -> tuple[int, int]:
    """Which file it is, and how many bytes it has."""
    try:
        now = path.stat()
    except FileNotFoundError:
        return 0, 0
    return now.st_ino, now.st_size


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
