"""What helps when: every strategy over the generated hospitals, in the conditions that they are made for.

    .venv/bin/python benchmarks/strategies.py --cache runs/cache          # about ten minutes on two cores
    .venv/bin/python benchmarks/strategies.py --only drift --rounds 4

The hospitals, their patients and the small network are those of the small rehearsal (conf/size/small.yaml), but training begins
with random weights, so that what a strategy does can be seen. Conditions:

    alike      one step of each hospital per round: plain federated descent, no drift
    drift      ten steps per round: a tenth of the meetings for the same work
    liar       as drift, and one of the five hospitals sends its update with the sign turned
    unequal    as drift, but one hospital manages one step of the ten
    private    one step per round, epsilon 8 for every patient, from a start that was trained on drawn patients

Dice is the mean over blood pool and myocardium of each hospital's test patients, then over hospitals; `worst` is the lowest
hospital's. One seed: differences below 0.02 mean nothing. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import as_completed
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Context, Message
from flwr.clientapp import ClientApp

from conf.study import LocalTraining, Privacy, Strategy, Study
from fl_client import app as hospital_app
from fl_client import personal
from fl_client.packed import packed_mod
from fl_client.site import Budget, Site
from fl_server.rounds import run
from fl_server.weights import State, initial_state
from simulation import hospital as hospitals
from simulation import pretraining
from simulation.__main__ import settings_of
from simulation.grid import InProcessGrid
from simulation.hospital import Hospital
from simulation.machine import executor, one_thread
from simulation.scoring import mean_scores, score_patient
from simulation.settings import GeneratedHospitals
from tasks.task import gradient_task

SITES = ("alster", "isar", "donau", "spree", "rhein")
LIAR = "donau"

VARIANTS: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "fedprox": {"strategy": {"name": "fedprox", "proximal_mu": 0.1}},
    "fedavgm": {"strategy": {"name": "fedavgm", "server_momentum": 0.7}},
    "fedadam": {"strategy": {"name": "fedadam", "server_learning_rate": 0.01, "server_tau": 1e-3}},
    "fedmedian": {"strategy": {"name": "fedmedian", "quorum": 3}},
    "fedtrimmed": {"strategy": {"name": "fedtrimmed", "trim": 0.2, "quorum": 5}},
    "krum": {"strategy": {"name": "krum", "malicious": 1, "quorum": 5}},
    "own norm layers (FedBN)": {"training": {"personal": None}},
}
CONDITIONS: dict[str, tuple[str, ...]] = {
    "alike": ("fedavg", "fedavgm", "fedadam", "own norm layers (FedBN)"),
    "drift": tuple(VARIANTS),
    "liar": ("fedavg", "fedmedian", "fedtrimmed", "krum"),
    "unequal": ("fedavg", "steps not corrected"),
    "private": ("fedavg", "fedavgm", "fedadam"),
}
LEARNING_RATE = 0.1


def main() -> int:
    """Run the conditions; the last line is one JSON object."""
    options = _options()
    simulation = settings_of(["size=small", "arms=[federation_plain]"])
    every, start = simulation.hospitals, simulation.pretraining
    if not isinstance(every, GeneratedHospitals) or start is None:
        raise RuntimeError("size=small has no generated hospitals any more; this benchmark is about those")
    began = time.monotonic()
    with executor(None) as pool:
        made = {
            name: hospitals.drawn(
                name, SITES.index(name), every.sites[name], every, cache=options.cache, pool=pool, advance=lambda *given: None
            )
            for name in SITES
        }
        trained = pretraining.pretrain(
            simulation.task, start, every.series, cache=options.cache, pool=pool, advance=lambda *given: None
        )
        found: dict[str, dict[str, dict[str, float]]] = {name: {} for name in options.only or CONDITIONS}
        jobs = {
            pool.submit(_learn, condition, variant, simulation.task, made, trained, options.rounds): (condition, variant)
            for condition in found
            for variant in CONDITIONS[condition]
        }
        for done in as_completed(jobs):
            condition, variant = jobs[done]
            found[condition][variant] = scores = done.result()
            told = f"{condition:9s} {variant:24s} dice {scores['dice']:.3f}  worst {scores['worst']:.3f}"
            print(f"{told}  {scores['seconds']:.0f} s", file=sys.stderr)
    print(json.dumps({"rounds": options.rounds, "conditions": found, "run_s": round(time.monotonic() - began, 1)}))
    return 0


def _learn(
    condition: str, variant: str, settings: Mapping[str, Any], made: Mapping[str, Hospital], trained: State, rounds: int
) -> dict[str, float]:
    """Federate once, and score the result at every hospital, with the hospital's own layers where it has some."""
    one_thread()
    logging.getLogger("flwr").setLevel(logging.WARNING)
    logging.getLogger("konsil").setLevel(logging.ERROR)
    began = time.monotonic()
    private = condition == "private"
    steps = 1 if condition in ("alike", "private") else 10
    task = {**settings, "trainable": "norm" if private else "all"}
    changed = VARIANTS.get(variant, {})
    strategy = dict(changed.get("strategy", {}))
    if private and variant == "fedadam":
        strategy["server_learning_rate"] = 0.003
    study = Study(
        name="strategies",
        konsil_version=version("konsil"),
        task=task,
        rounds=8 if private else rounds * (10 if steps == 1 else 1),
        sites=SITES,
        privacy=Privacy() if private else Privacy(kind="none"),
        training=LocalTraining(
            steps=steps,
            sample_rate=1.0 if private else 0.5,
            views=2,
            learning_rate=LEARNING_RATE,
            work_s=3600.0 if condition == "unequal" and variant == "fedavg" else None,
            personal=_norms(task) if changed.get("training") else (),
        ),
        strategy=Strategy(**strategy),
    )
    with tempfile.TemporaryDirectory() as folder:
        budget = Budget(epsilon=study.privacy.epsilon, delta=study.privacy.delta)
        sites = {
            name: hospital.settle(Path(folder) / name, budget=budget, private=private, noise_seed=index)
            for index, (name, hospital) in enumerate(made.items())
        }
        app = _app(condition)
        grid = InProcessGrid(app, [{"site": str(path)} for path in sites.values()], {"study": study.to_json()})
        state, record = run(grid, study, trained if private else initial_state(study), folder=Path(folder) / "run")
        if record.verdict != "complete":
            raise RuntimeError(f"{condition}, {variant}: {record.verdict}, {record.reasons[:3]}")
        dice = {}
        for name, hospital in made.items():
            worn = personal.worn(Site.load(sites[name]), study, state)
            rows = [score_patient(dict(task), [worn], hospital.cohort_folder, one, False)[1] for one in hospital.test_patients]
            means = mean_scores(rows)
            dice[name] = float(np.mean([means.get(f"dice/{part}", math.nan) for part in ("blood_pool", "myocardium")]))
    mean, worst = float(np.mean(list(dice.values()))), min(dice.values())
    return {"dice": round(mean, 4), "worst": round(worst, 4), "seconds": round(time.monotonic() - began, 1)}


