"""The noise that leaves against the noise that was paid for: its size, its shape, and that no two releases share any.

Nothing inside is asked. Hospitals answer as in production, with noise of the operating system; two answers that are made of the
same sum differ by noise alone, whose variance must be twice what the event in the ledger says. Gradients are bounded so
tightly that patients can't be seen beside the noise. A wrong factor of 1.1 would be seen in the quick audit already.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from conf.study import LocalTraining, Privacy, SecureAggregation, Study
from fl_client.cohort import side_of
from fl_client.privacy import Event
from simulation.audit.check import RARE, Check, Finding, Setting, correlation_z, std_ratio
from simulation.audit.drawn import COUNT, FOREST, PERCEPTRON, SEGMENTATION, case
from simulation.audit.houses import Answer, Houses, moved_by, start_of
from simulation.audit.neighbours import without_masks

Vector = npt.NDArray[np.float64]
_TINY = 1e-9
"""A bound under which patients vanish beside anything else, with a learning rate that undoes it."""
_Z = 7.0
"""Standard deviations that a correlation may have: beyond lies 3e-12."""


def spread(setting: Setting) -> Finding:
    """Every kind of release, `releases` times."""
    found = Finding()
    jobs = _jobs()
    for done, (name, (fields, kind)) in enumerate(jobs.items()):
        releases, events, deviates = _released(setting, name, fields, kind)
        ratio, p = std_ratio(deviates, 1.0)
        found.figures[name] = ratio
        found.require(
            p > RARE,
            f"{name}: the noise of {deviates.size} numbers has {ratio:.4g} times the deviation that was paid for (p {p:.1g})",
        )
        shape = float(stats.kstest(deviates, "norm").pvalue)
        found.require(shape > RARE, f"{name}: the noise is not normal (p {shape:.1g})")
        found.require(
            all(event.noise == "os" for event in events), f"{name}: the ledger says that the noise comes from {events[0].noise}"
        )
        _require_apart(found, name, releases)
        setting.advance(done + 1, len(jobs))
    return found


def _jobs() -> dict[str, tuple[dict[str, Any], str]]:
    """Settings and kind of question."""
    rate = 1.0 / _TINY
    wide = {**SEGMENTATION, "channels": [8, 16]}
    step: dict[str, Any] = {"training": LocalTraining(views=1, learning_rate=rate)}
    tiny = Privacy(epsilon=6.0, max_grad_norm=_TINY)
    sampled: dict[str, Any] = {"training": LocalTraining(views=1, steps=2, sample_rate=0.5, learning_rate=rate)}
    summed: dict[str, Any] = {"strategy": {"name": "sum"}, "privacy": Privacy(epsilon=0.5)}
    judged = {"task": PERCEPTRON | {"bins": 400}, "privacy": Privacy(epsilon=1.0, evaluation_share=0.3)}
    return {
        "gradients, U-Net": (step | {"task": wide, "privacy": tiny}, "train"),
        "gradients, perceptron, two sampled steps": (sampled | {"task": PERCEPTRON, "privacy": tiny}, "train"),
        "leaf counts": (summed | {"task": FOREST}, "train"),
        "counts": (summed | {"task": COUNT}, "train"),
        "scores": (judged, "evaluate"),
        "leaf counts, under masks": (summed | {"task": FOREST}, "masked"),
    }


def _released(
    setting: Setting, name: str, fields: dict[str, Any], kind: str
) -> tuple[list[npt.NDArray[Any]], tuple[Event, ...], Vector]:
    """What left, the ledger's events, and the noise in units of the standard deviation that these say."""
    folder = setting.folder / name.replace(",", "").replace(" ", "_")
    houses = Houses(folder)
    share = 0.5 if kind == "evaluate" else 0.0
    wanted = "test" if share else "train"
    names = [f"p{n}" for n in range(60) if side_of(f"p{n}", share) == wanted][:4]
    site = houses.add("a", [case(patient, n) for n, patient in enumerate(names)], noise_seed=None, test_fraction=share)
    if kind == "masked":
        for beside in ("b", "c"):
            houses.add(beside, noise_seed=None)
        secured = fields["privacy"].model_copy(update={"secure": SecureAggregation(keys=houses.keys(), patients=20)})
        fields = {**fields, "privacy": secured, "strategy": {"name": "sum", "quorum": 3}}
    count = setting.audit.releases + setting.audit.releases % 2
    rounds = 1 if kind == "evaluate" or "strategy" in fields else count  # a counting task has one: its studies differ instead
    vectors = []
    for number in range(1, count + 1):
        study = houses.study(rounds=rounds, seed=0 if rounds > 1 or kind == "evaluate" else number, **fields)
        answer = _asked(houses, study, kind, min(number, rounds), salt=number)
        vectors.append(_vector(study, answer, declared=site.declared_size))
    events = houses.events("a")
    per_step = study.privacy.max_grad_norm if "arrays" in answer.records and "total" not in answer.arrays else 1.0
    noise = []
    for (one, other), event in zip(_pairs(vectors), events[::2], strict=True):
        noise.append(_between(one, other) / (math.sqrt(2 * event.steps) * _std(event, per_step)))
    return vectors, events, np.concatenate(noise)


