"""Objects to an archive: DCMTK's storescp takes them, with and without TLS; a peer that answers as told shows the rest."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pydicom
import pytest
from dicom_peers import certificates
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    EncapsulatedPDFStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    SegmentationStorage,
    generate_uid,
)
from pynetdicom import AE, evt

from fl_client.intake.send import NoLine, destination, knock, send
from fl_client.site import Archive, Peer, TransportSecurity

STORESCP = shutil.which("storescp", path="/usr/bin")  # DCMTK's: pynetdicom brings a namesake
needs_storescp = pytest.mark.skipif(STORESCP is None, reason="DCMTK's storescp is not installed")


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Two segmentations and a document, as far as a sender looks at them."""
    (tmp_path / "files").mkdir()
    found = []
    for number, kind in enumerate((SegmentationStorage, SegmentationStorage, EncapsulatedPDFStorage)):
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = kind
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[str(number)])
        dataset.SpecificCharacterSet, dataset.PatientName, dataset.PatientID = "ISO_IR 192", "Grün^Änne", "MRN-1"
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.3", f"1.2.3.{number}"
        found.append(tmp_path / "files" / f"{number}.dcm")
        dataset.save_as(found[-1], enforce_file_format=True)
    return found


def at(port: int, **settings: object) -> Archive:
    return Archive(peer=Peer(ae_title="PACS", address="127.0.0.1", port=port), **settings)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def storescp(folder: Path, *options: str) -> Iterator[int]:
    """DCMTK's receiver at a free port."""
    port = free_port()
    folder.mkdir()
    command = [str(STORESCP), "-aet", "PACS", "-od", str(folder), *options, str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _until_open(port)
        yield port
    finally:
        process.terminate()
        process.wait(20)


def _until_open(port: int) -> None:
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)


@contextmanager
def answering(
    statuses: Sequence[int | None], *, kinds: Sequence[str] = (SegmentationStorage, EncapsulatedPDFStorage)
) -> Iterator[tuple[int, list[str]]]:
    """A peer that answers one request after the other as told (None: breaks the line), and what it was sent."""
    left, seen = list(statuses), list[str]()

    def store(event: evt.Event) -> int:
        seen.append(str(event.request.AffectedSOPInstanceUID))
        status = left.pop(0) if left else 0
        if status is None:
            event.assoc.abort()
            return 0xC001
        return status

    ours = AE(ae_title="PACS")
    for kind in kinds:
        ours.add_supported_context(kind, [ImplicitVRLittleEndian])  # the only syntax that everybody has to know
    server = ours.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, store)])
    try:
        yield server.server_address[1], seen
    finally:
        server.shutdown()


@needs_storescp
def test_dcmtk_receives_what_was_written(files, tmp_path):
    with storescp(tmp_path / "taken") as port:
        knock(at(port))
        answers = list(send(at(port), files))
    assert [(answer.status, answer.words, answer.path) for answer in answers] == [(0, "", path) for path in files]
    taken = {dataset.SOPInstanceUID: dataset for dataset in map(pydicom.dcmread, (tmp_path / "taken").iterdir())}
    assert len(taken) == 3
    for path in files:
        dataset = pydicom.dcmread(path)
        assert taken[dataset.SOPInstanceUID] == dataset


@needs_storescp
def test_tls_asks_both_sides_for_a_certificate(files, tmp_path):
    papers = certificates(tmp_path / "tls")
    ours = TransportSecurity(certificate=papers["ours.crt"], key=papers["ours.key"], authority=papers["authority.crt"])
    theirs = ["+tls", str(papers["theirs.key"]), str(papers["theirs.crt"]), "+cf", str(papers["authority.crt"]), "-rc"]
    with storescp(tmp_path / "taken", *theirs) as port:
        assert [answer.status for answer in send(at(port, tls=ours), files)] == [0, 0, 0]
        with pytest.raises(NoLine, match="does it want TLS"):
            knock(at(port))
        stranger = ours.model_copy(update={"certificate": papers["stranger.crt"], "key": papers["stranger.key"]})
        with pytest.raises(NoLine, match=r"nothing was sent"):
            knock(at(port, tls=stranger))
        elsewhere = ours.model_copy(update={"authority": papers["stranger.crt"]})
        with pytest.raises(NoLine, match=r"its certificate is not good for archive\.tls\.authority"):
            knock(at(port, tls=elsewhere))
    assert len(list((tmp_path / "taken").iterdir())) == 3
    with pytest.raises(OSError, match=r"archive\.tls: certificate, key or authority can't be used \(No such file"):
        knock(at(port, tls=ours.model_copy(update={"key": tmp_path / "nowhere.key"})))


