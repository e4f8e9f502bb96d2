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
"""After which what failed is tried again, and what is made of something that keeps changing is made anew."""


@dataclass
class Job:
    """One piece of work: what it gave, or in words why it gave nothing."""

    begun: float = field(default_factory=time.monotonic)
    value: Any = None
    trouble: str = ""
    ended: str = ""  # when, ISO 8601, UTC
    made_of: tuple[Hashable, Hashable] = (None, None)
    over_at: float = 0.0
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

    def ask(
        self, key: Hashable, work: Callable[[], Any], *, wait_s: float = 0.0, of: Hashable = None, strictly_of: Hashable = None
    ) -> Job:
        """The job of this key, begun if need be; waits a moment for it to end.

        It is begun anew if it failed a while ago, if what it is made of (`of`) was another a while ago, and at once if
        `strictly_of` has changed. One that is running is never overtaken, so however often a page asks, there is one.
        """
        job = self.find(key)
        if job is not None and not job.running:
            a_while_ago = time.monotonic() - job.over_at > AGAIN_S
            changed = job.made_of != (of, strictly_of)
            if job.made_of[1] != strictly_of or (a_while_ago and (changed or job.trouble)):
                job = None
        if job is None:
            job = self.start(key, work, made_of=(of, strictly_of))
        job.over.wait(wait_s)
        return job

    def start(self, key: Hashable, work: Callable[[], Any], *, made_of: tuple[Hashable, Hashable] = (None, None)) -> Job:
        """Begin anew, unless it is running: then that one."""
        with self._lock:
            job = self._jobs.pop(key, None)
            if job is not None and job.running:
                self._jobs[key] = job
                return job
            done = [old for old, other in self._jobs.items() if not other.running]
            for old in done[: max(0, len(self._jobs) - KEPT + 1)]:
                del self._jobs[old]
            job = self._jobs[key] = Job(made_of=made_of)
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
            job.over_at = time.monotonic()
            job.ended = datetime.now(UTC).isoformat(timespec="seconds")
            job.over.set()


def in_words(error: Exception) -> str:
    """What to tell a person: our own exceptions speak for themselves, of others the kind is told, too."""
    if isinstance(error, (OSError, ChainBroken, RuntimeError)) or type(error) is ValueError:
        return str(error)
    return f"{type(error).__name__}: {error}"
