"""One process at a time in a study's folder: two that write its checkpoints would each undo the other's rounds."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PATIENCE_S = 60.0
"""How long a study that goes on waits for the process before it, which may not have noticed yet that it is over."""


class RunFolderInUse(ValueError):
    """Another process runs a study there."""


@contextmanager
def alone_in(folder: Path, *, patience_s: float = PATIENCE_S) -> Iterator[None]:
    """Hold the folder's lock; it goes when the process ends, however it ends. Raises `RunFolderInUse` after `patience_s`."""
    folder.mkdir(parents=True, exist_ok=True)
    file = os.open(folder / ".running", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    end = time.monotonic() + patience_s
    try:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= end:
                    raise RunFolderInUse(f"another process runs a study in {folder}") from None
                time.sleep(0.2)
        yield
    finally:
        os.close(file)
