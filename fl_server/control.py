"""What the coordinator says to its own SuperLink: who is registered, start this study, what became of it.

Flower's own client is used, with the coordinator's secret in a header (fl_server/superlink.py), over TLS on the loopback
interface. A study is sent as an app that holds no code: its one file names konsil's ServerApp, which is installed here.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version

import httpx
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.cli.build import build_fab_from_files
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.error import FlowerError
from flwr.supercore.fab import Fab
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext

from conf.study import Study
from fl_server.house import House
from fl_server.superlink import HEADER


@dataclass(frozen=True, kw_only=True)
class RegisteredSite:
    """A hospital that may connect."""

    name: str
    node: int
    status: str  # registered (never seen), online, offline
    last_seen: str  # UTC, ISO 8601; empty: never
    key_sha256: str  # of the public key's DER form, 64 hexadecimal digits
    key: str = ""  # the public key, as one line in OpenSSH's format; empty for what is no key


class Refused(ValueError):
    """The SuperLink said no; the message says why."""


class Unreachable(Refused):
    """There is no SuperLink to say anything."""


class Control:
    """The SuperLink's control API, as the coordinator's own commands use it."""

    def __init__(self, client: ControlHttpClient) -> None:
        self._client = client

    def sites(self) -> list[RegisteredSite]:
        """Every registered hospital, by name."""
        with _in_words():
            nodes = self._client.ListNodes(ListNodesRequest()).nodes_info
        found = [
            RegisteredSite(
                name=node.name,
                node=node.node_id,
                status=node.status,
                last_seen=node.last_activated_at,
                key_sha256=key_fingerprint(node.public_key),
                key=key_line(node.public_key),
            )
            for node in nodes
            if node.status != "unregistered"
        ]
        return sorted(found, key=lambda site: site.name)

    def register(self, name: str, public_key: str) -> int:
        """Let the hospital that has this key connect, under this name; returns the number of its node.

        Raises `Refused` for a name or key that is registered already, and for anything but a NIST elliptic-curve key.
        """
        key = public_key_pem(public_key)
        for site in self.sites():
            if site.name == name:
                raise Refused(f"{name} is registered already; `konsil-study unregister {name}` first, if its key is lost")
            if site.key_sha256 == key_fingerprint(key):
                raise Refused(f"this key is that of {site.name}; every hospital has a key of its own")
        with _in_words():
            return int(self._client.RegisterNode(RegisterNodeRequest(public_key=key, name=name)).node_id)

    def unregister(self, name: str) -> None:
        """Shut a hospital out. Raises `Refused` if there is none of this name."""
        for site in self.sites():
            if site.name == name:
                with _in_words():
                    self._client.UnregisterNode(UnregisterNodeRequest(node_id=site.node))
                return
        raise Refused(f"no hospital is registered as {name}")

    def start(
        self, study: Study, *, enrol_timeout_s: float, quorum_timeout_s: float, wait_for: int = 0, resume: bool = False
    ) -> int:
        """Start a study, or go on with it from its checkpoint; returns the number of Flower's run.

        The seconds and `wait_for` are those of `fl_server.rounds.run`.
        """
        bundle = app_bundle()
        fab = Fab(hashlib.sha256(bundle).hexdigest(), bundle, {})
        config = user_config_to_proto(
            {
                "study": study.to_json(),
                "enrol-timeout-s": float(enrol_timeout_s),
                "quorum-timeout-s": float(quorum_timeout_s),
                "wait-for": wait_for,
                "resume": resume,
            }
        )
        with _in_words():
            answer = self._client.StartRun(StartRunRequest(fab=fab_to_proto(fab), override_config=config))
        if not answer.HasField("run_id"):
            raise Refused("the SuperLink did not start the run and did not say why; its log may")
        return int(answer.run_id)

    def stop(self, run: int) -> None:
        """Stop a run. Raises `Refused` if there is none of this number, or it has ended."""
        with _in_words():
            if not self._client.StopRun(StopRunRequest(run_id=run)).success:
                raise Refused(f"run {run} was not stopped")

    def run_status(self, run: int) -> tuple[str, str]:
        """What Flower says of a run: `pending`, `starting`, `running` or `finished`, and the reason it gives."""
        with _in_words():
            runs = self._client.ListRuns(ListRunsRequest(run_id=run)).run_dict
        if run not in runs:
            return "finished", "Flower's database does not know it"
        status = runs[run].status
        return status.status, " ".join(part for part in (status.sub_status, status.details) if part)

    def wait_until_up(self, *, timeout_s: float) -> None:
        """Return as soon as the SuperLink answers. Raises `Refused` after `timeout_s`."""
        end = time.monotonic() + timeout_s
        while True:
            try:
                self.sites()
            except Refused:
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)
            else:
                return


@contextmanager
def control(house: House) -> Iterator[Control]:
    """A connection to the coordinator's SuperLink, closed afterwards."""
    client = ControlHttpClient.from_server_address(
        server_address=house.superlink,
        insecure=False,
        root_certificates=house.authority.read_bytes(),
        interceptors=[_Secret(house.control_key.read_text().strip())],
    )
    try:
        yield Control(client)
    finally:
        client.close()


def app_bundle() -> bytes:
    """Flower's app for any study, without code: about 1 KB that name konsil's apps, and the settings of a run."""
    nothing = json.dumps("")
    text = f"""[project]
name = "konsil"
version = "{version("konsil")}"
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "konsil"
[tool.flwr.app.components]
serverapp = "fl_server.app:app"
clientapp = "fl_client.app:app"
[tool.flwr.app.config]
study = {nothing}
enrol-timeout-s = 600.0
quorum-timeout-s = 0.0
wait-for = 0
resume = false
"""
    return build_fab_from_files({"pyproject.toml": text.encode()})[0]


def public_key_pem(text: str) -> bytes:
    """A public key, in OpenSSH's form or PEM, as PEM. Raises `Refused` for anything but NIST curve P-256, P-384 or P-521."""
    data = text.strip().encode()
    try:
        if data.startswith(b"-----BEGIN"):
            key = serialization.load_pem_public_key(data)
        else:
            key = serialization.load_ssh_public_key(data)
    except Exception:  # what these raise for bad bytes is not documented, and none of it is worth more words
        raise Refused("this is no public key; the line that `konsil-site init` prints is right") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in ("secp256r1", "secp384r1", "secp521r1"):
        raise Refused(f"a key of this kind ({type(key).__name__}) can't be used; P-384 is right")
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def key_line(pem: bytes) -> str:
    """A public key as one line in OpenSSH's format; empty for what is no key."""
    try:
        key = serialization.load_pem_public_key(pem)
    except ValueError:
        return ""
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()


def key_fingerprint(pem: bytes) -> str:
    """SHA-256 of a public key's DER form (SubjectPublicKeyInfo), 64 hexadecimal digits; empty for what is no key."""
    try:
        key = serialization.load_pem_public_key(pem)
    except ValueError:
        return ""
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


class _Secret:
    """Shows the coordinator's secret with every request."""

    def __init__(self, secret: str) -> None:
        self._secret = secret

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        context.request.headers[HEADER] = self._secret
        return call_next(context)


@contextmanager
def _in_words() -> Iterator[None]:
    """What the SuperLink answers other than yes, as `Refused`."""
    try:
        yield
    except httpx.HTTPStatusError as error:
        flower = FlowerError.from_json(error.response.text)
        raise Refused(f"the SuperLink refused: {flower.message if flower else error.response.text.strip()[:300]}") from None
    except httpx.HTTPError as error:
        raise Unreachable(f"the SuperLink does not answer ({error}); is `konsil-study serve` running?") from None
