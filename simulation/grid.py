"""Flower's grid without a network: the coordinator's messages reach the sites' ClientApp inside this process.

The same ServerApp, ClientApp and strategies run as in a deployment; only the wire is missing, so a round costs
milliseconds where a simulation engine costs seconds. Messages are copied at the wall, node state lives as long as the
grid, and with `workers` the sites train in that many processes, with the same numbers. Works for any Flower app.
"""

from __future__ import annotations

import copy
import importlib
import multiprocessing
import os
import sys
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Self
from uuid import uuid4

import torch
from flwr.app import Context, Error, Message, RecordDict
from flwr.app.user_config import UserConfigValue
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

DIED = "a worker process died, perhaps for lack of memory"
FIRST_NODE = 2  # Flower's SuperLink is node 1, and writes its own error replies under that number

_Answer = tuple[Message, Context, float]  # the reply, the node's context afterwards, seconds the site took


class InProcessGrid(Grid):
    """A `Grid` whose nodes are contexts in this process. Node i of `node_configs` has the id `FIRST_NODE + i`.

    Parameters
    ----------
    client_app
        The ClientApp, or its import path `"package.module:attribute"`; with workers it has to be the path.
    node_configs
        One mapping per node, which the ClientApp sees as `context.node_config`.
    run_config
        What every ClientApp sees as `context.run_config`.
    workers
        0: sites work one after the other in this process. n: in n processes, started when first needed.
    pool
        Worker processes that exist already, instead of `workers`; they stay open when the grid closes. If one of them dies,
        the sites at work are answered for with an error, and the next messages raise `BrokenProcessPool`; a grid with
        workers of its own starts new ones.
    threads
        Torch threads of one site's work, in either case. Sums over threads are rounded in another order, so the numbers
        are equal between engines only at an equal number of threads.

    Messages wait until their answers are pulled: `pull_messages` lets one site work or, with workers, so many that none is
    idle, and returns what is there, so that no more answers lie in memory than can be made at a time. Which site worked when
    changes no number; a node answers one message at a time, in the order in which they were pushed.

    A message lives `ttl` seconds, and a reply that took a site longer is not delivered, as on a real grid. Each site's own
    working time counts (`took`), not the time it waited for a worker: real sites work side by side.

    Creating a grid sets Flower's process-wide `TaskIdentity`, without which no `Message` can be made.

    >>> grid = InProcessGrid("fl_client.app:app", [{"site": "hospitals/a/site.yaml"}], {"study": "..."})
    """

    def __init__(
        self,
        client_app: ClientApp | str,
        node_configs: Sequence[Mapping[str, UserConfigValue]],
        run_config: Mapping[str, UserConfigValue] | None = None,
        *,
        workers: int = 0,
        pool: Executor | None = None,
        threads: int = 1,
        run_id: int = 1,
    ) -> None:
        if workers < 0 or threads < 1:
            raise ValueError(f"workers must be 0 or more and threads 1 or more, not {workers} and {threads}")
        if (workers or pool) and not isinstance(client_app, str):
            raise ValueError('with workers the ClientApp must be given by its import path, like "fl_client.app:app"')
        self._app = client_app
        self._workers, self._threads = workers, threads
        self._in_processes = bool(workers or pool)
        self._run = Run.create_empty(run_id=run_id)
        self._messages: dict[str, tuple[Message, int, float]] = {}  # id -> not yet answered, its node, the seconds it may take
        self._turns: dict[int, deque[str]] = {}  # node -> ids of its messages; the first is the one that it is at
        self._at_work: dict[Future[_Answer], tuple[str, Executor | None]] = {}
        self._replies: dict[str, Message] = {}
        self._seconds: dict[str, float] = {}
        self._given, self._pool = pool, pool
        self._given_broke = False
        self.contexts = {
            FIRST_NODE + i: Context(run_id, FIRST_NODE + i, dict(config), RecordDict(), dict(run_config or {}))
            for i, config in enumerate(node_configs)
        }
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run_id, 1

    # -- what a ServerApp asks of a grid ---------------------------------------------------------------------------

    def set_run(self, run: Run) -> None:
        """Use Flower's description of this run."""
        self._run = run

    @property
    def run(self) -> Run:
        """Flower's description of this run."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message for one node; the same as `flwr.app.Message(...)`."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """Ids of all nodes, in the order of their configurations."""
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Let the messages wait for their nodes' turns, and return their ids.

        Raises `BrokenProcessPool` if a worker of the given pool has died, `ValueError` for a node that there is not.
        """
        messages = list(messages)
        if messages:
            self.require_workers()  # else every further round would fail as if the hospitals had been at fault
        for message in messages:
            if message.metadata.dst_node_id not in self.contexts:
                raise ValueError(f"no node {message.metadata.dst_node_id}; this grid has {self.get_node_ids()}")
        for message in messages:
            asked = message.metadata.__dict__["_message_id"] = uuid4().hex  # as Flower's own grids do
            left = message.metadata.created_at + message.metadata.ttl - time.time()
            if left >= 0:
                node = message.metadata.dst_node_id
                self._messages[asked] = copy.copy(message), node, left  # its sender may put other content into it
                self._turns.setdefault(node, deque()).append(asked)
        return [message.metadata.message_id for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Replies that are there, each once; if there are none yet, nodes work until there is one or nothing to do."""
        wanted = list(message_ids)
        while not any(asked in self._replies for asked in wanted):
            if not (self._work_in_workers(wanted) if self._in_processes else self._work_in_turn(wanted)):
                break
        return [self._replies.pop(asked) for asked in wanted if asked in self._replies]

    def took(self, question: str) -> float:
        """Seconds that a site worked on a message which it has answered. Raises `KeyError` for any other."""
        return self._seconds[question]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Push, and pull the replies of those sites that took no longer than `timeout` seconds."""
        asked = list(self.push_messages(messages))
        replies: dict[str, Message] = {}
        while found := self.pull_messages([i for i in asked if i not in replies]):
            replies |= {reply.metadata.reply_to_message_id: reply for reply in found}
        return [replies[i] for i in asked if i in replies and (timeout is None or self._seconds[i] <= timeout)]

    # -- the sites at work --------------------------------------------------------------------------------------------

    def _next_of(self, wanted: list[str]) -> list[str]:
        """What the nodes have to do first, so that the wanted answers come."""
        nodes = [self._messages[asked][1] for asked in wanted if asked in self._messages]
        return [self._turns[node][0] for node in dict.fromkeys(nodes)]

    def _work_in_turn(self, wanted: list[str]) -> bool:
        """One site answers one message; whether there was one."""
        first = self._next_of(wanted)
        if first:
            message, node, _ = self._messages[first[0]]
            self._answered(first[0], _work(self._app, self._threads, message, self.contexts[node]))
        return bool(first)

    def _work_in_workers(self, wanted: list[str]) -> bool:
        """Keep the workers busy until one of them is done; whether there was anything to do."""
        first = self._next_of(wanted)
        if not first:
            return False
        under_way = {asked for asked, _ in self._at_work.values()}
        for asked in first:
            if asked not in under_way and len(self._at_work) < 2 * (self._workers or os.cpu_count() or 1):
                self._submit(asked)
        ours = [future for future, (asked, _) in self._at_work.items() if asked in first]
        done, _ = wait(ours or self._at_work, return_when=FIRST_COMPLETED)
        for future in done:
            asked, pool = self._at_work.pop(future)
            try:
                self._answered(asked, future.result())
            except BrokenProcessPool:
                self._given_broke = self._given is not None
                if pool is self._pool:
                    self.close()  # the next message starts a new pool
                message, node, _ = self._messages[asked]
                error = Message(Error(ErrorCode.CLIENT_APP_CRASHED, DIED), reply_to=message)
                self._answered(asked, (error, self.contexts[node], 0.0))
        return True

    def _answered(self, asked: str, answer: _Answer) -> None:
        reply, context, seconds = answer
        _, node, left = self._messages.pop(asked)
        self._turns[node].popleft()
        self.contexts[node] = context
        if seconds <= left:
            reply.metadata.__dict__["_message_id"] = uuid4().hex
            self._replies[asked], self._seconds[asked] = reply, seconds

    def _submit(self, asked: str) -> None:
        message, node, _ = self._messages[asked]
        pool: Executor | None = None
        try:
            pool = self._pool_of_workers()
            future = pool.submit(_work, self._app, self._threads, message, self.contexts[node])
        except BrokenProcessPool as error:  # it was noticed before this message was handed over
            future = Future()
            future.set_exception(error)
        self._at_work[future] = asked, pool

    def _pool_of_workers(self) -> Executor:
        if self._pool is None:
            # spawn, not fork: torch's threads and CUDA don't survive a fork
            spawn = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self._workers, spawn, initializer=_begin, initargs=(sys.path,))
        return self._pool

    def require_workers(self) -> None:
        """Raise `BrokenProcessPool` if a worker died in the pool that this grid was given."""
        if self._given_broke:
            raise BrokenProcessPool(f"{DIED}; no other can take its place in the pool that this grid was given")

    def close(self) -> None:
        """End the worker processes that this grid started, if any."""
        if self._pool is not None and self._given is None:
            self._pool.shutdown(wait=True)
            self._pool = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _begin(path: list[str]) -> None:
    sys.path[:] = path


def _work(client_app: ClientApp | str, threads: int, message: Message, context: Context) -> _Answer:
    """One site answers one message. An exception becomes an error reply, with the text Flower's runtimes give it."""
    start, before = time.perf_counter(), torch.get_num_threads()
    torch.set_num_threads(threads)
    context = copy.deepcopy(context)
    try:
        app = _load(client_app) if isinstance(client_app, str) else client_app
        copied = copy.deepcopy(message)  # a wire copies; without it a site could change the server's arrays
        copied.metadata.created_at = time.time()  # real sites work side by side: none has waited for those before it
        reply = app(copied, context)
    except Exception as error:
        reason = f"{type(error)}:<'{error}'>"
        reply = Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)
    finally:
        torch.set_num_threads(before)
    return copy.deepcopy(reply), context, time.perf_counter() - start


def _load(path: str) -> ClientApp:
    module, _, attribute = path.partition(":")
    app = getattr(importlib.import_module(module), attribute or "app")
    if not isinstance(app, ClientApp):
        raise TypeError(f"{path} is a {type(app).__name__}, not a flwr.clientapp.ClientApp")
    return app
