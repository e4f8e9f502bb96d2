"""Membership inference on the radiomics classifier: who was among the patients that it learned from?

LiRA (Carlini et al. 2022): the attacker trains shadow models on halves of the same people by the same loop, learns for each
person how sure the model is of them when they were in and when they were out, and reads the odds from the model under attack.
Logistic regression over many columns and few patients, which learns them by heart, with and without privacy. Privacy bounds any
such attack: true positives are at most exp(epsilon) times the false positives, plus delta.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats

from fl_client.privacy import calibrate, os_noise, train
from simulation.audit.check import RARE, Check, Finding, Setting
from simulation.audit.drawn import Ward
from tasks.case import Case
from tasks.radiomics.task import PerceptronTask
from tasks.task import load

PEOPLE, COLUMNS = 120, 40
EPSILON, DELTA = 3.0, 1e-3
_TARGETS = 16
"""Models under attack, of each kind."""
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


def attack(setting: Setting) -> Finding:
    """Shadow models and models under attack, with and without privacy."""
    found = Finding()
    task, people = _people(setting.seed)
    shadows = setting.audit.shadow_models
    count = shadows + _TARGETS
    curves: dict[str, tuple[Floats, Floats]] = {}
    for turn, (name, private) in enumerate((("without privacy", False), (f"epsilon {EPSILON:g}", True))):
        inside, sure = np.zeros((count, PEOPLE), bool), np.zeros((count, PEOPLE))
        for number in range(count):
            rng = np.random.default_rng([setting.seed, number, turn])
            inside[number, rng.permutation(PEOPLE)[: PEOPLE // 2]] = True
            sure[number] = _confidence(_trained(task, people, inside[number], private=private), people)
            setting.advance(turn * count + number + 1, 2 * count)
        odds = np.array([_odds(sure[t], inside[:shadows], sure[:shadows]) for t in range(shadows, count)])
        truth = inside[shadows:]
        false, true = _curve(odds.ravel(), truth.ravel())
        curves[name] = false, true
        area = float(np.trapezoid(true, false))
        found.figures[f"{name}: area under the curve"] = area
        for at in (0.01, 0.1):
            found.figures[f"{name}: found at {at:g} false alarms"] = float(np.interp(at, false, true))
        if private:
            worst = _beyond(odds.ravel(), truth.ravel())
            found.require(worst > RARE, f"{name}: more are found than the promise allows (p {worst:.1g})")
        else:
            found.require(area > 0.6, f"without privacy the attack finds nobody ({area:.2f}): it says nothing about privacy")
    found.figures["decisions"] = _TARGETS * PEOPLE
    found.pictures.append(_picture(curves, setting.folder / "membership.png"))
    return found


def _people(seed: int) -> tuple[PerceptronTask, dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """Rows as the task prepares them: a label that follows few of many columns."""
    rng = np.random.default_rng([seed, 0x4C695241])
    names = [f"x{n:02d}" for n in range(COLUMNS)]
    columns: list[Any] = [{"name": name, "lower": -3, "upper": 3} for name in names]
    task = load(
        {"name": "radiomics", "clinical": columns, "label": {"endpoint": "ill"}, "learner": {"kind": "perceptron"}, "bins": 4}
    )
    if not isinstance(task, PerceptronTask):
        raise TypeError("logistic regression is learned by gradients")
    people = {}
    for number in range(PEOPLE):
        values = rng.normal(size=COLUMNS)
        ill = int(values[0] + values[1] + rng.logistic() > 0)
        facts = {name: float(value) for name, value in zip(names, values, strict=True)}
        arrays = task.prepare(Case(f"p{number:03d}", (), {**facts, "ill": ill}))
        people[f"p{number:03d}"] = task.example(arrays, 1, rng)
    return task, people


def _trained(
    task: PerceptronTask, people: dict[str, tuple[torch.Tensor, torch.Tensor]], inside: Flags, *, private: bool
) -> torch.nn.Module:
    model = task.model()
    steps = 30 if private else 120
    chosen = {name: rows for (name, rows), there in zip(people.items(), inside, strict=True) if there}
    multiplier = calibrate(epsilon=EPSILON, delta=DELTA, sample_rate=1.0, steps=steps) if private else 0.0
    train(
        model,
        Ward(chosen),
        parameters=list(model.parameters()),
        loss=task.loss,
        steps=steps,
        sample_rate=1.0,
        views=1,
        declared_size=PEOPLE // 2,
        max_grad_norm=0.5 if private else math.inf,
        noise_multiplier=multiplier,
        optimizer="sgd",
        learning_rate=1.0 if private else 3.0,
        noise=os_noise(),
        sampling_rng=np.random.default_rng(),
    )
    return model


def _confidence(model: torch.nn.Module, people: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> Floats:
    """Log odds of the right answer, (people,)."""
    x = torch.cat([rows for rows, _ in people.values()])
    y = torch.cat([target[:, 0] for _, target in people.values()])
    with torch.no_grad():
        logit = model(x).double()
    return np.asarray((logit * (2 * y - 1)).numpy(), np.float64)


def _odds(sure: Floats, inside: Flags, shadows: Floats) -> Floats:
    """Log odds of being in for each person, from normal distributions of the shadows' confidence with them in and out."""
    odds = np.zeros(len(sure))
    spread = [
        float(np.std((shadows - np.where(inside, _mean(shadows, inside), _mean(shadows, ~inside)))[flags]))
        for flags in (inside, ~inside)
    ]
    for person in range(len(sure)):
        held = inside[:, person]
        for flags, std, sign in ((held, spread[0], 1), (~held, spread[1], -1)):
            odds[person] += sign * float(stats.norm.logpdf(sure[person], shadows[flags, person].mean(), std))
    return odds


