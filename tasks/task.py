"""What a task is: the part of a study that knows what is learned, and nothing of hospitals, privacy or networks.

A gradient task never trains. It gives a model, turns a case into arrays once, draws examples from them, and says what
one example's loss is. The one training loop (`fl_client/privacy`) does the rest, so that no task can forget privacy.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch

from tasks.case import Case

Arrays = dict[str, npt.NDArray[Any]]
"""A case as the task wants it: named arrays, saved once and memory-mapped."""


@runtime_checkable
class GradientTask(Protocol):
    """A task whose model is learned by gradients."""

    @property
    def hash(self) -> str:
        """Identity of everything that determines `prepare`'s output; names the folder of prepared arrays."""

    def model(self) -> torch.nn.Module:
        """A new network with freshly drawn weights (from torch's global generator)."""

    def prepare(self, case: Case) -> Arrays:
        """The arrays of one case, computed once. Raises `ValueError`, in words, for a case the task can't use."""

    def example(
        self, arrays: Mapping[str, npt.NDArray[Any]], views: int, rng: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw `views` rows from one patient, augmented: input (views, channels, *space), target (views, *space)."""

    def loss(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """One number per row, shape (rows,). Row i depends on row i alone: no mean over rows, no batch statistics."""

    def trainable(self, model: torch.nn.Module) -> list[str]:
        """Names of the parameters that this task's settings let move."""

    def score(self, model: torch.nn.Module, case: Case, *, full: bool = True) -> dict[str, float]:
        """Quality on one case: `dice/<structure>`, ...; NaN where it is undefined for this case.

        `full` adds what takes longer than the plain score (distances, volumes).
        """


def load(settings: Mapping[str, Any]) -> GradientTask:
    """The task named `settings["name"]`, a folder of `tasks/`; the remaining settings go to its `Settings`.

    Raises `ValueError` naming the tasks there are. Only folders of this installed package can be named, so a study can
    choose among what a hospital has installed and can't bring code.
    """
    name = str(settings.get("name", ""))
    names = task_names()
    if name not in names:
        raise ValueError(f"no task named '{name}'; tasks/ holds {', '.join(names)}")
    task: GradientTask = importlib.import_module(f"tasks.{name}").build({k: v for k, v in settings.items() if k != "name"})
    return task


def task_names() -> Sequence[str]:
    """The folders of `tasks/` that hold a `task.py`, which are the tasks this installation can learn."""
    return sorted(path.parent.name for path in Path(__file__).parent.glob("*/task.py"))
