"""What a rehearsal knows of its single test patients, for the clinician's report: `clinical.json`.

`collect` takes what is there already: who the patients are, and their Dice. `measure` works on every patient again with the
first seed's final model: volumes, doubt under dropout, reliability, other readers' contours, a second scan. No real federation
could do either: there, patients are seen by their own hospital alone.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from math import isfinite
from pathlib import Path
from typing import Any

from conf.study import Frozen
from fl_server.record import Record
from fl_server.report.measured import Area, CalibrationBin, Classified, Measured, Methods, Number, Patient, Role
from simulation.clinical.one import Origin, Plan, examine, facts
from simulation.hospital import Hospital, seeds_of
from simulation.machine import unordered
from simulation.report import lenient
from simulation.settings import GeneratedHospitals, Simulation
from simulation.sources import digest
from simulation.whole_file import write_whole
from tasks.task import gradient_task

CODE = ("tasks", "simulation/clinical", "simulation/scanner.py", "simulation/reader.py", "simulation/phantom.py")
MOST_READERS = 5
ARM = "federation_private"
BOUNDS = ("predicted", "observed", "low", "high")
CLASSIFIERS = ("forest_private", "forest_unet_private")
"""Arms of a radiomics study whose answers the clinician's report is about, the first that is there."""


class Tested(Frozen):
    """A line of `scores.jsonl` of the final model, over its seeds."""

    hospital: str
    role: Role
    patient: str
    dice: dict[str, list[Number]]


def collect(simulation: Simulation, folder: Path, study_hash: str, roles: Iterable[tuple[str, Hospital]]) -> Measured:
    """Every test patient of a finished rehearsal with sex, age, disease, scanner and Dice by seed; no model is asked again."""
    arm, seeds, tested = _tested(folder)
    hospitals = {hospital.name: hospital for _, hospital in roles}
    patients = []
    for one in tested:
        hospital = hospitals[one.hospital]
        known = facts(hospital.cohort.case(one.patient).endpoints)
        patients.append(Patient(**one.model_dump(), scanner=hospital.scanner, **known))
    return Measured(
        study_hash=study_hash,
        arm=arm,
        seeds=seeds,
        structures=list(dict.fromkeys(name for one in tested for name in one.dice)),
        patients=patients,
        generated=isinstance(simulation.hospitals, GeneratedHospitals),
    )


def measure(
    simulation: Simulation,
    folder: Path,
    study_hash: str,
    roles: Iterable[tuple[str, Hospital]],
    *,
    pool: Executor,
    advance: Callable[[int, int], None],
    plan: Plan | None = None,
) -> Measured:
    """What `collect` finds, and everything that `one.examine` measures of each patient with the model in `folder`.

    What was measured already, of these weights on these patients by this code, is taken from `arms/measured.json`. Without a
    model, or with a task that draws no masks, it is `collect`.
    """
    plan, begin, roles = plan or Plan(), time.monotonic(), list(roles)
    found = collect(simulation, folder, study_hash, roles)
    weights = folder / "model.pt"
    if not weights.exists() or not found.patients or simulation.task.get("name") != "segmentation":
        return found
    hospitals = {hospital.name: hospital for _, hospital in roles}
    identity = _identity(simulation, weights, hospitals, plan)
    kept = folder / "arms" / "measured.json"
    if kept.exists() and (saved := json.loads(kept.read_text())).get("identity") == identity:
        patients, methods = [Patient.model_validate(one) for one in saved["patients"]], saved["methods"]
        return found.model_copy(update={"patients": patients, "methods": Methods.model_validate(methods)})
    origins = {name: _origins(simulation, name) for name in hospitals}
    jobs = []
    for one in found.patients:
        origin = origins[one.hospital].get(one.patient)
        cohort = hospitals[one.hospital].cohort_folder
        about = (one.hospital, one.role, one.scanner, one.patient)
        jobs.append((*about, cohort, simulation.task, weights, one.dice, plan, origin))
    done: dict[tuple[str, str], Patient] = {}
    for patient in unordered(pool, examine, jobs):
        done[patient.hospital, patient.patient] = patient
        advance(len(done), len(jobs))
    measured = [done[one.hospital, one.patient] for one in found.patients]
    methods = _methods(simulation, plan, measured, time.monotonic() - begin)
    kept.parent.mkdir(exist_ok=True)
    rows = [patient.model_dump(mode="json") for patient in measured]
    write_whole(kept, json.dumps({"identity": identity, "patients": rows, "methods": methods.model_dump(mode="json")}))
    return found.model_copy(update={"patients": measured, "methods": methods})


