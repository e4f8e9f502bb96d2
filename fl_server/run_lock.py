"""One process at a time in a study's folder: two that write its checkpoints would each undo the other's rounds."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PATIENCE_S = 60.0
"""How long a study that goes on waits for the process before it, which may not have noticed that it is over. One that begins
anew does not wait: what that process finishes would be thrown away."""


class RunFolderInUse(ValueError):
    """Another process runs a study there."""


def place_of(folder: Path) -> Path:
    """The file that is locked: beside the folder, which may be exchanged for another one of the same name."""
    return folder.parent / f".{folder.name}.running"


def in_use(folder: Path) -> bool:
    """Whether a process runs a study in this folder, on this machine. No clock and no process number is asked."""
    try:
        file = os.open(place_of(folder), os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(file)


@contextmanager
def alone_in(folder: Path, *, patience_s: float = 0.0) -> Iterator[None]:
    """Hold the folder's lock; it goes when the process ends, however it ends. Raises `RunFolderInUse` after `patience_s`."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(place_of(folder), f"another process runs a study in {folder}", patience_s=patience_s):
        yield


@contextmanager
def locked(path: Path, otherwise: str, *, patience_s: float) -> Iterator[None]:
    """Hold the lock of a file that nothing else is written to. Raises `RunFolderInUse(otherwise)` after `patience_s`."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    end = time.monotonic() + patience_s
    try:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= end:
                    raise RunFolderInUse(otherwise) from None
                time.sleep(0.05)
        yield
    finally:
        os.close(file)
