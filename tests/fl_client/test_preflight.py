"""`konsil-site check` and `join` against servers with real TLS: a stand-in for the coordinator's own endpoints, on loopback."""

import datetime
import http.server
import json
import socket
import ssl
import threading
from importlib.metadata import version

import pytest
from coordinator_stand_in import free_port, write_authority

from fl_client import reach
from fl_client.__main__ import main
from fl_client.halt import halt
from fl_client.joining import JoinRefused, join
from fl_client.keys import make_key, public_key
from fl_client.preflight import findings
from fl_client.site import Coordinator, DicomDoor, Page, Peer, Site


class Told(http.server.BaseHTTPRequestHandler):
    """Answers `/konsil/info` and `/konsil/join` with what the server was given."""

    def do_GET(self):
        now = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=self.server.ahead_s)
        self.tell(200, {**self.server.about, "time": now.isoformat()} if self.path == "/konsil/info" else {})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.asked.append((self.path, asked))
        good = self.path == "/konsil/join" and asked["token"] == "good"
        self.tell(200 if good else 403, {"name": asked["name"]} if good else {"reason": "this token\nis not one"})

    def tell(self, status, content):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


class Coordinating:
    """A server with TLS in a thread."""

    def __init__(self, folder, *, days=300):
        write_authority(folder, days=days)
        self.folder = folder
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Told)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "server.pem", folder / "server.key")
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True, do_handshake_on_connect=False)
        self.server.handle_error = lambda *arguments: None  # refused handshakes are what some tests are about
        self.server.about = {"konsil": version("konsil"), "flwr": version("flwr")}
        self.server.ahead_s, self.server.asked = 0.0, []
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()

    @property
    def address(self):
        return f"127.0.0.1:{self.server.server_address[1]}"

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def coordinating(tmp_path):
    made = Coordinating(tmp_path / "coordinator folder")
    yield made
    made.close()


@pytest.fixture
def clinic(hospitals, coordinating, monkeypatch):
    """A hospital with a coordinator; returns what `check` finds there, by what it is about."""
    monkeypatch.setattr(reach, "is_registered", lambda whom: True)  # Flower's side of it has its own test
    whom = Coordinator(
        address=coordinating.address, root_certificates=coordinating.folder / "ca.crt", key=hospitals.folder / "k"
    )
    site = hospitals.add("clinic", approve_all=False, noise_seed=None, coordinator=whom, minimum_cohort=2)
    make_key(whom.key, comment="clinic")
    site.key_file.parent.mkdir(parents=True, exist_ok=True)

    def look(**changes):
        changed = Site.load(hospitals.sites["clinic"]).model_copy(update=changes)
        found = {}
        for one in findings(changed, hospitals.sites["clinic"]):
            found.setdefault(one.what, []).append((one.level, one.text))
        return found

    look.site, look.path = site, hospitals.sites["clinic"]
    key = Site.load(look.path).key_file
    key.touch(mode=0o600)
    yield look
    key.unlink()


def only(found, level):
    return [text for lines in found.values() for one, text in lines if one == level]


def test_a_hospital_in_order_has_nothing_to_mend(clinic):
    found = clinic()
    assert only(found, "mend") == []
    assert only(found, "warn") == []
    assert {"settings", "keys", "disk", "books", "cohort", "device", "tls", "coordinator", "versions", "clock"} <= set(found)


def test_no_line_names_a_patient(clinic):
    said = " ".join(text for lines in clinic().values() for _, text in lines)
    patients = [entry.name for entry in (clinic.site.cohort_folder / "cases").iterdir()]
    assert len(patients) == 4
    assert not any(patient in said for patient in patients)


def test_secrets_that_others_can_read_have_to_be_mended(clinic):
    Site.load(clinic.path).key_file.chmod(0o640)
    clinic.path.chmod(0o666)
    clinic.site.coordinator.key.chmod(0o644)
    identity = Site.load(clinic.path).identity_folder
    identity.mkdir(mode=0o755)
    mend = only(clinic(), "mend")
    assert sum("chmod 600" in text for text in mend) == 3
    assert sum("chmod 700" in text for text in mend) == 1


