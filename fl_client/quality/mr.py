"""Quality parameters of a magnetic resonance image. Each is made to answer to one defect and to leave the others alone.

Noise: Immerkaer, Computer Vision and Image Understanding 64:300 (1996). SNR in air: Dietrich et al., J Magn Reson Imaging
26:375 (2007), as SNRd of MRIQC (Esteban et al., PLoS ONE 12:e0184661, 2017). Air: after Mortamet et al., Magn Reson Med 62:365
(2009), QI1. Ghosts: the ghost-to-signal ratio of Giannelli et al., J Appl Clin Med Phys 11:237 (2010), for every shift instead
of half a field. Uniformity: NEMA MS 3 (peak deviation), of a field found by the sparseness of gradients (Zheng et al., MICCAI
2009). Blur: re-blurring, Hu and de Haan, ICIP 2006.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import fft, ndimage

from fl_client.quality.scene import Flags, Floats, Scene

RAYLEIGH = 0.6551
"""Standard deviation of the magnitude of noise, over that of the noise: sqrt(2 - pi / 2)."""

NEAR = 1 / 8
"""A ghost is at least this share of the field away from what it copies; nearer, it can't be told from a body's fringe."""


def noise_sigma(scene: Scene) -> float | None:
    """Standard deviation of noise in tissue, image units; None where there is too little tissue.

    Second differences in both directions, blind to constants and slopes, in the fifth of the tissue where first differences are
    smallest: the two are uncorrelated in noise, so that the choice brings no bias. Interpolation by the scanner hides noise.
    """
    image = scene.image
    if min(image.shape[1:]) < 8 or scene.level == 0:
        return None
    down = image[:, :-2] - 2 * image[:, 1:-1] + image[:, 2:]
    second = down[:, :, :-2] - 2 * down[:, :, 1:-1] + down[:, :, 2:]
    slope = np.abs(image[:, 1:-1, 2:] - image[:, 1:-1, :-2]) + np.abs(image[:, 2:, 1:-1] - image[:, :-2, 1:-1])
    inside = ndimage.binary_erosion(scene.tissue, np.ones((1, 3, 3)))[:, 1:-1, 1:-1]
    slope, second = slope[inside], second[inside]
    if slope.size < 100:
        return None
    flat = slope <= np.percentile(slope[::3], 20)
    return float(np.abs(second[flat]).mean() * np.sqrt(np.pi / 2) / 6)  # 6 = norm of the difference mask


def snr_air(scene: Scene) -> float:
    """Median of tissue over the noise of quiet air, by Dietrich's factor for a magnitude image."""
    return RAYLEIGH * (scene.level + scene.floor) / scene.quiet_air[1]


def air_artifacts(scene: Scene) -> float:
    """Share of the air, 0..1, that is brighter than noise can be: what ghosts and motion throw there.

    The threshold is 2.7 standard deviations over the mean of quiet air, which noise of a magnitude image passes in 1 of 100.
    """
    mean, sd = scene.quiet_air
    return float((scene.image[scene.air] > mean + 2.7 * sd).mean())


def ghosting(scene: Scene) -> float:
    """Amplitude of the strongest ghost over that of what it copies, 0..1; the larger of both axes.

    In the air the mean square is noise plus the square of the ghost, so the slope of squared air over the squared image shifted
    by d is the square of the ghost's share at d, whatever the noise. All circular shifts at once, by Fourier transform; less
    what noise alone would give; median over slices.
    """
    power = np.where(scene.field, scene.image, 0).astype(np.float32) ** 2
    source = np.where(scene.tissue, power, 0)
    source /= max(float(source.max()), 1e-20)
    power /= max(float(power[scene.tissue].max(initial=0)), 1e-20)
    air = scene.air.astype(np.float32)
    return max(_ghost(power * air, air, source, axis) for axis in (1, 2))


def _ghost(echo: Floats, air: Floats, source: Floats, axis: int) -> float:
    length = source.shape[axis]
    airs, sources, squares, echoes = (fft.rfft(one, axis=axis, workers=1) for one in (air, source, source**2, echo))

    def over_shifts(here: npt.NDArray[np.complex64], there: npt.NDArray[np.complex64]) -> Floats:
        """Sum of here(p) there(p - d) over pixels, (slices, shifts d)."""
        return np.asarray(fft.irfft((here * np.conj(there)).sum(axis=3 - axis), n=length, axis=1, workers=1), np.float32)

    count = np.maximum(air.sum(axis=(1, 2)), 1)[:, None]
    total = over_shifts(airs, sources)
    covariance = over_shifts(echoes, sources) - total * echo.sum(axis=(1, 2))[:, None] / count
    variance = over_shifts(airs, squares) - total**2 / count
    shift = np.arange(length)
    usable = np.minimum(shift, length - shift) >= length * NEAR
    usable = usable & (variance > 0.05 * (source**2).sum(axis=(1, 2))[:, None])  # enough of the copy would fall on air
    spread = (echo**2).sum(axis=(1, 2))[:, None] / count - (echo.sum(axis=(1, 2))[:, None] / count) ** 2
    safe = np.where(usable, variance, 1)
    # the largest of a hundred slopes of mere noise is about 2.5 of their standard errors
    slope = np.where(usable, covariance / safe - 2.5 * np.sqrt(np.maximum(spread, 0) / safe), 0).max(axis=1)
    return float(np.median(np.sqrt(np.maximum(slope, 0))))


