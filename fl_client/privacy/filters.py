"""Whether one more release may follow, when what was released before may have decided what it is: a privacy filter.

Adding up what fixed releases cost is not enough for that. Against somebody who chooses noise, rate or study after having seen
results, the rule "stop when the composed curve is over" promises too much, unless all curves come from one ordered family.
Gaussian curves do. So everything is counted as Gaussian and stopped by a sum of squares, which loses nothing for what is
Gaussian (Smith and Thakurta 2022; Koskela, Tobaben and Honkela 2023). The argument: docs/decisions/0007-adaptive-budget.md.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from tasks.accounting.budget import epsilon as epsilon_of_fixed
from tasks.accounting.budget import of_sums
from tasks.accounting.discrete import as_gaussian
from tasks.accounting.events import Event, Law
from tasks.accounting.gaussian import mu_of_pure

ALLOWANCE = 0.01
"""The part of delta, on top of it, that differences between what happened and the Gaussians that stand for it may take."""

_LOT = 1e-4  # of delta: the difference that one lot of sampled sums may make
_LOTS = 50  # that may make one; sums of further lots are counted as if everybody took part

_VAIN = 40.0  # a budget above it promises nothing that noise drawn a little wrongly could spoil


class Reached(NamedTuple):
    """How far a sequence of releases has come."""

    epsilon: float
    """The smallest budget with which all of them were let out, whatever decided what each was."""
    beside: float
    """What the promise lacks besides, as a part of delta; more than `ALLOWANCE` may not be."""


def reached(events: Sequence[Event], *, budget: float, delta: float) -> Reached:
    """How far these releases, in this order, have come towards an epsilon of `budget` at `delta`.

    Where all is Gaussian noise without sampling it is what they cost, exactly. Sampled sums are counted in lots, each paid
    whole when it begins: what the study had planned (`Event.planned`), and 1, 1, 2, 4, ... steps where more come. The first
    study was fixed before anything was released, so its plan counts as what it costs; a later lot counts as the Gaussian that
    covers it. Never less than `budget.epsilon`.
    """
    if any(event.noise_multiplier == 0 for event in events):
        return Reached(math.inf, 0.0)
    lots = _Lots(first=events[0].study if events else "", apart=_LOT * delta)
    normal: Counter[Law] = Counter()
    mu2 = pad = error = 0.0
    for event in events:
        law, error = event.law, error + (event.sampling_error or 0.0)
        if law.mechanism == "discrete_gaussian":
            rounded = as_gaussian(law)
            if rounded is None:
                return Reached(math.inf, 0.0)
            mu2, pad = mu2 + event.steps * rounded.mu**2, pad + 2 * event.steps * rounded.apart
        elif law.mechanism == "gaussian" and law.sample_rate == 1:
            normal[law] += event.steps
        else:
            lots.add(event)
    mu2 += lots.mu2
    if mu2:
        normal[Law("gaussian", 1 / math.sqrt(mu2))] += 1
    found = of_sums(tuple(sorted((normal + lots.fixed).items())), delta) + pad
    beside = lots.covers * _LOT + (1 + math.exp(min(budget, _VAIN))) * error / delta
    return Reached(max(found, epsilon_of_fixed(events, delta=delta)), beside)


class _Lots:
    """Releases that are counted many at a time."""

    def __init__(self, *, first: str, apart: float) -> None:
        self.first = first  # the study of the very first release
        self.apart = apart
        self.fixed: Counter[Law] = Counter()  # settled before anything was released
        self.mu2 = 0.0  # of everything else
        self.covers = 0
        self._left: Counter[tuple[str, str, Law]] = Counter()  # paid and not yet used
        self._more: dict[tuple[str, str, Law], int] = {}  # paid beyond what was planned

    def add(self, event: Event) -> None:
        """One event: within what is paid, or the beginning of a lot."""
        kind = (event.study, event.kind, event.law)
        missing = event.steps - self._left[kind]
        if missing > 0:
            plan = event.planned or 0 if kind not in self._more else 0
            size = max(plan, missing, self._more.get(kind, 0))
            self._more[kind] = 0 if plan else self._more.get(kind, 0) + size
            self._pay(event.law, size, settled=bool(plan and event.study and event.study == self.first))
            self._left[kind] += size
        self._left[kind] -= event.steps

    def _pay(self, law: Law, steps: int, *, settled: bool) -> None:
        if settled:
            self.fixed[law] += steps
        elif law.mechanism != "gaussian":
            self.mu2 += steps * mu_of_pure(1 / law.noise_multiplier) ** 2
        elif self.covers < _LOTS:
            from tasks.accounting.loss_distributions import mu_like  # here: a second to import, needed for sampling only

            self.mu2 += mu_like(law, steps, apart=self.apart) ** 2
            self.covers += 1
        else:
            self.mu2 += steps / law.noise_multiplier**2