def _asked(houses: Houses, study: Study, kind: str, number: int, *, salt: int) -> Answer:
    weights = start_of(study)
    if kind == "evaluate":  # other weights are another question, and so small a difference gives the same scores
        first = next(iter(weights))
        weights = {**weights, first: weights[first] + np.float32(1e-7 * salt)}
        return houses.ask(study, "a", kind="evaluate", weights=weights)["a"]
    if kind == "masked":
        with without_masks():
            return houses.ask(study, "a", number=number, attempt=0)["a"]
    return houses.ask(study, "a", number=number)["a"]


def _vector(study: Study, answer: Answer, *, declared: int) -> npt.NDArray[Any]:
    arrays = answer.arrays
    if "masked" in arrays:
        return arrays["masked"]
    return arrays["total"] if "total" in arrays else moved_by(study, answer, declared=declared)


def _std(event: Event, bound: float) -> float:
    """Of one hospital's noise on one step's sum, by what the ledger says."""
    if event.own_noise_multiplier is not None and event.sensitivity is not None:
        return event.own_noise_multiplier * event.sensitivity
    return event.noise_multiplier * bound


def _between(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> Vector:
    moved: npt.NDArray[Any] = one - other
    found: Vector = (moved.view(np.int32) if moved.dtype == np.uint32 else moved).astype(np.float64)
    return found


def _pairs(vectors: Sequence[npt.NDArray[Any]]) -> list[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    return list(zip(vectors[::2], vectors[1::2], strict=True))


def _require_apart(found: Finding, name: str, releases: Sequence[npt.NDArray[Any]]) -> None:
    """Differences of disjoint pairs have nothing in common; nor has one number with the next."""
    pairs = [_between(one, other) for one, other in _pairs(releases)]
    for first, second in itertools.combinations(pairs, 2):
        z = correlation_z(first, second)
        found.require(abs(z) < _Z, f"{name}: the noise of two releases is correlated ({z:.1f} standard deviations)")
    noise = np.concatenate(pairs)
    found.require(bool(noise.any()), f"{name}: two releases hold the same noise")
    z = correlation_z(noise[1:], noise[:-1])
    found.require(abs(z) < _Z, f"{name}: neighbouring numbers of the noise are correlated ({z:.1f} standard deviations)")


# -- same question, other question ------------------------------------------------------------------------------------------


def questions(setting: Setting) -> Finding:
    """One question twice, then others: rounds, weights, hospitals, studies; with noise as in production and in rehearsals."""
    found = Finding()
    for source, seed in (("production", None), ("rehearsal", 7)):
        _questions(found, setting, source, seed)
    return found


def _questions(found: Finding, setting: Setting, source: str, seed: int | None) -> None:
    houses = Houses(setting.folder / source)
    for name in ("a", "b"):  # the same patients: what differs is noise
        houses.add(name, [case(f"p{n}", n) for n in range(3)], noise_seed=seed)
    step = LocalTraining(views=1, learning_rate=1.0 / _TINY)
    fields: dict[str, Any] = {"task": PERCEPTRON, "training": step, "privacy": Privacy(epsilon=1.0, max_grad_norm=_TINY)}
    study, other = houses.study(rounds=4, **fields), houses.study(rounds=4, seed=1, **fields)
    start = start_of(study)
    changed = {name: value + np.float32(1e-3) for name, value in start.items()}

    def noise(answer: Answer, begin: dict[str, Any]) -> Vector:
        return np.concatenate([(v.astype(np.float64) - begin[k]).ravel() for k, v in answer.arrays.items()])

    both = houses.ask(study)
    paid = len(houses.events("a"))
    again = houses.ask(study, "a")["a"]
    found.require(
        {k: v.tobytes() for k, v in again.arrays.items()} == {k: v.tobytes() for k, v in both["a"].arrays.items()},
        f"{source}: the same question got other bytes",
    )
    found.require(len(houses.events("a")) == paid, f"{source}: the same question was paid for twice")
    heard = {
        "round 1": noise(both["a"], start),
        "round 1 at another hospital": noise(both["b"], start),
        "round 2": noise(houses.ask(study, "a", number=2)["a"], start),
        "round 1 from other weights": noise(houses.ask(study, "a", weights=changed)["a"], changed),
        "another study": noise(houses.ask(other, "a")["a"], start_of(other)),
    }
    for file in (houses.site("a").folder / "sent").iterdir():
        file.unlink()
    if seed is None:  # a rehearsal repeats itself on purpose, and says so in its ledger
        heard["round 1, its answer lost"] = noise(houses.ask(study, "a")["a"], start)
    worst = 0.0
    for (one, first), (two, second) in itertools.combinations(heard.items(), 2):
        z = correlation_z(first, second)
        worst = max(worst, abs(z))
        found.require(abs(z) < _Z, f"{source}: '{one}' and '{two}' share noise (correlation of {z:.1f} standard deviations)")
    found.require(
        len(houses.events("a")) == len(heard) - 1, f"{source}: {len(heard) - 1} answers, {len(houses.events('a'))} paid"
    )
    found.figures[f"{source}, furthest_correlation_sd"] = worst
    found.figures[f"{source}, numbers"] = heard["round 1"].size


CHECKS = (
    Check(
        "noise: size and shape",
        "The noise in what leaves is normal, new each time, and as large as the ledger's event says.",
        "statistical",
        spread,
        reads="Standard deviation of the noise found, over what the ledger's event says.",
    ),
    Check(
        "noise: questions",
        "The same question gets the same bytes, unpaid; any other question, round, study or hospital has noise of its own.",
        "statistical",
        questions,
    ),
)
