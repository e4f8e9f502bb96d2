"""What a secure sum costs a patient: the event that goes into the ledger before the masked vector leaves.

If the assumptions hold (tasks/secure/__init__.py) a release is one sum with the noise of `threshold - colluding` sites at
least; more noise never costs more. If they fail, one site's vector is seen with that site's own noise alone: that multiplier
stands in the event as well.
"""

from __future__ import annotations

from typing import Any

from tasks.accounting.events import Event, shared_noise
from tasks.secure.grid import Grid


def event(grid: Grid, **rest: Any) -> Event:
    """The event of one release on this grid; `rest` are further fields of `Event`: study, study_name, round, kind, noise,
    planned.

    A sum without noise is the event of a release that promises nothing.
    """
    if grid.noise_multiplier == 0:
        return Event(noise_multiplier=0, **rest)
    return shared_noise(
        share_std=grid.share_std,
        shares=grid.circle.noise_shares,
        sensitivity=grid.sensitivity,
        dimension=grid.length,
        sampling_error=grid.sampling_error,
        **rest,
    )
