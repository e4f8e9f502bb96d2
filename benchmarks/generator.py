"""What a generator learned under privacy is good for: its scans train the next network, and what they tell of the patients.

    .venv/bin/python benchmarks/generator.py --seeds 0        # most of an hour on one core; what is done is kept
    .venv/bin/python benchmarks/generator.py                  # three seeds

Six generated hospitals of 40 patients (as in benchmarks/utility.py), whose images are raised to the power of 2.5, which no free
patient's are. A generator (conf/task/synthesis.yaml) is pre-trained on 48 free patients, then learned together in rounds of
one step under epsilon 3 at delta 1e-3 (one noise for all), or without privacy. It then draws those 48 free patients anew. The
small U-Net of size=small is trained from random weights for equally many steps on: the free patients as they were drawn; as the
generator drew them; the hospitals' patients; and both. Dice is the mean over blood pool and myocardium of eight test patients
at each of the six. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from kept_results import keep, told
from utility_data import MEAN, people, prepare, simulation_of, sites_of

from conf.study import LocalTraining, Privacy, Strategy, Study
from fl_server.weights import State
from simulation import pretraining
from simulation.__main__ import settings_of
from simulation.machine import executor, one_thread
from simulation.scoring import mean_scores, restore
from simulation.settings import MaskedSums, Pretraining
from simulation.trial import Place, federate
from tasks.case import Case, Volume
from tasks.synthesis import SynthesisTask
from tasks.synthesis.gate import gate
from tasks.synthesis.seen import seen, seen_as_drawn
from tasks.task import Arrays, GradientTask, gradient_task, load
from tasks.weights import save

POWER = 2.5
PATIENTS = 40
PRETRAINING = Pretraining(
    patients=144, steps=4000, batch_patients=6, views=2, learning_rate=1e-3, ema_decay=0.998, oversampling=1, subslices=2
)
DRAWN = 48
"""Of those free patients, so many are drawn anew."""
ROUNDS, VIEWS = 16, 2
RATES = {"tone": 0.05, "norm": 0.02, "all": 0.003}
CLIPS = {"tone": 0.01, "norm": 0.3, "all": 0.3}
"""About the norm of a patient's gradient on drawn patients: six numbers have a small one."""
STEPS, BATCH = 200, 6
"""Of the small U-Net that is trained on each set of patients, as size=small pre-trains."""


def darkened(case: Case) -> Case:
    """A patient as the hospitals' scanners show them: from the 1st to the 99th percentile, raised to a power."""

    def response(volume: Volume) -> Volume:
        low, high = np.percentile(volume.image, (1, 99))
        there = np.clip((volume.image - low) / (high - low), 0, None).astype(np.float32)
        return dataclasses.replace(volume, image=there**POWER)

    return dataclasses.replace(case, volumes=tuple(map(response, case.volumes)))


def learned(there: World, *, epsilon: float | None, seed: int) -> State:
    """The generator after the rounds of one federation."""
    rate, clip = RATES[there.settings["trainable"]], CLIPS[there.settings["trainable"]]
    privacy = Privacy(kind="none")
    if epsilon is not None:
        privacy = Privacy(epsilon=epsilon, delta=1e-3, max_grad_norm=clip, secure=MaskedSums().among(sites_of("hearts")))
    study = Study(
        name="generator",
        konsil_version=version("konsil"),
        task=there.settings,
        rounds=ROUNDS,
        sites=sites_of("hearts"),
        privacy=privacy,
        training=LocalTraining(steps=1, sample_rate=1.0, views=VIEWS, learning_rate=1.0),
        strategy=Strategy(name="fedadam", server_learning_rate=rate, server_schedule="cosine", ema_decay=0.9),
    )
    places = {
        site: Place(there.task, {case.patient: there.task.prepare(case) for case in cases}, len(cases))
        for site, cases in there.training.items()
    }
    sites = list(places)
    return federate(
        study,
        places,
        there.start,
        noise=np.random.default_rng([seed, 1]),
        sampling=lambda site, number, _: np.random.default_rng([seed, 2, sites.index(site), number]),
    )


def taught(cache: Path, trainable: str, *, epsilon: float, seed: int) -> State:
    """The same; kept in a file."""
    path = cache / "generators" / f"{trainable}-{epsilon:g}-{seed}.pt"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        save(learned(world(cache, trainable), epsilon=epsilon, seed=seed), path)
    return dict(torch.load(path, weights_only=True))


def redrawn(there: World, state: State, *, seed: int) -> tuple[list[Case], float]:
    """The free patients as the generator draws them, each in the style of a hospital, and CPU seconds of a volume."""
    model = restore(there.task, [state])
    styles = [cases[0].scanner for cases in there.training.values()]
    began = time.process_time()
    made = []
    for number, case in enumerate(there.free):
        styled = dataclasses.replace(case, scanner=styles[number % len(styles)])
        made.append(there.task.synthetic(model, styled, np.random.default_rng([seed, number])))
    return made, (time.process_time() - began) / sum(len(case.volumes) for case in made)


