"""The hospital's own key: what the coordinator knows it by.

An elliptic-curve key on P-384 in OpenSSH's format, which Flower's SuperNode signs its requests with. The private half never
leaves the hospital; the public half is registered at the coordinator, by `konsil-site join` or by hand.
"""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec


def make_key(path: Path, *, comment: str) -> str:
    """Write a new private key (mode 0600) and its public half beside it (`.pub`); the public half, as one line.

    `comment` stands at the end of the line, for the reader. Raises `FileExistsError` rather than replace a key: the
    coordinator knows the old one.
    """
    private = ec.generate_private_key(ec.SECP384R1())
    write_key(private, path)
    line = f"{public_line(private)} {comment}"
    path.with_name(f"{path.name}.pub").write_text(line + "\n")
    return line


def write_key(private: ec.EllipticCurvePrivateKey, path: Path) -> None:
    """Write a private key (mode 0600), forced to the disk. Raises `FileExistsError` rather than replace one."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(file, "wb") as out:
        out.write(
            private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption())
        )
        out.flush()
        os.fsync(file)


def public_key(path: Path) -> str:
    """The public half of the key in `path`, as one line in OpenSSH's format, without a comment.

    Raises what `private_key` raises.
    """
    return public_line(private_key(path))


def private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The hospital's own key, to sign with.

    Raises `FileNotFoundError`, `PermissionError` if other users may read it, and `ValueError` for what is no such key.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: the coordinator knows this hospital by it (konsil-site join makes it)")
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        raise PermissionError(f"{path} has mode {mode:04o}, so others may read it; do: chmod 600 {path}")
    try:
        private = serialization.load_ssh_private_key(path.read_bytes(), None)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ValueError(f"{path} is no private key in OpenSSH's format: {error}") from None
    if not isinstance(private, ec.EllipticCurvePrivateKey):
        raise ValueError(f"{path} is a {type(private).__name__}; an elliptic-curve key (ecdsa, P-384) is needed")
    return private


def public_line(private: ec.EllipticCurvePrivateKey) -> str:
    """The public half as one line in OpenSSH's format, without a comment."""
    return private.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
