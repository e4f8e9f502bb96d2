from __future__ import annotations

import contextlib
import gc
import logging
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
from dicom_peers import SENDER, answers, certificates, image, needs, open_door, originals, storescu, write_images
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage
from pynetdicom import AE
from pynetdicom import _config as pynetdicom_config
from pynetdicom.sop_class import MRImageStorage as MR
from pynetdicom.sop_class import Verification

from fl_client.intake import receive
from fl_client.intake.incoming import Incoming
from fl_client.intake.receive import DicomReceiver, contexts
from fl_client.site import DicomDoor, Peer, TransportSecurity
from simulation.federation.archive import dcmtk


@pytest.fixture
def identity(tmp_path: Path) -> Path:
    return tmp_path / "identity"


@pytest.fixture
def door(identity: Path) -> Iterator[DicomReceiver]:
    with open_door(identity) as receiver:
        yield receiver


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images", 3)


@pytest.fixture(autouse=True)
def _pynetdicoms_senders_leave_sockets_to_the_garbage_collector() -> Iterator[None]:
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def pixels(path: Path) -> bytes:
    return bytes(pydicom.dcmread(path).PixelData)


def associate(port: int, *, title: str = "PACS", source: str = "127.0.0.1") -> Any:
    entity = AE(title)
    entity.add_requested_context(Verification)
    entity.add_requested_context(MR, ExplicitVRLittleEndian)
    return entity.associate("127.0.0.1", port, ae_title="KONSIL", bind_address=(source, 0))


@needs("storescu")
def test_images_that_dcmtk_sends_lie_here_byte_for_byte(door: DicomReceiver, identity: Path, images: Path) -> None:
    sent = storescu(door.port, images)
    assert (sent.returncode, answers(sent)) == (0, 3), sent.stderr
    here = {str(pydicom.dcmread(path).SOPInstanceUID): path for path in originals(identity)}
    for path in images.iterdir():
        original, kept = pydicom.dcmread(path), here[str(pydicom.dcmread(path).SOPInstanceUID)]
        assert pydicom.dcmread(kept) == original
        meta = pydicom.dcmread(kept).file_meta
        assert (meta.TransferSyntaxUID, meta.SourceApplicationEntityTitle) == (ExplicitVRLittleEndian, "PACS")


@needs("echoscu")
def test_c_echo_is_answered(door: DicomReceiver) -> None:
    command = [str(dcmtk("echoscu")), "-aet", "PACS", "-aec", "KONSIL", "127.0.0.1", str(door.port)]
    assert subprocess.run(command, timeout=30).returncode == 0


def test_pynetdicoms_own_sender_is_served_too(door: DicomReceiver, identity: Path) -> None:
    line = associate(door.port)
    assert line.send_c_echo().Status == 0x0000
    assert [line.send_c_store(image(number)).Status for number in (1, 2)] == [0x0000, 0x0000]
    line.release()
    assert len(originals(identity)) == 2


def peak_mebibytes() -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) // 1024


@needs("storescu")
def test_a_large_image_is_received_with_one_copy_of_it_in_memory(door: DicomReceiver, identity: Path, tmp_path: Path) -> None:
    mebibytes = 64
    several = {"NumberOfFrames": mebibytes * 2, "Rows": 512, "Columns": 512, "PixelData": bytes(mebibytes * 2**20)}
    folder = write_images(tmp_path / "images", 1, SOPClassUID="1.2.840.10008.5.1.4.1.1.4.1", **several)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = peak_mebibytes()
    assert answers(storescu(door.port, folder)) == 1
    assert originals(identity)[0].stat().st_size > mebibytes * 2**20
    assert peak_mebibytes() - before < 1.9 * mebibytes  # it grows piece by piece, and two would be one too many


