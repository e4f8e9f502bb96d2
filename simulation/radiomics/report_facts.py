"""Everything the report of a radiomics study shows, gathered from finished arms into `radiomics.json`."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

import conf
from fl_client.privacy import Event, Ledger, epsilon
from simulation.arms import Arm
from simulation.hospital import Hospital
from simulation.radiomics import answers as told
from simulation.radiomics.answers import Answers
from simulation.radiomics.baselines import LABELS as BASELINES
from simulation.radiomics.baselines import baselines
from simulation.radiomics.checklist import checklist
from simulation.radiomics.explained import feature_map, importance, shapley, spread_over_trees
from simulation.radiomics.folds import Fold
from simulation.radiomics.settings import Classifier
from simulation.radiomics.tables import Table, gather
from simulation.screen import Screen
from simulation.settings import Simulation
from simulation.whole_file import write_whole
from tasks.radiomics import curves
from tasks.radiomics import folds as grouped
from tasks.radiomics.harmonise import scanner_name, scanner_share
from tasks.radiomics.settings import Settings
from tasks.radiomics.task import ForestTask, RadiomicsTask
from tasks.task import State, load

if TYPE_CHECKING:
    from simulation.radiomics.recipe import Joint

Json = dict[str, Any]
Task = dict[str, Any]

LEARNERS = {"forest": "forest", "logistic": "logistic regression", "mlp": "neural network"}
MASKS = {"reader": "expert", "unet": "unet", "raw": "expert"}
QUANTILES = (5, 25, 50, 75, 95)


@dataclass(frozen=True)
class World:
    """Who took part, in which folds, and what was asked of them; `tasks` by source of masks, one per fold."""

    simulation: Simulation
    classifier: Classifier
    hospitals: Mapping[str, Hospital]
    split: Sequence[Fold]
    tasks: Mapping[str, Sequence[Task]]
    models: Path
    left_out: Mapping[str, Mapping[str, str]]
    promise: Mapping[str, float] = field(default_factory=dict)  # epsilon: whole, masks, classifier

    def task(self, masks: str, fold: int) -> RadiomicsTask:
        """The task of a fold with these masks."""
        task = load(self.tasks[masks][fold], models=self.models)
        if not isinstance(task, RadiomicsTask):
            raise ValueError(f"{self.tasks[masks][fold]['name']} is no radiomics task")
        return task


def write_facts(world: World, arms: Sequence[Arm], joint: Joint, harmonised: bool, folder: Path, screen: Screen) -> None:
    """Judge every arm and write `radiomics.json`, whole or not at all."""
    settings = world.task("reader", 0).settings
    tested = {masks: [_tested(world, masks, fold) for fold in world.split] for masks in world.tasks}
    models = _models(world, arms)
    every: dict[str, list[Answers]] = {}
    for (name, masks, seed), of_folds in models.items():
        tables = tested[masks]
        probabilities = [task.predict(state, table.X) for (task, state), table in zip(of_folds, tables, strict=True)]
        every.setdefault(name, []).append(Answers(name, seed, tables, probabilities))
        screen.advance("answers", len(every), len({key[0] for key in models}))
    facts: Json = {
        "columns": [
            {"name": f.name, "kind": kind, "lower": f.lower, "upper": f.upper, "scale": f.scale}
            for kind, features in (("radiomic", settings.radiomic), ("clinical", settings.clinical))
            for f in features
        ],
        "robustness": _robustness(world.classifier),
        "hospitals": _hospitals(world, tested["reader"]),
        "arms": {},
    }
    for name, several in every.items():
        learner, masks, private = _parts(name)
        label = f"Federated {LEARNERS[learner]}, {'with' if private else 'without'} privacy"
        label += {"unet": ", U-Net masks", "raw": ", not harmonised"}.get(masks, "")
        about: Json = {"label": label, "masks": MASKS[masks] if settings.image else None, "learner": LEARNERS[learner]}
        about["epsilon"] = _spent(world, arms, name) if private else None
        facts["arms"][name] = told.arm_facts(several, settings, world.classifier, about)
    if world.classifier.baselines:
        for name, own in _baselines(world, tested["reader"]).items():
            about = {"label": BASELINES[name], "masks": MASKS["reader"] if settings.image else None, "epsilon": None}
            about["learner"] = "boosting" if "boosting" in name else "random forest"
            facts["arms"][name] = told.arm_facts([own], settings, world.classifier, about)
    headline = "forest_private"
    facts["explained_arm"] = headline
    facts["promise"] = world.promise
    facts["masks"] = _masks_compared(world, every, settings)
    masks = _parts(headline)[1]
    chosen = every[headline][0]
    of_folds = models[headline, masks, chosen.seed]
    names = [feature.name for feature in settings.columns]
    facts["importance"] = {headline: importance(chosen, of_folds, names, seed=chosen.seed)}
    task, state = of_folds[0]
    if isinstance(task, ForestTask):
        facts["shapley"] = shapley(chosen, task, state, names, fold=0)
    pairs = zip(of_folds, chosen.tables, strict=True)
    spread = np.concatenate([spread_over_trees(t, s, table.X) for (t, s), table in pairs if isinstance(t, ForestTask)])
    facts["bullseye"], facts["bullseye_mean"] = told.bullseyes(chosen, spread)
    for entry in facts["bullseye"]:
        entry["truth"] = _truth(world.hospitals[entry["hospital"]], entry["patient"])
    facts["feature_map"] = feature_map(Table.join(tested["reader"]), settings)
    facts["harmonisation"] = _harmonisation(world, facts, settings) if harmonised else None
    facts["federated"] = _federated(world, joint, settings)
    facts["checklist"] = checklist(world, joint.record, facts)
    write_whole(folder / "radiomics.json", json.dumps(facts, allow_nan=False))


def _tested(world: World, masks: str, fold: Fold) -> Table:
    """The rows of the patients that a fold holds back; nobody of them has trained in it."""
    task = world.task(masks, fold.number)
    table = gather(task, world.hospitals, _usable(world, task, fold.tested))
    training = {name: hospital.cohort.patients for name, hospital in fold.hospitals.items()}
    everybody = [*table.patient.tolist(), *(patient for names in training.values() for patient in names)]
    held_back = np.arange(len(everybody)) < len(table.patient)
    grouped.require_grouped(everybody, ~held_back, held_back)
    return table


def _usable(world: World, task: RadiomicsTask, patients: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]]:
    return {name: world.hospitals[name].cohort.usable(task, chosen)[0] for name, chosen in patients.items()}


def _models(world: World, arms: Sequence[Arm]) -> dict[tuple[str, str, int], list[tuple[RadiomicsTask, State]]]:
    """By arm, masks and seed: every fold's task and what it learned, in the order of the folds."""
    found: dict[tuple[str, str, int], dict[int, tuple[RadiomicsTask, State]]] = {}
    for arm in arms:
        name, _, number = arm.name.rpartition("/")
        task = load(arm.study.task, models=world.models)
        if isinstance(task, RadiomicsTask):
            found.setdefault((name, _parts(name)[1], arm.study.seed), {})[int(number)] = (task, arm.state())
    return {key: [of_fold[number] for number in sorted(of_fold)] for key, of_fold in found.items()}


