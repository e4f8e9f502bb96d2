"""The radiomics rehearsal: masks, rows, a federation as a real one would be, folds of it for the researcher, a report.

`study` is the recipe. The federation itself (one split, one ledger per hospital over both of its studies, scores as noisy
histograms) is what could be done with real hospitals; the folds are what only the owner of generated patients can do.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from conf.study import Study
from fl_client.site import Budget
from fl_server.record import Record
from fl_server.weights import State, initial_state
from simulation.arms import Arm, federate, train_by_itself
from simulation.hospital import Hospital
from simulation.machine import Meter, unordered
from simulation.radiomics.calibration import calibrated
from simulation.radiomics.folds import Fold, folds
from simulation.radiomics.report_facts import World, write_facts
from simulation.radiomics.settings import Classifier
from simulation.radiomics.studies import Promise, classifier_studies, masks_study, study_of
from simulation.radiomics.tables import prepare
from simulation.rehearsal import NoPatients
from simulation.screen import Screen
from simulation.settings import Simulation
from simulation.sources import LEARNING, digest
from tasks.fingerprint import fingerprint
from tasks.task import settled
from tasks.weights import save

Task = dict[str, Any]


@dataclass(frozen=True)
class Joint:
    """The federation as real hospitals would run it: the study of masks, if any, then the classifier, on one ledger each."""

    sites: Mapping[str, Path]  # settings files
    folder: Path
    study: Study
    state: State
    record: Record


def study(
    simulation: Simulation,
    classifier: Classifier,
    hospitals: Mapping[str, Hospital],
    start: tuple[State, Path] | None,
    folder: Path,
    *,
    cache: Path,
    meter: Meter,
    pool: Executor,
    screen: Screen,
) -> Record:
    """Run everything and write `radiomics.json`, the model and the ledgers into `folder`. Returns the federation's record.

    `start` are the weights that the model of masks begins with, where masks are predicted.
    """
    (folder / "radiomics.json").unlink(missing_ok=True)  # the report of an earlier run, until this one has its own
    models = folder / "models"
    models.mkdir(exist_ok=True)
    promise = Promise.of(simulation.privacy, classifier)
    task: Task = dict(classifier.task)
    with meter.phase("calibration"):
        task, harmonised = calibrated(simulation, classifier, task, cache=cache, pool=pool, screen=screen)
    with meter.phase("features"):
        advance = screen.part("features", 0, 1, "reader's masks")
        usable, left_out = prepare(pool, task, hospitals, models=None, advance=advance)
    _require_patients(usable, left_out)
    try:
        split = folds(hospitals, usable, classifier.folds, folder / "arms" / "folds")
    except ValueError as error:
        raise NoPatients(str(error)) from None
    tasks: dict[str, list[Task]] = {"reader": [task] * len(split)}
    if harmonised:
        tasks["raw"] = [{**task, "harmonisation": None}] * len(split)
    with meter.phase("masks"):
        if "unet" in classifier.masks and start is not None:
            shas = _models_of_masks(simulation, promise, split, start, folder, pool=pool, screen=screen)
            tasks["unet"] = [_with_masks(task, simulation.task, sha) for sha in shas]
    with meter.phase("features of predicted masks"):
        for number, predicted in enumerate(tasks.get("unet", [])):
            advance = screen.part("features", number, len(split), "predicted masks")
            found, lost = prepare(pool, predicted, hospitals, models=models, advance=advance)
            _require_masks(split[number], found, lost)
    with meter.phase("federation"):
        joint = _joint(simulation, classifier, promise, hospitals, task, start, folder, pool=pool, screen=screen)
    if joint is None:  # nobody took part, or nobody answered: the record says why
        places = [folder / "arms" / "federation" / part / "record.json" for part in ("classifier", "masks")]
        return Record.read(next(place for place in places if place.exists()))
    arms = _arms(simulation, classifier, promise, split, tasks, folder)
    with meter.phase("folds"):
        for done, _ in enumerate(unordered(pool, train_by_itself, arms), start=1):
            screen.advance("folds", done, len(arms))
    with meter.phase("answers"):
        world = World(simulation, classifier, hospitals, split, tasks, models, left_out, asdict(promise))
        write_facts(world, [arm for arm, _ in arms], joint, harmonised, folder, screen)
        _export(joint, folder)
    return _complete(joint.record, simulation, hospitals, left_out, meter)


def _require_patients(usable: Mapping[str, Mapping[str, int]], left_out: Mapping[str, Mapping[str, str]]) -> None:
    """Raise `NoPatients`, with the first reasons, unless there are patients of both kinds."""
    kinds = {kind for found in usable.values() for kind in found.values()}
    if not kinds:
        reasons = [f"{name}: {reason}" for name, found in left_out.items() for reason in found.values()]
        raise NoPatients("\n  ".join(["no hospital has a patient whom the task can use", *reasons[:5]]))
    if 1 not in kinds:
        raise NoPatients("no patient of any hospital has a positive label: there is nothing to tell apart")


def _require_masks(fold: Fold, usable: Mapping[str, Mapping[str, int]], left_out: Mapping[str, Mapping[str, str]]) -> None:
    """Raise `NoPatients`, with the first reasons, unless predicted masks leave somebody to learn from and somebody to test."""
    tested = {patient for patients in fold.tested.values() for patient in patients}
    there = {patient for found in usable.values() for patient in found}
    if not there & tested or not there - tested:
        reasons = [f"{name}: {reason}" for name, found in left_out.items() for reason in found.values()]
        told = "the federation's model draws no masks that features can be taken from (train it longer)"
        raise NoPatients("\n  ".join([told, *reasons[:3]]))


def _models_of_masks(
    simulation: Simulation,
    promise: Promise,
    split: list[Fold],
    start: tuple[State, Path],
    folder: Path,
    *,
    pool: Executor,
    screen: Screen,
) -> list[str]:
    """Train each fold's model of masks on that fold's training patients; returns their fingerprints."""
    initial = fingerprint(start[0])
    arms = []
    for fold in split:
        study = masks_study(
            simulation,
            promise,
            seed=simulation.seed,
            sites=tuple(fold.hospitals),
            initial=initial,
            name=f"{simulation.name[:40]}-masks-{fold.number}",
        )
        arms.append(Arm(f"masks/{fold.number}", study, fold.hospitals, folder / "arms" / "masks" / str(fold.number)))
    for done, _ in enumerate(unordered(pool, train_by_itself, [(arm, start[1]) for arm in arms]), start=1):
        screen.advance("masks: federations", done, len(arms))
    return [_keep(arm.state(), folder / "models") for arm in arms]


def _keep(state: State, models: Path) -> str:
    """Put weights where tasks look for them; returns their fingerprint."""
    sha = fingerprint(state)
    if not (models / f"{sha}.pt").exists():
        save(state, models / f"{sha}.pt")
    return sha


def _with_masks(task: Task, segmentation: Mapping[str, Any], sha: str) -> Task:
    image = {**task["image"], "masks": {"task": dict(segmentation), "sha256": sha}}
    return {**task, "image": image}


def _arms(
    simulation: Simulation,
    classifier: Classifier,
    promise: Promise,
    split: list[Fold],
    tasks: Mapping[str, list[Task]],
    folder: Path,
) -> list[tuple[Arm, Path]]:
    """Every classifier of every fold and seed, with the file that it starts from."""
    found = []
    for masks, of_fold in tasks.items():
        for fold, task in zip(split, of_fold, strict=True):
            given = fold.with_models(*((folder / "models").glob("*.pt") if masks == "unet" else ()))
            for seed in simulation.seeds:
                studies = classifier_studies(
                    simulation,
                    classifier,
                    promise,
                    seed=seed,
                    sites=tuple(given.hospitals),
                    task=task,
                    suffix="" if masks == "reader" else f"_{masks}",
                    plain=masks != "raw",
                )
                for name, wanted in studies.items():
                    place = folder / "arms" / name / str(seed) / str(fold.number)
                    arm = Arm(f"{name}/{fold.number}", wanted, given.hospitals, place)
                    found.append((arm, _start_of(wanted, folder)))
    return found


def _start_of(study: Study, folder: Path) -> Path:
    """The file of the state that a classifier starts from."""
    state = initial_state(study)
    path = folder / "arms" / "starts" / f"{fingerprint(state)[:16]}.pt"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        save(state, path)
    return path


def _joint(
    simulation: Simulation,
    classifier: Classifier,
    promise: Promise,
    hospitals: Mapping[str, Hospital],
    task: Task,
    start: tuple[State, Path] | None,
    folder: Path,
    *,
    pool: Executor,
    screen: Screen,
) -> Joint | None:
    """Both studies one after the other over the same hospitals, whose ledgers compose them; None without any answer."""
    place = folder / "arms" / "federation"
    predicted = "unet" in classifier.masks and start is not None
    names = tuple(hospitals)
    first = None
    if predicted and start is not None:
        first = masks_study(
            simulation,
            promise,
            seed=simulation.seed,
            sites=names,
            initial=fingerprint(start[0]),
            name=f"{simulation.name[:50]}-masks",
        )
    privacy = simulation.privacy.model_copy(
        update={"epsilon": promise.classifier, "evaluation_share": classifier.evaluation_share}
    )
    facts = [simulation.name, settled(task), privacy.model_dump(), simulation.seed, first.hash if first else None]
    settings = json.dumps(facts, sort_keys=True)
    patients = [hospital.identity for hospital in hospitals.values()]
    identity = hashlib.sha256(" ".join([settings, digest(*LEARNING), *patients]).encode()).hexdigest()
    mark = place / "finished"
    sites = {name: place / "sites" / name / "site.yaml" for name in names}
    if not (mark.exists() and mark.read_text() == identity):
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        budget, private = Budget(epsilon=promise.whole, delta=simulation.privacy.delta), simulation.privacy.kind != "none"
        for index, (name, hospital) in enumerate(hospitals.items()):
            hospital.settle(place / "sites" / name, budget=budget, private=private, noise_seed=1_000 * simulation.seed + index)
        if first is not None and start is not None:
            screen.advance("federation: masks", 0, first.rounds)
            masks_state, _ = federate(
                first,
                sites,
                start[0],
                place / "masks",
                lambda answers, _: screen.advance("federation: masks", answers.round, first.rounds),
                pool=pool,
                engine=simulation.engine,
            )
            if not (place / "masks" / "model.pt").exists():  # nobody was used in any round
                return None
            _keep(masks_state, folder / "models")
        wanted = _joint_study(simulation, classifier, hospitals, task, privacy, place, folder)
        for name in names:
            for model in (folder / "models").glob("*.pt") if predicted else ():
                replace_link(place / "sites" / name / "models" / model.name, model)
        federate(wanted, sites, initial_state(wanted), place / "classifier", pool=pool, engine=simulation.engine)
        if not (place / "classifier" / "model.pt").exists():
            return None
        mark.write_text(identity)
    wanted = _joint_study(simulation, classifier, hospitals, task, privacy, place, folder)
    state = dict(torch.load(place / "classifier" / "model.pt", weights_only=True))
    return Joint(sites, place, wanted, state, Record.read(place / "classifier" / "record.json"))


def _joint_study(
    simulation: Simulation,
    classifier: Classifier,
    hospitals: Mapping[str, Hospital],
    task: Task,
    privacy: Any,
    place: Path,
    folder: Path,
) -> Study:
    """The classifier's study of the federation: with the masks of its own model, if it has one."""
    masks = place / "masks" / "model.pt"
    if masks.exists():
        sha = _keep(dict(torch.load(masks, weights_only=True)), folder / "models")
        task = _with_masks(task, simulation.task, sha)
    return study_of(simulation.name, task, None, privacy, seed=simulation.seed, sites=tuple(hospitals))


