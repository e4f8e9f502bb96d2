"""The rehearsal: hospitals are drawn, a start is trained, the arms run, their models are scored, a report is written.

`rehearse` is the recipe; everything a run leaves lies in one folder (docs/run_folder.md). A run of the same name and
settings goes on where it was interrupted: finished arms are not run again, cohorts and the start come from the cache.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import get_args

from fl_client.site import Budget
from fl_server import report
from fl_server.record import Outcome, Record, Round
from fl_server.report.measured import FILE as measured_file
from fl_server.report.measured import Measured
from fl_server.weights import State
from simulation import clinical, gate, starting, tables, uncertainty
from simulation import hospital as hospitals_module
from simulation.arms import Arm, train, train_by_itself, write_line
from simulation.faults.plan import NO_FAULTS
from simulation.gate import draws_scans
from simulation.hospital import Hospital
from simulation.machine import Meter, executor, one_thread, unordered
from simulation.report import summary_lines, write_report
from simulation.results import World, export_model, final_arm, save_pictures, score_models, study_record
from simulation.run_folder import remove_results, settle, to_itself
from simulation.scoring import Scores, mean_scores, score_hospitals
from simulation.screen import Screen
from simulation.settings import Arm as ArmName
from simulation.settings import GeneratedHospitals, Simulation, TableHospitals
from tasks.fingerprint import fingerprint


class NoPatients(Exception):
    """No hospital has anybody to train on."""


class NotTaken(Exception):
    """A hospital refuses the synthetic cases that it was given."""


def rehearse(simulation: Simulation) -> Outcome:
    """Run the whole rehearsal; the last lines on the screen say what came of it. Returns the verdict.

    Settings with a classifier are a radiomics study (`simulation.radiomics`); in others hospitals only count (`_counting`).

    Raises `FolderInUse` if another process runs under this name, and `NoPatients`.
    """
    folder = Path(simulation.runs_folder) / simulation.name
    with to_itself(folder):
        return _rehearse(simulation, folder, Screen(simulation))


def _rehearse(simulation: Simulation, folder: Path, screen: Screen) -> Outcome:
    if settle(simulation, folder):
        screen.note(f"{folder} held results of other settings: they are removed")
    cache = Path(simulation.runs_folder) / "cache"
    with Meter(folder / "timings.json") as meter, screen, executor(simulation.workers) as pool:
        with meter.phase("hospitals"):
            sites, held_out, real = open_hospitals(simulation, cache, pool, screen)
            sites = {name: with_synthetic(hospital, simulation.synthetic.get(name)) for name, hospital in sites.items()}
            if not any(hospital.training_patients for hospital in sites.values()):
                refused = [f"{name}: {reason}" for site in sites.values() for name, reason in site.refused.items()]
                raise NoPatients("\n  ".join(["no hospital has a patient to train on", *refused[:5]]))
        if (counting := _counting(simulation)) is not None:
            one_thread()
            record = counting(sites, folder, meter=meter, pool=pool, screen=screen)
            return _finish(record, folder, meter, pool, Measured(study_hash=record.study_hash, seeds=[simulation.seed]))
        classifier = simulation.radiomics
        with meter.phase("pretraining"):
            if classifier is None or "unet" in classifier.masks:
                start, start_path = starting.start(simulation, folder, cache=cache, pool=pool, advance=screen.advance)
                if found := starting.references(simulation, folder, cache=cache, pool=pool, advance=screen.advance):
                    simulation = simulation.filtering_by(found)
        one_thread()  # as in the workers: what is done in this process from here on gives the same numbers as there
        if classifier is not None:
            from simulation.radiomics import recipe

            begin = (start, start_path) if "unet" in classifier.masks else None
            record = recipe.study(
                simulation, classifier, sites, begin, folder, cache=cache, meter=meter, pool=pool, screen=screen
            )
            return _finish(record, folder, meter, pool, clinical.classified(record, folder))
        world = World(sites, held_out, real, start, start_path)
        arms = _arms(simulation, world, folder)
        _remove_stale(simulation, world, folder, screen)
        with meter.phase("federation"):
            for arm in arms:
                if arm.name.startswith("federation"):
                    _federate(simulation, arm, world, pool, screen)
        with meter.phase("comparisons"):
            apart = [arm for arm in arms if not arm.name.startswith("federation")]
            for done, _ in enumerate(unordered(pool, train_by_itself, [(arm, world.start_path) for arm in apart]), start=1):
                screen.advance("comparisons: pooled, alone", done, len(apart))
        with meter.phase("scores"):
            score_models(simulation, arms, world, folder, pool, screen)
        with meter.phase("model and pictures"):
            final = final_arm(arms)
            export_model(simulation, final, folder)
            save_pictures(simulation, final, world, folder)
        if draws_scans(simulation.task) and (folder / "model.pt").exists():
            with meter.phase("gate"):
                look = partial(screen.advance, "gate")
                gate.measure(simulation, final.state(), start, list(sites.values()), folder, pool=pool, advance=look)
        with meter.phase("test patients"):
            if simulation.clinical:
                look = partial(screen.advance, "test patients")
                measured = clinical.measure(simulation, folder, final.study.hash, world.roles, pool=pool, advance=look)
            else:
                measured = clinical.collect(simulation, folder, final.study.hash, world.roles)
        if simulation.uncertainty:
            with meter.phase("uncertainty"):
                how_sure(simulation, folder, world.roles, cache=cache, pool=pool, screen=screen)
        return _finish(study_record(simulation, arms, world, folder, meter), folder, meter, pool, measured)


def _counting(simulation: Simulation) -> Callable[..., Record] | None:
    """The study in which hospitals count and no model is trained; None for any other."""
    if simulation.reference is not None:
        from simulation.reference_values import recipe as reference_values

        return partial(reference_values.study, simulation, simulation.reference)
    if simulation.intensity_scale is not None:
        from simulation.intensity_scale import recipe as intensity_scale

        return partial(intensity_scale.study, simulation, simulation.intensity_scale)
    return None


def how_sure(
    simulation: Simulation,
    folder: Path,
    roles: Iterable[tuple[str, Hospital]],
    *,
    cache: Path,
    pool: Executor,
    screen: Screen,
) -> None:
    """Measure how sure the model is of its test patients. Where it can't be, as of answers that are no numbers, say why."""
    try:
        tested = uncertainty.examinees(roles)
        uncertainty.measure(simulation, folder, tested, cache=cache, pool=pool, advance=screen.advance)
    except ValueError as error:
        screen.note(f"how sure the model is was not measured: {error}")


