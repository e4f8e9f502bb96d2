"""Scores of models by hospitals, each one noisy sum over patients held back, and what may be decided by them.

Three purposes: `scores` of the finished model on test patients, once; `validation` between rounds, on other patients, which
chooses the round and may end the study; `matrix`, every model on every hospital's validation patients. Hospitals charge all of
them (fl_client/price.py). What is decided here is computed from what was released and costs nothing more.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord, ConfigRecord, MessageType
from flwr.serverapp import Grid

from conf.study import Study
from fl_server.asking import Asking
from fl_server.enrolment import Enrolment
from fl_server.promised import Kind, noise_variance
from fl_server.record import Evaluation, Matrix, Record, SiteRound
from fl_server.strategy import Rounds, Sum
from fl_server.weights import State
from tasks.task import NOISE_SD, JudgedTask, load

Purpose = Literal["scores", "validation"]

log = logging.getLogger("konsil.judging")

GLOBAL = "global"
"""What the study's own model is called among those of the matrix; the others have their hospital's name."""

ALIKE = 0.01
"""What a hospital says of its noise's variance may differ by so much of it: hospitals seek their noise to 1e-3 of itself."""

MORE_PATIENTS = 10
"""A hospital has at most so many times the patients that it declares, which is a round number near their number."""

MOST_PATIENTS = 10_000_000
"""And no hospital has more."""

MORE_NOISE = 10.0
"""Noise on n numbers is the square root of n deviations long; it never is so many deviations longer."""

TOLD_APART = 2.0
"""Two scores differ if they lie further apart than so many standard deviations of the noise on their difference."""


# -- asking ---------------------------------------------------------------------------------------------------------------


def judge(
    grid: Grid, study: Study, model: State, enrolment: Enrolment, *, purpose: Purpose = "scores", number: int | None = None
) -> Evaluation:
    """Ask every hospital that takes part what its patients held back say of the model, and add the answers up.

    `number` is the round after which it is asked (None: the last). Raises `ValueError` for a task that can't be judged.
    """
    start = time.monotonic()
    number = study.rounds if number is None else number
    task = _task(study)
    sites, sums = _ask(grid, study, task, model, enrolment, purpose, number)
    total = np.sum([one["total"] for one in sums.values()], axis=0) if sums else np.zeros(0)
    noise_std = math.sqrt(sum(float(one["noise_variance"][0]) for one in sums.values()))
    scores = _read(task, total, noise_std) if sums else {}
    first = metric_of(study)
    return Evaluation(
        sites=sites,
        total=total.tolist(),
        noise_std=noise_std,
        seconds=time.monotonic() - start,
        scores={**({first: scores[first]} if first in scores else {}), **scores},
        note=_unread(study, first) if sums and first not in scores else "",
    )


def matrix(grid: Grid, study: Study, models: Mapping[str, State], enrolment: Enrolment) -> Matrix:
    """Ask every hospital what its validation patients say of each model; `models` are `global` and hospitals' own.

    One question for each model, so that no message grows with their number. A score that the noise drowns is left out.
    Raises `ValueError` for a task that can't be judged, and for a model that bears another name.
    """
    start = time.monotonic()
    if strangers := sorted(set(models) - {GLOBAL, *study.sites}):
        raise ValueError(f"models are '{GLOBAL}' and those of the study's sites, not {', '.join(strangers)}")
    task, metric = _task(study), metric_of(study)
    scores: dict[str, dict[str, float]] = {}
    noise_sd: dict[str, dict[str, float]] = {}
    noise_std: dict[str, float] = {}
    answers: dict[str, dict[str, SiteRound]] = {}
    answered = False
    for name in [name for name in (GLOBAL, *study.sites) if name in models]:
        answers[name], sums = _ask(grid, study, task, models[name], enrolment, "matrix", study.rounds, name)
        scores[name], noise_sd[name] = {}, {}
        answered = answered or bool(sums)
        for site, one in sums.items():
            noise_std[site] = math.sqrt(float(one["noise_variance"][0]))
            said = _read(task, one["total"], noise_std[site])
            if metric in said:
                scores[name][site], noise_sd[name][site] = said[metric], said.get(NOISE_SD + metric, 0.0)
    return Matrix(
        metric=metric,
        scores=scores,
        noise_sd=noise_sd,
        noise_std=noise_std,
        sites={site: _together({model: said[site] for model, said in answers.items()}) for site in study.sites},
        seconds=time.monotonic() - start,
        note=_unread(study, metric) if answered and not any(scores.values()) else "",
    )


