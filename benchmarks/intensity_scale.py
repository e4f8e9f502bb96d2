"""What drawn patients teach as bright as the hospitals' own: by a noisy sum of landmarks, or by a learned generator.

    .venv/bin/python benchmarks/intensity_scale.py --seeds 0      # a quarter of an hour on one core
    .venv/bin/python benchmarks/intensity_scale.py                # three seeds; what is done is kept

Six generated hospitals of 40 patients (as in benchmarks/utility.py), whose images are raised to the power of 2.5, which no free
patient's are, release an intensity scale (conf/task/intensity_scale.yaml) under epsilon 1 at delta 1e-3, one noise for all; and
without noise, to compare. Or they teach a generator their tone under the same promise, and it draws the free patients anew
(benchmarks/generator.py). The small U-Net then learns from random weights, 200 equal steps, from 48 free patients as they are
drawn, in the scale or by the generator, from the hospitals' 240, and from both. From the three that are not the hospitals' own
the six train on, privately, norms and head, 16 rounds of one step: under epsilon 3, or under what is left of it where the scale
or the generator has cost 1 (Gaussian noises, so that their mu add up as squares). Ten patients of each under a quarter of the
noise stand for 40 (`simulation.trial`). Dice is the mean over blood pool and myocardium of eight test patients at each. Seeds
are of noise and training, not of patients. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import generator
import numpy as np
import torch
from generator import DRAWN, PATIENTS, PRETRAINING, darkened, dice, fitted
from kept_results import keep, told
from utility import PRIVATE, Arm, study_of
from utility_data import people, prepare, simulation_of

from fl_server.weights import State
from simulation import pretraining
from simulation.__main__ import settings_of
from simulation.machine import executor, one_thread
from simulation.scoring import restore
from simulation.trial import Place, federate
from tasks.accounting.budget import calibrate
from tasks.accounting.gaussian import epsilon_at, mu_at
from tasks.case import Case
from tasks.intensity_scale.released import IntensityScale, intensity_scale
from tasks.intensity_scale.task import IntensityTask
from tasks.provenance import Provenance
from tasks.task import Arrays, GradientTask, gradient_task, load

EPSILON, WHOLE, DELTA = 1.0, 3.0, 1e-3
"""Of the scale; of scale and study together."""
AT_HAND = 10
ARMS = (
    *("drawn", "scale", "exact scale", "generator", "real", "real and drawn", "real and scale"),
    *("study from drawn", "study from scale", "study from generator"),
)


@dataclass(frozen=True)
class World:
    """Everybody, read once."""

    task: GradientTask
    scales: IntensityTask
    training: dict[str, list[Case]]
    tested: dict[str, list[Case]]
    free: list[Case]


def main() -> int:
    """Run what is missing; the last line is one JSON object."""
    options = _options()
    there = world(options.cache)
    kept: dict[str, list[list[float]]] = {}
    for seed in options.seeds:
        for arm in options.arms:
            kept.setdefault(arm, []).append(found := scores(there, options.cache, arm, seed))
            print(f"{arm}, seed {seed}: {np.mean(found):.3f}", file=sys.stderr, flush=True)
    result: dict[str, Any] = {"epsilon": EPSILON, "epsilon_left": round(left(), 3), "seeds": len(options.seeds)}
    for arm, rows in kept.items():
        result[arm] = {"dice": round(float(np.mean(rows)), 4), "by_seed": [round(float(np.mean(row)), 4) for row in rows]}
        if len(rows) > 1:
            result[arm]["sd"] = round(float(np.std([np.mean(row) for row in rows], ddof=1)), 4)
    print(json.dumps(result))
    return 0


def world(cache: Path) -> World:
    """The hospitals' patients and the free ones, from the cache as far as they are there."""
    with executor(0) as here:
        prepare(cache, "hearts", drawn=PATIENTS, pool=here)
        free = pretraining.free_cohort(PRETRAINING, ("cine_ed", "cine_es"), cache=cache, pool=here, advance=told)
    one_thread()
    everybody = people(cache, "hearts", drawn=PATIENTS, tested=8)
    return World(
        task=gradient_task(simulation_of("hearts").task),
        scales=counting(),
        training={site: [darkened(one.cohort.case(name)) for name in one.train] for site, one in everybody.items()},
        tested={site: [darkened(one.cohort.case(name)) for name in one.test] for site, one in everybody.items()},
        free=[free.case(name) for name in pretraining.free_patients(PRETRAINING)[:DRAWN]],
    )


