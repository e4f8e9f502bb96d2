"""Crashes of a hospital's process: a real process, killed with SIGKILL at the instant that the fault is about.

The answer is worked on in a child process. Where it has to die is found by what it does: when it opens its ledger to write,
when it touches the first patient after the ledger's line, when the answer is ready. The coordinator hears what Flower's
SuperLink says of a process that is gone. What the child wrote stays written, half or whole, as after a real crash.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, ClassVar, Literal

from simulation.faults.fault import Answer, InHospital

if TYPE_CHECKING:
    from flwr.app import Context, Message

Instant = Literal["start", "ledger", "training", "reply"]
WORDS = "ClientApp stopped responding."  # Flower's own
IMPORTED = ["fl_client.app", "monai.networks.nets", "simulation.faults.hospital"]
"""What children find imported already: the one that they are copied from has done it, once."""


class Crash(InHospital):
    """A fault that kills the process at one instant of its work."""

    asked: ClassVar[frozenset[str]] = frozenset({"train", "evaluate"})
    instant: ClassVar[Instant]

    def around(self, answer: Answer, question: Message, context: Context) -> Message:
        """Nothing but Flower's words about it; the child's answer if it never came to that instant."""
        reply = answered_in_child(_until_killed, self.instant, answer, question, context)
        return crashed(question) if reply is None else reply


class CrashBeforeTraining(Crash):
    """The process dies as soon as it has the question; nothing was paid."""

    fault: Literal["crash_before_training"]
    instant: ClassVar[Instant] = "start"


class CrashBeforeLedger(Crash):
    """The process dies at the instant at which it would write its ledger; nothing was paid."""

    fault: Literal["crash_before_ledger"]
    instant: ClassVar[Instant] = "ledger"


class CrashInTraining(Crash):
    """The process dies after the ledger's line, while it trains: paid for, and nothing left the house."""

    fault: Literal["crash_in_training"]
    instant: ClassVar[Instant] = "training"
    in_federation: ClassVar[bool] = True


class CrashBeforeReply(Crash):
    """The process dies when its answer is ready and has not left: paid for, and nothing left the house."""

    fault: Literal["crash_before_reply"]
    instant: ClassVar[Instant] = "reply"


def crashed(question: Message) -> Message:
    """What the coordinator hears of a process that is gone."""
    from flwr.app import Error, Message
    from flwr.common.constant import ErrorCode

    return Message(Error(ErrorCode.CLIENT_APP_CRASHED, WORDS), reply_to=question)


def answered_in_child(work: _Work, instant: Instant, answer: Answer, question: Message, context: Context) -> Message | None:
    """What `work(instant, answer, question, context)` gives in a process of its own; None if that one died.

    Everything given has to be picklable.
    """
    processes = multiprocessing.get_context("forkserver")  # not fork: threads of this process don't survive it
    processes.set_forkserver_preload(IMPORTED)
    here, there = processes.Pipe(duplex=False)
    child = processes.Process(target=_child, args=(there, sys.path, work, instant, answer, question, context))
    child.start()
    there.close()
    try:
        reply: Message | None = here.recv()
    except EOFError:
        reply = None
    finally:
        here.close()
        child.join()
        child.close()
    return reply


def _child(
    out: Connection, path: list[str], work: _Work, instant: Instant, answer: Answer, question: Message, context: Context
) -> None:
    import torch

    sys.path[:] = path
    torch.set_num_threads(1)
    out.send(work(instant, answer, question, context))
    out.close()


def _until_killed(instant: Instant, answer: Answer, question: Message, context: Context) -> Message:
    if instant == "start":
        _die()
    if instant in ("ledger", "training"):
        sys.addaudithook(_Watch(instant))
    reply = answer(question, context)
    if instant == "reply":
        _die()
    return reply


class _Watch:
    """Looks at the files that this process opens and renames."""

    def __init__(self, instant: Instant) -> None:
        self.instant = instant
        self.paid = False

    def __call__(self, event: str, told: tuple[object, ...]) -> None:
        if event == "open":
            path, flags = str(told[0]), told[2] if len(told) > 2 and isinstance(told[2], int) else 0
            if self.instant == "ledger" and path.endswith("/ledger.jsonl") and flags & os.O_RDWR:
                _die()
            if self.instant == "training" and self.paid and "/cohort" in path:
                _die()
        elif event == "os.rename" and str(told[1]).endswith("/ledger.jsonl.head"):
            self.paid = True


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


if TYPE_CHECKING:
    from collections.abc import Callable

    _Work = Callable[[Instant, Answer, Message, Context], Message]
