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
) -> tuple[dict[str, tuple[str, ...]], dict[str, dict[str, str]]]:
    """Compute every patient's rows once. Returns whom the task can use, and the reasons for the others, by hospital."""
    jobs = [
        (dict(settings), hospital.cohort_folder, name, patient, models)
        for name, hospital in hospitals.items()
        for patient in hospital.cohort.patients
    ]
    left_out: dict[str, dict[str, str]] = {name: {} for name in hospitals}
    for done, (name, patient, reason) in enumerate(unordered(pool, _prepare, jobs), start=1):
        if reason:
            left_out[name][patient] = reason
        advance(done, len(jobs))
    usable = {
        name: tuple(patient for patient in hospital.cohort.patients if patient not in left_out[name])
        for name, hospital in hospitals.items()
    }
    return usable, left_out


def _prepare(
    settings: dict[str, Any], cohort: Path, hospital: str, patient: str, models: Path | None
) -> tuple[str, str, str | None]:
    try:
        Cohort(cohort).prepared(load(settings, models=models), patient)
    except (CaseUnreadable, ValueError) as error:
        return hospital, patient, str(error)
    return hospital, patient, None


def gather(task: RadiomicsTask, hospitals: Mapping[str, Hospital], patients: Mapping[str, Sequence[str]]) -> Table:
    """The rows of these patients, hospital by hospital, in the order given."""
    tables = []
    for name, chosen in patients.items():
        cohort = hospitals[name].cohort
        for patient in chosen:
            arrays = cohort.prepared(task, patient)
            rows = len(arrays["y"])
            tables.append(
                Table(
                    X=task.table(arrays),
                    y=np.asarray(arrays["y"]),
                    weight=task.weights(arrays),
                    certainty=np.asarray(arrays["certainty"]),
                    region=np.asarray(arrays["region"]),
                    patient=np.full(rows, patient),
                    hospital=np.full(rows, name),
                )
            )
    return Table.join(tables)
