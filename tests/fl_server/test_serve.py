"""`konsil-study serve` as it runs: real processes on the loopback interface."""

import datetime
import json
import os
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import httpx
import psutil
import pytest
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from fl_client import joining, reach
from fl_client.site import Site
from fl_server import __main__ as command
from fl_server.control import Refused, app_bundle, control
from fl_server.house import House
from fl_server.live import Now
from fl_server.serve import join
from fl_server.superlink import PAGE_BYTES
from fl_server.tokens import Tokens

pytestmark = [  # Flower's own: its builder of bundles, and its client with a file of certificates
    pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.verify=<str>. is deprecated:DeprecationWarning"),
]

PROGRAMS = Path(sys.executable).parent


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Running:
    """A coordinator in processes of its own."""

    def __init__(self, house):
        self.house = house

    def start(self):
        arguments = [sys.executable, "-m", "fl_server", "serve", "--folder", str(self.house.folder)]
        with open(self.house.folder / "serve.log", "a") as log:
            self.process = subprocess.Popen(arguments, stdout=log, stderr=subprocess.STDOUT, cwd=Path(__file__).parents[2])
        end = time.monotonic() + 90
        while not self.up():
            if self.process.poll() is not None or time.monotonic() > end:
                self.stop()
                raise RuntimeError(self.said())
            time.sleep(0.1)

    def up(self):
        try:
            with self.client() as talk:
                return talk.get("/health").status_code == 200
        except httpx.HTTPError:
            return False

    def said(self):
        return (self.house.folder / "serve.log").read_text()

    def family(self):
        return psutil.Process(self.process.pid).children(recursive=True)

    def stop(self, number=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(60)

    def client(self, **given):
        trusted = ssl.create_default_context(cafile=str(self.house.authority))
        url = f"https://localhost:{self.house.port}"
        return httpx.Client(**{"base_url": url, "verify": trusted, "trust_env": False, "timeout": 30.0, **given})

    def hospital(self, key, *, address=None):
        """Flower's own client, as a SuperNode uses it."""
        return FleetHttpClient.from_server_address(
            server_address=address or f"localhost:{self.house.port}",
            insecure=False,
            root_certificates=self.house.authority.read_bytes(),
            interceptors=[NodeAuthHttpInterceptor(key, key.public_key())],
        )

    def join(self, name, key, token):
        body = {"token": token, "name": name, "public_key": ssh_line(key)}
        with self.client() as talk:
            answer = talk.post("/konsil/join", json=body)
        return answer.status_code, answer.json()

    def let_in(self, name):
        key = new_key()
        assert self.join(name, key, Tokens(self.house.tokens).give(name)) == (200, {"name": name})
        return key


def new_key():
    return ec.generate_private_key(ec.SECP384R1())


def ssh_line(key):
    return key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()


def activate(talk, key):
    request = ActivateNodeRequest(public_key=public_key_to_bytes(key.public_key()), heartbeat_interval=30.0)
    return talk.ActivateNode(request).node_id


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    house = House.create(tmp_path_factory.mktemp("serve") / "house", hosts=["localhost"], port=free_port())
    house = house.model_copy(update={"enrol_timeout_s": 0.0, "quorum_timeout_s": 0.0})
    settings = yaml.safe_load((house.folder / "coordinator.yaml").read_text())
    settings |= {"enrol_timeout_s": 0.0, "quorum_timeout_s": 0.0, "page": {"port": free_port()}}
    (house.folder / "coordinator.yaml").write_text(yaml.safe_dump(settings))
    running = Running(house)
    running.start()
    yield running
    running.stop()


def test_what_a_hospital_needs_is_printed(running):
    said = running.said()
    assert f"address        localhost:{running.house.port}" in said
    assert str(running.house.authority) in said
    assert "which other machines can't reach" in said
    port = House.load(running.house.folder).page.port
    assert f"in a browser: http://127.0.0.1:{port}/, with the token in {running.house.folder / 'page.token'}\n" in said
    end = time.monotonic() + 60
    while True:
        try:
            assert httpx.get(f"http://127.0.0.1:{port}/health").text == "up\n"
            break
        except httpx.TransportError:
            assert time.monotonic() < end
            time.sleep(0.2)


def test_a_hospital_that_has_joined_gets_through_with_its_key(running):
    key = running.let_in("clinic")
    with running.hospital(key) as talk:
        node = activate(talk, key)
        assert talk.SendNodeHeartbeat(SendNodeHeartbeatRequest(node=Node(node_id=node), heartbeat_interval=30.0)).success
        assert not talk.PullMessages(PullMessagesRequest(node=Node(node_id=node))).messages_list
    with control(running.house) as office:
        [site] = [site for site in office.sites() if site.name == "clinic"]
    assert (site.node, site.status) == (node, "online")


def test_a_key_that_nobody_registered_is_refused(running):
    key = new_key()
    with running.hospital(key) as talk, pytest.raises(httpx.HTTPStatusError) as refused:
        activate(talk, key)
    assert refused.value.response.status_code == 412  # Flower's FLEET_NODE_ACTIVATION_FAILED
    with running.hospital(key) as talk, pytest.raises(httpx.HTTPStatusError) as refused:
        talk.PullMessages(PullMessagesRequest(node=Node(node_id=5)))
    assert refused.value.response.status_code == 401


def test_a_hospital_can_not_use_another_ones_number(running):
    mine, theirs = running.let_in("south"), running.let_in("east")
    with running.hospital(theirs) as talk:
        number = activate(talk, theirs)
    with running.hospital(mine) as talk, pytest.raises(httpx.HTTPStatusError) as refused:
        talk.PullMessages(PullMessagesRequest(node=Node(node_id=number)))
    assert refused.value.response.status_code == 401


def test_join_tokens_are_good_once_for_one_name_in_their_time(running):
    tokens = Tokens(running.house.tokens)
    token, key = tokens.give("north"), new_key()
    assert running.join("north", key, "guessed")[0] == 403
    assert running.join("west", key, token)[0] == 403
    assert running.join("north", key, token) == (200, {"name": "north"})
    assert running.join("north", key, token) == (200, {"name": "north"})  # its answer may have got lost
    assert running.join("north", new_key(), token) == (
        403,
        {"reason": "this token has been used; a token is good once, ask the coordinator for a new one"},
    )
    assert running.join("north", new_key(), tokens.give("north"))[0] == 409  # it is registered
    assert running.join("late", key, tokens.give("late", valid_s=0))[0] == 403
    status, said = running.join("twin", key, tokens.give("twin"))
    assert (status, "this key is that of north" in said["reason"]) == (409, True)


def test_a_join_request_that_makes_no_sense_is_refused_without_repeating_its_token(running):
    for body in (
        b"",
        b"[]",
        b'{"token": "secret-word"}',
        b'{"token": "secret-word", "name": "../x", "public_key": ""}',
        b"\xff",
    ):
        status, said = join(running.house, body)
        assert status == 400
        assert "secret-word" not in json.dumps(said)
    rsa_like = {
        "token": "x",
        "name": "clinic",
        "public_key": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
    }
    assert join(running.house, json.dumps(rsa_like).encode())[0] == 400


@pytest.mark.parametrize(
    "path", ["/v1/control/start-run", "/v1/control/register-node", "/v1/control/list-nodes", "/v1/runtime/acquire-task"]
)
def test_the_control_api_can_not_be_reached_from_outside(running, path):
    secret = running.house.control_key.read_text()
    with running.client() as talk:
        answer = talk.post(path, content=b"", headers={"content-type": "application/protobuf", "konsil-control-key": secret})
        assert answer.status_code == 404
        assert talk.get("/docs").status_code == talk.get("/openapi.json").status_code == 404


def test_the_database_is_made_for_rows_of_megabytes(running):
    with closing(sqlite3.connect(f"file:{running.house.database}?mode=ro", uri=True)) as database:
        assert database.execute("PRAGMA page_size").fetchone() == (PAGE_BYTES,)


def test_on_the_coordinators_own_machine_the_control_api_wants_its_key(running):
    with running.client(base_url=f"https://{running.house.superlink}") as talk:
        protobuf = {"content-type": "application/protobuf"}
        for path in ("/v1/control/start-run", "/v1/control/list-nodes", "/v1/CONTROL/list-nodes", "//v1/control/list-nodes"):
            for shown in ({}, {"konsil-control-key": "guessed"}):
                assert talk.post(path, content=b"", headers=protobuf | shown).status_code == 403
        assert talk.get("/docs").status_code == 403
        right = {"konsil-control-key": running.house.control_key.read_text()}
        assert talk.post("/v1/control/list-nodes", content=b"", headers=protobuf | right).status_code == 200


def test_nobody_else_on_the_machine_can_take_a_studys_task(running):
    client = RuntimeHttpClient.from_server_address(
        server_address=running.house.superlink,
        insecure=False,
        root_certificates=running.house.authority.read_bytes(),
        interceptors=[],
    )
    with client, pytest.raises(httpx.HTTPStatusError) as refused:
        client.AcquireTask(AcquireTaskRequest(supported_task_types=["flwr-serverapp"]))
    assert refused.value.response.status_code in (401, 403)


class Tap:
    """Keeps the last request."""

    def intercept(self, context, call_next):
        self.request = context.request
        return call_next(context)


def test_a_copied_request_passes_flowers_own_check_and_not_the_gates(running):
    key, tap = running.let_in("copied"), Tap()
    sign = NodeAuthHttpInterceptor(key, key.public_key())
    trusted = {"insecure": False, "root_certificates": running.house.authority.read_bytes()}
    with FleetHttpClient.from_server_address(f"localhost:{running.house.port}", interceptors=[sign, tap], **trusted) as talk:
        node = activate(talk, key)
        talk.PullMessages(PullMessagesRequest(node=Node(node_id=node)))
    copied = {name: value for name, value in tap.request.headers.items() if name not in ("host", "connection")}
    with running.client() as talk:
        again = talk.post("/v1/fleet/pull-messages", content=tap.request.content, headers=copied)
        assert (again.status_code, "before" in again.json()["reason"]) == (401, True)
    with running.client(base_url=f"https://{running.house.superlink}") as talk:  # why the gate has to remember
        body = SendNodeHeartbeatRequest(node=Node(node_id=node), heartbeat_interval=30.0).SerializeToString()
        answer = talk.post("/v1/fleet/send-node-heartbeat", content=body, headers=copied | {"content-length": str(len(body))})
        assert answer.status_code == 200


def test_who_is_shut_out_stays_out(running, capsys):
    key = running.let_in("gone")
    folder = ["--folder", str(running.house.folder)]
    assert command.main(["unregister", "gone", *folder]) == 0
    with running.hospital(key) as talk, pytest.raises(httpx.HTTPStatusError):
        activate(talk, key)
    assert command.main(["sites", *folder]) == 0
    assert "gone:" not in capsys.readouterr().out
    assert command.main(["unregister", "gone", *folder]) == 1
    assert "no hospital is registered as gone" in capsys.readouterr().err


def test_a_key_can_be_registered_by_hand(running, tmp_path, capsys):
    key, folder = new_key(), ["--folder", str(running.house.folder)]
    (tmp_path / "node.key.pub").write_text(ssh_line(key) + " byhand\n")
    assert command.main(["register", "byhand", str(tmp_path / "node.key.pub"), *folder]) == 0
    assert command.main(["register", "again", ssh_line(key), *folder]) == 1
    assert "this key is that of byhand" in capsys.readouterr().err
    with running.hospital(key) as talk:
        assert activate(talk, key)


def test_a_hospitals_own_commands_join_and_find_nothing_to_mend(running, tmp_path, capsys):
    (tmp_path / "site.yaml").write_text("name: own.commands\ndeclared_size: 20\n")
    token, address = Tokens(running.house.tokens).give("own.commands"), f"localhost:{running.house.port}"
    joined = {"token": token, "address": address, "root_certificates": running.house.authority}
    assert joining.join(tmp_path / "site.yaml", **joined) == 0
    site = Site.load(tmp_path / "site.yaml")
    found = list(reach.coordinator(site, tmp_path / "site.yaml"))
    assert [one for one in found if one.level == "mend"] == []
    assert {one.what for one in found} >= {"coordinator", "tls", "versions", "clock"}
    assert command.main(["unregister", "own.commands", "--folder", str(running.house.folder)]) == 0
    assert [one for one in reach.coordinator(site, tmp_path / "site.yaml") if one.level == "mend"] != []


def test_versions_are_told_so_that_a_hospital_can_compare(running):
    from importlib.metadata import version

    with running.client() as talk:
        told = talk.get("/konsil/info").json()
    assert (told["konsil"], told["flwr"]) == (version("konsil"), version("flwr"))
    assert abs((datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(told["time"])).total_seconds()) < 30


def test_a_study_that_nobody_answers_ends_as_failed(running, tmp_path, capsys, tables):
    folder = ["--folder", str(running.house.folder)]
    running.let_in("quiet")
    study = {"name": "alone", "task": tables, "rounds": 1, "sites": ["quiet"], "strategy": {"name": "sum"}}
    (tmp_path / "study.json").write_text(json.dumps(study))
    assert command.main(["start", str(tmp_path / "study.json"), "--wait", *folder]) == 4
    told = capsys.readouterr().out
    assert "round 1 of 1" in told
    assert "quiet absent (no node has enrolled under this name" in told  # perhaps with a word of nodes that have just ended
    assert command.main(["record", str(running.house.runs / "alone" / "record.json")]) == 4
    unpacked = [path.name for path in running.house.flower_home.rglob("*") if path.is_file() and "apps" in path.parts]
    assert set(unpacked) == {"pyproject.toml"}  # no code travels
    tokens = list((running.house.folder / "tokens").iterdir())  # and not in the commands that everybody can list
    assert [token.stat().st_mode & 0o777 for token in tokens] == [0o600]
    assert command.main(["start", str(tmp_path / "study.json"), *folder]) == 1
    assert "holds the results of an earlier study" in capsys.readouterr().err
    assert command.main(["start", str(tmp_path / "study.json"), "sites=[nowhere]", *folder]) == 1
    assert "no hospital is registered as nowhere" in capsys.readouterr().err


def told_by(capsys, *words, until, within_s=60.0):
    """What a command says as soon as it says `until`."""
    end = time.monotonic() + within_s
    while True:
        command.main(list(words))
        said = capsys.readouterr().out
        if until in said:
            return said
        assert time.monotonic() < end, said
        time.sleep(0.3)


@pytest.mark.slow
def test_a_study_that_too_few_have_approved_waits_can_be_stopped_and_taken_up_again(running, tmp_path, capsys, tables):
    folder = ["--folder", str(running.house.folder)]
    for name in ("early", "undecided"):
        running.let_in(name)
    study = {"name": "patient", "task": tables, "rounds": 1, "sites": ["early", "undecided"], "strategy": {"name": "sum"}}
    (tmp_path / "study.json").write_text(json.dumps(study))
    assert command.main(["start", str(tmp_path / "study.json"), "--wait-for", "3", *folder]) == 1
    assert "--wait-for 3: the study has 2 hospitals" in capsys.readouterr().err
    words = ["start", str(tmp_path / "study.json"), "--wait-for", "all", "--wait-days", "3", *folder]
    assert command.main(words) == 0
    waiting = "waiting for hospitals: 0 of the 2 that it needs take part"
    said = told_by(capsys, "status", "patient", *folder, until=waiting)
    assert "the waiting ends in 3 d 0 h at the latest" in said or "the waiting ends in 2 d 23 h at the latest" in said
    assert "undecided does not take part: no machine is connected under this name" in said
    assert command.main(["status", "patient", *folder]) == 5
    assert command.main(["log", "patient", *folder]) == 5
    assert "waiting until 2 hospitals take part" in capsys.readouterr().out
    assert command.main(["record", str(running.house.runs / "patient" / "record.json")]) == 5
    first = Now.read(running.house.runs / "patient")
    os.kill(first.pid, signal.SIGKILL)  # as if the machine had had no memory left
    end = time.monotonic() + 60
    while (now := Now.read(running.house.runs / "patient")).run == first.run:
        assert time.monotonic() < end
        time.sleep(0.3)
    told_by(capsys, "status", "patient", *folder, until=waiting)
    assert command.main(["stop", "patient", *folder]) == 0
    end = time.monotonic() + 60
    while psutil.pid_exists(now.pid) and time.monotonic() < end:
        time.sleep(0.3)
    told_by(capsys, "status", "patient", *folder, until="stopped after round 0 of 1")
    assert command.main(["resume", "patient", *folder]) == 0
    told_by(capsys, "status", "patient", *folder, until=waiting)
    assert command.main(["stop", "patient", *folder]) == 0


@pytest.fixture
def tables():
    columns = [{"name": "marker", "lower": -4, "upper": 4}]
    return {
        "name": "radiomics",
        "clinical": columns,
        "label": {"endpoint": "ill"},
        "learner": {"kind": "forest", "trees": 2, "depth": 1},
    }


def test_the_bundle_that_travels_is_small_and_holds_no_code():
    import io
    import zipfile

    bundle = app_bundle()
    assert len(bundle) < 1500
    assert set(zipfile.ZipFile(io.BytesIO(bundle)).namelist()) == {"pyproject.toml", ".info/CONTENT"}
    assert app_bundle() == bundle


@pytest.mark.skipif(not (PROGRAMS / "flower-supernode").exists(), reason="flower-supernode is not installed")
def test_flowers_supernode_comes_in_with_a_registered_key_and_ends_without(running, tmp_path):
    known, unknown = running.let_in("real"), new_key()
    nodes = {}
    for name, key in (("known", known), ("unknown", unknown)):
        pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption())
        (tmp_path / name).write_bytes(pem)
        arguments = [str(PROGRAMS / "flower-supernode"), "--root-certificates", str(running.house.authority)]
        arguments += ["--superlink", f"localhost:{running.house.port}", "--auth-supernode-private-key", str(tmp_path / name)]
        arguments += ["--host", "127.0.0.1", "--port", str(free_port()), "--isolation", "process"]
        environment = {
            **os.environ,
            "FLWR_HOME": str(tmp_path / "flwr"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
        }
        nodes[name] = subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        end, status = time.monotonic() + 60, ""
        while status != "online" and time.monotonic() < end:
            time.sleep(0.3)
            with control(running.house) as office:
                status = next(site.status for site in office.sites() if site.name == "real")
        assert status == "online"
        assert nodes["unknown"].wait(60) != 0
        assert nodes["known"].poll() is None
    finally:
        for node in nodes.values():
            node.terminate()
            node.communicate(timeout=30)


def test_after_a_restart_everybody_is_still_registered_and_nobody_is_left_over(running):
    key = running.let_in("lasting")
    family = running.family()
    assert len(family) >= 2
    assert running.stop(signal.SIGINT) == 0
    assert psutil.wait_procs(family, timeout=5)[1] == []
    with pytest.raises(Refused, match="is `konsil-study serve` running"), control(running.house) as office:
        office.sites()
    running.start()
    with running.hospital(key) as talk:
        assert activate(talk, key)


@pytest.mark.slow
def test_if_a_part_ends_all_end(running):
    superlink = next(child for child in running.family() if "fl_server.superlink" in child.cmdline())
    superlink.kill()
    assert running.process.wait(60) == 1  # whoever supervises it starts it anew
    assert "superlink ended by itself" in running.said()
    running.start()
    family = running.family()
    running.process.kill()  # it can tell nobody
    running.process.wait()
    assert psutil.wait_procs(family, timeout=30)[1] == []
