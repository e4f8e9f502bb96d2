"""Who may see the page: a token that the house keeps in a file, sessions made of it, and what every answer has to carry.

Everything is refused unless it is on a short list of open paths, or comes with a session. A session is a signed cookie; its key
hangs on the token and on this process, so a new token and a restart both end all sessions. Requests that change something
carry a second value, which another site that the same browser has open can't know (OWASP, signed double submit).
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import secrets
import threading
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Any, Literal

from fl_client.sharing import make_folder
from fl_client.site import Page, Site

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

TokenName = Literal["page", "metrics"]

SESSION_S = 8 * 3600.0
"""A working day; then the token is asked for again."""

TRIES, WITHIN_S = 10, 300.0
"""So many wrong tokens from one address within so many seconds; then that address has to wait."""

OPEN = ("/login", "/health", "/metrics", "/page.css", "/favicon.ico")
"""Paths that need no session. `/metrics` asks for a token of its own; every browser asks for an icon."""

HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "x-frame-options": "DENY",
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
    "referrer-policy": "same-origin",  # with no-referrer browsers send "Origin: null" with our own forms
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}


def token_path(site: Site, name: TokenName) -> Path:
    """Where a token lies: of people (`page`) or of the hospital's monitoring (`metrics`)."""
    return site.folder / "run" / f"{name}.token"


def new_token(site: Site, name: TokenName) -> Path:
    """Write a new random token, readable by this user alone; the one before is good no more. Raises `OSError`."""
    path = token_path(site, name)
    make_folder(path.parent)
    part = path.with_name(f".{name}.{os.getpid()}.part")
    part.unlink(missing_ok=True)
    file = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(file, "w") as out:
        out.write(secrets.token_urlsafe(32) + "\n")
        out.flush()
        os.fsync(file)
    part.replace(path)
    return path


def ensure_tokens(site: Site) -> None:
    """Make the tokens that aren't there.

    Raises `PermissionError` for one that others may read, or that belongs to another user, and `OSError`.
    """
    names: tuple[TokenName, ...] = ("page", "metrics")
    for name in names:
        path = token_path(site, name)
        if not path.exists():
            new_token(site, name)
        elif not os.access(path, os.R_OK):  # nobody could log in, and nobody would know why
            owner = path.stat().st_uid
            raise PermissionError(
                f"{path} belongs to another user (uid {owner}), and the page can't read it; it runs as one user, the trainer's "
                f"where there are two. As that user: rm {path}, then konsil-site page-token"
            )
        elif (mode := path.stat().st_mode & 0o777) & 0o077:
            raise PermissionError(f"{path} has mode {mode:04o}, so others may read it; konsil-site page-token makes a new one")


def token(site: Site, name: TokenName) -> str:
    """The token as it is now; empty if there is none."""
    try:
        return token_path(site, name).read_text().strip()
    except OSError:
        return ""


def names_of(page: Page) -> frozenset[str]:
    """Host names under which the page answers; any other comes from a name that somebody pointed here (DNS rebinding)."""
    return frozenset({"localhost", "127.0.0.1", "::1", page.host.lower(), *(name.lower() for name in page.names)})


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True)
class Session:
    """One browser. `inside` once the token was given; before that it only holds the login form together."""

    number: str
    ends: float  # seconds since 1970
    inside: bool


