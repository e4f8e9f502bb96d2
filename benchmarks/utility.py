"""What privacy costs in Dice: epsilon none, 8, 3, 1, by patients per hospital, with one noise for all hospitals or one each.

    .venv/bin/python benchmarks/utility.py                                # an hour on two cores; what is done is kept
    .venv/bin/python benchmarks/utility.py --only table --patients 40 --epsilons none 3 --seeds 0
    .venv/bin/python benchmarks/utility.py --only check                   # all 40 patients, nothing scaled
    .venv/bin/python benchmarks/utility.py --only levers                  # other ways to learn, one change at a time
    KONSIL_DATA=... .venv/bin/python benchmarks/utility.py --only hippocampus   # real images, in 3D

Six generated hospitals (conf/hospitals/five_scanners.yaml, the held-out one with them) and the small network of size=small,
pre-trained on the 48 free patients of that size. Every hospital's scanner darkens: the images are raised to the power of 2.5,
which pre-training has not seen, for otherwise it leaves next to nothing to be learned. Rounds are one step over all patients
(`simulation.trial`: the product's sums, noise and steps). Each arm of `table` and `levers` takes the gradients of 10 patients
at each hospital, under the noise that the declared number needs: fewer patients than declared stand for all of them. `check`
and `own` do not. Dice is the mean over blood pool and myocardium, then 4 (`check`, `own`: 8) test patients, then hospitals.

`hippocampus` has the crops of hospitals=hippocampus, pre-trained on generated brains, at four hospitals: all of their patients
(there are no more, whatever an arm declares), and the mean of both parts. Seeds are of the noise and the views. The last line
is one JSON object.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import logging
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from kept_results import keep
from utility_data import MEAN, PARTS, Data, free_patients, people, prepare, simulation_of, sites_of, start

from conf.study import Frozen, LocalTraining, Privacy, Strategy, Study
from fl_server.plan.utility import Row
from fl_server.references import References
from simulation.machine import executor, one_thread
from simulation.scoring import mean_scores, restore
from simulation.settings import MaskedSums
from simulation.trial import Place, Response, federate
from tasks.fingerprint import fingerprint
from tasks.task import gradient_task

MADE = 1
"""Part of every kept result's name: raise it when the same settings would give other numbers."""


class Arm(Frozen):
    """One federation: what it promises, and how it learns."""

    epsilon: float | None = 3.0  # None: no privacy, no clipping
    secure: bool = True
    patients: int = 40  # that each hospital declares
    drawn: int | None = 10  # of whom so many are at hand; None: all
    tested: int = 4
    seed: int = 0
    trainable: str = "norm"
    bound: float = 0.3
    rounds: int = 16  # 0: the start
    views: int = 2
    strategy: dict[str, float | str]
    response: str = "dark"
    data: Data = "hearts"

    @property
    def file(self) -> str:
        """Name of its result."""
        settings = self.model_dump(mode="json")
        if self.data == "hearts":
            del settings["data"]  # what was found before there were others
        text = json.dumps([MADE, settings], sort_keys=True)
        return f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"


def adam(rate: float, **more: float | str) -> dict[str, float | str]:
    """The product's way: a step each, averaged, then Adam at the coordinator."""
    return {"name": "fedadam", "server_learning_rate": rate, "server_schedule": "cosine", "ema_decay": 0.9, **more}


PRIVATE: dict[str, Any] = {"trainable": "norm", "strategy": adam(0.02)}
ALL: dict[str, Any] = {"trainable": "all", "strategy": adam(0.003)}
FILTERED: dict[str, Any] = {
    "trainable": "all",
    "strategy": {
        "name": "fedwiener",
        "server_learning_rate": 0.15,
        "server_momentum": 0.9,
        "server_schedule": "cosine",
        "ema_decay": 0.9,
    },
}
"""Noise taken out of the mean by what generated patients' gradients look like (`fl_server.wiener`)."""
PLAIN: dict[str, Any] = {"epsilon": None, "secure": False, "trainable": "all", "strategy": adam(0.003)}


def table(patients: Sequence[int], epsilons: Sequence[float | None], seeds: Sequence[int]) -> Iterator[tuple[str, Arm]]:
    """Every promise, hospital size and kind of noise; without privacy the declared size moves nothing."""
    for seed in seeds:
        if None in epsilons:
            yield "start", Arm(**PRIVATE, rounds=0, seed=0)
            yield "no privacy", Arm(**PLAIN, seed=seed)
            yield "no privacy, the same parameters", Arm(**{**PLAIN, **PRIVATE}, seed=seed)
        for epsilon in (epsilon for epsilon in epsilons if epsilon is not None):
            for number in patients:
                for secure in (True, False):
                    kind = "one noise" if secure else "noise each"
                    label = f"epsilon {epsilon:g}, {number} patients, {kind}"
                    yield label, Arm(**PRIVATE, epsilon=epsilon, patients=number, secure=secure, seed=seed)


