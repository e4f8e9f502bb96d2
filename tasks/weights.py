"""Weights on the disk: written whole or not at all, by the coordinator and by hospitals alike."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path

import torch


def save(state: Mapping[str, object], path: Path, *, mode: int = 0o666) -> None:
    """Write weights for `torch.load(..., weights_only=True)`: a crash at any instant leaves the old ones or the new ones.

    `mode` are the file's permissions, less the process's umask. Raises `OSError`, with the old ones unharmed, when the disk is
    full.
    """
    whole = io.BytesIO()  # torch, let loose on the file itself, hides that a disk is full
    torch.save(dict(state), whole)
    part = path.with_suffix(".part")
    try:
        part.unlink(missing_ok=True)  # of a process that was killed, with permissions of its own
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(whole.getbuffer())
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        part.unlink(missing_ok=True)
        raise
    part.replace(path)
    force_folder(path.parent)  # else a power cut may leave the record ahead of the model


def force_folder(folder: Path) -> None:
    """Force to the disk which files a folder has. Raises `OSError`."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
