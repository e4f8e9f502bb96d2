"""The grid holds every sum that can be, rounds no more than it says, and carries the noise that was promised."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from circle_of import circle_of, whole_round

from tasks.secure.circle import WrongSum
from tasks.secure.grid import FINEST_NOISE, Grid
from tasks.secure.noise import seeded_bits

SIX = circle_of(6)
SHAPES = {"weight": (3, 5), "bias": (4,), "scale": ()}
QUIET = Grid(circle=SIX, shapes=SHAPES, bound=0.5, patients=240, noise_multiplier=0.0)
LOUD = replace(QUIET, noise_multiplier=2.0)


def totals(seed: int, size: float = 3.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.uniform(-size, size, shape).astype(np.float32).reshape(shape) for name, shape in SHAPES.items()}


def test_the_sum_of_six_hospitals_is_right_to_half_a_step_each() -> None:
    sites = {name: totals(seed) for seed, name in enumerate(SIX.sites)}
    masked = {name: QUIET.encode(arrays, patients=40, bits=seeded_bits(1)) for name, arrays in sites.items()}
    found = QUIET.decode(whole_round(SIX, masked), sites=SIX.sites)
    for name in SHAPES:
        exact = sum(arrays[name].astype(np.float64) for arrays in sites.values())
        assert found[name].shape == SHAPES[name]
        assert np.abs(found[name] - exact).max() <= QUIET.max_error
    assert QUIET.max_error == 6 * QUIET.step / 2
    assert QUIET.max_error < 1e-6


def test_the_step_is_a_power_of_two_that_leaves_less_than_half_unused() -> None:
    for grid in (QUIET, LOUD):
        assert math.frexp(grid.step)[0] == 0.5
        reach = grid.patients * grid.bound / grid.step + 10 * grid.share_std * math.sqrt(6)
        assert 2**29 < reach < 2**31


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("grid", [QUIET, LOUD])
def test_all_patients_at_the_bound_in_one_number_and_ten_deviations_of_noise_do_not_overflow(grid: Grid, sign: float) -> None:
    arrays = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    arrays["bias"][2] = sign * 40 * grid.bound
    sums = sum(grid.encode(arrays, patients=40, bits=seeded_bits(2, site)) for site in range(6))
    assert isinstance(sums, np.ndarray)
    found = grid.decode(sums.astype(np.uint32), sites=SIX.sites)["bias"][2]
    noise = grid.step * grid.share_std * math.sqrt(6)
    assert abs(found - sign * 240 * grid.bound) <= grid.max_error + 5 * noise
    # in exact fractions: bound, rounding at every site, and noise of ten deviations stay below 2**31
    most = (
        Fraction(grid.patients) * Fraction(grid.bound) / Fraction(grid.step) + 3 + 10 * Fraction(grid.share_std * math.sqrt(6))
    )
    assert most < 2**31


def test_more_patients_than_declared_are_cut_and_not_carried_over() -> None:
    arrays = {name: np.full(shape, 1e9) for name, shape in SHAPES.items()}
    sums = sum(QUIET.encode(arrays, patients=40, bits=seeded_bits(2)).astype(np.int64) for _ in range(6))
    assert np.abs(sums * QUIET.step - 120).max() <= QUIET.max_error


def test_with_noise_off_neighbouring_totals_differ_by_no_more_than_the_sensitivity() -> None:
    rng = np.random.default_rng(5)
    grid = replace(QUIET, shapes={"a": (2000,)})
    worst = 0.0
    for _ in range(50):
        total = rng.uniform(-1, 1, 2000)
        patient = rng.standard_normal(2000)
        patient *= grid.bound / np.linalg.norm(patient)
        one, other = (
            grid.encode({"a": x}, patients=40, bits=seeded_bits(1)).view(np.int32).astype(float)
            for x in (total, total + patient)
        )
        worst = max(worst, float(np.linalg.norm(one - other)))
    assert worst <= grid.bound / grid.step + math.sqrt(2000) == grid.sensitivity


def test_with_a_coarse_grid_rounding_adds_what_the_sensitivity_says() -> None:
    # a bound of few steps: patients so many that the grid is as coarse as it may be without noise
    grid = Grid(circle=SIX, shapes={"a": (500,)}, bound=1.0, patients=2**30, noise_multiplier=0.0)
    assert grid.step == 1.0
    total, patient = np.full(500, 0.49), np.full(500, 1 / math.sqrt(500))
    one, other = (
        grid.encode({"a": x}, patients=10**6, bits=seeded_bits(1)).view(np.int32).astype(float)
        for x in (total, total + patient)
    )
    distance = float(np.linalg.norm(one - other))
    assert distance == pytest.approx(math.sqrt(500))  # every number fell on the other side of a half
    assert 1.0 < distance <= grid.sensitivity


def test_the_noise_of_the_sum_is_what_was_promised_where_as_many_are_left_as_must_be() -> None:
    grid = replace(LOUD, shapes={"a": (60_000,)})
    assert (SIX.threshold, SIX.colluding) == (5, 1)
    zeros = {"a": np.zeros(60_000)}
    sums = sum(grid.encode(zeros, patients=40, bits=seeded_bits(4, site)).view(np.int32).astype(np.int64) for site in range(4))
    promised = 2.0 * (0.5 + grid.step * math.sqrt(60_000))
    assert np.std(sums) * grid.step == pytest.approx(promised, rel=0.01)  # 60,000 numbers: 0.3 % is one deviation
    assert promised == pytest.approx(1.0, rel=1e-3)  # rounding costs next to nothing


def test_a_sum_with_a_mask_left_on_is_refused() -> None:
    grid = replace(LOUD, shapes={"a": (3000,)})
    garbage = np.random.default_rng(1).integers(0, 2**32, 3000, dtype=np.uint32)
    with pytest.raises(WrongSum, match="masks were left on"):
        grid.decode(garbage, sites=SIX.sites)


def test_the_noisiest_honest_sum_is_not_taken_for_a_wrong_one() -> None:
    grid = replace(LOUD, shapes={"a": (3000,)})
    for seed in range(5):
        most = np.zeros(3000)
        most[0] = 20.0
        sums = sum(grid.encode({"a": most}, patients=40, bits=seeded_bits(seed, site)) for site in range(6))
        assert isinstance(sums, np.ndarray)
        assert grid.decode(sums, sites=SIX.sites)["a"].shape == (3000,)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bound": math.inf}, "finite positive bound"),
        ({"bound": 0.0}, "finite positive bound"),
        ({"patients": 0}, "at least one patient"),
        ({"noise_multiplier": math.nan}, "noise_multiplier must be"),
        ({"noise_multiplier": 1e9}, "does not fit into 32 bits"),
        ({"noise_multiplier": 1e-4, "patients": 10**6}, f"needs {FINEST_NOISE:g}"),
        ({"shapes": {}}, "nothing to sum"),
    ],
)
def test_grids_that_can_not_be_are_refused(change: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(QUIET, **change)


def test_totals_of_another_form_are_refused() -> None:
    good = totals(1)
    with pytest.raises(ValueError, match="the sum is over weight, bias, scale, not over weight, bias"):
        QUIET.encode({name: good[name] for name in ("weight", "bias")}, patients=40, bits=seeded_bits(1))
    with pytest.raises(ValueError, match=r"'bias' has shape \(5,\), not \(4,\)"):
        QUIET.encode({**good, "bias": np.zeros(5)}, patients=40, bits=seeded_bits(1))
    with pytest.raises(ValueError, match="'bias' holds a number that is not finite"):
        QUIET.encode({**good, "bias": np.array([0, 1, math.nan, 2])}, patients=40, bits=seeded_bits(1))


def test_what_is_said_of_the_noise_adds_up() -> None:
    assert LOUD.share_std / LOUD.sensitivity * math.sqrt(SIX.threshold - SIX.colluding) == pytest.approx(2.0)
    assert LOUD.sampling_error == 4 * 20 * 2.0**-100
