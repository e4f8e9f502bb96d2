"""Named arrays as one block of bytes.

Flower moves every array of a message as two objects of its own, each with a request, a signature and a line in a database: a
U-Net of 78 arrays cost some 400 requests for a hospital's round, and seconds that no training took. The block is a header in
JSON and the arrays' bytes, one after the other, as in the safetensors format; nothing in it is ever executed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

LONGEST_HEADER = 16 * 1024**2
"""Bytes."""

_KINDS = "fiub"  # of NumPy's dtypes: floats, integers, booleans


def pack(arrays: Mapping[str, npt.NDArray[np.generic]]) -> bytes:
    """One block that `unpack` makes the same arrays of. Raises `ValueError` for arrays of anything but numbers."""
    for name, array in arrays.items():
        if array.dtype.kind not in _KINDS:
            raise ValueError(f"array '{name}' holds {array.dtype}; numbers can be packed")
    ordered = {name: array.astype(array.dtype.newbyteorder("<"), copy=False) for name, array in arrays.items()}
    header = json.dumps([[name, array.dtype.str, array.shape] for name, array in ordered.items()]).encode()
    return b"".join([len(header).to_bytes(8, "little"), header, *(array.tobytes() for array in ordered.values())])


def unpack(block: bytes) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a block, in their order, in twice its memory. Raises `ValueError` for whatever `pack` has not made."""
    length = int.from_bytes(block[:8], "little")
    if length > min(LONGEST_HEADER, len(block) - 8):
        raise ValueError(f"the block's header is said to be {length} bytes long; the block has {len(block)}")
    try:
        header = json.loads(block[8 : 8 + length])
        entries = [(str(name), np.dtype(str(kind)), [int(side) for side in shape]) for name, kind, shape in header]
    except (ValueError, TypeError, RecursionError, SyntaxError) as error:
        raise ValueError(f"the block's header can't be read: {str(error)[:100]}") from None
    arrays: dict[str, npt.NDArray[Any]] = {}
    at = 8 + length
    for name, dtype, shape in entries:
        if dtype.kind not in _KINDS or dtype.hasobject or name in arrays or len(shape) > 16 or any(side < 0 for side in shape):
            raise ValueError(f"the block's header lists '{name[:100]}' as {dtype}{shape[:8]}, or twice")
        count = math.prod(shape)
        if count * dtype.itemsize > len(block) - at:
            raise ValueError(f"array '{name[:100]}' would end beyond the block")
        values = np.frombuffer(block, dtype=dtype, count=count, offset=at).reshape(shape)
        arrays[name] = values.astype(dtype.newbyteorder("="))  # a copy: torch wants arrays that can be written to
        at += count * dtype.itemsize
    if at != len(block):
        raise ValueError(f"{len(block) - at} bytes are left over at the block's end")
    return arrays