def _finish(record: Record, folder: Path, meter: Meter, pool: Executor, measured: Measured) -> Outcome:
    """Write the record and both reports, side by side, and say on the screen what came of it."""
    record.write(folder / "record.json")
    measured.write(folder / measured_file)
    beside = pool.submit(report.write, folder)
    write_report(folder)
    beside.result()
    meter.finish()
    print("\n".join(summary_lines(folder)))
    return record.verdict


# -- before anything is learned ---------------------------------------------------------------------------------------


def open_hospitals(
    simulation: Simulation, cache: Path, pool: Executor, screen: Screen
) -> tuple[dict[str, Hospital], dict[str, Hospital], dict[str, Hospital]]:
    """The hospitals that learn, those held out, and real ones that are only tested, as far as their folders are there."""
    settings = simulation.hospitals
    if isinstance(settings, GeneratedHospitals):
        every = settings.sites | settings.held_out
        drawn = {}
        for index, (name, profile) in enumerate(every.items()):
            advance = screen.part("hospitals", index, len(every), name)
            drawn[name] = hospitals_module.drawn(name, index, profile, settings, cache=cache, pool=pool, advance=advance)
        sites = {name: drawn[name] for name in settings.sites}
        held_out = {name: drawn[name] for name in settings.held_out}
    elif isinstance(settings, TableHospitals):
        sites, held_out = tables.listed(settings, cache=cache, advance=screen.part("hospitals", 0, 1, ""))
    else:
        sites, held_out = hospitals_module.dealt(settings, cache=cache, advance=screen.part("hospitals", 0, 1, ""))
    real = {}
    if simulation.real is not None:
        if Path(simulation.real.folder).is_dir():
            real[simulation.real.name] = hospitals_module.real(simulation.real, cache=cache)
        else:
            screen.note(f"no real patients: there is no folder {simulation.real.folder}")
    return sites, held_out, real


def with_synthetic(hospital: Hospital, folder: str | None) -> Hospital:
    """The hospital with the cases of this folder beside its patients. Raises `NotTaken` for cases that a hospital refuses."""
    if folder is None:
        return hospital
    given = replace(hospital, synthetic=Path(folder).resolve())
    with tempfile.TemporaryDirectory() as place:
        try:
            given.settle(Path(place), budget=Budget(epsilon=1.0, delta=1e-3), private=True, noise_seed=0)
        except ValueError as error:
            raise NotTaken(f"synthetic.{hospital.name}: {error}") from None
    return given


def _arms(simulation: Simulation, world: World, folder: Path) -> list[Arm]:
    """Every training there is to do, the private federation of the first seed first."""
    initial = fingerprint(world.start)
    everyone = [name for name, hospital in world.sites.items() if hospital.training_patients]

    def arm(name: str, seed: int, hospitals: Mapping[str, Hospital], *, private: bool) -> Arm:
        study = simulation.study(seed=seed, private=private, sites=tuple(hospitals), initial=initial)
        faults = simulation.faults if name.startswith("federation") else NO_FAULTS
        return Arm(name, study, hospitals, folder / "arms" / name / str(seed), faults)

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


def _remove_stale(simulation: Simulation, world: World, folder: Path, screen: Screen) -> None:
    """Remove arms of other settings, patients or code, and what was made of them.

    Arms that these settings would give again stay, even if this run doesn't ask for them: further seeds, other comparisons.
    """
    found = {path.parent for path in (folder / "arms").rglob("record.json")}
    names = tuple(name for name in get_args(ArmName) if name != "pooled" or (folder / "arms" / "pooled").exists())
    kept = set()
    for seed in {int(place.name) for place in found if place.name.isdecimal()}:
        whole = simulation.model_copy(update={"arms": names, "seed": seed, "repeats": 1})
        kept |= {arm.folder for arm in _arms(whole, world, folder) if arm.finished}
    stale = found - kept
    finished = sum((place / "finished").exists() for place in stale)  # an arm that was interrupted is nobody's loss
    for place in stale:
        shutil.rmtree(place)
        (place.parent / f"metrics-{place.name}.jsonl").unlink(missing_ok=True)
    if finished:
        remove_results(folder)
        screen.note(f"{finished} trained arms in {folder} are of other settings, patients or code: they are removed")


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
            tested = {h.name: (h.cohort_folder, h.test_patients) for role, h in world.roles if role != "real"}
            rows = score_hospitals(pool, simulation.task, [state], tested, full=False)
            means = {name: mean_scores(list(scores.values())) for name, scores in rows.items()}
        for name in {**answers.sites, **means}:
            site = answers.sites.get(name)
            entry = {"arm": arm.name, "seed": arm.study.seed, "round": number, "hospital": name, **means.get(name, {})}
            write_line(lines, {**entry, "epsilon": site.epsilon if site else None, "time_s": answers.seconds})
        bar(answers, means)

    train(arm, world.start_path, look, pool=pool, engine=simulation.engine)
