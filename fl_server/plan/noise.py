"""What noise a study's promise needs, and what it does to the mean gradient: worked out before anybody is asked.

The noise multiplier is the one that hospitals will find for themselves (`tasks.promise`). What it leaves of the signal is told
as the standard deviation of the mean gradient in each coordinate, as a part of the bound on one patient's gradient:
`z sqrt(hospitals) / (rate * patients)` where each hospital adds its own noise; where one noise is shared, `z / patients` times
what the reserve for hospitals that drop out or tell theirs costs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from conf.study import Study
from tasks.accounting import gaussian
from tasks.accounting.budget import calibrate
from tasks.accounting.events import Event, Law
from tasks.promise import multiplier_of_share, share_set_aside


@dataclass(frozen=True)
class Asked:
    """What a study is to be. `sizes` are the patients that each hospital declares."""

    epsilon: float
    delta: float
    rounds: int
    steps: int  # of a round
    sample_rate: float
    sizes: Mapping[str, int]
    scores_share: float = 0.0  # of the promise, for all scores
    secure: bool = False  # one noise for the sum over hospitals
    threshold: int | None = None  # hospitals that must be left at a round's end; None: all but one, and 3 at least
    colluding: int = 1

    def __post_init__(self) -> None:
        if not self.sizes:
            raise ValueError("no hospital is named: --size NAME=PATIENTS says how many patients it declares")
        for name, size in self.sizes.items():
            if size < 1:
                raise ValueError(f"{name} declares {size} patients; at least 1 is needed")
        for word, value, below in (("epsilon", self.epsilon, math.inf), ("delta", self.delta, 0.1)):
            if not 0 < value < below:
                raise ValueError(f"{word} must lie above 0 and below {below:.3g}, not be {value:g}")
        if not 0 < self.sample_rate <= 1:
            raise ValueError(f"sample_rate must lie above 0 and be 1 at most, not {self.sample_rate:g}")
        for word, count in (("rounds", self.rounds), ("steps", self.steps)):
            if count < 1:
                raise ValueError(f"{word} must be 1 or more, not {count}")
        if self.secure and (self.steps, self.sample_rate) != (1, 1.0):
            raise ValueError(
                f"secure aggregation sums rounds of one step over all patients, not of {self.steps} at a sample_rate of "
                f"{self.sample_rate:g}"
            )
        if self.secure and not (3 <= self.left <= len(self.sizes) and self.left > len(self.sizes) / 2 and self.shares >= 1):
            raise ValueError(
                f"a threshold of {self.left} and {self.colluding} that may collude is no secure aggregation of "
                f"{len(self.sizes)} hospitals: 3 at least, more than half, and more than collude must be left"
            )

    @property
    def left(self) -> int:
        """Hospitals that are left at a round's end at least."""
        return max(3, len(self.sizes) - 1) if self.threshold is None else self.threshold

    @property
    def shares(self) -> int:
        """Shares of noise that every sum is sure to hold."""
        return self.left - self.colluding

    @property
    def patients(self) -> int:
        """At all hospitals together."""
        return sum(self.sizes.values())


@dataclass(frozen=True)
class Noise:
    """The noise of one choice of rounds."""

    rounds: int
    steps: int  # of a round
    multiplier: float  # standard deviation of a sum's noise over the bound on one patient, the one that is accounted for
    alone: float  # of the mean gradient of a hospital of mean size, by itself, over the bound
    together: float  # of the mean gradient of all, over the bound
    averaged: float  # of the mean over all steps


@dataclass(frozen=True)
class Ledgers:
    """What a study would do to one hospital's ledger."""

    site: str
    before: float
    after: float
    budget: float
    delta: float

    @property
    def affordable(self) -> bool:
        """Whether the budget holds it."""
        return self.after <= self.budget


@dataclass(frozen=True)
class Plan:
    """The answer."""

    asked: Asked
    noise: Noise
    others: tuple[Noise, ...]  # other numbers of rounds at the same price
    level: float
    patients_needed: int  # in all, for a mean gradient whose noise is `level` of the bound
    ledgers: tuple[Ledgers, ...] = ()
    own_multiplier: float | None = None  # of one hospital's share of the noise; None without secure aggregation
    epsilon_if_it_fails: float | None = None


