"""Gaussian noise: where it comes from, how it is added, and the noisy sum that everything but gradients uses.

In production every normal deviate is made of a keystream of AES-256, with a key of 256 fresh bits from the operating system
(`os.urandom`) for each sum and every 65,536 deviates of it. torch's and numpy's generators are not used there: their output
is a function of a short seed and of earlier output, so whoever learns either can subtract the noise. Docs: docs/privacy.md,
"Where the noise comes from".
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from torch import Tensor

Source = Literal["os", "seeded"]
_GRID_BITS = 20  # the released sum lies on a grid of about 2**-20 noise standard deviations
_CHUNK = 1 << 16  # deviates made at a time, of one key: 512 KiB, which the processor's cache holds


class Noise(Protocol):
    """A source of Gaussian noise."""

    @property
    def source(self) -> Source:
        """`os` in production, `seeded` in rehearsals; goes into the ledger."""

    def gaussian(self, like: Tensor, std: float) -> Tensor:
        """Independent normal deviates of mean 0 and standard deviation `std`: float64, shape and device of `like`."""


class _OsNoise:
    source: Source = "os"

    def gaussian(self, like: Tensor, std: float) -> Tensor:
        return _scaled(np.concatenate([_normal(n) for n in _chunks(like.numel())] or [np.empty(0)]), like, std)


class _SeededNoise:
    source: Source = "seeded"

    def __init__(self, seed: Sequence[int]) -> None:
        self._rng = np.random.default_rng(np.random.SeedSequence(entropy=list(seed), spawn_key=(0x6E6F6973,)))

    def gaussian(self, like: Tensor, std: float) -> Tensor:
        return _scaled(self._rng.standard_normal(like.numel()), like, std)


def os_noise() -> Noise:
    """Noise for production. It has no seed, can't be repeated, and nothing about it is stored."""
    return _OsNoise()


def seeded_noise(seed: int, *more: int) -> Noise:
    """Repeatable noise for rehearsals. **Protects nobody**: whoever knows the seed can subtract it.

    Give what must differ between releases as further numbers, `seeded_noise(seed, round, site)`: the same noise in two
    releases cancels in their difference.
    """
    return _SeededNoise((seed, *more))


def noise_std(*, noise_multiplier: float, bound: float) -> float:
    """Standard deviation of the noise on a sum whose L2 sensitivity is `bound`.

    A multiplier of 0 is no noise whatever the bound, so that "no privacy" is `bound = inf, noise_multiplier = 0` (their
    product would be NaN). Raises `ValueError` for noise on an unbounded sum, which would promise nothing.
    """
    if not noise_multiplier >= 0 or math.isinf(noise_multiplier):
        raise ValueError(f"noise_multiplier must be a finite number >= 0, not {noise_multiplier}")
    if not bound > 0:
        raise ValueError(f"the bound on one patient's contribution must be positive, not {bound}")
    if noise_multiplier > 0 and math.isinf(bound):
        raise ValueError(
            f"noise of multiplier {noise_multiplier} needs a finite bound on one patient's contribution; it is infinite"
        )
    return noise_multiplier * bound if noise_multiplier > 0 else 0.0


def noised(total: Tensor, std: float, noise: Noise) -> Tensor:
    """`total` plus noise, rounded to a grid of about `std` * 2**-20; float64. `std = 0` returns `total`.

    The grid closes the floating-point attack (Mironov 2012): the doubles that x + noise can take depend on x, so single
    low-order bits tell inputs apart. Every grid point is the sum of very many doubles from every x near it.
    """
    if std == 0:
        return total.double()
    grid = 2.0 ** (math.floor(math.log2(std)) - _GRID_BITS)
    return noise.gaussian(total, std).add_(total).div_(grid).round_().mul_(grid)


def noisy_sum(vectors: npt.ArrayLike, *, bound: float, noise_multiplier: float, noise: Noise) -> npt.NDArray[np.float64]:
    """The Gaussian mechanism for anything that is one vector per patient: counts, statistics, scores.

    Parameters
    ----------
    vectors : array (patients, length)
        One row per patient, whatever that patient holds. No patients is shape (0, length) and gives noise alone.
    bound : float
        Each row is scaled down to this L2 norm. Choose it from public facts; `math.inf` bounds nothing.
    noise_multiplier : float
        Noise standard deviation over `bound`; goes into the ledger as one event with one step.
    noise : Noise
        Where the noise comes from: `os_noise()`.

    Returns
    -------
    array (length,), float64
        A row that isn't finite counts as zero. Divide by a declared size, never by the number of rows.

    Raises
    ------
    ValueError
        For another number of axes, or a bound and multiplier that promise nothing.
    """
    rows = np.asarray(vectors, dtype=np.float64)
    if rows.ndim != 2:
        raise ValueError(f"vectors must have shape (patients, length), one row per patient, not {rows.shape}")
    return noisy_total(rows, length=rows.shape[1], bound=bound, noise_multiplier=noise_multiplier, noise=noise)


def noisy_total(
    vectors: Iterable[npt.NDArray[np.float64]], *, length: int, bound: float, noise_multiplier: float, noise: Noise
) -> npt.NDArray[np.float64]:
    """`noisy_sum` of vectors that come one by one, so that memory doesn't grow with the number of patients.

    One that isn't (length,) or isn't finite counts as zero.
    """
    std = noise_std(noise_multiplier=noise_multiplier, bound=bound)
    total = np.zeros(length)
    for vector in vectors:
        if vector.shape == (length,) and np.isfinite(vector).all():
            with np.errstate(over="ignore"):
                norm = float(np.linalg.norm(vector))
            total += vector * (bound / norm) if norm > bound else vector
    return noised(torch.from_numpy(total), std, noise).numpy()


def _chunks(count: int) -> list[int]:
    return [min(_CHUNK, count - start) for start in range(0, count, _CHUNK)]


def _normal(count: int) -> npt.NDArray[np.float64]:
    """`count` standard normal deviates, by Box and Muller (1958)."""
    pairs = (count + 1) // 2
    uniform = (np.frombuffer(_fresh_bytes(16 * pairs), dtype=np.uint64) >> np.uint64(11)) * 2.0**-53
    uniform += 2.0**-54  # (0, 1]: the logarithm stays finite
    numbers = torch.from_numpy(uniform)  # torch: its sines are four times as quick
    radius = numbers[:pairs].log_().mul_(-2.0).sqrt_()
    angle = numbers[pairs:].mul_(2.0 * math.pi)
    return torch.cat([torch.cos(angle).mul_(radius), torch.sin(angle).mul_(radius)])[:count].numpy()


def _fresh_bytes(count: int) -> bytes:
    """What nobody can tell from uniform bytes: one key, one stream, fifteen times as quick as asking for all of them."""
    stream = Cipher(algorithms.AES(os.urandom(32)), modes.CTR(bytes(16))).encryptor()  # a key is used once: no nonce
    return stream.update(bytes(count))


def _scaled(deviates: npt.NDArray[np.float64], like: Tensor, std: float) -> Tensor:
    return torch.from_numpy(deviates).mul_(std).reshape(like.shape).to(like.device)
