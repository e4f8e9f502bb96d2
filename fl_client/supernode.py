"""Flower's SuperNode as a hospital runs it: it carries messages and never runs what the coordinator sends.

In process isolation a SuperNode starts no app. It keeps the run's app bundle in memory, unpacks nothing, and waits until our
worker (`worker.py`) has answered with the ClientApp that is installed here. Flower's own command sleeps 3 s between two looks
for a message; ours looks more often while a study runs and as rarely when nothing happens.
`python -m fl_client.supernode --site site.yaml` runs it; `konsil-site start` does.
Which internals of Flower this leans on is pinned in tests/fl_client/test_flower_contract.py.
"""

from __future__ import annotations

import argparse
import functools
import ipaddress
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx

from fl_client.dialling import REFUSED, connected, heard, may_dial
from fl_client.loopback import HOST, Loopback
from fl_client.sharing import kept_to
from fl_client.site import Coordinator, Site

BUSY_POLL_S, IDLE_POLL_S = 0.5, 3.0
"""Seconds between two looks for work: while a study is running here, and when none is."""

BUSY_FOR_S = 900.0
"""A study counts as running for so long after its last message."""


def pause_s(since_s: float) -> float:
    """How long to wait before the next look for work, `since_s` seconds after the last."""
    return BUSY_POLL_S if since_s < BUSY_FOR_S else IDLE_POLL_S


def runtime_folder(site: Site) -> Path:
    """Where SuperNode and worker meet."""
    return site.folder / "run" / "supernode"


