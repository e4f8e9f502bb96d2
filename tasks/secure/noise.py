"""Whole numbers with a discrete Gaussian distribution: P(x) proportional to exp(-x**2 / (2 std**2)).

The sampler is that of Canonne, Kamath and Steinke 2020 ("The Discrete Gaussian for Differential Privacy", algorithms 1 to 3),
vectorised: a discrete Laplace proposal made of uniform whole numbers and coin flips of probability exp(-1), and one coin flip
to accept. Their flips are exact for rational std; ours compare 53 fresh bits with a double, and the difference that makes is
bounded (`TOTAL_VARIATION`) and charged.

In production all bits come from the operating system's generator: a fresh key of 256 bits for every draw of some hundred
kilobytes, spread out with AES-256 in counter mode. The generator itself (ChaCha20 in Linux) does no other, at a twentieth of
the speed.
"""

from __future__ import annotations

import math
import os
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

TOTAL_VARIATION = 2.0**-48
"""One number differs from the exact distribution by less than this in total variation; `count` numbers by `count` times it.

A flip is off by 2**-53 for the grid and less than 2**-54 for the double that stands for its probability; a proposal takes 1 /
(1 - 1/e) = 1.6 of them on average, so its distribution is off by less than 2**-52 in total variation, its weights by twice
that. The flip that accepts is off by at most 1.3 * 2**-51: 2**-53 for the grid, as much for exp, and for its argument e,
whose rounding is at most (1.42 * |y| + 2 * e) * 2**-52 with y**2 <= 2 * e, the largest value of that times exp(-e). Together
2.3 * 2**-51, divided by the share of proposals accepted (0.41 or more from std 0.7 on, 0.3 below): less than 2**-48.
"""

_CHUNK = 1 << 16  # numbers proposed at a time
_LARGEST_STD = 2.0**40  # beyond, squares of what is drawn would not be exact enough for the bound


class Bits(Protocol):
    """A source of random bytes."""

    @property
    def source(self) -> Literal["os", "seeded"]:
        """`os` in production, `seeded` in rehearsals; goes into the ledger."""

    def draw(self, count: int) -> bytes:
        """`count` independent uniform bytes."""


class _OsBits:
    source: Literal["os", "seeded"] = "os"

    def draw(self, count: int) -> bytes:
        stream = Cipher(
            algorithms.AES(os.urandom(32)), modes.CTR(bytes(16))
        ).encryptor()  # one key, one stream: no nonce needed
        return stream.update(bytes(count))


class _SeededBits:
    source: Literal["os", "seeded"] = "seeded"

    def __init__(self, *seed: int) -> None:
        self._rng = np.random.default_rng(np.random.SeedSequence(entropy=list(seed), spawn_key=(0x64697363,)))

    def draw(self, count: int) -> bytes:
        return self._rng.bytes(count)


def os_bits() -> Bits:
    """For production: keyed by the operating system at every draw, can't be repeated, nothing about it is stored."""
    return _OsBits()


def seeded_bits(seed: int, *more: int) -> Bits:
    """Repeatable, for rehearsals. **Protects nobody.**

    Give what must differ between releases as further numbers: `seeded_bits(seed, round, site)`.
    """
    return _SeededBits(seed, *more)


def discrete_gaussian(count: int, *, std: float, bits: Bits) -> npt.NDArray[np.int64]:
    """`count` independent whole numbers of mean 0; `std = 0` gives zeros.

    For `std` above 1 their standard deviation is `std` but for a relative 1e-7, and less than `std` below.
    """
    if not 0 <= std <= _LARGEST_STD:
        raise ValueError(f"the standard deviation of discrete noise must lie between 0 and 2**40, not {std}")
    if std == 0:
        return np.zeros(count, dtype=np.int64)
    found, missing = [np.empty(0, dtype=np.int64)], count
    while missing > 0:
        # 0.4 of them or more are accepted; a few more are asked for, so that most calls need one pass
        some = _accepted(min(_CHUNK, int(2.2 * missing) + 16), std, bits)[:missing]
        found.append(some)
        missing -= len(some)
    return np.concatenate(found)


def _accepted(proposals: int, std: float, bits: Bits) -> npt.NDArray[np.int64]:
    # P(size) = exp(-size / scale): low part uniform (its weight comes with the last flip), high part geometric. A power of two
    # makes the uniform exact; the nearest to std accepts most
    power = max(0, round(math.log2(std)))
    scale = 1 << power
    raw = np.frombuffer(bits.draw(8 * proposals), dtype="<u8")
    low = (raw & np.uint64(scale - 1)).astype(np.int64)
    negative = (raw >> np.uint64(63)).astype(bool)
    size = low + (_geometric(proposals, bits) << power)
    exponent = low / scale + (size - std * (std / scale)) ** 2 / (2.0 * std * std)
    keep = _uniform(proposals, bits) < np.exp(-exponent)
    keep &= ~(negative & (size == 0))  # else zero would be drawn twice as often
    return np.where(negative, -size, size)[keep]


def _geometric(count: int, bits: Bits) -> npt.NDArray[np.int64]:
    """How many flips of probability exp(-1) in a row come out heads."""
    heads = np.zeros(count, dtype=np.int64)
    going = np.arange(count)
    while len(going):
        going = going[_uniform(len(going), bits) < math.exp(-1)]
        heads[going] += 1
    return heads


def _uniform(count: int, bits: Bits) -> npt.NDArray[np.float64]:
    """Multiples of 2**-53 in [0, 1)."""
    return (np.frombuffer(bits.draw(8 * count), dtype="<u8") >> np.uint64(11)).astype(np.float64) * 2.0**-53