def check(seeds: Sequence[int]) -> Iterator[tuple[str, Arm]]:
    """The goal's setting with all of its patients: 40 at each of six hospitals, epsilon 3, delta 1e-3."""
    whole: dict[str, Any] = {"drawn": None, "tested": 8}
    for seed in seeds:
        yield "start", Arm(**PRIVATE, **whole, rounds=0, seed=0)
        yield "no privacy", Arm(**PLAIN, **whole, seed=seed)
        yield "one noise, all parameters", Arm(**{**PRIVATE, **ALL}, **whole, seed=seed)
        for secure in (True, False):
            kind = "one noise" if secure else "noise each"
            yield f"{kind}, norms and head", Arm(**PRIVATE, **whole, secure=secure, seed=seed)
            yield f"{kind}, all parameters, filtered", Arm(**FILTERED, **whole, secure=secure, seed=seed)


def own(patients: Sequence[int], epsilons: Sequence[float | None], seeds: Sequence[int]) -> Iterator[tuple[str, Arm]]:
    """Every promise and hospital size with the hospitals' own patients, both kinds of noise, two ways to learn."""
    ways = {"norms and head": PRIVATE, "all, filtered": FILTERED}
    for seed in seeds:
        for epsilon in (epsilon for epsilon in epsilons if epsilon is not None):
            for number in patients:
                for secure in (True, False):
                    for way, settings in ways.items():
                        label = f"epsilon {epsilon:g}, {number} patients, {'one noise' if secure else 'noise each'}, {way}"
                        whole: dict[str, Any] = {"patients": number, "drawn": None, "tested": 8}
                        yield label, Arm(**settings, **whole, epsilon=epsilon, secure=secure, seed=seed)


def hippocampus(epsilons: Sequence[float | None], seeds: Sequence[int]) -> Iterator[tuple[str, Arm]]:
    """Real images: everybody at four hospitals, eight rounds."""
    real: dict[str, Any] = {"data": "hippocampus", "drawn": None, "patients": 100, "tested": 8, "rounds": 8, "response": ""}
    for seed in seeds:
        yield "start", Arm(**PRIVATE, **{**real, "rounds": 0}, seed=0)
        yield "no privacy", Arm(**PLAIN, **real, seed=seed)
        for epsilon in (epsilon for epsilon in epsilons if epsilon is not None):
            for secure in (True, False):
                kind = f"epsilon {epsilon:g}, {'one noise' if secure else 'noise each'}"
                yield f"{kind}, norms and head", Arm(**PRIVATE, **real, epsilon=epsilon, secure=secure, seed=seed)
                yield f"{kind}, all, filtered", Arm(**FILTERED, **real, epsilon=epsilon, secure=secure, seed=seed)


def levers(seeds: Sequence[int]) -> Iterator[tuple[str, Arm]]:
    """Epsilon 3, 40 patients; what is not named is as in the table."""
    changes: dict[str, dict[str, Any]] = {
        "as in the table": {},
        "server_learning_rate 0.003 (size=small)": {"strategy": adam(0.003)},
        "server_learning_rate 0.01": {"strategy": adam(0.01)},
        "server_learning_rate 0.03": {"strategy": adam(0.03)},
        "constant server_learning_rate": {"strategy": adam(0.02, server_schedule="constant")},
        "no mean over rounds": {"strategy": adam(0.02, ema_decay=0.0)},
        "8 rounds": {"rounds": 8},
        "32 rounds, 0.01": {"rounds": 32, "strategy": adam(0.01)},
        "max_grad_norm 0.03: all clipped": {"bound": 0.03},
        "max_grad_norm 1": {"bound": 1.0},
        "momentum instead of Adam": {
            "strategy": {"name": "fedavgm", "server_learning_rate": 0.3, "server_momentum": 0.9, "ema_decay": 0.9}
        },
        "head alone, 0.03": {"trainable": "head", "strategy": adam(0.03)},
        "decoder, 0.003": {"trainable": "decoder", "strategy": adam(0.003)},
        "all parameters, 0.003": ALL,
        "all parameters, filtered": FILTERED,
        "norms and head, filtered": {**FILTERED, "trainable": "norm"},
    }
    for seed in seeds:
        for secure in (True, False):
            for label, change in changes.items():
                yield (
                    f"{label}; {'one noise' if secure else 'noise each'}",
                    Arm(**{**PRIVATE, **change}, secure=secure, seed=seed),
                )