def _parts(name: str) -> tuple[str, str, bool]:
    """forest_unet_private -> (forest, unet, True)."""
    learner, *masks, kind = name.split("_")
    return learner, masks[0] if masks else "reader", kind == "private"


def _spent(world: World, arms: Sequence[Arm], name: str) -> float | None:
    """The largest epsilon in the ledgers of an arm's folds, with that of the fold's masks where a model drew them."""
    found = []
    for arm in arms:
        own, _, number = arm.name.rpartition("/")
        if own == name:
            for hospital in arm.hospitals:
                events = _events(arm.folder, hospital, world)
                if _parts(name)[1] == "unet":
                    events += _events(arm.folder.parents[2] / "masks" / number, hospital, world)
                found.append(epsilon(events, delta=world.simulation.privacy.delta))
    return _finite(max(found, default=np.nan))


def _events(folder: Path, hospital: str, world: World) -> list[Event]:
    path = folder / "sites" / hospital / "ledger.jsonl"
    return list(Ledger(path, epsilon=world.promise["whole"], delta=world.simulation.privacy.delta).events)


def _masks_compared(world: World, every: Mapping[str, Sequence[Answers]], settings: Settings) -> Json | None:
    """Experts' masks against the model's, on the rows that both have: the model may lose patients and segments."""
    pair = [every[name] for name in ("forest_private", "forest_unet_private") if name in every]
    if len(pair) < 2:
        return None
    keys = [_rows_of(several[0].table) for several in pair]
    both = set(keys[0]) & set(keys[1]) - {None}
    found: Json = {"rows_common": len(both)}
    found |= {f"rows_{masks}": len(set(own) - {None}) for masks, own in zip(("expert", "unet"), keys, strict=True)}
    for masks, several, own in zip(("expert", "unet"), pair, keys, strict=True):
        chosen = np.array([key in both for key in own])
        judged = [told.judge(a.table[chosen], a.probability[chosen], settings, world.classifier) for a in several]
        found[f"auc_{masks}"] = float(np.mean([c.auc for c in judged if c.auc is not None]))
        found[f"auc_{masks}_certain"] = float(np.mean([c.auc_certain.value for c in judged if c.auc_certain is not None]))
    return found


