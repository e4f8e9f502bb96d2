"""The discrete Gaussian is drawn as it is written, from its exact probabilities at small widths to its law at large ones."""

from __future__ import annotations

import math
from fractions import Fraction

import mpmath
import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from tasks.secure import noise
from tasks.secure.noise import discrete_gaussian, os_bits, seeded_bits

COUNT = 400_000


def probabilities(std: float, most: int) -> npt.NDArray[np.float64]:
    """Of -most .. most, from the definition."""
    weights = [math.exp(-(x**2) / (2 * std**2)) for x in range(-most - 400, most + 401)]
    total = math.fsum(weights)
    return np.array([weight / total for weight in weights[400:-400]])


@pytest.mark.parametrize("std", [0.3, 0.5, 0.8, 1.0, 1.5, 2.5, 6.0, 23.7])
def test_every_number_comes_as_often_as_it_should(std: float) -> None:
    drawn = discrete_gaussian(COUNT, std=std, bits=seeded_bits(7, int(10 * std)))
    most = int(8 * std) + 2
    expected = COUNT * probabilities(std, most)
    counts = np.bincount(drawn + most, minlength=2 * most + 1)
    often = expected >= 10
    seen = np.append(counts[often], counts[~often].sum())
    due = np.append(expected[often], expected[~often].sum())
    if due[-1] < 10:  # too rare for a bin of their own
        seen, due = np.append(seen[:-2], seen[-2:].sum()), np.append(due[:-2], due[-2:].sum())
    assert stats.chisquare(seen, due * seen.sum() / due.sum()).pvalue > 1e-4


@pytest.mark.parametrize("std", [0.5, 1.0, 2.5, 6.0])
def test_moments_are_those_of_the_exact_probabilities(std: float) -> None:
    drawn = discrete_gaussian(COUNT, std=std, bits=seeded_bits(8)).astype(np.float64)
    x = np.arange(-80, 81)
    exact = probabilities(std, 80)
    for power in (1, 2, 3, 4):
        moment, square = float(exact @ x**power), float(exact @ x.astype(float) ** (2 * power))
        error = math.sqrt((square - moment**2) / COUNT)
        assert abs(np.mean(drawn**power) - moment) < 4.5 * error


@pytest.mark.parametrize("std", [1e6, 3e7, 1e8])
def test_at_large_widths_it_is_the_normal_law_with_uniform_low_digits(std: float) -> None:
    drawn = discrete_gaussian(COUNT, std=std, bits=seeded_bits(9))
    assert stats.kstest(drawn / std, "norm").pvalue > 1e-4
    assert stats.chisquare(np.bincount(drawn % 64, minlength=64)).pvalue > 1e-4
    for deviations in (1, 2, 3, 4):
        share = 2 * stats.norm.sf(deviations)
        assert stats.binomtest(int((np.abs(drawn) > deviations * std).sum()), COUNT, share).pvalue > 1e-4


def test_drawing_in_pieces_and_independent_of_each_other() -> None:
    drawn = discrete_gaussian(300_001, std=1e7, bits=os_bits())
    assert drawn.shape == (300_001,)
    assert drawn.dtype == np.int64
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.012
    assert abs(drawn.std() / 1e7 - 1) < 0.01


def test_no_width_is_no_noise() -> None:
    assert discrete_gaussian(5, std=0, bits=os_bits()).tolist() == [0] * 5
    assert discrete_gaussian(0, std=3, bits=os_bits()).shape == (0,)


@pytest.mark.parametrize("std", [-1.0, math.nan, math.inf, 2.0**41])
def test_widths_that_are_none_or_too_large_are_refused(std: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 2\\*\\*40"):
        discrete_gaussian(5, std=std, bits=os_bits())


def test_seeded_noise_repeats_and_differs_between_releases() -> None:
    one, same, other = (discrete_gaussian(50, std=1e5, bits=seeded_bits(3, turn)) for turn in (1, 1, 2))
    assert one.tolist() == same.tolist()
    assert not set(one.tolist()) & set(other.tolist())
    assert (seeded_bits(3).source, os_bits().source) == ("seeded", "os")


def test_noise_from_the_operating_system_never_repeats() -> None:
    one, other = (discrete_gaussian(50, std=1e9, bits=os_bits()) for _ in range(2))
    assert not set(one.tolist()) & set(other.tolist())


def test_flips_that_are_too_close_to_tell_are_decided_with_more_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exactly at the edge: 53 bits that say nothing, and the next 128 decide, against exp in 80 digits."""

    class Drawn:
        source = "seeded"

        def __init__(self, further):
            self.further = further

        def draw(self, count):
            assert count == 16
            return self.further.to_bytes(16, "little")

    for exponent in (Fraction(1), Fraction(7, 3), Fraction(40)):
        with mpmath.workprec(400):
            edge = int(mpmath.floor(mpmath.exp(-mpmath.mpf(exponent.numerator) / exponent.denominator) * 2**181))
        drawn, further = edge >> 128, edge & ((1 << 128) - 1)
        assert noise._decided(drawn, exponent, Drawn(further))
        assert not noise._decided(drawn, exponent, Drawn(further + 1))
    monkeypatch.setattr(noise, "_NEAR", 2.0)  # every flip the long way: the same distribution
    numbers = noise.discrete_gaussian(3000, std=2.0, bits=noise.seeded_bits(3))
    assert abs(numbers.mean()) < 4 * 2 / 3000**0.5
    assert abs(numbers.std() - 2) < 4 * 2 / 6000**0.5