def test_too_little_room_has_to_be_mended(clinic):
    arrivals = clinic.site.arrivals.model_copy(update={"min_free_gib": 1e9})
    assert "below arrivals.min_free_gib 1e+09" in only(clinic(arrivals=arrivals), "mend")[0]


def test_a_small_cohort_is_told_with_both_numbers(clinic):
    (text,) = only(clinic(minimum_cohort=20), "warn")
    assert text == "4 patients; with fewer than minimum_cohort 20 no study can be approved"
    (text,) = only(clinic(declared_size=50), "warn")
    assert text.startswith("declared_size is 50 in public, and 4 are inside")


def test_a_changed_ledger_has_to_be_mended(clinic):
    clinic.site.ledger_path.write_text('{"line": 1}\n')
    assert any("ledger" in text for text in only(clinic(), "mend"))


def test_a_device_that_is_not_there_has_to_be_mended(clinic):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert "torch finds no GPU here" in only(clinic(device="cuda:1"), "mend")[0]


def test_a_dicom_port_that_another_program_holds_has_to_be_mended(clinic):
    door = DicomDoor(port=free_port(), peers=(Peer(ae_title="PACS", address="127.0.0.1"),))
    assert clinic(dicom=door)["dicom"] == [("ok", f"127.0.0.1:{door.port} is free for KONSIL")]
    with socket.socket() as other:
        other.bind((door.host, door.port))
        other.listen()
        ((level, text),) = clinic(dicom=door)["dicom"]
    assert (level, "another program listens there" in text) == ("mend", True)


def test_the_switch_and_an_open_page_are_told(clinic):
    halt(clinic.site.folder, "stopped", who="Dr. Alpha")
    found = clinic(page=Page(host="0.0.0.0"))
    assert "konsil-site resume" in only(found, "mend")[0]
    assert "without TLS" in only(found, "warn")[0]


@pytest.mark.parametrize(
    ("ahead_s", "level"), [(-5.5, "mend"), (0.0, "ok"), (30.0, "warn"), (90.0, "mend")], ids=lambda value: str(value)
)
def test_a_clock_that_the_coordinator_would_refuse_has_to_be_mended(clinic, coordinating, ahead_s, level):
    coordinating.server.ahead_s = ahead_s  # the coordinator's; ours is then behind
    assert [one for one, _ in clinic()["clock"]] == [level]


@pytest.mark.parametrize(
    ("theirs", "level"), [({"konsil": "0.0.7"}, "mend"), ({"flwr": "1.40.0"}, "mend"), ({"flwr": "1.41.9"}, "ok")]
)
def test_both_sides_need_the_same_versions(clinic, coordinating, theirs, level):
    coordinating.server.about |= theirs
    ((found, text),) = clinic()["versions"]
    assert (found, next(iter(theirs.values())) in text) == (level, True)


def test_a_key_that_the_coordinator_does_not_know_has_to_be_mended(clinic, monkeypatch):
    monkeypatch.setattr(reach, "is_registered", lambda whom: False)
    assert "konsil-site join TOKEN" in only(clinic(), "mend")[0]


def test_an_authority_that_is_not_the_coordinators_has_to_be_mended(clinic, tmp_path):
    write_authority(tmp_path / "other")
    whom = clinic.site.coordinator.model_copy(update={"root_certificates": tmp_path / "other" / "ca.crt"})
    (text,) = only(clinic(coordinator=whom), "mend")
    assert "its certificate is not good" in text


def test_an_expired_certificate_has_to_be_mended_and_one_that_ends_soon_is_told(clinic, tmp_path):
    for days, level, word in ((-1, "mend", "expired"), (10, "warn", "has to be renewed")):
        other = Coordinating(tmp_path / f"in {days} days", days=days)
        try:
            whom = Coordinator(
                address=other.address, root_certificates=other.folder / "ca.crt", key=clinic.site.coordinator.key
            )
            assert any(word in text for text in only(clinic(coordinator=whom), level))
        finally:
            other.close()


