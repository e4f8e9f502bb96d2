"""The gate on a real socket, before a server that writes down what reaches it."""

import asyncio
import base64
import contextlib
import datetime
import hashlib
import json
import os
import socket
import ssl
import time

import httpx
import pytest
import uvicorn
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import Message, Metadata
from flwr.proto.node_pb2 import Node
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.superlink.routers.fleet.router import router
from serving import running

from fl_server import certificates, serve
from fl_server.gate import _FLEET, Gate
from fl_server.house import House
from fl_server.replay import Replay, Stale, TooEarly

MIB = 1024**2


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Behind:
    """In the SuperLink's place: keeps every request, answers with what it got."""

    def __init__(self):
        self.seen = []
        self.status = 200

    async def __call__(self, scope, receive, send):
        body, more = b"", True
        while more:
            event = await receive()
            body, more = body + event.get("body", b""), event.get("more_body", False)
            if event["type"] == "http.disconnect":
                return
        self.seen.append((scope["method"], scope["raw_path"].decode(), dict(scope["headers"]), body))
        headers = [(b"content-type", b"application/protobuf"), (b"flwr-said", b"yes"), (b"set-cookie", b"a=b")]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def listening(house, gate):
    config = serve.gate_config(house, gate)
    config.port = 0
    return running(config)


def gate_before(port, **settings):
    none_idle = httpx.Limits(max_keepalive_connections=0)  # nobody would close them
    upstream = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, limits=none_idle)
    given = {"about": {"konsil": "1", "flwr": "2"}, "join": lambda body: (200, {"name": "clinic"})}
    return Gate(upstream, **{**given, "max_body_bytes": 8 * MIB, "request_timeout_s": 1.0, **settings})


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    return House.create(tmp_path_factory.mktemp("gate") / "house", hosts=["localhost"])


@pytest.fixture(scope="module")
def both(house):
    behind = Behind()
    quiet = {"log_level": "error", "lifespan": "off", "ws": "none", "timeout_graceful_shutdown": 1}
    with (
        running(uvicorn.Config(behind, port=0, **quiet)) as inner,
        listening(house, gate_before(inner)) as outer,
    ):
        yield behind, outer


@pytest.fixture
def behind(both):
    both[0].seen.clear()
    both[0].status = 200
    return both[0]


@pytest.fixture
def port(both):
    return both[1]


@pytest.fixture
def client(house, port, behind):
    trusted = ssl.create_default_context(cafile=str(house.authority))
    with httpx.Client(base_url=f"https://localhost:{port}", verify=trusted, trust_env=False) as client:
        yield client


def signed(key=b"a key", **more):
    """Headers as a SuperNode sends them; the gate looks at time and key, the SuperLink at the signature."""
    now = datetime.datetime.now(datetime.UTC).isoformat()
    return {
        "content-type": "application/protobuf",
        "flwr-public-key": base64.b64encode(key).decode(),
        "flwr-timestamp": now,
        "flwr-signature": base64.b64encode(os.urandom(16)).decode(),
        **more,
    }


def raw(house, port, request, *, wait_s=5.0):
    """What the gate answers to these bytes: everything until it closes the connection."""
    trusted = ssl.create_default_context(cafile=str(house.authority))
    with (
        socket.create_connection(("127.0.0.1", port), timeout=wait_s) as plain,
        trusted.wrap_socket(plain, server_hostname="localhost") as talk,
    ):
        talk.sendall(request)
        answer = b""
        with contextlib.suppress(ssl.SSLEOFError, ConnectionResetError):
            while piece := talk.recv(65536):
                answer += piece
        return answer


def test_a_hospitals_request_and_its_answer_pass_unchanged(client, behind):
    body = os.urandom(5 * MIB + 17)
    headers = signed()
    answer = client.post("/v1/fleet/push-object", content=body, headers=headers)
    assert (answer.status_code, answer.content == body, answer.headers["flwr-said"]) == (200, True, "yes")
    [(method, path, arrived, came)] = behind.seen
    assert (method, path, came == body) == ("POST", "/v1/fleet/push-object", True)
    assert {name: arrived[name.encode()].decode() for name in headers} == headers


