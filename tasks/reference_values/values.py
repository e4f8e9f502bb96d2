"""From a study's noisy sum to reference values: fitted curves with replicates, and where nothing can be said.

All of it is computed from what was released, so it costs no epsilon, can be done again by anybody who has the sum, and gives
the same numbers each time: the bootstrap is seeded by the sum's fingerprint. A replicate is drawn from the fitted curves: other
patients (Poisson) and other noise of the same kind, and fitted anew. How far replicates lie apart is what noise and number of
patients leave open. Whether hearts follow the LMS model is another question, which `misfit` asks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import gammaincc

from conf.frozen import Frozen
from tasks.fingerprint import fingerprint
from tasks.provenance import Provenance, summed
from tasks.reference_values.lms import PARAMETERS, Scale, fit, quantile, shares
from tasks.reference_values.settings import SEXES, Measure, Settings
from tasks.reference_values.task import ReferenceTask

Floats = npt.NDArray[np.float64]

PERCENTILES = (5, 25, 50, 75, 95)
Z = np.array([-1.6448536269514722, -0.6744897501960817, 0.0, 0.6744897501960817, 1.6448536269514722])
REPLICATES = 100
WIDEST_MEDIAN, WIDEST_TAIL = 0.75, 1.5
"""Half a 95 % interval's width of the median and of the other percentiles, in standard deviations between patients: beyond
these nothing is said of an age. A fit that takes noise for patients is too wide; so a sixth of the public range is the most
that counts as a standard deviation."""


class Curve(Frozen):
    """One measure of one sex over age. Parameters are those of `lms.py`; `ages`: whole years of which something is said."""

    measure: Measure
    sex: Literal["F", "M"]
    theta: tuple[float, ...]
    replicates: tuple[tuple[float, ...], ...]
    ages: tuple[int, ...]
    misfit: float  # how often counts of such curves lie farther from them than these; below 0.01 the model's shape is in doubt

    @property
    def scale(self) -> Scale:
        """The sex's range, by which the parameters are read."""
        return Scale(*(self.measure.female if self.sex == "F" else self.measure.male))

    def percentiles(self, ages: Sequence[float]) -> Floats:
        """(ages, 5): the 5th, 25th, 50th, 75th and 95th, rising."""
        found: Floats = quantile(np.array([self.theta]), np.asarray(ages, np.float64), Z, self.scale)[0]
        return found

    def interval(self, ages: Sequence[float]) -> tuple[Floats, Floats]:
        """95 % intervals of the percentiles: (ages, 5) each."""
        found = quantile(np.array(self.replicates), np.asarray(ages, np.float64), Z, self.scale)
        low, high = np.quantile(found, (0.025, 0.975), axis=0)
        return low, high


class ReferenceValues(Provenance):
    """What came of a study of reference values, and where it comes from."""

    schema_name: Literal["konsil-reference-values/1"] = "konsil-reference-values/1"
    sum_sha256: str
    noise_sd: float  # on each cell, in patients
    settings: Settings
    patients: dict[str, tuple[float, ...]]  # noisy numbers by sex, for each age band
    patients_sd: float  # of each of these numbers, from the noise
    curves: tuple[Curve, ...]

    def curve(self, measure: Measure, sex: str) -> Curve | None:
        """The curve of this measure and sex."""
        return next((curve for curve in self.curves if curve.measure == measure and curve.sex == sex), None)


def reference_values(
    task: ReferenceTask,
    state: Mapping[str, torch.Tensor],
    provenance: Provenance,
) -> ReferenceValues:
    """Fit the state of a counting study, `total` and `noise_variance`. Raises `ValueError` for a sum of another study."""
    sha = fingerprint(state)
    total, deviation = summed(state, called="reference values")
    noise_sd = deviation / task.weight
    rng = np.random.default_rng(int(sha[:16], 16))
    histograms = task.histograms(total)
    bins, measures = sum(measure.bins for measure in histograms), len(histograms)
    patients = sum(counts.sum(-1) for counts in histograms.values()) / measures  # (sexes, bands): each was counted for each
    patients_sd = noise_sd * math.sqrt(bins) / measures
    known = patients >= max(task.settings.suppress_below, 2 * patients_sd)
    curves = [
        _curve(measure, sex, counts[row], known[row], task.settings, noise_sd, rng)
        for measure, counts in histograms.items()
        for row, sex in enumerate(SEXES)
    ]
    return ReferenceValues(
        **dict(provenance),
        sum_sha256=sha,
        noise_sd=noise_sd,
        settings=task.settings,
        patients={sex: tuple(np.round(patients[row], 2).tolist()) for row, sex in enumerate(SEXES)},
        patients_sd=patients_sd,
        curves=tuple(curves),
    )


def _curve(
    measure: Measure,
    sex: str,
    counts: Floats,
    known: npt.NDArray[np.bool_],
    settings: Settings,
    noise_sd: float,
    rng: np.random.Generator,
) -> Curve:
    """Fit counts (bands, bins), draw replicates and fit them, and see of which ages something can be said."""
    scale = Scale(*(measure.female if sex == "F" else measure.male))
    edges, bounds = np.array(measure.inner_edges(sex)), np.array(settings.age_edges)
    ages = (bounds[1:] + bounds[:-1]) / 2
    theta, patients = fit(counts[None], ages=ages, edges=edges, scale=scale, noise_sd=noise_sd)
    expected = patients[0][:, None] * shares(theta, ages, edges, scale)[0]
    shape = (REPLICATES, *counts.shape)
    again = rng.poisson(np.broadcast_to(expected, shape)) + noise_sd * rng.standard_normal(shape)
    replicates, _ = fit(again, ages=ages, edges=edges, scale=scale, noise_sd=noise_sd, start=theta[0])
    squares = float(((counts - expected) ** 2 / (noise_sd**2 + np.maximum(expected, 0.5))).sum())
    free = max(1, counts.size - len(ages) - PARAMETERS)
    curve = Curve(
        measure=measure,
        sex="F" if sex == "F" else "M",
        theta=_short(theta[0]),
        replicates=tuple(_short(one) for one in replicates),
        ages=(),
        misfit=float(gammaincc(free / 2, squares / 2)),
    )
    years = np.arange(math.ceil(bounds[0]), math.ceil(bounds[-1]))
    told = known[np.searchsorted(bounds, years, side="right") - 1] & _is_told(curve, years)
    return curve.model_copy(update={"ages": tuple(years[told].tolist())})


def _is_told(curve: Curve, years: npt.NDArray[np.int_]) -> npt.NDArray[np.bool_]:
    """Whether intervals are narrow enough, by year."""
    drawn, (low, high) = curve.percentiles(years.tolist()), curve.interval(years.tolist())
    between = np.minimum((drawn[:, -1] - drawn[:, 0]) / (Z[-1] - Z[0]), curve.scale.unit)  # standard deviation of patients
    half = (high - low) / 2 / between[:, None]
    told: npt.NDArray[np.bool_] = (half[:, 2] <= WIDEST_MEDIAN) & (half.max(1) <= WIDEST_TAIL)
    return told


def _short(numbers: Floats) -> tuple[float, ...]:
    return tuple(float(f"{number:.6g}") for number in numbers)
