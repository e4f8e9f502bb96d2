"""Who and what did not get in, and why: a file of lines that several processes add to, read once and then only what is new.

Each line is `{"what": pseudonym or handle, "reason": sentence}`. Whoever removes lines (a patient withdraws) puts another file
in its place; then it is read anew.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from threading import Lock


class RefusedList:
    """The list at `path`, which need not be there yet."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, Lock()
        self._forget()

    @property
    def lines(self) -> list[dict[str, str]]:
        """All whole lines, in order. Raises `OSError`."""
        with self._lock:
            self._read_on()
            return [dict(line) for line in self._lines]

    def knows(self, what: str, reason: str) -> bool:
        """Whether this line stands there. Raises `OSError`."""
        with self._lock:
            self._read_on()
            return (_storable(what), _storable(reason)) in self._known

    def add(self, what: str, reason: str) -> None:
        """Add a line, on the disk. Raises `OSError`."""
        line = json.dumps({"what": _storable(what), "reason": _storable(reason)}).encode() + b"\n"
        with open(self._path, "ab+") as file:
            end = file.seek(0, os.SEEK_END)
            broken = end > 0 and os.pread(file.fileno(), 1, end - 1) != b"\n"  # a line that a full disk cut short
            file.write(b"\n" + line if broken else line)
            file.flush()
            os.fsync(file.fileno())

    def _forget(self) -> None:
        self._lines: list[dict[str, str]] = []
        self._known: set[tuple[str, str]] = set()
        self._inode, self._at = 0, 0

    def _read_on(self) -> None:
        try:
            file = open(self._path, "rb")  # noqa: SIM115 - closed below; a missing file is no list yet
        except FileNotFoundError:
            self._forget()
            return
        with file:
            now = os.fstat(file.fileno())
            if now.st_ino != self._inode or now.st_size < self._at:
                self._forget()
                self._inode = now.st_ino
            if now.st_size == self._at:
                return
            file.seek(self._at)
            data = file.read()
        whole = data.rfind(b"\n") + 1  # what follows is being written, or was cut short
        self._at += whole
        for text in data[:whole].decode(errors="replace").splitlines():
            with suppress(ValueError, KeyError, TypeError):  # cut short by a full disk: it says nothing of anybody inside
                said = json.loads(text)
                line = {"what": _storable(str(said["what"])), "reason": _storable(str(said["reason"]))}
                self._lines.append(line)
                self._known.add((line["what"], line["reason"]))


def _storable(text: str) -> str:
    """The text without halves of characters, which no file and no database takes."""
    return text.encode("utf-8", "replace").decode()
