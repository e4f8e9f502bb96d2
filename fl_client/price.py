"""What a study's releases are, and with how much noise: each one an event for the ledger, worked out from the study alone.

All of a study's releases share one promise. A share of it may be set aside for the scores of patients held back; the rounds get
what is left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from conf.study import Study
from fl_client.privacy import Event, calibrate
from fl_client.site import Site
from tasks.task import CountingTask, GradientTask

SCORES = "scores"
"""`Event.kind` of a release of scores; every other kind is a round."""


def round_event(site: Site, study: Study, task: GradientTask | CountingTask, *, number: int) -> Event:
    """What round `number` releases."""
    multiplier = 0.0
    if study.privacy.kind == "patient":
        multiplier = calibrate(
            epsilon=study.privacy.epsilon,
            delta=study.privacy.delta,
            sample_rate=study.training.sample_rate,
            steps=study.noise_steps,
            alongside=[scores_event(site, study)] if study.privacy.evaluation_share else (),
        )
    kind = task.counted if isinstance(task, CountingTask) else "gradient"
    return _event(site, study, multiplier, kind=kind, round=number)


def scores_event(site: Site, study: Study) -> Event:
    """What the release of scores after the last round costs: `evaluation_share` of the promise.

    Gaussian mechanisms compose by the squares of their ratios of sensitivity to noise, so a share s of the promise is the
    noise that alone would keep it, over the square root of s.
    """
    multiplier = 0.0
    if study.privacy.kind == "patient":
        alone = calibrate(epsilon=study.privacy.epsilon, delta=study.privacy.delta, sample_rate=1.0, steps=1)
        multiplier = alone / math.sqrt(study.privacy.evaluation_share)
    return _event(site, study, multiplier, kind=SCORES, round=study.rounds)


def planned(
    site: Site, study: Study, task: GradientTask | CountingTask, *, rounds: int | None = None, scores: bool = True
) -> list[Event]:
    """Every release of the study: its rounds, or the last `rounds` of them, and the scores that it sets a share aside for."""
    first = 1 if rounds is None else study.rounds - rounds + 1
    events = [round_event(site, study, task, number=number) for number in range(first, study.rounds + 1)]
    return [*events, scores_event(site, study)] if scores and study.privacy.evaluation_share else events


def rounds_paid(study: Study, events: Sequence[Event]) -> int:
    """How many of the ledger's events are rounds of this study, repeated ones counted each time."""
    return sum(event.study == study.hash and event.kind != SCORES for event in events)


def scores_paid(study: Study, events: Sequence[Event]) -> int:
    """How many of the ledger's events are scores of this study."""
    return sum(event.study == study.hash and event.kind == SCORES for event in events)


def _event(site: Site, study: Study, multiplier: float, *, kind: str, round: int) -> Event:
    scores = kind == SCORES
    return Event(
        noise_multiplier=multiplier,
        sample_rate=1.0 if scores else study.training.sample_rate,
        steps=1 if scores else study.training.steps,
        study=study.hash,
        study_name=study.name,
        round=round,
        kind=kind,
        noise="os" if site.noise_seed is None else "seeded",
    )
