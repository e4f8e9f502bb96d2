"""A cine's end-diastole and end-systole, found by where a reader drew and by where the phases lie in the heartbeat."""

from __future__ import annotations

from collections.abc import Iterator

from fl_client.intake.door import Refused
from fl_client.intake.headers import is_drawn
from fl_client.intake.instants import instants
from fl_client.intake.volume import Frame

NEAR_R_WAVE = 8
"""A cine's lone masked phase is end-diastole within one part in so many of the cycle, before or after the R wave."""

SYSTOLE = (0.2, 0.6)
"""And end-systole if it lies between these shares of the cycle after the R wave: about a third at rest, more at high rates."""


def phases(name: str, frames: list[Frame], masks: list[Frame]) -> Iterator[tuple[str, list[Frame]]]:
    """A cine as `<name>_ed` and `<name>_es`.

    Phases are the frames' ranks in time at their slice position (`instants`). Masks say which phases matter: a reader draws on
    end-diastole and end-systole, and the heart contracts, so that of two masked phases end-diastole is the one nearer to the
    R wave (cyclically). A single masked phase has nothing to be compared with: it is named by where it lies in the cycle, or
    refused. Without masks only the first phase, at the R wave, is taken as end-diastole. Raises `Refused` and what `instants`
    raises.
    """
    by_rank = instants(frames, cycle=True).frames
    masked = [rank for rank, phase in enumerate(by_rank) if is_drawn(phase, masks)]
    if len(masked) > 2:
        raise Refused(f"{name}: masks on {len(masked)} phases; the study reads end-diastole and end-systole")
    if len(masked) == 1:
        yield f"{name}_{_only_phase(name, masked[0], len(by_rank))}", by_rank[masked[0]]
        return
    masked.sort(key=lambda rank: min(rank, len(by_rank) - rank))
    for suffix, rank in zip(("ed", "es"), masked or [0], strict=False):
        yield f"{name}_{suffix}", by_rank[rank]


def _only_phase(name: str, rank: int, count: int) -> str:
    """`ed` or `es` for the one phase that somebody drew on. Raises `Refused` where it could be neither or both."""
    if min(rank, count - rank) <= count / NEAR_R_WAVE:
        return "ed"
    if SYSTOLE[0] <= rank / count <= SYSTOLE[1]:
        return "es"
    raise Refused(
        f"{name}: only phase {rank + 1} of {count} has a mask, {rank / count:.0%} of the cycle after the R wave; end-diastole "
        f"lies within {1 / NEAR_R_WAVE:.1%} of it and end-systole between {SYSTOLE[0]:.0%} and {SYSTOLE[1]:.0%} after it"
    )
