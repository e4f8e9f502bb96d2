"""The gate asked of a rehearsed generator: may what it draws be used, and leave? (`tasks.synthesis.gate`, docs/synthesis.md.)

The rehearsal owns every hospital, so it can ask what a hospital can ask of its own patients alone: those whom the generator
learned from, the test patients, and patients whom it draws for free anatomy in the hospitals' styles. `gate.json` in the run's
folder holds the answers in words, for the report and for whoever draws from the run (`simulation.synthetic`).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np

from fl_client.cohort import Cohort
from fl_server.weights import State
from simulation.gated import FILE
from simulation.hospital import Hospital
from simulation.machine import unordered
from simulation.scoring import restore, score_hospitals
from simulation.settings import Simulation
from simulation.synthetic import free_case, told_of
from simulation.whole_file import write_whole
from tasks.case import Case
from tasks.synthesis import SynthesisTask
from tasks.synthesis.gate import FEWEST, gate
from tasks.synthesis.measures import counts
from tasks.synthesis.seen import Floats, Seen, seen, seen_as_drawn
from tasks.task import load

MOST = 80
"""Patients on each side, and drawn, at most: features of one take a second or two."""

Chosen = dict[str, tuple[Path, list[str]]]


def measure(
    simulation: Simulation,
    model: State,
    start: State,
    sites: Sequence[Hospital],
    folder: Path,
    *,
    pool: Executor,
    advance: Callable[[int, int], None],
) -> None:
    """Ask the gate of the model of a run, and write `gate.json` into its folder.

    Nothing is drawn where too few patients were held back for any answer. `advance` hears of patients done and in all.
    """
    task = load(simulation.task)
    if not isinstance(task, SynthesisTask):
        raise TypeError(f"task {simulation.task['name']} draws nothing that a gate could be asked of")
    training = _evenly({site.name: (site.cohort_folder, site.training_patients) for site in sites})
    held_out = _evenly({site.name: (site.cohort_folder, site.test_patients) for site in sites})
    others = sum(len(patients) for _, patients in held_out.values())
    wanted = others if others >= FEWEST else 0
    styles = [told_of(site.cohort.case(site.training_patients[0]).scanner) for site in sites if site.training_patients]
    patients = [*_each(training), *_each(held_out)]
    drawing = [(simulation.task, model, number, styles[number % len(styles)]) for number in range(wanted)]
    real: dict[tuple[Path, str], Seen] = {}
    for who, looks in unordered(pool, _seen, [(simulation.task, *one) for one in patients]):
        real[who] = looks
        advance(len(real), len(patients) + wanted)
    drawn: dict[int, tuple[Seen, Case, Case]] = {}
    for number, looks, asked, made in unordered(pool, _drawn, drawing):
        drawn[number] = looks, asked, made
        advance(len(real) + len(drawn), len(patients) + wanted)
    told = ["manufacturer", "sex", *task.settings.conditions]
    verdict = gate(
        [real[one] for one in _each(training)],
        [real[one] for one in _each(held_out)],
        [drawn[number][0] for number in range(wanted)],
        scores=_explained(simulation, model, training, held_out, pool),
        start_scores=_explained(simulation, start, training, held_out, pool),
        wanted=counts([asked for _, asked, _ in drawn.values()], told),
        made=counts([made for _, _, made in drawn.values()], told),
    )
    findings = [{"question": one.question, "passed": one.passed, "words": one.words} for one in verdict.findings]
    write_whole(folder / FILE, json.dumps({"passed": verdict.passed, "findings": findings}, indent=1))


def draws_scans(settings: Mapping[str, Any]) -> bool:
    """Whether the task of these settings is a generator."""
    return isinstance(load(settings), SynthesisTask)


def _evenly(groups: dict[str, tuple[Path, Sequence[str]]]) -> Chosen:
    """At most `MOST` patients of all hospitals together, as many from each as from the others as far as it has them.

    Of more hospitals than that one patient each, of the first `MOST`.
    """
    share = max(1, MOST // max(len(groups), 1))
    return {name: (place, list(patients[:share])) for name, (place, patients) in list(groups.items())[:MOST]}


def _each(chosen: Chosen) -> list[tuple[Path, str]]:
    return [(place, patient) for place, patients in chosen.values() for patient in patients]


def _explained(
    simulation: Simulation, state: State, training: Chosen, held_out: Chosen, pool: Executor
) -> tuple[Floats, Floats]:
    """The score that is attacked, of those trained on and of those held back."""

    def of(chosen: Chosen) -> Floats:
        found = score_hospitals(pool, simulation.task, [state], chosen, full=False)
        return np.array([scores["explained"] for each in found.values() for scores in each.values()], np.float64)

    return of(training), of(held_out)


def _seen(settings: dict[str, Any], place: Path, patient: str) -> tuple[tuple[Path, str], Seen]:
    task = load(settings)
    assert isinstance(task, SynthesisTask)  # asked above
    return (place, patient), seen(Cohort(place).case(patient), task.settings)


def _drawn(settings: dict[str, Any], state: State, number: int, style: dict[str, Any]) -> tuple[int, Seen, Case, Case]:
    """One patient of nobody, drawn by the model: looks and features, and the case as asked for and as made, without images."""
    task = load(settings)
    assert isinstance(task, SynthesisTask)
    case = free_case(number, task.settings.series, style)
    made = task.synthetic(restore(task, [state]), case, np.random.default_rng([number, 11]))
    asked, without_images = (dataclasses.replace(one, volumes=()) for one in (case, made))
    return number, seen_as_drawn(made, task.settings), asked, without_images