def test_headers_that_are_not_a_hospitals_business_stay_outside(client, behind):
    strange = {"konsil-control-key": "x", "cookie": "x", "authorization": "x", "x-forwarded-for": "1.1.1.1", "te": "trailers"}
    answer = client.post("/v1/fleet/get-run", content=b"x", headers=signed(**strange))
    assert not set(strange) & {name.decode() for name in behind.seen[0][2]}
    assert "set-cookie" not in answer.headers
    assert "server" not in answer.headers


def test_every_call_of_flowers_own_hospital_api_fits_through(both):
    paths = [route.path.encode() for route in router.routes]
    assert b"/v1/fleet/pull-messages" in paths
    assert all(_FLEET.fullmatch(path) for path in paths)


@pytest.mark.parametrize(
    "target",
    [
        "/v1/control/start-run",
        "/v1/control/register-node",
        "/v1/runtime/acquire-task",
        "/docs",
        "/openapi.json",
        "/",
        "*",
        "/v1/fleet",
        "/v1/fleet/",
        "/v1/fleet/../control/start-run",
        "/v1/fleet/..%2fcontrol/start-run",
        "/v1/fleet/%2e%2e/control/start-run",
        "/v1/fleet/%2E%2E%2Fcontrol%2Fstart-run",
        "/v1/fleet/..;/control/start-run",
        "/v1/fleet/..\\control\\start-run",
        "/v1/fleet//pull-messages",
        "//v1/fleet/pull-messages",
        "/v1//fleet/pull-messages",
        "/./v1/fleet/pull-messages",
        "/V1/fleet/pull-messages",
        "/v1/FLEET/pull-messages",
        "/v1/fleet/Pull-Messages",
        "/v1/fleet/pull%2dmessages",
        "/v1/fleet/pull-messages/",
        "/v1/fleet/pull-messages?x=1",
        "/v1/fleet/pull-messages%00",
        "/v1/fleet/pull-messages%0d%0aX:%20y",
        "/v1/fleet/pull-messages#x",
        "/v1/fleet/pull-messages/../../control/start-run",
        "http://127.0.0.1/v1/control/start-run",
        "https://localhost/v1/fleet/pull-messages",
        "/health/../v1/control/start-run",
        "/konsil/../v1/control/start-run",
        "/konsil/join/",
    ],
)
def test_a_path_that_is_not_exactly_a_hospitals_is_not_found(house, port, behind, target):
    request = f"POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n"
    request += "".join(f"{name}: {value}\r\n" for name, value in signed().items())
    answer = raw(house, port, request.encode() + b"\r\n")
    assert answer.split(b" ", 2)[1] == b"404"
    assert behind.seen == []


@pytest.mark.parametrize(
    "request_line",
    [
        b"GET /v1/fleet/pull-messages HTTP/1.1",
        b"PUT /v1/fleet/pull-messages HTTP/1.1",
        b"CONNECT 127.0.0.1:80 HTTP/1.1",
        b"GET /konsil/join HTTP/1.1",
        b"POST /konsil/info HTTP/1.1",
        b"POST /health HTTP/1.1",
    ],
)
def test_another_method_is_not_found(house, port, behind, request_line):
    answer = raw(house, port, request_line + b"\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n")
    assert answer.split(b" ", 2)[1] == b"404"
    assert behind.seen == []


