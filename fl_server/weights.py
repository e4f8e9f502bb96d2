"""A model's weights as a study has them: drawn from its seed, written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from conf.study import Study
from tasks.task import first_state, load

State = dict[str, torch.Tensor]
"""A model's weights by name, on the CPU: what `torch.nn.Module.state_dict` gives and `load_state_dict` takes."""


def initial_state(study: Study) -> State:
    """Freshly drawn weights of the study's task, or its empty sum; equal for equal seeds."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(study.seed)
        return first_state(load(study.task))


def save(state: Mapping[str, Any], path: Path) -> None:
    """Write weights for `torch.load(..., weights_only=True)`: a crash at any instant leaves the old ones or the new ones.

    Raises `OSError`, with the old ones unharmed, when the disk is full.
    """
    part = path.with_suffix(".part")
    try:
        with open(part, "wb") as file:  # torch's own opening of a path hides that a disk is full
            torch.save(dict(state), file)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        part.unlink(missing_ok=True)
        raise
    part.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)  # else a power cut may leave the record ahead of the model
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
