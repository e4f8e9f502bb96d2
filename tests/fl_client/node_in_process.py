"""The SuperNode's loopback side in this very process: Flower's own state, message loop and Runtime API, without a network.

Only the line to the coordinator is replaced: `ask` puts a message where a SuperLink's would arrive, `answers` holds what would
be sent back.
"""

from __future__ import annotations

import hashlib
import io
import threading
import time
import uuid
import zipfile
from collections.abc import Callable
from dataclasses import replace

import uvicorn
from flwr.app import Message, RecordDict
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode import start_client_internal as loop
from flwr.supernode.main import create_app
from flwr.supernode.nodestate import NodeStateFactory

from fl_client.loopback import HOST, Loopback

PROJECT = """
[project]
name = "konsil"
version = "0.1.0"
[tool.flwr.app]
publisher = "somebody"
[tool.flwr.app.components]
serverapp = "evil:app"
clientapp = "evil:app"
[tool.flwr.app.config]
study = ""
"""


def bundle(marker: str) -> bytes:
    """An app bundle whose client would write the file `marker` as soon as anybody imported it."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr("pyproject.toml", PROJECT)
        archive.writestr(
            "evil.py", f"open({marker!r}, 'w').write('I ran')\nfrom flwr.clientapp import ClientApp\napp = ClientApp()\n"
        )
        archive.writestr("fl_client/app.py", f"open({marker!r}, 'w').write('I ran')\n")
    return held.getvalue()


class Node:
    """Flower's SuperNode, as far as the worker sees it."""

    def __init__(self, door: Loopback, *, fab: bytes = b"", wait_s: float = 30.0) -> None:
        self.door = door
        self.fab = fab or bundle("/nonexistent/marker")
        stores = ObjectStoreFactory()
        factory = NodeStateFactory(objectstore_factory=stores)
        self.state, self.store = factory.state(), stores.store()
        self.state.set_node_id(7)
        self.server = uvicorn.Server(
            uvicorn.Config(
                create_app(factory, superexec_auth_secret=door.secret_file.read_bytes()),
                host=HOST,
                port=door.port,
                log_level="error",
                ws="none",
                ssl_certfile=str(door.certificate),
                ssl_keyfile=str(door.certificate_key),
            )
        )
        self._thread = threading.Thread(target=self.server.run, daemon=True)
        self._wait_s = wait_s

    def __enter__(self) -> Node:
        self._thread.start()
        while not self.server.started:
            if not self._thread.is_alive():
                raise RuntimeError("the Runtime API did not start")
            time.sleep(0.02)
        return self

    def __exit__(self, *error: object) -> None:
        self.server.should_exit = True
        self._thread.join(10)

    def ask(self, content: RecordDict, kind: str, *, study: str = "", ttl: float = 600.0, run_id: int = 11) -> Message:
        """Let a message of a run arrive, in Flower's own way; the message as it was sent."""
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run_id, 1  # of the sender
        message = Message(content, 7, kind, ttl=ttl)
        message.metadata.__dict__["_message_id"] = message.object_id
        objects = {key: thing.deflate() for key, thing in get_all_nested_objects(message).items()}
        digest = hashlib.sha256(self.fab).hexdigest()
        run = replace(Run.create_empty(run_id), fab_id="somebody/konsil", fab_version="0.1.0", fab_hash=digest)
        run.override_config, run.series_id = {"study": study}, run_id
        found = loop._pull_and_store_message(
            state=self.state,
            object_store=self.store,
            node_config={},
            receive=lambda: (loop_message(message), get_object_tree(message)),
            get_run=lambda asked: run,
            get_fab=lambda asked, number: Fab(digest, self.fab, {}),
            pull_object=lambda number, key: objects[key],
            confirm_message_received=lambda number, key: None,
            trusted_entities=None,
        )
        if found != run_id:
            raise RuntimeError("Flower did not take the message")
        return message

    def send_back(self) -> list[tuple[Message, dict[str, bytes]]]:
        """What Flower's loop would now send to the coordinator: each message with its objects. Waits until there is one."""
        sent: list[tuple[Message, dict[str, bytes]]] = []

        def send(message: Message, tree: object, seconds: float) -> tuple[set[str], str]:
            sent.append((message, {}))
            return {node.object_id for node in loop.iterate_object_tree(tree)}, uuid.uuid4().hex

        def push(run_id: int, session: str, key: str, content: bytes) -> None:
            sent[-1][1][key] = content

        sending = threading.Thread(
            target=loop._push_messages,
            kwargs={"state": self.state, "object_store": self.store, "send": send, "push_object": push},
            daemon=True,
        )
        sending.start()
        sending.join(self._wait_s)
        if sending.is_alive():
            raise TimeoutError("no answer")
        return sent

    def answer(self) -> Message:
        """The one answer, put together again as the coordinator would."""
        ((message, objects),) = self.send_back()
        if message.has_error():
            return message
        whole = inflated(message, objects)
        whole.metadata.__dict__.update(message.metadata.__dict__)
        return whole


def loop_message(message: Message) -> Message:
    """A message as it comes over the line: without its content."""
    from flwr.app.message import remove_content_from_message

    return remove_content_from_message(message)


def inflated(message: Message, objects: dict[str, bytes]) -> Message:
    """The message that these objects make."""
    from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

    rebuild: Callable[..., Message] = inflate_object_from_contents
    return rebuild(message.metadata.message_id, objects)
