"""Many nodes of one process before a coordinator as it is deployed: the part of scale.py that has a wire in it.

Every node is a thread with a key of its own, Flower's own connection (signed requests over TLS) and konsil's pauses between two
looks for work. There is no SuperNode's store and no worker between the wire and the app: what is loaded is the coordinator.
"""

from __future__ import annotations

import json
import logging
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from conf.study import Study
from fl_client.packed import packed_mod
from fl_client.supernode import BUSY_POLL_S, prompt_pulls

KONSIL = str(Path(sys.executable).parent / "konsil-study")


def nodes(study: Study, app: ClientApp) -> dict[str, Any]:
    """Seconds of a round, what was lost, and the memory of the coordinator's processes, with a node for each hospital."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    with tempfile.TemporaryDirectory(prefix="konsil-scale-") as place:
        house, log = Path(place) / "coordinator", Path(place) / "serve.log"
        port = _free_port()
        _do([KONSIL, "init", str(house), "--host", "127.0.0.1", "--port", str(port)])
        with open(log, "wb") as out:
            serving = subprocess.Popen([KONSIL, "serve", "--folder", str(house)], stdout=out, stderr=subprocess.STDOUT)
        try:
            _until(lambda: "up after" in log.read_text(), log)
            return _study(study, app, house, port, serving.pid)
        finally:
            serving.terminate()
            serving.wait(60)


def _study(study: Study, app: ClientApp, house: Path, port: int, server: int) -> dict[str, Any]:
    stop, errors, peak = threading.Event(), _Errors(), _Peak(server)
    logging.getLogger().addHandler(errors)
    logging.getLogger("flwr").addHandler(errors)
    keys = [_registered(house, port, name) for name in study.sites]
    threads = [
        threading.Thread(target=_node, args=(name, key, house, port, study, app, stop, errors))
        for name, key in zip(study.sites, keys, strict=True)
    ]
    for thread in [*threads, peak]:
        thread.start()
    path = house / "study.json"
    path.write_text(study.to_json())
    try:
        begin = time.monotonic()
        _do([KONSIL, "start", str(path), "--folder", str(house), "--wait"], within_s=1500)
        took = time.monotonic() - begin
    finally:
        stop.set()
        peak.over.set()
        for thread in [*threads, peak]:
            thread.join()
    record = json.loads((house / "runs" / study.name / "record.json").read_text())
    answers = [answer for entry in record["rounds"] for answer in entry["sites"].values()]
    seconds = [entry["seconds"] for entry in record["rounds"]]
    return {
        "first_round_s": round(seconds[0], 2),
        "round_s": round(sorted(seconds[1:] or seconds)[len(seconds[1:] or seconds) // 2], 2),
        "study_s": round(took, 1),
        "answers_used": sum(answer["answer"] == "used" for answer in answers),
        "answers_planned": len(study.sites) * study.rounds,
        "asked_again": sum(answer.get("attempts", 1) > 1 for answer in answers),
        "node_errors": len(errors.said),
        "first_error": errors.said[0][:200] if errors.said else "",
        "coordinator_peak_mb": round(peak.mb),
        "database_mb": round(sum(file.stat().st_size for file in house.rglob("*.db*")) / 1e6, 1),
    }


def _node(
    name: str, key: Any, house: Path, port: int, study: Study, app: ClientApp, stop: threading.Event, errors: _Errors
) -> None:
    """One node: look for a message, answer it, until it is told to stop."""
    from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
    from flwr.supercore.inflatable.inflatable_utils import pull_and_inflate_object_from_tree, push_objects
    from flwr.supernode.fleet_http_connection import http_request_response

    prompt_pulls()
    packing = ClientApp(mods=[packed_mod])
    packing.train()(lambda message, context: app(message, context))
    where = f"127.0.0.1:{port}"
    with http_request_response(where, False, str(house / "ca.crt"), authentication_keys=key) as connection:
        node, receive, send, _, _, pull, push, confirm = connection
        context = Context(0, node, {"name": name}, RecordDict(), {"study": study.to_json()})
        while not stop.is_set():
            try:
                if (found := receive()) is None:
                    stop.wait(BUSY_POLL_S)
                    continue
                bare, tree = found
                run = bare.metadata.run_id
                question = pull_and_inflate_object_from_tree(tree, _bound(pull, run), _bound(confirm, run), return_type=Message)
                question.metadata.__dict__["_message_id"] = bare.metadata.message_id
                answer = (packing if question.metadata.message_type == "train" else app)(question, context)
                answer.metadata.__dict__["_message_id"] = answer.object_id
                wanted, session = send(answer, get_object_tree(answer), 0.0)
                push_objects(get_all_nested_objects(answer), _bound(push, run, session), object_ids_to_push=wanted)
            except Exception as error:
                errors.said.append(f"{name}: {type(error).__name__}: {error}")


def _bound(call: Callable[..., Any], *first: Any) -> Callable[..., Any]:
    return lambda *rest: call(*first, *rest)


def _registered(house: Path, port: int, name: str) -> Any:
    """A key that the coordinator has registered under this name."""
    import ssl

    import httpx
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
    from flwr.supercore.primitives.asymmetric import generate_key_pairs

    from fl_server.tokens import Tokens

    private, public = generate_key_pairs()
    line = public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    token = Tokens(house / "tokens.json").give(name)
    trusted = ssl.create_default_context(cafile=str(house / "ca.crt"))
    asked = {"token": token, "name": name, "public_key": f"{line} {name}"}
    answer = httpx.post(f"https://127.0.0.1:{port}/konsil/join", json=asked, verify=trusted, timeout=60, trust_env=False)
    answer.raise_for_status()
    return private, public


class _Errors(logging.Handler):
    """What Flower's own code and the nodes had to complain of."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


class _Peak(threading.Thread):
    """Peak memory of a process and its children, looked at twice a second."""

    def __init__(self, pid: int) -> None:
        super().__init__()
        self.pid, self.mb, self.over = pid, 0.0, threading.Event()

    def run(self) -> None:
        """Look until it is over."""
        while not self.over.wait(0.5):
            total = 0.0
            top = psutil.Process(self.pid)
            for process in [top, *top.children(recursive=True)]:
                try:
                    total += process.memory_full_info().pss / 2**20
                except psutil.Error:
                    continue
            self.mb = max(self.mb, total)


def _do(command: list[str], *, within_s: float = 120) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=within_s, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:2])}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def _until(true: Callable[[], bool], log: Path, *, within_s: float = 180) -> None:
    end = time.monotonic() + within_s
    while not true():
        if time.monotonic() > end:
            raise TimeoutError(f"the coordinator did not come up:\n{re.sub(chr(27) + r'[^m]*m', '', log.read_text())[-2000:]}")
        time.sleep(0.2)


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
