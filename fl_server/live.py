"""What a study is doing at this moment: one small file, `now.json`, which the coordinator's process writes as things happen.

The record says what has been; this says whom a round still waits for and how long. Nothing is decided by it, so it is written
whole but not forced to the disk, and whoever reads it finds the last whole one.
"""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Literal

import psutil
from pydantic import BaseModel, ConfigDict

from fl_server.record import Answer

FILE = "now.json"
SCHEMA = "konsil-now/1"
CLOCKS_S = 2.0
"""By which the kernel's time of a process's birth may differ from the clock."""

Phase = Literal["enrolling", "round", "validation", "scores", "matrix", "ended"]


class Heard(BaseModel):
    """What came of one hospital's question."""

    model_config = ConfigDict(extra="forbid")

    answer: Answer
    at: float  # seconds since 1970
    reason: str = ""


class Now(BaseModel):
    """A study's present moment. Times are seconds since 1970."""

    model_config = ConfigDict(extra="forbid")

    schema_name: str = SCHEMA
    study: str
    study_hash: str
    run: int | None = None  # Flower's number; None: in this process
    pid: int
    phase: Phase = "enrolling"
    round: int = 0  # under way, or just ended; 0: before the first
    rounds: int
    began: float  # the phase
    deadline: float | None = None  # of the round, or of the waiting for hospitals that take part
    asked: dict[str, float] = {}  # hospital -> when, in this phase
    heard: dict[str, Heard] = {}
    needed: int = 0  # hospitals that have to take part before the study goes on; 0: it waits for nobody's yes
    missing: dict[str, str] = {}  # while it waits for that: hospitals that don't take part, and why
    updated: float

    @property
    def awaited(self) -> list[str]:
        """Hospitals that were asked and have not answered."""
        return [name for name in self.asked if name not in self.heard]

    @property
    def alive(self) -> bool:
        """Whether the process that wrote this is still there, on this machine: not ended, and not another of its number."""
        if self.phase == "ended":
            return False
        try:
            process = psutil.Process(self.pid)
            return bool(process.status() != psutil.STATUS_ZOMBIE and process.create_time() < self.updated + CLOCKS_S)
        except psutil.NoSuchProcess:
            return False
        except psutil.AccessDenied:
            return True

    def write(self, folder: Path) -> None:
        """Write `now.json`; a disk that is full costs the moment's picture, not the study."""
        self.updated = time.time()
        part = folder / f"{FILE}.part"
        with contextlib.suppress(OSError):
            part.write_text(self.model_dump_json(indent=1))
            part.replace(folder / FILE)

    @classmethod
    def read(cls, folder: Path) -> Now | None:
        """The last moment that was written; None if there is none that can be read."""
        try:
            return cls.model_validate(json.loads((folder / FILE).read_text()))
        except (OSError, ValueError):
            return None
