"""Noise in whole numbers: what a sum of discrete Gaussians costs, two ways.

A site under secure aggregation adds a share of noise to integers, and the sum holds `shares` of them. Kairouz, Liu and Steinke
2021 (Proposition 14) bound its Renyi divergence; their tau says how far a sum of discrete Gaussians is from one discrete
Gaussian, and vanishes on any but the coarsest grid. On a fine grid the sum is moreover no more than a continuous Gaussian that
was rounded at random, so that it is counted among Gaussians, exactly (below).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

from tasks.accounting.events import Law

_MOST_STEPS = 1e6  # releases over which the distances below are summed up
_FINE = 100.0  # how many times larger than the rounding's the noise's variance must be


class Rounded(NamedTuple):
    """A continuous Gaussian of ratio `mu`, after which nothing of the patients is touched, and how far it is away.

    Probabilities of all outcomes agree within a factor of exp(`apart`).
    """

    mu: float
    apart: float


def share_variance(law: Law) -> float:
    """Of one share, in squared steps of the grid."""
    return (law.noise_multiplier * law.sensitivity) ** 2 / law.shares


@lru_cache(maxsize=64)
def tau(law: Law) -> float:
    """How far the sum of the shares is from one discrete Gaussian, per number (Kairouz, Liu and Steinke 2021, Theorem 1)."""
    variance = share_variance(law)
    return 10 * sum(math.exp(-2 * math.pi**2 * variance * k / (k + 1)) for k in range(1, law.shares))


def renyi_divergence(law: Law, order: float) -> float:
    """Of one sum, at this order: the least of the three bounds of Proposition 14. Infinite below its range."""
    if share_variance(law) < 0.25:
        return math.inf
    far, size, root = tau(law), 1 / law.noise_multiplier, math.sqrt(law.dimension)
    return min(
        order / 2 * size**2 + far * law.dimension,
        order / 2 * (size**2 + 2 * size * root * far + far**2 * law.dimension),  # the L1 norm is at most root times the L2 norm
        order / 2 * (size + far * root) ** 2,
    )


def as_gaussian(law: Law) -> Rounded | None:
    """The continuous Gaussian behind the sum; None where the grid is too coarse for it to be worth anything.

    Draw X ~ N(0, v - r^2) and then Y, a whole number, with probability ~ exp(-(Y - X)^2 / 2 r^2). By Poisson's summation
    formula the weights of Y add up to r sqrt(2 pi) (1 +- c) whatever X is, c = 2 sum_m exp(-2 pi^2 r^2 m^2); so Y has the
    probabilities of a discrete Gaussian of variance v within a factor (1 + c) / (1 - c) (Peikert 2010, Theorem 3.1). A whole
    number added before or after the rounding is the same. So a sum of patients plus discrete noise of variance v is, up to
    5 exp(-2 pi^2 r^2) per number in the logarithm, the continuous mechanism with variance v - r^2 and a rounding that looks at
    no patient. The sum of the shares is one discrete Gaussian up to tau / 2 per number, by the same formula.
    """
    whole = (law.noise_multiplier * law.sensitivity) ** 2
    rounding = max(1.0, math.log(5 * law.dimension * _MOST_STEPS * 1e15) / (2 * math.pi**2))  # r^2
    apart = law.dimension * (tau(law) / 2 + 5 * math.exp(-2 * math.pi**2 * rounding))
    if whole < _FINE * rounding or apart * _MOST_STEPS > 1e-9:
        return None
    return Rounded(mu=law.sensitivity / math.sqrt(whole - rounding), apart=apart)
