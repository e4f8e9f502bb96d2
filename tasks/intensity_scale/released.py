"""From a study's noisy sum to the scale that free patients can be brought to.

All of it is computed from what was released: it costs no epsilon, and gives the same numbers each time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import nnls

from tasks.case import Case
from tasks.fingerprint import fingerprint
from tasks.intensity_scale.scale import case_in_scale
from tasks.intensity_scale.settings import Settings
from tasks.intensity_scale.task import LONGEST, IntensityTask
from tasks.provenance import Provenance, summed

Floats = npt.NDArray[np.float64]

SPREAD, ALIKE = 0.3, 12.0
"""What is believed of the roots before anything is counted: they lie this far (standard deviation) around percentile / 100, and
percentiles this many apart have a correlation of 0.6. Without noise it changes little; with much, it is what is left."""

LEAST = 0.001
"""Roots rise by so much for each percentile at least: grey values that patients have apart stay apart."""

HEAVY = 1e6
WIDEST = 0.14
"""`noise_sd` beyond which the scale would be the noise's; roots lie within [0, 1]."""


class IntensityScale(Provenance):
    """What came of a study of an intensity scale, and where it comes from."""

    schema_name: Literal["konsil-intensity-scale/1"] = "konsil-intensity-scale/1"
    sum_sha256: str
    settings: Settings
    patients: float  # noisy number
    noise_sd: float  # on each sum of roots, and on the number of patients, over that number
    landmarks: tuple[float, ...]  # where the percentiles lie between the 1st (0) and the 99th (1)
    roots_sd: tuple[float, ...]  # how far the noise may have moved the root of each, a standard deviation

    @property
    def interval(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """How far the noise may have moved each landmark, with 95 % certainty: low and high."""
        roots, far = np.sqrt(self.landmarks), 1.96 * np.array(self.roots_sd)
        low, high = np.clip(roots - far, 0, 1) ** 2, np.clip(roots + far, 0, 1) ** 2
        return tuple(low.tolist()), tuple(high.tolist())

    @property
    def words(self) -> str:
        """Where it comes from, in a sentence without a full stop."""
        promise = f"under {self.promise}" if self.promise else "without a promise of privacy"
        return (
            f"the intensity scale of study {self.study} ({self.study_hash[:12]}), which about {self.patients:.0f} patients or "
            f"more of {self.how_many} made {promise}"
        )

    def worn_by(self, case: Case) -> Case:
        """The case with its images in this scale."""
        return case_in_scale(case, self.landmarks, self.settings)


def intensity_scale(
    task: IntensityTask,
    state: Mapping[str, torch.Tensor],
    provenance: Provenance,
) -> IntensityScale:
    """Read the state of a counting study, `total` and `noise_variance`.

    Raises `ValueError` for a sum of another study, and for one in which the noise leaves nothing to be read.
    """
    total, deviation = summed(state, called="intensity scale")
    if total.shape != (task.length,):
        raise ValueError(f"the sum has the shape {total.shape}; these settings count {task.length} numbers")
    patients = float(total[0]) * LONGEST
    noise = deviation * LONGEST  # in patients
    noise_sd = noise / patients if patients > 0 else math.inf
    if patients < 1 or noise_sd > WIDEST:
        raise ValueError(
            f"the noise (standard deviation {noise:.1f}) is too much for the {max(patients, 0):.0f} patients that were "
            "counted: nothing can be said of their intensities; a larger epsilon, or more patients, would do"
        )
    percentiles = task.settings.percentiles
    roots, left, roots_sd = _smooth(total[1:] / total[0], percentiles, noise_sd)
    return IntensityScale(
        **dict(provenance),
        sum_sha256=fingerprint(state),
        settings=task.settings,
        patients=round(patients, 2),
        noise_sd=float(f"{noise_sd:.4g}"),
        landmarks=_short(np.square(_rising(roots, left, percentiles))),
        roots_sd=_short(roots_sd),
    )


def _smooth(roots: Floats, percentiles: Sequence[float], noise_sd: float) -> tuple[Floats, Floats, Floats]:
    """Noisy roots as a curve over the percentiles that noise of this size lets be believed, what is open about it, and how far
    it is off.

    The second is the covariance of what is believed then, the third the standard deviation from the truth.

    `noise_sd` is that of one sum over the number of patients. The curve is the mean of a Gaussian process (Rasmussen and
    Williams 2006, chapter 2) whose parameters are fixed beforehand, with the noise of a quotient near 1 on each root by itself.
    The noise of the number that all sums are divided by moves all roots together: the deviation, of this curve, counts it so.
    """
    at, each = np.array(percentiles), np.eye(len(percentiles))
    believed = SPREAD**2 * np.exp(-0.5 * ((at[:, None] - at) / ALIKE) ** 2)
    variance = max(noise_sd, 1e-3) ** 2
    gain = np.linalg.solve(believed + 2 * variance * each, believed).T
    own = np.clip(roots, 0, 1)
    noise = variance * (each + np.outer(own, own))
    off = (each - gain) @ believed @ (each - gain).T + gain @ noise @ gain.T
    return at / 100 + gain @ (roots - at / 100), believed - gain @ believed, np.sqrt(np.diag(off))


def _rising(roots: Floats, covariance: Floats, percentiles: Sequence[float]) -> Floats:
    """The likeliest curve, by this mean and covariance, that rises everywhere from 0 at the 1st percentile to 1 at the 99th.

    Its steps are what non-negative least squares (Lawson and Hanson 1974, chapter 23) finds over `LEAST`; one heavy row has
    them add up to 1.
    """
    count, least = len(percentiles), LEAST * np.diff([1.0, *percentiles, 99.0])
    whiten = np.linalg.inv(np.linalg.cholesky(covariance + 1e-10 * np.eye(count)))
    steps = np.vstack([whiten @ np.tril(np.ones((count, count + 1))), np.full(count + 1, HEAVY)])
    wanted = np.append(whiten @ (roots - np.cumsum(least[:-1])), HEAVY * (1.0 - least.sum()))
    more, _ = nnls(steps, wanted)
    found: Floats = np.cumsum(least + more)[:-1]
    return found


def _short(numbers: Floats) -> tuple[float, ...]:
    return tuple(float(f"{number:.6g}") for number in numbers)
