"""A lower bound on epsilon from one run of the production loop (Steinke, Nasr and Jagielski 2023).

Half of some thousand made-up patients, canaries, are put into the cohort by coin flips. Each one's gradient is a direction of
its own, as long as the bound allows: nobody could be easier to see. The attacker is given every update of every round and knows
all directions; it guesses of whom it is surest whether they were in. An (epsilon, delta)-private training makes so many right
guesses only with a small probability, and from that follows how large epsilon must be at least. If that is more than was
promised, the promise is broken; if it is less, this attacker found nothing, and another might.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats

from fl_client.privacy import Event, calibrate, epsilon, os_noise, train
from simulation.audit.check import Check, Finding, Setting
from simulation.audit.drawn import Direction, Ward, as_it_is

DELTA = 1e-6
"""Small beside one over the canaries, or its part in the bound drowns every guess."""
DOUBT = 0.02
"""So seldom, at most, a training that just keeps its promise looks as if it didn't. With so many canaries delta allows no
smaller number; an honest training is far from the worst that its promise allows."""
BOUND = 1.0
_ORDINARY = 40
"""Patients who are nobody's canary, and always there."""
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Claim:
    """A training, and the epsilon that it is said to have at `DELTA`."""

    epsilon: float
    sample_rate: float
    steps: int


CLAIMS = (Claim(1.0, 1.0, 2), Claim(4.0, 1.0, 1), Claim(4.0, 0.25, 8))
MORE_CLAIMS = (*CLAIMS, Claim(1.0, 0.25, 8), Claim(8.0, 1.0, 1), Claim(8.0, 0.25, 8))


def attack(setting: Setting) -> Finding:
    """Each claim, `canary_runs` times."""
    found = Finding()
    claims = CLAIMS if setting.audit.effort == "quick" else MORE_CLAIMS
    jobs = [(claim, run) for claim in claims for run in range(setting.audit.canary_runs)]
    count = setting.audit.canaries
    for done, (claim, run) in enumerate(jobs):
        multiplier = calibrate(epsilon=claim.epsilon, delta=DELTA, sample_rate=claim.sample_rate, steps=claim.steps)
        event = Event(noise_multiplier=multiplier, sample_rate=claim.sample_rate, steps=claim.steps)
        promised = epsilon([event], delta=DELTA)
        guesses = _how_many(claim, multiplier, count)
        inside = np.random.default_rng([setting.seed, run, done]).random(count) < 0.5
        scores = _scores(_updates(claim, multiplier, inside), claim, multiplier)
        right = _right(scores, inside, guesses)
        least = at_least(right, guesses, canaries=count)
        chance = p_value(promised, right, guesses, canaries=count)
        name = f"epsilon {claim.epsilon:g}, rate {claim.sample_rate:g}, {claim.steps} steps" + (
            f", run {run + 1}" if run else ""
        )
        found.figures[f"{name}: at least"] = least
        found.figures[f"{name}: right guesses"] = f"{right} of {guesses}"
        found.require(
            chance > DOUBT,
            f"{name}: {right} of {guesses} guesses were right, so epsilon is at least {least:.2f} (p {chance:.1g})",
        )
        setting.advance(done + 1, len(jobs))
    found.figures["canaries"] = count
    return found


def at_least(right: int, guesses: int, *, canaries: int, delta: float = DELTA, confidence: float = 0.95) -> float:
    """The largest epsilon that so many right guesses refute at this confidence; 0 if they refute none."""
    if p_value(0.0, right, guesses, canaries=canaries, delta=delta) > 1 - confidence:
        return 0.0
    low, high = 0.0, 30.0
    for _ in range(40):
        middle = (low + high) / 2
        refuted = p_value(middle, right, guesses, canaries=canaries, delta=delta) <= 1 - confidence
        low, high = (middle, high) if refuted else (low, middle)
    return low