def test_nobody_at_the_address_has_to_be_mended(clinic):
    whom = clinic.site.coordinator.model_copy(update={"address": f"127.0.0.1:{free_port()}"})
    (text,) = only(clinic(coordinator=whom), "mend")
    assert "can't be reached" in text


def test_a_server_that_is_no_coordinator_has_to_be_mended(clinic, coordinating, monkeypatch):
    monkeypatch.setattr(Told, "do_GET", lambda self: self.tell(200, ["hello"]))
    (text,) = only(clinic(), "mend")
    assert "is no coordinator of konsil" in text


def test_the_exit_status_says_whether_something_has_to_be_mended(clinic, capsys):
    assert main(["--site", str(clinic.path), "check"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("0 to mend, 0 to look at")
    clinic.path.chmod(0o666)
    assert main(["--site", str(clinic.path), "check"]) == 1


# -- join ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def new(tmp_path):
    """Settings of a hospital that nobody has joined yet, as `init` writes them, in a folder with a space."""
    path = tmp_path / "a new hospital" / "site.yaml"
    assert main(["--site", str(path), "init", "--name", "clinic", "--declared-size", "50"]) == 0
    return path


def test_joining_makes_a_key_registers_it_and_writes_the_coordinator_down(new, coordinating):
    before = new.read_text()
    assert join(new, token="good", address=coordinating.address, root_certificates=coordinating.folder / "ca.crt") == 0
    site = Site.load(new)
    assert new.read_text().startswith(before)  # comments and all
    assert site.coordinator.root_certificates.read_bytes() == (coordinating.folder / "ca.crt").read_bytes()
    ((path, asked),) = coordinating.server.asked
    assert (path, asked["name"], asked["token"]) == ("/konsil/join", "clinic", "good")
    assert asked["public_key"] == f"{public_key(site.coordinator.key)} clinic"
    assert site.coordinator.key.stat().st_mode & 0o777 == 0o600


def test_a_token_that_is_refused_is_told_in_the_coordinators_words_and_can_be_tried_again(new, coordinating):
    given = {"address": coordinating.address, "root_certificates": coordinating.folder / "ca.crt"}
    with pytest.raises(JoinRefused, match="403 this token is not one"):
        join(new, token="bad", **given)
    key = Site.load(new).coordinator.key.read_bytes()
    assert join(new, token="good") == 0
    assert Site.load(new).coordinator.key.read_bytes() == key


def test_a_token_goes_to_nobody_but_the_coordinator(new, coordinating, tmp_path):
    write_authority(tmp_path / "other")
    with pytest.raises(ValueError, match="certificate is not good.*the authority of another coordinator"):
        join(new, token="good", address=coordinating.address, root_certificates=tmp_path / "other" / "ca.crt")
    assert coordinating.server.asked == []


def test_without_a_token_the_key_is_printed_for_the_coordinators_person(new, capsys):
    command = ["--site", str(new), "join", "--coordinator", "127.0.0.1:1"]
    assert main(command) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("ecdsa-sha2-nistp384 ")
    assert main(["--site", str(new), "public-key"]) == 0
    assert capsys.readouterr().out.strip() == line


def test_another_machine_is_not_joined_without_certificates(new):
    with pytest.raises(ValueError, match="without TLS"):
        join(new, address="coordinator.example.org:443")
    assert Site.load(new).coordinator is None


def test_a_key_is_never_replaced(tmp_path):
    make_key(tmp_path / "key", comment="a")
    with pytest.raises(FileExistsError):
        make_key(tmp_path / "key", comment="a")


def test_flower_can_read_our_key(tmp_path):
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key

    line = make_key(tmp_path / "key", comment="clinic")
    key = load_ssh_private_key((tmp_path / "key").read_bytes(), None)  # as flower-supernode does
    assert isinstance(key.curve, ec.SECP384R1)
    assert line.split()[0] == "ecdsa-sha2-nistp384"
    assert (tmp_path / "key.pub").read_text() == line + "\n"
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
