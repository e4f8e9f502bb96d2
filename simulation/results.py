"""What came of a rehearsal: every model's scores, the model to hand on, pictures for the report, and the record.

All of it is made from finished arms, anew at every call; only the scores, which take long, are kept for as long as the
weights, the patients and the code stay the same. What the files mean: docs/run_folder.md.
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

from fl_client.app import ledger_of
from fl_client.cohort import Cohort
from fl_client.site import Site
from fl_server.record import Record
from fl_server.rounds import versions
from fl_server.weights import State
from simulation.arms import Arm
from simulation.hospital import Hospital
from simulation.machine import Meter
from simulation.scoring import Scores, mean_scores, restore, score_hospitals
from simulation.screen import Screen
from simulation.settings import Simulation
from simulation.sources import SCORING, digest
from simulation.synthetic import gallery
from simulation.whole_file import write_whole
from tasks.case import Volume
from tasks.fingerprint import fingerprint
from tasks.segmentation.export import export_torchscript
from tasks.segmentation.task import SegmentationTask
from tasks.synthesis.task import SynthesisTask
from tasks.synthesis.tone import curve_of, tone_of
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


def final_arm(arms: Sequence[Arm]) -> Arm:
    """The arm whose model and record are those of the run: the private federation of the first seed, else the first arm."""
    return next((arm for arm in arms if arm.name == "federation_private"), arms[0])


def score_models(
    simulation: Simulation, arms: Sequence[Arm], world: World, folder: Path, pool: Executor, screen: Screen
) -> None:
    """Score every arm's final model on every test patient, once, and write `scores.jsonl` and `metrics.jsonl` into `folder`.

    What is scored already, of these weights on these patients, is taken from `arms/scores`. Scores that are not finite (the
    labels can't decide them) are left out of a row.
    """
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
    tested = [
        digest(*SCORING),
        json.dumps(simulation.task, sort_keys=True),
        *(hospital.identity for _, hospital in world.roles),
    ]
    patients = hashlib.sha256(" ".join(tested).encode()).hexdigest()[:16]
    by_name = {(arm.name, arm.study.seed): arm for arm in arms}
    for done, (name, seed, states) in enumerate(models, start=1):
        worn = _worn(by_name.get((name, seed)))
        identity = "-".join(
            [*(fingerprint(state)[:16] for state in (*states, *worn.values())), simulation.full_scores, patients]
        )
        place = kept / f"{name.replace('/', '-')}-{seed}.json"
        saved = json.loads(place.read_text()) if place.exists() else {}
        if saved.get("identity") != identity:
            federated = name.startswith("federation")
            # real images are large; what they are for is the step from drawn to real, and what privacy does to it
            asked = {h.name: (role, h) for role, h in world.roles if role != "real" or federated or name == "pretrained"}
            cohorts = {hospital: (h.cohort_folder, h.test_patients) for hospital, (_, h) in asked.items()}
            full = simulation.full_scores == "all" or (simulation.full_scores == "federation" and federated)
            found = score_hospitals(pool, simulation.task, states, cohorts, full=full, worn=worn)
            rows = []
            for hospital, patients_scores in found.items():
                for patient, scores in sorted(patients_scores.items()):
                    row = {"arm": name, "seed": seed, "hospital": hospital, "role": asked[hospital][0], "patient": patient}
                    rows.append({**row, "scores": {key: value for key, value in scores.items() if np.isfinite(value)}})
            write_whole(place, json.dumps({"identity": identity, "rows": rows}))
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


def _worn(arm: Arm | None) -> dict[str, State]:
    """The models of the hospitals that keep parameters of their own."""
    if arm is None or not arm.study.training.personal:
        return {}
    return {hospital: arm.worn(hospital) for hospital in arm.hospitals}


def export_model(simulation: Simulation, final: Arm, folder: Path) -> None:
    """Copy the first seed's model (weights, and TorchScript that loads without konsil) and each hospital's ledger to `folder`.

    What an earlier run left there is removed first; an arm that has no model leaves nothing.
    """
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


def at_the_ledger(arm: Arm, hospital: str) -> float | None:
    """Epsilon in a hospital's ledger at the end: answers that got lost were paid for, too. None where nothing was promised."""
    if arm.study.privacy.kind == "none":
        return None
    return ledger_of(Site.load(arm.folder / "sites" / hospital / "site.yaml")).epsilon


def save_pictures(simulation: Simulation, final: Arm, world: World, folder: Path) -> None:
    """Save what the report shows: best, median and worst patient of the final model, and every scanner's view of a heart.

    `overlays/scanners.npz` holds one slice (rows, columns) of a patient per hospital, `overlays/{best,median,worst}.npz` a
    volume (slices, rows, columns) with its mask and the prediction; spacings in mm. Without a model: the scanners alone.
    """
    place = folder / "overlays"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    scanners: dict[str, Any] = {}
    for _, hospital in world.roles:
        patients = hospital.test_patients or hospital.cohort.patients
        if not patients:
            continue
        volumes = hospital.cohort.case(patients[0]).volumes
        if not volumes:
            continue
        volume = volumes[0]
        middle = volume.image.shape[0] // 2
        scanners[f"{hospital.name}/image"] = np.asarray(volume.image[middle], dtype=np.float32)
        scanners[f"{hospital.name}/spacing_mm"] = np.array(volume.spacing_mm[1:])
        scanners[f"{hospital.name}/label"] = np.array(hospital.scanner)
        if volume.mask is not None:
            scanners[f"{hospital.name}/mask"] = np.asarray(volume.mask[middle])
    np.savez_compressed(place / "scanners.npz", **scanners)
    if not (final.folder / "model.pt").exists():
        return
    task = load(simulation.task)
    if isinstance(task, SynthesisTask):
        _drawn_pictures(task, final, world, place)
    rows = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["arm"] == final.name and row["seed"] == final.study.seed and row["role"] != "real"]
    rows = [row for row in rows if any(key.startswith("dice/") for key in row["scores"])]
    if not rows:
        return
    if not isinstance(task, SegmentationTask):
        return
    rows.sort(key=_mean_dice)
    folders = {hospital.name: hospital.cohort_folder for _, hospital in world.roles}
    for rank, row in (("worst", rows[0]), ("median", rows[len(rows) // 2]), ("best", rows[-1])):
        case = Cohort(folders[row["hospital"]]).case(row["patient"])
        volume = next(volume for volume in case.volumes if volume.mask is not None)
        model = restore(task, [final.worn(row["hospital"])])
        _picture(place / f"{rank}.npz", volume, task.segment(model, case)[volume.series].mask, row, final.name)


def _drawn_pictures(task: SynthesisTask, final: Arm, world: World, place: Path) -> None:
    """`overlays/synthetic.npz`: of each hospital a patient, and what the start and the final model draw in its style.

    Beside it `tone.npz`, if a tone is learned: the curve (knots + 2,) from 0 to 1.
    """
    models = {"pretrained": restore(task, [world.start]), final.name: restore(task, [final.state()])}
    shown = {h.name: (h.cohort, h.test_patients[0]) for role, h in world.roles if role == "site" and h.test_patients}
    np.savez_compressed(place / "synthetic.npz", allow_pickle=False, **gallery(task, models, shown))
    if (tone := tone_of(models[final.name])) is not None:
        at, curve = curve_of(tone)
        np.savez_compressed(place / "tone.npz", allow_pickle=False, at=at, curve=curve)


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


def study_record(simulation: Simulation, arms: Sequence[Arm], world: World, folder: Path, meter: Meter) -> Record:
    """The record of the private federation (or the first arm), with everything the researcher knows beside it.

    Reads `scores.jsonl` in `folder`. The verdict is `degraded` at best if any arm did not end complete.
    """
    final = final_arm(arms)
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
        site.cases_withdrawn = len(hospital.cohort.withdrawn)
        site.cases_synthetic = len(Cohort(hospital.synthetic).patients) if hospital.synthetic else None
        site.epsilon = at_the_ledger(final, name)
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
    record.memory_mb = {phase: round(memory, 1) for phase, memory in meter.memory_mb.items()}
    record.peak_memory_mb = round(meter.peak_memory_mb, 1)
    record.judge()
    for name, hospital in final.hospitals.items():
        if not hospital.training_patients and record.verdict != "failed":
            record.reasons.append(f"{name} has no patient to train on: what it sent was noise alone")
            record.verdict = "degraded"
    for other in arms:  # an arm that lost a hospital on the way is not the comparison it claims to be
        if other is not final and other.record().verdict != "complete":
            record.reasons.append(f"arm {other.name}, seed {other.study.seed}, ended {other.record().verdict}")
            record.verdict = "degraded" if record.verdict == "complete" else record.verdict
    return record