class Sessions:
    """The browsers that may come in. Any thread may ask."""

    def __init__(self, site: Site, clock: Callable[[], float] = time.time) -> None:
        self._site, self._clock = site, clock
        self._here = secrets.token_bytes(32)
        self._ended: dict[str, float] = {}
        self._wrong: dict[str, list[float]] = {}
        self._lock = threading.Lock()

    def new(self, *, inside: bool) -> tuple[Session, str]:
        """A session and its cookie."""
        session = Session(secrets.token_urlsafe(18), self._clock() + SESSION_S, inside)
        said = f"{session.number}.{session.ends:.0f}.{'in' if inside else 'door'}"
        return session, f"{said}.{self._sign(said)}"

    def of(self, cookie: str) -> Session | None:
        """The session of a cookie; None for one that isn't ours, is too old, or has logged out."""
        said, _, signature = cookie.rpartition(".")
        if not token(self._site, "page") or not _same(signature, self._sign(said)):
            return None
        number, ends, kind = said.split(".")
        with self._lock:
            gone = number in self._ended
        return None if gone or float(ends) < self._clock() else Session(number, float(ends), kind == "in")

    def end(self, session: Session) -> None:
        """Log out: the cookie is good no more."""
        now = self._clock()
        with self._lock:
            self._ended = {number: ends for number, ends in self._ended.items() if ends > now} | {session.number: session.ends}

    def csrf(self, session: Session) -> str:
        """What this session's forms have to bring."""
        return self._sign(f"form {session.number}")

    def is_ours(self, session: Session, csrf: str) -> bool:
        """Whether a form was made for this session."""
        return _same(csrf, self.csrf(session))

    def wait_s(self, address: str) -> float:
        """Seconds that an address has to wait before it may try a token again; 0 if it may."""
        now = self._clock()
        with self._lock:
            tries = [when for when in self._wrong.get(address, ()) if when > now - WITHIN_S]
            return tries[-TRIES] + WITHIN_S - now if len(tries) >= TRIES else 0.0

    def try_token(self, address: str, said: str) -> bool:
        """Whether it is the token; a wrong one is counted."""
        known = token(self._site, "page")
        if known and _same(said.strip(), known):
            return True
        now = self._clock()
        with self._lock:
            recent = {who: [when for when in tries if when > now - WITHIN_S] for who, tries in self._wrong.items()}
            self._wrong = {who: tries for who, tries in recent.items() if tries}
            self._wrong.setdefault(address, []).append(now)
        return False

    def _sign(self, said: str) -> str:
        key = hashlib.sha256(self._here + token(self._site, "page").encode()).digest()
        return hmac.new(key, said.encode(), hashlib.sha256).hexdigest()


def metrics_allowed(site: Site, authorization: str) -> bool:
    """Whether `Authorization: Bearer TOKEN` brings the token of the hospital's monitoring."""
    known = token(site, "metrics")
    kind, _, said = authorization.partition(" ")
    return bool(known) and kind.lower() == "bearer" and _same(said.strip(), known)


def _same(one: str, other: str) -> bool:
    """Equal, found out in a time that doesn't tell where they differ."""
    return hmac.compare_digest(one.encode("utf-8", "replace"), other.encode())


class Guard:
    """ASGI application in front of the page's own: refuses, or passes on with `scope["session"]`."""

    def __init__(self, app: App, *, site: Site, page: Page, sessions: Sessions) -> None:
        self.app, self.site, self.page, self.sessions = app, site, page, sessions
        self.names = names_of(page)
        self.cookie = f"konsil-{page.port}"  # cookies know no ports, and one machine may hold several hospitals

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return

        async def guarded(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                mine = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*(pair for pair in message["headers"] if pair[0].lower().decode() not in HEADERS), *mine]
            await send(message)

        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host = _host(headers.get("host", ""))
        if host not in self.names:
            await _plain(guarded, 421, "this page doesn't answer under that name (page.names in site.yaml lists further ones)")
            return
        if scope["method"] not in ("GET", "HEAD", "POST"):
            await _plain(guarded, 405, "only GET, HEAD and POST are answered here")
            return
        if scope["method"] == "POST" and not _from_here(headers):
            await _plain(guarded, 403, "this form was not sent from this page")
            return
        session = self.sessions.of(_cookie(headers.get("cookie", ""), self.cookie))
        if scope["path"] not in OPEN and not (session and session.inside):
            if scope["method"] == "POST" or scope["path"].endswith(".png"):
                await _plain(guarded, 403, "log in first")
            else:
                await _plain(guarded, 303, "log in first", location="/login")
            return
        scope["session"] = session
        scope["secure"] = host in {name.lower() for name in self.page.names}  # these are reached over TLS
        try:
            await self.app(scope, receive, guarded)
        except Exception:
            if not scope.get("told"):  # else the person has its number, and the log what it was
                raise


def _host(header: str) -> str:
    """The name in a Host header, without the port."""
    if header.startswith("["):
        return header[1:].partition("]")[0].lower()
    return header.partition(":")[0].lower()


def _from_here(headers: MutableMapping[str, str]) -> bool:
    """Whether a browser says that the form is our own; those that say nothing have the form's second value to show."""
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return False
    origin = headers.get("origin")
    return origin is None or origin.partition("://")[2] == headers.get("host", "")


def _cookie(header: str, name: str) -> str:
    jar: SimpleCookie = SimpleCookie()
    try:
        jar.load(header)
    except CookieError:
        return ""
    return jar[name].value if name in jar else ""


async def _plain(send: Send, status: int, text: str, *, location: str = "") -> None:
    body = f"{text}\n".encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    if location:
        headers.append((b"location", location.encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
