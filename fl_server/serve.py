"""`konsil-study serve`: the SuperLink on the loopback interface, the gate before it, until somebody says stop.

Three processes: this one, which is the gate; Flower's SuperLink; and Flower's SuperExec, which starts a process for each
study. If any of them ends, all end, and whoever supervises this one (systemd, Compose) starts them anew: what has to last is
in the database and in the studies' records.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import functools
import ipaddress
import logging
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from logging.handlers import RotatingFileHandler
from pathlib import Path
from types import FrameType

import h11
import httpx
import psutil
import uvicorn
from pydantic import ValidationError
from uvicorn.protocols.http.h11_impl import H11Protocol

from conf.study import Frozen
from fl_server import certificates, keeper, superexec, superlink, tracking
from fl_server.control import Refused, Unreachable, control, key_fingerprint, public_key_pem
from fl_server.gate import Gate
from fl_server.house import LOOPBACK, SETTINGS, House
from fl_server.page.beside import page_beside
from fl_server.page.guard import token_path
from fl_server.tokens import SiteName, TokenRefused, Tokens

START_S = 90.0
"""Seconds that the SuperLink may take until it answers; on an idle machine it takes about five."""

STOP_S = 15.0
"""Seconds that a process gets to end by itself."""

HEADERS_S = 20.0
"""Seconds in which the head of a request has to arrive after the connection or its first byte."""

QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
"""Flower reports its use over the internet unless told not to."""

log = logging.getLogger("konsil.serve")


def serve(house: House) -> int:
    """Run until SIGTERM or SIGINT; 0 then, 1 if a part ended by itself. Raises `Refused` if the SuperLink doesn't start."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    stop = _Stop()
    with stop.heard(), _parts(house) as parts, page_beside(house):
        start = time.monotonic()
        with control(house) as talk:
            while True:
                if stop.said:
                    return 0
                if ended := _ended(parts):
                    raise Refused(f"{ended} ended while it was starting; {house.folder / 'log'} says why")
                try:
                    talk.wait_until_up(timeout_s=0.0)
                    break
                except Refused:
                    if time.monotonic() - start > START_S:
                        raise
                    time.sleep(0.1)
        print(_greeting(house, time.monotonic() - start), flush=True)
        ended = asyncio.run(_open_gate(house, parts, stop))
    if ended:
        log.error("%s ended by itself; %s says why", ended, house.folder / "log")
    return 1 if ended else 0


class _Stop:
    """Whether somebody has said stop."""

    def __init__(self) -> None:
        self.said = False

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        """Listen to SIGTERM and SIGINT meanwhile."""
        before = {number: signal.signal(number, self._hear) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler or signal.SIG_DFL)  # None: a handler that Python can't put back

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.said = True


@contextlib.contextmanager
def _parts(house: House) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """Flower's processes, with their output in `log/`; afterwards they are ended, studies first."""
    for folder in (house.runs, house.models, house.flower_home, house.folder / "log"):
        folder.mkdir(mode=0o700, exist_ok=True)
    programs = Path(sys.executable).parent  # where Flower's commands are; its processes find each other by name
    environment = {
        **os.environ,
        **QUIET,
        "PATH": os.pathsep.join([str(programs), os.environ.get("PATH", "")]),
        "FLWR_HOME": str(house.flower_home),
        "KONSIL_RUNS": str(house.runs),
        "KONSIL_MODELS": str(house.models),
        tracking.SETTINGS: house.tracking.model_dump_json(),
        superlink.SECRET: str(house.control_key),
    }
    trust = ["--superexec-auth-secret-file", str(house.executor_key)]
    commands = {
        "superlink": [
            *(sys.executable, "-m", superlink.__name__),
            *("--host", LOOPBACK, "--port", str(house.superlink_port), "--database", str(house.database)),
            *("--ssl-ca-certfile", str(house.authority)),
            *("--ssl-certfile", str(house.inner_certificate), "--ssl-keyfile", str(house.inner_key)),
            *("--enable-supernode-auth", "--disable-runtime-dependency-installation", "--isolation", "process", *trust),
        ],
        "superexec": [
            *(sys.executable, "-m", superexec.__name__, "--runtime-api-address", house.superlink),
            *("--root-certificates", str(house.authority), "--parent-pid", str(os.getpid()), *trust),
        ],
    }
    parts: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name, command in commands.items():
            parts[name] = subprocess.Popen(
                command,
                env=environment,
                cwd=house.folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches this process alone, which ends the others in order
            )
            threading.Thread(target=_keep, args=(parts[name], house.folder / "log" / f"{name}.log"), daemon=True).start()
        yield parts
    finally:
        for name in reversed(parts):  # a study that is stopped tells the SuperLink so, which must be there to hear it
            _end(parts[name])


