"""Objects to the hospital's archive: C-STORE as a user of the service (PS3.4 annex B), with TLS where the site asks for it.

Every object has its own answer, and only status 0x0000 counts as taken: a warning means that the archive kept something else
than was sent. The archive is known by its address, and with TLS by the authority that signed its certificate.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
from pydicom.uid import EncapsulatedPDFStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian, SegmentationStorage
from pynetdicom import AE, _config, evt
from pynetdicom.association import Association
from pynetdicom.pdu import A_ASSOCIATE_RJ
from pynetdicom.transport import AssociationSocket

from fl_client.intake.deidentify import discreet
from fl_client.site import Archive, TransportSecurity

KINDS = {SegmentationStorage: "DICOM SEG", EncapsulatedPDFStorage: "encapsulated PDF"}
TAKEN, OUT_OF_RESOURCES = 0x0000, range(0xA700, 0xA800)
TIMEOUT_S = 30.0  # without a word from the archive: longer than one flush of a busy disk
STATUS = {
    0x0105: "no such attribute",
    0x0106: "an invalid value",
    0x0110: "processing failure",
    0x0111: "it has another object of this UID",
    0x0117: "an invalid object",
    0x0122: "it does not store this kind of object",
    0x0124: "not authorised",
    0x0211: "it does not know the request",
}
"""PS3.7 annex C."""
RANGES = (
    (0xA700, 0xA7FF, "out of resources"),
    (0xA900, 0xA9FF, "the object does not match its class"),
    (0xB000, 0xBFFF, "stored with a warning: it keeps something else than was sent"),
    (0xC000, 0xCFFF, "it can't understand the object"),
)
"""PS3.4 table B.2-1: first and last status, what it means."""
TURNED_AWAY = {
    (1, 3): "it does not know our title {ours}",
    (1, 7): "it is not called {theirs}",
    (3, 1): "it has too much to do just now",
    (3, 2): "it has as many connections as it takes",
}
"""PS3.8 table 9-21: source and reason."""


class NoLine(ConnectionError):
    """The archive can't be reached, or does not let us in; the text says which and what to look at."""


@dataclass(frozen=True)
class Answer:
    """What the archive said to one object."""

    path: Path
    status: int | None  # None: it takes no such object
    words: str = ""  # empty if the object was taken

    @property
    def is_taken(self) -> bool:
        """Whether the archive has it as it was sent."""
        return self.status == TAKEN


def destination(archive: Archive) -> str:
    """The archive's name and place: `PACS@10.0.0.5:104`."""
    return f"{archive.peer.ae_title}@{archive.peer.address}:{archive.peer.port}"


def knock(archive: Archive) -> None:
    """Open a line to the archive and close it. Raises `NoLine` if it can't be reached or takes nothing that we send."""
    _open(archive).release()


def send(archive: Archive, files: Sequence[Path], *, attempts: int = 3, pause_s: float = 2.0) -> Iterator[Answer]:
    """Send files one after the other and give each one's answer as it comes; the rest goes once the answer was consumed.

    A line that breaks, and an archive without room, are tried again: `attempts` times in all, `pause_s` apart. Raises `NoLine`
    if there is no line, or no answer on it, and `FileNotFoundError` for a file that went.
    """
    line: Association | None = None
    try:
        for path in files:
            answer: Answer | None = None
            for attempt in range(attempts):
                if attempt:
                    time.sleep(pause_s)
                if line is None or not line.is_established:
                    line = _open(archive, attempts=attempts, pause_s=pause_s)
                answer = _one(line, path) or answer
                if answer is None:
                    line.abort()  # whatever still comes would be taken for the answer to something else
                elif answer.status not in OUT_OF_RESOURCES:
                    break
            if answer is None:  # the next object would have to wait as long
                raise NoLine(f"{destination(archive)} took the association and gave no answer to an object; look at its log")
            yield answer
    finally:
        if line is not None and line.is_established:
            line.release()


def _one(line: Association, path: Path) -> Answer | None:
    """Send one file; None if no answer came."""
    with discreet():
        dataset = pydicom.dcmread(path)
        if not any(context.abstract_syntax == dataset.SOPClassUID for context in line.accepted_contexts):
            return Answer(path, None, f"it takes no {KINDS.get(dataset.SOPClassUID, 'object of this kind')}")
        try:
            said = line.send_c_store(dataset)
        except RuntimeError:  # the line broke between two objects
            return None
    if "Status" not in said:
        return None
    status = int(said.Status)
    return Answer(path, status, "" if status == TAKEN else f"{_meaning(status)} (status 0x{status:04X})")


