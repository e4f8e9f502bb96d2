"""How a study's promise is shared out: noise for its rounds, and for the scores that it sets parts of the promise aside for.

It follows from the study alone, so hospital and coordinator come to the same without being told: the one writes it in its
ledger, the other knows what lies on a sum. Gaussian mechanisms over everybody compose by the squares of their ratios of
sensitivity to noise, so a share s of the promise for n sums is the noise that alone would keep it, times the square root of
n / s.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from conf.study import Study
from tasks.accounting.budget import calibrate
from tasks.accounting.events import Event

Scores = Literal["scores", "validation", "matrix"]
"""Scores of patients held back: of the finished model, between rounds, of every model at every hospital."""


class Part(NamedTuple):
    """A part of the promise, and how many sums it is for."""

    share: float
    releases: int


def parts_of(study: Study) -> dict[Scores, Part]:
    """What the study sets aside for scores; no entry for what it doesn't have.

    The matrix has the study's model and one of each hospital.
    """
    privacy = study.privacy
    parts: dict[Scores, Part] = {
        "scores": Part(privacy.evaluation_share, 1),
        "validation": Part(privacy.validation_share, study.validations),
        "matrix": Part(privacy.matrix_share, matrix_models(study)),
    }
    return {kind: part for kind, part in parts.items() if part.share and part.releases}


def matrix_models(study: Study) -> int:
    """How many models a matrix has at most: the study's, and one of each hospital."""
    return len(study.sites) + 1


def share_set_aside(study: Study) -> float:
    """For all scores together."""
    return sum(part.share for part in parts_of(study).values())


def multiplier_of_share(*, epsilon: float, delta: float, share: float, releases: int = 1) -> float:
    """The noise of one of so many equal sums over everybody that cost this share of the promise together."""
    return calibrate(epsilon=epsilon, delta=delta, sample_rate=1.0, steps=1) * math.sqrt(releases / share)


def score_multiplier(study: Study, kind: Scores) -> float:
    """The noise of one release of such scores; 0 without privacy. Raises `ValueError` if the study has no such scores."""
    part = parts_of(study).get(kind)
    if part is None:
        raise ValueError(f"study {study.name} has no sums of the kind {kind}")
    if study.privacy.kind == "none":
        return 0.0
    return multiplier_of_share(
        epsilon=study.privacy.epsilon, delta=study.privacy.delta, share=part.share, releases=part.releases
    )


def beside_rounds(study: Study) -> tuple[Event, ...]:
    """What all scores take of the promise, as few events: equal ones as the steps of one."""
    return tuple(
        Event(noise_multiplier=score_multiplier(study, kind), steps=part.releases, kind=kind)
        for kind, part in parts_of(study).items()
    )


def round_multiplier(study: Study) -> float:
    """The noise of one step of a round, with what scores leave; 0 without privacy. Secure sums: see `tasks.secure.plan`.

    Raises `ValueError` where no noise keeps the promise.
    """
    if study.privacy.kind == "none":
        return 0.0
    return calibrate(
        epsilon=study.privacy.epsilon,
        delta=study.privacy.delta,
        sample_rate=study.training.sample_rate,
        steps=study.noise_steps,
        alongside=beside_rounds(study),
    )
