"""From the signal in the body to grey values: uneven tissue and flow, surface coils, k-space, and the vendor's integers."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy import fft, ndimage

from simulation.interpolation import enlarge
from simulation.patient import Patient
from simulation.phantom import Grid, Truth

if TYPE_CHECKING:
    from simulation.scanner import Scanner

Floats = npt.NDArray[np.float32]


@lru_cache(maxsize=8)
def _noise_tile(smooth: int) -> Floats:
    """A periodic field of smooth unit-variance noise, (512, 512), from which every texture is cut at a random place."""
    field = np.random.default_rng([smooth, 41]).standard_normal((512, 512)).astype(np.float32)
    field = ndimage.gaussian_filter(field, smooth / 2, mode="wrap")
    return np.asarray(field / field.std(), np.float32)


def _cut(rng: np.random.Generator, smooth: int, shape: tuple[int, ...]) -> Floats:
    tile = _noise_tile(smooth)
    out = np.empty(shape, np.float32)
    rows, columns = np.arange(shape[1]), np.arange(shape[2])
    for k in range(shape[0]):
        top, left = rng.integers(0, 512, 2)
        flip = 1 if rng.random() < 0.5 else -1
        out[k] = tile[(top + rows)[:, None] % 512, (left + flip * columns)[None] % 512]
    return out


def textured(image: Floats, drawn: Truth, scanner: Scanner, rng: np.random.Generator, *, blood: bool) -> Floats:
    """Uneven tissue, and blood that flows unevenly, multiplied into the signal."""
    smooth = max(2, round(8.0 / scanner.pixel_mm))
    factor = 1 + scanner.texture * (0.7 * _cut(rng, smooth, image.shape) + 0.5 * _cut(rng, max(2, smooth // 3), image.shape))
    if blood:
        pool = (drawn.mask == 1) | (drawn.mask == 3)
        eddies = np.minimum(_cut(rng, max(2, smooth // 2), image.shape), 0.8)  # flow takes signal away rather than adding
        factor += np.where(pool, scanner.flow_mottle * eddies, 0)
    if scanner.banding and blood:
        stripes = _cut(rng, 64, (1, *image.shape[1:])) * 0.45 + np.linspace(0, 0.5, image.shape[0])[:, None, None] * 0.3
        off = np.abs(stripes % 1.0 - 0.5)
        factor *= 1 - scanner.banding * np.exp(-((off / 0.09) ** 2))
    return np.asarray(image * factor, np.float32)


_COILS = ((10.0, -150.0, 0.0, 1.0), (110.0, -95.0, -30.0, 0.9), (-80.0, -120.0, 10.0, 0.6), (40.0, 140.0, 0.0, 0.5))
"""Centre (LPS, mm) and weight of four coil elements on chest and back."""


def sensitivity(patient: Patient, grid: Grid, place: npt.NDArray[np.float64], coil_bias: float) -> Floats:
    """Sensitivity (slices, rows, columns), 1 at the heart's centre; computed coarsely and interpolated, for it is smooth."""
    coarse = 20
    rows, columns = grid.shape
    r, c = np.linspace(0, rows - 1, coarse), np.linspace(0, columns - 1, coarse)
    k = np.arange(len(grid.levels_mm))
    points = (
        place[:3, 3]
        + k[:, None, None, None] * place[:3, 0]
        + r[None, :, None, None] * place[:3, 1]
        + c[None, None, :, None] * place[:3, 2]
    )

    def received_from(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        total = np.zeros(points.shape[:-1])
        for left, posterior, superior, weight in _COILS:
            scale = patient.torso_mm[1] / 120
            away = points - np.array([left, posterior * scale, superior])
            total += weight / (1 + (away**2).sum(-1) / 75.0**2) ** 1.5
        return total

    field = (received_from(points) / received_from(np.array(patient.heart_place_mm))) ** coil_bias
    return enlarge(field.astype(np.float32), rows, columns)


# -- k-space -------------------------------------------------------------------------------------------------------------


def _window(n: int, extent: float, roll_off: float) -> Floats:
    """Tukey window (n,) over the acquired part of one k-space axis, in fft order."""
    k = np.abs(np.fft.fftfreq(n) * 2)
    taper = np.clip((k / extent - (1 - roll_off)) / max(roll_off, 1e-3), 0, 1)
    return np.where(k > extent, 0, 0.5 * (1 + np.cos(np.pi * taper))).astype(np.float32)


def acquire(image: Floats, scanner: Scanner, reference: float, rng: np.random.Generator) -> npt.NDArray[np.complex64]:
    """Complex image (slices, rows, columns) after sampling: rows are the phase direction."""
    slices, rows, columns = image.shape
    read = _window(columns, scanner.resolution, scanner.edge_roll_off)
    phase = _window(rows, scanner.resolution * scanner.phase_resolution, scanner.edge_roll_off)
    space = fft.fft2(image, workers=1)
    line = np.arange(rows)
    period = rng.uniform(2.0, 5.0, (slices, 1))
    ghost = 1 + scanner.ghosting * rng.uniform(0.3, 1.7, (slices, 1)) * np.exp(
        2j * np.pi * (line[None] / period + rng.uniform(0, 1, (slices, 1)))
    )
    space *= ghost[:, :, None].astype(np.complex64)
    noise = np.empty(space.shape, np.complex64)
    noise.real = rng.standard_normal(space.shape, np.float32)
    noise.imag = rng.standard_normal(space.shape, np.float32)
    # so that the noise of the reconstructed real part has the standard deviation reference / snr
    power = float((read**2).mean() * (phase**2).mean())
    space += noise * np.complex64(reference / scanner.snr * np.sqrt(rows * columns / power))
    space *= phase[None, :, None] * read[None, None, :]
    return np.asarray(fft.ifft2(space, overwrite_x=True, workers=1), np.complex64)


def grey_values(
    received: npt.NDArray[np.complex64], scanner: Scanner, reference: float, signed: bool
) -> npt.NDArray[np.uint16]:
    """Integers as the vendor stores them; signed images get an offset of one scale, so that zero signal is mid-grey."""
    if signed:
        grey = received.real * (scanner.intensity_scale / reference) + scanner.intensity_scale
    else:
        grey = np.abs(received) * (scanner.intensity_scale / reference)
    if scanner.circular_view:
        n = grey.shape[1]
        axis = np.arange(n, dtype=np.float32) - (n - 1) / 2
        grey[:, axis[:, None] ** 2 + axis[None] ** 2 > (0.485 * n) ** 2] = 0
    return np.asarray(np.clip(np.rint(grey), 0, 65535), np.uint16)