def test_nobody_there_is_told(files):
    port = free_port()
    with pytest.raises(
        NoLine, match=rf"PACS@127\.0\.0\.1:{port}: it can't be reached \(Connection refused\); nothing was sent"
    ):
        list(send(at(port), files, attempts=2, pause_s=0.01))
    assert destination(at(port)) == f"PACS@127.0.0.1:{port}"


def test_a_port_that_speaks_something_else_is_told():
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)
        port = server.getsockname()[1]

        def hang_up() -> None:
            for _ in range(2):
                connection, _ = server.accept()
                connection.recv(10)
                connection.close()

        thread = threading.Thread(target=hang_up, daemon=True)
        thread.start()
        with pytest.raises(NoLine, match="not in DICOM's manner; does it want TLS"):
            knock(at(port))
        thread.join(10)


@needs_storescp
def test_an_archive_that_turns_us_away_is_told(tmp_path):
    with storescp(tmp_path / "taken", "--refuse") as port, pytest.raises(NoLine, match="turns us away"):
        knock(at(port))


@pytest.mark.parametrize(
    ("ours", "theirs", "words"),
    [("KONSIL", "OTHER", "it is not called OTHER"), ("STRANGER", "PACS", "it does not know our title STRANGER")],
)
def test_titles_that_do_not_agree_are_told(ours, theirs, words):
    peer = AE(ae_title="PACS")
    peer.add_supported_context(SegmentationStorage)
    peer.require_called_aet, peer.require_calling_aet = theirs != "PACS", ["KONSIL"]
    server = peer.start_server(("127.0.0.1", 0), block=False)
    try:
        archive = at(server.server_address[1], ae_title=ours)
        archive = archive.model_copy(update={"peer": archive.peer.model_copy(update={"ae_title": theirs})})
        with pytest.raises(NoLine, match=words):
            knock(archive)
    finally:
        server.shutdown()


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (0xA900, "the object does not match its class (status 0xA900)"),
        (0xB000, "stored with a warning: it keeps something else than was sent (status 0xB000)"),
        (0xC123, "it can't understand the object (status 0xC123)"),
        (0x0110, "processing failure (status 0x0110)"),
        (0x0122, "it does not store this kind of object (status 0x0122)"),
        (0x0124, "not authorised (status 0x0124)"),
    ],
)
def test_any_status_but_success_counts_as_not_taken_and_the_others_go_on(files, status, words):
    with answering([0, status, 0]) as (port, seen):
        answers = list(send(at(port), files, pause_s=0.01))
    assert [answer.is_taken for answer in answers] == [True, False, True]
    assert answers[1].words == words
    assert len(seen) == 3  # asking again would give the same answer


def test_an_archive_without_room_is_asked_again(files):
    with answering([0xA700, 0xA702, 0]) as (port, seen):
        answers = list(send(at(port), files[:1], attempts=3, pause_s=0.01))
    assert ([answer.status for answer in answers], len(seen)) == ([0], 3)
    with answering([0xA700] * 9) as (port, seen):
        (answer,) = send(at(port), files[:1], attempts=3, pause_s=0.01)
    assert (answer.is_taken, answer.words, len(seen)) == (False, "out of resources (status 0xA700)", 3)


def test_a_line_that_breaks_is_opened_again(files):
    with answering([0, None, 0, 0]) as (port, seen):
        answers = list(send(at(port), files, pause_s=0.01))
    assert [answer.status for answer in answers] == [0, 0, 0]
    assert seen[1] == seen[2]  # what nobody answered to, once more
    with answering([0, None, None, None]) as (port, seen):
        answers = send(at(port), files, attempts=3, pause_s=0.01)
        assert next(answers).is_taken
        with pytest.raises(NoLine, match="gave no answer to an object"):
            next(answers)
    assert len(seen) == 4


def test_a_kind_that_the_archive_does_not_store_is_told_and_the_others_go(files):
    with answering([], kinds=[SegmentationStorage]) as (port, seen):
        answers = list(send(at(port), files))
    assert [answer.is_taken for answer in answers] == [True, True, False]
    assert (answers[2].words, len(seen)) == ("it takes no encapsulated PDF", 2)


def test_an_archive_that_stores_none_of_it_is_told_at_the_door():
    with answering([], kinds=["1.2.840.10008.1.1"]) as (port, _), pytest.raises(NoLine, match="takes neither DICOM SEG nor"):
        knock(at(port))
