"""What a hospital gains from synthetic cases of a subgroup that it hardly has: Dice of the subgroup, and of all others.

    .venv/bin/python benchmarks/subgroup.py                           # an hour on one core; what is done is kept
    .venv/bin/python benchmarks/subgroup.py --only alone --diseases hcm dcm amyloid --arms none real --seeds 0   # who suffers?

`alone`: one hospital (`subgroup_data`) has 2 patients of the disease beside 38 others, darkened as no free patient is. The
small U-Net of size=small takes 200 steps of six patients, from random weights (`nothing`) or from the start that has seen free
patients of every disease (`pretrained`), whatever was added: 20 free patients of the disease as they are drawn; in the
hospital's protocol and the intensities that six hospitals have released under epsilon 1 (`matched`; `few`: 5 of them); in its
protocol and as a generator draws them that these six have taught under the same promise (`redrawn`); 20 free patients of the
other diseases; the 2, ten times more; or 20 more real ones.

`federation`: the six hospitals of benchmarks/utility.py under epsilon 8 at delta 1e-3 with one noise for all, 16 rounds of one
step, 10 patients of each under a quarter of the noise standing for 40 (`simulation.trial`). None of the 10 has the disease. To
them come 5 free patients of the disease, as they are drawn, matched to each hospital or redrawn for it, or 5 real ones.
`lacking`: the start has seen 48 free patients of the other diseases; `pretrained` as above.

Dice is the mean over blood pool and myocardium of held-out patients. Differences to the arm with nothing added are paired by
patient, over the mean of the seeds; the interval holds 95 of 100 bootstrap samples of patients. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import numpy.typing as npt
import subgroup_data as whom
import torch
from generator import darkened, fitted
from kept_results import keep
from utility import PRIVATE, Arm, study_of
from utility_data import HEARTS, MEAN, PARTS, generated_names, prepare, simulation_of, start

from fl_client.cohort import Cohort
from fl_server.weights import State
from simulation.machine import executor, one_thread
from simulation.pretraining import CASE_MIX
from simulation.scoring import restore
from simulation.trial import Place, federate
from tasks.case import Case
from tasks.task import GradientTask, gradient_task
from tasks.weights import save

PART = {"alone": ("nothing", "pretrained"), "federation": ("lacking", "pretrained")}
"""What is asked, and from which weights training begins."""
ARMS = {
    "alone": ("none", "synthetic", "matched", "few", "redrawn", "others", "repeated", "real"),
    "federation": ("none", "synthetic", "matched", "redrawn", "real"),
}
EPSILON, DRAWN, DECLARED, ADDED, TESTED = 8.0, 10, 40, 5, 4
"""Of the federation: patients at hand for those declared, cases added to them, test patients of each side at each hospital."""
AMONG = 200
"""Patients of each of its hospitals among whom those with the disease are looked for."""
STRUCTURES = (*MEAN["hearts"], "right_ventricle")
SAMPLES = 10_000  # of the bootstrap


class Run(NamedTuple):
    """One training."""

    part: str
    disease: str
    start: str
    arm: str
    seed: int

    @property
    def file(self) -> str:
        """Name of its result."""
        return f"{'-'.join(map(str, self))}.json"


Found = dict[str, dict[str, dict[str, float]]]  # subgroup or others, patient, structure: Dice


def main() -> int:
    """Run what is missing; the last line is one JSON object."""
    options = _options()
    if "federation" in options.only:
        with executor(options.workers) as pool:
            prepare(options.cache, "hearts", drawn=AMONG, pool=pool)
    one_thread()
    logging.disable(logging.INFO)
    runs = [
        Run(part, disease, begin, arm, seed)
        for part in options.only
        for disease in options.diseases
        for seed in options.seeds
        for begin in PART[part]
        if begin in options.starts
        for arm in ARMS[part]
        if arm in options.arms
    ]
    for run in runs:
        path = options.cache / "subgroup" / "results" / run.file
        if not path.exists():
            began = time.process_time()
            found = {"alone": alone, "federation": federation}[run.part](options.cache, run)
            keep(path, {"dice": found, "cpu_s": round(time.process_time() - began, 1)})
        print(f"{' '.join(map(str, run))}: {_line(_read(path))}", file=sys.stderr, flush=True)
    print(json.dumps(table(options.cache, runs)))
    return 0


def alone(cache: Path, run: Run) -> Found:
    """One hospital trains a network by itself, without privacy."""
    task = gradient_task(simulation_of("hearts").task)
    cohort = whom.hospital(cache, run.disease)
    others, theirs = whom.train_of(run.disease)
    few = theirs[: whom.FEW]
    real: dict[str, list[str]] = {"repeated": few * (whom.ADDED // whom.FEW), "real": theirs[whom.FEW :]}
    made: dict[str, Callable[[], list[Case]]] = {
        "synthetic": lambda: whom.free(cache, {run.disease: 1.0}, whom.ADDED),
        "matched": lambda: whom.matched(cache, {run.disease: 1.0}, whom.ADDED),
        "few": lambda: made["matched"]()[:ADDED],
        "others": lambda: whom.free(cache, {one: share for one, share in CASE_MIX.items() if one != run.disease}, whom.ADDED),
        "redrawn": lambda: whom.redrawn(cache, {run.disease: 1.0}, whom.ADDED),
    }
    cases = [cohort.case(name) for name in (*others, *few, *real.get(run.arm, []))]
    cases += made[run.arm]() if run.arm in made else []
    begin = start(cache, "hearts") if run.start == "pretrained" else None
    model = fitted(task, [task.prepare(case) for case in cases], seed=run.seed, start=begin)
    asked = dict(zip(("others", "subgroup"), whom.test_of(run.disease), strict=True))
    return {side: {name: dice(task, model, cohort.case(name)) for name in names} for side, names in asked.items()}


def federation(cache: Path, run: Run) -> Found:
    """Six hospitals train together under privacy; none of the patients at hand has the disease, but for those added."""
    study = study_of(Arm(**PRIVATE, epsilon=EPSILON, patients=DECLARED, drawn=DRAWN, seed=run.seed))
    task = gradient_task(study.task)
    places, tested = {}, Found()
    for number, site in enumerate(HEARTS):
        has, training, test = _people(cache, site, run.disease)
        cases = [darkened(has.case(name)) for name in training["others"]]
        if run.arm == "real":
            cases += [darkened(has.case(name)) for name in training["subgroup"]]
        wanted = len(training["subgroup"])  # as many as there are real ones to add
        if run.arm == "synthetic":
            cases += whom.free(cache, {run.disease: 1.0}, ADDED * len(HEARTS))[ADDED * number :][:wanted]
        if run.arm in ("matched", "redrawn"):
            as_here = {"matched": whom.matched, "redrawn": whom.redrawn}[run.arm]
            cases += as_here(cache, {run.disease: 1.0}, wanted, at=site, first=ADDED * number)
        places[site] = Place(task, {case.patient: task.prepare(case) for case in cases}, DRAWN)
        for side, names in test.items():
            tested.setdefault(side, {}).update({name: {} for name in names})
    state = federate(
        study,
        places,
        _lacking(cache, task, run.disease) if run.start == "lacking" else start(cache, "hearts"),
        noise=np.random.default_rng([run.seed, 1]),
        sampling=lambda site, number, _: np.random.default_rng([run.seed, 2, HEARTS.index(site), number]),
        noise_share=DRAWN / DECLARED,
    )
    model = restore(task, [state])
    for site in HEARTS:
        has, _, test = _people(cache, site, run.disease)
        for side, names in test.items():
            tested[side] |= {name: dice(task, model, darkened(has.case(name))) for name in names}
    return tested


def _people(cache: Path, site: str, disease: str) -> tuple[Cohort, dict[str, list[str]], dict[str, list[str]]]:
    """A hospital's cohort, and who of it is trained on and tested, on either side; test patients of the disease come first."""
    cohort = Cohort(cache / "hospitals" / site)
    training, test = generated_names(site, drawn=AMONG, tested=8)
    ill = {name: cohort.case(name).endpoints["disease"] == disease for name in (*training, *test)}
    theirs = [name for name in (*test, *training) if ill[name]]
    others = {
        "train": [name for name in training if not ill[name]],
        "test": [name for name in test if not ill[name]],
    }
    return (
        cohort,
        {"others": others["train"][:DRAWN], "subgroup": theirs[TESTED:][:ADDED]},
        {"others": others["test"][:TESTED], "subgroup": theirs[:TESTED]},
    )


