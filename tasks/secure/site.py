"""A hospital's part in one secure sum: four questions (five where lists are signed), each answered once and in order.

It trusts nothing that the coordinator passes on: keys must be signed by the hospitals that the study names, shares must open,
lists must be long enough. Whatever is wrong ends this hospital's part in the attempt: `Refused`, in words, and the secrets
are forgotten. Source: Bonawitz et al. 2017, figure 4.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
from Crypto.Protocol.SecretSharing import Shamir
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec

from tasks.secure import keys, masks
from tasks.secure.blame import complaint
from tasks.secure.circle import Circle, Moment, Refused
from tasks.secure.keys import SEALED, FreshKeys, SignedKeys

_ORDER = ("keys", "shares", "accept", "mask", "agree", "unmask")


class SiteRound:
    """One hospital in one attempt at one round. Make a new one for every attempt; keep it, and its `state`, in memory only.

    Parameters
    ----------
    circle
        From the study this hospital approved, never from the question.
    moment
        Study, round and attempt.
    site
        What this hospital is called in the study.
    key
        The private key whose public half stands under that name in `circle.keys`.

    Raises
    ------
    Refused
        If the study does not know this hospital under this key.
    """

    def __init__(self, circle: Circle, moment: Moment, *, site: str, key: ec.EllipticCurvePrivateKey) -> None:
        self.circle, self.moment, self.site = circle, moment, site
        self._key = key
        self._fresh: FreshKeys | None = None
        self._own = b""  # signed keys as sent
        self._roster: dict[str, SignedKeys] = {}
        self._roster_hash = b""
        self._openers: dict[str, tuple[bytes, bytes]] = {}  # of its shares of (mask seed, own seed), by whose these are
        self._agreed: tuple[str, ...] | None = None
        self._done = 0  # of _ORDER
        if site not in circle.keys:
            raise Refused(f"the study's secure sum names {', '.join(circle.sites)}; this hospital is called '{site}'")
        if not keys.is_half_of(circle.keys[site], key):
            raise Refused(f"the study names another public key for '{site}' than this hospital's own; it must be joined anew")

    def state(self) -> bytes:
        """All of it but the hospital's own key, as a process hands it to the next: secret, for the memory of this machine."""
        fresh = self._fresh
        told = {
            "fresh": None if fresh is None else [part.hex() for part in fresh.raw()],
            "own": self._own.hex(),
            "roster": {name: one.to_bytes().hex() for name, one in self._roster.items()},
            "roster_hash": self._roster_hash.hex(),
            "openers": {name: [mask.hex(), own.hex()] for name, (mask, own) in self._openers.items()},
            "agreed": self._agreed,
            "done": self._done,
        }
        return json.dumps(told).encode()

    @classmethod
    def restored(cls, circle: Circle, moment: Moment, *, site: str, key: ec.EllipticCurvePrivateKey, state: bytes) -> SiteRound:
        """The same after `state`. Raises what a new one raises."""
        one, told = cls(circle, moment, site=site, key=key), json.loads(state)
        if told["fresh"] is not None:
            one._fresh = FreshKeys.from_raw(*(bytes.fromhex(part) for part in told["fresh"]))
        one._own, one._roster_hash = bytes.fromhex(told["own"]), bytes.fromhex(told["roster_hash"])
        one._roster = {name: SignedKeys.from_bytes(bytes.fromhex(raw)) for name, raw in told["roster"].items()}
        one._openers = {name: (bytes.fromhex(mask), bytes.fromhex(own)) for name, (mask, own) in told["openers"].items()}
        one._agreed = None if told["agreed"] is None else tuple(told["agreed"])
        one._done = told["done"]
        return one

    def keys(self) -> bytes:
        """First answer: fresh public keys, signed (about 200 bytes)."""
        with self._step("keys"):
            self._fresh = keys.fresh_keys()
            self._own = self._fresh.public(self.moment, self.site, self._key).to_bytes()
            return self._own

    def shares(self, roster: Mapping[str, bytes]) -> dict[str, bytes]:
        """Second answer: for every other site of the roster, encrypted for it, its shares of this site's two seeds.

        `roster` holds the first answer of every site still in, this one's own among them.
        """
        with self._step("shares"):
            self._roster = self._checked(roster)
            self._roster_hash = keys.roster_hash(self.moment, roster)
            fresh = self._secrets()
            names = sorted(roster)
            of_mask, of_own = (_split(seed, self.circle.threshold, len(names)) for seed in (fresh.mask_seed, fresh.own_seed))
            answer = {}
            for name, *both in zip(names, of_mask, of_own, strict=True):
                if name == self.site:
                    self._openers[name] = both[0], both[1]  # nobody sealed these: they are shown themselves
                    continue
                try:
                    sealing = self._sealing_keys(sender=self.site, to=name)
                except ValueError as error:
                    raise Refused(f"'{name}' signed an encryption key that is none: {error}") from None
                pairs = zip(sealing, both, strict=True)
                answer[name] = b"".join(keys.sealed(key, share, seen=self._roster_hash) for key, share in pairs)
            return answer

    def accept(self, shares: Mapping[str, bytes]) -> None:
        """Take the shares that the other sites sent to this one; do so before any training, which costs more.

        With the sites in `shares` (by sender) this one will have masks in common, so they are who can be summed with it.
        """
        with self._step("accept"):
            if strangers := sorted(set(shares) - (set(self._roster) - {self.site})):
                raise Refused(f"shares came from {', '.join(strangers)}, of whom this round's keys know nothing")
            if len(shares) + 1 < self.circle.threshold:
                raise Refused(
                    f"shares of {len(shares)} other sites and this one are fewer than the threshold {self.circle.threshold}: "
                    "the sum would hide nobody"
                )
            closed = set()
            for name in sorted(shares):
                try:
                    self._openers[name] = self._opening_keys(name, shares[name])
                except (InvalidTag, ValueError):
                    closed.add(name)
            if closed:
                raise Refused(complaint(closed))

    @property
    def instance(self) -> str:
        """SHA-256 of this attempt's own signed keys: what is written down of it on a disk, and never given out."""
        return hashlib.sha256(self._own).hexdigest()

    @property
    def has_masked(self) -> bool:
        """Whether its vector is under masks."""
        return self._done > _ORDER.index("mask")

    def masked_before(self) -> None:
        """Its vector has been masked with these keys, and was kept: it goes on with what comes after."""
        with self._step("mask"):
            pass

    def mask(self, vector: masks.Vector, *, about: bytes = b"") -> masks.Vector:
        """Third answer: `vector` (noise included) under all its masks. In place, so that nothing unmasked is left behind.

        `about` is what the sum is about, and part of the masks: those of two sites that mean different things don't cancel.
        Two vectors must never be masked with the same keys; who restores a `state` has to see to it.
        """
        with self._step("mask"):
            if vector.dtype != np.uint32 or vector.ndim != 1:
                raise TypeError(f"masks go over a uint32 vector, not {vector.dtype} of shape {vector.shape}")
            fresh = self._secrets()
            private = keys.mask_private(fresh.mask_seed, self.moment, self.site)
            for name in sorted(set(self._openers) - {self.site}):
                try:
                    key = keys.pair_mask_key(private, self._roster[name].mask, self.moment, self.site, name, about)
                except ValueError as error:
                    raise Refused(f"'{name}' signed a mask key that is none: {error}") from None
                (masks.add if self.site < name else masks.subtract)(vector, key)
            masks.add(vector, keys.own_mask_key(fresh.own_seed, self.moment, self.site))
            return vector

    def agree(self, survivors: Sequence[str]) -> bytes:
        """Fourth answer, where `circle.must_agree`: a signature on the list of who sent a masked vector."""
        with self._step("agree"):
            self._agreed = self._list(survivors)
            return keys.signed(self._key, _list_statement(self.moment, self._roster_hash, self._agreed))

    def unmask(self, survivors: Sequence[str], agreed: Mapping[str, bytes] | None = None) -> dict[str, bytes]:
        """Last answer: for every site that this one has masks in common with, what opens one share; of its own the share.

        Of who is in `survivors`, of the seed of its own mask; of who dropped out, of the seed of its masks with others. Both
        of one site would lay its vector open, so this is answered once, and then the secrets are forgotten. What opens it, and
        not the share: the coordinator has the shares as they were sealed, and so knows who sealed and who shows a false one.

        `agreed` holds the signatures of `agree`, by site; ignored unless `circle.must_agree`.
        """
        with self._step("unmask"):
            names = self._list(survivors)
            if self.circle.must_agree:
                self._check_agreement(names, agreed or {})
            answer = {name: own if name in names else mask for name, (mask, own) in self._openers.items()}
            self.forget()
            return answer

    def forget(self) -> None:
        """Drop all secrets; nothing more can be answered. Done after the last answer and after anything wrong."""
        self._fresh, self._openers, self._done = None, {}, len(_ORDER)

    @contextmanager
    def _step(self, step: str) -> Iterator[None]:
        place = _ORDER.index(step)
        try:
            if place < self._done:
                raise Refused(f"{self._where()}: '{step}' was asked a second time, or after this site left; it answers once")
            due = _ORDER[self._done]
            if step != due and not (due == "agree" and step == "unmask" and not self.circle.must_agree):
                raise Refused(f"{self._where()}: '{step}' was asked, '{due}' is next")
            yield
        except BaseException:
            self.forget()
            raise
        self._done = max(self._done, place + 1)

    def _sealing_keys(self, *, sender: str, to: str) -> tuple[bytes, bytes]:
        other = self._roster[to if sender == self.site else sender]
        return keys.sealing_keys(self._secrets().encryption, other.encryption, self.moment, sender=sender, to=to)

    def _opening_keys(self, name: str, shares: bytes) -> tuple[bytes, bytes]:
        """What opens the shares that `name` sealed for this site. Raises `InvalidTag` or `ValueError` if it doesn't."""
        openers = self._sealing_keys(sender=name, to=self.site)
        if len(shares) != 2 * SEALED:
            raise ValueError(f"{len(shares)} bytes of shares, not {2 * SEALED}")
        for key, share in zip(openers, (shares[:SEALED], shares[SEALED:]), strict=True):
            keys.opened(key, share, seen=self._roster_hash)
        return openers

    def _where(self) -> str:
        return f"secure sum of round {self.moment.round}, attempt {self.moment.attempt}"

    def _secrets(self) -> FreshKeys:
        if self._fresh is None:
            raise Refused(f"{self._where()}: this site's secrets are gone")
        return self._fresh

    def _checked(self, roster: Mapping[str, bytes]) -> dict[str, SignedKeys]:
        if len(roster) < self.circle.threshold:
            raise Refused(f"the roster has {len(roster)} sites, fewer than the threshold {self.circle.threshold}")
        if strangers := sorted(set(roster) - set(self.circle.keys)):
            raise Refused(f"the roster has {', '.join(strangers)}, whom the approved study does not name")
        if self.site not in roster:
            raise Refused(f"this site, '{self.site}', is missing from the roster")
        if roster[self.site] != self._own:
            raise Refused("the roster has other keys for this site than it sent: somebody changed them on the way")
        known: dict[str, SignedKeys] = {}
        for name in sorted(roster):
            try:
                known[name] = SignedKeys.from_bytes(roster[name])
            except ValueError as error:
                raise Refused(f"the keys of '{name}' can't be read: {error}") from None
            if not known[name].usable:
                raise Refused(f"'{name}' sent public keys that nobody can agree on a secret with")
            if not known[name].signed_by(self.circle.keys[name], self.moment, name):
                raise Refused(
                    f"the keys of '{name}' are not signed by the key that the study names for it, for this study, round "
                    f"{self.moment.round} and attempt {self.moment.attempt}: forged, or of another round"
                )
        halves = [half for signed in known.values() for half in (signed.mask, signed.encryption)]
        if len(set(halves)) < len(halves):
            raise Refused("two sites of the roster sent the same public key; each must make its own")
        return known

    def _list(self, survivors: Sequence[str]) -> tuple[str, ...]:
        names = tuple(sorted(survivors))
        if len(set(names)) < len(names):
            raise Refused(f"the list of who answered names a site twice: {', '.join(names)}")
        if strangers := sorted(set(names) - set(self._openers)):
            raise Refused(f"the list of who answered names {', '.join(strangers)}, with whom this site has no masks in common")
        if self.site not in names:
            raise Refused(f"this site, '{self.site}', sent its vector, but the list of who answered leaves it out")
        if len(names) < self.circle.threshold:
            raise Refused(
                f"{len(names)} sites answered, fewer than the threshold {self.circle.threshold}: this round ends without a sum"
            )
        return names

    def _check_agreement(self, names: tuple[str, ...], agreed: Mapping[str, bytes]) -> None:
        if names != self._agreed:
            raise Refused("this site signed another list of who answered than the one it is to unmask")
        statement = _list_statement(self.moment, self._roster_hash, names)
        good = [name for name in names if name in agreed and keys.verified(self.circle.keys[name], agreed[name], statement)]
        if len(good) < self.circle.threshold:
            raise Refused(
                f"{len(good)} sites signed this list of who answered, fewer than the threshold {self.circle.threshold}: others "
                "may have been shown another list"
            )


def _split(seed: bytes, threshold: int, holders: int) -> list[bytes]:
    return [share for _, share in Shamir.split(threshold, holders, seed, False)]


def _list_statement(moment: Moment, roster: bytes, names: Sequence[str]) -> bytes:
    return moment.context("who answered", *names) + roster
