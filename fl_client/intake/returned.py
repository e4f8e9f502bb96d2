"""What goes back to the archive, until the archive has it: objects that wait, and a list of those that were taken.

    <identity>/returned/<pseudonym>/<sop instance uid>.dcm    made, and not yet taken by the archive
    <identity>/returned/<pseudonym>/sent.jsonl                one line each: object, destination, when

An object is made once and waits here, so that what is sent again after a lost answer is the same to the byte, and what a
person has looked at is what is sent. A line is written after the archive's answer and never before it. Objects name their
patient: this is the identity zone, and a patient who withdraws takes the folder along.
"""

from __future__ import annotations

import contextlib
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

from fl_client.intake.quarantine import append_line, sync_folder

SENT = "sent.jsonl"


def folder_of(identity: Path, pseudonym: str) -> Path:
    """Where a patient's objects wait."""
    return identity / "returned" / pseudonym


class Returned:
    """One patient's objects on their way to one destination."""

    def __init__(self, identity: Path, pseudonym: str, *, destination: str) -> None:
        self.folder, self._destination = folder_of(identity, pseudonym), destination

    def put(self, instance: str, data: bytes) -> None:
        """Let an object wait, whole and on the disk. One of this name that waits already is replaced. Raises `OSError`."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = self.folder / f".{uuid4().hex}.part"
        try:
            with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            part.replace(self.place(instance))  # only now has it a name: what waits is whole
        finally:
            part.unlink(missing_ok=True)
        sync_folder(self.folder)

    def place(self, instance: str) -> Path:
        """Where an object waits, if it does."""
        return self.folder / f"{instance}.dcm"

    def is_waiting(self, instance: str) -> bool:
        """Whether it has been made, and not taken."""
        return self.place(instance).exists()

    def is_sent(self, instance: str) -> bool:
        """Whether the destination has said that it has it."""
        try:
            lines = (self.folder / SENT).read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return False
        for line in lines:
            with contextlib.suppress(ValueError, KeyError, TypeError):  # a line cut short by a power failure
                said = json.loads(line)
                if (said["instance"], said["destination"]) == (instance, self._destination):
                    return True
        return False

    def mark_sent(self, instance: str) -> None:
        """The destination has it: write that down on the disk, then let the object go. Raises `OSError`."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with contextlib.suppress(FileNotFoundError):  # the patient has withdrawn meanwhile
            append_line(self.folder / SENT, {"instance": instance, "destination": self._destination, "when": now}, fsync=True)
            self.place(instance).unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove what a killed process was writing."""
        for part in self.folder.glob(".*.part"):
            part.unlink(missing_ok=True)
