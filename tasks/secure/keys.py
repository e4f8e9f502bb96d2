"""The keys of one round: fresh ones for every attempt, signed with the key that the hospital is known by.

Each site makes two X25519 pairs (one for masks, one to encrypt shares) and one seed for the mask of its own. Two sites derive
the same secret from one's private and the other's public half; the coordinator, which passes the public halves on, can't, and
can't put its own in their place because of the signature (ECDSA on P-384 with SHA-384). Source: Bonawitz et al. 2017, section
4.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tasks.secure.circle import Moment

SEED = 16
"""Bytes of a secret that is shared out: what one polynomial over GF(2**128) holds, and as strong as X25519 is."""

SEALED = SEED + 16
"""Bytes of a share that is sealed for another site: with the tag of AES-GCM."""

_PUBLIC = 32  # bytes: an X25519 public key, a SHA-256


@dataclass(frozen=True)
class SignedKeys:
    """What a site sends first. `own_mask` is SHA-256 over the seed of its own mask: who unmasks can tell a false seed."""

    mask: bytes
    encryption: bytes
    own_mask: bytes
    signature: bytes

    def to_bytes(self) -> bytes:
        """96 bytes and the signature (DER)."""
        return self.mask + self.encryption + self.own_mask + self.signature

    @classmethod
    def from_bytes(cls, raw: bytes) -> SignedKeys:
        """Raises `ValueError` for anything that can't be signed keys."""
        if not 3 * _PUBLIC < len(raw) <= 3 * _PUBLIC + 256:
            raise ValueError(f"signed keys are 96 bytes and a signature, not {len(raw)} bytes")
        return cls(raw[:_PUBLIC], raw[_PUBLIC : 2 * _PUBLIC], raw[2 * _PUBLIC : 3 * _PUBLIC], raw[3 * _PUBLIC :])

    @property
    def usable(self) -> bool:
        """Whether two different secrets can be agreed on with these: some 32 bytes are no such key."""
        if self.mask == self.encryption:
            return False
        try:
            for half in (self.mask, self.encryption):
                X25519PrivateKey.generate().exchange(X25519PublicKey.from_public_bytes(half))
        except ValueError:
            return False
        return True

    def signed_by(self, line: str, moment: Moment, site: str) -> bool:
        """Whether the owner of the public key in `line` signed these keys for this moment under this name."""
        return verified(line, self.signature, _statement(moment, site, self.mask + self.encryption + self.own_mask))


@dataclass(frozen=True)
class FreshKeys:
    """The secrets of a site for one attempt. They are never printed, written or used again."""

    mask_seed: bytes
    own_seed: bytes
    encryption: X25519PrivateKey

    def __repr__(self) -> str:
        return "FreshKeys(...)"

    def raw(self) -> tuple[bytes, bytes, bytes]:
        """The secrets themselves, to hand to this site's next process."""
        return self.mask_seed, self.own_seed, self.encryption.private_bytes_raw()

    @classmethod
    def from_raw(cls, mask_seed: bytes, own_seed: bytes, encryption: bytes) -> FreshKeys:
        """What `raw` gave."""
        return cls(mask_seed, own_seed, X25519PrivateKey.from_private_bytes(encryption))

    def public(self, moment: Moment, site: str, key: ec.EllipticCurvePrivateKey) -> SignedKeys:
        """The public halves, signed with the hospital's own `key`."""
        mask = public_half(mask_private(self.mask_seed, moment, site))
        encryption = public_half(self.encryption)
        own = own_commitment(self.own_seed, moment, site)
        return SignedKeys(mask, encryption, own, signed(key, _statement(moment, site, mask + encryption + own)))


def fresh_keys() -> FreshKeys:
    """New secrets from the operating system's generator."""
    return FreshKeys(os.urandom(SEED), os.urandom(SEED), X25519PrivateKey.generate())


def mask_private(seed: bytes, moment: Moment, site: str) -> X25519PrivateKey:
    """The private key of a site's masks, from the seed that is shared out."""
    return X25519PrivateKey.from_private_bytes(derived(seed, moment.context("mask key", site)))


