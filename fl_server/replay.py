"""Each signed request of a hospital is let through once.

Flower's SuperNodes sign the time of a request, and nothing else of it; a SuperLink takes a signature for 305 seconds, however
often it comes and whatever it comes with. Inside TLS nobody can copy one, but a proxy's log may hold some, and whoever ends TLS
sees all. So the gate remembers the signed times of each key for as long as they are good, as hashes, and takes none from before
its own start, of which it can't know whether it has seen them.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import hashlib
import time
from collections.abc import Callable

GOOD_FOR_S = 300.0 + 5.0
"""How old a signed time may be: Flower's TIMESTAMP_TOLERANCE and SYSTEM_TIME_TOLERANCE."""

AHEAD_S = 5.0
"""How far a hospital's clock may be ahead."""


LONGEST_KEY, LONGEST_TIME = 400, 64
"""Characters of a public key (Flower's, on P-256 to P-521, have 240 to 360) and of a signed time, as they are sent."""


class Stale(ValueError):
    """A request without a signature, with an old one, or with one that has been used."""


class TooEarly(Stale):
    """A request that was signed before the gate started: a new one will do."""


class Replay:
    """The signed times that were seen, by key."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._start = clock()
        self._seen: dict[bytes, float] = {}  # in the order of arrival -> when it is forgotten

    def admit(self, public_key: str | None, timestamp: str | None) -> bytes:
        """Note a request that is about to be let through; what it is noted under. Raises `Stale`, `TooEarly`.

        Not noted are the signature's bytes, of which one key can make many for one time, nor how the key is written:
        its bytes count.
        """
        if public_key is None or timestamp is None:
            raise Stale("the request is not signed by a hospital's key")
        if len(public_key) > LONGEST_KEY or len(timestamp) > LONGEST_TIME:
            raise Stale("the request's key or time is longer than a hospital's")
        try:
            key = base64.b64decode(public_key, validate=True)
            signed = datetime.datetime.fromisoformat(timestamp)
        except (ValueError, binascii.Error):
            raise Stale("the request's signature can't be read") from None
        if signed.tzinfo is None:
            raise Stale("the signed time has no time zone")
        now = self._clock()
        if not -AHEAD_S < now - signed.timestamp() < GOOD_FOR_S:
            raise Stale(f"the request was signed {now - signed.timestamp():+.0f} s from now; look at both clocks")
        if signed.timestamp() < self._start - AHEAD_S:
            raise TooEarly("the coordinator has started since this request was signed; send it anew")
        self._forget(now)
        noted = hashlib.sha256(len(key).to_bytes(4, "big") + key + timestamp.encode()).digest()
        if noted in self._seen:
            raise Stale("a request with this signature has been let through before")
        self._seen[noted] = now + GOOD_FOR_S + AHEAD_S
        return noted

    def drop(self, noted: bytes) -> None:
        """Forget a request that the SuperLink did not take as a registered hospital's: strangers fill no memory."""
        self._seen.pop(noted, None)

    def _forget(self, now: float) -> None:
        for noted, until in list(self._seen.items()):
            if until > now:
                break
            del self._seen[noted]
