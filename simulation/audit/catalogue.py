"""All checks, in the order in which they run: what can be certain first, then what takes long."""

from __future__ import annotations

from simulation.audit import (
    canary,
    denominators,
    gate,
    inversion,
    leaving,
    membership,
    neighbours,
    noise,
    paid,
    sampling,
    secure,
)
from simulation.audit.check import Check
from simulation.audit.settings import Audit

CHEAP: tuple[Check, ...] = (
    *gate.CHECKS,
    *neighbours.CHECKS,
    *denominators.CHECKS,
    *noise.CHECKS,
    *sampling.CHECKS,
    *paid.CHECKS,
    *leaving.CHECKS,
    *secure.CHECKS,
    *canary.CHECKS,
)
"""Done in a minute: what benchmarks/seeded_bugs.py runs against broken code."""
ALL: tuple[Check, ...] = (*CHEAP, *membership.CHECKS, *inversion.CHECKS)


def chosen(audit: Audit) -> tuple[Check, ...]:
    """The checks of these settings. Raises `ValueError` for a name that there is not."""
    names = [check.name for check in ALL]
    if unknown := sorted(set(audit.checks) - set(names)):
        raise ValueError(f"audit.checks: no check named {', '.join(unknown)}; there are {', '.join(names)}")
    return tuple(check for check in ALL if check.wanted(audit) and (not audit.checks or check.name in audit.checks))
