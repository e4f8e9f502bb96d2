"""Where a hospital's privacy budget went: by study and kind, over time, what is left, and what one more study would take.

Epsilons don't add up, so they make no account. What adds up is the square of sensitivity over noise, for Gaussian noise exactly
(`tasks.accounting.gaussian`); the budget, too, is worth so much of it. Percentages here are of that: they add up to what is
spent, and what is left is what further Gaussian releases may have. For the hospital's own screen.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fl_client.privacy import BudgetSpent, Event, Ledger, epsilon
from fl_client.privacy.filters import reached
from tasks.accounting.discrete import as_gaussian
from tasks.accounting.events import Law
from tasks.accounting.gaussian import mu_at, mu_of_pure

_MOST_POINTS = 400  # of the course that are worked out: a ledger of thousands of rounds is drawn through some of them


@dataclass(frozen=True)
class Kind:
    """Releases of one kind in one study."""

    kind: str
    releases: int
    noise: tuple[float, float]  # the least and the largest noise multiplier
    share: float  # of the budget; 0 for releases without noise


@dataclass(frozen=True)
class OfStudy:
    """What one study has taken."""

    study: str  # hash
    name: str
    first: str  # time of its first release, ISO 8601
    last: str
    kinds: tuple[Kind, ...]
    share: float  # of the budget
    epsilon: float  # if it had been alone
    if_secure_aggregation_fails: float | None  # its epsilon then; None: it has no shared noise


@dataclass(frozen=True)
class Proposed:
    """What one more study would come to."""

    study: str
    name: str
    releases: int  # that are still to be paid
    alone: float  # their epsilon at this hospital's delta
    after: float  # everything's, with it
    share: float  # of the budget
    refused: str  # why the ledger would refuse it; empty if it wouldn't
    paid: int = 0  # of its releases, what stands in the ledger already; a repeated one counts once


@dataclass(frozen=True)
class Spending:
    """An account of a ledger."""

    hospital: str
    budget: float
    delta: float
    epsilon: float  # of all releases
    releases: int
    bare: int  # without noise
    repeatable: int  # with noise that can be repeated: rehearsals
    used: float  # share of the budget, 1 is all
    studies: tuple[OfStudy, ...]  # the first one first
    course: tuple[tuple[str, str, float], ...]  # time, study and epsilon after a release; some of very many
    proposed: Proposed | None = None


def spending(
    book: Ledger,
    *,
    hospital: str,
    study: tuple[str, str] = ("", ""),
    planned: Sequence[Event] | None = None,
    paid: int = 0,
) -> Spending:
    """The account of a ledger; `planned` are the releases of a study (its hash and name) that it might take part in.

    `paid` further ones of that study stand in the ledger.

    Raises `LedgerBroken`.
    """
    lines = book.lines
    events = [event for _, event in lines]
    noisy = [event for event in events if event.noise_multiplier > 0]
    whole = mu_at(book.budget, book.delta) ** 2
    used = _square(noisy, book) / whole
    weights: defaultdict[tuple[str, str], float] = defaultdict(float)
    for (of, kind, law), steps in _together(noisy).items():
        weights[of, kind] += _weight(law, steps, book.delta)
    scale = used / sum(weights.values()) if weights else 0.0
    found = []
    for of in dict.fromkeys(_of(event) for event in events):
        mine = [(time, event) for time, event in lines if _of(event) == of]
        kinds = tuple(_kind(mine, kind, weights[of, kind] * scale) for kind in dict.fromkeys(one.kind for _, one in mine))
        alone = [event for _, event in mine]
        shared = any(event.own_noise_multiplier is not None for event in alone)
        found.append(
            OfStudy(
                study=alone[0].study,
                name=alone[0].study_name or of[:12] or "(unnamed)",
                first=mine[0][0],
                last=mine[-1][0],
                kinds=kinds,
                share=sum(kind.share for kind in kinds),
                epsilon=epsilon(alone, delta=book.delta),
                if_secure_aggregation_fails=epsilon([one.alone for one in alone], delta=book.delta) if shared else None,
            )
        )
    return Spending(
        hospital=hospital,
        budget=book.budget,
        delta=book.delta,
        epsilon=epsilon(events, delta=book.delta),
        releases=len(events),
        bare=len(events) - len(noisy),
        repeatable=sum(event.noise == "seeded" for event in events),
        used=used,
        studies=tuple(found),
        course=tuple(_course(lines, book.delta)),
        proposed=None if planned is None else _proposed(book, noisy, study, planned, paid, used=used, whole=whole),
    )


# -- inside ---------------------------------------------------------------------------------------------------------------


def _of(event: Event) -> str:
    return event.study or event.study_name


def _together(events: Iterable[Event]) -> Counter[tuple[str, str, Law]]:
    steps: Counter[tuple[str, str, Law]] = Counter()
    for event in events:
        steps[_of(event), event.kind, event.law] += event.steps
    return steps


def _weight(law: Law, steps: int, delta: float) -> float:
    """What these sums are worth beside one another, in squares; the ledger's filter says what they are worth in all."""
    if law.mechanism == "discrete_gaussian" and (rounded := as_gaussian(law)) is not None:
        return steps * rounded.mu**2
    if law.mechanism in ("laplace", "geometric"):
        return steps * mu_of_pure(1 / law.noise_multiplier) ** 2
    if law.sample_rate < 1:
        from tasks.accounting.loss_distributions import mu_like  # here: a second to import, needed for sampling only

        return mu_like(law, steps, apart=1e-4 * delta) ** 2
    return steps / law.noise_multiplier**2


def _square(noisy: Sequence[Event], book: Ledger) -> float:
    """The squared ratio of the Gaussian that stands where the ledger's filter stands."""
    if not noisy:
        return 0.0
    far = reached(noisy, budget=book.budget, delta=book.delta).epsilon
    if far == 0:  # below what epsilon shows
        return sum(_weight(law, steps, book.delta) for (_, _, law), steps in _together(noisy).items())
    return mu_at(far, book.delta) ** 2 if math.isfinite(far) else math.inf


def _kind(lines: Sequence[tuple[str, Event]], kind: str, share: float) -> Kind:
    mine = [event for _, event in lines if event.kind == kind]
    noise = [event.noise_multiplier for event in mine]
    return Kind(kind=kind, releases=len(mine), noise=(min(noise), max(noise)), share=share)


def _course(lines: Sequence[tuple[str, Event]], delta: float) -> Iterable[tuple[str, str, float]]:
    events = [event for _, event in lines]
    every = max(1, math.ceil(len(lines) / _MOST_POINTS))
    for number in range(1, len(lines) + 1):
        last_of_study = number == len(lines) or _of(events[number]) != _of(events[number - 1])
        if number % every == 0 or last_of_study or number == 1:
            noisy = [event for event in events[:number] if event.noise_multiplier > 0]
            yield lines[number - 1][0], _of(events[number - 1]), epsilon(noisy, delta=delta)


def _proposed(
    book: Ledger,
    noisy: Sequence[Event],
    study: tuple[str, str],
    planned: Sequence[Event],
    paid: int,
    *,
    used: float,
    whole: float,
) -> Proposed:
    try:
        book.affords(planned)
        refused = ""
    except BudgetSpent as error:
        refused = str(error)
    added = [event for event in planned if event.noise_multiplier > 0]
    return Proposed(
        study=study[0],
        name=study[1],
        releases=len(planned),
        alone=epsilon(planned, delta=book.delta),
        after=book.planned(planned),
        share=_square([*noisy, *added], book) / whole - used,
        refused=refused,
        paid=paid,
    )
