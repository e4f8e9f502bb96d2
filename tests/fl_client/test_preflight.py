"""`konsil-site check` and `join` against servers with real TLS: a stand-in for the coordinator's own endpoints, on loopback."""

import datetime
import http.server
import json
import os
import socket
import ssl
import threading
from importlib.metadata import version

import pytest
from coordinator_stand_in import free_port, write_authority
from cryptography.hazmat.primitives import serialization

from fl_client import crashes, ports, reach
from fl_client.__main__ import main
from fl_client.daemon import _only_one
from fl_client.halt import halt
from fl_client.intake.incoming import Incoming
from fl_client.intake.receive import DicomReceiver
from fl_client.joining import JoinRefused, join
from fl_client.keys import make_key, public_key
from fl_client.preflight import findings
from fl_client.site import Arrivals, Coordinator, DicomDoor, Page, Peer, Site, TransportSecurity


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
    key.write_bytes(b"0123456789abcdef")
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


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """Files for mutual TLS: `good`, and what may be wrong with each."""
    folder = tmp_path_factory.mktemp("tls")
    write_authority(folder / "own")
    write_authority(folder / "other")
    private = serialization.load_pem_private_key((folder / "own" / "server.key").read_bytes(), None)
    locked = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"secret")
    )
    (folder / "locked.key").write_bytes(locked)
    (folder / "text.crt").write_text("no certificate")
    good = TransportSecurity(
        certificate=folder / "own" / "server.pem", key=folder / "own" / "server.key", authority=folder / "own" / "ca.crt"
    )
    good.key.chmod(0o600)
    return {
        "good": good,
        "no certificate": good.model_copy(update={"certificate": folder / "none.crt"}),
        "no authority": good.model_copy(update={"authority": folder / "none.crt"}),
        "another key": good.model_copy(update={"key": folder / "other" / "server.key"}),
        "a locked key": good.model_copy(update={"key": folder / "locked.key"}),
        "text": good.model_copy(update={"authority": folder / "text.crt"}),
    }


PACS = (Peer(ae_title="PACS", address="127.0.0.1"),)
REFUSED_DOORS = {
    "a peer's name": (
        {"peers": (Peer(ae_title="PACS", address="pacs.clinic.example"),)},
        "'pacs.clinic.example' is no IP address",
    ),
    "our own name": ({"host": "localhost", "peers": PACS}, "dicom.host: 'localhost' is no IP address"),
    "no certificate": ({"tls": "no certificate"}, "none.crt is missing"),
    "no authority": ({"tls": "no authority"}, "dicom.tls.authority .*none.crt is missing"),
    "another key": ({"tls": "another key"}, "are no certificate and its own key"),
    "a locked key": ({"tls": "a locked key"}, "locked with a password"),
    "text": ({"tls": "text"}, "text.crt holds no certificates"),
}


@pytest.mark.parametrize("which", REFUSED_DOORS)
def test_what_the_door_would_refuse_when_it_opens_has_to_be_mended_in_the_same_words(clinic, certificates, tmp_path, which):
    given, words = REFUSED_DOORS[which]
    given = {**given, "tls": certificates[given["tls"]]} if "tls" in given else given
    door = DicomDoor(port=free_port(), **given)
    with pytest.raises(ValueError, match=words) as refusal:
        DicomReceiver(door, Incoming(tmp_path / "identity", clean=tmp_path / "clean"))
    assert ("mend", f"{refusal.value}; the intake does not start with it") in clinic(dicom=door)["dicom"]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "0.0.0.0"])
def test_a_door_that_is_in_order_by_the_check_opens(clinic, certificates, tmp_path, host):
    door = DicomDoor(port=free_port(), host=host, peers=PACS, tls=certificates["good"])
    assert clinic(dicom=door)["dicom"] == [("ok", f"{host}:{door.port} is free for KONSIL")]
    receiver = DicomReceiver(door, Incoming(tmp_path / "identity", clean=tmp_path / "clean"))
    receiver.start()
    try:
        ((level, text),) = clinic(dicom=door)["dicom"]  # nothing of ours is running, as far as the settings' folder tells
        assert (level, "Address already in use" in text) == ("mend", True)
    finally:
        receiver.stop()


def test_an_archive_that_can_never_reach_the_door_is_told(clinic):
    peers = (Peer(ae_title="PACS", address="10.0.0.5"), Peer(ae_title="HERE", address="127.0.0.1"))
    door = DicomDoor(port=free_port(), peers=peers)
    ((warned, text), (free, _)) = clinic(dicom=door)["dicom"]
    assert (warned, free) == ("warn", "ok")
    assert f"only this machine can reach 127.0.0.1:{door.port}, and not 10.0.0.5 of dicom.peers" in text
    assert len(clinic(dicom=door.model_copy(update={"host": "0.0.0.0"}))["dicom"]) == 1


