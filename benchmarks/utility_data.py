"""Who learns in benchmarks/utility.py: six generated hospitals, or four with real hippocampus images; and where they begin."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from fl_client.cohort import Cohort
from fl_server.weights import State
from simulation import hospital as hospitals_module
from simulation import pretraining
from simulation.__main__ import settings_of
from simulation.free import references
from simulation.hospital_case import patient_case
from simulation.machine import executor, one_thread, unordered
from simulation.settings import FolderHospitals, GeneratedHospitals, Simulation
from tasks.task import gradient_task
from tasks.weights import save

Data = Literal["hearts", "hippocampus"]
PARTS: Mapping[Data, tuple[str, ...]] = {
    "hearts": ("blood_pool", "myocardium", "right_ventricle"),
    "hippocampus": ("anterior", "posterior"),
}
MEAN: Mapping[Data, tuple[str, ...]] = {"hearts": ("blood_pool", "myocardium"), "hippocampus": ("anterior", "posterior")}
"""Structures of which the benchmark's one number is the mean."""

HEARTS = ("alster", "isar", "donau", "spree", "rhein", "limmat")
FIRST, BETWEEN, TESTED_FROM = 1_000_000, 10_000, 5_000
"""Seeds of generated patients: FIRST + BETWEEN times the hospital; test patients begin TESTED_FROM later."""

_SETTINGS: Mapping[Data, list[str]] = {
    "hearts": ["size=small", "arms=[federation_private]"],
    "hippocampus": ["hospitals=hippocampus", "arms=[federation_private]"],
}


@dataclass(frozen=True)
class People:
    """A hospital's patients: who is trained on, and who is tested."""

    cohort: Cohort
    train: Sequence[str]
    test: Sequence[str]


def simulation_of(data: Data) -> Simulation:
    """The rehearsal whose task, pre-training and hospitals these are."""
    return settings_of(_SETTINGS[data])


def sites_of(data: Data) -> tuple[str, ...]:
    """Names of the hospitals."""
    return HEARTS if data == "hearts" else tuple(simulation_of(data).hospitals.sites)


def people(cache: Path, data: Data, *, drawn: int, tested: int) -> dict[str, People]:
    """Of every hospital; real ones have as many as there are, at most `drawn` and `tested`."""
    if data == "hearts":
        return {
            site: People(Cohort(cache / "hospitals" / site), *generated_names(site, drawn=drawn, tested=tested))
            for site in HEARTS
        }
    settings = simulation_of(data).hospitals
    if not isinstance(settings, FolderHospitals):
        raise TypeError("hospitals=hippocampus has no folders any more; this benchmark is about those")
    dealt, _ = hospitals_module.dealt(settings, cache=cache / data, advance=lambda *_: None)
    return {name: People(one.cohort, one.training_patients[:drawn], one.test_patients[:tested]) for name, one in dealt.items()}


def generated_names(site: str, *, drawn: int, tested: int) -> tuple[list[str], list[str]]:
    """Pseudonyms of a generated hospital's training and test patients."""
    first = FIRST + BETWEEN * HEARTS.index(site)
    return [f"G{first + n:08d}" for n in range(drawn)], [f"G{first + TESTED_FROM + n:08d}" for n in range(tested)]


def prepare(cache: Path, data: Data, *, drawn: int, pool: Executor) -> None:
    """Draw the patients that are not there yet, let in the real ones, and pre-train once."""
    if data == "hearts":
        jobs = []
        for site in HEARTS:
            there = set(Cohort(cache / "hospitals" / site).patients)
            names = generated_names(site, drawn=drawn, tested=8)
            jobs += [(cache, site, one) for part in names for one in part if one not in there]
        for done, _ in enumerate(unordered(pool, _draw, jobs), 1):
            print(f"patient {done} of {len(jobs)}", file=sys.stderr, end="\r", flush=True)
    else:
        people(cache, data, drawn=drawn, tested=8)
    start(cache, data)
    free_patients(cache, data)


def start(cache: Path, data: Data) -> State:
    """The weights of round 1: of pre-training on free generated patients."""
    return _kept(cache / f"start-{data}.pt", data, cache, pretraining.pretrain)


def free_patients(cache: Path, data: Data) -> State:
    """Some of the same patients, as a coordinator takes them along to filter noise by."""
    return _kept(cache / f"references-{data}.pt", data, cache, references)


def _kept(path: Path, data: Data, cache: Path, make: Callable[..., State]) -> State:
    simulation = simulation_of(data)
    if not path.exists() and simulation.pretraining is not None:
        with executor(0) as here:
            state = make(
                simulation.task,
                simulation.pretraining,
                simulation.hospitals.series,
                cache=cache,
                pool=here,
                advance=lambda what, done, of: print(f"{what} {done} of {of}", file=sys.stderr, end="\r", flush=True),
            )
        save(state, path)
        one_thread()
    return dict(torch.load(path, weights_only=True))


def _draw(cache: Path, site: str, patient: str) -> None:
    simulation = simulation_of("hearts")
    every = simulation.hospitals
    if not isinstance(every, GeneratedHospitals):
        raise TypeError("size=small has no generated hospitals any more; this benchmark is about those")
    profile = (every.sites | every.held_out)[site]
    case = patient_case(
        int(patient[1:]),
        scanner=profile.scanner,
        reader=profile.reader,
        case_mix=profile.case_mix,
        series=every.series,
        oversampling=every.oversampling,
        subslices=every.subslices,
    )
    cohort = Cohort(cache / "hospitals" / site)
    cohort.admit(case)
    cohort.prepared(gradient_task(simulation.task), patient)