def require_noise(study: Study, kind: Kind = "round") -> Callable[[Mapping[str, npt.NDArray[Any]]], None]:
    """A check of what a hospital says its noise is, which follows from the study, and of a sum that no hospital can have."""

    def check(arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        said = float(arrays["noise_variance"][0])
        promised = noise_variance(study, kind)
        if not abs(said - promised) <= ALIKE * promised:
            right = f"by the study it is {promised:.4g}" if promised else "the study has none"
            raise ValueError(f"noise of variance {said:.4g} is said to lie on each number; {right}")
        _require_possible(arrays, MOST_PATIENTS, "no hospital has more")

    return check


def _require_possible(arrays: Mapping[str, npt.NDArray[Any]], patients: int, why: str) -> None:
    """Raise `ValueError` for a sum longer than so many patients can make it, each of whom adds a vector of length 1 at most."""
    total = arrays["total"].ravel()
    length = math.hypot(*total.tolist())
    noise = math.sqrt(float(arrays["noise_variance"][0]))
    if length > patients + noise * (math.sqrt(len(total)) + MORE_NOISE):
        with_noise = " and their noise" if noise else ""
        raise ValueError(f"the sum is {length:.4g} long, more than {patients} patients{with_noise} can make it; {why}")


def _task(study: Study) -> JudgedTask:
    task = load(study.task)
    if not isinstance(task, JudgedTask):
        raise ValueError(f"task {study.task['name']} can't be judged by hospitals")
    return task


def _ask(
    grid: Grid, study: Study, task: JudgedTask, model: State, enrolment: Enrolment, kind: Kind, number: int, name: str = ""
) -> tuple[dict[str, SiteRound], dict[str, dict[str, npt.NDArray[np.float64]]]]:
    """What became of each planned hospital, and the sums of those whose answers were sound, in the study's order.

    `name` is the model's among those of a matrix.
    """
    sums: dict[str, dict[str, npt.NDArray[np.float64]]] = {}
    strategy = Rounds(
        Sum(),
        nodes=enrolment.nodes,
        weights=enrolment.sizes,
        ttl_s=study.strategy.round_timeout_s,
        deadline_s=study.strategy.round_timeout_s,
        deadlines_s=study.strategy.site_timeouts_s,
        expected={"total": np.zeros(task.judgement_length), "noise_variance": np.zeros(1)},
        check=require_noise(study, kind),
        kind=MessageType.EVALUATE,
        used=lambda site, arrays: sums.update({site: {name: np.array(array) for name, array in arrays.items()}}),
    )
    config = ConfigRecord({"purpose": kind, "study-hash": study.hash, **({"model": name} if name else {})})
    questions = strategy.configure_train(number, ArrayRecord(dict(model)), config, grid)
    unseen: dict[str, SiteRound] = {}
    if questions:
        plan = study.strategy
        unseen = Asking(grid).ask(
            strategy, questions, timeout_s=plan.round_timeout_s, timeouts_s=plan.site_timeouts_s, retries=plan.retries
        )
    strategy.finish(number)
    answered = {**strategy.answers[number], **unseen}
    for site in list(sums):
        size = enrolment.sizes[site]
        try:
            _require_possible(sums[site], MORE_PATIENTS * size, f"the hospital declares {size}, near to how many it has")
        except ValueError as error:
            answered[site] = answered[site].model_copy(update={"answer": "quarantined", "reason": str(error)})
            del sums[site]
    sites = {site: answered.get(site) or enrolment.missing(site) for site in study.sites}
    return sites, {site: sums[site] for site in study.sites if site in sums}


def _read(task: JudgedTask, total: npt.NDArray[np.float64], noise_std: float) -> dict[str, float]:
    """What the task reads from a sum, as far as it is finite, noise and all; a sum that it can't read says nothing."""
    try:
        with np.errstate(all="ignore"):
            said = task.scores(total, noise_std)
    except (ValueError, ArithmeticError) as error:
        log.warning("the scores can't be read from their sum: %s", error)
        return {}
    lost = {name.removeprefix(NOISE_SD) for name, value in said.items() if not math.isfinite(value)}
    return {name: float(value) for name, value in said.items() if name.removeprefix(NOISE_SD) not in lost}


def _unread(study: Study, metric: str) -> str:
    """Why there is no score although hospitals answered."""
    why = "what so few patients say drowns in the noise" if study.privacy.kind == "patient" else "nobody's labels decide it"
    return f"no {metric} can be read from the answers: {why}"


def _together(said: Mapping[str, SiteRound]) -> SiteRound:
    """One entry for a hospital that was asked about several models: `used` if all its answers were."""
    for model, answer in said.items():
        if answer.answer != "used":
            reason = f"model {model}: {answer.reason}" if answer.reason else f"model {model}"
            return answer.model_copy(update={"reason": reason})
    return list(said.values())[-1]  # with what its ledger said at the end


# -- deciding -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Score:
    """What chooses: higher is better. `noise_sd` is the standard deviation that the noise alone gives it.

    It is the word of the hospitals `of`. Where these differ, so do the patients, and scores of two models can't be compared.
    """

    value: float
    noise_sd: float = 0.0
    of: frozenset[str] = frozenset()


def metric_of(study: Study) -> str:
    """The score that chooses, and that the matrix shows. Raises `ValueError` for a task that can't be judged."""
    named = study.validation.metric if study.validation is not None else ""
    return named or _task(study).metrics[0]


def score_of(evaluation: Evaluation | None, metric: str) -> Score | None:
    """The score of this name; None if there was no answer, or nothing that could be told from noise."""
    if evaluation is None or metric not in evaluation.scores:
        return None
    used = frozenset(name for name, site in evaluation.sites.items() if site.answer == "used")
    return Score(evaluation.scores[metric], evaluation.scores.get(NOISE_SD + metric, 0.0), used)


def better(new: Score, best: Score) -> bool:
    """Whether a later model takes the place of the best one so far.

    Without noise: if its score is higher. With noise: unless its score is lower by more than the noise explains (`TOLD_APART`
    standard deviations of their difference), because of two models that can't be told apart the one that has learned longer is
    the better guess. So pure noise chooses the last model, as if nothing had been validated, and not a round by chance.
    """
    margin = TOLD_APART * math.hypot(new.noise_sd, best.noise_sd)
    return new.value > best.value - margin


def counted(history: Sequence[Score | None]) -> list[int]:
    """Which of these scores, oldest first, are looked at: what fewer hospitals say once is not.

    A score counts if it is of as many hospitals as the last one that counted, or if the one before was of the same hospitals:
    then these are what is left.
    """
    found: list[int] = []
    last: Score | None = None
    before: Score | None = None
    for at, score in enumerate(history):
        if score is None:
            continue
        if last is None or len(score.of) >= len(last.of) or (before is not None and score.of == before.of):
            found.append(at)
            last = score
        before = score
    return found


def selected(history: Sequence[Score | None]) -> int | None:
    """Which of these scores, oldest first, belongs to the chosen model; None if there is none.

    Each that counts (see `counted`) is compared with the highest before it that is of the same hospitals; if there is none, the
    later model is chosen, as where noise hides a difference. It is never compared with the one chosen last: a slow decline,
    each step within the noise, is found. None of these decisions looks at a patient.
    """
    chosen: int | None = None
    highest: dict[frozenset[str], Score] = {}
    looked_at = set(counted(history))
    for at, score in enumerate(history):
        if score is None:
            continue
        best = highest.get(score.of)
        if at in looked_at and (best is None or better(score, best)):
            chosen = at
        if best is None or score.value > best.value:
            highest[score.of] = score
    return chosen


def waited(history: Sequence[Score | None]) -> int:
    """How many scores that count there have been since that of the chosen model."""
    chosen = selected(history)
    return 0 if chosen is None else sum(at > chosen for at in counted(history))


def history_of(record: Record, metric: str) -> list[Score | None]:
    """The validated rounds' scores, oldest first."""
    return [score_of(entry.validation, metric) for entry in record.rounds if entry.validation is not None]


def is_best(study: Study, record: Record) -> bool:
    """Whether the model that was validated last is the one that the study would choose now."""
    history = history_of(record, metric_of(study))
    return bool(history) and selected(history) == len(history) - 1


def stop_early(study: Study, record: Record) -> str:
    """Why the study should end here, in words; empty if it should go on.

    It ends after `validation.patience` scores in a row that were no better (see `better`). What the noise may explain ends no
    study, so one whose scores are mostly noise runs to its end, and one that stands still under noise does, too.
    """
    if study.validation is None or study.validation.patience is None or len(record.rounds) >= study.rounds:
        return ""
    metric = metric_of(study)
    history = history_of(record, metric)
    chosen = selected(history)
    if chosen is None or waited(history) < study.validation.patience:
        return ""
    rounds = [entry.round for entry in record.rounds if entry.validation is not None]
    best = history[chosen]
    value = f" ({metric} {best.value:.3f}" + (f" ± {best.noise_sd:.3f} of noise" if best.noise_sd else "") + ")" if best else ""
    return (
        f"after round {rounds[-1]}: {waited(history)} scores in a row were no better than that after round "
        f"{rounds[chosen]}{value}"
    )


def chosen_in_words(study: Study, record: Record) -> str:
    """How the study's model was chosen, and what its score is worth; empty if nothing was validated."""
    if study.validation is None:
        return ""
    metric = metric_of(study)
    history = history_of(record, metric)
    chosen = selected(history)
    if chosen is None:
        return "no score between rounds could be told from noise: the model is that of the last round" if history else ""
    rounds = [entry.round for entry in record.rounds if entry.validation is not None]
    heard = counted(history)
    fewer = sum(score is not None for score in history) - len(heard)
    aside = f" ({fewer} more were of fewer hospitals and not compared)" if fewer else ""
    return (
        f"the model is that after round {rounds[chosen]}, chosen among {len(heard)} by {metric}{aside}. That score is the best "
        "of several and therefore rather too good; what the model is worth is told by the test patients, who chose nothing"
    )
