"""Scores of a model on patients it has not seen, as the researcher who owns every generated hospital may compute them.

In a real federation nobody can: there, scores leave a hospital only as noisy sums. These functions run in worker processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils import convert_conv2d_weight_memory_format

from fl_client.cohort import Cohort
from fl_server.weights import State
from simulation.machine import unordered
from tasks.scores import mean_scores as mean_scores
from tasks.task import GradientTask, gradient_task

Scores = dict[str, float]


def restore(task: GradientTask, states: Sequence[State]) -> torch.nn.Module:
    """The model of these weights; of several, the one that answers with their mean probability."""
    models = []
    for state in states:
        model = task.model()
        model.load_state_dict(state)
        models.append(convert_conv2d_weight_memory_format(model.eval(), torch.channels_last))  # a tenth faster on a CPU
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
    task = gradient_task(settings)
    model = restore(task, states).to(device())
    case = Cohort(cohort).case(patient)
    scores = task.score(model, case, full=full)
    return patient, {name: float(value) for name, value in scores.items()}


def score_hospitals(
    pool: Executor,
    settings: dict[str, Any],
    states: Sequence[State],
    tested: Mapping[str, tuple[Path, Sequence[str]]],
    *,
    full: bool,
    worn: Mapping[str, State] | None = None,
) -> dict[str, dict[str, Scores]]:
    """Scores of all patients of all hospitals at once, by hospital and patient, in the order asked.

    `tested` is each hospital's cohort and the patients to score; `worn` the model of those hospitals that have one of their
    own. One queue for all: no worker waits for a hospital's last.
    """
    own = {name: [state] for name, state in (worn or {}).items()}
    jobs = [
        (name, settings, own.get(name, states), cohort, patient, full)
        for name, (cohort, each) in tested.items()
        for patient in each
    ]
    found = {(name, patient): scores for name, patient, scores in unordered(pool, _score_one, jobs)}
    return {name: {patient: found[name, patient] for patient in each} for name, (_, each) in tested.items()}


def _score_one(
    hospital: str, settings: dict[str, Any], states: Sequence[State], cohort: Path, patient: str, full: bool
) -> tuple[str, str, Scores]:
    return hospital, *score_patient(settings, states, cohort, patient, full)
