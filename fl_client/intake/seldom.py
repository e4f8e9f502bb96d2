"""Lines for the log that a sender or a folder can cause as often as it likes: the same sentence once a minute."""

from __future__ import annotations

import logging
import math
import threading
import time

SAY_AGAIN_S = 60.0
MOST = 1000  # sentences that are remembered

log = logging.getLogger("konsil.intake")


class Seldom:
    """Says a sentence unless it was said just now. Threads may share one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._said: dict[str, float] = {}  # sentences, and when

    def warning(self, words: str) -> None:
        """Say it, as a warning."""
        now = time.monotonic()
        with self._lock:
            if now - self._said.get(words, -math.inf) < SAY_AGAIN_S:
                return
            if len(self._said) > MOST:
                self._said.clear()
            self._said[words] = now
        log.warning(words)