def _app(condition: str) -> ClientApp:
    """The hospitals' app; one of them lies, or is slow, where the condition says so."""
    app = ClientApp(mods=[packed_mod])
    app.query("enroll")(hospital_app.enroll)

    @app.train()
    def train(question: Message, context: Context) -> Message:
        slow = condition == "unequal" and Site.load(str(context.node_config["site"])).name == LIAR
        with patch.object(hospital_app, "steps_of", lambda *given: 1) if slow else nullcontext():
            answer = hospital_app.train(question, context)
        if condition == "liar" and Site.load(str(context.node_config["site"])).name == LIAR:
            (sent,), (key, arrays) = question.content.array_records.values(), next(iter(answer.content.array_records.items()))
            turned = {name: 2 * sent[name].numpy() - array.numpy() for name, array in arrays.items()}
            answer.content[key] = ArrayRecord({name: Array(values) for name, values in turned.items()})
        return answer

    return app


def _norms(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the network's norm parameters."""
    model = gradient_task(settings).model()
    kinds = (torch.nn.GroupNorm, torch.nn.InstanceNorm2d)
    return tuple(f"{name}.*" for name, module in model.named_modules() if isinstance(module, kinds))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"), help="where drawn hospitals are kept (runs/cache)")
    parser.add_argument("--rounds", type=int, default=8, help="of ten steps (default: 8); of one step, ten times as many")
    parser.add_argument("--only", nargs="*", choices=list(CONDITIONS), help="these conditions alone")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
