"""A sealed folder: a list of its files with their SHA-256, and an Ed25519 signature (RFC 8032) over that list.

Whoever has the coordinator's public key can tell whether a model is the one that was registered, and which of its files is not.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fl_server.certificates import write_secret

MANIFEST, SIGNATURE, PUBLIC = "manifest.json", "manifest.sig", "public.pem"
SCHEMA = "konsil-manifest/1"


def make_key(path: Path) -> Ed25519PrivateKey:
    """A new signing key, as PEM in a file that nobody else may read at any moment."""
    key = Ed25519PrivateKey.generate()
    plain = serialization.NoEncryption()
    write_secret(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain), path)
    return key


def read_key(path: Path) -> Ed25519PrivateKey:
    """The signing key in a PEM file. Raises `ValueError` in words for anything else."""
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} holds no private key (PEM): {error}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError(f"{path} holds a {type(key).__name__}; models are signed with Ed25519")
    return key


def read_public(path: Path) -> Ed25519PublicKey:
    """The public key in a PEM file. Raises `ValueError` in words for anything else."""
    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} holds no public key (PEM): {error}") from None
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError(f"{path} holds a {type(key).__name__}; models are signed with Ed25519")
    return key


def public_pem(key: Ed25519PublicKey) -> bytes:
    """The public key as PEM, to print and to hand on."""
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def fingerprint(key: Ed25519PublicKey) -> str:
    """SHA-256 of the key's 32 bytes: what two people compare by telephone."""
    return hashlib.sha256(key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)).hexdigest()


def sign(text: bytes, key: Ed25519PrivateKey) -> str:
    """The signature of some bytes, in base64."""
    return base64.b64encode(key.sign(text)).decode()


def signed(text: bytes, signature: str, key: Ed25519PublicKey) -> bool:
    """Whether this is the key's signature of these bytes."""
    try:
        key.verify(base64.b64decode(signature, validate=True), text)
    except (InvalidSignature, binascii.Error, ValueError):
        return False
    return True


def seal(folder: Path, facts: Mapping[str, Any], key: Ed25519PrivateKey | None) -> None:
    """Write `manifest.json` over every file in the folder and, with a key, `manifest.sig` and `public.pem`.

    Everything is forced to the disk, so that the folder may be put in its place by a rename. Without a key the list alone is
    written: it finds what was damaged, not what was forged.
    """
    files = {
        str(path.relative_to(folder).as_posix()): {"sha256": _digest(path), "bytes": path.stat().st_size}
        for path in _files(folder)
    }
    signer = fingerprint(key.public_key()) if key else None
    text = json.dumps({"schema": SCHEMA, **facts, "key": signer, "files": files}, indent=1).encode()
    (folder / MANIFEST).write_bytes(text)
    if key:
        (folder / SIGNATURE).write_text(sign(text, key) + "\n")
        (folder / PUBLIC).write_bytes(public_pem(key.public_key()))
    force(folder)


def facts_of(folder: Path) -> dict[str, Any]:
    """What the manifest says, unverified. Raises `ValueError` for what is no manifest."""
    try:
        facts = json.loads((folder / MANIFEST).read_text())
    except FileNotFoundError:
        raise ValueError(f"{folder}: {MANIFEST} is missing") from None
    except ValueError:
        raise ValueError(f"{folder}: {MANIFEST} can't be read") from None
    if not isinstance(facts, dict) or facts.get("schema") != SCHEMA or not isinstance(facts.get("files"), dict):
        raise ValueError(f"{folder}: {MANIFEST} is no list of files of schema {SCHEMA}")
    return facts


def problems(folder: Path, key: Ed25519PublicKey) -> list[str]:
    """What is wrong with a sealed folder, a sentence each; nothing if every file is as it was when this key signed."""
    try:
        facts = facts_of(folder)
    except ValueError as error:
        return [str(error).removeprefix(f"{folder}: ")]
    found = []
    if not (folder / SIGNATURE).exists():
        found.append(f"unsigned: there is no {SIGNATURE}")
    elif not signed((folder / MANIFEST).read_bytes(), (folder / SIGNATURE).read_text().strip(), key):
        claimed = facts.get("key")
        if claimed != fingerprint(key):
            found.append(f"signed by another key ({str(claimed)[:16]}), not by {fingerprint(key)[:16]}")
        else:
            found.append(f"{MANIFEST} was changed after it was signed, or {SIGNATURE} was")
    there = {str(path.relative_to(folder).as_posix()): path for path in _files(folder)}
    for name, facts_of_file in facts["files"].items():
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            found.append(f"{MANIFEST} names {name!r}, which lies outside the folder")
        elif name not in there:
            found.append(f"{name} is missing")
        elif there[name].is_symlink():
            found.append(f"{name} is a link; it was a file")
        elif _digest(there[name]) != facts_of_file.get("sha256"):
            found.append(f"{name} was changed")
    found += [f"{name} was added" for name in sorted(set(there) - set(facts["files"]))]
    return found


def force(folder: Path) -> None:
    """Force every file and folder in it to the disk."""
    for path in [*folder.rglob("*"), folder]:
        if not path.is_symlink():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def _files(folder: Path) -> Iterator[Path]:
    """Files and links in a folder and those below it, but for the seal itself."""
    for path in sorted(folder.rglob("*")):
        if (path.is_symlink() or path.is_file()) and path.relative_to(folder).as_posix() not in (MANIFEST, SIGNATURE, PUBLIC):
            yield path


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