@needs("storescu")
@pytest.mark.parametrize(("sender", "called", "why"), [("STRANGER", "KONSIL", "Calling"), ("PACS", "OTHER", "Called")])
def test_a_wrong_title_is_refused_with_the_reason(
    door: DicomReceiver, identity: Path, images: Path, sender: str, called: str, why: str, caplog: Any
) -> None:
    sent = storescu(door.port, images, sender=sender, called=called)
    assert sent.returncode != 0
    assert f"{why} AE Title Not Recognized" in sent.stdout + sent.stderr
    assert (originals(identity), door.counts["refused"]) == ([], 1)
    assert "refused a caller from 127.0.0.1" in caplog.text
    assert sender not in caplog.text.replace("STORESCU", "")


def test_a_right_title_from_another_address_is_refused(identity: Path, caplog: Any) -> None:
    peers = (SENDER, Peer(ae_title="CT1", address="127.0.0.2"))
    with open_door(identity, peers=peers) as door:
        assert associate(door.port, title="CT1", source="127.0.0.1").is_rejected
        assert associate(door.port, title="PACS", source="127.0.0.2").is_rejected
        accepted = associate(door.port, title="CT1", source="127.0.0.2")
        assert accepted.is_established
        accepted.release()
    assert door.counts["refused"] == 2


def test_an_address_that_is_not_listed_is_not_listened_to(door: DicomReceiver, caplog: Any) -> None:
    lines = [associate(door.port, source="127.0.0.3") for _ in range(3)]
    assert [line.is_established for line in lines] == [False] * 3
    said = "refused a connection from 127.0.0.3, which is not among dicom.peers"
    assert (door.counts["refused"], caplog.text.count(said)) == (3, 1)  # who knocks again doesn't fill the log


def test_a_host_name_among_the_peers_is_refused_in_words(identity: Path) -> None:
    settings = DicomDoor(peers=(Peer(ae_title="PACS", address="pacs.clinic"),))
    with pytest.raises(ValueError, match=r"'pacs\.clinic' is no IP address"):
        DicomReceiver(settings, Incoming(identity, clean=identity))


def test_more_associations_than_allowed_are_turned_away_and_later_ones_served(identity: Path) -> None:
    with open_door(identity, max_associations=2) as door:
        lines = [associate(door.port) for _ in range(2)]
        assert [line.is_established for line in lines] == [True, True]
        third = associate(door.port)
        assert third.is_rejected
        reason = third.acceptor.primitive
        assert (reason.result, reason.result_source, reason.diagnostic) == (2, 3, 2)  # transient, local limit exceeded
        for line in lines:
            line.release()
        until = time.monotonic() + 5
        while not door.is_idle and time.monotonic() < until:
            time.sleep(0.02)
        again = associate(door.port)
        assert again.is_established
        again.release()


@pytest.mark.parametrize("drips", [False, True])
def test_a_caller_that_freezes_in_the_middle_of_a_message_gives_its_place_back(
    identity: Path, monkeypatch: Any, drips: bool
) -> None:
    monkeypatch.setattr(receive, "IDLE_S", 0.5)
    with open_door(identity, max_associations=1) as door:
        frozen = associate(door.port)
        frozen.dul.socket.socket.sendall(struct.pack(">BBI", 4, 0, 50_000) + bytes(100))  # P-DATA-TF (PS3.8 table 9-22)
        until = time.monotonic() + 10
        while not door.is_idle and time.monotonic() < until:
            time.sleep(0.2)
            if drips:
                with contextlib.suppress(OSError):
                    frozen.dul.socket.socket.send(b"\0")
        assert door.is_idle
        again = associate(door.port)
        assert again.is_established
        again.release()
        frozen.abort()


@needs("storescu")
def test_images_sent_again_succeed_and_other_bytes_under_a_known_uid_are_told_and_kept(
    door: DicomReceiver, identity: Path, images: Path
) -> None:
    storescu(door.port, images)
    before = {path: path.stat().st_mtime_ns for path in originals(identity)}
    assert answers(storescu(door.port, images)) == 3
    image(2, PatientName="Brunnthaler^Bertrand").save_as(images / "0002.dcm", enforce_file_format=True)
    sent = storescu(door.port, images)
    assert sent.returncode == 0  # a warning does not stop the sender
    assert (answers(sent), answers(sent, "Warning")) == (2, 1)
    assert {path: path.stat().st_mtime_ns for path in originals(identity) if path in before} == before
    (apart,) = set(originals(identity)) - set(before)
    assert pydicom.dcmread(apart).PatientName == "Brunnthaler^Bertrand"
    assert dict(door.counts) == {"stored": 3, "again": 5, "conflict": 1}