def replace_link(place: Path, target: Path) -> None:
    """Make `place` a link to `target`, whatever it was."""
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    place.symlink_to(target.resolve())


def _complete(
    record: Record,
    simulation: Simulation,
    hospitals: Mapping[str, Hospital],
    left_out: Mapping[str, Mapping[str, str]],
    meter: Meter,
) -> Record:
    """The federation's record with what the researcher knows beside it."""
    record.seeds, record.profile, record.engine = list(simulation.seeds), simulation.size.profile, simulation.engine
    record.device = "cuda" if torch.cuda.is_available() else "cpu"
    for name, hospital in hospitals.items():
        site = record.sites[name]
        site.scanner, site.cases_expected = hospital.scanner, hospital.cases_expected
        site.cases_used = len(hospital.cohort) - len(left_out[name])
        site.cases_refused = len(hospital.refused) + len(left_out[name])
        site.cases_withdrawn = len(hospital.cohort.withdrawn)
    record.timings = {phase: round(seconds, 2) for phase, seconds in [*meter.timings.items(), ("total", meter.total_s)]}
    record.memory_mb = {phase: round(memory, 1) for phase, memory in meter.memory_mb.items()}
    record.peak_memory_mb = round(meter.peak_memory_mb, 1)
    return record


def _export(joint: Joint, folder: Path) -> None:
    """The federation's model, and each hospital's ledger with its head."""
    shutil.copy(joint.folder / "classifier" / "model.pt", folder / "model.pt")
    shutil.rmtree(folder / "ledgers", ignore_errors=True)
    (folder / "ledgers").mkdir()
    for name, settings in joint.sites.items():
        for ending in ("", ".head"):
            ledger = settings.parent / f"ledger.jsonl{ending}"
            if ledger.exists():
                shutil.copy(ledger, folder / "ledgers" / f"{name}.jsonl{ending}")
