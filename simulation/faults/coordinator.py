"""Faults of the coordinator: its processes die, and a study has to go on from what stands on the disk."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from simulation.faults.fault import AtCoordinator


class CoordinatorKilled(AtCoordinator):
    """The coordinator's process is killed in the middle of a round, started again, and told to go on."""

    fault: Literal["coordinator_killed"]
    in_federation: ClassVar[bool] = True
    answers: Annotated[int, Field(ge=0)] = 0  # of the round, that it has heard by then


class SuperLinkKilled(AtCoordinator):
    """Flower's SuperLink is killed in the middle of a round; only real processes have one."""

    fault: Literal["superlink_killed"]
    in_federation: ClassVar[bool] = True


class Killed(BaseException):
    """The coordinator's process is gone: no `except Exception` of it runs, and all that it had in memory is lost."""