COMPRESSED = {
    "dcmcjpeg": (["dcmcjpeg", "+e1"], "-xs", "1.2.840.10008.1.2.4.70"),
    "dcmcjpls": (["dcmcjpls", "+el"], "-xt", "1.2.840.10008.1.2.4.80"),
    "dcmcrle": (["dcmcrle"], "-xr", "1.2.840.10008.1.2.5"),
    "deflated": (["dcmconv", "+td"], "-xd", "1.2.840.10008.1.2.1.99"),
    "big endian": (["dcmconv", "+tb"], "-xb", "1.2.840.10008.1.2.2"),
    "implicit": (["dcmconv", "+ti"], "-xi", "1.2.840.10008.1.2"),
}


@needs("storescu", "dcmcjpeg", "dcmconv")
@pytest.mark.parametrize("name", COMPRESSED)
def test_every_transfer_syntax_arrives_as_it_was_sent(door: DicomReceiver, identity: Path, tmp_path: Path, name: str) -> None:
    convert, propose, syntax = COMPRESSED[name]
    if shutil.which(convert[0]) is None:
        pytest.skip(f"not installed here: {convert[0]}")
    source, sent_file = tmp_path / "one.dcm", tmp_path / "converted.dcm"
    image(size=64).save_as(source, enforce_file_format=True)
    subprocess.run([*convert, str(source), str(sent_file)], check=True, capture_output=True)
    sent = storescu(door.port, sent_file, propose)
    assert sent.returncode == 0, sent.stderr
    (kept,) = [pydicom.dcmread(path) for path in originals(identity)]
    assert kept.file_meta.TransferSyntaxUID == syntax
    assert bytes(kept.PixelData) == pixels(sent_file)


def test_storage_classes_are_taken_in_every_transfer_syntax_that_the_standard_names() -> None:
    offered = {context.abstract_syntax: set(context.transfer_syntax) for context in contexts()}
    enhanced_mr, segmentation, structures = (f"1.2.840.10008.5.1.4.1.1.{end}" for end in ("4.1", "66.4", "481.3"))
    htj2k, jpeg2000 = "1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.90"
    for kind in (MRImageStorage, enhanced_mr, segmentation, structures):
        assert {ExplicitVRLittleEndian, jpeg2000, htj2k} <= offered[kind]


def secured(files: dict[str, Path]) -> TransportSecurity:
    return TransportSecurity(certificate=files["ours.crt"], key=files["ours.key"], authority=files["authority.crt"])


@needs("storescu")
def test_with_tls_only_who_shows_a_certificate_of_the_authority_comes_in(
    identity: Path, images: Path, tmp_path: Path, caplog: Any
) -> None:
    files = certificates(tmp_path / "tls")
    authority = ["+cf", str(files["authority.crt"])]
    with open_door(identity, tls=secured(files)) as door:
        refused = [
            storescu(door.port, images),  # in the clear
            storescu(door.port, images, "+tla", *authority),  # no certificate
            storescu(door.port, images, "+tls", str(files["stranger.key"]), str(files["stranger.crt"]), *authority),
        ]
        assert [sent.returncode != 0 for sent in refused] == [True] * 3
        assert originals(identity) == []
        sent = storescu(door.port, images, "+tls", str(files["theirs.key"]), str(files["theirs.crt"]), *authority)
        assert (sent.returncode, answers(sent)) == (0, 3), sent.stderr
    assert len(originals(identity)) == 3


