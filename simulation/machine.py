"""What the rehearsal costs the machine: processes that share the work, memory of all of them, seconds by phase.

Workers are forked from a clean server process that has imported torch once, with one thread each: two hospitals on two
cores are faster than one hospital on two threads, and the numbers don't depend on how many there are. A worker ends with the
process that it works for.
"""

from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, TypeVar

import psutil

from fl_client.heap import give_back, keep_large_blocks
from fl_client.orphans import end_with_main
from simulation.whole_file import write_whole

T = TypeVar("T")


class Immediately(Executor):
    """An executor without workers: everything happens here, when it is submitted."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Run the call and hand back a finished future."""
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def executor(workers: int | None) -> Executor:
    """Worker processes; None: one per core; 0: no processes."""
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if workers == 0:
        return Immediately()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["simulation.preload"])
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_worker)


def one_thread() -> None:
    """Give this process one computing thread: floating-point sums then don't depend on the machine's cores."""
    import torch

    torch.set_num_threads(1)


def _begin_worker() -> None:
    end_with_main()
    one_thread()
    keep_large_blocks()
    logging.getLogger("flwr").setLevel(logging.WARNING)  # its lines would tear the progress bars


def unordered(pool: Executor, call: Callable[..., T], jobs: Iterable[tuple[Any, ...]]) -> Iterator[T]:
    """Results of `call(*job)` as they are ready. The first failure cancels what has not begun, and is raised."""
    futures = [pool.submit(call, *job) for job in jobs]
    try:
        for future in as_completed(futures):
            yield future.result()
    finally:
        for future in futures:
            future.cancel()


class Meter:
    """Seconds and peak memory by phase, of this process and its children together (proportional set size, MiB).

    `notes` is a file that holds both while the work is unfinished: a run that was interrupted adds to them. Memory is looked
    at every `interval_s` and at the end of each phase.
    """

    def __init__(self, notes: Path, *, interval_s: float = 0.5) -> None:
        self._notes = notes
        kept: dict[str, Any] = json.loads(notes.read_text()) if notes.exists() else {}
        self.peak_memory_mb: float = kept.pop("peak_memory_mb", 0.0)
        self.memory_mb: dict[str, float] = kept.pop("memory_mb", {})
        self.timings: dict[str, float] = kept
        self._phase: str | None = None
        self._looking = threading.Lock()
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Meter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._look()

    def finish(self) -> None:
        """The work is done: the next run begins at zero."""
        self._notes.unlink(missing_ok=True)

    @property
    def total_s(self) -> float:
        """Seconds of all phases together."""
        return sum(self.timings.values())

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the seconds of the `with` block to the phase, and note the peak of memory in it. Phases follow one another."""
        give_back()  # what the phase before has freed is not this one's
        begin, self._phase = time.monotonic(), name
        try:
            yield
        finally:
            self.timings[name] = self.timings.get(name, 0.0) + time.monotonic() - begin
            self._look()  # a short phase may have fallen between two looks
            self._phase = None
            memory = {"peak_memory_mb": self.peak_memory_mb, "memory_mb": self.memory_mb}
            write_whole(self._notes, json.dumps({**self.timings, **memory}))  # a run that is killed here has to find it whole

    def _watch(self) -> None:
        while not self._stop.wait(self._interval_s):
            self._look()

    def _look(self) -> None:
        with self._looking:  # the watching thread and the end of a phase may look at once
            phase, memory = self._phase, _memory_mb()
            self.peak_memory_mb = max(self.peak_memory_mb, memory)
            if phase is not None:
                self.memory_mb[phase] = max(self.memory_mb.get(phase, 0.0), memory)


def _memory_mb() -> float:
    """Memory of this process and its children now."""
    me = psutil.Process()
    total = 0.0
    for process in [me, *me.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):  # a worker may have ended meanwhile
            info = process.memory_full_info()
            total += getattr(info, "pss", info.rss)  # shared pages count once; not every system knows them
    return total / 2**20
