"""What a study's secure sum is: hospitals, grid and price, worked out from the study alone.

Hospital and coordinator each do it for themselves and come to the same, for they have the same study. Nothing that a message
brings enters here: a coordinator that could choose a grid for each hospital could choose one on which others' noise is small.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import torch

from conf.study import Study
from tasks.accounting.budget import CLOSE, calibrate, epsilon, least
from tasks.fingerprint import fingerprint
from tasks.promise import beside_rounds
from tasks.secure import price
from tasks.secure.circle import Circle, Moment
from tasks.secure.grid import Grid
from tasks.secure.keys import public_key
from tasks.task import CountingTask, GradientTask, gradient_task, moving

Shapes = tuple[tuple[str, tuple[int, ...]], ...]


def circle_of(study: Study) -> Circle:
    """Who sums. Raises `ValueError` for a study without secure aggregation, or with numbers that protect nobody."""
    secure = study.privacy.secure
    if secure is None:
        raise ValueError(f"study {study.name} has no secure aggregation (privacy.secure is empty)")
    if unread := [name for name, line in secure.keys.items() if public_key(line) is None]:
        raise ValueError(
            f"privacy.secure.keys holds no public key of {', '.join(unread)}; what `konsil-site public-key` prints is right"
        )
    return Circle(keys=secure.keys, threshold=secure.least, colluding=secure.colluding)


def moment_of(study: Study, *, number: int, attempt: int) -> Moment:
    """One try at round `number`."""
    return Moment(study=study.hash, round=number, attempt=attempt)


def about_of(task: GradientTask | CountingTask, state: Mapping[str, torch.Tensor]) -> bytes:
    """What a round's sum is about: the weights that came, which no answer of a counting task depends on.

    It is part of the masks: hospitals that were sent different weights can't be summed. Else a coordinator that sends one
    hospital the model and all others one without gradients reads the one's own numbers from the sum (Pasquini, Francati and
    Ateniese 2022).
    """
    return b"" if isinstance(task, CountingTask) else bytes.fromhex(fingerprint(state))


def grid_of(study: Study, task: GradientTask | CountingTask) -> Grid:
    """The grid of one round's sum, with the least noise that keeps what the study promises for all its rounds and scores.

    Raises `ValueError` where no grid can hold the sum, or no noise keeps the promise.
    """
    if isinstance(task, CountingTask):
        return _grid(study.to_json(), (("total", (task.length,)),), 1.0)
    return _grid(study.to_json(), _shapes(study.to_json()), study.privacy.max_grad_norm)


@lru_cache(maxsize=16)
def _shapes(text: str) -> Shapes:
    """Names and shapes of what moves in a study with a network, which is made for that once: each question of a round asks."""
    study = Study.from_json(text)
    task = gradient_task(study.task)
    with torch.random.fork_rng(devices=[]):
        model = task.model()
    parameters = dict(model.named_parameters())
    return tuple((name, tuple(parameters[name].shape)) for name in moving(study, task, model))


@lru_cache(maxsize=16)
def _grid(text: str, shapes: Shapes, bound: float) -> Grid:
    study = Study.from_json(text)
    privacy, beside, circle = study.privacy, beside_rounds(study), circle_of(study)

    def grid(multiplier: float) -> Grid:
        patients = 1 if privacy.secure is None else privacy.secure.patients
        return Grid(circle=circle, shapes=dict(shapes), bound=bound, patients=patients, noise_multiplier=multiplier)

    def is_enough(multiplier: float) -> bool:
        rounds = [price.event(grid(multiplier), round=number + 1) for number in range(study.rounds)]
        return epsilon([*rounds, *beside], delta=privacy.delta) <= privacy.epsilon

    # whole numbers cost a little more than the Gaussian noise that they stand for
    low = calibrate(epsilon=privacy.epsilon, delta=privacy.delta, sample_rate=1.0, steps=study.rounds, alongside=beside)
    words = f"no noise in whole numbers keeps epsilon {privacy.epsilon:g} at delta {privacy.delta:g}"
    return grid(least(is_enough, low=low, high=low, faster=1 + 16 * CLOSE, words=words))
