"""How hard konsil is attacked: the group `audit` of `conf/`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from conf.frozen import Frozen

Many = Annotated[int, Field(ge=1)]


class Audit(Frozen):
    """`none` is a rehearsal and no attack. The numbers stand in `conf/audit/*.yaml`."""

    effort: Literal["none", "quick", "full"] = "none"
    checks: tuple[str, ...] = ()  # by name; none named: all of them
    releases: Annotated[int, Field(ge=2)] = 6  # noisy answers whose spread is measured
    draws: Annotated[int, Field(ge=10)] = 300  # steps of which it is known who was drawn
    canaries: Annotated[int, Field(ge=100)] = 2000
    canary_runs: Many = 1
    shadow_models: Annotated[int, Field(ge=0)] = 0  # of membership inference; 0 leaves it out
    inversion_steps: Annotated[int, Field(ge=0)] = 0  # of gradient inversion; 0 leaves it out

    def __bool__(self) -> bool:
        return self.effort != "none"
