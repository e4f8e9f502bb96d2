"""Keys of hospitals that do not exist, made of their names: a rehearsal that is repeated is the same study.

Whoever knows the name has the key, which is right for a rehearsal and for nothing else.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from fl_client.keys import public_line, write_key

_ORDER_BITS = 383
"""One less than the bits of P-384's order: every number of so many bits is a private key, but for zero."""


@lru_cache(maxsize=2048)
def _private(name: str) -> ec.EllipticCurvePrivateKey:
    number = int.from_bytes(hashlib.sha384(f"konsil rehearsal {name}".encode()).digest(), "big")
    return ec.derive_private_key(number % 2**_ORDER_BITS or 1, ec.SECP384R1())


def public(name: str) -> str:
    """The public half, as a study's `privacy.secure.keys` has it."""
    return public_line(_private(name))


def give(name: str, path: Path) -> None:
    """Write the private half, unless it is there."""
    if not path.exists():
        write_key(_private(name), path)
