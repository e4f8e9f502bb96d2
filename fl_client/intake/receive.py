"""The DICOM door: an archive delivers images here (C-STORE) and asks whether anybody is there (C-ECHO).

Who is not on the hospital's list is not let in, by address and by title; images are put on the disk as the bytes that they
are, and the sender is told only then. After PS3.4 Annex B (storage), PS3.7 9 (the messages), PS3.8 (associations), PS3.15 B
(TLS). Nothing of an image or of its sender's text goes into a log.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import queue
import select
import socket
import ssl
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import (
    AllTransferSyntaxes,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from pynetdicom import AE, AllStoragePresentationContexts, _config, evt
from pynetdicom.association import Association
from pynetdicom.fsm import StateMachine
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.sop_class import Verification
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

from fl_client.intake.incoming import Incoming, NoRoom
from fl_client.intake.listening import Listening, ip_address
from fl_client.intake.part10 import header
from fl_client.intake.seldom import Seldom
from fl_client.site import DicomDoor

SUCCESS, OUT_OF_RESOURCES, STORED_APART, CANNOT_UNDERSTAND = 0x0000, 0xA700, 0xB000, 0xC000
"""Answers to C-STORE (PS3.4 table B.2-1)."""

PDU_BYTES = 256 * 1024  # largest message part that is asked for; DCMTK sends up to 128 KiB
HANDSHAKE_S, ASSOCIATE_S, IDLE_S = 10.0, 30.0, 300.0
WAIT_S = 0.05  # between two looks whether an association is to end


class DicomReceiver:
    """The listening door. `port` 0 in the settings' place lets the system choose; `self.port` says which."""

    def __init__(self, settings: DicomDoor, incoming: Incoming, *, port: int | None = None) -> None:
        """Raises what `Listening.of` raises: for addresses that are none, and for certificates that can't be used."""
        self._settings, self._incoming = settings, incoming
        self._wanted_port = settings.port if port is None else port
        self._ready = Listening.of(settings)
        self._server: _Server | None = None
        self._lock = threading.Lock()
        self._seldom = Seldom()
        self.counts: Counter[str] = Counter()

    def start(self) -> None:
        """Listen, in threads of its own. Raises `OSError` if the port can't be had."""
        _be_silent()
        self._incoming.sweep()
        entity = AE(self._settings.ae_title)
        entity.maximum_pdu_size = PDU_BYTES
        entity.maximum_associations = self._settings.max_associations
        entity.acse_timeout, entity.network_timeout, entity.dimse_timeout = ASSOCIATE_S, IDLE_S, IDLE_S
        handlers = [
            (evt.EVT_REQUESTED, self._requested),
            (evt.EVT_REJECTED, self._rejected),
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_C_ECHO, self._echo),
        ]
        self._server = entity.make_server(
            (self._settings.host, self._wanted_port),
            contexts=contexts(),
            ssl_context=self._ready.tls,
            evt_handlers=handlers,
            server_class=_Server,
            request_handler=_Connection,
        )
        entity._servers.append(self._server)
        own = {"127.0.0.1", "::1", self._ready.host}  # konsil-site check calls, and is told whom it has called
        self._server.allowed, self._server.told = frozenset(self._ready.titles) | own, self._tell
        self._server.most_connections = self._settings.max_associations + SPARE_CONNECTIONS
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.2}, daemon=True).start()

    @property
    def port(self) -> int:
        """The port that it listens on."""
        if self._server is None:
            raise RuntimeError("the door is not open")
        return int(self._server.server_address[1])

    @property
    def is_idle(self) -> bool:
        """Whether nobody is inside."""
        return self._server is None or not self._server.active_associations

    def stop(self) -> None:
        """Close the door: who is inside is told so (A-ABORT), an image that is being written is finished first."""
        if self._server is not None:
            self._server.ae.shutdown()
            self._server = None

    def _requested(self, event: Any) -> None:
        """Whoever calls by a wrong title, or with a right one from another address, is refused (PS3.8 table 9-21)."""
        request, address = event.assoc.requestor.primitive, ip_address(event.assoc.requestor.address_info.address)
        reason = None
        if str(request.calling_ae_title).strip() not in self._ready.titles.get(address, ()):
            reason = (NOT_RECOGNISED_CALLING, f"a caller from {address} whose title is not the one listed for this address")
        elif str(request.called_ae_title).strip() != self._settings.ae_title:
            reason = (
                NOT_RECOGNISED_CALLED,
                f"a caller from {address} who asked for another title than {self._settings.ae_title}",
            )
        if reason:
            self._tell("refused", f"refused {reason[1]}")
            event.assoc.acse.send_reject(0x01, 0x01, reason[0])
            event.assoc.kill()

    def _rejected(self, event: Any) -> None:
        self._tell("refused", f"refused a caller: {self._settings.max_associations} associations are open already")

    def _echo(self, event: Any) -> int:
        self.counts["echo"] += 1
        return SUCCESS

    def _store(self, event: Any) -> int | Dataset:
        request, context = event.request, event.context
        try:
            meta = header(
                sop_class=str(request.AffectedSOPClassUID),
                instance=str(request.AffectedSOPInstanceUID),
                transfer_syntax=str(context.transfer_syntax),
                sender=str(event.assoc.requestor.ae_title).strip(),
            )
            kept = self._incoming.keep(
                meta,
                request.DataSet.getbuffer(),
                transfer_syntax=str(context.transfer_syntax),
                instance=str(request.AffectedSOPInstanceUID),
            )
        except NoRoom as reason:
            self._tell("no room", f"an image was not taken: {reason.strerror}")
            return _answer(OUT_OF_RESOURCES, "less room on the disk than is to stay free")
        except OSError as error:
            self._tell("no room", f"an image could not be written ({errno.errorcode.get(error.errno or 0, 'OSError')})")
            return _answer(OUT_OF_RESOURCES, "the disk can't take it")
        except Exception as error:  # strange bytes are the sender's, a broken association would be everybody's
            self._tell("not understood", f"an image could not be taken ({type(error).__name__})")
            return _answer(CANNOT_UNDERSTAND, "it can't be understood")
        with self._lock:
            self.counts[kept] += 1
        if kept == "conflict":
            self._seldom.warning("an image came again with other bytes; it goes to the quarantine if it says something else")
            return _answer(STORED_APART, "kept apart: this UID came before, with other bytes")
        return SUCCESS

    def _tell(self, what: str, words: str) -> None:
        """Count it, and say it: the same sentence once a minute, so that nobody fills the log by knocking."""
        with self._lock:
            self.counts[what] += 1
        self._seldom.warning(words)