@pytest.mark.parametrize(
    ("framing", "status"),
    [
        (b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello", b"400"),
        (b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", b"411"),
        (b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", b"411"),
        (b"Content-Length: -5\r\n\r\n", b"400"),
        (b"Content-Length: 9999999999999\r\n\r\n", b"411"),
        (b"Content-Length: %d\r\n\r\n" % (8 * MIB + 1), b"413"),
        (b"\r\n", b"411"),
        (b"X: " + b"x" * 70_000 + b"\r\n\r\n", b"400 or 411"),  # refused for its size, or, come at once, for what it lacks
    ],
)
def test_a_body_that_is_too_long_or_unclear_is_refused_unread(house, port, behind, framing, status):
    head = b"POST /v1/fleet/get-run HTTP/1.1\r\nHost: localhost\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in signed().items()).encode()
    assert raw(house, port, head + framing).split(b" ", 2)[1] in status.split()
    assert behind.seen == []


def test_a_body_that_does_not_arrive_is_not_waited_for(house, port, behind):
    head = "POST /v1/fleet/get-run HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in signed().items())
    start = time.monotonic()
    assert raw(house, port, f"{head}\r\nhalf".encode()).split(b" ", 2)[1] == b"408"
    assert time.monotonic() - start < 4  # the time is one second
    assert behind.seen == []


def test_who_comes_in_and_says_nothing_is_shown_out(house, port, monkeypatch):
    monkeypatch.setattr(serve, "HEADERS_S", 0.3)
    start = time.monotonic()
    assert raw(house, port, b"") == b""
    assert raw(house, port, b"POST /v1/fleet/get-run HTTP/1.1\r\nHost: loc") == b""
    assert time.monotonic() - start < 4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"flwr-public-key": None}, "not signed"),
        ({"flwr-timestamp": None}, "not signed"),
        ({"flwr-timestamp": "yesterday"}, "can't be read"),
        ({"flwr-public-key": "&&&"}, "can't be read"),
        ({"flwr-timestamp": "2026-01-01T00:00:00"}, "no time zone"),
        ({"flwr-timestamp": "2026-01-01T00:00:00+00:00"}, "look at both clocks"),
        ({"flwr-timestamp": "2999-01-01T00:00:00+00:00"}, "look at both clocks"),
    ],
)
def test_a_request_without_a_fresh_signature_is_refused(client, behind, change, said):
    headers = {name: value for name, value in {**signed(), **change}.items() if value is not None}
    answer = client.post("/v1/fleet/get-run", content=b"x", headers=headers)
    assert (answer.status_code, behind.seen) == (401, [])
    assert said in answer.json()["reason"]


def test_a_signature_passes_once_whatever_it_comes_with(client, behind):
    headers = signed()
    assert client.post("/v1/fleet/pull-messages", content=b"1", headers=headers).status_code == 200
    for path, body in (("pull-messages", b"1"), ("push-object", b"2")):
        again = {**headers, "flwr-signature": "AAAA"}  # a key can make many signatures for one time
        answer = client.post(f"/v1/fleet/{path}", content=body, headers=again)
        assert (answer.status_code, "before" in answer.json()["reason"]) == (401, True)
    assert len(behind.seen) == 1
    assert client.post("/v1/fleet/pull-messages", content=b"1", headers=signed()).status_code == 200


@pytest.mark.parametrize(
    ("call", "body", "status"), [("push-messages", b"\xff", 400), ("pull-messages", b"x", 401), ("get-run", b"x", 404)]
)
def test_strangers_leave_nothing_in_the_gates_memory(house, call, body, status):
    behind, quiet = Behind(), {"log_level": "error", "lifespan": "off", "ws": "none"}
    behind.status = status
    replay = Replay()
    with running(uvicorn.Config(behind, port=0, **quiet)) as inner:
        gate = gate_before(inner, replay=replay)
        answers = [said_by(gate, f"/v1/fleet/{call}", body, signed(os.urandom(97))) for _ in range(3)]
    assert answers == [status] * 3
    assert not replay._seen


def test_of_a_request_that_reached_no_superlink_nothing_is_remembered():
    replay = Replay()
    assert said_by(gate_before(free_port(), replay=replay), "/v1/fleet/get-run", b"x", signed()) == 502
    assert not replay._seen


def said_by(gate, path, body, headers):
    """The status that the gate answers with, without a socket."""
    statuses = []

    async def receive():
        return {"type": "http.request", "body": body}

    async def send(event):
        statuses.append(event.get("status"))

    given = [(name.encode(), value.encode()) for name, value in {**headers, "content-length": str(len(body))}.items()]
    scope = {"type": "http", "method": "POST", "raw_path": path.encode(), "query_string": b"", "headers": given}
    asyncio.run(gate({**scope, "client": ("192.0.2.1", 1)}, receive, send))
    return statuses[0]


