"""Intervals against published numbers, scipy, and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from tasks.radiomics.intervals import auc_interval, share_interval


@pytest.mark.parametrize(
    ("positives", "count", "low", "high"), [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611)]
)
def test_a_share_without_noise_has_wilsons_interval(positives: int, count: int, low: float, high: float) -> None:
    assert share_interval(positives, count) == pytest.approx((low, high), abs=5e-5)  # Newcombe 1998, Table I
    scipys = binomtest(positives, count).proportion_ci(method="wilson")
    assert share_interval(positives, count) == pytest.approx((scipys.low, scipys.high), abs=1e-9)


@pytest.mark.parametrize("share", [0.05, 0.4, 0.9])
def test_the_interval_of_a_noisy_share_holds_it(share: float) -> None:
    rng = np.random.default_rng(0)
    held = []
    for _ in range(1000):
        positives = rng.binomial(60, share)
        noisy = np.array([positives, 60 - positives]) + rng.normal(0, 4, 2)
        low, high = share_interval(noisy[0], noisy.sum(), noise_variance=16)
        held.append(low <= share <= high)
    assert 0.93 < np.mean(held) < 0.99


def test_a_share_of_nothing_can_be_anything() -> None:
    assert share_interval(0, 0) == (0, 1)
    assert share_interval(5, 10, noise_variance=100) == (0, 1)
    assert share_interval(-3, -1, noise_variance=1) == (0, 1)


@pytest.mark.parametrize("auc", [0.03, 0.5, 0.8, 0.97])
@pytest.mark.parametrize("noise_sd", [0.0, 0.01])
def test_the_bounds_of_an_auc_are_two_of_their_own_deviations_away(auc: float, noise_sd: float) -> None:
    def hanley_mcneil(true: float, n: int) -> float:  # as printed in 1982, for equal numbers
        q1, q2 = true / (2 - true), 2 * true**2 / (1 + true)
        return (true * (1 - true) + (n - 1) * (q1 - true**2) + (n - 1) * (q2 - true**2)) / n**2

    for bound in auc_interval(auc, positives=50, negatives=50, noise_sd=noise_sd):
        assert abs(bound - auc) == pytest.approx(1.96 * math.sqrt(hanley_mcneil(bound, 50) + noise_sd**2), rel=1e-3)


def test_an_auc_of_one_or_zero_has_an_interval() -> None:
    low, high = auc_interval(1, positives=20, negatives=20)
    assert high == 1
    assert 0.85 < low < 0.95
    assert auc_interval(0, positives=20, negatives=20) == pytest.approx((0, 1 - low))
    assert auc_interval(0.6, positives=20, negatives=20, noise_sd=2) == (0, 1)