def classified(record: Record, folder: Path) -> Measured:
    """What `radiomics.json` says of the federated classifier: areas under the ROC curve and calibration, no single patient."""
    path = folder / "radiomics.json"
    arms = lenient.mapping(lenient.mapping(json.loads(path.read_text()) if path.exists() else {}).get("arms"))
    chosen = next((name for name in (*CLASSIFIERS, *arms) if name in arms), "")
    found = lenient.mapping(arms.get(chosen))
    bins = [
        CalibrationBin.model_validate({key: _number(lenient.number(one.get(key))) for key in BOUNDS})
        for one in lenient.mappings(found.get("calibration"))
    ]
    areas = {str(name): _area(lenient.mapping(area)) for name, area in lenient.mapping(found.get("by_hospital")).items()}
    return Measured(
        study_hash=record.study_hash,
        arm=chosen,
        seeds=record.seeds or [record.seed],
        classifier=Classified(
            arm=chosen,
            auc=_area(lenient.mapping(found.get("auc"))),
            by_hospital=areas,
            calibration=bins,
            brier=_number(lenient.number(found.get("brier"))),
        ),
    )


def _area(found: Mapping[str, Any]) -> Area:
    value, low, high = (_number(lenient.number(found.get(key))) for key in ("value", "low", "high"))
    patients = lenient.number(found.get("patients"))
    return Area(value=value, low=low, high=high, patients=int(patients) if isfinite(patients) else None)


def _tested(folder: Path) -> tuple[str, list[int], list[Tested]]:
    """The arm whose model is the run's, its seeds, and its test patients in a settled order."""
    path = folder / "scores.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    arms = list(dict.fromkeys(line["arm"] for line in lines if line["arm"] != "pretrained"))
    if not arms:
        return "", [], []
    arm = ARM if ARM in arms else arms[0]
    lines = [line for line in lines if line["arm"] == arm]
    seeds = sorted({line["seed"] for line in lines})
    names = dict.fromkeys(k for line in lines for k in line["scores"] if k.startswith("dice/"))
    table: dict[tuple[str, str, str], dict[int, dict[str, float]]] = {}
    for line in lines:
        table.setdefault((line["role"], line["hospital"], line["patient"]), {})[line["seed"]] = line["scores"]
    tested = []
    for (role, hospital, patient), by_seed in table.items():
        dice = {name.removeprefix("dice/"): [_number(by_seed.get(seed, {}).get(name)) for seed in seeds] for name in names}
        tested.append(Tested(hospital=hospital, role=role, patient=patient, dice=dice))  # type: ignore[arg-type]
    return arm, seeds, tested


def _number(value: float | None) -> float | None:
    return None if value is None or not isfinite(value) else float(value)


def _origins(simulation: Simulation, name: str) -> dict[str, Origin]:
    """Where each generated patient of this hospital comes from; nowhere for patients whom a seed alone doesn't draw again."""
    every = simulation.hospitals
    if not isinstance(every, GeneratedHospitals) or every.bodies or name not in every.sites | every.held_out:
        return {}
    own = (every.sites | every.held_out)[name]
    others = [profile.reader for site, profile in every.sites.items() if site != name]
    readers = (own.reader, *others)[:MOST_READERS]
    return {
        pseudonym: Origin(
            seed=seed,
            scanner=own.scanner,
            case_mix=own.case_mix,
            readers=readers,
            oversampling=every.oversampling,
            subslices=every.subslices,
        )
        for pseudonym, seed in seeds_of(name, every).items()
    }


def _methods(simulation: Simulation, plan: Plan, patients: list[Patient], seconds: float) -> Methods:
    read = any(patient.readers for patient in patients)
    names: list[str] = []
    if read and isinstance(simulation.hospitals, GeneratedHospitals):
        names = [f"the reader of {site}" for site in simulation.hospitals.sites][:MOST_READERS]
    return Methods(
        dropout=plan.dropout,
        passes=plan.passes,
        trained_with_dropout=False,  # no network of konsil's has dropout
        readers=names,
        rescans=any(volume.predicted_again_ml is not None for patient in patients for volume in patient.volumes),
        reliability_margin_mm=plan.margin_mm,
        seconds=round(seconds, 1),
    )


def _identity(simulation: Simulation, weights: Path, hospitals: Mapping[str, Hospital], plan: Plan) -> str:
    scores = weights.parent / "scores.jsonl"
    parts = [
        digest(*CODE),
        hashlib.sha256(weights.read_bytes()).hexdigest(),
        gradient_task(simulation.task).hash,
        json.dumps(simulation.task, sort_keys=True),
        plan.model_dump_json(),
        *(hospital.identity for hospital in hospitals.values()),
        hashlib.sha256(scores.read_bytes()).hexdigest() if scores.exists() else "",
    ]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()