def test_tls_older_than_1_2_is_refused(identity: Path, tmp_path: Path) -> None:
    import ssl

    files = certificates(tmp_path / "tls")
    with open_door(identity, tls=secured(files)) as door:
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        old.load_cert_chain(files["theirs.crt"], files["theirs.key"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
        with socket.create_connection(("127.0.0.1", door.port)) as plain, pytest.raises(OSError, match=r"TLS|SSL|reset"):
            old.wrap_socket(plain)


def test_a_caller_who_says_nothing_keeps_nobody_waiting(identity: Path, tmp_path: Path) -> None:
    files = certificates(tmp_path / "tls")
    with open_door(identity) as plain, open_door(tmp_path / "other", tls=secured(files)) as door:
        silent = [socket.create_connection(("127.0.0.1", each.port)) for each in (plain, door)]
        began = time.monotonic()
        line = associate(plain.port)
        assert line.is_established
        line.release()
        assert not associate(door.port).is_established  # no TLS: turned away at once, not after the silent one
        assert time.monotonic() - began < 5
        for each in silent:
            each.close()


@pytest.mark.parametrize("silent_for_s", [0.0, 0.5])
def test_the_door_closes_on_a_caller_who_says_nothing(identity: Path, silent_for_s: float) -> None:
    with open_door(identity) as door:
        silent = socket.create_connection(("127.0.0.1", door.port))
        deadline = time.monotonic() + 10
        while door.is_idle and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not door.is_idle
        time.sleep(silent_for_s)
        threads = [thread for thread in threading.enumerate() if "run_reactor" in thread.name]
    silent.settimeout(5)
    assert silent.recv(1) == b""  # closed, and nothing is said: there is no association to abort (PS3.8 table 9-10)
    silent.close()
    for thread in threads:
        thread.join(5)
    assert not any(thread.is_alive() for thread in threads)


@needs("storescu")
def test_below_the_watermark_the_sender_is_told_out_of_resources(identity: Path, images: Path) -> None:
    with open_door(identity, min_free_bytes=2**60) as door:
        sent = storescu(door.port, images)
    assert answers(sent, "Refused: OutOfResources") == 1  # and DCMTK stops
    assert (originals(identity), list((identity / "incoming" / ".parts").iterdir())) == ([], [])


@needs("storescu")
def test_on_a_full_disk_the_sender_is_told_out_of_resources_and_what_came_before_is_whole(
    small_disk: Path, tmp_path: Path, caplog: Any
) -> None:
    images = sorted(write_images(tmp_path / "images", 5, size=512).iterdir())  # half a megabyte each
    identity = small_disk / "identity"
    with open_door(identity, min_free_bytes=-(2**40)) as door:  # try, however full
        sent = storescu(door.port, images, "-d")
        statuses = re.findall(r"DIMSE Status +: (0x[0-9a-f]{4})", sent.stdout + sent.stderr)
        assert statuses == ["0x0000"] * 3 + ["0xa700"]  # and DCMTK stops
        assert "an image could not be written (ENOSPC)" in caplog.text
        kept = {str(pydicom.dcmread(path).SOPInstanceUID): pixels(path) for path in originals(identity)}
        assert kept == {str(image(number).SOPInstanceUID): image(number, size=512).PixelData for number in (1, 2, 3)}
        assert list((identity / "incoming" / ".parts").iterdir()) == []
        subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
        assert answers(storescu(door.port, images)) == 5
    assert len(originals(identity)) == 5
    assert dict(door.counts) == {"stored": 5, "no room": 1, "again": 3}


def test_strange_and_missing_identifiers_are_stored_all_the_same(door: DicomReceiver, identity: Path) -> None:
    with pydicom.config.disable_value_validation():
        strange = [
            image(1, PatientID="", StudyInstanceUID=""),
            image(2, PatientID="../../etc/passwd", StudyInstanceUID="../../../tmp/x"),
            image(3, PatientID="Müller\\Jürgen", SpecificCharacterSet="ISO_IR 192"),
            image(4, SOPInstanceUID="../../../tmp/konsil-was-here"),
        ]
        del strange[0].PatientID, strange[0].StudyInstanceUID
        line = associate(door.port)
        assert [line.send_c_store(dataset).Status for dataset in strange] == [0x0000] * 4
        line.release()
    names = [path.relative_to(identity / "incoming").as_posix() for path in originals(identity)]
    assert all(re.fullmatch(r"[0-9a-f]{32}/[0-9a-f]{32}-[0-9a-f]{32}\.dcm", name) for name in names)
    assert len(names) == 4


@pytest.mark.parametrize("uid", ["x" * 200, "../" * 30, "1.2.3/../../4"])
def test_a_sender_who_calls_an_image_by_a_strange_uid_breaks_nothing(
    door: DicomReceiver, identity: Path, tmp_path: Path, monkeypatch: Any, uid: str
) -> None:
    monkeypatch.setitem(pynetdicom_config.VALIDATORS, "UI", lambda value: (True, ""))  # the sender's; and ours, in one process
    with pydicom.config.disable_value_validation():
        line = associate(door.port)
        line.send_c_store(image(1, SOPInstanceUID=uid))
        line.abort()
        again = associate(door.port)
        assert again.send_c_store(image(2)).Status == 0x0000
        again.release()
    assert {path.name for path in tmp_path.iterdir()} <= {"identity"}
    files = [path.relative_to(identity / "incoming").as_posix() for path in originals(identity)]
    assert all(re.fullmatch(r"[0-9a-f]{32}/[0-9a-f]{32}-[0-9a-f]{32}\.dcm", name) for name in files)


def test_nothing_of_an_image_or_its_sender_reaches_a_log(door: DicomReceiver, identity: Path, caplog: Any, capfd: Any) -> None:
    caplog.set_level(logging.DEBUG)
    line = associate(door.port)
    line.send_c_store(image(1))
    line.send_c_store(image(1, PatientName="Brunnthaler^Bertrand"))
    line.release()
    associate(door.port, title="ABENDROTH")
    text = caplog.text + "".join(capfd.readouterr())
    assert "quarantine" in text
    for planted in ("Abendroth", "Brunnthaler", "MRN-0815", str(image(1).SOPInstanceUID), str(image().StudyInstanceUID)):
        assert planted.lower() not in text.lower()


def test_a_message_part_larger_than_agreed_ends_the_association_and_not_the_door(door: DicomReceiver) -> None:
    with socket.create_connection(("127.0.0.1", door.port), timeout=5) as line:
        line.sendall(b"\x01\0" + (2**31).to_bytes(4, "big"))
        line.recv(100)
    with socket.create_connection(("127.0.0.1", door.port), timeout=5) as line:
        line.sendall(os.urandom(2000))
    later = associate(door.port)
    assert later.is_established
    later.release()


SERVE = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from dicom_peers import open_door
with open_door(Path(sys.argv[1])) as door:
    print(door.port, flush=True)
    time.sleep(60)
"""


@needs("storescu")
def test_after_a_kill_everything_that_was_answered_with_success_is_here(identity: Path, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 120, size=256)
    serving = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(identity), str(Path(__file__).parent)], stdout=subprocess.PIPE, text=True
    )
    assert serving.stdout is not None
    with serving.stdout:
        port = int(serving.stdout.readline())

        def kill_when_some_are_here() -> None:
            while len(originals(identity)) < 20:
                time.sleep(0.002)
            os.kill(serving.pid, signal.SIGKILL)

        killer = threading.Thread(target=kill_when_some_are_here)
        killer.start()
        sent = storescu(port, images)
        killer.join()
        serving.wait()
    safe = answers(sent)
    assert 15 <= safe < 120
    whole = [pydicom.dcmread(path) for path in originals(identity)]
    expected = {str(image(number).SOPInstanceUID): number for number in range(1, 121)}
    assert len(whole) >= safe
    assert all(bytes(kept.PixelData) == image(expected[str(kept.SOPInstanceUID)], size=256).PixelData for kept in whole)
    with open_door(identity) as again:
        assert list((identity / "incoming" / ".parts").iterdir()) == []
        assert answers(storescu(again.port, images)) == 120
    assert len(originals(identity)) == 120
