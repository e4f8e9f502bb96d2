"""How a measure is spread over age: the LMS model, fitted to noisy counts in bins.

LMS (Cole 1990, Eur J Clin Nutr 44:45; Cole and Green 1992, Stat Med 11:1305) says that ((x/M)^L - 1) / (L S) is a standard
normal number. M, the median, is a parabola in age, S, the coefficient of variation, an exponential, L, the skewness, one
number. Percentiles of one distribution can't cross. Libraries fit it to single persons; here there are none. So expected
patients in a bin are compared with the noisy ones by weighted least squares, the variance of a bin being that of the noise and
of chance. Weak priors keep what the data don't say (curvature, skewness, a trend of the spread) near none; the median has next
to none.

Everything is done for many sets of counts at once: leading axis r, as the bootstrap needs it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

Floats = npt.NDArray[np.float64]

PARAMETERS = 6  # median: level, slope, curvature; spread: level, slope; skewness
PRIOR_SD = np.array([3.0, 0.5, 0.1, 0.7, 0.1, 1.0])
"""Of the six about zero: in sixths of the range, per decade, per decade squared; logarithms; about L = 1, a normal
distribution."""
STEPS, CLOSE = 40, 1e-3
"""At most so many steps, fewer when the last one moved no parameter by more; a thousandth of a standard deviation."""
MIDDLE_AGE = 50.0


@dataclass(frozen=True)
class Scale:
    """Public numbers that make the six parameters small: the sex's range of the measure."""

    low: float
    high: float

    @property
    def middle(self) -> float:
        """Of the range: the median if all parameters are zero."""
        return (self.low + self.high) / 2

    @property
    def unit(self) -> float:
        """A sixth of the range: the standard deviation if all parameters are zero."""
        return (self.high - self.low) / 6


def lms(theta: Floats, ages: Floats, scale: Scale) -> tuple[Floats, Floats, Floats]:
    """L (r, 1), M and S (r, ages) of parameters (r, 6)."""
    decade = (np.asarray(ages, np.float64) - MIDDLE_AGE) / 10
    median = scale.middle + scale.unit * (theta[:, :1] + theta[:, 1:2] * decade + theta[:, 2:3] * decade**2)
    spread = scale.unit / scale.middle * np.exp(np.clip(theta[:, 3:4] + theta[:, 4:5] * decade, -3, 3))
    skew = np.clip(1 + theta[:, 5:6], -4, 6)
    skew = np.where(np.abs(skew) < 1e-4, 1e-4, skew)
    return skew, np.maximum(median, 0.05 * scale.middle), spread


def z_score(theta: Floats, ages: Floats, values: Floats, scale: Scale) -> Floats:
    """Standard normal numbers (r, ages, values) of positive values."""
    skew, median, spread = (part[..., None] for part in lms(theta, ages, scale))
    z: Floats = np.expm1(np.clip(skew * np.log(np.asarray(values) / median), -60, 60)) / (skew * spread)
    return z


def quantile(theta: Floats, ages: Floats, z: Floats, scale: Scale) -> Floats:
    """Values (r, ages, z) at standard normal numbers z (rising); they never fall along the last axis."""
    skew, median, spread = (part[..., None] for part in lms(theta, ages, scale))
    value: Floats = median * np.exp(np.log(np.maximum(1 + skew * spread * np.asarray(z), 1e-6)) / skew)
    return value


def shares(theta: Floats, ages: Floats, edges: Floats, scale: Scale) -> Floats:
    """The part of an age's patients in each bin between inner edges: (r, ages, bins), adding up to 1."""
    below = ndtr(z_score(theta, ages, edges, scale))
    outer = np.zeros((*below.shape[:2], 1))
    return np.diff(np.concatenate([outer, below, outer + 1], axis=-1), axis=-1)