def public_half(private: X25519PrivateKey) -> bytes:
    """32 bytes."""
    return private.public_key().public_bytes_raw()


def own_commitment(seed: bytes, moment: Moment, site: str) -> bytes:
    """SHA-256 that a site signs, before anybody can ask for the seed of its own mask."""
    return hashlib.sha256(moment.context("own mask", site) + seed).digest()


def own_mask_key(seed: bytes, moment: Moment, site: str) -> bytes:
    """AES-256 key of the mask that a site puts over its own vector."""
    return derived(seed, moment.context("own keystream", site))


def pair_mask_key(private: X25519PrivateKey, public: bytes, moment: Moment, one: str, other: str, about: bytes = b"") -> bytes:
    """AES-256 key of the mask that two sites share; the same whichever half is whose, and in either order of the names.

    Both must mean a sum `about` the same.
    """
    return _agreed(private, public, moment.context("pair keystream", *sorted((one, other)), about.hex()))


def sealing_keys(private: X25519PrivateKey, public: bytes, moment: Moment, *, sender: str, to: str) -> tuple[bytes, bytes]:
    """The AES-256 keys under which two sites exchange a share of the seed of masks, and one of that of the own mask.

    Two keys, so that who holds the shares can show one and leave the other sealed.
    """
    one, other = (_agreed(private, public, moment.context("shares", half, sender, to)) for half in ("masks", "own"))
    return one, other


def sealed(key: bytes, share: bytes, *, seen: bytes) -> bytes:
    """A share encrypted for one other site (AES-256-GCM), bound to what both must have `seen`: `SEALED` bytes.

    The nonce is fixed because the key is used once: it comes from keys of this attempt, and from who sends what to whom.
    """
    return AESGCM(key).encrypt(bytes(12), share, seen)


def opened(key: bytes, share: bytes, *, seen: bytes) -> bytes:
    """What `sealed` sealed. Raises `cryptography.exceptions.InvalidTag` if anything differs, `ValueError` for no key.

    To a share that an honest site sealed nobody finds a second key that opens it: each tried fits with a chance of 2**-128.
    """
    return AESGCM(key).decrypt(bytes(12), share, seen)


def roster_hash(moment: Moment, roster: Mapping[str, bytes]) -> bytes:
    """SHA-256 over everybody's signed keys: what two sites have both seen if they share it."""
    digest = hashlib.sha256(moment.context("roster", *sorted(roster)))
    for name in sorted(roster):
        digest.update(hashlib.sha256(roster[name]).digest())
    return digest.digest()


def signed(key: ec.EllipticCurvePrivateKey, statement: bytes) -> bytes:
    """DER signature."""
    return key.sign(statement, ec.ECDSA(hashes.SHA384()))


def is_half_of(line: str, key: ec.EllipticCurvePrivateKey) -> bool:
    """Whether `line` (OpenSSH's format, with or without a comment) is the public half of `key`."""
    own = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
    return line.split()[:2] == own.split()[:2]


def public_key(line: str) -> ec.EllipticCurvePublicKey | None:
    """The public key in `line` (OpenSSH's format); None if that is no key of an elliptic curve."""
    try:
        public = serialization.load_ssh_public_key(line.encode())
    except (ValueError, UnsupportedAlgorithm):
        return None
    return public if isinstance(public, ec.EllipticCurvePublicKey) else None


def verified(line: str, signature: bytes, statement: bytes) -> bool:
    """Whether the owner of the public key in `line` signed `statement`."""
    public = public_key(line)
    if public is None:
        return False
    try:
        public.verify(signature, statement, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature:
        return False
    return True


def derived(secret: bytes, context: bytes) -> bytes:
    """32 bytes from a secret for one purpose: HKDF with SHA-256 (RFC 5869)."""
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=context).derive(secret)


def _agreed(private: X25519PrivateKey, public: bytes, context: bytes) -> bytes:
    return derived(private.exchange(X25519PublicKey.from_public_bytes(public)), context)


def _statement(moment: Moment, site: str, halves: bytes) -> bytes:
    return moment.context("keys", site) + halves