def main() -> int:
    """Run what is missing; the last line is one JSON object."""
    options = _options()
    jobs: dict[str, list[tuple[str, Arm]]] = {
        "table": list(table(options.patients, options.epsilons, options.seeds)),
        "check": list(check(options.seeds)),
        "own": list(own(options.patients, options.epsilons, options.seeds)),
        "levers": list(levers(options.seeds)),
        "hippocampus": list(hippocampus(options.epsilons, options.seeds)),
    }
    chosen = {part: arms for part, arms in jobs.items() if part in options.only}
    arms = {arm.file: arm for part in chosen.values() for _, arm in part}
    began = time.monotonic()
    with executor(options.workers) as pool:
        for data in sorted({arm.data for arm in arms.values()}):
            drawn = max(arm.drawn or arm.patients for arm in arms.values() if arm.data == data)
            prepare(options.cache, data, drawn=drawn, pool=pool)
        missing = [arm for name, arm in arms.items() if not (options.cache / "arms" / name).exists()]
        for done, future in enumerate(as_completed([pool.submit(learn, options.cache, arm) for arm in missing]), 1):
            print(f"{done} of {len(missing)}: Dice {future.result():.4f}", file=sys.stderr, flush=True)
    found = {part: _gathered(options.cache, listed) for part, listed in chosen.items()}
    for part, rows in found.items():
        names = MEAN[chosen[part][0][1].data]
        print(f"\n{part:60s} seeds  Dice ± sd        {'  '.join(names)}")
        for label, row in rows.items():
            told = f"{row['dice']:.3f} ± {row['sd']:.3f}   {'       '.join(f'{row[name]:.3f}' for name in names)}"
            print(f"{label:60s} {row['seeds']:5d}  {told}")
    if options.csv is not None:
        _write_csv(options.csv, options.cache, arms.values())
    print(json.dumps({**found, "run_s": round(time.monotonic() - began, 1)}))
    return 0


def learn(cache: Path, arm: Arm) -> float:
    """Federate once, score, and keep the result. Returns mean Dice."""
    one_thread()
    logging.disable(logging.INFO)
    began = time.process_time()
    study = study_of(arm)
    task = gradient_task(study.task)
    response: Response | None = {"dark": dark, "": None}[arm.response]
    everybody = people(cache, arm.data, drawn=arm.drawn or arm.patients, tested=arm.tested)
    state = start(cache, arm.data)
    if arm.rounds:
        places = {
            site: Place(task, {name: one.cohort.prepared(task, name) for name in one.train}, len(one.train), response)
            for site, one in everybody.items()
        }
        gradients = None
        if study.strategy.name == "fedwiener":
            free = free_patients(cache, arm.data)
            named = study.strategy.model_copy(update={"references_sha256": fingerprint(free)})
            study = study.model_copy(update={"strategy": named})
            gradients = References(study, free, state).gradients
        sites = list(places)
        state = federate(
            study,
            places,
            state,
            noise=np.random.default_rng([arm.seed, 1]),
            sampling=lambda site, number, _: np.random.default_rng([arm.seed, 2, sites.index(site), number]),
            noise_share=1.0 if arm.drawn is None else arm.drawn / arm.patients,
            gradients=gradients,
        )
    model = Seen(restore(task, [state]), response).eval()
    scores = [
        mean_scores([task.score(model, one.cohort.case(name), full=False) for name in one.test]) for one in everybody.values()
    ]
    dice = {part: float(np.mean([one[f"dice/{part}"] for one in scores])) for part in PARTS[arm.data]}
    mean = float(np.mean([dice[part] for part in MEAN[arm.data]]))
    result = {"arm": arm.model_dump(mode="json"), "dice": mean, **dice}
    place = cache / "arms" / arm.file
    keep(place, {**result, "cpu_s": round(time.process_time() - began, 1)})
    return mean


class Seen(torch.nn.Module):
    """A model that looks at images as the hospital's scanner makes them."""

    def __init__(self, model: torch.nn.Module, response: Response | None) -> None:
        super().__init__()
        self.model, self.response = model, response

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """What it answers to the image after the response."""
        answer: torch.Tensor = self.model(image if self.response is None else self.response(image))
        return answer


def dark(image: torch.Tensor) -> torch.Tensor:
    """What all hospitals' scanners do and no free patient's does."""
    return image.clamp(min=0) ** 2.5