def _keep(part: subprocess.Popen[bytes], path: Path) -> None:
    """Write what a process says into a file that never grows beyond 5 x 8 MB."""
    file = RotatingFileHandler(path, maxBytes=8_000_000, backupCount=4)
    for line in part.stdout or ():
        file.emit(logging.makeLogRecord({"msg": line.decode(errors="replace").rstrip()}))
    file.close()


def _end(part: subprocess.Popen[bytes]) -> None:
    """Ask a process and all that it has started to end; kill what does not."""
    try:
        process = psutil.Process(part.pid)
        family = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.terminate()
    _, alive = psutil.wait_procs(family, timeout=STOP_S)
    for member in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    part.wait()


def _ended(parts: Mapping[str, subprocess.Popen[bytes]]) -> str:
    """The name of a process that is not running any more; empty if all are."""
    return next((name for name, part in parts.items() if part.poll() is not None), "")


async def _open_gate(house: House, parts: Mapping[str, subprocess.Popen[bytes]], stop: _Stop) -> str:
    """Serve until somebody says stop, or a part ends: its name then."""
    trusted = ssl.create_default_context(cafile=str(house.authority))
    limits = httpx.Limits(max_connections=house.max_connections, max_keepalive_connections=house.max_connections)
    async with httpx.AsyncClient(
        base_url=f"https://{house.superlink}", verify=trusted, timeout=60.0, limits=limits, trust_env=False
    ) as upstream:
        gate = Gate(
            upstream,
            about=about(house),
            join=functools.partial(join, house),
            max_body_bytes=house.max_body_mib * 1024**2,
            request_timeout_s=house.request_timeout_s,
        )
        server = _Server(gate_config(house, gate))
        serving = asyncio.create_task(server.serve())
        keeping = asyncio.create_task(_keep_studies(house))
        ended = ""
        while not (serving.done() or stop.said or (ended := _ended(parts))):
            await asyncio.sleep(0.1)
        server.should_exit = True
        keeping.cancel()
        await serving
        return ended or ("" if stop.said else "the gate")


async def _keep_studies(house: House) -> None:
    """Look after the studies that should run, for as long as the gate is open."""
    while True:
        try:
            await asyncio.to_thread(keeper.look, house)
        except Exception:  # whatever it is, the hospitals and the studies that run go on
            log.exception("the studies could not be looked after")
        await asyncio.sleep(keeper.LOOK_S)


def gate_config(house: House, gate: Gate) -> uvicorn.Config:
    """How the gate listens: TLS 1.2 or newer, HTTP/1.1, no proxy headers believed, no upgrades."""
    config = uvicorn.Config(
        gate,
        host=house.listen,
        port=house.port,
        http=Doorkeeper,
        ws="none",
        lifespan="off",
        access_log=False,
        log_level="warning",
        proxy_headers=False,
        server_header=False,
        limit_concurrency=house.max_connections,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=5,
        ssl_certfile=house.certificate if house.tls else None,
        ssl_keyfile=house.key if house.tls else None,
    )
    config.load()
    if config.ssl is not None:
        config.ssl.minimum_version = ssl.TLSVersion.TLSv1_2
    return config


