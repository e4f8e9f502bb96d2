"""What happened to patients' privacy, as a value; an accountant interprets it later (`budget.epsilon`).

Events are stored, epsilon never is: epsilons don't add up, events compose. After google-deepmind/jax_privacy's DP events.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from conf.study import Frozen


class Event(Frozen):
    """One release: `steps` noisy sums of per-patient bounded contributions.

    Each sum is over patients drawn independently with probability `sample_rate`; its noise has a standard deviation of
    `noise_multiplier` times the bound on one patient. A multiplier of 0 is a release without noise: it promises nothing,
    and makes epsilon infinite.
    """

    mechanism: Literal["gaussian"] = "gaussian"
    noise_multiplier: Annotated[float, Field(ge=0)]
    sample_rate: Annotated[float, Field(gt=0, le=1)] = 1.0
    steps: Annotated[int, Field(ge=1)] = 1
    study: str = ""  # hash of the study
    study_name: str = ""
    round: Annotated[int, Field(ge=0)] = 0
    kind: str = "gradient"  # what the numbers were: gradient, scores, statistics, leaf counts
    noise: Literal["os", "seeded"] = "os"
