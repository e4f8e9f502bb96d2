"""How much noise lies on a hospital's sum: it follows from the study alone, so the coordinator can tell without being told.

Hospitals work out the same from the same study (`tasks.promise`) and write it in their ledgers.
"""

from __future__ import annotations

from typing import Literal

from conf.study import Study
from tasks.promise import round_multiplier, score_multiplier

Kind = Literal["round", "scores", "validation", "matrix"]
"""What is released: a counting task's sum, or scores of the finished model, between rounds, of one model for the matrix."""


def noise_variance(study: Study, kind: Kind) -> float:
    """The variance of the noise that one hospital adds to each number of such a sum; 0 where the study has no privacy.

    What hospitals add, too. Raises `ValueError` for a sum that the study doesn't have, for one over sampled patients, and where
    no noise keeps what the study promises.
    """
    if study.privacy.kind == "none":
        return 0.0
    if kind != "round":
        return score_multiplier(study, kind) ** 2
    if study.training.sample_rate != 1:
        raise ValueError(
            f"study {study.name} has no sums over everybody: training.sample_rate is {study.training.sample_rate:g}"
        )
    return round_multiplier(study) ** 2
