"""Every internal of pynetdicom that the door and the sender lean on, by name, signature and behaviour.

The door replaces pynetdicom's socket and the making of an association (`receive.py`), the sender its socket (`send.py`). Where
one of these fails after an update of pynetdicom, the class named in the test has to be looked at before the update is taken.
"""

from __future__ import annotations

import copy
import inspect
import io
import queue
import re
import socket
import socketserver
import threading
from importlib.metadata import version
from typing import Any

import pytest
from pynetdicom import AE, _config, acse, dimse, dimse_messages, dul, evt, fsm, service_class, transport
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.presentation import PresentationContextTuple, negotiate_as_acceptor
from pynetdicom.transport import AssociationServer, AssociationSocket, RequestHandler, ThreadedAssociationServer

from fl_client.intake import receive, send


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


def source(thing: Any) -> str:
    """Without comments, on one line."""
    return re.sub(r"\s+", " ", re.sub(r"(?m)^\s*#.*$", "", inspect.getsource(thing)))


@pytest.fixture
def association() -> Association:
    return Association(AE("KONSIL"), "acceptor")


def a_connection() -> tuple[socket.socket, socket.socket]:
    """Two ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        there = socket.create_connection(listening.getsockname())
        return listening.accept()[0], there


def test_it_is_the_pynetdicom_that_was_read() -> None:
    assert version("pynetdicom").startswith("3.0.")


def overridden(ours: type, theirs: type) -> set[str]:
    """What of theirs we replace."""
    return {name for name in vars(ours) if hasattr(theirs, name) and not re.fullmatch("__(?!init)[a-z]+__", name)}


def test_we_replace_these_and_no_others_and_all_of_them_are_there() -> None:
    assert overridden(receive._Socket, AssociationSocket) == {"__init__", "ready", "recv", "_shutdown_socket"}
    assert overridden(receive._Connection, RequestHandler) == {"_create_association"}
    assert overridden(receive._Server, ThreadedAssociationServer) == {
        *("daemon_threads", "block_on_close", "request_queue_size"),
        *("get_request", "verify_request", "finish_request", "handle_error"),
    }
    assert overridden(receive._Ringing, queue.Queue) == {"__init__", "put"}
    assert overridden(send._Socket, AssociationSocket) == {"_shutdown_socket"}
    assert overridden(send._Caller, AE) == {"_create_socket"}


# -- receive._Server -----------------------------------------------------------------------------------------------------


def test_a_server_is_made_of_our_classes_and_shut_down_through_its_entity() -> None:
    asked = parameters(AE.make_server)
    assert asked == ["self", "address", "ae_title", "contexts", "ssl_context", "evt_handlers", "server_class", "kwargs"]
    assert "request_handler" in parameters(AssociationServer.__init__)
    assert AE("KONSIL")._servers == []  # to which the door adds its server
    text = source(AE.shutdown)
    assert "for assoc in self.active_associations: assoc.abort()" in text
    assert "for server in self._servers[:]: server.shutdown()" in text
    assert "self.ae._servers.remove(" in source(AssociationServer.shutdown)


def test_a_connection_is_looked_at_before_anything_is_read_of_it() -> None:
    assert issubclass(ThreadedAssociationServer, socketserver.ThreadingMixIn)
    for name in ("verify_request", "handle_error"):  # the standard library's, which calls them before and after
        assert getattr(ThreadedAssociationServer, name) is getattr(socketserver.BaseServer, name)
    text = source(ThreadedAssociationServer.process_request_thread)
    assert "self.finish_request(request, client_address) except Exception: self.handle_error(request, client_address)" in text
    assert "if self.ssl_context: client_socket = self.ssl_context.wrap_socket(" in source(AssociationServer.get_request)


def test_a_server_finds_its_associations_by_the_threads_name_and_their_server() -> None:
    text = source(AssociationServer.active_associations.fget)
    assert '"AcceptorThread" in tt.name' in text
    assert "tt._server is self" in text


def test_handlers_are_kept_as_we_copy_them_to_an_association() -> None:
    server = AE("KONSIL").make_server(
        ("127.0.0.1", 0),
        contexts=receive.contexts()[:2],
        evt_handlers=[(evt.EVT_C_STORE, len), (evt.EVT_REJECTED, print)],
        server_class=receive._Server,
        request_handler=receive._Connection,
    )
    try:
        assert server._handlers[evt.EVT_C_STORE] == (len, None)  # of an intervention one handler, with its arguments
        assert server._handlers[evt.EVT_REJECTED] == [(print, None)]  # of a notification several
        assert evt.EVT_C_STORE.is_intervention
        assert not evt.EVT_REJECTED.is_intervention
        assert (server.ae_title, len(server.contexts), server.ssl_context) == ("KONSIL", 2, None)
    finally:
        server.server_close()


# -- receive._Connection -------------------------------------------------------------------------------------------------


def test_an_association_is_made_of_the_parts_that_we_make_it_of() -> None:
    text = source(RequestHandler._create_association)
    made = re.findall(r"assoc\.([a-z_.]+) = ", text)
    assert made == [
        *("_server", "name"),
        *("acceptor.maximum_length", "acceptor.ae_title", "acceptor.address_info", "acceptor.implementation_class_uid"),
        *("acceptor.implementation_version_name", "acceptor.supported_contexts", "requestor.address_info"),
    ]  # whatever else it sets, ours has to set, too
    assert "assoc.set_socket(sock)" in text
    handled = source(RequestHandler.handle)
    assert "assoc = self._create_association()" in handled
    assert handled.rstrip().endswith("assoc.start()")


def test_our_association_has_all_that_pynetdicoms_own_has() -> None:
    def made(kind: type[RequestHandler]) -> Association:
        ours, theirs = a_connection()
        server = AE("KONSIL").make_server(("127.0.0.1", 0), contexts=receive.contexts()[:2], server_class=receive._Server)
        handler = kind.__new__(kind)
        handler.server, handler.request, handler.client_address = server, ours, ("127.0.0.1", 40000)
        try:
            return handler._create_association()
        finally:
            server.server_close()
            ours.close()
            theirs.close()

    ours, theirs = made(receive._Connection), made(RequestHandler)
    for side in ("acceptor", "requestor"):
        us, them = getattr(ours, side), getattr(theirs, side)
        assert vars(us).keys() == vars(them).keys()
        for name in ("maximum_length", "ae_title", "implementation_class_uid", "implementation_version_name"):
            assert getattr(us, name) == getattr(them, name)
        assert us.address_info.address == them.address_info.address == "127.0.0.1"
    assert ours.acceptor.supported_contexts == theirs.acceptor.supported_contexts
    assert ours.get_events() == theirs.get_events()
    assert vars(ours).keys() == vars(theirs).keys()


def test_the_contexts_that_associations_share_are_only_read() -> None:
    assert "deepcopy(self.server.contexts)" in source(RequestHandler._create_association)  # what we leave out
    text = source(acse.ACSE._negotiate_as_acceptor)
    assert text.count("self.acceptor.supported_contexts") == 2
    assert text.count("assoc_rq.presentation_context_definition_list, self.acceptor.supported_contexts, rq_roles, )") == 2
    shared, asked = receive.contexts(), receive.contexts()[:5]
    for number, context in enumerate(asked):
        context.context_id = 2 * number + 1
    before = copy.deepcopy([vars(context) for context in shared])
    accepted, _ = negotiate_as_acceptor(asked, shared)
    assert [context.result for context in accepted] == [0] * 5
    assert [vars(context) for context in shared] == before


def test_a_refused_caller_is_told_and_its_thread_ends(association: Association) -> None:
    assert parameters(association.acse.send_reject) == ["result", "source", "diagnostic"]
    text = source(Association.run_reactor)
    assert "evt.trigger(self, evt.EVT_REQUESTED, {}) if not self.is_aborted and not self.is_rejected:" in text
    assert "self.assoc.is_rejected = True" in source(acse.ACSE.send_reject)
    assert "> self.assoc.ae.maximum_associations: reject_assoc_rsd" in source(acse.ACSE._negotiate_as_acceptor)


# -- receive._Socket and send._Socket ------------------------------------------------------------------------------------


def test_the_reactor_asks_the_socket_whether_it_is_ready_and_then_reads(association: Association) -> None:
    text = source(dul.DULServiceProvider._is_transport_event)
    assert "if self.socket and self.socket.ready: self._read_pdu_data() return True" in text
    assert parameters(AssociationSocket.__init__) == ["self", "assoc", "client_socket", "address"]
    assert isinstance(AssociationSocket.ready, property)
    assert parameters(AssociationSocket.recv) == ["self", "nr_bytes"]
    read = source(dul.DULServiceProvider._read_pdu_data)
    assert read.count("self.socket.recv(") == 2
    assert read.count("except (OSError, TimeoutError) as exc:") == 2  # what our `recv` raises is the end of the connection
    assert "if len(bytestream) != 6 + pdu_length:" in read  # and so is less than was asked for
    assert "self._shutdown_socket()" in source(AssociationSocket.close)


def test_the_reactor_sleeps_where_we_tell_it_not_to_and_takes_from_the_queue_that_rings(association: Association) -> None:
    provider = association.dul
    assert isinstance(provider.to_provider_queue, queue.Queue)
    assert isinstance(provider.event_queue, queue.Queue)
    assert provider._run_loop_delay == pytest.approx(0.001)
    text = source(dul.DULServiceProvider.run_reactor)
    assert text.count("time.sleep(") == 1
    assert "time.sleep(self._run_loop_delay)" in text
    assert "self.to_provider_queue.queue[0]" in source(dul.DULServiceProvider._process_recv_primitive)
    assert inspect.getsource(dul).count("to_provider_queue.put(") == 1  # the only place from which an answer goes
    places = inspect.getsource(transport).count("provider_queue.put(")
    assert places == inspect.getsource(AssociationSocket.connect).count(
        "provider_queue.put("
    )  # others only where we would dial


def test_a_socket_of_a_known_connection_is_connected_and_says_so(association: Association) -> None:
    ours, theirs = a_connection()
    try:
        wrapped = receive._Socket(association, client_socket=ours)
        assert (wrapped.socket, wrapped._is_connected) == (ours, True)
        assert association.dul.event_queue.get_nowait() == "Evt5"
        assert isinstance(association.dul.to_provider_queue, receive._Ringing)
        association.dul.to_provider_queue.put("something to send")
        assert not wrapped.ready  # at once: the bell rang, and nothing can be read
        theirs.sendall(b"abc")
        assert wrapped.ready
        assert wrapped.recv(3) == b"abc"
        wrapped.close()
        assert wrapped.socket is None
    finally:
        ours.close()
        theirs.close()


def test_the_name_of_the_event_for_a_connection_that_is_gone_is_the_one_we_put() -> None:
    gone = {(event, state) for event, state in fsm.TRANSITION_TABLE if event == "Evt17"}
    assert ("Evt17", "Sta6") in gone  # an association that is open
    assert fsm.EVENTS["Evt17"].lower().startswith("transport connection closed")


# -- the image -----------------------------------------------------------------------------------------------------------


def test_an_image_is_put_together_in_memory_and_handed_over_without_a_copy(association: Association) -> None:
    assert not _config.STORE_RECV_CHUNKED_DATASET  # else it would lie in a file of pynetdicom's own
    message = dimse_messages.C_STORE_RQ()
    request = C_STORE()
    request.MessageID, request.Priority = 1, 0
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.4", "1.2.3"
    request.DataSet = io.BytesIO(b"the image, which is in two pieces")
    message.primitive_to_message(request)
    received = dimse_messages.DIMSEMessage()
    pieces = [piece for primitive in message.encode_msg(1, 64) for piece in primitive.presentation_data_value_list]
    assert len(pieces) > 2
    for piece in pieces:
        primitive = P_DATA()
        primitive.presentation_data_value_list.append(list(piece))
        is_whole = received.decode_msg(primitive, association)
    assert is_whole
    handed_over = received.message_to_primitive()
    assert isinstance(handed_over.DataSet, io.BytesIO)
    assert handed_over.DataSet is received.data_set
    assert handed_over.DataSet.getbuffer() == b"the image, which is in two pieces"


def test_a_message_in_progress_belongs_to_its_association_and_goes_with_it(association: Association) -> None:
    assert association.dimse.message is None
    text = source(dimse.DIMSEServiceProvider.receive_primitive)
    assert "self.message.data_set = BytesIO()" in text  # so that the last image of an open association is not kept
    assert "self.message = None" in text


def test_the_handlers_get_the_request_the_context_and_the_association(association: Association) -> None:
    event = evt.Event(association, evt.EVT_C_STORE, {"request": 1, "context": 2})
    assert (event.assoc, event.request, event.context) == (association, 1, 2)
    text = source(service_class.StorageServiceClass.SCP)
    assert 'evt.trigger( ctx.assoc, evt.EVT_C_STORE, {"request": req, "context": context.as_tuple}, )' in text
    assert "transfer_syntax" in PresentationContextTuple._fields
    for name in ("primitive", "address_info", "ae_title"):
        assert hasattr(association.requestor, name)


def test_its_log_is_silent_where_we_silence_it() -> None:
    assert hasattr(_config, "LOG_HANDLER_LEVEL")
    assert 'if _config.LOG_HANDLER_LEVEL == "standard":' in source(AssociationServer._bind_defaults)
    loggers = {vars(module)["LOGGER"].name for module in (acse, dimse, dul, transport)}
    assert all(name.startswith("pynetdicom.") for name in loggers)


# -- send._Caller --------------------------------------------------------------------------------------------------------


def test_a_caller_makes_its_socket_where_we_make_ours() -> None:
    assert parameters(AE._create_socket) == ["self", "assoc", "address", "tls_args"]
    assert "self._create_socket(assoc, " in source(AE.associate)
    assert isinstance(AssociationSocket.tls_args, property)
    assert AssociationSocket.tls_args.fset is not None


def test_an_association_is_a_thread() -> None:
    assert issubclass(Association, threading.Thread)
    assert issubclass(dul.DULServiceProvider, threading.Thread)