def _lacking(cache: Path, task: GradientTask, disease: str) -> State:
    """A start that has seen free patients of every other disease; kept."""
    path = cache / "subgroup" / f"lacking-{disease}.pt"
    if path.exists():
        return dict(torch.load(path, weights_only=True))
    cases = whom.free(cache, {one: share for one, share in CASE_MIX.items() if one != disease}, 48)
    state = fitted(task, [task.prepare(case) for case in cases], seed=0).state_dict()
    save(state, path)
    return dict(state)


def dice(task: GradientTask, model: torch.nn.Module, case: Case) -> dict[str, float]:
    """Of one patient, by structure."""
    scores = task.score(model, case, full=False)
    return {part: float(scores[f"dice/{part}"]) for part in PARTS["hearts"]}


def table(cache: Path, runs: Sequence[Run]) -> dict[str, Any]:
    """Of every arm: Dice of both sides with its spread over the seeds, and what it gains on the arm with nothing added."""
    kept: dict[tuple[str, str, str, str], list[Found]] = {}
    for run in runs:
        kept.setdefault(run[:4], []).append(_read(cache / "subgroup" / "results" / run.file))
    rows = {}
    for (part, disease, begin, arm), found in kept.items():
        base = kept.get((part, disease, begin, "none"))
        row = {side: side_of(found, base if arm != "none" else None, side) for side in ("subgroup", "others")}
        rows[f"{part} {disease} {begin} {arm}"] = {**row, "seeds": len(found)}
    return rows


