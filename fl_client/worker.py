"""The warm worker: takes the coordinator's messages from the SuperNode and answers them with the konsil installed here.

The app bundle that comes with a run is neither unpacked nor imported; its hash is noted in the audit log. What runs is
`fl_client.app:app`, imported once, so that a round starts without loading torch anew. One message is answered at a time. An
exception here becomes a bare failure; its text stays in the site's log.
`python -m fl_client.worker --site site.yaml` runs it beside a SuperNode (`supernode.py`); `konsil-site start` runs both.
Which internals of Flower this leans on is pinned in tests/fl_client/test_flower_contract.py.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import httpx

from conf.imports import import_monai_alone
from fl_client.halt import halted
from fl_client.heap import give_back, keep_large_blocks
from fl_client.loopback import Loopback, write_private
from fl_client.sharing import kept_to
from fl_client.site import Site
from fl_client.supernode import environment, pause_s, prompt_pulls, runtime_folder

if TYPE_CHECKING:
    from flwr.app import Context, Message
    from flwr.clientapp import ClientApp
    from flwr.supercore.runtime import RuntimeHttpClient

STOPPED = 3
"""Exit status when the hospital's switch says that nothing may run (see `halt.py`)."""

_ACQUIRE = "/flwr.proto.Runtime/AcquireTask"

log = logging.getLogger("konsil.worker")


