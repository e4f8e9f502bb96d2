"""One federation under one promise, without daemons, messages and ledgers: to measure what privacy costs, many times over.

What decides the model is the product's own code: each hospital's clipped sum (`fl_client.privacy.dp_sgd.one_sum`), the noise
that the promise asks for (`calibrate`, or the grid of a secure sum) and the coordinator's step
(`fl_server.strategy.Rounds.move`). A test holds the model against that of the product's own run. What is left out costs time
and moves no number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from conf.study import Study
from fl_client.privacy.dp_sgd import one_sum
from fl_server.strategies import aggregator
from fl_server.strategy import Rounds
from fl_server.weights import State
from fl_server.wiener import Gradients
from simulation.grid import InProcessGrid
from tasks.accounting.budget import calibrate
from tasks.secure.plan import grid_of
from tasks.task import Arrays, GradientTask, gradient_task, moving

Response = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Place:
    """A hospital's training patients: what the task prepared of each, and how many the hospital declares.

    `response` changes every image before the network sees it: scans of another kind than training began with.
    """

    task: GradientTask
    prepared: Mapping[str, Arrays]
    declared: int
    response: Response | None = None

    @property
    def patients(self) -> Sequence[str]:
        """Pseudonyms."""
        return list(self.prepared)

    def example(self, patient: str, views: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """As `fl_client.patients.TrainingPatients` draws them."""
        image, target = self.task.example(self.prepared[patient], views, rng)
        return (image if self.response is None else self.response(image)), target


def sum_noise(study: Study, task: GradientTask, places: int) -> float:
    """Standard deviation of the noise on the sum of all hospitals, which all answer.

    Each adds all that the promise needs, or under secure aggregation its share. Shares add up to more than the promise needs:
    hospitals may be gone at a round's end, or tell others their own noise.
    """
    privacy = study.privacy
    if privacy.kind == "none":
        return 0.0
    if privacy.secure is not None:
        grid = grid_of(study, task)
        return grid.share_std * grid.step * math.sqrt(places)
    multiplier = calibrate(epsilon=privacy.epsilon, delta=privacy.delta, sample_rate=1.0, steps=study.noise_steps)
    return multiplier * privacy.max_grad_norm * math.sqrt(places)


def federate(
    study: Study,
    places: Mapping[str, Place],
    start: State,
    *,
    noise: np.random.Generator,
    sampling: Callable[[str, int, State], np.random.Generator],
    noise_share: float = 1.0,
    gradients: Gradients | None = None,
) -> State:
    """The model after the study's rounds of one full step each, averaged over the rounds as the study says.

    Parameters
    ----------
    study : Study
        With one step of sgd over all patients in a round; anything else raises `ValueError`.
    places : mapping
        Hospitals by name.
    start : State
        Weights of round 1.
    noise : numpy Generator
        Normal deviates in the place of the hospitals' own.
    sampling : callable
        (site, round, weights) to the generator that draws the views of this hospital's patients.
    noise_share : float
        Of the noise that is added. 10 patients under a quarter of the noise are told as little apart as 40 under all of it.
    gradients : callable
        Of free patients, for a strategy that filters by them (`fl_server.references`).
    """
    training, strategy = study.training, study.strategy
    if training.steps != 1 or training.sample_rate != 1 or training.optimizer != "sgd":
        raise ValueError("a trial takes studies whose rounds are one step of sgd over all patients")
    InProcessGrid("fl_client.app:app", ())  # names the run, without which Flower makes no message
    task = gradient_task(study.task)
    model = task.model()
    names = moving(study, task, model)
    std = noise_share * sum_noise(study, task, len(places))
    bound = study.privacy.max_grad_norm if study.privacy.kind == "patient" else math.inf
    server = Rounds(aggregator(study, gradients), trainable=names)
    sizes = [place.declared / noise_share if noise_share else place.declared for place in places.values()]
    state, mean, weight = dict(start), dict(start), 0.0
    patients = sum(place.declared for place in places.values())
    for number in range(1, study.rounds + 1):
        total = {name: std * noise.standard_normal(tuple(state[name].shape)) for name in names}
        for site, place in places.items():
            model.load_state_dict(state)
            parameters = dict(model.named_parameters())
            sums, failed = one_sum(
                model,
                place,
                parameters=[parameters[name] for name in names],
                loss=task.loss,
                views=training.views,
                max_grad_norm=bound,
                sampling_rng=sampling(site, number, state),
            )
            if failed:
                raise RuntimeError(f"{site}: {failed}")
            for name, array in zip(names, sums, strict=True):
                total[name] += array.numpy()
        if hasattr(server.aggregator, "eta"):
            server.aggregator.eta = strategy.server_step(number, study.rounds)
        before = {name: state[name].numpy() for name in names}
        stepped = {name: before[name] - training.learning_rate / patients * total[name] for name in names}
        moved = server.move(number, before, stepped, sizes=sizes)
        if moved is None:
            raise RuntimeError(f"the model after round {number} is not finite")
        state = {**state, **{name: torch.from_numpy(np.array(array)) for name, array in moved.items()}}
        weight = 1.0 + strategy.ema_decay * weight
        mean = {name: old + (state[name] - old) / weight for name, old in mean.items()}
    return mean
