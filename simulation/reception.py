"""From the signal in the body to grey values: uneven tissue and flow, surface coils, k-space, and the vendor's integers.

What is small (where a texture is cut out, ghosts of the lines, windows, a coarse field of the coils) is drawn and worked out by
numpy. What has a value for every pixel is written once for arrays of numpy and tensors of torch alike (`Library`), so that
`simulation.rescan` has the same physics on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
from scipy import fft, ndimage

from simulation.interpolation import enlarge
from simulation.patient import Patient
from simulation.phantom import Grid, Truth

if TYPE_CHECKING:
    import torch

    from simulation.scanner import Scanner

    Pixels = TypeVar("Pixels", npt.NDArray[Any], torch.Tensor)
else:
    Pixels = TypeVar("Pixels")

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Library(Generic[Pixels]):
    """What arrays of numpy and tensors of torch have no common operator for."""

    exp: Callable[[Pixels], Pixels]
    fft2: Callable[[Pixels], Pixels]  # of the last two axes
    ifft2: Callable[[Pixels], Pixels]


NUMPY: Library[npt.NDArray[Any]] = Library(
    np.exp, lambda image: fft.fft2(image, workers=1), lambda space: fft.ifft2(space, overwrite_x=True, workers=1)
)

# -- uneven tissue and flow ----------------------------------------------------------------------------------------------


@lru_cache(maxsize=8)
def noise_tile(smooth: int) -> Floats:
    """A periodic field of smooth unit-variance noise, (512, 512), from which every texture is cut at a random place."""
    field = np.random.default_rng([smooth, 41]).standard_normal((512, 512)).astype(np.float32)
    field = ndimage.gaussian_filter(field, smooth / 2, mode="wrap")
    return np.asarray(field / field.std(), np.float32)


@dataclass(frozen=True, eq=False)
class Cut:
    """Which part of `noise_tile(smooth)` a texture is: indices of its rows (slices, R, 1) and columns (slices, 1, C)."""

    smooth: int
    rows: npt.NDArray[np.intp]
    columns: npt.NDArray[np.intp]

    @property
    def field(self) -> Floats:
        """The texture, (slices, R, C)."""
        return noise_tile(self.smooth)[self.rows, self.columns]


def _cut(rng: np.random.Generator, smooth: int, shape: tuple[int, ...]) -> Cut:
    rows = np.empty((shape[0], shape[1], 1), np.intp)
    columns = np.empty((shape[0], 1, shape[2]), np.intp)
    for k in range(shape[0]):
        top, left = rng.integers(0, 512, 2)
        flip = 1 if rng.random() < 0.5 else -1
        rows[k, :, 0] = (top + np.arange(shape[1])) % 512
        columns[k, 0] = (left + flip * np.arange(shape[2])) % 512
    return Cut(smooth, rows, columns)


@dataclass(frozen=True, eq=False)
class Cuts:
    """The textures of one scan: of tissue, coarse and fine; of the blood's eddies and of off-resonance, where it has them."""

    coarse: Cut
    fine: Cut
    eddies: Cut | None
    bands: Cut | None  # of one slice


