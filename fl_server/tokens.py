"""Join tokens: what a hospital shows once to have its key registered.

A token is 256 random bits, good for one name, once, until it expires. Only its SHA-256 is kept, so that who reads the file
can't join; a plain hash is enough for a secret that nobody can guess (no dictionary holds it).
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from pydantic import Field

from conf.study import Frozen
from fl_server.certificates import write_secret

VALID_S = 7 * 24 * 3600.0
"""Seconds that a token is good for, unless told otherwise."""

Save = Callable[[list["Token"]], None]

_FORGET_S = 90 * 24 * 3600.0  # after its expiry a token is dropped from the file

SiteName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]  # as in a hospital's site.yaml


class TokenRefused(ValueError):
    """The token does not open the door; the message says why, as far as a stranger may know."""


class Token(Frozen):
    """What is kept of a token."""

    name: SiteName
    sha256: str
    expires: float  # seconds since 1970
    used: float | None = None  # when
    key_sha256: str | None = None  # of the key that was registered with it


class Tokens:
    """The tokens that were given out, in one file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def give(self, name: str, *, valid_s: float = VALID_S) -> str:
        """A new token for the hospital of this name; earlier unused ones for it are void. Raises `ValidationError`."""
        token = secrets.token_hex(32)  # not URL-safe base64: one in 32 begins with a dash, and reads as an option
        with self._open() as (kept, save):
            new = Token(name=name, sha256=_hash(token), expires=time.time() + valid_s)
            save([*(one for one in kept if one.name != name or one.used is not None), new])
        return token

    def take(self, token: str, *, name: str, key_sha256: str) -> bool:
        """Use a token up. True: it is used now; False: it was used before with this very key, and the answer got lost.

        Raises `TokenRefused` for a token that is unknown, for another name, expired, or was used with another key. A
        stranger hears the same of an unknown token as of one for another name.
        """
        with self._open() as (kept, save):
            hashed = _hash(token)
            found = None
            for one in kept:  # all of them: how long it takes tells nothing of which one it was
                if hmac.compare_digest(one.sha256, hashed):
                    found = one
            if found is None or not hmac.compare_digest(found.name.encode(), name.encode()):
                raise TokenRefused("this token is not one for this hospital; ask the coordinator for a new one")
            if found.used is not None:
                if found.key_sha256 == key_sha256:
                    return False
                raise TokenRefused("this token has been used; a token is good once, ask the coordinator for a new one")
            if time.time() > found.expires:
                raise TokenRefused("this token has expired; ask the coordinator for a new one")
            used = found.model_copy(update={"used": time.time(), "key_sha256": key_sha256})
            save([used if one is found else one for one in kept])
            return True

    def put_back(self, token: str) -> None:
        """Make a token good again whose registration came to nothing."""
        with self._open() as (kept, save):
            fresh = {"used": None, "key_sha256": None}
            save([one.model_copy(update=fresh) if one.sha256 == _hash(token) else one for one in kept])

    @contextmanager
    def _open(self) -> Iterator[tuple[list[Token], Save]]:
        """The tokens, and how to write them back, while nobody else may."""
        with open(self.path.with_name(self.path.name + ".lock"), "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            data = json.loads(self.path.read_text()) if self.path.exists() else []
            young = time.time() - _FORGET_S
            kept = [token for token in map(Token.model_validate, data) if token.expires > young]
            yield kept, self._save

    def _save(self, tokens: list[Token]) -> None:
        text = json.dumps([token.model_dump() for token in tokens], indent=1)
        write_secret(text.encode(), self.path)


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