def test_a_key_longer_than_any_hospitals_is_refused_before_it_is_looked_at(client, behind):
    answer = client.post("/v1/fleet/get-run", content=b"x", headers=signed(os.urandom(400)))
    assert (answer.status_code, behind.seen) == (401, [])
    assert "longer than a hospital's" in answer.json()["reason"]
    key = ec.generate_private_key(ec.SECP521R1()).public_key()  # the longest that Flower takes
    answer = client.post("/v1/fleet/get-run", content=b"x", headers=signed(public_key_to_bytes(key)))
    assert answer.status_code == 200


def test_what_the_gate_holds_whole_is_short(client, behind):
    answer = client.post("/v1/fleet/push-messages", content=bytes(MIB + 1), headers=signed())
    assert (answer.status_code, behind.seen) == (413, [])


def test_a_call_that_flower_has_not_got_is_not_found(client, behind):
    assert client.post("/v1/fleet/create-node", content=b"x", headers=signed()).status_code == 404
    assert behind.seen == []


def test_what_was_signed_before_the_gate_started_has_to_be_signed_anew():
    clock = [1_000_000.0]
    key = base64.b64encode(b"a hospital's").decode()
    at = [datetime.datetime.fromtimestamp(clock[0] + late, datetime.UTC).isoformat() for late in (-10, 0)]
    replay = Replay(lambda: clock[0])  # started anew: it can't know what the one before has seen
    with pytest.raises(TooEarly, match="started since"):
        replay.admit(key, at[0])
    replay.admit(key, at[1])
    assert said_by(gate_before(free_port()), "/v1/fleet/get-run", b"x", signed(**{"flwr-timestamp": minutes_ago(2)})) == 503


def minutes_ago(minutes):
    return (datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=minutes)).isoformat()


def test_what_the_superlink_does_not_know_is_not_remembered():
    clock = [1_000_000.0]
    replay = Replay(lambda: clock[0])
    key = base64.b64encode(b"stranger").decode()
    signed_at = datetime.datetime.fromtimestamp(clock[0], datetime.UTC).isoformat()
    noted = replay.admit(key, signed_at)
    with pytest.raises(Stale, match="before"):
        replay.admit(key, signed_at)
    replay.drop(noted)
    replay.admit(key, signed_at)
    clock[0] += 304
    with pytest.raises(Stale, match="before"):  # as long as a SuperLink would take it
        replay.admit(key, signed_at)
    clock[0] += 2
    with pytest.raises(Stale, match="clocks"):
        replay.admit(key, signed_at)
    clock[0] += 10
    replay.admit(key, datetime.datetime.fromtimestamp(clock[0], datetime.UTC).isoformat())
    assert len(replay._seen) == 1


def push_by(node, *, says):
    message = Message(metadata=Metadata(src_node_id=says, message_id="m"))
    return PushMessagesRequest(node=Node(node_id=node), messages_list=[message]).SerializeToString()


def test_a_hospital_answers_in_its_own_name_only(client, behind):
    assert client.post("/v1/fleet/push-messages", content=push_by(7, says=7), headers=signed()).status_code == 200
    answer = client.post("/v1/fleet/push-messages", content=push_by(7, says=8), headers=signed())
    assert (answer.status_code, answer.json()) == (403, {"reason": "a message in another hospital's name"})
    assert client.post("/v1/fleet/push-messages", content=b"\xff\xff", headers=signed()).status_code == 400
    assert len(behind.seen) == 1


def test_other_contents_than_flowers_are_refused(client, behind):
    headers = signed() | {"content-type": "application/json"}
    assert client.post("/v1/fleet/get-run", content=b"{}", headers=headers).status_code == 415
    assert behind.seen == []


def test_anybody_may_know_versions_and_the_time_and_nothing_else(client, behind):
    told = client.get("/konsil/info").json()
    assert set(told) == {"konsil", "flwr", "time"}
    theirs = datetime.datetime.fromisoformat(told["time"])
    assert abs((datetime.datetime.now(datetime.UTC) - theirs).total_seconds()) < 5
    assert behind.seen == []