def _mean(values: Floats, flags: Flags) -> Floats:
    """Of each column where flagged."""
    return np.asarray(np.where(flags, values, 0).sum(axis=0) / np.maximum(flags.sum(axis=0), 1), np.float64)


def _curve(odds: Floats, truth: Flags) -> tuple[Floats, Floats]:
    """False and true positive rates as the threshold falls."""
    order = np.argsort(-odds)
    true, false = np.cumsum(truth[order]), np.cumsum(~truth[order])
    return np.concatenate([[0.0], false / false[-1]]), np.concatenate([[0.0], true / true[-1]])


def _beyond(odds: Floats, truth: Flags) -> float:
    """Smallest p-value, over thresholds at fixed shares of all decisions, that the promise holds, both ways round."""
    least = 1.0
    order = np.argsort(-odds)
    for part in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2):
        top = order[: int(part * len(order))]
        hits = int(truth[top].sum())
        # half of all were in: among whom the attacker names, at most exp(e)/(1+exp(e)) were, and delta of the rest
        rate = math.exp(EPSILON) / (1 + math.exp(EPSILON)) + DELTA / part
        least = min(least, float(stats.binom.sf(hits - 1, len(top), min(rate, 1.0))))
    return least


def _picture(curves: dict[str, tuple[Floats, Floats]], path: Path) -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for (name, (false, true)), colour in zip(curves.items(), ("#b3261e", "#1a7f4b"), strict=True):
        axes.plot(false, true, color=colour, label=f"{name}: {np.trapezoid(true, false):.2f}")
    chance = np.geomspace(1e-3, 1, 100)
    axes.plot(chance, chance, color="#888", linestyle=":", label="guessing")
    bound = np.minimum(1, math.exp(EPSILON) * chance + DELTA)
    axes.plot(chance, bound, color="#1a7f4b", linestyle="--", linewidth=0.9, label=f"most that epsilon {EPSILON:g} allows")
    axes.set(xscale="log", yscale="log", xlim=(1e-3, 1), ylim=(1e-3, 1), xlabel="false alarms", ylabel="members found")
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    figure.savefig(path, dpi=130)
    return path


CHECKS = (
    Check(
        "membership",
        "With privacy, who was among a classifier's patients is found no better than the promise allows.",
        "empirical",
        attack,
        wanted=lambda audit: audit.shadow_models > 0,
    ),
)
