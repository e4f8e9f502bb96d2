"""The coordinator's rounds: who was asked, who answered, what was used, and the model that came of it.

`run` is konsil's loop: hospitals are known by name from an enrolment, and every planned hospital has an entry in every round.
A study that sets a share of its promise aside for scores ends with one more question, after the last round.
"""

from __future__ import annotations

import importlib.metadata
import math
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import ArrayRecord, ConfigRecord, MessageType
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAdam, FedAvg, FedMedian, FedProx
from flwr.serverapp.strategy.fedopt import FedOpt

from conf.study import Study
from fl_server.counts import counts_of
from fl_server.enrolment import Enrolment
from fl_server.record import Evaluation, Record, Round, SiteRound
from fl_server.strategy import Rounds, Sum
from fl_server.weights import State
from tasks.fingerprint import fingerprint
from tasks.task import JudgedTask, load, released
from tasks.weights import save

Observer = Callable[[Round, State], None]
"""Called after each round with who answered and the model as it would be released now."""


def run(
    grid: Grid,
    study: Study,
    initial: Mapping[str, torch.Tensor],
    *,
    folder: Path,
    observer: Observer | None = None,
    enrol_timeout_s: float = 0.0,
    engine: str = "",
) -> tuple[State, Record]:
    """Run the study over the hospitals behind `grid`, from the weights `initial`.

    Writes into `folder`: at the start a `record.json` with the verdict `failed`, in place of an earlier run's record and
    model; after every round the record as it stands; and before it, when any answer was used, `model.pt` (`torch.load` with
    `weights_only=True`), so that what the hospitals have paid for outlives a crash. The model is that of the last round or,
    with `strategy.ema_decay` d, the mean of all rounds' models weighted d^(rounds still to come). Hospitals that have not
    enrolled within `enrol_timeout_s` may still join before a later round.
    Raises `ValueError` if the study names other initial weights; the folder is as it was then.
    """
    state = {name: tensor.detach().cpu().clone() for name, tensor in initial.items()}
    if study.initial_model_sha256 not in (None, fingerprint(state)):
        raise ValueError(f"the study starts from weights {study.initial_model_sha256}, but was given {fingerprint(state)}")
    folder.mkdir(parents=True, exist_ok=True)
    record = Record.begin(study, versions=versions(), engine=engine)
    record.judge()
    record.write(folder / "record.json")
    (folder / "model.pt").unlink(missing_ok=True)
    strategy = Rounds(
        _aggregator(study),
        quorum=study.strategy.quorum,
        trainable=_trainable(study),
        nodes={},
        weights={},
        ttl_s=study.strategy.round_timeout_s,
        check=_require_noise(study) if study.strategy.name == "sum" else None,
    )
    enrolment = Enrolment(study)
    enrolment.wait(grid, timeout_s=enrol_timeout_s)
    mean, weight = {name: tensor.clone() for name, tensor in state.items()}, 0.0
    for number in range(1, study.rounds + 1):
        start = time.monotonic()
        enrolment.before_round(grid)  # who came late may join from here on
        strategy.nodes, strategy.weights = enrolment.nodes, enrolment.sizes
        if isinstance(strategy.aggregator, FedOpt):
            strategy.aggregator.eta = study.strategy.server_step(number, study.rounds)
        config = ConfigRecord({"study-hash": study.hash})
        enough = len(enrolment.nodes) >= study.strategy.quorum  # else every answer would be paid for and none would count
        questions = strategy.configure_train(number, ArrayRecord(dict(state)), config, grid) if enough else []
        replies = grid.send_and_receive(questions, timeout=study.strategy.round_timeout_s) if questions else []
        arrays, _ = strategy.aggregate_train(number, replies) if enough else (None, None)
        if arrays is not None:
            state = dict(arrays.to_torch_state_dict())
            weight = 1.0 + study.strategy.ema_decay * weight
            mean = {n: m + (state[n] - m) / weight if m.is_floating_point() else state[n] for n, m in mean.items()}
        model = mean if study.strategy.ema_decay else state
        if arrays is not None:
            save(model, folder / "model.pt")
        answered = strategy.answers.get(number, {})
        answers = {site: answered.get(site) or enrolment.missing(site) for site in study.sites}
        seconds = time.monotonic() - start
        record.rounds.append(Round(round=number, sites=answers, seconds=seconds, arrays_sha256=fingerprint(model)))
        _note_sites(record, enrolment, answers)
        record.judge()
        record.write(folder / "record.json")
        if observer is not None:
            observer(record.rounds[-1], {name: tensor.clone() for name, tensor in model.items()})
    if study.strategy.name == "sum" and (folder / "model.pt").exists():
        record.counts = counts_of(study, model)
        record.write(folder / "record.json")
    if study.privacy.evaluation_share and (folder / "model.pt").exists():
        enrolment.before_round(grid)
        record.evaluation = judge(grid, study, model, enrolment)
        for site, answer in record.evaluation.sites.items():
            if answer.epsilon is not None:
                record.sites[site].epsilon = answer.epsilon
        record.judge()
        record.write(folder / "record.json")
    return model, record


