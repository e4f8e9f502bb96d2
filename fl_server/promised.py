"""How much noise lies on a hospital's sum: it follows from the study alone, so the coordinator can tell without being told.

Hospitals work out the same from the same study and write it in their ledgers (fl_client/price.py). That code is theirs; here it
is worked out once more, for sums over everybody only: these are plain Gaussian mechanisms, whose cost has a closed form (Balle
and Wang 2018, Theorem 8) and which compose by the squares of their ratios of sensitivity to noise.
"""

from __future__ import annotations

import math
from typing import Literal

from scipy.special import log_ndtr, ndtr

from conf.study import Study

Kind = Literal["round", "scores", "validation", "matrix"]
"""What is released: a counting task's sum, or scores of the finished model, between rounds, of one model for the matrix."""


def noise_variance(study: Study, kind: Kind) -> float:
    """The variance of the noise that one hospital adds to each number of such a sum; 0 where the study has no privacy.

    What hospitals add, too. Raises `ValueError` for a sum that the study doesn't have, for one over sampled patients, and where
    no noise keeps what the study promises.
    """
    privacy = study.privacy
    if privacy.kind == "none":
        return 0.0
    shares = {
        "scores": (privacy.evaluation_share, 1),
        "validation": (privacy.validation_share, study.validations),
        "matrix": (privacy.matrix_share, len(study.sites) + 1),
    }
    alone = _least_multiplier(privacy.epsilon, privacy.delta, beside=0.0, releases=1)
    if kind != "round":
        share, releases = shares[kind]
        if not share or not releases:
            raise ValueError(f"study {study.name} has no sums of the kind {kind}")
        return alone**2 * releases / share
    if study.training.sample_rate != 1:
        raise ValueError(
            f"study {study.name} has no sums over everybody: training.sample_rate is {study.training.sample_rate:g}"
        )
    beside = sum(share for share, releases in shares.values() if releases) / alone**2
    return _least_multiplier(privacy.epsilon, privacy.delta, beside=beside, releases=study.noise_steps) ** 2


def _least_multiplier(epsilon: float, delta: float, *, beside: float, releases: int) -> float:
    """The smallest noise, to 1e-3 of itself, with which so many sums cost `epsilon` at most, next to others.

    `beside` is the squared ratio of sensitivity to noise of the others.
    """

    def is_enough(multiplier: float) -> bool:
        mu = math.sqrt(beside + releases / multiplier**2)
        return (
            float(ndtr(mu / 2 - epsilon / mu)) - math.exp(min(epsilon + float(log_ndtr(-mu / 2 - epsilon / mu)), 0.0)) <= delta
        )

    low, high = 0.0, 1.0
    while not is_enough(high):
        low, high = high, 2 * high
        if high > 1e8:
            raise ValueError(f"no noise is enough for epsilon {epsilon:g} at delta {delta:g} over {releases} sums")
    while high - low > 1e-3 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high