def fitted(task: GradientTask, patients: Sequence[Arrays], *, seed: int, start: State | None = None) -> torch.nn.Module:
    """A network from these weights, or random ones, after `STEPS` steps on these patients."""
    torch.manual_seed(seed)
    model = task.model()
    if start is not None:
        model.load_state_dict(start)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for step in range(STEPS):
        rng = np.random.default_rng([seed, 5, step])
        chosen = rng.choice(len(patients), BATCH, replace=False)
        rows = [task.example(patients[i], 4, rng) for i in chosen]
        image, target = (torch.cat(part) for part in zip(*rows, strict=True))
        loss = task.loss(model(image), target).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        schedule.step()
    return model.eval()


def dice(task: GradientTask, model: torch.nn.Module, tested: Mapping[str, Sequence[Case]]) -> list[float]:
    """Mean over both structures, of each test patient."""
    scores = [mean_scores([task.score(model, case, full=False)]) for cases in tested.values() for case in cases]
    return [float(np.mean([one[f"dice/{part}"] for part in MEAN["hearts"]])) for one in scores]


@dataclasses.dataclass(frozen=True)
class World:
    """Everybody, read once."""

    settings: dict[str, Any]  # of the generator
    task: SynthesisTask
    segmentation: GradientTask
    training: dict[str, list[Case]]
    tested: dict[str, list[Case]]
    free: list[Case]
    start: State  # of the generator
    train_s: float  # of its pre-training, None if it was kept


def drawing(trainable: str) -> tuple[dict[str, Any], SynthesisTask]:
    """The task of conf/study/synthesis.yaml with these parameters moving: its settings, and itself."""
    settings = {**settings_of(["study=synthesis"]).task, "trainable": trainable}
    task = load(settings)
    if not isinstance(task, SynthesisTask):
        raise TypeError("study=synthesis learns another task now")
    return settings, task


@functools.cache
def world(cache: Path, trainable: str) -> World:
    """The hospitals' patients, the free ones, and the pre-trained generator, from the cache as far as they are there."""
    settings, task = drawing(trainable)
    begin = time.process_time()
    with executor(0) as here:
        prepare(cache, "hearts", drawn=PATIENTS, pool=here)
        series = ("cine_ed", "cine_es")
        start = pretraining.pretrain(settings, PRETRAINING, series, cache=cache, pool=here, advance=told)
        free = pretraining.free_cohort(PRETRAINING, series, cache=cache, pool=here, advance=told)
    train_s = time.process_time() - begin
    one_thread()
    everybody = people(cache, "hearts", drawn=PATIENTS, tested=8)
    return World(
        settings=settings,
        task=task,
        segmentation=gradient_task(simulation_of("hearts").task),
        training={site: [darkened(one.cohort.case(name)) for name in one.train] for site, one in everybody.items()},
        tested={site: [darkened(one.cohort.case(name)) for name in one.test] for site, one in everybody.items()},
        free=[free.case(name) for name in pretraining.free_patients(PRETRAINING)[:DRAWN]],
        start=start,
        train_s=train_s,
    )


def arm(cache: Path, trainable: str, name: str, seed: int, *, epsilon: float | None, federated: bool) -> dict[str, Any]:
    """One generator: learned, asked to draw, judged by what is learned from its scans and by the gate. Kept in a file."""
    path = cache / "generators" / f"{name.replace(' ', '_')}-{trainable}-{seed}.json"
    if path.exists():
        kept: dict[str, Any] = json.loads(path.read_text())
        return kept
    there = world(cache, trainable)
    begin = time.process_time()
    state = learned(there, epsilon=epsilon, seed=seed) if federated else there.start
    train_s = time.process_time() - begin
    drawn, sample_s = redrawn(there, state, seed=seed)
    prepare_one = there.segmentation.prepare
    made = [prepare_one(case) for case in drawn]
    real = [prepare_one(case) for cases in there.training.values() for case in cases]
    network = partial(fitted, there.segmentation, seed=seed)
    found = {
        "tstr_dice": dice(there.segmentation, network(made), there.tested),
        "real_plus_synthetic_dice": dice(there.segmentation, network(real + made), there.tested),
    }
    result = {
        **{key: float(np.mean(values)) for key, values in found.items()},
        "by_patient": found["tstr_dice"],
        "tone": state["tone.learned"].tolist(),
        "train_s": train_s,
        "sample_s": sample_s,
        **judged(there, state, drawn),
    }
    keep(path, result)
    return result