class Worker:
    """Answers messages for one hospital, one after the other, until it is told to stop."""

    def __init__(self, settings: Path, app: ClientApp | None = None) -> None:
        from fl_client.app import app as own  # here: torch takes seconds, and Flower reads the environment at its import

        self.settings = settings.resolve()
        self.site = Site.load(self.settings)
        self.app = app or own
        self.stop = threading.Event()
        prompt_pulls()
        self._last = time.monotonic() - 3600.0
        self._door: Loopback | None = None
        self._client: RuntimeHttpClient | None = None

    def run(self) -> int:
        """Look for messages and answer them. Returns `STOPPED` if the hospital's switch says so, else 0 when told to stop."""
        while not self.stop.is_set():
            if halted(self.site.folder) == "stopped":
                return STOPPED
            token = self._acquire()
            if token:
                self.answer(token)
                give_back()  # between two rounds lie hours
                self._last = time.monotonic()
            else:
                self.stop.wait(0.5 * pause_s(time.monotonic() - self._last))
        return 0

    def warm(self) -> None:
        """Import and build once what the approved studies need, so that their first round does not wait for it.

        Answers of studies that are over go, and the pace is measured for those that have a time.
        """
        from fl_client import sent
        from fl_client.app import task_of
        from fl_client.approval import Approvals
        from fl_client.pace import steps_of
        from fl_client.price import planned
        from tasks.task import GradientTask

        try:
            sent.tidy(self.site)
        except OSError as error:  # what is over is refused all the same
            log.warning("kept answers can't be looked through: %s", error)
        try:
            approvals = Approvals(self.site.folder)
            studies = approvals.studies
            approved = [key for key, said in approvals.decisions.items() if said.decision == "approved" and key in studies]
        except (OSError, ValueError) as error:  # check and status tell a person; each study is declined until it is mended
            log.warning("the decisions can't be read, and nothing is prepared: %s", error)
            return
        for study in (studies[key] for key in approved):
            try:
                task = task_of(self.site, study)
                planned(self.site, study, task)
                if isinstance(task, GradientTask):
                    task.model()
                    steps_of(self.site, study, task)
            except Exception as error:  # the study will say so itself, should it be asked for
                log.info("study %s can't be prepared: %s", study.name, type(error).__name__)

    def _acquire(self) -> str:
        """The token of the next message, or nothing: no message, or no SuperNode for the time being."""
        from flwr.proto.runtime_pb2 import AcquireTaskRequest
        from flwr.supercore.constant import TaskType

        door = Loopback.read(runtime_folder(self.site))
        if door is None:
            return ""
        try:
            if self._client is None or door != self._door:  # a SuperNode that was started anew has another door
                self.close()
                self._client, self._door = self._knock(door), door
            found = self._client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP]))
        except (httpx.HTTPError, OSError) as error:  # it is just starting, or gone; TLS errors are among them
            log.debug("no SuperNode at %s: %s", door.address, error)
            self.close()
            return ""
        return str(found.token) if found.HasField("task") else ""

    def close(self) -> None:
        """Hang up. The next look for a message knocks again."""
        if self._client is not None:
            self._client.close()
        self._client = None

    def answer(self, token: str) -> None:
        """Take one message, answer it, and hand the answer over. What goes wrong here is logged; the SuperNode tells the rest.

        If the message can't be taken, or the answer not be handed over, the claim is left to lapse: the SuperNode then answers
        in our place that the app stopped responding.
        """
        from flwr.common.constant import SubStatus
        from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, ObjectPushError
        from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

        door = self._door or Loopback.read(runtime_folder(self.site))
        if door is None:
            return
        client = self._knock(door, token)
        beat = Heartbeat(client)
        beat.start()
        try:
            self._tell("taking a message")
            question, context, run, bundle = pull_task_input(client)
            context.node_config = {"site": str(self.settings)}  # ours, whatever came
            digest = hashlib.sha256(bundle.content).hexdigest()
            del bundle  # never unpacked
            self._note(question, run_id=run.run_id, bundle=digest)
            self._tell("working", run=str(run.run_id), message=question.metadata.message_type)
            answer = self._answered(question, context)
            if halted(self.site.folder) == "stopped" and not answer.has_error():  # nothing leaves any more but words
                log.warning("stopped by the hospital's switch; the answer to run %s was not handed over", run.run_id)
                self.stop.set()
                return
            self._tell("handing over an answer", run=str(run.run_id), message=question.metadata.message_type)
            push_message(client, answer, context)
            push_task_output(client, context, SubStatus.COMPLETED, "")
        except (httpx.HTTPError, ObjectPullError, ObjectPushError) as error:
            # between us and the SuperNode: where in our own code would help nobody
            log.warning("a message was not answered: %s", lost(error))
        except Exception:
            log.exception("a message was not answered")
        finally:
            self._tell("waiting")
            beat.stop()
            client.close()

    def _answered(self, question: Message, context: Context) -> Message:
        """The app's answer, or a refusal if the question's time is over. Told to end while it works, the worker says so."""
        from fl_client import release

        try:
            return release.guarded(self._work)(question, context)
        except BaseException as error:
            if isinstance(error, Exception):
                raise
            self.stop.set()
            return release.guarded(_ended)(question, context)

    def _work(self, question: Message, context: Context) -> Message:
        from fl_client.approval import Declined

        meta = question.metadata
        if time.time() > meta.created_at + meta.ttl:  # nobody waits for it: to work on it would cost privacy for nothing
            raise Declined("the time for this question was over before it came to its turn here")
        return self.app(question, context)

    def _note(self, question: Message, *, run_id: int, bundle: str) -> None:
        """A line in the audit log before anything is done. Raises `OSError`: what can't be written down isn't done."""
        from flwr.app import ConfigRecord

        from fl_client.audit import AuditLog

        config = question.content.config_records.get("config", ConfigRecord()) if question.has_content() else ConfigRecord()
        study = config.get("study-hash")
        AuditLog(self.site.folder / "audit.jsonl").append(
            "asked",
            run=str(run_id),
            message=question.metadata.message_type[:64],
            study=study[:64] if isinstance(study, str) else "",
            bundle=bundle,
            bundle_ran=False,
        )

    def _tell(self, doing: str, **facts: str) -> None:
        """What the worker is doing, for `status`, the page and the daemon."""
        try:
            told = json.dumps({"doing": doing, "pid": os.getpid(), "since": time.time(), **facts})
            write_private(runtime_folder(self.site) / "worker.json", told.encode())
        except OSError as error:
            log.warning("what the worker is doing could not be written down: %s", error)

    def _knock(self, door: Loopback, token: str = "") -> RuntimeHttpClient:
        """A connection to the SuperNode: for looking for messages, or, with a token, for one message."""
        from flwr.supercore.interceptors import (
            RuntimeTokenHttpInterceptor,
            RuntimeVersionHttpInterceptor,
            SuperExecAuthHttpInterceptor,
        )
        from flwr.supercore.runtime import RuntimeHttpClient

        key: RuntimeTokenHttpInterceptor | SuperExecAuthHttpInterceptor
        if token:
            key = RuntimeTokenHttpInterceptor(token)
        else:
            key = SuperExecAuthHttpInterceptor(master_secret=door.secret_file.read_bytes(), protected_methods={_ACQUIRE})
        return RuntimeHttpClient.from_server_address(
            server_address=door.address,
            insecure=False,
            root_certificates=door.certificate.read_bytes(),
            interceptors=[RuntimeVersionHttpInterceptor(component_name="konsil"), key],
            retry_invoker=None,  # Flower's own ends the process when it is refused
        )


