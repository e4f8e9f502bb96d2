"""The files in deploy/ for a coordinator, checked by the programs that read them, where those are installed."""

import shutil
import ssl
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import uvicorn
from test_gate import Behind, free_port, gate_before, listening, raw, running, signed

from fl_server.house import House

DEPLOY = Path(__file__).parents[2] / "deploy"


@pytest.fixture(scope="module")
def proxied(tmp_path_factory):
    """nginx with the shipped file, before a gate without TLS, before a server that keeps what reaches it."""
    if not (nginx := shutil.which("nginx")):
        pytest.skip("nginx is not installed")
    folder = tmp_path_factory.mktemp("nginx")
    house = House.create(folder / "house", hosts=["localhost"], tls=False)
    behind = Behind()
    quiet = {"log_level": "error", "lifespan": "off", "ws": "none", "timeout_graceful_shutdown": 1}
    with running(uvicorn.Config(behind, port=0, **quiet)) as inner, listening(house, gate_before(inner)) as gate:
        public = free_port()
        site = (DEPLOY / "nginx.conf").read_text()
        for old, new in (
            ("127.0.0.1:8443", f"127.0.0.1:{gate}"),
            ("listen 443 ssl", f"listen 127.0.0.1:{public} ssl"),
            ("/etc/konsil/server.crt", str(house.certificate)),
            ("/etc/konsil/server.key", str(house.key)),
            ("server_name fl.example.org", "server_name localhost"),
        ):
            assert old in site
            site = site.replace(old, new)
        paths = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        head = f"pid {folder}/pid; error_log {folder}/error.log; daemon off; events {{}}"
        (folder / "nginx.conf").write_text(f"{head} http {{ access_log {folder}/access.log; {paths} {site} }}")
        process = subprocess.Popen([nginx, "-c", str(folder / "nginx.conf"), "-p", str(folder)])
        trusted = ssl.create_default_context(cafile=str(house.authority))
        try:
            with httpx.Client(base_url=f"https://localhost:{public}", verify=trusted, trust_env=False) as client:
                end = time.monotonic() + 20
                while True:
                    try:
                        client.get("/health")
                        break
                    except httpx.ConnectError:
                        if time.monotonic() > end:
                            raise
                        time.sleep(0.1)
                yield client, behind, (house, public)
        finally:
            process.terminate()
            process.wait(20)


def test_through_nginx_hospitals_reach_their_api_and_konsils_own(proxied):
    client, behind, _ = proxied
    behind.seen.clear()
    headers, body = signed(), bytes(5 * 1024**2)
    answer = client.post("/v1/fleet/push-object", content=body, headers=headers)
    assert (answer.status_code, answer.content == body) == (200, True)
    assert {name: behind.seen[0][2][name.encode()].decode() for name in headers} == headers
    assert client.get("/konsil/info").status_code == client.get("/health").status_code == 200
    assert client.post("/konsil/join", content=b"{}").json() == {"name": "clinic"}


@pytest.mark.parametrize(
    "target",
    [
        "/v1/control/start-run",
        "/v1/runtime/acquire-task",
        "/docs",
        "/openapi.json",
        "/v1/fleet/../control/start-run",
        "/v1/fleet/%2e%2e/control/start-run",
        "/v1/fleet/..%2fcontrol/start-run",
        "/v1/fleet/../fleet/pull-messages",
        "/v1/fleet/pull%2dmessages",
        "//v1/fleet/pull-messages",
        "/V1/fleet/pull-messages",
    ],
)
def test_through_nginx_nothing_else_is_reached(proxied, target):
    _, behind, (house, public) = proxied
    behind.seen.clear()
    request = f"POST {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n"
    request += "".join(f"{name}: {value}\r\n" for name, value in signed().items())
    assert raw(house, public, request.encode() + b"\r\n").split(b" ", 2)[1] == b"404"
    assert behind.seen == []


def test_through_nginx_a_long_body_is_refused(proxied):
    client, behind, _ = proxied
    behind.seen.clear()
    answer = client.post("/v1/fleet/push-object", content=bytes(17 * 1024**2), headers=signed())
    assert (answer.status_code, behind.seen) == (413, [])


def test_systemd_accepts_the_unit(tmp_path):
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    unit = (DEPLOY / "konsil-coordinator.service").read_text()
    program = Path(sys.executable).parent / "konsil-study"
    assert unit.count("/opt/konsil/.venv/bin/konsil-study ") == 2  # where `make setup` puts it in /opt/konsil
    installed = unit.replace("/opt/konsil/.venv/bin/konsil-study", str(program)).replace("User=konsil", "User=root")
    (tmp_path / "konsil-coordinator.service").write_text(installed)
    command = ["systemd-analyze", "verify", "--man=no", str(tmp_path / "konsil-coordinator.service")]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "konsil-coordinator" not in said.stderr
    assert said.returncode == 0, said.stderr


def test_compose_accepts_the_file():
    docker = shutil.which("docker")
    if not docker or subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("docker compose is not installed")
    command = [docker, "compose", "-f", str(DEPLOY / "coordinator.compose.yaml"), "config", "--quiet"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert said.returncode == 0, said.stderr