def blur_px(scene: Scene, sigma: float) -> float | None:
    """Width of the image's edges in pixels after a Gaussian of 1 pixel: sqrt(1 + b²) of a step blurred by a Gaussian of b.

    Gradients of the image blurred by 1 and by 2 pixels: on the ridge of a step that is b wide the squares have a ratio of
    (4 + b²) / (1 + b²), whatever its height; thin bright lines come out below 1. Over the ridges that are a third as steep as
    the steepest; what noise adds to the finer gradient is taken off.
    """
    inner = ndimage.binary_erosion(scene.field, np.ones((1, 5, 5)), iterations=3, border_value=0)
    if scene.level == 0 or not inner.any():
        return None
    coarse, down, along = _steepness(scene.image, 2.0)
    ridge = inner & _is_ridge(coarse, down, along)
    if not ridge.any():
        return None
    white = 2 * sigma**2 / (8 * np.pi)  # of noise, after a Gaussian of 1 pixel, both directions; by 2 pixels a 16th
    ridge &= coarse >= max(0.1 * float(np.percentile(coarse[ridge], 99)), 50 * white / 16)
    if ridge.sum() < 50:
        return None
    fine = _steepness(scene.image, 1.0)[0]
    ratio = (float(fine[ridge].mean(dtype=np.float64)) - white) / float(coarse[ridge].mean(dtype=np.float64))
    return float(np.sqrt(3 / (ratio - 1))) if ratio > 1.02 else None


def _steepness(image: Floats, scale: float) -> tuple[Floats, Floats, Floats]:
    """Square of the gradient, and its two parts."""
    down = ndimage.gaussian_filter(image, (0, scale, scale), (0, 1, 0), truncate=3)
    along = ndimage.gaussian_filter(image, (0, scale, scale), (0, 0, 1), truncate=3)
    return np.asarray(down * down + along * along, np.float32), down, along


def _is_ridge(steep: Floats, down: Floats, along: Floats) -> Flags:
    """Where the gradient is as steep as on both sides, in the direction in which it mainly goes."""
    ridge = np.zeros(steep.shape, bool)
    middle = steep[:, 1:-1, 1:-1]
    upright = (middle >= steep[:, :-2, 1:-1]) & (middle >= steep[:, 2:, 1:-1])
    level = (middle >= steep[:, 1:-1, :-2]) & (middle >= steep[:, 1:-1, 2:])
    ridge[:, 1:-1, 1:-1] = np.where((np.abs(down) > np.abs(along))[:, 1:-1, 1:-1], upright, level)
    return ridge


_POWERS = ((0, 1), (1, 0), (0, 2), (1, 1), (2, 0))


def uniformity(scene: Scene) -> float | None:
    """1 - (max - min) / (max + min) of the sensitivity over tissue, from its 5th and 95th percentile; 1 is uniform.

    The sensitivity is the exponential of a polynomial of second degree in the plane whose gradients are those of most of the
    image's logarithm: anatomy has few and steep gradients, a coil has many and small ones. Fitted to blocks by reweighting, so
    that edges count for little.
    """
    slices, rows, columns = scene.image.shape
    step = max(1, round(max(rows, columns) / 56))
    high, wide = rows // step, columns // step

    def means(array: npt.NDArray[np.generic]) -> Floats:
        cut = array[:, : high * step, : wide * step].reshape(slices, high, step, wide, step)
        return np.asarray(cut.mean(axis=(2, 4), dtype=np.float32), np.float32)

    bright = scene.field & (ndimage.uniform_filter(scene.image, (0, 3, 3)) - scene.floor > 0.2 * scene.level)
    whole = means(bright) > 0.99
    if whole.sum() < 200:
        return None
    logarithm = np.log(np.maximum(means(scene.image), 1e-3))
    y, x = np.linspace(-1, 1, high)[:, None], np.linspace(-1, 1, wide)[None]
    terms = np.stack([np.broadcast_to(y**i * x**j, (high, wide)) for i, j in _POWERS], axis=-1)
    slopes, steps = [], []
    for axis in (0, 1):
        both = whole.take(range(1, whole.shape[axis + 1]), axis + 1) & whole.take(range(whole.shape[axis + 1] - 1), axis + 1)
        slopes.append(np.broadcast_to(np.diff(terms, axis=axis), (*both.shape, len(_POWERS)))[both])
        steps.append(np.diff(logarithm, axis=axis + 1)[both])
    coefficients = _most(np.concatenate(slopes), np.concatenate(steps).astype(np.float64))
    field = np.exp(terms @ coefficients)
    low, high_ = np.percentile(np.broadcast_to(field, whole.shape)[whole], (5, 95))
    return float(1 - (high_ - low) / (high_ + low))


def _most(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The x with a @ x near most of b, by Cauchy weights whose width shrinks to that of the residuals' bulk."""
    width = 0.5 * float(np.median(np.abs(b))) + 1e-6
    weight = np.ones_like(b)
    x: npt.NDArray[np.float64] = np.zeros(a.shape[1])
    for _ in range(12):
        weighted = a * weight[:, None]
        x = np.asarray(np.linalg.solve(weighted.T @ a + 1e-6 * len(b) * np.eye(len(x)), weighted.T @ b), np.float64)
        weight = 1 / (1 + ((b - a @ x) / width) ** 2)
        width = max(0.8 * width, 0.3 * float(np.median(np.abs(b))) + 1e-6)
    return x
