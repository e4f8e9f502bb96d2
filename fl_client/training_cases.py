"""Whom a hospital's training step draws: its training patients, and beside them its synthetic cases (`synthetic`)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from conf.study import Study
from fl_client.cohort import Cohort
from fl_client.patients import TrainingPatients, note, taken, usable_patients
from fl_client.site import Site
from fl_client.synthetic import folders
from tasks.task import GradientTask, Task

if TYPE_CHECKING:
    from fl_client.catalog import Catalog


@dataclass(frozen=True)
class TrainingCases:
    """Patients and synthetic cases as the training loop draws them: one like the other."""

    real: TrainingPatients
    synthetic: Mapping[str, tuple[Cohort, str]]  # a name that no pseudonym can be: cohort, and pseudonym in it

    @property
    def patients(self) -> Sequence[str]:
        """Everybody who is drawn, each once."""
        return (*self.real.patients, *self.synthetic)

    def example(self, patient: str, views: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """`views` augmented rows of one of them."""
        if patient not in self.synthetic:
            return self.real.example(patient, views, rng)
        cohort, name = self.synthetic[patient]
        return self.real.task.example(cohort.prepared(self.real.task, name), views, rng)


def training_cases(site: Site, study: Study, task: GradientTask) -> TrainingCases:
    """The training patients and the synthetic cases that the study takes; the others are named in the site's log.

    Which synthetic cases those are depends on no patient.
    """
    patients = TrainingPatients(task, *usable_patients(site, study, task, "train"))
    usable, left_out = usable_cases(site, study, task)
    for name, reason in left_out.items():
        note(site, synthetic_case=name, not_used=reason)
    return TrainingCases(patients, usable)


def usable_cases(site: Site, study: Study, task: Task) -> tuple[dict[str, tuple[Cohort, str]], dict[str, str]]:
    """The synthetic cases that a study takes, and the reason for each of the others: judged one by one, as patients are."""
    usable: dict[str, tuple[Cohort, str]] = {}
    left_out: dict[str, str] = {}
    for folder in folders(site):
        cohort = Cohort(folder)
        kept, reasons = taken(cohort, study, task, cohort.patients, catalog=partial(_catalog, folder))
        usable |= {f"{folder.name}/{name}": (cohort, name) for name in kept}
        left_out |= {f"{folder.name}/{name}": reason for name, reason in reasons.items()}
    return usable, left_out


def as_declared(sums: Sequence[torch.Tensor], *, longest: float) -> list[torch.Tensor]:
    """The sum, shortened to this length if it is longer: a masked sum holds what the declared patients can make, and no more.

    Synthetic cases come on top of these. Who is brought to the nearest point of a ball is brought no further from a neighbour,
    so that one patient moves what comes back by no more than the sum.
    """
    norm = math.sqrt(sum(float(part.double().square().sum()) for part in sums))
    return [part * (longest / norm) for part in sums] if norm > longest else list(sums)


def _catalog(folder: Path) -> Catalog:
    from fl_client.catalog import Catalog  # here: most studies select nobody

    catalog = Catalog(folder / "catalog.sqlite")
    catalog.refresh(Cohort(folder), test_fraction=0.0)
    return catalog
