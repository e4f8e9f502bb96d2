"""Who is at fault where one can't open what another sealed."""

from itertools import combinations

import pytest

from tasks.secure.blame import accused, at_fault, complaint


def pairs(*words: str) -> set[frozenset[str]]:
    return {frozenset(word) for word in words}


@pytest.mark.parametrize("names", [["a"], ["a", "b"], ["st. anna, ward (3)", "x"]])
def test_a_complaint_names_whose_shares_were_closed(names: list[str]) -> None:
    assert accused(complaint(names)) == set(names)


@pytest.mark.parametrize(
    "reason",
    ["", "the roster has x, whom the approved study does not name", "so: " + complaint(["a"]), "the shares of a can't"],
)
def test_other_reasons_accuse_nobody(reason: str) -> None:
    assert accused(reason) == set()


@pytest.mark.parametrize(
    ("disputes", "liars", "found"),
    [
        (pairs(), 1, {}),
        (pairs("ab"), 1, {}),  # one word against another
        (pairs("ab", "cd"), 1, {}),
        (pairs("ab"), 0, {"a": 1, "b": 1}),  # nobody lies, so that both are broken
        (pairs("ma", "mb", "mc"), 1, {"m": 3}),  # three can't open what m sealed
        (pairs("ma", "mb"), 2, {}),  # two may lie
        (pairs("ma", "mb", "mc", "na", "nb"), 1, {"m": 3, "n": 2}),
        (pairs("ma", "mb", "mc", "ab"), 1, {"m": 3}),  # what is left between a and b is one word against another
    ],
)
def test_who_is_in_more_disputes_than_there_are_liars_is_one(disputes, liars: int, found: dict[str, int]) -> None:
    assert at_fault(disputes, liars=liars) == found


def test_one_liar_among_six_frames_nobody_whatever_it_says() -> None:
    honest = "abcde"
    for count in range(1, 6):
        for said in combinations(honest, count):
            assert set(at_fault(pairs(*(f"x{name}" for name in said)), liars=1)) <= {"x"}
