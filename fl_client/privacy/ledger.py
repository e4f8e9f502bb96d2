"""The hospital's privacy ledger: every release that concerns its patients, written down before it leaves.

One ledger belongs to one patient population, and outlives rounds, restarts, studies and kinds of model. Its lines are chained
(`fl_client.chain`), so that a changed, missing or cut-off line is found. A crash leaves an event too many, never one too few:

    lock, check approval and budget, append and fsync the line, write and fsync the head, unlock; only then may it leave.

What the chain can't show is told in docs/privacy.md: who may write both files can forge both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import ValidationError

from fl_client.chain import Body, Chain, ChainBroken
from tasks.accounting.events import Event


class BudgetSpent(RuntimeError):
    """A release would cost more than the hospital allows. Nothing was written and nothing may leave."""


class LedgerBroken(ChainBroken):
    """The ledger isn't what was written. A person has to look; until then nothing may leave."""


class Ledger:
    """The releases of one patient population and what they cost.

    Any number of processes may hold a `Ledger` on the same path. Nothing is kept in memory: every question is answered
    from the file, under a lock.

    Parameters
    ----------
    path : Path
        The JSONL file; made at the first event, readable by its owner only.
    epsilon, delta : float
        The most these patients' data may cost, over everything, for ever, whatever the choice of one release owes to those
        before it (`filters`). The hospital may change either at any time: the ledger holds events, and what they cost is
        worked out when it is asked.
    accept_no_privacy : bool
        Let releases without noise be written (rehearsals). They make `epsilon` infinite and it stays so. The budget then
        goes on binding the releases that do have noise. Without it, an infinite epsilon is over every budget.
    """

    def __init__(self, path: Path | str, *, epsilon: float, delta: float, accept_no_privacy: bool = False) -> None:
        if not epsilon > 0:
            raise ValueError(f"a hospital's epsilon must be positive, not {epsilon}")
        if not 0 < delta < 1:
            raise ValueError(f"a hospital's delta must lie between 0 and 1, not {delta}")
        self.path = Path(path)
        self._chain = Chain(self.path, "ledger", LedgerBroken)
        self.budget = epsilon
        self.delta = delta
        self.accept_no_privacy = accept_no_privacy

    # -- what a release does ------------------------------------------------------------------------------------------

    def spend(self, event: Event, *, check: Callable[[Sequence[Event]], None] | None = None) -> float:
        """Write `event` down and return the epsilon of everything so far. When this returns, the release may leave.

        `check` is called with everything that was spent before, while no other process can spend: what it raises is
        raised, and nothing is written. It must not ask this ledger anything, which would wait for ever.

        The line is on the disk before the call returns (file and folder are fsynced). A release that is repeated is
        spent again: its noise is new. What a crash left half-written at the end is cut off first: its `spend` had not
        returned, so its release did not leave.

        Raises
        ------
        BudgetSpent
            Before anything is written, if the event would bring epsilon over the budget, or has no noise and the
            hospital doesn't accept that.
        LedgerBroken
            Before anything is written, if the ledger isn't what was written.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._chain.whole() as book:
            past = [self._event(body) for body in book.bodies]
            if check is not None:
                check(past)
            self._require_affordable(past, [event])
            book.append({"event": event.model_dump(mode="json", exclude_none=True)})
            return epsilon_of([*past, event], delta=self.delta)

    def planned(self, events: Sequence[Event]) -> float:
        """The epsilon there would be after `events`: what a study costs, asked before anyone approves it."""
        return epsilon_of([*self.events, *events], delta=self.delta)

    def affords(self, events: Sequence[Event]) -> None:
        """Return if the budget covers all of `events`; otherwise raise `BudgetSpent` as `spend` would. Writes nothing."""
        self._require_affordable(self.events, events)

    # -- what the data protection officer reads -----------------------------------------------------------------------

    @property
    def events(self) -> tuple[Event, ...]:
        """Everything that was spent, oldest first. Raises `LedgerBroken`."""
        return tuple(self._event(body) for body in self._chain.bodies)

    @property
    def lines(self) -> tuple[tuple[str, Event], ...]:
        """The same, each with the time at which it was written (ISO 8601, UTC). Raises `LedgerBroken`."""
        return tuple((str(body["time"]), self._event(body)) for body in self._chain.bodies)

    @property
    def epsilon(self) -> float:
        """What one patient's data have cost so far, at the hospital's delta."""
        return epsilon_of(self.events, delta=self.delta)

    def verify(self) -> None:
        """Read every line and check the chain. Raises `LedgerBroken` naming the first line that isn't right."""
        _ = self.events

    # -- inside -------------------------------------------------------------------------------------------------------

    def _require_affordable(self, past: Sequence[Event], new: Sequence[Event]) -> None:
        limit = f"this hospital's {self.budget:g} (delta {self.delta:g})"
        for event in new:
            if event.noise_multiplier == 0 and not self.accept_no_privacy:
                raise BudgetSpent(
                    f"{_name(event)} would leave without noise and bring epsilon to infinity, over {limit}; "
                    "the hospital's settings don't accept a release without privacy"
                )
        noisy = [event for event in new if event.noise_multiplier > 0]
        counted = [event for event in past if event.noise_multiplier > 0 or not self.accept_no_privacy]
        if not noisy:
            return
        from fl_client.privacy.filters import ALLOWANCE, reached  # here: the accountant takes a moment to import

        after = reached([*counted, *noisy], budget=self.budget, delta=self.delta)
        if after.epsilon > self.budget:
            raise BudgetSpent(f"{_name(noisy[-1])} would bring epsilon to {_over(after.epsilon, self.budget)}, over {limit}")
        if after.beside > ALLOWANCE:
            raise BudgetSpent(
                f"{_name(noisy[-1])} would add {100 * after.beside:.2g} % to this hospital's delta of {self.delta:g}, so "
                f"coarsely is its noise drawn; at most {100 * ALLOWANCE:g} % may be"
            )

    def _event(self, body: Body) -> Event:
        try:
            return Event.model_validate(body["event"])
        except (KeyError, ValidationError):
            raise LedgerBroken(f"{self.path} line {body['line']} is not a ledger entry") from None


def epsilon_of(events: Sequence[Event], *, delta: float) -> float:
    """What these events cost together (`tasks.accounting.budget.epsilon`)."""
    from tasks.accounting.budget import epsilon  # here: the accountant takes a moment to import

    return epsilon(events, delta=delta)


def _name(event: Event) -> str:
    what = "scores" if event.kind == "scores" else f"round {event.round}"
    return f"study {event.study_name or event.study[:12] or '(unnamed)'} {what}"


def _over(after: float, budget: float) -> str:
    """`after` with as many digits as show that it is over `budget`."""
    if math.isinf(after):
        return "infinity"
    return next((text for digits in range(3, 17) if float(text := f"{after:.{digits}g}") > budget), repr(after))
