"""Who may see the page: a token, sessions made of it, and what every answer has to carry.

As at the hospital's page (`fl_client/page/guard.py`; neither package may import the other): everything is refused unless it is
on a short list of open paths, or comes with a session. A session is a signed cookie; its key hangs on the token and on this
process. The only forms are the door's; they carry a second value (OWASP, signed double submit), and nothing else is changed.
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
from typing import Any

from fl_server.house import LOOPBACK

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

SESSION_S = 8 * 3600.0
"""A working day; then the token is asked for again."""

TRIES, WITHIN_S = 10, 300.0
"""So many wrong tokens from one address within so many seconds; then that address has to wait."""

OPEN = ("/login", "/health", "/page.css", "/favicon.ico")
"""Paths that need no session; every browser asks for an icon."""

POLICY = "content-security-policy"
HEADERS = {
    POLICY: "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-frame-options": "DENY",
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
    "referrer-policy": "same-origin",  # with no-referrer browsers send "Origin: null" with our own forms
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}
"""Every answer has these; a file of a study may have a policy of its own."""


@dataclass(frozen=True)
class Door:
    """Where the page is, what opens it, and whose studies it shows."""

    name: str  # what the page calls this coordinator
    runs: Path
    token: Callable[[], str]  # as it is now; empty: nobody comes in
    where: str  # where a person finds the token
    host: str = LOOPBACK
    port: int = 8790
    names: tuple[str, ...] = ()  # further host names: those of a proxy with TLS
    registry: Path | None = None  # of models that came of the studies

    @property
    def answers_to(self) -> frozenset[str]:
        """Host names under which the page answers; any other comes from a name that somebody pointed here (DNS rebinding)."""
        return frozenset({"localhost", LOOPBACK, "::1", self.host.lower(), *(name.lower() for name in self.names)})

    @property
    def cookie(self) -> str:
        """Cookies know no ports, and one machine may hold several pages."""
        return f"konsil-studies-{self.port}"


def token_path(folder: Path) -> Path:
    """Where the token lies in a coordinator's folder."""
    return folder / "page.token"


def new_token(path: Path) -> str:
    """Write a new random token, readable by this user alone; the one before is good no more. Raises `OSError`."""
    made = secrets.token_urlsafe(32)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.unlink(missing_ok=True)
    file = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(file, "w") as out:
        out.write(made + "\n")
        out.flush()
        os.fsync(file)
    part.replace(path)
    return made


def ensure_token(path: Path) -> None:
    """Make the token if there is none. Raises `PermissionError` for one that others may read, and `OSError`."""
    if not path.exists():
        new_token(path)
    elif not os.access(path, os.R_OK):  # nobody could log in, and nobody would know why
        raise PermissionError(f"{path} belongs to another user (uid {path.stat().st_uid}), and the page can't read it")
    elif (mode := path.stat().st_mode & 0o777) & 0o077:
        raise PermissionError(f"{path} has mode {mode:04o}, so others may read it; konsil-study page-token makes a new one")


def token(path: Path) -> str:
    """The token as it is now; empty if there is none."""
    try:
        return path.read_text().strip()
    except (OSError, ValueError):
        return ""


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

    def __init__(self, token: Callable[[], str], clock: Callable[[], float] = time.time) -> None:
        self._token, self._clock = token, clock
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
        if not self._token() or not _same(signature, self._sign(said)):
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
        known = self._token()
        if known and _same(said.strip(), known):
            return True
        now = self._clock()
        with self._lock:
            recent = {who: [when for when in tries if when > now - WITHIN_S] for who, tries in self._wrong.items()}
            self._wrong = {who: tries for who, tries in recent.items() if tries}
            self._wrong.setdefault(address, []).append(now)
        return False

    def _sign(self, said: str) -> str:
        key = hashlib.sha256(self._here + self._token().encode()).digest()
        return hmac.new(key, said.encode("utf-8", "replace"), hashlib.sha256).hexdigest()


def _same(one: str, other: str) -> bool:
    """Equal, found out in a time that doesn't tell where they differ."""
    return hmac.compare_digest(one.encode("utf-8", "replace"), other.encode())


class Guard:
    """ASGI application in front of the page's own: refuses, or passes on with `scope["session"]`."""

    def __init__(self, app: App, *, door: Door, sessions: Sessions) -> None:
        self.app, self.door, self.sessions = app, door, sessions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return

        async def guarded(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                theirs = [pair for pair in message["headers"] if _kept(pair[0])]
                own = {pair[0].lower() for pair in theirs}
                mine = [(name.encode(), value.encode()) for name, value in HEADERS.items() if name.encode() not in own]
                message["headers"] = [*theirs, *mine]
            await send(message)

        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host = _host(headers.get("host", ""))
        if host not in self.door.answers_to:
            await _plain(guarded, 421, "this page doesn't answer under that name (page.names in coordinator.yaml lists more)")
            return
        if scope["method"] not in ("GET", "HEAD", "POST"):
            await _plain(guarded, 405, "only GET, HEAD and POST are answered here")
            return
        if scope["method"] == "POST" and not _from_here(headers):
            await _plain(guarded, 403, "this form was not sent from this page")
            return
        session = self.sessions.of(_cookie(headers.get("cookie", ""), self.door.cookie))
        if scope["path"] not in OPEN and not (session and session.inside):
            if scope["method"] == "POST":
                await _plain(guarded, 403, "log in first")
            else:
                await _plain(guarded, 303, "log in first", location="/login")
            return
        scope["session"] = session
        scope["secure"] = host in {name.lower() for name in self.door.names}  # these are reached over TLS
        try:
            await self.app(scope, receive, guarded)
        except Exception:
            if not scope.get("told"):  # else the person has its number, and the log what it was
                raise


def _kept(name: bytes) -> bool:
    """Of the headers that every answer has, a view may choose its policy alone."""
    lower = name.lower().decode("latin-1")
    return lower == POLICY or lower not in HEADERS


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