def judged(there: World, state: State, drawn: Sequence[Case]) -> dict[str, Any]:
    """What the gate says of these scans, but of their use, which stands beside it."""
    task, settings = there.task, there.task.settings
    training = [case for cases in there.training.values() for case in cases]
    held_out = [case for cases in there.tested.values() for case in cases]
    few = training[:: max(1, len(training) // len(held_out))][: len(held_out)]  # as many of them, from every hospital

    def explained(weights: State) -> tuple[list[float], list[float]]:
        model = restore(task, [weights])
        each = [[task.score(model, case, full=False)["explained"] for case in cases] for cases in (few, held_out)]
        return each[0], each[1]

    verdict = gate(
        [seen(case, settings) for case in few],
        [seen(case, settings) for case in held_out],
        [seen_as_drawn(case, settings) for case in drawn],
        scores=explained(state),
        start_scores=explained(there.start),
        wanted={},
        made={},
    )
    membership, neighbours, realism = (
        dataclasses.asdict(one.figures) if dataclasses.is_dataclass(one.figures) else None
        for one in (verdict.membership, verdict.neighbours, verdict.realism)
    )
    words = {question: getattr(verdict, question).words for question in ("realism", "neighbours", "membership")}
    return {"membership": membership, "neighbours": neighbours, "realism": realism, "words": words}


def bare(cache: Path, trainable: str, seed: int) -> dict[str, float]:
    """Dice of who learns from the free patients as they were drawn, and from the hospitals' own. Kept in a file."""
    path = cache / "generators" / f"bare-{seed}.json"
    if path.exists():
        kept: dict[str, float] = json.loads(path.read_text())
        return kept
    there = world(cache, trainable)
    task = there.segmentation
    sets = {"drawn_dice": there.free, "real_dice": [case for cases in there.training.values() for case in cases]}
    found = {
        name: float(np.mean(dice(task, fitted(task, [task.prepare(case) for case in cases], seed=seed), there.tested)))
        for name, cases in sets.items()
    }
    keep(path, found)
    return found


ARMS: dict[str, dict[str, Any]] = {
    "start": {"epsilon": None, "federated": False},
    "private": {"epsilon": 3.0, "federated": True},
    "no privacy": {"epsilon": None, "federated": True},
}


def main() -> int:
    """Run what is missing; the last line is one JSON object."""
    options = _options()
    table: dict[str, list[dict[str, Any]]] = {}
    for seed in options.seeds:
        for name in options.arms:
            table.setdefault(name, []).append(arm(options.cache, options.trainable, name, seed, **ARMS[name]))
            print(f"{name}, seed {seed}: {_line(table[name][-1])}", file=sys.stderr, flush=True)
        table.setdefault("none", []).append(bare(options.cache, options.trainable, seed))
    result: dict[str, Any] = {"seeds": len(options.seeds), "trainable": options.trainable}
    for name, rows in table.items():
        numbers = {key for key, value in rows[0].items() if isinstance(value, float)}
        result[name] = {key: round(float(np.mean([row[key] for row in rows])), 4) for key in sorted(numbers)}
        result[name] |= {
            f"{key}_sd": round(float(np.std([row[key] for row in rows], ddof=1)), 4) for key in sorted(numbers) if len(rows) > 1
        }
        for question in ("membership", "neighbours", "realism"):
            if question in rows[0]:
                result[name][question] = rows[0][question]
    shown = next((name for name in ("private", *options.arms) if name in table), None)
    if shown is not None:
        result |= headline(result[shown], result["none"], ARMS[shown]["epsilon"])
    print(json.dumps(result))
    return 0


def headline(made: Mapping[str, Any], none: Mapping[str, Any], epsilon: float | None) -> dict[str, Any]:
    """The figures of one arm by their usual names; distances and attack are of the first seed, None if they can't be told."""
    realism, membership = made["realism"] or {}, made["membership"] or {}
    own, control = membership.get("auc"), membership.get("start")
    return {
        **{key: made[key] for key in ("train_s", "sample_s", "tstr_dice", "real_plus_synthetic_dice")},
        "real_dice": none["real_dice"],
        "frechet_radiomics_distance": realism.get("distance"),
        "split_half_distance": realism.get("null_median"),
        "membership_auc": own and own["value"],
        "membership_auc_control": control and control["value"],
        "epsilon": epsilon,
    }


def _line(row: Mapping[str, Any]) -> str:
    figures = ", ".join(f"{key} {value:.3f}" for key, value in row.items() if isinstance(value, float))
    return "\n  ".join([figures, *row["words"].values()])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path("runs/utility"), help="where patients and results are kept")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--arms", nargs="*", choices=list(ARMS), default=list(ARMS))
    parser.add_argument(
        "--trainable", choices=list(RATES), default="tone", help="parameters of the generator that hospitals move"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
