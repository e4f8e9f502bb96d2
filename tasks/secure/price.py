"""What a secure sum costs a patient, as public facts: what goes into the ledger's event.

If the assumptions hold (tasks/secure/__init__.py) a release is one sum with the noise of `threshold - colluding` sites at
least; more noise never costs more. If they fail, one site's vector is seen with that site's noise alone. Both are stated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tasks.secure.grid import Grid
from tasks.secure.noise import TOTAL_VARIATION


@dataclass(frozen=True, kw_only=True)
class Price:
    """One release of a secure sum of whole numbers, per patient; add or remove one patient. Lengths are in steps of the grid.

    Attributes
    ----------
    noise_multiplier
        Standard deviation of the noise that is in every sum, over `sensitivity`.
    own_noise_multiplier
        The same of a site's own noise alone: what is left if more sites than `colluding` work with the coordinator.
    dimension
        Numbers in the vector.
    sites, threshold, colluding
        Of the circle; the noise of `threshold - colluding` sites counts.
    sensitivity
        L2, rounding included.
    site_std
        Standard deviation of one site's discrete Gaussian.
    total_variation
        At most so far, in total variation, is the noise as drawn from exact discrete Gaussians (all shares that count, whole
        vector). A release that is (epsilon, delta) with exact noise is (epsilon, delta + (1 + exp(epsilon)) * this).
    to_gaussian
        As `total_variation`, from exact discrete Gaussians to a normal deviate of the same variance rounded to whole
        numbers, which is the Gaussian mechanism and then rounding. With both added an accountant of the Gaussian mechanism may
        be used as it is. See `rounded_gaussian_distance`.
    """

    noise_multiplier: float
    own_noise_multiplier: float
    dimension: int
    sites: int
    threshold: int
    colluding: int
    sensitivity: float
    site_std: float
    total_variation: float
    to_gaussian: float


def price(grid: Grid) -> Price:
    """The facts of one release on this grid."""
    shares = grid.circle.noise_shares
    return Price(
        noise_multiplier=grid.noise_multiplier,
        own_noise_multiplier=grid.site_std / grid.sensitivity,
        dimension=grid.length,
        sites=len(grid.circle.keys),
        threshold=grid.circle.threshold,
        colluding=grid.circle.colluding,
        sensitivity=grid.sensitivity,
        site_std=grid.site_std,
        total_variation=shares * grid.length * TOTAL_VARIATION,
        to_gaussian=rounded_gaussian_distance(shares=shares, std=grid.site_std) * grid.length,
    )


def convolution_slack(*, shares: int, std: float) -> float:
    """The tau of Kairouz, Liu, Steinke 2021 (theorem 1): how far a sum of discrete Gaussians is from one, per number.

    tau = 10 * sum over k = 1 .. shares - 1 of exp(-2 pi**2 std**2 k / (k + 1)). A sum in `dimension` numbers satisfies
    epsilon**2 / 2 concentrated privacy with epsilon = min(sqrt(1 / z**2 + tau * dimension / 2), 1 / z + tau *
    sqrt(dimension)), z its noise multiplier. From std 16 on, the least that `Grid` takes, tau is 0 to any double.
    """
    return 10 * sum(math.exp(-2 * math.pi**2 * std**2 * k / (k + 1)) for k in range(1, shares))


def rounded_gaussian_distance(*, shares: int, std: float) -> float:
    """Bound on the total variation, per number, between a sum of discrete Gaussians and a rounded normal of its variance.

    Let s**2 = shares * std**2, p the discrete Gaussian of that parameter and r the normal's mass within 1/2 of x. Then r(x) /
    p(x) >= the mean of cosh(x t / s**2) * exp(-t**2 / (2 s**2)) over |t| < 1/2, which is >= 1 - 1 / (24 s**2), because the
    sum that normalises p is no smaller than the integral that normalises r (Poisson's summation formula). Total variation is
    the sum of p - r where positive, hence <= 1 / (24 s**2). The sum of shares differs from p by a factor of at most exp(tau).
    """
    if std == 0:
        return 0.0
    return 1.0 / (24.0 * shares * std**2) + math.expm1(convolution_slack(shares=shares, std=std))