def counting() -> IntensityTask:
    """The task of conf/study/intensity_scale.yaml."""
    asked = settings_of(["study=intensity_scale"]).intensity_scale
    scales = load(asked.task) if asked else None
    if not isinstance(scales, IntensityTask):
        raise TypeError("study=intensity_scale counts another task now")
    return scales


def scores(there: World, cache: Path, arm: str, seed: int) -> list[float]:
    """Dice of each test patient. Kept in a file."""
    path = cache / "intensity_scale" / f"{arm.replace(' ', '_')}-{seed}.json"
    if path.exists():
        kept: list[float] = json.loads(path.read_text())
        return kept
    begin, _, source = arm.rpartition(" from ")
    if begin:
        start = learned(there, cache, source, seed).state_dict()
        model = studied(there, start, WHOLE if source == "drawn" else left(), seed)
    else:
        model = learned(there, cache, arm, seed)
    found = dice(there.task, model, there.tested)
    keep(path, found)
    return found


def learned(there: World, cache: Path, source: str, seed: int) -> torch.nn.Module:
    """The small U-Net, from random weights."""
    cases: list[Case] = []
    if source.startswith("real"):
        cases += [case for cohort in there.training.values() for case in cohort]
    if source.endswith("drawn"):
        cases += there.free
    if source.endswith("scale"):
        scale = released(there.scales, there.training, None if source.startswith("exact") else EPSILON, seed)
        cases += [scale.worn_by(case) for case in there.free]
    if source == "generator":
        cases += by_generator(cache, seed)
    return fitted(there.task, prepared(there.task, cases), seed=seed)


@functools.cache
def by_generator(cache: Path, seed: int) -> list[Case]:
    """The free patients as the generator draws them that has cost what a scale costs."""
    state = generator.taught(cache, "tone", epsilon=EPSILON, seed=seed)
    return generator.redrawn(generator.world(cache, "tone"), state, seed=seed)[0]


def left() -> float:
    """Epsilon of a study that is the whole together with the scale, or with the generator."""
    return epsilon_at(DELTA, mu=(mu_at(WHOLE, DELTA) ** 2 - mu_at(EPSILON, DELTA) ** 2) ** 0.5)


def prepared(task: GradientTask, cases: Sequence[Case]) -> list[Arrays]:
    """What the network sees of them."""
    return [task.prepare(case) for case in cases]


def released(task: IntensityTask, training: Mapping[str, Sequence[Case]], epsilon: float | None, seed: int) -> IntensityScale:
    """The scale as the study's sum would leave it: one noise for all hospitals."""
    everybody = [case for cases in training.values() for case in cases]
    state = noisy_sum(task, everybody, epsilon, np.random.default_rng([seed, 3]))
    provenance = Provenance(
        study="intensity_scale",
        study_hash="0" * 64,
        hospitals=tuple(training),
        epsilon=epsilon,
        delta=DELTA if epsilon else None,
        one_noise=True,
    )
    return intensity_scale(task, state, provenance)


def noisy_sum(
    task: IntensityTask, cases: Sequence[Case], epsilon: float | None, rng: np.random.Generator, *, share: float = 1.0
) -> State:
    """What a counting study of these patients leaves, with this share of the noise of one release; None: without noise."""
    total = np.sum([task.contribution(task.prepare(case)) for case in cases], axis=0)
    sigma = share * calibrate(epsilon=epsilon, delta=DELTA, sample_rate=1.0, steps=1) if epsilon else 0.0
    noise = sigma * rng.standard_normal(len(total))
    return {"total": torch.from_numpy(total + noise), "noise_variance": torch.tensor([sigma**2], dtype=torch.float64)}


def studied(there: World, start: State, epsilon: float, seed: int) -> torch.nn.Module:
    """The model of the six hospitals' private study."""
    study = study_of(Arm(**PRIVATE, epsilon=epsilon, patients=PATIENTS, drawn=AT_HAND, seed=seed))
    task = gradient_task(study.task)
    places = {
        site: Place(task, {case.patient: task.prepare(case) for case in cases[:AT_HAND]}, AT_HAND)
        for site, cases in there.training.items()
    }
    names = list(places)
    state = federate(
        study,
        places,
        start,
        noise=np.random.default_rng([seed, 1]),
        sampling=lambda site, number, _: np.random.default_rng([seed, 2, names.index(site), number]),
        noise_share=AT_HAND / PATIENTS,
    )
    return restore(task, [state])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path("runs/utility"), help="where patients and results are kept")
    parser.add_argument("--arms", nargs="*", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
