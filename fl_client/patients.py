"""The hospital's patients as a task sees them, and the hospital's own log of who was left out and why."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fl_client.cohort import Cohort, Split
from fl_client.site import Site
from tasks.task import GradientTask, Task


@dataclass(frozen=True)
class TrainingPatients:
    """The hospital's training patients as the training loop draws them."""

    task: GradientTask
    cohort: Cohort
    patients: Sequence[str]

    def example(self, patient: str, views: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """`views` augmented rows of one patient."""
        return self.task.example(self.cohort.prepared(self.task, patient), views, rng)


def usable_patients(site: Site, task: Task, which: Split) -> tuple[Cohort, Sequence[str]]:
    """The cohort, and the patients of one side of its split whom the task can use; the others are named in the site's log.

    Perhaps nobody is left: the round goes on and releases noise alone. A refusal would say, exactly and unpaid, that nobody
    here has what the study is about.
    """
    cohort = Cohort(site.cohort_folder)
    usable, left_out = cohort.usable(task, cohort.split(which, test_fraction=site.test_fraction))
    for patient, reason in left_out.items():
        note(site, patient=patient, left_out=reason)
    if not usable:
        side = {"train": "training", "test": "test"}[which]
        note(site, warning=f"no {side} patient that the task can use: what is released, and paid for, is noise alone")
    return cohort, usable


def note(site: Site, **facts: object) -> None:
    """Write a line in the hospital's own training log, which never leaves it."""
    folder = site.folder / "log"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    log = os.open(folder / "training.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    with open(log, "a") as file:
        file.write(json.dumps(facts) + "\n")