def fit(
    counts: Floats, *, ages: Floats, edges: Floats, scale: Scale, noise_sd: float, start: Floats | None = None
) -> tuple[Floats, Floats]:
    """Parameters (r, 6) and patients by age band (r, bands) for counts (r, bands, bins) with this noise on each.

    Levenberg and Marquardt's steps on both together, with variances of the fit before; patients are never fewer than none.
    """
    r = len(counts)
    theta = np.zeros((r, PARAMETERS)) if start is None else np.broadcast_to(start, (r, PARAMETERS)).copy()
    p = shares(theta, ages, edges, scale)
    patients = np.maximum(counts.sum(-1), 1.0)
    variance = _variance(patients, p, noise_sd)
    patients = _patients(counts, p, variance)
    damping = np.full(r, 1e-2)
    for step in range(STEPS):
        if step % 5 == 0:
            variance = _variance(patients, p, noise_sd)
        moves, loss = _moves(theta, patients, counts, variance, ages, edges, scale, damping)
        tried = theta + np.clip(moves, -1, 1)
        tried_p = shares(tried, ages, edges, scale)
        tried_patients = _patients(counts, tried_p, variance)
        better = _loss(tried, tried_patients, tried_p, counts, variance) <= loss
        theta = np.where(better[:, None], tried, theta)
        p = np.where(better[:, None, None], tried_p, p)
        patients = np.where(better[:, None], tried_patients, patients)
        damping = np.clip(np.where(better, damping / 3, damping * 4), 1e-6, 1e6)
        if step > 6 and float(np.abs(moves).max(initial=0)) < CLOSE:
            break
    return theta, patients


def _variance(patients: Floats, p: Floats, noise_sd: float) -> Floats:
    """Of each count: the noise, and chance (Poisson), which is never taken for less than half a patient."""
    found: Floats = noise_sd**2 + np.maximum(patients[..., None] * p, 0.5)
    return found


def _patients(counts: Floats, p: Floats, variance: Floats) -> Floats:
    """The number in each band that fits best, given the shares."""
    found: Floats = np.maximum((counts * p / variance).sum(-1) / np.maximum((p * p / variance).sum(-1), 1e-12), 0.0)
    return found


def _loss(theta: Floats, patients: Floats, p: Floats, counts: Floats, variance: Floats) -> Floats:
    residual = (counts - patients[..., None] * p) ** 2 / variance
    loss: Floats = residual.sum((1, 2)) + ((theta / PRIOR_SD) ** 2).sum(-1)
    return loss


def _moves(
    theta: Floats,
    patients: Floats,
    counts: Floats,
    variance: Floats,
    ages: Floats,
    edges: Floats,
    scale: Scale,
    damping: Floats,
) -> tuple[Floats, Floats]:
    """A damped Gauss-Newton step (r, 6), the bands' numbers following along, and the loss before it (r,)."""
    p = shares(theta, ages, edges, scale)
    sd = np.sqrt(variance)
    slopes = []
    for index in range(PARAMETERS):
        ahead = theta.copy()
        ahead[:, index] += 1e-4
        slopes.append((shares(ahead, ages, edges, scale) - p) / 1e-4)
    jacobian = np.stack(slopes, -1) * (patients[..., None] / sd)[..., None]  # (r, bands, bins, 6)
    along = p / sd  # how expected counts move with a band's number, which is free
    length = np.maximum((along**2).sum(-1, keepdims=True), 1e-12)
    jacobian = jacobian - along[..., None] * ((along[..., None] * jacobian).sum(2, keepdims=True) / length[..., None])
    residual = (counts - patients[..., None] * p) / sd
    flat = jacobian.reshape(len(theta), -1, PARAMETERS)
    matrix = np.einsum("rci,rcj->rij", flat, flat) + np.diag(PRIOR_SD**-2.0)
    gradient = np.einsum("rci,rc->ri", flat, residual.reshape(len(theta), -1)) - theta / PRIOR_SD**2
    diagonal = np.einsum("rii->ri", matrix)
    matrix = matrix + damping[:, None, None] * (diagonal[:, :, None] * np.eye(PARAMETERS))
    moves: Floats = np.linalg.solve(matrix, gradient[..., None])[..., 0]
    return moves, _loss(theta, patients, p, counts, variance)