def side_of(found: Sequence[Found], base: Sequence[Found] | None, side: str) -> dict[str, Any]:
    """Dice of one side: mean and spread over seeds, by structure, and the paired gain over `base` with its interval."""
    here = _values(found, side)  # (seeds, patients, structures)
    mean = here[:, :, : len(MEAN["hearts"])].mean(2)  # (seeds, patients)
    row: dict[str, Any] = {"dice": _round(mean.mean()), "patients": mean.shape[1]}
    if len(found) > 1:
        row["sd"] = _round(mean.mean(1).std(ddof=1))
    row |= {name: _round(value) for name, value in zip(STRUCTURES, here.mean((0, 1)), strict=True)}
    if base is not None and len(base) == len(found):
        before = _values(base, side)
        every = np.concatenate([before[:, :, : len(MEAN["hearts"])].mean(2, keepdims=True), before], 2)
        gains = (np.concatenate([mean[:, :, None], here], 2) - every).mean(0)  # (patients, 1 + structures)
        row["by_seed"] = [_round(value) for value in (mean - every[:, :, 0]).mean(1)]
        row |= {f"gain_{name}": interval(gain) for name, gain in zip(("dice", *STRUCTURES), gains.T, strict=True)}
    return row


def interval(values: npt.NDArray[np.float64]) -> list[float]:
    """Mean of the patients' values, and the 2.5th and 97.5th percentile of the means of bootstrap samples of patients."""
    rng = np.random.default_rng(0)
    means = values[rng.integers(0, len(values), (SAMPLES, len(values)))].mean(1)
    return [_round(value) for value in (values.mean(), *np.percentile(means, (2.5, 97.5)))]


def _values(found: Sequence[Found], side: str) -> npt.NDArray[np.float64]:
    names = sorted(found[0][side])
    return np.array([[[one[side][name][part] for part in STRUCTURES] for name in names] for one in found])


def _read(path: Path) -> Found:
    found: Found = json.loads(path.read_text())["dice"]
    return found


def _round(value: float | np.floating[Any]) -> float:
    return round(float(value), 4)


def _line(found: Found) -> str:
    rows = {side: side_of([found], None, side) for side in ("subgroup", "others")}
    return ", ".join(f"{side} {row['dice']:.3f} ({row['patients']})" for side, row in rows.items())


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path("runs/utility"), help="where patients and results are kept")
    parser.add_argument("--only", nargs="*", choices=list(PART), default=list(PART))
    parser.add_argument("--diseases", nargs="*", choices=whom.DISEASES[3:], default=["dcm"])
    parser.add_argument("--starts", nargs="*", choices=["nothing", "lacking", "pretrained"], default=["nothing", "lacking"])
    parser.add_argument("--arms", nargs="*", choices=list(ARMS["alone"]), default=list(ARMS["alone"]))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=0, help="processes that draw patients (0: this one)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
