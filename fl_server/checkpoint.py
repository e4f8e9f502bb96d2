"""What a study needs in order to go on after its process was killed: one file, written after every round.

`checkpoint.pt` is a line of ASCII with the SHA-256 of what follows, then the weights, what the strategy carries from round to
round, and the record so far. It is written whole and forced to the disk before the next round's questions leave; the one before
is kept as `checkpoint.previous.pt`. A file that was torn or changed is not believed.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from conf.study import Study
from fl_server.record import Record
from fl_server.weights import State
from tasks.weights import force_folder

FILE, PREVIOUS = "checkpoint.pt", "checkpoint.previous.pt"
MAGIC = b"konsil-checkpoint/1 "


class NoCheckpoint(ValueError):
    """There is nothing that this study could go on from; the message says why."""


@dataclass
class Progress:
    """Where a study stands between two rounds."""

    record: Record
    state: State  # that the next round starts from
    mean: State  # of the rounds' models, with `strategy.ema_decay`; else the state itself
    weight: float = 0.0  # of all rounds in the mean together
    strategy: dict[str, torch.Tensor] = field(default_factory=dict)  # momentum and moments: `Rounds.state()`
    best: State | None = None  # the model that validation likes best so far
    instead: str = ""  # why this is not the latest that was written; not in the file

    def save(self, folder: Path) -> None:
        """Write the checkpoint: a crash at any instant leaves this one or the one before. Raises `OSError`."""
        whole = io.BytesIO()
        plain: dict[str, Any] = {
            "record": self.record.model_dump_json(),
            "state": self.state,
            "mean": None if self.mean is self.state else self.mean,
            "weight": self.weight,
            "strategy": self.strategy,
            "best": self.best,
        }
        torch.save(plain, whole)
        data = whole.getbuffer()
        part, path = folder / f"{FILE}.part", folder / FILE
        try:
            with open(part, "wb") as file:
                file.write(MAGIC + hashlib.sha256(data).hexdigest().encode() + b"\n")
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            part.unlink(missing_ok=True)
            raise
        previous = folder / f"{PREVIOUS}.part"
        previous.unlink(missing_ok=True)
        if path.exists():
            try:
                os.link(path, previous)  # at no instant is there none
            except OSError:  # many network shares have no hard links
                shutil.copyfile(path, previous)
            previous.replace(folder / PREVIOUS)
        part.replace(path)
        force_folder(folder)

    @classmethod
    def load(cls, folder: Path, study: Study) -> Progress:
        """The latest checkpoint of this study that is whole. Raises `NoCheckpoint` if there is none."""
        wrong: list[str] = []
        for path in (folder / FILE, folder / PREVIOUS):
            try:
                found = cls._read(path, study)
                found.instead = "; ".join(wrong)
                return found
            except FileNotFoundError:
                continue
            except NoCheckpoint as error:
                wrong.append(str(error))
        raise NoCheckpoint("; ".join(wrong) or f"{folder} holds no checkpoint")

    @classmethod
    def to_go_on_from(cls, folder: Path, study: Study, before: Record) -> Progress | None:
        """Where an interrupted study goes on, `before` being the record it left; None: at its beginning.

        Raises `NoCheckpoint` if rounds were run and no checkpoint of theirs can be believed.
        """
        try:
            found = cls.load(folder, study)
            if found.record.identity != before.identity:
                raise NoCheckpoint(f"the checkpoint in {folder} is of an earlier run of this study")
        except NoCheckpoint:
            if before.rounds:
                raise
            return None
        return found

    @classmethod
    def _read(cls, path: Path, study: Study) -> Progress:
        with open(path, "rb") as file:
            head, data = file.readline(len(MAGIC) + 65), file.read()
        if head != MAGIC + hashlib.sha256(data).hexdigest().encode() + b"\n":
            raise NoCheckpoint(f"{path} was torn or changed: it does not have the SHA-256 that it begins with")
        try:
            found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
            record = Record.model_validate_json(found["record"])
            state: State = found["state"]
            progress = cls(
                record=record,
                state=state,
                mean=state if found["mean"] is None else found["mean"],
                weight=found["weight"],
                strategy=found["strategy"],
                best=found["best"],
            )
        except Exception as error:  # whole, and yet no checkpoint: another konsil's; the one before may be better
            raise NoCheckpoint(f"{path} can't be read ({type(error).__name__})") from None
        if record.study_hash != study.hash:
            raise NoCheckpoint(f"{path} is of the study {record.study_hash[:12]}, not of {study.name} ({study.hash[:12]})")
        return progress


def remove(folder: Path) -> None:
    """Forget the checkpoints of an earlier run."""
    for name in (FILE, PREVIOUS):
        (folder / name).unlink(missing_ok=True)
