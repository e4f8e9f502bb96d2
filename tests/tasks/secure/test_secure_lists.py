"""Why lists of who answered need no signatures where all but one must be left, and do below: every lie of a coordinator, tried.

A lie is what each honest hospital is told: with whom it has masks in common, and who of them answered. The hospitals check the
lengths and that they stand in both themselves; the rest is the coordinator's choice, another for each. Those that collude
give it all their shares. From that follows whose masks it learns, and so of how few honest hospitals it can see the sum.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

import pytest
from circle_of import circle_of

Told = tuple[frozenset[int], frozenset[int]]  # with whom masks are in common, and who answered


def may_be_told(site: int, count: int, threshold: int) -> Iterator[Told]:
    for size in range(threshold, count + 1):
        for common in itertools.combinations(range(count), size):
            for length in range(threshold, size + 1):
                for answered in itertools.combinations(common, length):
                    if site in answered:
                        yield frozenset(common), frozenset(answered)


def fewest_summed(told: Mapping[int, Told], *, threshold: int, colluding: int) -> int:
    """Honest hospitals in the smallest sum that the coordinator can lay open."""
    names = {name for common, _ in told.values() for name in common}
    own = {u for u in names if sum(u in answered for _, answered in told.values()) + colluding >= threshold}
    pairs = {u for u in names if sum(u in common - answered for common, answered in told.values()) + colluding >= threshold}
    sizes = [len(told) + 1]
    for start in told:
        together, new = set(), {start}
        while new:
            together |= new
            # a mask that two honest hospitals share leaves the sum only with both, or if the secret of one is known
            new = {v for u in new if u not in pairs for v in told[u][0] if v in told and v not in pairs} - together
        if together <= own:
            sizes.append(len(together))
    return min(sizes)


@pytest.mark.parametrize(
    ("count", "threshold", "colluding"), [(3, 3, 1), (4, 3, 0), (4, 3, 1), (5, 4, 1), (5, 4, 2), (5, 5, 2)]
)
def test_where_all_but_one_must_be_left_no_lie_opens_a_sum_of_fewer_than_promised(
    count: int, threshold: int, colluding: int
) -> None:
    circle = circle_of(count, threshold=threshold, colluding=colluding)
    assert not circle.must_agree
    honest = range(count - colluding)
    lies = itertools.product(*(list(may_be_told(site, count, threshold)) for site in honest))
    fewest = min(fewest_summed(dict(zip(honest, lie, strict=True)), threshold=threshold, colluding=colluding) for lie in lies)
    assert fewest == circle.noise_shares


def test_where_two_may_be_missing_a_lie_opens_a_sum_of_fewer_so_lists_are_signed() -> None:
    everybody = frozenset(range(6))  # the last one colludes
    left_out = {0: {2, 3}, 1: {2, 4}, 2: {3, 4}, 3: {2, 4}, 4: {3}}
    told = {site: (everybody, everybody - names) for site, names in left_out.items()}
    assert all(names in set(may_be_told(site, 6, 4)) for site, names in told.items())
    circle = circle_of(6, threshold=4, colluding=1)
    assert fewest_summed(told, threshold=4, colluding=1) == 2 < circle.noise_shares
    assert circle.must_agree


def test_with_one_list_for_all_no_lie_about_masks_in_common_opens_fewer() -> None:
    # what signatures leave: the list is the same, with whom masks are in common may differ
    honest, threshold, colluding = range(5), 4, 1
    for answered in (frozenset(range(4)), frozenset({0, 1, 2, 5}), frozenset(range(5)), frozenset(range(6))):
        answering = [site for site in honest if site in answered]
        more = [names for size in range(7) for names in itertools.combinations(range(6), size) if answered <= set(names)]
        for commons in itertools.product(more, repeat=len(answering)):
            told = {site: (frozenset(common), answered) for site, common in zip(answering, commons, strict=True)}
            assert fewest_summed(told, threshold=threshold, colluding=colluding) >= threshold - colluding
