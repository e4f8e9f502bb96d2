"""Every radiomic feature of every patient of the cohort, computed by several processes and kept beside the cohort's arrays.

The numbers are those that a study here would learn from, and beside them everything else that its parameters give. They are
kept as prepared arrays of a task of their own, so that a second table is written without computing, and a patient's new images
take the old numbers away.
"""

from __future__ import annotations

import errno
import hashlib
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fl_client.cohort import CaseUnreadable, Cohort
from fl_client.orphans import end_with_main
from tasks.case import Case
from tasks.radiomics.extraction import Extraction
from tasks.radiomics.features import Features
from tasks.radiomics.settings import Image
from tasks.task import Arrays

FULL = (errno.ENOSPC, errno.EDQUOT)
"""No room on the disk, or none for this user: nobody's fault, so it ends everything."""
WORTH_A_PROCESS = 3
"""A process takes as long to begin as a few patients take."""


class EveryFeature:
    """Prepares every feature that the parameters give, where a study's task keeps the study's columns only."""

    def __init__(self, image: Image, models: Path) -> None:
        self.image = image
        self._extraction = Extraction(image, models)

    @cached_property
    def hash(self) -> str:
        """Identity of what determines the features of a case."""
        return hashlib.sha256(f"every feature/{self.image.identity}".encode()).hexdigest()

    def prepare(self, case: Case) -> Arrays:
        """Regions (rows,), values (rows, features), and the names of the features in UTF-8, one per line.

        Raises `ValueError`, naming the case, as a study's task does.
        """
        found = self._extraction.features(case)
        names = list(dict.fromkeys(name for features in found.values() for name in features))
        return {
            "region": np.array(list(found), np.int64),
            "values": np.array([[found[n].get(name, np.nan) for name in names] for n in found], np.float64),
            "names": np.frombuffer("\n".join(names).encode(), np.uint8),
        }


@dataclass
class Found:
    """Rows in order, by patient: the case, and its regions' features; and who has none, with the reason."""

    cases: dict[str, Case] = field(default_factory=dict)
    regions: dict[str, list[tuple[int, Features]]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def rows(self) -> list[tuple[Case, int, Features]]:
        """(case, region, features), sorted by patient and region."""
        return [(self.cases[name], region, values) for name in self.cases for region, values in self.regions[name]]


def extract(cohort: Cohort, image: Image | None, *, models: Path, workers: int | None) -> Found:
    """Everybody's features: computed by several processes where they aren't kept yet, then read in the order of pseudonyms.

    Without an `image` there are no features, and one row per patient. `workers` is how many processes (None: one per core).
    Raises `OSError` for a disk that is full.
    """
    found = Found()
    task = EveryFeature(image, models) if image else None
    if task is not None:
        found.left_out |= _prepare_all(cohort, task, models, workers)
    for patient in cohort.patients:
        if patient in found.left_out:
            continue
        try:
            case = cohort.case(patient)
            regions = _kept(cohort.prepared(task, patient)) if task else [(0, {})]
        except (KeyError, ValueError) as error:  # it was damaged, or replaced, meanwhile
            found.left_out[patient] = _reason(error)
            continue
        found.cases[patient], found.regions[patient] = case, regions
    return found


def _begin_worker() -> None:
    end_with_main()
    torch.set_num_threads(1)


def _prepare_all(cohort: Cohort, task: EveryFeature, models: Path, workers: int | None) -> dict[str, str]:
    """Make sure that everybody's features are kept in the cohort; the reason for each patient who has none."""
    kept = {path.name.partition(".")[0] for path in (cohort.folder / "prepared" / task.hash).glob("[!.]*")}
    new = [patient for patient in cohort.patients if patient not in kept]
    processes = min(workers if workers is not None else _cores(), len(new) // WORTH_A_PROCESS)
    job = (cohort.folder, task.image.model_dump_json(), models)
    left_out: dict[str, str] = {}
    with _progress(len(new)) as advance:
        if processes <= 1:
            for patient in new:
                left_out |= _prepare(*job, patient)
                advance()
            return left_out
        context = multiprocessing.get_context("forkserver")  # a server that has imported torch once, and no thread of this one
        context.set_forkserver_preload([__name__])
        with ProcessPoolExecutor(processes, mp_context=context, initializer=_begin_worker) as pool:
            futures = [pool.submit(_prepare, *job, patient) for patient in new]
            try:
                for future in as_completed(futures):
                    left_out |= future.result()
                    advance()
            except BrokenProcessPool:
                raise ChildProcessError(
                    "a process that computed features was ended from outside, perhaps for lack of memory; what is computed is "
                    "kept, so ask again, with --workers 1"
                ) from None
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
    return left_out


def _prepare(folder: Path, image: str, models: Path, patient: str) -> dict[str, str]:
    """Compute and keep one patient's features: nothing, or the reason why there are none. Raises `OSError` for a full disk."""
    try:
        Cohort(folder).prepared(_task(image, models), patient)
    except OSError as error:
        if error.errno in FULL:
            raise
        return {patient: f"{error.strerror or error}"}
    except Exception as error:  # whatever is wrong with one patient's files doesn't stop the others
        return {patient: _reason(error)}
    return {}


@cache
def _task(image: str, models: Path) -> EveryFeature:
    """Once per process: a model that draws masks takes a while to read."""
    return EveryFeature(Image.model_validate_json(image), models)


def _reason(error: Exception) -> str:
    if isinstance(error, CaseUnreadable):
        return f"can't be read: {error.reason} (konsil-site cohort says what to do)"
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"


def _kept(arrays: Mapping[str, npt.NDArray[Any]]) -> list[tuple[int, Features]]:
    names = bytes(arrays["names"]).decode().split("\n")
    rows = zip(arrays["region"].tolist(), arrays["values"].tolist(), strict=True)
    return [(region, dict(zip(names, values, strict=True))) for region, values in rows]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _progress(total: int) -> Iterator[Callable[[], None]]:
    """A bar on a terminal, nothing on a pipe: call it once per patient."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description:<16}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bars:
        task = bars.add_task("features", total=total)
        yield lambda: bars.advance(task)
