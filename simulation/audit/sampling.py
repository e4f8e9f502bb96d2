"""Who is drawn: each patient with the probability that was accounted for, independently of all others and of other steps.

Watched where it happens, in a hospital's whole answer: which patients the training loop asks for rows, step by step. Fixed-size
batches, shuffled epochs and draws that hang together have the same mean, and are not what the price was worked out for.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from conf.study import LocalTraining, Privacy
from fl_client import patients as of_hospital
from fl_client.privacy import dp_sgd
from simulation.audit.check import RARE, Check, Finding, Setting, replaced
from simulation.audit.drawn import LOGISTIC, case
from simulation.audit.houses import Houses

PATIENTS, RATE = 24, 0.3
_STEPS = 100  # in one round


def attack(setting: Setting) -> Finding:
    """Two hospitals with the same patients, with sampling as in production."""
    found = Finding()
    rounds = math.ceil(setting.audit.draws / _STEPS)
    names = [f"p{n:02d}" for n in range(PATIENTS)]
    houses = Houses(setting.folder)
    for name in ("a", "b"):
        houses.add(name, [case(patient, n) for n, patient in enumerate(names)], noise_seed=None)
    training = LocalTraining(views=1, steps=_STEPS, sample_rate=RATE, learning_rate=0.01)
    study = houses.study(rounds=rounds, task=LOGISTIC, training=training, privacy=Privacy(epsilon=3.0))
    drawn = {name: _drawn(houses, study, name, names, rounds) for name in ("a", "b")}
    table = drawn["a"]  # (steps, patients)
    steps = len(table)
    found.require(steps == rounds * _STEPS, f"{steps} steps were drawn and {rounds * _STEPS} were paid for")

    every = int(table.sum())
    _binomial(found, "all patients together", every, table.size, RATE)
    least = min(_binomial(found, f"patient {n}", int(table[:, n].sum()), steps, RATE) for n in range(PATIENTS))
    sizes = table.sum(axis=1)
    p = _as_binomial(sizes)
    found.require(p > RARE, f"the number drawn in a step is not binomial (p {p:.1g}; variance {sizes.var():.3g})")
    right = PATIENTS * RATE * (1 - RATE)
    found.figures |= {"steps": steps, "share_drawn": every / table.size, "variance_of_number_drawn": float(sizes.var())}
    found.figures |= {"variance_if_independent": right, "smallest_p_of_a_patient": least}

    both = int(sum((table[:, i] & table[:, j]).sum() for i, j in itertools.combinations(range(PATIENTS), 2)))
    pairs = steps * PATIENTS * (PATIENTS - 1) // 2
    # of pairs in one step; their sum over all pairs varies more than independent ones would
    spread = math.sqrt(steps * _pair_variance())
    z = (both - pairs * RATE**2) / spread
    found.require(abs(z) < 6, f"pairs of patients are drawn together too often or too seldom ({z:.1f} standard deviations)")
    _binomial(
        found,
        "the same patient in two steps in a row",
        int((table[1:] & table[:-1]).sum()),
        0,
        0,
        z_only=(steps - 1) * PATIENTS,
    )
    same = float((table == drawn["b"][:steps]).mean())
    wanted = RATE**2 + (1 - RATE) ** 2
    z_sites = (same - wanted) / math.sqrt(wanted * (1 - wanted) / table.size)
    found.require(abs(z_sites) < 7, f"two hospitals draw alike ({same:.3f} of all draws agree; {wanted:.3f} do by chance)")
    found.figures |= {"pairs_sd": z, "agreement_of_two_hospitals": same, "agreement_by_chance": wanted}
    _presence(found, setting)
    return found


def _drawn(houses: Houses, study: Any, name: str, names: list[str], rounds: int) -> npt.NDArray[np.bool_]:
    """(steps, patients): who was drawn, in every step of every round."""
    steps: list[set[str]] = []
    begin, example = dp_sgd._draw, of_hospital.TrainingPatients.example

    def draw(*args: Any, **how: Any) -> Any:
        steps.append(set())
        return begin(*args, **how)

    def watched(self: Any, patient: str, views: int, rng: np.random.Generator) -> Any:
        steps[-1].add(patient)
        return example(self, patient, views, rng)

    with replaced(dp_sgd, "_draw", draw), replaced(of_hospital.TrainingPatients, "example", watched):
        for number in range(1, rounds + 1):
            answer = houses.ask(study, name, number=number)[name]
            if answer.code is not None:
                raise RuntimeError(f"round {number}: {answer.words}")
    return np.array([[patient in step for patient in names] for step in steps])


def _binomial(found: Finding, what: str, seen: int, trials: int, rate: float, *, z_only: int = 0) -> float:
    """Both tails. `z_only`: of so many overlapping pairs of steps, by a normal approximation."""
    if z_only:
        mean = z_only * RATE**2
        # runs overlap: var = n (p^2 - p^4) + 2 n (p^3 - p^4)
        spread = math.sqrt(z_only * (RATE**2 - RATE**4 + 2 * (RATE**3 - RATE**4)))
        found.require(abs(seen - mean) < 6 * spread, f"{what}: {seen} times, where {mean:.0f} are right")
        return 1.0
    p = float(min(1.0, 2 * min(stats.binom.cdf(seen, trials, rate), stats.binom.sf(seen - 1, trials, rate))))
    found.require(p > RARE, f"{what}: drawn {seen} times of {trials}, where {rate:g} is the probability (p {p:.1g})")
    return p


def _as_binomial(sizes: npt.NDArray[np.int64]) -> float:
    """p-value that numbers of patients per step are binomial: their variance, and their distribution over five classes."""
    edges = stats.binom.ppf([0.15, 0.4, 0.65, 0.9], PATIENTS, RATE)
    seen = np.bincount(np.searchsorted(edges, sizes), minlength=5)
    cumulative = np.concatenate([[0], stats.binom.cdf(edges, PATIENTS, RATE), [1]])
    return float(stats.chisquare(seen, np.diff(cumulative) * len(sizes)).pvalue)


def _pair_variance() -> float:
    """Variance of the number of pairs among a binomial number of patients."""
    n = np.arange(PATIENTS + 1)
    weight = stats.binom.pmf(n, PATIENTS, RATE)
    pairs = n * (n - 1) / 2
    return float(weight @ pairs**2 - (weight @ pairs) ** 2)


def _presence(found: Finding, setting: Setting) -> None:
    """With the same sampling, whether one more patient is there moves nobody else's draw, nor the rows that they get."""
    heard: list[list[tuple[str, float]]] = []
    for there in (PATIENTS, PATIENTS - 1):
        class_of = _Watched([f"p{n:02d}" for n in range(there)])
        failed: dict[str, str] = {}
        rng = np.random.default_rng(setting.seed)
        for _ in range(20):
            for _x in dp_sgd._draw(class_of, sample_rate=RATE, views=1, rng=rng, device="cpu", failed=failed):
                pass
        heard.append([one for one in class_of.heard if one[0] != f"p{PATIENTS - 1:02d}"])
    found.require(heard[0] == heard[1], "one patient more changes who else is drawn, or what their augmentation is")


class _Watched:
    """Patients who note when they are drawn, and the first number of their generator."""

    def __init__(self, patients: list[str]) -> None:
        self.patients = patients
        self.heard: list[tuple[str, float]] = []

    def example(self, patient: str, views: int, rng: np.random.Generator) -> Any:
        """A row of nothing."""
        import torch

        self.heard.append((patient, float(rng.random())))
        return torch.zeros(1, 1), torch.zeros(1)


CHECKS = (
    Check(
        "sampling",
        "In every step each patient is drawn with the probability that was paid for, whoever else is there or drawn.",
        "statistical",
        attack,
        reads='Drawn as in production; "sd" are standard deviations of what independent draws give.',
    ),
)
