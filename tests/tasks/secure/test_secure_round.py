"""Whole rounds: the sum is exact, or there is none."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from circle_of import NOW, circle_of, key_of, sites_of, whole_round

from tasks.secure.circle import Refused, TooFew
from tasks.secure.coordinator import CoordinatorRound
from tasks.secure.masks import Vector
from tasks.secure.site import SiteRound

PHASES = ("keys", "shares", "train", "agree", "unmask")


def vectors_of(circle_sites: tuple[str, ...], length: int = 40) -> dict[str, Vector]:
    rng = np.random.default_rng(len(circle_sites))
    return {name: rng.integers(0, 2**32, length, dtype=np.uint32) for name in circle_sites}


def summed(vectors: dict[str, Vector], sites: set[str]) -> list[int]:
    """In Python's own whole numbers."""
    return [sum(int(vectors[name][index]) for name in sites) % 2**32 for index in range(40)]


@pytest.mark.parametrize("count", [3, 4, 6, 20])
def test_the_sum_is_exact(count: int) -> None:
    circle = circle_of(count)
    vectors = vectors_of(circle.sites)
    assert whole_round(circle, vectors).tolist() == summed(vectors, set(circle.sites))


@pytest.mark.parametrize("threshold", [4, 3])
def test_whoever_drops_out_and_whenever_the_sum_is_the_survivors_or_there_is_none(threshold: int) -> None:
    circle = circle_of(5, threshold=threshold, colluding=0)
    vectors = vectors_of(circle.sites)
    phases = [phase for phase in PHASES if phase != "agree" or circle.must_agree]
    sums = refusals = 0
    # how many questions the sites answer; which site it is matters to the signs of masks alone, so the names are turned
    patterns = itertools.combinations_with_replacement(range(len(phases) + 1), 5)
    for index, steps in enumerate(patterns):
        dropping = [step for step in steps if step < len(phases)]
        if 5 - len(dropping) < threshold - 1 and index % 5:
            continue  # far too few are left
        pattern = steps[index % 5 :] + steps[: index % 5]
        gone = {phase: [circle.sites[i] for i in range(5) if pattern[i] == step] for step, phase in enumerate(phases)}
        sent = {circle.sites[i] for i in range(5) if pattern[i] > phases.index("train")}
        try:
            total = whole_round(circle, vectors, gone=gone)
        except TooFew:
            refusals += 1
            assert 5 - len(dropping) < threshold
            continue
        sums += 1
        assert total.tolist() == summed(vectors, sent)
    assert sums >= 5
    assert refusals > 10


def test_a_site_that_goes_on_in_another_process_after_every_question_comes_to_the_same_sum() -> None:
    circle = circle_of(5, threshold=4)
    vectors = vectors_of(circle.sites)
    before = summed(vectors, set(circle.sites))

    def anew(one: SiteRound) -> SiteRound:
        return SiteRound.restored(circle, NOW, site=one.site, key=key_of(one.site), state=one.state())

    sites, server = sites_of(circle), CoordinatorRound(circle, NOW, length=40)
    roster = server.keys({name: one.keys() for name, one in sites.items()})
    sites = {name: anew(one) for name, one in sites.items()}
    shares = server.shares({name: one.shares(roster) for name, one in sites.items()})
    sites = {name: anew(one) for name, one in sites.items()}
    for name, one in sites.items():
        one.accept(shares[name])
    sites = {name: anew(one) for name, one in sites.items()}
    for name, one in sites.items():
        server.add(name, one.mask(vectors[name].copy()))
    sites = {name: anew(one) for name, one in sites.items()}
    survivors = server.survivors()
    answers = {name: one.unmask(survivors) for name, one in sites.items()}
    assert server.unmask(answers).tolist() == before
    for one in sites.values():
        with pytest.raises(Refused, match="asked a second time"):
            anew(one).unmask(survivors)
