"""Rows of many patients, as the researcher may see them: prepared in worker processes, gathered into one table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fl_client.cohort import CaseUnreadable, Cohort
from simulation.hospital import Hospital
from simulation.machine import unordered
from tasks.radiomics.task import RadiomicsTask
from tasks.task import load

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Table:
    """Rows of patients of all hospitals: `X` (rows, columns) as the learner takes it, NaN missing; all others (rows,).

    `y` is 0, 1 or NaN; `weight` what the label counts in training; `certainty` NaN where nobody gave one.
    """

    X: Floats
    y: Floats
    weight: Floats
    certainty: Floats
    region: npt.NDArray[np.int64]
    patient: npt.NDArray[np.str_]
    hospital: npt.NDArray[np.str_]

    def __getitem__(self, rows: npt.NDArray[Any]) -> Table:
        """The table of some of the rows."""
        return Table(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))

    @classmethod
    def join(cls, tables: Sequence[Table]) -> Table:
        """One table below another."""
        return cls(*(np.concatenate([getattr(table, name) for table in tables]) for name in cls.__dataclass_fields__))


def prepare(
    pool: Executor,
    settings: Mapping[str, Any],
    hospitals: Mapping[str, Hospital],
    *,
    models: Path | None,
    advance: Callable[[int, int], None],
) -> tuple[dict[str, dict[str, int]], dict[str, dict[str, str]]]:
    """Compute every patient's rows once.

    Returns, by hospital, whom the task can use (1 who has a positive row, else 0), and the reasons for the others.
    """
    jobs = [
        (dict(settings), hospital.cohort_folder, name, patient, models)
        for name, hospital in hospitals.items()
        for patient in hospital.cohort.patients
    ]
    usable: dict[str, dict[str, int]] = {name: {} for name in hospitals}
    left_out: dict[str, dict[str, str]] = {name: {} for name in hospitals}
    for done, (name, patient, found) in enumerate(unordered(pool, _prepare, jobs), start=1):
        if isinstance(found, str):
            left_out[name][patient] = found
        else:
            usable[name][patient] = found
        advance(done, len(jobs))
    return {name: dict(sorted(found.items())) for name, found in usable.items()}, left_out


def _prepare(
    settings: dict[str, Any], cohort: Path, hospital: str, patient: str, models: Path | None
) -> tuple[str, str, int | str]:
    task = load(settings, models=models)
    if not isinstance(task, RadiomicsTask):
        raise ValueError(f"{settings['name']} is no radiomics task")
    try:
        rows = task.rows(Cohort(cohort).prepared(task, patient))
    except (CaseUnreadable, ValueError) as error:
        return hospital, patient, str(error)
    return hospital, patient, int((rows.y == 1).any())


def gather(task: RadiomicsTask, hospitals: Mapping[str, Hospital], patients: Mapping[str, Sequence[str]]) -> Table:
    """The rows of these patients, hospital by hospital, in the order given."""
    tables = []
    for name, chosen in patients.items():
        cohort = hospitals[name].cohort
        for patient in chosen:
            rows = task.rows(cohort.prepared(task, patient))
            count = len(rows.y)
            owner, place = np.full(count, patient), np.full(count, name)
            tables.append(Table(rows.X, rows.y, task.weights(rows), rows.certainty, rows.region, owner, place))
    return Table.join(tables)