def study_of(arm: Arm) -> Study:
    """The study that an arm is."""
    simulation, sites = simulation_of(arm.data), sites_of(arm.data)
    privacy = Privacy(kind="none")
    if arm.epsilon is not None:
        patients = {} if arm.data == "hearts" else {"patients": 40 * len(sites)}
        secure = MaskedSums(**patients).among(sites) if arm.secure else None
        privacy = Privacy(epsilon=arm.epsilon, delta=1e-3, max_grad_norm=arm.bound, secure=secure)
    return Study(
        name="utility",
        konsil_version=version("konsil"),
        task={**simulation.task, "trainable": arm.trainable},
        rounds=max(1, arm.rounds),
        sites=sites,
        privacy=privacy,
        training=LocalTraining(steps=1, sample_rate=1.0, views=arm.views, learning_rate=1.0),
        strategy=Strategy.model_validate(arm.strategy),
    )


def _gathered(cache: Path, listed: Sequence[tuple[str, Arm]]) -> dict[str, dict[str, float]]:
    """Mean and standard deviation over the seeds of each label."""
    kept: dict[str, dict[int, dict[str, float]]] = {}
    for label, arm in listed:
        kept.setdefault(label, {})[arm.seed] = json.loads((cache / "arms" / arm.file).read_text())
    found = {}
    for label, by_seed in kept.items():
        values = [one["dice"] for one in by_seed.values()]
        parts = ("dice", *PARTS[listed[0][1].data])
        mean = {part: round(float(np.mean([one[part] for one in by_seed.values()])), 4) for part in parts}
        spread = round(float(np.std(values, ddof=1)), 4) if len(values) > 1 else 0.0
        found[label] = {**mean, "sd": spread, "seeds": len(values)}
    return found


SOURCE: Mapping[Data, str] = {
    "hearts": "generated hospitals with darkened images (docs/privacy.md)",
    "hippocampus": "real T1 crops of the hippocampus in 3D, pre-trained on generated brains (docs/privacy.md)",
}


def _write_csv(path: Path, cache: Path, arms: Iterable[Arm]) -> None:
    """What `konsil-study plan` reads: a line for every private setting that took the gradients of all of its patients."""
    dice: dict[tuple[Data, str, str, float, int, bool], list[float]] = {}
    without: dict[Data, list[float]] = {}
    for arm in arms:
        if arm.drawn is not None or not arm.rounds:
            continue
        reached = json.loads((cache / "arms" / arm.file).read_text())["dice"]
        if arm.epsilon is None:
            without.setdefault(arm.data, []).append(reached)
            continue
        there = [len(one.train) for one in people(cache, arm.data, drawn=arm.patients, tested=arm.tested).values()]
        setting = (arm.data, str(arm.strategy["name"]), arm.trainable, arm.epsilon, round(float(np.mean(there))), arm.secure)
        dice.setdefault(setting, []).append(reached)
    with path.open("w", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(Row._fields)
        for (data, strategy, trainable, epsilon, patients, secure), found in sorted(dice.items(), reverse=True):
            spread = f"{np.std(found, ddof=1):.4f}" if len(found) > 1 else ""
            none = f"{np.mean(without[data]):.4f}" if data in without else ""
            structures, shared = "+".join(PARTS[data]), "yes" if secure else "no"
            numbers = (f"{np.mean(found):.4f}", spread, len(found), none)
            sites = len(sites_of(data))
            lines.writerow([structures, strategy, trainable, f"{epsilon:g}", patients, sites, shared, *numbers, SOURCE[data]])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path("runs/utility"), help="where patients and results are kept")
    parser.add_argument(
        "--only",
        nargs="*",
        choices=("table", "check", "own", "levers", "hippocampus"),
        default=["table"],
        help="default: table",
    )
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--patients", nargs="*", type=_patients, default=[20, 40, 200], help="that each hospital declares")
    parser.add_argument("--epsilons", nargs="*", type=_epsilon, default=[None, 8.0, 3.0, 1.0], help="none, or numbers")
    parser.add_argument("--csv", type=Path, help="write what `konsil-study plan` reads (fl_server/plan/utility.csv)")
    parser.add_argument("--workers", type=int, default=2, help="processes (2); the numbers don't depend on it")
    return parser.parse_args()


def _epsilon(text: str) -> float | None:
    if text != "none" and not 0 < float(text) < math.inf:
        raise argparse.ArgumentTypeError(f"an epsilon is none or a positive number, not {text}")
    return None if text == "none" else float(text)


def _patients(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"a hospital declares at least one patient, not {text}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
