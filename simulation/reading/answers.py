"""What readers said: `answers.jsonl`, a line per answer, on the disk before the next scan is shown.

Lines are added and never changed. One that a killed process left without its end was never confirmed to the reader, and goes
when the file is opened again. One process writes at a time; the lock ends with it.
"""

from __future__ import annotations

import fcntl
import os
import re
import threading
import unicodedata
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, ValidationError

from conf.study import Frozen
from simulation.reading.deck import Kind, Reading, sync

FILE = "answers.jsonl"
NAME = re.compile(r"[^\W_][\w .-]{0,39}")


def reader_name(typed: str) -> str:
    """A name or code as it is kept: a reader who comes back may type it with other capitals. Raises `ValueError` in words."""
    name = unicodedata.normalize("NFC", " ".join(typed.split())).lower()
    if not NAME.fullmatch(name):
        raise ValueError("a name or code has 1 to 40 letters, digits, spaces, dots and dashes, the first a letter or digit")
    return name


class Answer(Frozen):
    """One answer to one scan. `position` counts the reader's scans from 1."""

    reader: Annotated[str, AfterValidator(reader_name)]
    position: Annotated[int, Field(ge=1)]
    scan: str
    answer: Kind
    certainty: Annotated[int, Field(ge=1, le=5)]  # 1 a guess, 5 certain
    at: str  # ISO 8601, UTC


class Answered(ValueError):
    """The scan has an answer already, which stays."""


By = Mapping[str, tuple[Answer, ...]]
"""Answers by reader, each reader's in their order."""


def read(folder: Path, reading: Reading) -> dict[str, tuple[Answer, ...]]:
    """All answers of a folder by reader. Raises `ValueError` naming the line that belongs to no reader's order."""
    path = folder / FILE
    return _checked(path, path.read_bytes(), reading) if path.exists() else {}


def _checked(path: Path, text: bytes, reading: Reading) -> dict[str, tuple[Answer, ...]]:
    by: dict[str, list[Answer]] = {}
    whole = text[: text.rfind(b"\n") + 1]
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            answer = Answer.model_validate_json(line)
        except ValidationError:
            raise ValueError(f"{path}, line {number}: this is no answer") from None
        theirs, order = by.setdefault(answer.reader, []), reading.order(answer.reader)
        expected = len(theirs) + 1
        if answer.position != expected or expected > len(order) or answer.scan != order[expected - 1]:
            raise ValueError(f"{path}, line {number}: not the answer that follows for reader {answer.reader!r}")
        theirs.append(answer)
    return {reader: tuple(theirs) for reader, theirs in by.items()}


class Answers:
    """The open file. Any thread may ask and add."""

    def __init__(self, folder: Path, reading: Reading) -> None:
        self.path, self.reading = folder / FILE, reading
        self._lock = threading.Lock()
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._file)
            raise ValueError(f"another process serves the reading in {folder}") from None
        text = self.path.read_bytes()
        self._by = _checked(self.path, text, reading)
        self._cut(text.rfind(b"\n") + 1)
        sync(folder)

    def of(self, reader: str) -> tuple[Answer, ...]:
        """What the reader has answered so far."""
        with self._lock:
            return self._by.get(reader, ())

    def add(self, reader: str, position: int, answer: Kind, certainty: int) -> None:
        """Keep an answer; it is on the disk when this returns.

        Raises `Answered` where another one stands at this position, `ValueError` for a position that isn't next, and `OSError`
        if it could not be stored; then nothing of it is there.
        """
        with self._lock:
            theirs = self._by.get(reader, ())
            if position <= len(theirs):
                given = theirs[position - 1]
                if (given.answer, given.certainty) == (answer, certainty):
                    return  # the same form, sent twice
                raise Answered(f"scan {position} was answered “{given.answer}, {given.certainty}”, and that stays")
            order = self.reading.order(reader)
            if position != len(theirs) + 1 or position > len(order):
                raise ValueError(f"scan {position} isn't the next one")
            at = datetime.now(UTC).isoformat(timespec="seconds")
            said = Answer(reader=reader, position=position, scan=order[position - 1], answer=answer, certainty=certainty, at=at)
            self._append(said.model_dump_json().encode() + b"\n")
            self._by = {**self._by, reader: (*theirs, said)}

    def _append(self, line: bytes) -> None:
        size = os.fstat(self._file).st_size
        try:
            if os.write(self._file, line) != len(line):
                raise OSError("only a part of the line fitted on the disk")
            os.fsync(self._file)
        except OSError:
            self._cut(size)
            raise

    def _cut(self, size: int) -> None:
        if os.fstat(self._file).st_size > size:
            os.ftruncate(self._file, size)
        os.fsync(self._file)

    def close(self) -> None:
        """Let another process have it."""
        os.close(self._file)


def finished(by: By, reading: Reading) -> Iterable[str]:
    """Readers who have answered every scan."""
    return [reader for reader, theirs in by.items() if len(theirs) == len(reading.scans)]
