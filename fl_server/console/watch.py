"""Staying beside a study until it is over: the live view in a terminal, plain lines anywhere else.

Whoever stops looking stops nothing. A study that was interrupted is waited for, where a coordinator takes it up again.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

from fl_server.commands import EXIT, LEFT, UNDECIDED
from fl_server.console.events import Event, Teller
from fl_server.console.files import Files, Found
from fl_server.console.picture import Picture, seen
from fl_server.console.words import told

LOOK_S = 0.5
"""Seconds between two looks at a study's folder."""

PATIENCE = 10
"""Looks at files that can't be read, before that is said: one may be in the middle of being replaced."""

Sight: TypeAlias = tuple[Found, Picture]


def watch(files: Files, name: str, *, patient: bool, live: bool, tell: Callable[[Event], None] | None = None) -> int:
    """Show the study until it is over; the exit status is its verdict's, `LEFT` after Ctrl-C, `UNDECIDED` without a verdict.

    With `patient`, a study whose process is gone is waited for: somebody will start it again. With `live` the screen is drawn
    anew twice a second, else `tell` hears of each thing that happens. Raises `OSError` and `ValueError` for what can't be read.
    """
    try:
        with _leaving() as left:
            if live:
                last = _drawn(files, name, patient=patient, left=left)
            else:
                line = tell or (lambda event: print(event.line, flush=True))
                last = _told(files, name, patient=patient, tell=line, left=left)
    except KeyboardInterrupt:
        words = f"you have stopped looking, the study goes on; konsil-study watch {name} looks again, stop {name} ends it"
        print(f"\n{words}", file=sys.stderr)
        return LEFT
    if tell is None:
        print("\n".join(told(last)))
    return status(last)


@contextmanager
def _leaving() -> Iterator[threading.Event]:
    """Set at Ctrl-C, which is heard between two looks: raised in the middle of one, it may end in somebody's clean-up.

    The second Ctrl-C is raised wherever it comes.
    """
    left = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # who is no main thread hears no signals
        yield left
        return

    def hear(number: int, frame: object) -> None:
        if left.is_set():
            raise KeyboardInterrupt
        left.set()

    before = signal.signal(signal.SIGINT, hear)
    try:
        yield left
    finally:
        signal.signal(signal.SIGINT, before)


def status(last: Picture) -> int:
    """The exit status that a picture stands for."""
    if last.state == "unreadable":
        return 1
    return EXIT[last.verdict] if last.over and last.verdict is not None else UNDECIDED


def _told(files: Files, name: str, *, patient: bool, tell: Callable[[Event], None], left: threading.Event) -> Picture:
    teller = Teller(tell)
    for read, one in _sights(files, name, patient=patient, left=left):
        teller(read)
        last = one
    return last


def _drawn(files: Files, name: str, *, patient: bool, left: threading.Event) -> Picture:
    from rich.console import Console
    from rich.live import Live

    from fl_server.console.view import View

    with Live(console=Console(highlight=False), auto_refresh=False, transient=True) as screen:
        for _, last in _sights(files, name, patient=patient, left=left):
            screen.update(View(last), refresh=True)
    return last


def _sights(files: Files, name: str, *, patient: bool, left: threading.Event) -> Iterator[Sight]:
    """What is seen of the study, look after look, until there is nothing more to see; at least once.

    Raises `KeyboardInterrupt` when `left` is set.
    """
    failures = gone = 0
    while True:
        try:
            read = files.read()
        except (OSError, ValueError):
            failures += 1
            if failures > PATIENCE:
                raise
        else:
            failures = 0
            last = seen(files, name, read)
            gone = gone + 1 if last.state == "interrupted" else 0
            yield read, last
            if last.over or (gone > 1 and not patient):  # one look may fall between a process's last word and its end
                return
        if left.wait(LOOK_S):
            raise KeyboardInterrupt
