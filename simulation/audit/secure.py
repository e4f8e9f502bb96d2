"""Secure aggregation: rounding is inside the price, masks are used once, and the sum has the noise that was promised for it.

The whole protocol runs with real hospitals of this process: the coordinator's own loop, signed keys, shares, masks. What it
sees of one hospital has to look uniform and new in every attempt; what it reads in the end has to be the bare sum and noise.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from scipy import stats

from conf.study import Privacy, SecureAggregation
from fl_client.cohort import Cohort
from simulation.audit.check import RARE, Check, Finding, Setting, correlation_z, replaced, std_ratio
from simulation.audit.drawn import FOREST, case
from simulation.audit.houses import Houses
from tasks.secure import grid as grids
from tasks.secure import price
from tasks.secure.circle import Circle, Moment
from tasks.secure.coordinator import CoordinatorRound
from tasks.secure.grid import Grid
from tasks.secure.noise import seeded_bits
from tasks.secure.plan import grid_of
from tasks.secure.site import SiteRound
from tasks.task import CountingTask, load_for

NAMES = ("a", "b", "c")
_LENGTH = 2000


def rounding(setting: Setting) -> Finding:
    """Totals of neighbours that rounding drives apart as far as it can, at several lengths and bounds."""
    found, worst = Finding(), 0.0
    keys, _ = _keys()
    circle = Circle(keys=keys, threshold=3, colluding=1)
    for length, bound, patients in itertools.product((1, 40, 4000), (1.0, 0.01), (3, 100_000)):
        grid = Grid(circle=circle, shapes={"x": (length,)}, bound=bound, patients=patients, noise_multiplier=5.0)
        event = price.event(grid)
        covered = float(event.sensitivity or 0.0)
        each = bound / math.sqrt(length) / grid.step  # steps that the patient adds to every number
        # just below the middle of two points, so that a hair's breadth more is a whole step
        hair = 0.25 * (math.ceil(each) - each) if each != math.ceil(each) else 0.25
        start = np.full(length, (0.5 - (each % 1) + 1e-3 if 1e-3 < each % 1 < 1 else 0.5 - hair) * grid.step)
        added = np.full(length, each * grid.step * (1 - 1e-12))
        with replaced(grids, "discrete_gaussian", lambda count, **how: np.zeros(count, dtype=np.int64)):
            one, other = (grid.encode({"x": x}, patients=patients, bits=seeded_bits(1)) for x in (start, start + added))
        moved = float(np.linalg.norm((other - one).view(np.int32).astype(np.float64)))
        worst = max(worst, moved / covered)
        found.require(
            moved <= covered * (1 + 1e-12),
            f"{length} numbers, bound {bound:g}: neighbours lie {moved:.5g} steps apart; the price covers {covered:.5g}",
        )
    found.figures = {"furthest_over_what_is_paid": worst}
    return found


def masks(setting: Setting) -> Finding:
    """What the coordinator sees of a hospital that sends the same vector in several attempts and rounds."""
    found = Finding()
    moments = [Moment(study="5e" * 32, round=number, attempt=attempt) for number, attempt in ((1, 0), (1, 1), (2, 0), (3, 0))]
    vectors = {name: np.full(_LENGTH, n, dtype=np.uint32) for n, name in enumerate(NAMES)}
    seen: dict[str, list[npt.NDArray[np.uint32]]] = {name: [] for name in NAMES}
    for moment in moments:
        total, masked = _protocol(moment, vectors)
        found.require(bool((total == sum(range(len(NAMES)))).all()), f"round {moment.round}: the sum is not the sum")
        for name in NAMES:
            seen[name].append(masked[name])
    least, worst = 1.0, 0.0
    for name, heard in seen.items():
        least = min([least, *(_uniform(vector - vectors[name]) for vector in heard)])
        for (i, one), (j, other) in itertools.combinations(enumerate(heard), 2):
            least = min(least, _uniform(one - other))
            z = abs(correlation_z(one.view(np.int32), other.view(np.int32)))
            worst = max(worst, z)
            same = float((one == other).mean())
            found.require(same < 0.01 and z < 7, f"hospital {name}: the masks of attempts {i} and {j} are the same ones")
    for a, b in itertools.combinations(NAMES, 2):
        least = min(least, _uniform(seen[a][0] - seen[b][0]), _uniform(seen[a][0] + seen[b][0]))
    found.require(least > RARE, f"what leaves under masks is not uniform (p {least:.1g})")
    found.figures = {"attempts": len(moments), "smallest_p_of_uniform": least, "furthest_correlation_sd": worst}
    return found


def whole(setting: Setting) -> Finding:
    """Studies over three hospitals, by the coordinator's own rounds; their sums without the bare sums are noise."""
    found = Finding()
    houses = Houses(setting.folder)
    for name in NAMES:
        houses.add(name, [case(f"{name}{n}", 10 * ord(name) + n) for n in range(3)], noise_seed=None)
    secured = SecureAggregation(keys=houses.keys(), patients=20)
    runs = max(2, setting.audit.releases // 3)
    deviates = []
    for number in range(runs):
        study = houses.study(
            task=FOREST, seed=number, strategy={"name": "sum", "quorum": 3}, privacy=Privacy(epsilon=0.5, secure=secured)
        )
        model, verdict = houses.run(study, setting.folder / f"run{number}")
        if verdict != "complete":
            found.problems.append(f"the study ended as {verdict}")
            return found
        task = load_for(study)
        if not isinstance(task, CountingTask):
            raise TypeError("a forest is counted")
        bare = np.zeros(task.length)
        for name in NAMES:
            cohort = Cohort(houses.site(name).cohort_folder)
            for patient in cohort.patients:
                bare += task.contribution(cohort.prepared(task, patient))
        grid = grid_of(study, task)
        event = houses.events("a")[-1]
        alone = (event.own_noise_multiplier or 0.0) * (event.sensitivity or 0.0) * grid.step
        deviates.append((model["total"] - bare) / (alone * math.sqrt(len(NAMES))))
        promised = event.noise_multiplier * (event.sensitivity or 0.0) * grid.step
        found.require(
            alone * math.sqrt(grid.circle.noise_shares) >= promised * (1 - 1e-9),
            "fewer hospitals than the promise counts on make less noise than promised",
        )
        told = float(model["noise_variance"][0]) / promised**2
        found.require(told >= 1 - 1e-6, f"the coordinator is told {told:.3g} of the variance that is promised")
        setting.advance(number + 1, runs)
    ratio, p = std_ratio(np.concatenate(deviates), 1.0)
    found.require(
        p > RARE, f"the sum's noise has {ratio:.4g} times the standard deviation of three hospitals' shares (p {p:.1g})"
    )
    found.figures = {"studies": runs, "numbers": int(sum(d.size for d in deviates)), "noise_over_promised_shares": ratio}
    return found


def _uniform(vector: npt.NDArray[np.uint32]) -> float:
    """p-value of a chi-square test of 16 classes over 32 bits."""
    counts, _ = np.histogram(vector.astype(np.float64), bins=16, range=(0, 2.0**32))
    return float(stats.chisquare(counts).pvalue)


def _keys() -> tuple[dict[str, str], dict[str, ec.EllipticCurvePrivateKey]]:
    private = {name: ec.generate_private_key(ec.SECP384R1()) for name in NAMES}
    form = (serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return {name: key.public_key().public_bytes(*form).decode() for name, key in private.items()}, private


def _protocol(moment: Moment, vectors: dict[str, Any]) -> tuple[npt.NDArray[np.uint32], dict[str, npt.NDArray[np.uint32]]]:
    """The sum, and what the coordinator saw of each hospital."""
    public, private = _keys()
    circle = Circle(keys=public, threshold=3, colluding=1)
    sites = {name: SiteRound(circle, moment, site=name, key=private[name]) for name in NAMES}
    coordinator = CoordinatorRound(circle, moment, length=_LENGTH)
    roster = coordinator.keys({name: site.keys() for name, site in sites.items()})
    addressed = coordinator.shares({name: site.shares(roster) for name, site in sites.items()})
    masked = {}
    for name, site in sites.items():
        site.accept(addressed[name])
        masked[name] = site.mask(np.array(vectors[name])).copy()
        coordinator.add(name, masked[name].copy())
    answered = coordinator.survivors()
    agreed = coordinator.agreed({name: site.agree(answered) for name, site in sites.items()}) if circle.must_agree else {}
    return coordinator.unmask({name: site.unmask(answered, agreed) for name, site in sites.items()}), masked


CHECKS = (
    Check(
        "secure sum: rounding",
        "Rounding to whole numbers drives neighbours no further apart than the price covers.",
        "certain",
        rounding,
    ),
    Check(
        "secure sum: masks",
        "What the coordinator sees of one hospital is uniform, and new in every attempt and round.",
        "statistical",
        masks,
    ),
    Check(
        "secure sum: noise",
        "The sum that the coordinator reads is the bare sum with the shares of noise that the ledgers name.",
        "statistical",
        whole,
    ),
)
