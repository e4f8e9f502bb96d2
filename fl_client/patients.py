"""The hospital's patients as a task sees them, and the hospital's own log of who was left out and why."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from conf.study import Study
from fl_client.cohort import Cohort, Split
from fl_client.sharing import file_mode, make_folder
from fl_client.site import Site
from tasks.task import GradientTask, Task

if TYPE_CHECKING:
    from fl_client.catalog import Catalog

log = logging.getLogger("konsil.patients")


@dataclass(frozen=True)
class TrainingPatients:
    """The hospital's training patients as the training loop draws them."""

    task: GradientTask
    cohort: Cohort
    patients: Sequence[str]

    def example(self, patient: str, views: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """`views` augmented rows of one patient."""
        return self.task.example(self.cohort.prepared(self.task, patient), views, rng)


def usable_patients(site: Site, study: Study, task: Task, which: Split) -> tuple[Cohort, Sequence[str]]:
    """The cohort, and the patients of one side of its split whom the study takes; the others are named in the site's log.

    Perhaps nobody is left: the round goes on and releases noise alone. A refusal would say, exactly and unpaid, that nobody
    here has what the study is about.
    """
    cohort, usable, left_out = chosen(site, study, task, which)
    for patient, reason in left_out.items():
        note(site, patient=patient, left_out=reason)
    if not usable:
        side = {"train": "training"}.get(which, which)
        note(site, warning=f"no {side} patient that the task can use: what is released, and paid for, is noise alone")
    return cohort, usable


def chosen(site: Site, study: Study, task: Task, which: Split) -> tuple[Cohort, Sequence[str], dict[str, str]]:
    """The cohort, the patients of one side of its split whom the study takes, and the reason for each of the others.

    First whom the study selects, then whose images are good enough for it, then whom its task can use. Each patient is judged
    alone, so nobody's presence moves another. Raises `OSError` if there can't be a cohort or a catalog
    at this site.
    """
    cohort = Cohort(site.cohort_folder)
    held = site.validation_fraction if validates(study) else 0.0
    patients = cohort.split(which, test_fraction=site.test_fraction, validation_fraction=held)
    return cohort, *taken(cohort, study, task, patients, catalog=partial(_catalog, site))


def taken(
    cohort: Cohort, study: Study, task: Task, patients: Sequence[str], *, catalog: Callable[[], Catalog]
) -> tuple[Sequence[str], dict[str, str]]:
    """Those of these patients whom the study takes, and the reason for each of the others; `catalog` is asked if it selects."""
    left_out: dict[str, str] = {}
    if study.selection is not None:
        from fl_client.selection import unselected  # here: most studies select nobody

        left_out = unselected(catalog(), study.selection, patients)
    if study.quality is not None:
        from fl_client.quality.limits import outside  # here: image filters take time to import

        left_out |= outside(cohort, study.quality, [patient for patient in patients if patient not in left_out])
    usable, unusable = cohort.usable(task, [patient for patient in patients if patient not in left_out])
    return usable, left_out | unusable


def _catalog(site: Site) -> Catalog:
    from fl_client.catalog import Catalog  # here: most studies select nobody

    return Catalog.of(site)


def validates(study: Study) -> bool:
    """Whether the study has patients who choose among its models; in every other study these train with the rest."""
    return study.validations > 0 or study.privacy.matrix_share > 0


def note(site: Site, **facts: object) -> None:
    """Write a line in the hospital's own training log, which never leaves it.

    Nothing is decided by it: if it can't be written, the daemon's log says so, and the round goes on.
    """
    folder = site.folder / "log"
    try:
        make_folder(folder)
        file = os.open(folder / "training.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, file_mode(folder))
        with open(file, "a") as out:
            out.write(json.dumps(facts) + "\n")
    except OSError as error:  # another user's file, a full disk; which patient it was about isn't said here
        log.warning("the training log %s can't be written: %s", folder / "training.jsonl", error.strerror)