def test_what_the_gate_tells_of_itself_is_its_certificate(house, port):
    told = serve.about(house)
    trusted = ssl.create_default_context(cafile=str(house.authority))
    with (
        socket.create_connection(("127.0.0.1", port)) as plain,
        trusted.wrap_socket(plain, server_hostname="localhost") as talk,
    ):
        shown = talk.getpeercert(binary_form=True)
    assert told["certificate_sha256"] == hashlib.sha256(shown).hexdigest()
    assert set(told) == {"konsil", "flwr", "certificate_sha256"}


def test_health_is_that_of_the_superlink(client, behind, house):
    assert client.get("/health").status_code == 200
    assert client.head("/health").status_code == 200
    with listening(house, gate_before(9)) as port:  # nobody listens there
        trusted = ssl.create_default_context(cafile=str(house.authority))
        with httpx.Client(base_url=f"https://localhost:{port}", verify=trusted, trust_env=False) as talk:
            assert talk.get("/health").status_code == 503
            answer = talk.post("/v1/fleet/get-run", content=b"x", headers=signed())
            assert (answer.status_code, answer.json()["reason"]) == (502, "the SuperLink does not answer")


def test_a_join_request_is_short(client):
    assert client.post("/konsil/join", content=b"x" * 8193).status_code == 413
    assert client.post("/konsil/join", content=b"{}").json() == {"name": "clinic"}


def test_no_connection_is_upgraded(house, port, behind):
    lines = ["GET /v1/fleet/pull-messages HTTP/1.1", "Host: localhost", "Connection: Upgrade", "Upgrade: websocket"]
    lines += ["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13", "", ""]
    assert raw(house, port, "\r\n".join(lines).encode()).split(b" ", 2)[1] == b"404"
    assert behind.seen == []


def test_plain_http_and_old_tls_do_not_get_in(house, port):
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://127.0.0.1:{port}/health", timeout=5.0, trust_env=False)
    assert serve.gate_config(house, lambda: None).ssl.minimum_version == ssl.TLSVersion.TLSv1_2


def test_another_authority_is_not_believed(port, tmp_path):
    other, _ = certificates.make_authority("other")
    certificates.write(other, tmp_path / "other.crt")
    with (
        httpx.Client(verify=ssl.create_default_context(cafile=str(tmp_path / "other.crt")), trust_env=False) as talk,
        pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"),
    ):
        talk.get(f"https://localhost:{port}/health")


def test_another_name_than_the_certificates_is_not_believed(house, port):
    trusted = ssl.create_default_context(cafile=str(house.authority))
    with socket.create_connection(("127.0.0.1", port)) as plain, pytest.raises(ssl.SSLCertVerificationError, match="Hostname"):
        trusted.wrap_socket(plain, server_hostname="fl.example.org")


def test_an_expired_certificate_is_not_believed(tmp_path):
    house = House.create(tmp_path / "house", hosts=["localhost"])
    authority, key = certificates.read(house.authority), certificates.read_key(house.authority_key)
    past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=30)
    old, old_key = certificates.make_server(["localhost"], authority, key, start=past, days=29)
    certificates.write(old, house.certificate)
    certificates.write_key(old_key, house.key)
    trusted = ssl.create_default_context(cafile=str(house.authority))
    with (
        listening(house, gate_before(9)) as port,
        httpx.Client(verify=trusted, trust_env=False) as talk,
        pytest.raises(httpx.ConnectError, match="certificate has expired"),
    ):
        talk.get(f"https://localhost:{port}/health")


def test_what_is_refused_is_logged_without_its_secrets(client, behind, caplog):
    token = "a-token-that-nobody-may-read"
    client.post("/konsil/joined", content=json.dumps({"token": token}))
    client.post("/v1/fleet/get-run", content=token.encode(), headers=signed(**{"flwr-timestamp": "yesterday"}))
    assert "refused" in caplog.text
    assert token not in caplog.text
    assert "flwr-signature" not in caplog.text
