"""Masks: as many uniform numbers modulo 2**32 as the vector is long, from one key.

The keystream of AES-256 in counter mode, read as little-endian uint32. Added by one and subtracted by the other it cancels
exactly, for modular sums know no rounding. Works in pieces, so that a mask takes no memory of its own.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

Vector = npt.NDArray[np.uint32]
_PIECE = 1 << 16  # numbers at a time, 256 KiB: stays in the processor's cache


def add(vector: Vector, key: bytes) -> None:
    """Add the mask of `key` to `vector`, in place, modulo 2**32."""
    for piece, mask in _pieces(vector, key):
        np.add(piece, mask, out=piece)


def subtract(vector: Vector, key: bytes) -> None:
    """Take the mask of `key` off `vector`, in place, modulo 2**32."""
    for piece, mask in _pieces(vector, key):
        np.subtract(piece, mask, out=piece)


def _pieces(vector: Vector, key: bytes) -> Iterator[tuple[Vector, Vector]]:
    # a key masks one vector, so the counter starts at zero
    stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    nothing, room = bytes(4 * _PIECE), bytearray(4 * _PIECE)
    for start in range(0, len(vector), _PIECE):
        piece = vector[start : start + _PIECE]
        stream.update_into(memoryview(nothing)[: 4 * len(piece)], room)
        yield piece, np.frombuffer(room, dtype="<u4", count=len(piece))
