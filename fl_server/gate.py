"""The coordinator's one public door: what hospitals may say to Flower's SuperLink, and nothing else.

Flower serves its control API beside the hospitals' API on one port. The gate listens in its place and passes on the calls
of `/v1/fleet/` that it knows and `/health`, byte for byte as they are written here: a path that is spelled in any other way
is not found. It answers two requests of its own, `/konsil/info` and `/konsil/join`.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from http.cookiejar import DefaultCookiePolicy
from typing import Any

import httpx
from flwr.proto.fleet_pb2 import PushMessagesRequest
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from fl_server.replay import Replay, Stale, TooEarly

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Join = Callable[[bytes], tuple[int, dict[str, str]]]
"""Takes the body of a join request; returns the status and the JSON to answer with. May take seconds."""

PROTOBUF = b"application/protobuf"
LARGEST_JOIN = 8192  # bytes
LARGEST_ANSWER = 1024**2  # bytes of a call that is read whole: names and hashes; what they stand for is pushed as objects
PIECE = 256 * 1024  # bytes of an answer that are passed on at once; they come in TLS records of 16 KB
WHOLE_AT_ONCE = 64
"""At most so many requests are held whole at a time; others wait. No key has been looked at until the SuperLink does."""

CALLS = (
    *("register-node", "unregister-node", "activate-node", "deactivate-node", "send-node-heartbeat"),
    *("pull-messages", "push-messages", "confirm-message-received", "pull-object", "push-object", "get-run", "get-fab"),
)
"""What hospitals say to Flower; a call that a later Flower adds is looked at before it is let through."""

_FLEET = re.compile(rb"/v1/fleet/(" + "|".join(CALLS).encode() + rb")")
_UNKNOWN = (401, 404)  # a SuperLink's answers to whom it doesn't know
_PASSED_ON = (b"content-type", b"content-length", b"accept", b"accept-encoding")
_PASSED_BACK = ("content-type", "content-length", "content-encoding")
_FLOWERS = "flwr-"  # its own headers, in both directions

log = logging.getLogger("konsil.gate")


class Refusal(Exception):
    """A request that is not passed on."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class Gate:
    """ASGI application.

    Parameters
    ----------
    upstream
        Client whose base address is that of the SuperLink.
    about
        What `/konsil/info` tells anybody: versions and the certificate, nothing of studies or hospitals.
    join
        What `/konsil/join` does.
    max_body_bytes
        A request that announces more is refused before it is read.
    request_timeout_s
        In which a request's body has to arrive.
    """

    def __init__(
        self,
        upstream: httpx.AsyncClient,
        *,
        about: dict[str, str],
        join: Join,
        max_body_bytes: int,
        request_timeout_s: float,
        replay: Replay | None = None,
    ) -> None:
        self.upstream = upstream
        upstream.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=[]))  # else one hospital's reach the next
        self.about = about
        self.join = join
        self.max_body_bytes = max_body_bytes
        self.request_timeout_s = request_timeout_s
        self.replay = replay or Replay()
        self._whole = asyncio.Semaphore(WHOLE_AT_ONCE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        try:
            await self._answer(scope, receive, send)
        except Refusal as refusal:
            # neither headers nor body: they hold signatures and tokens
            where = scope["client"][0] if scope.get("client") else "somewhere"
            log.warning("refused %s %.100r from %s: %s %s", scope["method"], scope["raw_path"], where, refusal.status, refusal)
            await _json(send, refusal.status, {"reason": refusal.reason}, close=True)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = (scope["method"], scope["raw_path"])
        if scope["query_string"]:
            raise Refusal(404, "not found")
        if fleet := _FLEET.fullmatch(route[1]) if route[0] == "POST" else None:
            await self._forward(fleet[1].decode(), scope, receive, send)
        elif route in (("GET", b"/health"), ("HEAD", b"/health")):
            await self._health(send)
        elif route == ("GET", b"/konsil/info"):
            now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
            await _json(send, 200, {**self.about, "time": now})
        elif route == ("POST", b"/konsil/join"):
            body = await _Body(receive, _length(scope, at_most=LARGEST_JOIN), timeout_s=self.request_timeout_s).read()
            status, said = await asyncio.to_thread(self.join, body)
            await _json(send, status, said)
        else:
            raise Refusal(404, "not found")

    async def _health(self, send: Send) -> None:
        try:
            up = (await self.upstream.get("/health", timeout=5.0)).status_code == 200
        except httpx.HTTPError:
            up = False
        await _json(send, 200 if up else 503, {"status": "up" if up else "the SuperLink does not answer"})

    async def _forward(self, call: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a hospital's request on, and its answer back; what the SuperLink did not take is not remembered."""
        whole = call == "push-messages"
        length = _length(scope, at_most=min(self.max_body_bytes, LARGEST_ANSWER) if whole else self.max_body_bytes)
        if _header(scope, b"content-type") != PROTOBUF:
            raise Refusal(415, f"the content must be {PROTOBUF.decode()}")
        try:
            noted = self.replay.admit(_text(scope, b"flwr-public-key"), _text(scope, b"flwr-timestamp"))
        except TooEarly as error:
            raise Refusal(503, str(error)) from None  # Flower's SuperNode tries again, with a new signature
        except Stale as error:
            raise Refusal(401, str(error)) from None
        taken, start = False, time.monotonic()
        try:
            if whole:
                async with self._whole:
                    content = await _Body(receive, length, timeout_s=self.request_timeout_s).read()
                    _require_own(content)
                    answer = await self._asked(call, scope, content)
            else:
                answer = await self._asked(call, scope, _Body(receive, length, timeout_s=self.request_timeout_s))
            taken = answer.status_code not in _UNKNOWN
            await self._pass_back(answer, send)
            log.debug("%s %s in %.3f s", call, answer.status_code, time.monotonic() - start)
        finally:
            if not taken:
                self.replay.drop(noted)

    async def _asked(self, call: str, scope: Scope, content: bytes | _Body) -> httpx.Response:
        """The SuperLink's answer, of which no more than the head has come yet."""
        headers = [
            (name, value) for name, value in scope["headers"] if name in _PASSED_ON or name.startswith(_FLOWERS.encode())
        ]
        request = self.upstream.build_request("POST", f"/v1/fleet/{call}", headers=headers, content=content)
        try:
            return await self.upstream.send(request, stream=True)
        except httpx.TimeoutException:
            raise Refusal(504, "the SuperLink took too long") from None
        except httpx.HTTPError:
            raise Refusal(502, "the SuperLink does not answer") from None

    async def _pass_back(self, answer: httpx.Response, send: Send) -> None:
        try:
            back = [
                (name.encode(), value.encode())
                for name, value in answer.headers.multi_items()
                if name in _PASSED_BACK or name.startswith(_FLOWERS)
            ]
            await send({"type": "http.response.start", "status": answer.status_code, "headers": back})
            async for chunk in answer.aiter_raw(PIECE):
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            await answer.aclose()


class _Body:
    """A request's body: exactly as long as announced, in pieces as they arrive, within a time."""

    def __init__(self, receive: Receive, length: int, *, timeout_s: float) -> None:
        self._receive = receive
        self._length = length
        self._end = asyncio.get_running_loop().time() + timeout_s

    async def __aiter__(self) -> AsyncIterator[bytes]:
        left = self._length
        more = True
        while more:
            try:
                async with asyncio.timeout_at(self._end):
                    event = await self._receive()
            except TimeoutError:
                raise Refusal(408, "the request took too long to arrive") from None
            if event["type"] == "http.disconnect":
                raise Refusal(400, "the connection ended within the request")
            chunk, more = event.get("body", b""), event.get("more_body", False)
            left -= len(chunk)
            if left < 0:
                raise Refusal(413, "the request is longer than it announced")
            yield chunk
        if left:
            raise Refusal(400, "the request is shorter than it announced")

    async def read(self) -> bytes:
        return b"".join([chunk async for chunk in self])


def _require_own(body: bytes) -> None:
    """Refuse an answer that one hospital gives in another's name.

    The SuperLink checks who sends the request, and that the message answers one that went to the hospital it names; it does
    not check that these two are the same.
    """
    try:
        request = PushMessagesRequest.FromString(body)
    except DecodeError:
        raise Refusal(400, "the request can't be read") from None
    if any(message.metadata.src_node_id != request.node.node_id for message in request.messages_list):
        raise Refusal(403, "a message in another hospital's name")


def _length(scope: Scope, *, at_most: int) -> int:
    """The announced length of the body, in bytes."""
    if _header(scope, b"transfer-encoding") is not None:
        raise Refusal(411, "the length of the request must be announced")
    said = _header(scope, b"content-length")
    if said is None or not re.fullmatch(rb"[0-9]{1,12}", said):
        raise Refusal(411, "the length of the request must be announced")
    if int(said) > at_most:
        raise Refusal(413, f"the request is {int(said)} bytes long; at most {at_most} are taken")
    return int(said)


def _header(scope: Scope, name: bytes) -> bytes | None:
    """A header's value; None if there is none. Two of one name are no request of a hospital's."""
    found = [value for given, value in scope["headers"] if given == name]
    if len(found) > 1:
        raise Refusal(400, f"more than one {name.decode()}")
    return found[0] if found else None


def _text(scope: Scope, name: bytes) -> str | None:
    value = _header(scope, name)
    return None if value is None else value.decode("ascii", errors="replace")


async def _json(send: Send, status: int, content: dict[str, str], *, close: bool = False) -> None:
    body = json.dumps(content).encode() + b"\n"
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(b"cache-control", b"no-store")]
    if close:  # what is left of the request is not read
        headers += [(b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
