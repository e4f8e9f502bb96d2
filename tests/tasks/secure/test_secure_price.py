"""What a hospital's ledger writes for one secure sum."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from circle_of import circle_of

from tasks.secure.grid import Grid
from tasks.secure.price import event

SIX = Grid(circle=circle_of(6), shapes={"a": (1000,)}, bound=0.5, patients=240, noise_multiplier=2.0)


def test_the_event_is_the_promised_noise_and_states_what_one_share_alone_is_worth() -> None:
    found = event(SIX, study="ab", round=4, kind="gradient")
    assert (found.mechanism, found.round, found.study, found.kind) == ("discrete_gaussian", 4, "ab", "gradient")
    assert found.noise_multiplier == pytest.approx(2.0)
    assert found.own_noise_multiplier == pytest.approx(1.0)  # four shares that count: threshold 5, one colluding
    assert (found.shares, found.dimension) == (4, 1000)
    assert found.sensitivity == pytest.approx(0.5 / SIX.step + math.sqrt(1000), rel=1e-12)
    assert found.sampling_error == 4 * 1000 * 2.0**-100


def test_more_sites_that_may_collude_need_more_noise_at_each() -> None:
    more = replace(SIX, circle=circle_of(6, colluding=2))
    assert event(more).noise_multiplier == pytest.approx(2.0)
    assert event(more).own_noise_multiplier == pytest.approx(2.0 / math.sqrt(3))


def test_a_sum_without_noise_promises_nothing() -> None:
    assert event(replace(SIX, noise_multiplier=0.0)).noise_multiplier == 0
    assert event(replace(SIX, noise_multiplier=0.0)).mechanism == "gaussian"