def p_value(epsilon: float, right: int, guesses: int, *, canaries: int, delta: float = DELTA) -> float:
    """How often an (epsilon, delta)-private training gives so many right guesses, at most.

    Steinke, Nasr and Jagielski 2023, theorem 5.2: `guesses` of `canaries` coin flips were guessed, `right` of them rightly.
    """
    rate = 1 / (1 + math.exp(-epsilon))
    beta = float(stats.binom.sf(right - 1, guesses, rate))
    fewer = np.arange(1, right + 1)
    alpha = float(np.max(np.cumsum(stats.binom.pmf(right - fewer, guesses, rate)) / fewer)) if right else 0.0
    return min(1.0, beta + 2 * canaries * delta * alpha)


def _updates(claim: Claim, multiplier: float, inside: npt.NDArray[np.bool_]) -> Floats:
    """What the coordinator sees: the noisy sum of every step, (steps, canaries). A step is a round, with weights between."""
    count = len(inside)
    rng = np.random.default_rng(int(inside.sum()))
    rows = {}
    for place in np.flatnonzero(inside):
        x = torch.zeros(1, count)
        x[0, place] = 2 * BOUND  # longer than the bound, and cut to it
        rows[f"canary {place}"] = x, torch.zeros(1)
    for number in range(_ORDINARY):
        x = torch.from_numpy(rng.normal(0, 10 / math.sqrt(count), (1, count)).astype(np.float32))
        rows[f"ordinary {number}"] = x, torch.zeros(1)
    ward, model = Ward(rows), Direction(count)
    public = count // 2 + _ORDINARY  # the declared size
    seen = []
    for _ in range(claim.steps):
        before = model.weight.weight.detach().clone()
        train(
            model,
            ward,
            parameters=list(model.parameters()),
            loss=as_it_is,
            steps=1,
            sample_rate=claim.sample_rate,
            views=1,
            declared_size=public,
            max_grad_norm=BOUND,
            noise_multiplier=multiplier,
            optimizer="sgd",
            learning_rate=claim.sample_rate * public,
            noise=os_noise(),
            sampling_rng=np.random.default_rng(),
        )
        seen.append((before - model.weight.weight.detach()).double().numpy().ravel())
    return np.array(seen)


def _scores(seen: Floats, claim: Claim, multiplier: float) -> Floats:
    """Log likelihood ratio of each canary being in, summed over the steps: the best that can be made of its coordinate."""
    sigma = multiplier * BOUND
    ratio = (2 * seen * BOUND - BOUND**2) / (2 * sigma**2)
    if claim.sample_rate == 1:
        return np.asarray(ratio.sum(axis=0), np.float64)
    rate = claim.sample_rate
    return np.asarray(np.logaddexp(math.log(1 - rate), math.log(rate) + ratio).sum(axis=0), np.float64)


def _right(scores: Floats, inside: npt.NDArray[np.bool_], guesses: int) -> int:
    """Of so many guesses, one half for the highest scores, one half against the lowest, how many are right."""
    order = np.argsort(scores)
    half = guesses // 2
    return int(inside[order[len(order) - half :]].sum() + (~inside[order[:half]]).sum())


def _how_many(claim: Claim, multiplier: float, count: int) -> int:
    """How many to guess, settled before anything is seen: what would show most if the noise were half of what is said.

    Few guesses are surer, but even if all of them are right they refute no large epsilon.
    """
    rng = np.random.default_rng(0)
    inside = rng.random(count) < 0.5
    drawn = (rng.random((claim.steps, count)) < claim.sample_rate) & inside
    scores = _scores(BOUND * drawn + rng.normal(0, multiplier / 2 * BOUND, drawn.shape), claim, multiplier / 2)
    choices: Sequence[int] = sorted({2 * max(10, count // part) for part in (3, 4, 6, 8, 12, 16, 24, 32, 64)})
    return max(choices, key=lambda guesses: at_least(_right(scores, inside, guesses), guesses, canaries=count))


CHECKS = (
    Check(
        "canaries",
        "An attacker who sees every update can't tell who was in more often than the promised epsilon allows.",
        "empirical",
        attack,
        reads="A training and what it promises (at delta 1e-6); the least epsilon that the right guesses allow, at 95 %.",
    ),
)
