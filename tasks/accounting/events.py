"""What happened to patients' privacy, as a value; an accountant interprets it later (`budget.epsilon`).

Events are stored, epsilon never is: epsilons don't add up, events compose. After google-deepmind/jax_privacy's DP events.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from conf.frozen import Frozen

Mechanism = Literal["gaussian", "discrete_gaussian", "laplace", "geometric"]


class Law(NamedTuple):
    """All of an event that its cost follows from, but how often it happened. Equal laws cost the same."""

    mechanism: Mechanism
    noise_multiplier: float
    sample_rate: float = 1.0
    dimension: int = 1
    sensitivity: float = 0.0  # in steps of the grid; 0 for noise that is no whole number
    shares: int = 1


class Event(Frozen):
    """One release: `steps` noisy sums of per-patient bounded contributions.

    `noise_multiplier` says how large the noise is beside the bound on one patient; 0 is a release without noise, which promises
    nothing and makes epsilon infinite.

    gaussian : normal noise; its standard deviation over the L2 bound
    discrete_gaussian : whole numbers, the sum of `shares` equal independent shares (secure aggregation); sqrt(`shares`) times
        the standard deviation of one share, over the L2 bound
    laplace : its scale over the L1 bound
    geometric : whole numbers k with probability ~ exp(-abs(k) / scale); the scale over the L1 bound

    Only Gaussian sums may be over sampled patients: each drawn independently with probability `sample_rate`. What is released
    has `dimension` numbers. Whole numbers have a `sensitivity`: the bound, in steps of the grid, with what rounding adds to it.
    """

    mechanism: Mechanism = "gaussian"
    noise_multiplier: Annotated[float, Field(ge=0)]
    sample_rate: Annotated[float, Field(gt=0, le=1)] = 1.0
    steps: Annotated[int, Field(ge=1)] = 1
    study: str = ""  # hash of the study
    study_name: str = ""
    round: Annotated[int, Field(ge=0)] = 0
    kind: str = "gradient"  # what the numbers were: gradient, scores, statistics, leaf counts
    noise: Literal["os", "seeded"] = "os"
    planned: Annotated[int, Field(ge=1)] | None = None  # steps of this kind in the whole study, fixed before its first release
    dimension: Annotated[int, Field(ge=1)] | None = None  # not of Gaussian noise, whose cost doesn't depend on it
    sensitivity: Annotated[float, Field(gt=0)] | None = None
    shares: Annotated[int, Field(ge=1)] | None = None  # that any sum is sure to hold, without those of colluding sites
    own_noise_multiplier: Annotated[float, Field(gt=0)] | None = None  # of this hospital's share, if secure aggregation fails
    # total variation distance of the noise of all numbers, steps and shares of this event from what its name says
    sampling_error: Annotated[float, Field(ge=0, lt=1)] | None = None

    @property
    def law(self) -> Law:
        """What its cost follows from."""
        if self.mechanism == "gaussian":
            return Law("gaussian", self.noise_multiplier, self.sample_rate)
        sensitivity, shares = self.sensitivity or 0.0, self.shares or 1
        return Law(self.mechanism, self.noise_multiplier, 1.0, self.dimension or 1, sensitivity, shares)

    @property
    def alone(self) -> Event:
        """The same release if everybody else's noise is known: what secure aggregation leaves of it where it fails.

        The event itself, but for shared noise.
        """
        if self.own_noise_multiplier is None:
            return self
        error = (self.sampling_error or 0.0) / (self.shares or 1)
        return self.model_copy(update={"noise_multiplier": self.own_noise_multiplier, "shares": 1, "sampling_error": error})

    @model_validator(mode="after")
    def _has_what_its_cost_follows_from(self) -> Self:
        needed = {
            "gaussian": (),
            "laplace": ("dimension",),
            "geometric": ("dimension", "sensitivity"),
            "discrete_gaussian": ("dimension", "sensitivity", "shares", "own_noise_multiplier"),
        }[self.mechanism]
        for name in ("dimension", "sensitivity", "shares", "own_noise_multiplier"):
            if (name in needed) != (getattr(self, name) is not None):
                raise ValueError(f"{self.mechanism} noise {'needs' if name in needed else 'has no'} {name}")
        if self.mechanism == "gaussian":
            return self
        if not self.noise_multiplier > 0:
            raise ValueError("a release without noise is written as gaussian noise with a multiplier of 0")
        if self.sample_rate != 1:
            raise ValueError(
                f"{self.mechanism} noise is accounted for sums over everybody, not at a sample_rate of {self.sample_rate:g}"
            )
        if self.mechanism == "geometric" and self.sensitivity != round(self.sensitivity or 0):
            raise ValueError(f"whole numbers differ by whole numbers, not by a sensitivity of {self.sensitivity:g}")
        if self.own_noise_multiplier is not None:
            together = self.own_noise_multiplier * math.sqrt(self.shares or 1)
            if not math.isclose(self.noise_multiplier, together, rel_tol=1e-9):
                one = f"{self.shares} shares of multiplier {self.own_noise_multiplier:g}"
                raise ValueError(f"{one} have {together:g} together, not {self.noise_multiplier:g}")
        return self


def shared_noise(
    *, share_std: float, shares: int, sensitivity: float, dimension: int, sampling_error: float, **rest: Any
) -> Event:
    """The event of one sum under secure aggregation, whose noise is the sum of discrete Gaussians of many sites.

    Parameters
    ----------
    share_std : float
        Standard deviation (parameter sigma) of one site's share, in steps of the grid.
    shares : int
        Shares that any sum is sure to hold: `threshold - colluding`. More than these can only help.
    sensitivity : float
        L2 bound on what one patient changes, in steps: bound / step + sqrt(dimension), because the site rounds its total.
    dimension : int
        Numbers in the sum.
    sampling_error : float
        Total variation distance of the noise that was drawn (all numbers, all shares) from discrete Gaussians.
    **rest
        Other fields of `Event`: study, study_name, round, kind, noise.
    """
    own = share_std / sensitivity
    return Event(
        mechanism="discrete_gaussian",
        noise_multiplier=own * math.sqrt(shares),
        own_noise_multiplier=own,
        shares=shares,
        sensitivity=sensitivity,
        dimension=dimension,
        sampling_error=sampling_error,
        **rest,
    )