def asked_of(study: Study, sizes: Mapping[str, int]) -> Asked:
    """What a study asks for, with the sizes of its hospitals. Raises `ValueError` for no privacy and for unknown names."""
    privacy = study.privacy
    if privacy.kind == "none":
        raise ValueError(f"study {study.name} promises nothing (privacy.kind none): there is no noise to plan")
    if strangers := sorted(set(sizes) - set(study.sites)):
        raise ValueError(f"study {study.name} has no hospital {', '.join(strangers)}; it has {', '.join(study.sites)}")
    if missing := [name for name in study.sites if name not in sizes]:
        raise ValueError(f"no size is given of {', '.join(missing)}: --size {missing[0]}=PATIENTS, or --patients for all alike")
    return Asked(
        epsilon=privacy.epsilon,
        delta=privacy.delta,
        rounds=study.rounds,
        steps=study.training.steps,
        sample_rate=study.training.sample_rate,
        sizes=sizes,
        scores_share=share_set_aside(study),
        secure=privacy.secure is not None,
        threshold=privacy.secure.threshold if privacy.secure is not None else None,
        colluding=privacy.secure.colluding if privacy.secure is not None else 1,
    )


def plan(asked: Asked, *, level: float = 0.05, ledgers: Mapping[str, Mapping[str, float]] | None = None) -> Plan:
    """Noise, other numbers of rounds at the same price, and patients needed.

    `ledgers` holds for some hospitals the `epsilon`, `budget` and `delta` that `konsil-site ledger --json` says. Raises
    `ValueError` where no noise keeps the promise.
    """
    if not level > 0:
        raise ValueError(f"a noise level is a positive part of the bound, such as 0.05, and not {level:g}")
    noise = _noise(asked, asked.rounds)
    tried = dict.fromkeys(max(1, round(asked.rounds * factor)) for factor in (0.25, 0.5, 1, 2, 4))
    own = noise.multiplier / math.sqrt(asked.shares) if asked.secure else None
    fails = None
    if own is not None:
        squares = asked.rounds / own**2 + sum(1 / event.noise_multiplier**2 for event in _scores(asked))
        fails = gaussian.epsilon_at(asked.delta, mu=math.sqrt(squares))
    return Plan(
        asked=asked,
        noise=noise,
        others=tuple(noise if rounds == asked.rounds else _noise(asked, rounds) for rounds in tried),
        level=level,
        patients_needed=math.ceil(noise.together * asked.patients / level * (1 - 1e-12)),
        ledgers=tuple(_after(site, known, asked, noise) for site, known in (ledgers or {}).items()),
        own_multiplier=own,
        epsilon_if_it_fails=fails,
    )


# -- inside ---------------------------------------------------------------------------------------------------------------


def _scores(asked: Asked) -> list[Event]:
    if not asked.scores_share:
        return []
    return [Event(noise_multiplier=multiplier_of_share(epsilon=asked.epsilon, delta=asked.delta, share=asked.scores_share))]


def _noise(asked: Asked, rounds: int) -> Noise:
    steps = rounds * asked.steps
    multiplier = calibrate(
        epsilon=asked.epsilon, delta=asked.delta, sample_rate=asked.sample_rate, steps=steps, alongside=_scores(asked)
    )
    hospitals, patients = len(asked.sizes), asked.sample_rate * asked.patients
    shares = hospitals / asked.shares if asked.secure else hospitals  # variances of the sum, over that of one noise
    together = multiplier * math.sqrt(shares) / patients
    return Noise(
        rounds=rounds,
        steps=asked.steps,
        multiplier=multiplier,
        alone=(multiplier / math.sqrt(asked.shares) if asked.secure else multiplier) * hospitals / patients,
        together=together,
        averaged=together / math.sqrt(steps),
    )


def _after(site: str, known: Mapping[str, float], asked: Asked, noise: Noise) -> Ledgers:
    """A ledger's epsilon before and after, in squares at the ledger's own delta."""
    if site not in asked.sizes:
        raise ValueError(f"a ledger of {site} is given, which is no hospital of the study")
    delta, before, budget = (float(known[key]) for key in ("delta", "epsilon", "budget"))
    if not math.isfinite(before):
        return Ledgers(site, math.inf, math.inf, budget, delta)
    squares = gaussian.mu_at(before, delta) ** 2 if before else 0.0
    steps = asked.rounds * asked.steps
    if asked.sample_rate == 1:
        squares += steps / noise.multiplier**2
    else:
        from tasks.accounting.loss_distributions import mu_like  # here: a second to import, needed for sampling only

        squares += mu_like(Law("gaussian", noise.multiplier, asked.sample_rate), steps, apart=1e-4 * delta) ** 2
    squares += sum(1 / event.noise_multiplier**2 for event in _scores(asked))
    return Ledgers(site, before, gaussian.epsilon_at(delta, mu=math.sqrt(squares)), budget, delta)