def about(house: House) -> dict[str, str]:
    """What anybody may know of a coordinator."""
    return {
        "konsil": version("konsil"),
        "flwr": version("flwr"),
        "certificate_sha256": certificates.fingerprint(certificates.read(house.certificate)),
    }


class _Server(uvicorn.Server):
    """uvicorn's server without its signal handlers: this process has more to end than that."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Doorkeeper(H11Protocol):
    """Ends connections on which the head of a request doesn't arrive in time; uvicorn by itself would wait for ever."""

    _impatient: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Somebody has come in and says nothing yet."""
        super().connection_made(transport)
        self._impatient = self.loop.call_later(HEADERS_S, transport.close)

    def data_received(self, data: bytes) -> None:
        """Bytes have come: the end of a request's head, or a part of it."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._calm_down()
        elif self._impatient is None and self.conn.trailing_data[0]:
            self._impatient = self.loop.call_later(HEADERS_S, self.transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody is there any more."""
        self._calm_down()
        super().connection_lost(exc)

    def _calm_down(self) -> None:
        if self._impatient is not None:
            self._impatient.cancel()
            self._impatient = None


class JoinRequest(Frozen):
    """What a hospital sends to `/konsil/join`."""

    token: str
    name: SiteName
    public_key: str


def join(house: House, body: bytes) -> tuple[int, dict[str, str]]:
    """Register the key that a hospital sends with its token. Status and JSON to answer with."""
    try:
        asked = JoinRequest.model_validate_json(body, strict=True)
        fingerprint = key_fingerprint(public_key_pem(asked.public_key))
    except ValidationError as error:  # without what was sent: that may be a token
        wrong = "; ".join(f"{'.'.join(map(str, item['loc'])) or 'content'}: {item['msg']}" for item in error.errors())
        return 400, {"reason": f"JSON with token, name and public_key is right; {wrong}"}
    except Refused as error:
        return 400, {"reason": str(error)}
    tokens = Tokens(house.tokens)
    try:
        fresh = tokens.take(asked.token, name=asked.name, key_sha256=fingerprint)
    except TokenRefused as error:
        log.warning("a token for %s was refused: %s", asked.name, error)
        return 403, {"reason": str(error)}
    try:
        with control(house) as talk:
            there = {(site.name, site.key_sha256) for site in talk.sites()}
            if (asked.name, fingerprint) not in there:
                talk.register(asked.name, asked.public_key)
    except Refused as error:
        if fresh:
            tokens.put_back(asked.token)
        log.error("%s could not be registered: %s", asked.name, error)
        return 503 if isinstance(error, Unreachable) else 409, {"reason": str(error)}
    log.info("%s has joined with the key %s", asked.name, fingerprint)
    return 200, {"name": asked.name}


def _greeting(house: House, seconds: float) -> str:
    """What the coordinator's person tells hospitals."""
    certificate = certificates.read(house.certificate)
    lines = [
        f"konsil coordinator, up after {seconds:.1f} s; what a hospital needs:",
        f"  address        {house.address}",
        f"  authority      {house.authority}, SHA-256 {certificates.fingerprint(certificates.read(house.authority))}",
        f"  join token     konsil-study join-token NAME --folder {house.folder}",
        f"certificate valid until {certificate.not_valid_after_utc:%Y-%m-%d}; results in {house.runs}",
    ]
    if house.page is not None:
        lines.append(f"the studies in a browser: {house.page.address}, with the token in {token_path(house.folder)}")
    left = certificate.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    if left.days < 30:
        lines.append(f"the certificate ends in {left.days} days: konsil-study renew --folder {house.folder}, then start again")
    if ipaddress.ip_address(house.listen).is_loopback:
        lines.append(f"it listens on {house.listen}:{house.port} only, which other machines can't reach (listen: {SETTINGS})")
    return "\n".join(lines)