def _meaning(status: int) -> str:
    for first, last, words in RANGES:
        if first <= status <= last:
            return words
    return STATUS.get(status, "it refused the object")


# -- the line ------------------------------------------------------------------------------------------------------------


def _open(archive: Archive, *, attempts: int = 1, pause_s: float = 0.0) -> Association:
    """An association. Raises `NoLine` in words, after `attempts`."""
    _config.LOG_HANDLER_LEVEL = "none"
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)  # its log can hold datasets
    asking = _Caller(ae_title=archive.ae_title)
    asking.acse_timeout = asking.dimse_timeout = asking.network_timeout = asking.connection_timeout = TIMEOUT_S
    for kind in KINDS:
        asking.add_requested_context(kind, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
    peer, context = archive.peer, _tls(archive.tls)
    noes: list[A_ASSOCIATE_RJ] = []  # a line that was closed at once after its no does not know of it any more

    def heard(event: evt.Event) -> None:
        if isinstance(event.pdu, A_ASSOCIATE_RJ):
            noes.append(event.pdu)

    hearing = [(evt.EVT_PDU_RECV, heard)]
    for attempt in range(attempts):
        if attempt:
            time.sleep(pause_s)
        noes.clear()
        arguments = (context, None) if context else None
        line = asking.associate(peer.address, peer.port, ae_title=peer.ae_title, tls_args=arguments, evt_handlers=hearing)
        if line.is_established:
            return line
        if len(line.rejected_contexts) == len(KINDS):
            raise NoLine(
                f"{destination(archive)} takes neither DICOM SEG nor encapsulated PDF; ask who looks after the archive"
            )
        said = noes[-1] if noes else None
        why = (int(said.source), int(said.reason_diagnostic)) if said is not None else (0, 0)
        if said is not None and why[0] != 3:  # a stranger stays one
            break
    if said is None:
        raise NoLine(f"{destination(archive)}: {_why_not(archive, context)}; nothing was sent")
    words = TURNED_AWAY.get(why, f"result {said.result}, source {why[0]}, reason {why[1]}")
    words = words.format(ours=archive.ae_title, theirs=peer.ae_title)
    raise NoLine(f"{destination(archive)} turns us away: {words}; the archive's list of peers and ours have to agree")


def _tls(files: TransportSecurity | None) -> ssl.SSLContext | None:
    """TLS 1.2 or newer in which both sides show a certificate. Raises `OSError` for files that are wrong, in words."""
    if files is None:
        return None
    try:
        context = ssl.create_default_context(cafile=files.authority)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.check_hostname = False  # we know whom we dial; certificates of archives seldom name addresses
        context.load_cert_chain(files.certificate, files.key)
    except (OSError, ssl.SSLError) as error:
        said = error.strerror or type(error).__name__
        raise OSError(f"archive.tls: certificate, key or authority can't be used ({said})") from None
    return context


def _why_not(archive: Archive, context: ssl.SSLContext | None) -> str:
    """Look again with a bare connection: who is it that does not answer?"""
    try:
        with socket.create_connection((archive.peer.address, archive.peer.port), timeout=TIMEOUT_S) as connection:
            if context is None:
                return "something answers there, and not in DICOM's manner; does it want TLS?"
            try:
                with context.wrap_socket(connection):
                    return "TLS is right, and nobody answers in DICOM's manner; does it know our certificate?"
            except ssl.SSLCertVerificationError as error:
                return f"its certificate is not good for archive.tls.authority ({error.verify_message})"
            except OSError as error:
                return f"no TLS ({getattr(error, 'reason', None) or type(error).__name__})"
    except OSError as error:
        return f"it can't be reached ({error.strerror or type(error).__name__})"


class _Caller(AE):  # type: ignore[misc]  # pynetdicom is read without its types
    """pynetdicom's caller, whose sockets are closed in any case."""

    def _create_socket(self, assoc: Association, address: Any, tls_args: Any) -> AssociationSocket:
        connection = _Socket(assoc, address=address)
        connection.tls_args = tls_args
        return connection


class _Socket(AssociationSocket):  # type: ignore[misc]  # pynetdicom is read without its types
    """A socket that is closed also where the other side was faster."""

    def _shutdown_socket(self) -> None:
        if self.socket is not None:
            with contextlib.suppress(OSError):
                self.socket.shutdown(socket.SHUT_RDWR)
            self.socket.close()
