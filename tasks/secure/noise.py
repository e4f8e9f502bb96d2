"""Whole numbers with a discrete Gaussian distribution: P(x) proportional to exp(-x**2 / (2 std**2)).

The sampler is that of Canonne, Kamath and Steinke 2020 ("The Discrete Gaussian for Differential Privacy", algorithms 1 to 3),
vectorised: a discrete Laplace proposal made of uniform whole numbers and coin flips of probability exp(-1), and one coin flip
to accept. Ours compare 53 fresh bits with a double and, where these are too close to tell, more bits with more digits; the
difference that is left is bounded (`TOTAL_VARIATION`) and charged.

In production all bits come from the operating system's generator: a fresh key of 256 bits for every draw of some hundred
kilobytes, spread out with AES-256 in counter mode. The generator itself (ChaCha20 in Linux) does no other, at a twentieth of
the speed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

TOTAL_VARIATION = 2.0**-100
"""One number differs from the exact distribution by less than this in total variation; `count` numbers by `count` times it.

A flip whose 53 bits lie within `_NEAR` of the double that stands for its probability is decided anew, with 128 further bits
against the probability in 80 digits; the double is off by less than 2**-50 (exp: 2**-53, its argument e:
(1.42 * |y| + 2 * e) * 2**-52 with y**2 <= 2 * e, times exp(-e)), so all others are decided right. What is left is that the
further bits end: 2**-181 for a flip, of which a number takes about 10.
"""

_NEAR = 2.0**-49
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

    def exactly(index: int) -> Fraction:
        square = Fraction(std) ** 2
        return Fraction(int(low[index]), scale) + (int(size[index]) - square / scale) ** 2 / (2 * square)

    keep = _flips(np.exp(-exponent), exactly, bits)
    keep &= ~(negative & (size == 0))  # else zero would be drawn twice as often
    return np.where(negative, -size, size)[keep]


def _geometric(count: int, bits: Bits) -> npt.NDArray[np.int64]:
    """How many flips of probability exp(-1) in a row come out heads."""
    heads = np.zeros(count, dtype=np.int64)
    going = np.arange(count)
    while len(going):
        going = going[_flips(np.full(len(going), math.exp(-1)), lambda index: Fraction(1), bits)]
        heads[going] += 1
    return heads


def _flips(probability: npt.NDArray[np.float64], exponent: Callable[[int], Fraction], bits: Bits) -> npt.NDArray[np.bool_]:
    """One coin flip each; `exponent` gives minus the logarithm of the probability that the double stands for, exactly."""
    drawn = np.frombuffer(bits.draw(8 * len(probability)), dtype="<u8") >> np.uint64(11)
    uniform = drawn.astype(np.float64) * 2.0**-53  # it stands for all numbers up to the next one
    heads = uniform < probability
    for index in np.flatnonzero(np.abs(uniform - probability) <= _NEAR):  # once in 2**48 flips
        heads[index] = _decided(int(drawn[index]), exponent(int(index)), bits)
    return heads


def _decided(drawn: int, exponent: Fraction, bits: Bits) -> bool:
    """Whether `drawn` * 2**-53 and 128 further bits are below exp(-exponent)."""
    with localcontext(prec=80):
        edge = (-Decimal(exponent.numerator) / exponent.denominator).exp()
        further = int.from_bytes(bits.draw(16), "little")
        return (drawn << 128) + further < edge * (1 << 181)