def _rows_of(table: Table) -> list[tuple[str, str, int] | None]:
    """Hospital, patient and region of every row; None for one without a label."""
    known = (~np.isnan(table.y)).tolist()
    keys = zip(table.hospital.tolist(), table.patient.tolist(), table.region.tolist(), strict=True)
    return [key if there else None for key, there in zip(keys, known, strict=True)]


def _baselines(world: World, tested: Sequence[Table]) -> dict[str, Answers]:
    task = world.task("reader", 0)
    every: dict[str, list[npt.NDArray[np.float64]]] = {}
    for fold, test in zip(world.split, tested, strict=True):
        patients = {name: hospital.cohort.patients for name, hospital in fold.hospitals.items()}
        train = gather(task, world.hospitals, _usable(world, task, patients))
        for name, probability in baselines(train, test, seed=world.simulation.seed).items():
            every.setdefault(name, []).append(probability)
    whole = {name: found for name, found in every.items() if len(found) == len(tested)}
    return {name: Answers(name, world.simulation.seed, tested, found) for name, found in whole.items()}


def _hospitals(world: World, tested: Sequence[Table]) -> dict[str, Json]:
    table = Table.join(tested)
    found = {}
    for name, hospital in world.hospitals.items():
        rows = (table.hospital == name) & ~np.isnan(table.y)
        found[name] = {
            "scanner": hospital.scanner,
            "patients": len(np.unique(table.patient[rows])),
            "rows": int(rows.sum()),
            "positive": int(table.y[rows].sum()),
            "left_out": dict(world.left_out.get(name, {})),
        }
    return found


def _truth(hospital: Hospital, patient: str) -> list[float | None]:
    endpoints = hospital.cohort.case(patient).endpoints
    values = [endpoints.get(f"segment_{n:02d}") for n in range(1, 18)]
    return [None if value is None else float(value) for value in values]


def _robustness(classifier: Classifier) -> list[Json]:
    if classifier.robustness is None:
        return []
    path = Path(next(iter(conf.__path__))) / "signature" / f"{classifier.robustness}.csv"
    with open(path, newline="") as file:
        lines = [line for line in file if not line.startswith("#")]
    return [
        {"column": row["column"], "icc_rescan": _float(row["icc_rescan"]), "icc_mask": _float(row["icc_mask"])}
        for row in csv.DictReader(lines)
    ]


def _quantiles(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    known = values[np.isfinite(values)]
    return np.percentile(known, QUANTILES) if len(known) else np.full(len(QUANTILES), np.nan)


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _float(text: str) -> float | None:
    return float(text) if text else None


def _harmonisation(world: World, facts: Json, settings: Settings) -> Json:
    """The radiomic columns of all patients before and after, by scanner."""
    tables = {when: [] for when in ("before", "after")}  # type: dict[str, list[Table]]
    for when, masks in (("before", "raw"), ("after", "reader")):
        tables[when] = [_tested(world, masks, fold) for fold in world.split]
    count = len(settings.radiomic)
    names = [feature.name for feature in settings.radiomic]
    scanner_of = {name: scanner_name(next(iter(h.cohort)).scanner) for name, h in world.hospitals.items()}
    found: Json = {"columns": names}
    for when, several in tables.items():
        table = Table.join(several)
        scanners = np.array([scanner_of[name] for name in table.hospital])
        X = table.X[:, :count]
        share = zip(names, scanner_share(X, scanners.tolist()), strict=True)
        found[f"scanner_share_{when}"] = {name: float(value) for name, value in share if np.isfinite(value)}
        found[when] = {
            str(scanner): {name: [_finite(q) for q in _quantiles(X[scanners == scanner, i])] for i, name in enumerate(names)}
            for scanner in np.unique(scanners)
        }
    for when, arm in (("before", "forest_raw_private"), ("after", "forest_private")):
        found[f"auc_{when}"] = facts["arms"].get(arm, {}).get("auc")
    return found


def _federated(world: World, joint: Joint, settings: Settings) -> Json:
    """What the hospitals said of the federation's model, and the exact answer on the same patients."""
    task = load(joint.study.task, models=world.models)
    if not isinstance(task, RadiomicsTask):
        return {}
    test = {name: hospital.test_patients for name, hospital in world.hospitals.items()}
    table = gather(task, world.hospitals, _usable(world, task, test))
    used = table[table.weight > 0]
    share = 1 / np.array([(used.patient == patient).sum() for patient in used.patient])
    exact = curves.exact(
        task.predict(joint.state, used.X),
        used.y,
        used.patient,
        weights=share * used.weight,
        at_sensitivity=world.classifier.sensitivity,
    )
    entry = told.federated_facts(joint.record, exact, settings, world.classifier)
    name = "forest_unet_private" if "unet" in world.tasks else "forest_private"
    return {name: entry} if entry else {}
