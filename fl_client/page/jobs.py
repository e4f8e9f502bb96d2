"""Work that takes longer than a person waits for a page: done in a thread, asked for again by the page until it is there.

Results are kept in memory only, and few of them; a restart forgets them, which costs nothing but the time to make them again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from fl_client.chain import ChainBroken

AT_ONCE = 2
"""Threads that work at the same time; training next door needs the rest of the machine."""

KEPT = 40
"""Results that are remembered."""

AGAIN_S = 10.0
"""After which what failed is tried again."""


@dataclass
class Job:
    """One piece of work: what it gave, or in words why it gave nothing."""

    begun: float = field(default_factory=time.monotonic)
    value: Any = None
    trouble: str = ""
    ended: str = ""  # when, ISO 8601, UTC
    over: threading.Event = field(default_factory=threading.Event)

    @property
    def running(self) -> bool:
        """Whether it isn't done yet."""
        return not self.over.is_set()

    @property
    def seconds(self) -> int:
        """How long it has been running."""
        return int(time.monotonic() - self.begun)


class Jobs:
    """Pieces of work by key. Any thread may ask."""

    def __init__(self) -> None:
        self._jobs: dict[Hashable, Job] = {}
        self._lock = threading.Lock()
        self._room = threading.BoundedSemaphore(AT_ONCE)

    def find(self, key: Hashable) -> Job | None:
        """The job of this key, if there is one."""
        with self._lock:
            return self._jobs.get(key)

    def ask(self, key: Hashable, work: Callable[[], Any], *, wait_s: float = 0.0) -> Job:
        """The job of this key; begun if there is none, or if it failed a while ago. Waits a moment for it to end."""
        job = self.find(key)
        failed_long_ago = job is not None and not job.running and job.trouble and time.monotonic() - job.begun > AGAIN_S
        if job is None or failed_long_ago:
            job = self.start(key, work)
        job.over.wait(wait_s)
        return job

    def start(self, key: Hashable, work: Callable[[], Any]) -> Job:
        """Begin anew, unless it is running: then that one."""
        with self._lock:
            job = self._jobs.pop(key, None)
            if job is not None and job.running:
                self._jobs[key] = job
                return job
            done = [old for old, other in self._jobs.items() if not other.running]
            for old in done[: max(0, len(self._jobs) - KEPT + 1)]:
                del self._jobs[old]
            job = self._jobs[key] = Job()
        # a daemon's thread: whoever stops the page doesn't wait for a count
        threading.Thread(target=self._run, args=(job, work), daemon=True).start()
        return job

    def _run(self, job: Job, work: Callable[[], Any]) -> None:
        try:
            with self._room:
                job.value = work()
        except Exception as error:
            job.trouble = in_words(error)
        finally:
            job.ended = datetime.now(UTC).isoformat(timespec="seconds")
            job.over.set()


def in_words(error: Exception) -> str:
    """What to tell a person: our own exceptions speak for themselves, of others the kind is told, too."""
    if isinstance(error, (OSError, ChainBroken, RuntimeError)) or type(error) is ValueError:
        return str(error)
    return f"{type(error).__name__}: {error}"
