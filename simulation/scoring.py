"""Scores of a model on patients it has not seen, as the researcher who owns every generated hospital may compute them.

In a real federation nobody can: there, scores leave a hospital only as noisy sums. These functions run in worker processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fl_client.cohort import Cohort
from simulation.machine import unordered
from tasks.task import GradientTask, load

State = dict[str, torch.Tensor]
Scores = dict[str, float]


def restore(task: GradientTask, states: Sequence[State]) -> torch.nn.Module:
    """The model of these weights; of several, the one that answers with their mean probability."""
    models = []
    for state in states:
        model = task.model()
        model.load_state_dict(state)
        models.append(model.eval())
    return models[0] if len(models) == 1 else Ensemble(models)


class Ensemble(torch.nn.Module):
    """The logarithm of the members' mean probability: what a vote of models trained apart amounts to."""

    def __init__(self, members: Sequence[torch.nn.Module]) -> None:
        super().__init__()
        self.members = torch.nn.ModuleList(members)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Log probabilities, (rows, classes, *space)."""
        mean = torch.stack([member(image).softmax(1) for member in self.members]).mean(0)
        return mean.clamp_min(1e-12).log()


def device() -> torch.device:
    """Where this process computes scores."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def score_patient(
    settings: dict[str, Any], states: Sequence[State], cohort: Path, patient: str, full: bool
) -> tuple[str, Scores]:
    """Scores of one patient, on the GPU if there is one; `full` adds distances and volumes to Dice."""
    task = load(settings)
    model = restore(task, states).to(device())
    case = Cohort(cohort).case(patient)
    scores = task.score(model, case, full=full)
    return patient, {name: float(value) for name, value in scores.items()}


def score_hospital(
    pool: Executor, settings: dict[str, Any], states: Sequence[State], cohort: Path, patients: Sequence[str], *, full: bool
) -> Iterator[tuple[str, Scores]]:
    """Scores of a hospital's patients, in any order."""
    return unordered(pool, score_patient, ((settings, states, cohort, patient, full) for patient in patients))


def mean_scores(rows: Sequence[Scores]) -> Scores:
    """Mean of each score over the patients for whom it is defined."""
    names = dict.fromkeys(name for row in rows for name in row)
    values = {name: [row[name] for row in rows if name in row and np.isfinite(row[name])] for name in names}
    return {name: float(np.mean(found)) for name, found in values.items() if found}