NOT_RECOGNISED_CALLING, NOT_RECOGNISED_CALLED = 0x03, 0x07
SPARE_CONNECTIONS = 4  # beyond the associations: they are told that there are too many


def _answer(status: int, comment: str) -> Dataset:
    answer = Dataset()
    answer.Status, answer.ErrorComment = status, comment  # LO: at most 64 characters
    return answer


def contexts() -> list[PresentationContext]:
    """All storage classes in all transfer syntaxes, what is uncompressed first, and C-ECHO."""
    plain = [ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian]
    syntaxes = plain + [uid for uid in AllTransferSyntaxes if uid not in plain]
    storage = [build_context(context.abstract_syntax, syntaxes) for context in AllStoragePresentationContexts]
    return [build_context(Verification, plain), *storage]


def _be_silent() -> None:
    """Pynetdicom's own log can hold datasets; what is to be told of an association is told here."""
    _config.LOG_HANDLER_LEVEL = "none"
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)


class _Server(ThreadedAssociationServer):  # type: ignore[misc]  # pynetdicom is read without its types
    """pynetdicom's server, which looks at the address first, shakes hands in the caller's own thread, and stays silent."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64
    allowed: frozenset[str] = frozenset()
    most_connections = 1

    told: Callable[[str, str], None]  # what is counted, and the sentence for the log

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept only: TLS shakes hands later, so that a caller who says nothing keeps nobody else waiting."""
        connection, address = self.socket.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection, address

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Addresses that are not listed are not even listened to."""
        address = ip_address(client_address[0])
        if address not in self.allowed:
            self.told("refused", f"refused a connection from {address}, which is not among dicom.peers")
            return False
        if len(self.active_associations) >= self.most_connections:
            self.told("refused", f"refused a connection from {address}: {self.most_connections} are open already")
            return False
        return True

    def finish_request(self, request: Any, client_address: Any) -> None:
        """In the caller's thread: TLS where it is asked for, then the association."""
        if self.ssl_context is not None:
            request.settimeout(HANDSHAKE_S)
            try:
                request = self.ssl_context.wrap_socket(request, server_side=True)
            except OSError as error:  # ssl.SSLError, too
                self.told(
                    "refused", f"refused a connection from {ip_address(client_address[0])}: no TLS ({type(error).__name__})"
                )
                self.shutdown_request(request)
                return
            request.settimeout(IDLE_S)
        super().finish_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Instead of a traceback on the screen."""
        self.told("failed", f"a connection from {ip_address(client_address[0])} failed")


class _Connection(RequestHandler):  # type: ignore[misc]  # pynetdicom is read without its types
    """Makes the association of one connection, with a socket that does not poll."""

    def _create_association(self) -> Association:
        association = _Association(self.ae, "acceptor")
        association._server = self.server
        association.name = f"AcceptorThread-{id(association):x}"  # by which pynetdicom finds it
        association.daemon = association.dul.daemon = True
        association.dul.state_machine = _States(association.dul)
        association.set_socket(_Socket(association, client_socket=self.request))
        ours, theirs = association.acceptor, association.requestor
        ours.maximum_length, ours.ae_title, ours.address_info = self.ae.maximum_pdu_size, self.server.ae_title, self.local
        ours.implementation_class_uid = self.ae.implementation_class_uid
        ours.implementation_version_name = self.ae.implementation_version_name
        ours.supported_contexts = self.server.contexts  # read only: copying them all takes a tenth of a second
        theirs.address_info = self.remote
        for event, bound in self.server._handlers.items():
            for handler in [bound] if event.is_intervention else bound:
                association.bind(event, *handler)
        return association


class _Association(Association):  # type: ignore[misc]  # pynetdicom is read without its types
    """An association whose connection is closed when it has been aborted, also one that has only just been made.

    pynetdicom means to close it and leaves it open until the other side gives up.
    """

    def abort(self, block: bool = True) -> None:
        """Tell the other side, and close; with `block` not, in a handler, only tell it."""
        super().abort(block)
        if block:
            self.dul.socket._shutdown_socket()


class _States(StateMachine):  # type: ignore[misc]  # pynetdicom is read without its types
    """The states of a connection (PS3.8 table 9-10), in all of which the door may be closed.

    The standard knows no abort where there is no association yet, or none any more; pynetdicom's thread dies of it.
    """

    def do_action(self, event: str) -> None:
        """As if nobody had said anything for too long, there: the connection is closed, and nobody need be told."""
        if event == ABORTED_HERE and self.current_state in NO_ASSOCIATION:
            with contextlib.suppress(queue.Empty):
                self.dul.to_provider_queue.get_nowait()
            event = TIME_IS_UP
        if (event, self.current_state) != (TIME_IS_UP, IDLE):
            super().do_action(event)


ABORTED_HERE, TIME_IS_UP = "Evt15", "Evt18"
IDLE = "Sta1"
NO_ASSOCIATION = {IDLE, "Sta2", "Sta13"}


class _Socket(AssociationSocket):  # type: ignore[misc]  # pynetdicom is read without its types
    """A socket that sleeps until something comes or something is to be sent, and reads a message part in one piece.

    pynetdicom looks every millisecond and reads 4 KiB at a time.
    """

    def __init__(self, association: Association, client_socket: socket.socket) -> None:
        client_socket.settimeout(IDLE_S)  # a caller that freezes in the middle of a message gives its place back
        client_socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        super().__init__(association, client_socket=client_socket)
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        weakref.finalize(self, os.close, self._bell)
        association.dul.to_provider_queue = _Ringing(self._bell)
        association.dul._run_loop_delay = 0
        self._poll = select.poll()
        self._poll.register(self._bell, select.POLLIN)
        self._poll.register(client_socket, select.POLLIN)

    @property
    def ready(self) -> bool:
        """Whether something can be read; waits a little for it, and not at all if there is something to send."""
        connection = self.socket
        if connection is None or not self._is_connected:
            return False
        if isinstance(connection, ssl.SSLSocket) and connection.pending():
            return True
        try:
            events = dict(self._poll.poll(WAIT_S * 1000))
            if self._bell in events:
                os.eventfd_read(self._bell)
            return connection.fileno() in events
        except (OSError, ValueError):
            self.event_queue.put("Evt17")  # transport connection closed (PS3.8 table 9-10)
            return False

    def recv(self, nr_bytes: int) -> bytearray:
        """So many bytes, or fewer if the connection ends.

        Raises `OSError` for a part larger than was asked for, and for one that is not whole after `IDLE_S`.
        """
        if nr_bytes > PDU_BYTES + 4096 or self.socket is None:
            raise OSError(errno.EMSGSIZE, f"a message part of {nr_bytes} bytes; {PDU_BYTES} was the most")
        received = bytearray(nr_bytes)
        view, filled, began = memoryview(received), 0, time.monotonic()
        while filled < nr_bytes:
            more = self.socket.recv_into(view[filled:])
            if not more:
                break
            filled += more
            if time.monotonic() - began > IDLE_S:  # drop by drop
                raise TimeoutError(errno.ETIMEDOUT, "a message part that does not end")
            if hasattr(socket, "TCP_QUICKACK"):  # a sender with Nagle's algorithm waits for this, 40 ms otherwise
                self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        view.release()
        del received[filled:]
        return received

    def _shutdown_socket(self) -> None:
        """Closed in any case, also where the other side was faster."""
        connection = self.socket
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()


class _Ringing(queue.Queue[Any]):
    """A queue that wakes the thread which sleeps in `_Socket.ready`."""

    def __init__(self, bell: int) -> None:
        super().__init__()
        self._bell = bell

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        super().put(item, block, timeout)
        os.eventfd_write(self._bell, 1)