def judge(grid: Grid, study: Study, model: Mapping[str, torch.Tensor], enrolment: Enrolment) -> Evaluation:
    """Ask every hospital that takes part to judge the model on the patients it held back, and add up what they say."""
    start = time.monotonic()
    task = load(study.task)
    if not isinstance(task, JudgedTask):
        raise ValueError(f"task {study.task['name']} can't be judged by hospitals")
    strategy = Rounds(
        Sum(),
        nodes=enrolment.nodes,
        weights=enrolment.sizes,
        ttl_s=study.strategy.round_timeout_s,
        expected={"total": np.zeros(task.judgement_length), "noise_variance": np.zeros(1)},
        check=_require_noise(study),
        kind=MessageType.EVALUATE,
    )
    config = ConfigRecord({"study-hash": study.hash})
    questions = strategy.configure_train(study.rounds, ArrayRecord(dict(model)), config, grid)
    replies = grid.send_and_receive(questions, timeout=study.strategy.round_timeout_s) if questions else []
    sums, _ = strategy.aggregate_train(study.rounds, replies)
    answered = strategy.answers[study.rounds]
    return Evaluation(
        sites={site: answered.get(site) or enrolment.missing(site) for site in study.sites},
        total=[] if sums is None else sums["total"].numpy().tolist(),
        noise_std=0.0 if sums is None else math.sqrt(float(sums["noise_variance"].numpy()[0])),
        seconds=time.monotonic() - start,
    )


def _require_noise(study: Study) -> Callable[[Mapping[str, npt.NDArray[Any]]], None]:
    """A check of the variance that a hospital says its noise has: it follows from the study, where there is any."""

    def check(arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        variance = float(arrays["noise_variance"][0])
        if (variance <= 0) if study.privacy.kind == "patient" else (variance != 0):
            promise = "has privacy" if study.privacy.kind == "patient" else "has none"
            raise ValueError(f"noise of variance {variance:g} is said to lie on each number; the study {promise}")

    return check


def _note_sites(record: Record, enrolment: Enrolment, answers: Mapping[str, SiteRound]) -> None:
    for name, answer in answers.items():
        site = record.sites[name]
        site.declared_size = enrolment.sizes.get(name)
        if answer.epsilon is not None:
            site.epsilon, site.delta = answer.epsilon, enrolment.deltas.get(name)


def _aggregator(study: Study) -> FedAvg:
    """The strategy that the study names. None asks for evaluation: scores are one more release, after the last round."""
    kinds: dict[str, Callable[[], FedAvg]] = {
        "fedavg": FedAvg,
        "fedprox": lambda: FedProx(proximal_mu=study.strategy.proximal_mu),
        "fedadam": lambda: FedAdam(eta=study.strategy.server_learning_rate, tau=study.strategy.server_tau),
        "fedmedian": FedMedian,
        "sum": Sum,
    }
    return kinds[study.strategy.name]()


def _trainable(study: Study) -> list[str]:
    task = load(study.task)
    with torch.random.fork_rng(devices=[]):
        return released(task)


def versions() -> dict[str, str]:
    """What the coordinator runs on: konsil and the packages that decide the numbers."""
    packages = ("konsil", "flwr", "torch", "monai", "numpy", "dp-accounting", "scipy")  # the last two: how much noise
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in packages}}