def test_an_intake_that_runs_while_its_port_is_free_has_to_be_mended_and_its_log_is_named(clinic, monkeypatch):
    door = DicomDoor(port=free_port(), peers=PACS)
    monkeypatch.setattr(ports, "STARTING_S", 1e9)
    monkeypatch.setattr(crashes, "own_log", lambda: "/var/log/intake.log")
    with _only_one(Site.load(clinic.path), "intake"):
        ((level, text),) = clinic(dicom=door)["dicom"]
        assert (level, "does not listen on" in text and text.endswith("yet")) == ("warn", True)
        monkeypatch.setattr(ports, "STARTING_S", 0.0)
        ((level, text),) = clinic(dicom=door)["dicom"]
    assert level == "mend"
    assert text == f"the intake runs, but nobody listens on 127.0.0.1:{door.port}; its log says why: /var/log/intake.log"


def test_a_free_port_of_a_part_that_may_have_a_network_of_its_own_is_told_and_no_more(clinic):
    page = Page(port=free_port())
    with _only_one(clinic.site, "page"):
        told = {"pid": os.getpid(), "started": 0.0, "log": "/var/log/page.log"}  # in another container: no process of ours
        (clinic.site.folder / "run" / "page.pid").write_text(json.dumps(told))
        ((level, text),) = clinic(page=page)["page"]
    assert (level, "right for a container with a network of its own" in text) == ("warn", True)
    assert text.endswith("/var/log/page.log")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_the_trainers_user_is_not_told_of_files_that_are_the_intakes_alone(clinic, certificates):
    clinic.site.folder.chmod(0o2770)
    os.chown(clinic.path, 62001, -1)
    Site.load(clinic.path).key_file.write_bytes(b"short")
    door = DicomDoor(port=free_port(), peers=PACS, tls=certificates["no authority"])
    found = clinic(dicom=door)
    assert found["dicom"] == [("ok", f"127.0.0.1:{door.port} is free for KONSIL")]
    assert not any("none.crt" in text or "5 bytes" in text for text in only(found, "mend"))
    with socket.create_server((door.host, door.port)):
        ((level, text),) = clinic(dicom=door)["dicom"]
    assert (level, "the intake's user can ask it" in text) == ("ok", True)


def test_series_rules_and_label_maps_are_read_and_not_only_there(clinic, tmp_path):
    rules, labels = tmp_path / "series.yaml", tmp_path / "labels.yaml"
    missing = Arrivals(series_rules=rules, labels=str(labels))
    assert [level for level, _ in clinic(arrivals=missing)["arrivals"]] == ["mend", "mend"]
    rules.write_text("rules: [{name: lge, wrods: [lge]}]\n")
    labels.write_text("structures: {wall: {value: 300}}\n")
    told = only(clinic(arrivals=missing), "mend")
    assert ["arrivals.series_rules: " in told[0], "wrods: no such setting" in told[0]] == [True, True]
    assert ["arrivals.labels: " in told[1], "structures.wall.value" in told[1]] == [True, True]
    (text,) = only(clinic(arrivals=Arrivals(labels="cardaic")), "mend")
    assert text.startswith("arrivals.labels: no label map cardaic; conf/labels holds cardiac")
    assert only(clinic(arrivals=Arrivals(labels="cardiac")), "mend") == []


def test_a_file_of_labels_is_looked_for_beside_the_settings_wherever_the_daemon_was_started(clinic):
    clinic.path.write_text(clinic.path.read_text() + "arrivals: {labels: own.yaml, series_rules: series.yaml}\n")
    told = Site.load(clinic.path).arrivals
    assert (told.labels, told.series_rules) == (str(clinic.path.parent / "own.yaml"), clinic.path.parent / "series.yaml")


def test_a_key_for_pseudonyms_that_is_too_short_has_to_be_mended(clinic):
    Site.load(clinic.path).key_file.write_bytes(b"short")
    (text,) = only(clinic(), "mend")
    assert "the pseudonym key has 5 bytes; at least 16" in text


def test_a_page_whose_port_another_program_holds_has_to_be_mended(clinic):
    page = Page(port=free_port())
    assert clinic(page=page)["page"] == [("ok", f"127.0.0.1:{page.port} is free for the page")]
    with socket.create_server((page.host, page.port)):
        ((level, text),) = clinic(page=page)["page"]
    assert (level, text.startswith(f"the page can't listen on 127.0.0.1 port {page.port}")) == ("mend", True)


def test_a_part_that_ends_again_and_again_is_told_instead_of_running(clinic, monkeypatch):
    monkeypatch.setattr(crashes, "own_log", lambda: "journalctl -u konsil-site.service")
    with _only_one(clinic.site, "trainer"):
        crashes.note(clinic.site.folder / "run", "worker", 1)
        assert [level for level, _ in clinic()["running"]] == ["ok"]  # once is nothing yet
        crashes.note(clinic.site.folder / "run", "worker", -9)
        ((level, text),) = clinic()["running"]
    assert level == "mend"
    assert text.startswith("the worker has ended 2 times since 2")
    assert text.endswith("with signal SIGKILL; its log: journalctl -u konsil-site.service")


def test_a_name_that_was_changed_after_the_key_was_made_has_to_be_mended(clinic):
    assert only(clinic(), "mend") == []
    (text,) = only(clinic(name="clinic-north"), "mend")
    assert "is clinic-north, but our key was made for clinic" in text
    assert "konsil-study unregister clinic and konsil-study join-token clinic-north" in text


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
    with pytest.raises(ValueError, match=r"certificate is not good.*the authority of another coordinator"):
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
