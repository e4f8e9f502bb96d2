"""The studies in a coordinator's folder: where each one's results lie, which Flower run it is, and whether it should go on.

`run.json` says what a person wants of a study: that it runs, or that it has been stopped. It is written before the study is
started, so that a coordinator that comes back after a power cut knows what to take up again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from fl_server.record import Record
from fl_server.run_lock import locked

FILE = "run.json"
STUDY = "study.json"
"""The study's own text, in its folder from the start on."""

Wanted = Literal["running", "stopped", "ended"]


class Standing(BaseModel):
    """`run.json`: what is wanted of a study, and the number that Flower knows it by."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    study_hash: str
    run: int | None = None  # Flower's number of the latest start; None: not started yet, or not through Flower
    wanted: Wanted = "running"
    started: str = ""  # ISO 8601, UTC: the latest start
    interruptions: int = 0  # starts without one more round, beyond the first
    rounds_then: int = 0  # that had ended at the latest start
    why: str = ""  # it was stopped, where no person did
    stopped: str = ""  # ISO 8601, UTC: when; empty: it is not, or a konsil did it that did not say
    wait_for: int = 0  # hospitals, before its first round; 0: its quorum
    quorum_timeout_s: float | None = None  # how long it waits for enough hospitals; None: as coordinator.yaml says

    def write(self, folder: Path) -> None:
        """Write it, whole and forced to the disk."""
        part = folder / f"{FILE}.part"
        with open(part, "w") as file:
            file.write(self.model_dump_json(indent=1))
            file.flush()
            os.fsync(file.fileno())
        part.replace(folder / FILE)

    @classmethod
    def read(cls, folder: Path) -> Standing | None:
        """What stands there; None if there is no such file. Raises `ValueError` for one that can't be read."""
        try:
            return cls.model_validate_json((folder / FILE).read_text())
        except FileNotFoundError:
            return None
        except ValidationError:
            raise ValueError(f"{folder / FILE} can't be read; a person has to look") from None


@contextmanager
def in_hand(runs: Path, name: str, *, patience_s: float = 30.0) -> Iterator[None]:
    """Hold a study's `run.json` from reading it until what follows is done: `start`, `stop`, `resume` and the keeper do.

    Raises `RunFolderInUse` if somebody else has it in hand for longer.
    """
    runs.mkdir(mode=0o700, parents=True, exist_ok=True)
    with locked(runs / f".{name}.hand", f"study {name} is being started or stopped by somebody else", patience_s=patience_s):
        yield


def folders(runs: Path) -> list[Path]:
    """The folders of all studies, the latest last."""
    found = [path.parent for path in runs.glob("*/record.json")] + [path.parent for path in runs.glob(f"*/{FILE}")]
    shown = {folder for folder in found if not folder.name.startswith(".")}  # else it was put aside
    return sorted(shown, key=lambda folder: folder.stat().st_mtime)


def find(runs: Path, name: str) -> Path:
    """The folder of the study of this name, of this Flower run number, or with a hash that begins so. Raises `ValueError`."""
    known = folders(runs)
    for folder in known:
        if folder.name == name:
            return folder
    for folder in known:
        standing = Standing.read(folder)
        if standing is not None and (str(standing.run) == name or (len(name) >= 6 and standing.study_hash.startswith(name))):
            return folder
    raise ValueError(f"no study '{name}'; there are {', '.join(folder.name for folder in known) or 'none'}")


def record_of(folder: Path) -> Record | None:
    """The study's record; None before its first line."""
    path = folder / "record.json"
    return Record.read(path) if path.exists() else None