def draw_cuts(scanner: Scanner, shape: tuple[int, ...], rng: np.random.Generator, *, blood: bool) -> Cuts:
    """Where the textures of a scan of this shape (slices, rows, columns) are cut out."""
    smooth = max(2, round(8.0 / scanner.pixel_mm))
    return Cuts(
        coarse=_cut(rng, smooth, shape),
        fine=_cut(rng, max(2, smooth // 3), shape),
        eddies=_cut(rng, max(2, smooth // 2), shape) if blood else None,
        bands=_cut(rng, 64, (1, *shape[1:])) if scanner.banding and blood else None,
    )


def tissue_factor(coarse: Pixels, fine: Pixels, texture: Any) -> Pixels:
    """Factor on the signal of uneven tissue; `texture` is the scanner's, a number or one for each slice (slices, 1, 1)."""
    factor: Pixels = 1 + texture * (0.7 * coarse + 0.5 * fine)
    return factor


def flow_loss(eddies: Pixels, pool: Pixels, mottle: Any) -> Pixels:
    """What eddies add to the factor inside the blood `pool`: flow takes signal away rather than adding."""
    loss: Pixels = mottle * eddies.clip(max=0.8) * pool
    return loss


def band_factor(field: Pixels, height: Pixels, banding: Any, library: Library[Pixels]) -> Pixels:
    """Factor of off-resonance stripes that wander with the `height` of the slice in the stack, 0 to 0.5 (slices, 1, 1)."""
    stripes = field * 0.45 + height * 0.3
    off = abs(stripes % 1.0 - 0.5)
    factor: Pixels = 1 - banding * library.exp(-((off / 0.09) ** 2))
    return factor


def heights(slices: int) -> npt.NDArray[Any]:
    """Of each slice in its stack, as `band_factor` wants it: (slices, 1, 1)."""
    return np.linspace(0, 0.5, slices)[:, None, None]


def textured(image: Floats, drawn: Truth, scanner: Scanner, rng: np.random.Generator, *, blood: bool) -> Floats:
    """Uneven tissue, and blood that flows unevenly, multiplied into the signal."""
    cuts = draw_cuts(scanner, image.shape, rng, blood=blood)
    factor = tissue_factor(cuts.coarse.field, cuts.fine.field, scanner.texture)
    if cuts.eddies is not None:
        factor += flow_loss(cuts.eddies.field, (drawn.mask == 1) | (drawn.mask == 3), scanner.flow_mottle)
    if cuts.bands is not None:
        field: npt.NDArray[Any] = cuts.bands.field
        factor *= band_factor(field, heights(len(image)), scanner.banding, NUMPY)
    return np.asarray(image * factor, np.float32)


# -- surface coils -------------------------------------------------------------------------------------------------------

_COILS = ((10.0, -150.0, 0.0, 1.0), (110.0, -95.0, -30.0, 0.9), (-80.0, -120.0, 10.0, 0.6), (40.0, 140.0, 0.0, 0.5))
"""Centre (LPS, mm) and weight of four coil elements on chest and back."""


def coil_field(patient: Patient, grid: Grid, place: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """What the coils receive, 1 at the heart's centre: coarse (slices, 20, 20), corner samples at the corners' pixels."""
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

    return np.asarray(received_from(points) / received_from(np.array(patient.heart_place_mm)))


def weakened(field: npt.NDArray[np.float64], coil_bias: float) -> Floats:
    """The coarse field as far as this scanner doesn't correct for it."""
    return (field**coil_bias).astype(np.float32)


def sensitivity(patient: Patient, grid: Grid, place: npt.NDArray[np.float64], coil_bias: float) -> Floats:
    """Sensitivity (slices, rows, columns), 1 at the heart's centre; computed coarsely and interpolated, for it is smooth."""
    return enlarge(weakened(coil_field(patient, grid, place), coil_bias), *grid.shape)


# -- k-space -------------------------------------------------------------------------------------------------------------


def _window(n: int, extent: float, roll_off: float) -> Floats:
    """Tukey window (n,) over the acquired part of one k-space axis, in fft order."""
    k = np.abs(np.fft.fftfreq(n) * 2)
    taper = np.clip((k / extent - (1 - roll_off)) / max(roll_off, 1e-3), 0, 1)
    return np.where(k > extent, 0, 0.5 * (1 + np.cos(np.pi * taper))).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Lines:
    """How k-space is sampled: factor of the ghosts (slices, rows), windows (rows,) and (columns,), deviation of the noise."""

    ghost: npt.NDArray[np.complex64]
    phase: Floats
    read: Floats
    noise: float


def draw_lines(scanner: Scanner, shape: tuple[int, ...], reference: float, rng: np.random.Generator) -> Lines:
    """For a scan of this shape (slices, rows, columns): rows are the phase direction."""
    slices, rows, columns = shape
    read = _window(columns, scanner.resolution, scanner.edge_roll_off)
    phase = _window(rows, scanner.resolution * scanner.phase_resolution, scanner.edge_roll_off)
    line = np.arange(rows)
    period = rng.uniform(2.0, 5.0, (slices, 1))
    ghost = 1 + scanner.ghosting * rng.uniform(0.3, 1.7, (slices, 1)) * np.exp(
        2j * np.pi * (line[None] / period + rng.uniform(0, 1, (slices, 1)))
    )
    # so that the noise of the reconstructed real part has the standard deviation reference / snr
    power = float((read**2).mean() * (phase**2).mean())
    noise = float(reference / scanner.snr * np.sqrt(rows * columns / power))
    return Lines(ghost.astype(np.complex64), phase, read, noise)


def draw_noise(shape: tuple[int, ...], rng: np.random.Generator) -> npt.NDArray[np.complex64]:
    """Of k-space, with standard deviation 1 in either channel."""
    noise = np.empty(shape, np.complex64)
    noise.real = rng.standard_normal(shape, np.float32)
    noise.imag = rng.standard_normal(shape, np.float32)
    return noise


def sample(image: Pixels, ghost: Pixels, window: Pixels, noise: Pixels, library: Library[Pixels]) -> Pixels:
    """The image (slices, rows, columns) as sampled, complex; ghost (slices, rows, 1), window (..., rows, columns)."""
    space = library.fft2(image)
    space *= ghost
    space += noise
    space *= window
    return library.ifft2(space)


def acquire(image: Floats, scanner: Scanner, reference: float, rng: np.random.Generator) -> npt.NDArray[np.complex64]:
    """Complex image (slices, rows, columns) after sampling."""
    lines = draw_lines(scanner, image.shape, reference, rng)
    noise = draw_noise(image.shape, rng) * np.complex64(lines.noise)
    window = lines.phase[None, :, None] * lines.read[None, None, :]
    return np.asarray(sample(image, lines.ghost[:, :, None], window, noise, NUMPY), np.complex64)


# -- grey values ---------------------------------------------------------------------------------------------------------


def in_circle(n: int) -> npt.NDArray[np.bool_]:
    """The pixels (n, n) that a circular field of view leaves."""
    axis = np.arange(n, dtype=np.float32) - (n - 1) / 2
    return np.asarray(axis[:, None] ** 2 + axis[None] ** 2 <= (0.485 * n) ** 2)


def rounded_grey(received: Pixels, scale: Any, offset: Any, signed: bool) -> Pixels:
    """Whole numbers from 0 to 65535, `scale` for a signal of 1; signed images get the offset, so that no signal is mid-grey."""
    grey: Pixels = received.real * scale + offset if signed else abs(received) * scale
    return grey.round().clip(0, 65535)


def grey_values(
    received: npt.NDArray[np.complex64], scanner: Scanner, reference: float, signed: bool
) -> npt.NDArray[np.uint16]:
    """Integers as the vendor stores them; signed images get an offset of one scale, so that zero signal is mid-grey."""
    grey = rounded_grey(received, scanner.intensity_scale / reference, scanner.intensity_scale, signed)
    if scanner.circular_view:
        grey *= in_circle(grey.shape[1])
    return np.asarray(grey, np.uint16)
