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

_DTYPES = {
    np.dtype(kind).newbyteorder("<").str: np.dtype(kind).newbyteorder("<")
    for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")
}
"""What a block may hold, as the header writes it: floats, integers and booleans that every machine knows in the same size."""

_LARGEST = 2**40
"""Product of an array's sides, those of zero left out: what NumPy can hold without overflow on any machine."""


def pack(arrays: Mapping[str, npt.NDArray[np.generic]]) -> bytes:
    """One block that `unpack` makes the same arrays of. Raises `ValueError` for arrays of anything but common numbers."""
    for name, array in arrays.items():
        if array.dtype.newbyteorder("<").str not in _DTYPES:
            raise ValueError(f"array '{name}' holds {array.dtype}; numbers of up to 64 bits can be packed")
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
        entries = [(name, kind, list(shape)) for name, kind, shape in header]
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"the block's header can't be read: {str(error)[:100]!a}") from None
    arrays: dict[str, npt.NDArray[Any]] = {}
    at = 8 + length
    for name, kind, shape in entries:
        if not isinstance(name, str) or name in arrays or any("\ud800" <= letter <= "\udfff" for letter in name):
            raise ValueError(f"the block's header lists {str(name)[:100]!a}, which is no name, or twice")
        dtype = _DTYPES.get(kind) if isinstance(kind, str) else None
        if dtype is None:
            raise ValueError(f"the block's header lists {name[:100]!a} as {str(kind)[:20]!a}, which is no kind of number here")
        # a number such as 1e999 is no int, and True is one only to isinstance
        if len(shape) > 16 or any(type(side) is not int or side < 0 for side in shape):
            raise ValueError(f"the block's header lists {name[:100]!a} with sides that are no whole numbers, or too many")
        if math.prod(max(side, 1) for side in shape) > _LARGEST:
            raise ValueError(f"array {name[:100]!a} of the block would be larger than any machine holds")
        count = math.prod(shape)
        if count * dtype.itemsize > len(block) - at:
            raise ValueError(f"array {name[:100]!a} would end beyond the block")
        values = np.frombuffer(block, dtype=dtype, count=count, offset=at).reshape(shape)
        arrays[name] = values.astype(dtype.newbyteorder("="))  # a copy: torch wants arrays that can be written to
        at += count * dtype.itemsize
    if at != len(block):
        raise ValueError(f"{len(block) - at} bytes are left over at the block's end")
    return arrays