class Heartbeat:
    """Tells the SuperNode that a message is still being worked on, from a thread, until stopped.

    Flower's own ends the process when the SuperNode no longer knows the message; ours lets the work come to its end, because
    it has been paid for, and leaves it to the handing over to fail.
    """

    EVERY_S = 15.0  # the SuperNode gives up after 60

    def __init__(self, client: RuntimeHttpClient) -> None:
        self._client = client
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End; returns when the last beat is over."""
        self._over.set()
        self._thread.join()

    def _beat(self) -> None:
        from flwr.proto.runtime_pb2 import SendTaskHeartbeatRequest

        while not self._over.wait(self.EVERY_S):
            try:
                self._client.SendTaskHeartbeat(SendTaskHeartbeatRequest())
            except (httpx.HTTPError, ValueError) as error:
                log.warning("the SuperNode does not hear: %s", type(error).__name__)


def lost(error: Exception) -> str:
    """What it means, in words, that the SuperNode can't be talked with about a message that was taken."""
    if isinstance(error, httpx.HTTPStatusError) and error.response.status_code == httpx.codes.UNAUTHORIZED:
        return "the SuperNode waits for it no longer: its run has ended, or the SuperNode was started anew"
    if not isinstance(error, httpx.HTTPError):
        return f"the SuperNode has no place for its parts any more, as when its run has ended ({error})"
    return f"the SuperNode is gone or out of order ({type(error).__name__}: {error})"


def main(arguments: Sequence[str] | None = None) -> int:
    """Work until SIGTERM or SIGINT. A message that is being worked on then is answered with a failure."""
    parser = argparse.ArgumentParser(prog="fl_client.worker", description="answers the coordinator's messages")
    parser.add_argument("--site", type=Path, required=True)
    settings = parser.parse_args(arguments).site
    logging.basicConfig(level=logging.INFO, format="%(asctime)s worker: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    site = Site.load(settings)
    os.environ.update(environment(site))
    os.environ.pop("no_proxy", None)
    keep_large_blocks()
    import_monai_alone()

    def work() -> int:
        worker = Worker(settings)
        worker.warm()
        log.info("%s is ready", site.name)
        return worker.run()

    with kept_to(site.folder):
        return obey_signals(work)


def obey_signals(work: Callable[[], int]) -> int:
    """`work` until it is done or SIGTERM or SIGINT comes; its exit status, or 0."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    try:
        return work()
    except Leave:
        return 0


class Leave(BaseException):
    """The process was told to end. No `except Exception` on the way may swallow it."""


def _ended(question: Message, context: Context) -> Message:
    raise InterruptedError("the worker was told to end while it worked on this")


def _leave(number: int, frame: FrameType | None) -> None:
    raise Leave


if __name__ == "__main__":
    sys.exit(main())
