"""The rehearsal: hospitals are drawn, a start is trained, the arms run, their models are scored, a report is written.

`rehearse` is the recipe; everything a run leaves lies in one folder (docs/run_folder.md). A run of the same name and
settings goes on where it was interrupted: finished arms are not run again, cohorts and the start come from the cache.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fl_client.cohort import Cohort
from fl_server.record import Outcome, Record, Round
from fl_server.rounds import fingerprint, initial_state, versions
from simulation import hospital as hospitals_module
from simulation import pretraining
from simulation.arms import Arm, State, train, train_by_itself, write_line
from simulation.hospital import Hospital
from simulation.machine import Meter, executor, one_thread, unordered
from simulation.report import summary_lines, write_report
from simulation.scoring import Scores, mean_scores, restore, score_hospital
from simulation.screen import Screen
from simulation.settings import GeneratedHospitals, Simulation
from tasks.case import Volume
from tasks.segmentation.export import export_torchscript
from tasks.segmentation.task import SegmentationTask
from tasks.task import load


@dataclass(frozen=True)
class World:
    """Everybody there is in a rehearsal: hospitals that train, hospitals that are only tested on, and the start."""

    sites: Mapping[str, Hospital]
    held_out: Mapping[str, Hospital]
    real: Mapping[str, Hospital]
    start: State
    start_path: Path

    @property
    def roles(self) -> Iterator[tuple[str, Hospital]]:
        """Every hospital with its role in the scores."""
        yield from (("site", hospital) for hospital in self.sites.values())
        yield from (("held_out", hospital) for hospital in self.held_out.values())
        yield from (("real", hospital) for hospital in self.real.values())


def rehearse(simulation: Simulation) -> Outcome:
    """Run the whole rehearsal; the last lines on the screen say what came of it. Returns the verdict."""
    folder = Path(simulation.runs_folder) / simulation.name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.json").write_text(simulation.model_dump_json(indent=1))
    cache = Path(simulation.runs_folder) / "cache"
    with Meter(folder / "timings.json") as meter, Screen(simulation) as screen, executor(simulation.workers) as pool:
        with meter.phase("hospitals"):
            sites, held_out, real = _open_hospitals(simulation, cache, pool, screen)
        with meter.phase("pretraining"):
            start, start_path = _start(simulation, cache, folder, pool, screen)
        one_thread()  # as in the workers: what is done in this process from here on gives the same numbers as there
        world = World(sites, held_out, real, start, start_path)
        arms = _arms(simulation, world, folder)
        with meter.phase("federation"):
            for arm in arms:
                if arm.name.startswith("federation"):
                    _federate(simulation, arm, world, pool, screen)
        with meter.phase("comparisons"):
            apart = [arm for arm in arms if not arm.name.startswith("federation")]
            for done, _ in enumerate(unordered(pool, train_by_itself, [(arm, world.start_path) for arm in apart]), start=1):
                screen.advance("comparisons: pooled, alone", done, len(apart))
        with meter.phase("scores"):
            _score(simulation, arms, world, folder, pool, screen)
        with meter.phase("model and pictures"):
            final = _private(arms) or arms[0]
            _export(simulation, final, folder)
            _pictures(simulation, final, world, folder)
    record = _record(simulation, arms, world, folder, meter)
    record.write(folder / "record.json")
    write_report(folder)
    meter.finish()
    print("\n".join(summary_lines(folder)))
    return record.verdict


# -- before anything is learned ---------------------------------------------------------------------------------------


def _open_hospitals(
    simulation: Simulation, cache: Path, pool: Executor, screen: Screen
) -> tuple[dict[str, Hospital], dict[str, Hospital], dict[str, Hospital]]:
    settings = simulation.hospitals
    if isinstance(settings, GeneratedHospitals):
        every = settings.sites | settings.held_out
        drawn = {}
        for index, (name, profile) in enumerate(every.items()):
            advance = screen.part("hospitals", index, len(every), name)
            drawn[name] = hospitals_module.drawn(name, index, profile, settings, cache=cache, pool=pool, advance=advance)
        sites = {name: drawn[name] for name in settings.sites}
        held_out = {name: drawn[name] for name in settings.held_out}
    else:
        sites, held_out = hospitals_module.dealt(settings, cache=cache, advance=screen.part("hospitals", 0, 1, ""))
    real = {}
    if simulation.real is not None:
        if Path(simulation.real.folder).is_dir():
            real[simulation.real.name] = hospitals_module.real(simulation.real, cache=cache)
        else:
            screen.note(f"no real patients: there is no folder {simulation.real.folder}")
    return sites, held_out, real


def _start(simulation: Simulation, cache: Path, folder: Path, pool: Executor, screen: Screen) -> tuple[State, Path]:
    """The weights that every arm begins with: pre-trained on generated patients, or freshly drawn."""
    if simulation.pretraining is None or not isinstance(simulation.hospitals, GeneratedHospitals):
        study = simulation.study(seed=simulation.seed, private=False, sites=tuple(simulation.hospitals.sites), initial=None)
        state = initial_state(study)
    else:
        state = pretraining.pretrain(
            simulation.task, simulation.pretraining, simulation.hospitals.series, cache=cache, pool=pool, advance=screen.advance
        )
    path = folder / "start.pt"
    torch.save(state, path)
    return state, path


def _arms(simulation: Simulation, world: World, folder: Path) -> list[Arm]:
    """Every training there is to do, the private federation of the first seed first."""
    initial = fingerprint(world.start)
    everyone = tuple(world.sites)

    def arm(name: str, seed: int, hospitals: Mapping[str, Hospital], *, private: bool) -> Arm:
        study = simulation.study(seed=seed, private=private, sites=tuple(hospitals), initial=initial)
        return Arm(name, study, hospitals, folder / "arms" / name / str(seed))

    arms = []
    for seed in simulation.seeds:
        if "federation_private" in simulation.arms:
            arms.append(arm("federation_private", seed, world.sites, private=True))
        if "federation_plain" in simulation.arms:
            arms.append(arm("federation_plain", seed, world.sites, private=False))
        if "pooled" in simulation.arms:
            union = hospitals_module.pooled("pooled", world.sites, folder / "arms" / "pooled" / "everybody")
            arms.append(arm("pooled", seed, {"pooled": union}, private=False))
        if {"alone", "ensemble"} & set(simulation.arms):
            arms += [arm(f"alone/{name}", seed, {name: world.sites[name]}, private=False) for name in everyone]
    return arms


# -- learning ---------------------------------------------------------------------------------------------------------


def _federate(simulation: Simulation, arm: Arm, world: World, pool: Executor, screen: Screen) -> None:
    lines = arm.folder.parent / f"metrics-{arm.study.seed}.jsonl"
    if arm.finished:
        return
    lines.unlink(missing_ok=True)
    bar = screen.rounds(arm)

    def look(answers: Round, state: State) -> None:
        number = answers.round
        means: dict[str, Scores] = {}
        if number % simulation.evaluate_every == 0 or number == arm.study.rounds:
            for role, hospital in world.roles:
                if role == "real":
                    continue
                rows = score_hospital(
                    pool, simulation.task, [state], hospital.cohort_folder, hospital.test_patients, full=False
                )
                means[hospital.name] = mean_scores([scores for _, scores in rows])
        for name in {**answers.sites, **means}:
            site = answers.sites.get(name)
            entry = {"arm": arm.name, "seed": arm.study.seed, "round": number, "hospital": name, **means.get(name, {})}
            write_line(lines, {**entry, "epsilon": site.epsilon if site else None, "time_s": answers.seconds})
        bar(answers, means)

    train(arm, world.start_path, look, pool=pool, engine=simulation.engine)


# -- what came of it --------------------------------------------------------------------------------------------------


def _score(simulation: Simulation, arms: Sequence[Arm], world: World, folder: Path, pool: Executor, screen: Screen) -> None:
    """Score every final model on every test patient, once; `scores.jsonl` and `metrics.jsonl` are put together of them."""
    models: list[tuple[str, int, list[State]]] = [("pretrained", simulation.seed, [world.start])]
    models += [(arm.name, arm.study.seed, [arm.state()]) for arm in arms if (arm.folder / "model.pt").exists()]
    if "ensemble" in simulation.arms:
        for seed in simulation.seeds:
            alone = [arm for arm in arms if arm.name.startswith("alone/") and arm.study.seed == seed]
            alone_states = [arm.state() for arm in alone if (arm.folder / "model.pt").exists()]
            if alone_states:
                models.append(("ensemble", seed, alone_states))
    kept = folder / "arms" / "scores"
    kept.mkdir(parents=True, exist_ok=True)
    tested = [json.dumps(simulation.task, sort_keys=True), *(hospital.identity for _, hospital in world.roles)]
    patients = hashlib.sha256(" ".join(tested).encode()).hexdigest()[:16]
    for done, (name, seed, states) in enumerate(models, start=1):
        identity = "-".join([*(fingerprint(state)[:16] for state in states), simulation.full_scores, patients])
        place = kept / f"{name.replace('/', '-')}-{seed}.json"
        saved = json.loads(place.read_text()) if place.exists() else {}
        if saved.get("identity") != identity:
            rows = []
            for role, hospital in world.roles:
                if role == "real" and name not in ("pretrained", "federation_private", "federation_plain"):
                    continue  # large images; what they are for is the step from drawn to real, and what privacy does to it
                full = simulation.full_scores == "all" or (
                    simulation.full_scores == "federation" and name.startswith("federation")
                )
                found = score_hospital(pool, simulation.task, states, hospital.cohort_folder, hospital.test_patients, full=full)
                for patient, scores in sorted(found):
                    finite = {key: value for key, value in scores.items() if np.isfinite(value)}
                    row = {"arm": name, "seed": seed, "hospital": hospital.name, "role": role}
                    rows.append({**row, "patient": patient, "scores": finite})
            part = place.with_suffix(".part")
            part.write_text(json.dumps({"identity": identity, "rows": rows}))
            part.replace(place)
        screen.advance("scores", done, len(models))
    with open(folder / "scores.jsonl", "w") as file:
        for name, seed, _ in models:
            for row in json.loads((kept / f"{name.replace('/', '-')}-{seed}.json").read_text())["rows"]:
                file.write(json.dumps(row) + "\n")
    with open(folder / "metrics.jsonl", "w") as file:
        for arm in arms:
            lines = arm.folder.parent / f"metrics-{arm.study.seed}.jsonl"
            if lines.exists():
                file.write(lines.read_text())


def _private(arms: Sequence[Arm]) -> Arm | None:
    return next((arm for arm in arms if arm.name == "federation_private"), None)


def _export(simulation: Simulation, final: Arm, folder: Path) -> None:
    """The first seed's model: weights, a TorchScript file that loads without konsil, and each hospital's ledger."""
    for name in ("model.pt", "model.ts.pt", "model.ts.json"):  # of an earlier run, if any
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "ledgers", ignore_errors=True)
    if not (final.folder / "model.pt").exists():
        return
    task = load(simulation.task)
    shutil.copy(final.folder / "model.pt", folder / "model.pt")
    if isinstance(task, SegmentationTask):
        export_torchscript(restore(task, [final.state()]), task.settings, folder / "model.ts.pt")
    (folder / "ledgers").mkdir()
    for name in final.hospitals:
        for ending in ("", ".head"):  # the head finds lines that are missing at the end
            ledger = final.folder / "sites" / name / f"ledger.jsonl{ending}"
            if ledger.exists():
                shutil.copy(ledger, folder / "ledgers" / f"{name}.jsonl{ending}")


def _pictures(simulation: Simulation, final: Arm, world: World, folder: Path) -> None:
    """What the report shows: best, median and worst patient of the final model, and every scanner's view of a heart."""
    place = folder / "overlays"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    scanners: dict[str, Any] = {}
    for _, hospital in world.roles:
        patients = hospital.test_patients or hospital.cohort.patients
        if not patients:
            continue
        volume = hospital.cohort.case(patients[0]).volumes[0]
        middle = volume.image.shape[0] // 2
        scanners[f"{hospital.name}/image"] = np.asarray(volume.image[middle], dtype=np.float32)
        scanners[f"{hospital.name}/spacing_mm"] = np.array(volume.spacing_mm[1:])
        scanners[f"{hospital.name}/label"] = np.array(hospital.scanner)
        if volume.mask is not None:
            scanners[f"{hospital.name}/mask"] = np.asarray(volume.mask[middle])
    np.savez_compressed(place / "scanners.npz", **scanners)
    if not (final.folder / "model.pt").exists():
        return
    rows = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["arm"] == final.name and row["seed"] == final.study.seed and row["role"] != "real"]
    rows = [row for row in rows if any(key.startswith("dice/") for key in row["scores"])]
    if not rows:
        return
    task = load(simulation.task)
    if not isinstance(task, SegmentationTask):
        return
    model = restore(task, [final.state()])
    rows.sort(key=_mean_dice)
    folders = {hospital.name: hospital.cohort_folder for _, hospital in world.roles}
    for rank, row in (("worst", rows[0]), ("median", rows[len(rows) // 2]), ("best", rows[-1])):
        case = Cohort(folders[row["hospital"]]).case(row["patient"])
        volume = next(volume for volume in case.volumes if volume.mask is not None)
        _picture(place / f"{rank}.npz", volume, task.segment(model, case)[volume.series].mask, row, final.name)


def _mean_dice(row: dict[str, Any]) -> float:
    return float(np.mean([value for key, value in row["scores"].items() if key.startswith("dice/")]))


def _picture(path: Path, volume: Volume, prediction: np.ndarray[Any, Any], row: dict[str, Any], arm: str) -> None:
    dice = {key: value for key, value in row["scores"].items() if key.startswith("dice/")}
    np.savez_compressed(
        path,
        image=np.asarray(volume.image, dtype=np.float32),
        mask=np.asarray(volume.mask),
        prediction=prediction,
        spacing_mm=np.array(volume.spacing_mm),
        hospital=row["hospital"],
        patient=row["patient"],
        series=volume.series,
        dice=json.dumps(dice),
        arm=arm,
    )


def _record(simulation: Simulation, arms: Sequence[Arm], world: World, folder: Path, meter: Meter) -> Record:
    """The record of the private federation (or the first arm), with everything the researcher knows beside it."""
    final = _private(arms) or arms[0]
    record = final.record()
    record.versions = versions()
    record.seeds, record.profile = list(simulation.seeds), simulation.size.profile
    record.engine, record.device = simulation.engine, "cuda" if torch.cuda.is_available() else "cpu"
    rows = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]

    def means(arm: str, role: str, hospital: str | None = None) -> Scores:
        chosen = [r for r in rows if r["arm"] == arm and r["role"] == role and hospital in (None, r["hospital"])]
        return mean_scores([row["scores"] for row in chosen])

    for name, hospital in final.hospitals.items():
        site = record.sites[name]
        site.declared_size, site.scanner = hospital.declared_size, hospital.scanner
        site.cases_expected, site.cases_used, site.cases_refused = (
            hospital.cases_expected,
            len(hospital.cohort),
            len(hospital.refused),
        )
        scores = means(final.name, "site", name)
        site.dice = {key.removeprefix("dice/"): value for key, value in scores.items() if key.startswith("dice/")}
    names = sorted({row["arm"] for row in rows})
    record.baselines = {
        arm: {"sites": means(arm, "site"), "seeds": sorted({r["seed"] for r in rows if r["arm"] == arm})} for arm in names
    }
    for role, group in (("held_out", world.held_out), ("real", world.real)):
        for name, hospital in group.items():
            entry = {"scanner": hospital.scanner, "cases_expected": hospital.cases_expected, "cases_used": len(hospital.cohort)}
            entry |= {"refused": dict(hospital.refused), "arms": {arm: means(arm, role, name) for arm in names}}
            record.held_out.setdefault(role, {})[name] = entry
    record.timings = {phase: round(seconds, 2) for phase, seconds in [*meter.timings.items(), ("total", meter.total_s)]}
    record.peak_memory_mb = round(meter.peak_memory_mb, 1)
    record.judge()
    for other in arms:  # an arm that lost a hospital on the way is not the comparison it claims to be
        if other is not final and other.record().verdict != "complete":
            record.reasons.append(f"arm {other.name}, seed {other.study.seed}, ended {other.record().verdict}")
            record.verdict = "degraded" if record.verdict == "complete" else record.verdict
    return record
