"""What a study's releases are, and with how much noise: each one an event for the ledger, worked out from the study alone.

All of a study's releases share one promise. Shares of it may be set aside for scores of patients held back: of the finished
model, between rounds, and of every model at every hospital. The rounds get what is left, so that all together cost what the
study says whatever else it asks for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from conf.study import Study
from fl_client.approval import (
    in_force,
    require_approval,
    require_approved_matrix,
    require_approved_scores,
    require_approved_validations,
)
from fl_client.privacy import Event
from fl_client.site import Site
from tasks.promise import matrix_models as matrix_models
from tasks.promise import round_multiplier, score_multiplier
from tasks.secure import price
from tasks.secure.plan import grid_of
from tasks.task import CountingTask, GradientTask

SCORES: Final = "scores"
VALIDATION: Final = "validation"
MATRIX: Final = "matrix"
"""`Event.kind` of releases of scores: of the finished model, between rounds, of one model for the matrix. Every other kind is a
round."""


class Paid(NamedTuple):
    """How many of a study's releases stand in a ledger, by kind; repeated ones counted each time."""

    rounds: int = 0
    scores: int = 0
    validations: int = 0
    matrix: int = 0  # models


def round_event(site: Site, study: Study, task: GradientTask | CountingTask, *, number: int) -> Event:
    """What round `number` releases."""
    if study.privacy.secure is not None:
        return _masked_event(site, study, task, number=number)
    kind = task.counted if isinstance(task, CountingTask) else "gradient"
    return _event(site, study, round_multiplier(study), kind=kind, round=number)


def _masked_event(site: Site, study: Study, task: GradientTask | CountingTask, *, number: int) -> Event:
    """A secure sum: its noise is that of several hospitals; this one's own stands beside it, for the case that masks fail."""
    kind = task.counted if isinstance(task, CountingTask) else "gradient"
    noise = "os" if site.noise_seed is None else "seeded"
    return price.event(grid_of(study, task), study=study.hash, study_name=study.name, round=number, kind=kind, noise=noise)


def scores_event(site: Site, study: Study) -> Event:
    """What the release of scores after the last round costs: `evaluation_share` of the promise."""
    return _event(site, study, score_multiplier(study, SCORES), kind=SCORES, round=study.rounds)


def validation_event(site: Site, study: Study, *, number: int) -> Event:
    """What the scores after round `number` cost: its part of `validation_share`, the same for each of `study.validations`."""
    return _event(site, study, score_multiplier(study, VALIDATION), kind=VALIDATION, round=number)


def matrix_event(site: Site, study: Study) -> Event:
    """What the scores of one model of the matrix cost: its part of `matrix_share`, the same for each of `matrix_models`."""
    return _event(site, study, score_multiplier(study, MATRIX), kind=MATRIX, round=study.rounds)


def matrix_events(site: Site, study: Study) -> list[Event]:
    """What the whole matrix costs at this hospital."""
    return [matrix_event(site, study)] * matrix_models(study)


def planned(
    site: Site, study: Study, task: GradientTask | CountingTask, *, rounds: int | None = None, scores: bool = True
) -> list[Event]:
    """Every release of the study: its rounds, or the last `rounds` of them, and the scores that it sets shares aside for.

    With the last `rounds` come the validations that are due after them, and, if there are any, the matrix.
    """
    first = 1 if rounds is None else study.rounds - rounds + 1
    due = [number for number in validated_rounds(study) if number >= first]
    # all rounds cost the same, and so do all validations: a study of many is priced by one of each
    one = round_event(site, study, task, number=study.rounds)
    events = [one.model_copy(update={"round": number}) for number in range(first, study.rounds + 1)]
    if due:
        one = validation_event(site, study, number=due[0])
        events += [one.model_copy(update={"round": number}) for number in due]
    if scores and study.privacy.evaluation_share:
        events.append(scores_event(site, study))
    if study.privacy.matrix_share and first <= study.rounds:
        events += matrix_events(site, study)
    return events


def validated_rounds(study: Study) -> range:
    """The rounds after which scores are asked for."""
    return range(0) if study.validation is None else range(study.validation.every, study.rounds + 1, study.validation.every)


# -- what stands in the ledger --------------------------------------------------------------------------------------------


def paid_of(study: Study, events: Sequence[Event]) -> Paid:
    """How many of the ledger's events are releases of this study."""
    mine = [event for event in events if event.study == study.hash]
    return Paid(*(len(found) for found in _by_kind(mine)))


def unpaid(plan: Sequence[Event], study: Study, events: Sequence[Event]) -> list[Event]:
    """What of the study's `plan` does not stand in the ledger's events yet: each round, and what is scored after it, once."""
    found: list[Event] = []
    for wanted, paid in zip(_by_kind(plan), _by_kind([one for one in events if one.study == study.hash]), strict=True):
        known = {event.round for event in paid if event.kind != MATRIX}  # whose model was judged the ledger does not say
        many = sum(event.kind == MATRIX for event in paid)
        found += [event for event in wanted if event.round not in known][many:]
    return found