def environment(site: Site) -> dict[str, str]:
    """The environment of every process that holds Flower: nothing is reported, and loopback goes through no proxy.

    A service's user often has no home; what would lie there (matplotlib's list of fonts, seconds to make) lies in the house.
    """
    own = {
        "FLWR_HOME": str(site.folder / "run" / "flower"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "NO_PROXY": ",".join(filter(None, [os.environ.get("NO_PROXY", os.environ.get("no_proxy", "")), HOST])),
    }
    if "MPLCONFIGDIR" not in os.environ and not os.access(os.environ.get("HOME", ""), os.W_OK):
        own["MPLCONFIGDIR"] = str(site.folder / "run" / "matplotlib")
    return {**{name: value for name, value in os.environ.items() if name != "no_proxy"}, **own}


def command(site: Site, coordinator: Coordinator, door: Loopback) -> list[str]:
    """What Flower's command is given. Raises `ValueError` for a coordinator without TLS that is not on this machine."""
    given = ["flower-supernode", "--superlink", coordinator.address, "--isolation", "process"]
    given += ["--host", HOST, "--port", str(door.port), "--superexec-auth-secret-file", str(door.secret_file)]
    given += ["--ssl-certfile", str(door.certificate), "--ssl-keyfile", str(door.certificate_key)]
    given += ["--ssl-ca-certfile", str(door.certificate)]
    if coordinator.root_certificates is None:
        require_this_machine(coordinator.address)
        return [*given, "--insecure"]
    given += ["--root-certificates", str(coordinator.root_certificates)]
    return [*given, "--auth-supernode-private-key", str(coordinator.key)]


def require_this_machine(address: str) -> None:
    """Return if HOST:PORT is this machine itself. Raises `ValueError`: without TLS nobody knows who answers."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    if not local:
        raise ValueError(
            f"coordinator.root_certificates is missing and {host} is another machine: without TLS anybody could "
            "pretend to be the coordinator; put down the file that the coordinator gave you"
        )


def is_registered(coordinator: Coordinator) -> bool:
    """Whether the coordinator knows our key. Raises `httpx.HTTPError` if it can't be told, `ValueError`.

    Asks to be made active with an interval of heartbeats that isn't allowed: an unknown key is turned away before the interval
    is looked at, and a known one because of it, so that nothing changes.
    """
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key
    from flwr.proto.fleet_pb2 import ActivateNodeRequest
    from flwr.supercore.error import ApiErrorCode, FlowerError
    from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
    from flwr.supercore.primitives.asymmetric import public_key_to_bytes
    from flwr.supernode.fleet_http_client import FleetHttpClient
    from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

    private = load_ssh_private_key(coordinator.key.read_bytes(), None)
    if not isinstance(private, ec.EllipticCurvePrivateKey):
        raise ValueError(f"{coordinator.key} is no elliptic-curve key")
    talk = FleetHttpClient.from_server_address(
        coordinator.address,
        insecure=False,
        root_certificates=str(coordinator.root_certificates),
        interceptors=[
            RuntimeVersionHttpInterceptor(component_name="konsil"),
            NodeAuthHttpInterceptor(private, private.public_key()),
        ],
    )
    public = public_key_to_bytes(private.public_key())
    with talk:
        try:
            talk.ActivateNode(ActivateNodeRequest(public_key=public, heartbeat_interval=0.0))
        except httpx.HTTPStatusError as refusal:
            if refusal.response.status_code == httpx.codes.UNAUTHORIZED:
                return False
            said = FlowerError.from_json(refusal.response.text)
            if said is None or said.code not in (
                ApiErrorCode.FLEET_INVALID_HEARTBEAT_INTERVAL,
                ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED,
            ):
                raise
            return said.code == ApiErrorCode.FLEET_INVALID_HEARTBEAT_INTERVAL
    return True


def impatient(
    pull: Callable[..., int | None], *, first: Callable[[], None] = lambda: None, heard: Callable[[], None] = lambda: None
) -> Callable[..., int | None]:
    """`pull` until it has found a message, with our own pauses instead of Flower's.

    `first` is called before all, once; `heard` whenever the coordinator has answered. While it does not, Flower's `pull` tries
    again for ever and does not return.
    """
    last, called = time.monotonic() - BUSY_FOR_S, False

    def pulled(**given: Any) -> int | None:
        nonlocal last, called
        if not called:
            called = True
            first()
        while (run := pull(**given)) is None:
            heard()
            time.sleep(pause_s(time.monotonic() - last))
        heard()
        last = time.monotonic()
        return run

    return pulled


def prompt_pulls() -> None:
    """In this process, look for a part of a message that is still on its way a tenth of a second later; Flower waits 1, 2, 4 s.

    Parts are announced before they are there, on every stretch of their way, so that each round would wait several times.
    """
    from flwr.supercore.inflatable import inflatable_utils

    for pull in (inflatable_utils.pull_objects, inflatable_utils.pull_and_inflate_object_from_tree):
        ours = {"initial_backoff": 0.1, "backoff_cap": 2.0, "max_tries_per_object": None}  # Flower's max_time ends it
        pull.__kwdefaults__ = {**(pull.__kwdefaults__ or {}), **ours}


def untimed(push: Callable[..., None]) -> Callable[..., None]:
    """`push` for answers, telling nobody how long the work took.

    Flower sends the seconds with each answer, to the millisecond; they grow with the number of patients. What remains is what
    the coordinator's own clock shows.
    """

    def pushed(*, send: Callable[..., Any], **given: Any) -> None:
        def without_time(message: Any, tree: Any, clientapp_runtime: float) -> Any:
            return send(message, tree, 0.0)

        push(send=without_time, **given)

    return pushed


def dropping(pull: Callable[..., dict[str, bytes]]) -> Callable[..., dict[str, bytes]]:
    """`pull` for the parts of a question, so that a question whose run has ended meanwhile is dropped whole.

    Flower then forgets that it had begun: the question stays in the node, and whoever works for it waits for the missing parts
    until an hour or two have passed. Any other failure has Flower delete the question and end its task.
    """
    from flwr.supercore.run import RunNotRunningException

    def pulled(*given: Any, **named: Any) -> dict[str, bytes]:
        try:
            return pull(*given, **named)
        except RunNotRunningException:
            raise RuntimeError("its run has ended") from None

    return pulled


def main(arguments: Sequence[str] | None = None) -> int:
    """Become the SuperNode; returns only if it can't."""
    parser = argparse.ArgumentParser(prog="fl_client.supernode", description="Flower's SuperNode for this hospital")
    parser.add_argument("--site", type=Path, required=True)
    settings = parser.parse_args(arguments).site
    site = Site.load(settings)
    if site.coordinator is None:
        print("site.yaml names no coordinator (konsil-site join adds it)", file=sys.stderr)
        return 2
    os.environ.update(environment(site))
    os.environ.pop("no_proxy", None)
    with kept_to(site.folder):
        try:
            sys.argv = command(site, site.coordinator, Loopback.make(runtime_folder(site)))
        except ValueError as error:
            print(error, file=sys.stderr)
            return 2
        if not may_dial(site, settings, runtime_folder(site)):
            return REFUSED
        from flwr.supercore.exit import ExitCode, flwr_exit  # here: Flower reads the environment when it is imported
        from flwr.supernode import start_client_internal as loop
        from flwr.supernode.cli.flower_supernode import flower_supernode

        loop._pull_and_store_message = impatient(
            loop._pull_and_store_message,
            first=functools.partial(connected, runtime_folder(site)),
            heard=functools.partial(heard, runtime_folder(site)),
        )
        prompt_pulls()
        loop.pull_objects = dropping(loop.pull_objects)  # type: ignore[attr-defined]
        loop._push_messages = untimed(loop._push_messages)
        flower_supernode()
        # it comes back after an answer of the coordinator's that it can't go on from; its port for the worker would keep us
        flwr_exit(ExitCode.SUPERNODE_CONNECTION_ERROR, "the coordinator's answer was none to go on from (see above)")


if __name__ == "__main__":
    sys.exit(main())
