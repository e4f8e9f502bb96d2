"""ComBat from calibration scans: the same generated patients on every hospital's scanner, before any patient is asked for.

What scanners do to a number is learned where it can be seen without anybody's data, so it costs no privacy. In life these would
be volunteers or phantoms that travel.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from simulation.hospital import GENERATOR
from simulation.hospital_case import patient_case
from simulation.machine import unordered
from simulation.radiomics.settings import Classifier
from simulation.reader import Reader
from simulation.scanner import Scanner, Series
from simulation.screen import Screen
from simulation.settings import GeneratedHospitals, Simulation
from simulation.sources import source_text
from tasks.radiomics.harmonise import Moments, fit, scanner_name
from tasks.radiomics.settings import Settings
from tasks.radiomics.task import RadiomicsTask
from tasks.task import load

Floats = npt.NDArray[np.float64]
Task = dict[str, Any]

FIRST_SEED = 70_000_000
"""Calibration patients have seeds of their own; no hospital treats them, and no model is trained on them."""
CASE_MIX = {"normal": 1.0, "myocarditis": 1.0, "infarct": 0.5, "hcm": 0.3, "dcm": 0.3, "amyloid": 0.3}


def calibrated(
    simulation: Simulation, classifier: Classifier, task: Task, *, cache: Path, pool: Executor, screen: Screen
) -> tuple[Task, bool]:
    """The task with a harmonisation of its radiomic columns, and whether there is one."""
    hospitals, count = simulation.hospitals, classifier.calibration_patients
    if not count or not isinstance(hospitals, GeneratedHospitals) or not task.get("radiomic"):
        return task, False
    settings = Settings.model_validate({name: value for name, value in task.items() if name != "name"})
    profiles = hospitals.sites | hospitals.held_out
    first = next(iter(profiles.values())).reader
    jobs = [
        (
            task,
            profile.scanner,
            first,
            seed,
            hospitals.series,
            hospitals.oversampling,
            hospitals.subslices,
            _place(cache, settings),
        )
        for profile in profiles.values()
        for seed in range(FIRST_SEED, FIRST_SEED + count)
    ]
    found: dict[str, list[Floats]] = {}
    for done, (scanner, X) in enumerate(unordered(pool, _rows, jobs), start=1):
        found.setdefault(scanner, []).append(X)
        screen.advance("calibration scans", done, len(jobs))
    moments = {
        scanner: Moments.of(np.concatenate(sorted(tables, key=lambda X: X.tobytes())), settings.radiomic)
        for scanner, tables in sorted(found.items())
    }
    if len(moments) < 2:
        screen.note(f"every hospital has the same scanner ({', '.join(moments)}): nothing is harmonised")
        return task, False
    return {**task, "harmonisation": fit(moments).model_dump(mode="json")}, True


def _place(cache: Path, settings: Settings) -> Path:
    text = settings.hash.encode() + source_text(*GENERATOR)
    return cache / "calibration" / hashlib.sha256(text).hexdigest()[:16]


def _rows(
    task: Mapping[str, Any],
    scanner: Scanner,
    reader: Reader,
    seed: int,
    series: tuple[Series, ...],
    oversampling: int,
    subslices: int,
    place: Path,
) -> tuple[str, Floats]:
    """The radiomic columns of one calibration patient on one scanner, (rows, columns), from the cache if they lie there."""
    facts = json.dumps([scanner.model_dump(mode="json"), reader.model_dump(mode="json"), seed, series, oversampling, subslices])
    path = place / f"{hashlib.sha256(facts.encode()).hexdigest()[:24]}.npy"
    name = scanner_name({"manufacturer": scanner.manufacturer, "field_strength_t": scanner.field_strength_t})
    if path.exists():
        return name, np.load(path)
    case = patient_case(seed, scanner, reader, CASE_MIX, series=series, oversampling=oversampling, subslices=subslices)
    learner = load(task)
    if not isinstance(learner, RadiomicsTask):
        raise ValueError("only a radiomics task can be calibrated")
    X = learner.rows(learner.prepare(case)).X[:, : len(learner.settings.radiomic)]
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{seed}.part")
    with open(part, "wb") as file:
        np.save(file, X)
    part.replace(path)
    return name, X