def rounds_paid(study: Study, events: Sequence[Event]) -> int:
    """How many of the ledger's events are rounds of this study, repeated ones counted each time."""
    return paid_of(study, events).rounds


def require_approved(site: Site, study: Study, cost: Event, past: Sequence[Event]) -> None:
    """Return if the hospital's yes covers one more release like `cost`, when `past` stands in the ledger; else `Declined`."""
    paid = paid_of(study, past)
    if cost.kind == SCORES:
        require_approved_scores(site, study, scored=paid.scores)
    elif cost.kind == VALIDATION:
        require_approved_validations(site, study, validated=paid.validations, wanted=1)
    elif cost.kind == MATRIX:
        require_approved_matrix(site, study, crossed=paid.matrix, wanted=1)
    else:
        require_approval(site, study, paid=paid.rounds, wanted=1)


def require_all_approved(site: Site, study: Study, past: Sequence[Event]) -> None:
    """Return if the hospital's yes covers all that the study releases, when `past` stands in the ledger; else `Declined`."""
    paid = paid_of(study, past)
    require_approval(site, study, paid=paid.rounds, wanted=study.rounds)
    if study.validations:
        require_approved_validations(site, study, validated=paid.validations, wanted=study.validations)
    if study.privacy.evaluation_share:
        require_approved_scores(site, study, scored=paid.scores)
    if study.privacy.matrix_share:
        require_approved_matrix(site, study, crossed=paid.matrix, wanted=matrix_models(study))


# -- a study that goes on -------------------------------------------------------------------------------------------------


def goes_on(site: Site, study: Study, past: Sequence[Event], *, first: int) -> bool:
    """Whether the study, which is at round `first`, has begun here: then each further question is judged on its own.

    It has begun if it is past its first round, or if that is the last round that stands in the ledger under the yes in force:
    its coordinator was killed while it was under way. Looks at ledger and yes alone. Raises `Declined` without a yes.
    """
    rounds = _since_the_yes(site, study, past)[0]
    return first > 1 or bool(rounds and rounds[-1].round == 1)


def still_allowed(
    site: Site, study: Study, task: GradientTask | CountingTask, past: Sequence[Event], *, first: int
) -> list[Event]:
    """What the study may release from round `first` on: its plan without what is paid, as far as the yes in force covers it.

    Where nobody is asked for a yes it is the plan from there on. Raises `Declined` without a yes.
    """
    found: list[Event] = []
    counted = in_force(site, study) is not None
    begin = Paid(rounds=first, validations=first - 1)  # scores may be missing of the round before; the others come at the end
    plan = _by_kind(planned(site, study, task))
    for wanted, paid, number in zip(plan, _since_the_yes(site, study, past), begin, strict=True):
        left = [event for event in wanted if event.round >= number]
        if counted:  # which models of the matrix are paid the ledger does not say, only how many
            known = {event.round for event in paid if event.kind != MATRIX}
            left = [event for event in left if event.round not in known][: max(0, len(wanted) - len(paid))]
        found += left
    return found


# -- inside ---------------------------------------------------------------------------------------------------------------


def _by_kind(events: Sequence[Event]) -> tuple[list[Event], list[Event], list[Event], list[Event]]:
    """Rounds, scores, validations and models of the matrix, each in their order: that of `Paid`."""
    scores, validations, matrix = ([one for one in events if one.kind == kind] for kind in (SCORES, VALIDATION, MATRIX))
    return [one for one in events if one.kind not in (SCORES, VALIDATION, MATRIX)], scores, validations, matrix


def _since_the_yes(site: Site, study: Study, past: Sequence[Event]) -> list[list[Event]]:
    """The study's releases in the ledger, by kind, without those that stood there when the yes in force was given."""
    mine = [event for event in past if event.study == study.hash]
    approval = in_force(site, study)
    then = Paid() if approval is None else Paid(approval.paid, approval.scored, approval.validated, approval.crossed)
    return [found[before:] for found, before in zip(_by_kind(mine), then, strict=True)]


def _event(site: Site, study: Study, multiplier: float, *, kind: str, round: int) -> Event:
    scores = kind in (SCORES, VALIDATION, MATRIX)
    sampled = not scores and study.training.sample_rate < 1
    return Event(
        noise_multiplier=multiplier,
        sample_rate=study.training.sample_rate if sampled else 1.0,
        planned=study.noise_steps if sampled else None,  # sampled rounds are cheaper together than one by one
        steps=1 if scores else study.training.steps,
        study=study.hash,
        study_name=study.name,
        round=round,
        kind=kind,
        noise="os" if site.noise_seed is None else "seeded",
    )
