"""The intake as a program in the foreground: the door, the watch folder, and the process that works off what arrives.

Images are read in a process of their own, so that a codec that crashes on one image takes the readers down and not the door;
it is started again, and an image that was read twice before such an end is put aside. Ends on SIGTERM and SIGINT.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from fl_client import crashes
from fl_client.intake.incoming import Incoming, clean_folder, only_one
from fl_client.intake.listening import out_of_reach
from fl_client.intake.watch import WatchFolder
from fl_client.site import Site

LONGEST_PAUSE_S, STOP_S = 60.0, 20.0

log = logging.getLogger("konsil.intake")


def open_door(site: Site, settings: Path) -> int:
    """Receive and watch until told to stop; the arrivals in a process of their own. Raises `InUse`, `OSError`, `ValueError`."""
    from fl_client.intake.receive import DicomReceiver  # here: a site without a door needs no pynetdicom

    if site.dicom is None and site.arrivals.watch is None:
        raise ValueError("neither dicom nor arrivals.watch is set in this site's settings: there is no way in")
    _log_here()
    incoming = Incoming(site.identity_folder, clean=clean_folder(site), min_free_bytes=int(site.arrivals.min_free_gib * 2**30))
    command = [sys.executable, "-m", "fl_client", "--site", str(settings), "intake", "--arrivals"]
    worker = _Worker(command, incoming.at_work, notes=crashes.run_folder(site, "intake"))
    with ExitStack() as stack, _until_told() as stopped:
        stack.enter_context(only_one(incoming.folder / ".lock", "another process receives for this site already"))
        incoming.sweep()
        crashes.forget(crashes.run_folder(site, "intake"), "reader")
        watch = WatchFolder(site.arrivals.watch, incoming, quiet_s=site.arrivals.quiet_s) if site.arrivals.watch else None
        stack.callback(worker.stop)
        receiver = DicomReceiver(site.dicom, incoming) if site.dicom else None
        if receiver is not None and site.dicom is not None:
            receiver.start()
            stack.callback(receiver.stop)
            log.info("%s listens on %s:%d", site.dicom.ae_title, site.dicom.host, receiver.port)
            if far := out_of_reach(site.dicom):
                log.warning("only this machine can reach %s, and not %s: mend dicom.host", site.dicom.host, ", ".join(far))
        told, next_look = 0, 0.0
        while not stopped():
            worker.look()
            if watch is not None and (began := time.monotonic()) >= next_look:
                counts = watch.look()
                for unseen in ("failed", "no room"):  # told once a minute, and not at each look
                    del counts[unseen]
                if counts:
                    log.info("watch folder: %s", ", ".join(f"{number} {what}" for what, number in sorted(counts.items())))
                next_look = time.monotonic() + 10 * (time.monotonic() - began)  # a large folder is not all that is done here
            if receiver is not None and (now := receiver.counts["stored"]) != told and receiver.is_idle:
                log.info("received %d images", now - told)
                told = now
            _sleep(stopped, min(1.0, site.arrivals.quiet_s / 4))
    return 0


def arrivals(site: Site) -> int:
    """Work off what arrives until told to stop, or until the process that started this one is gone."""
    from fl_client.intake.arrivals import work_until

    _log_here()
    parent = os.getppid()
    with _until_told() as stopped:
        work_until(site, lambda: stopped() or os.getppid() != parent)
    return 0


def once(site: Site) -> int:
    """Work off what lies there, however new, and print what became of it; 1 if something failed and is tried again."""
    from fl_client.intake.arrivals import Arrivals

    _log_here()
    work = Arrivals(site)
    incoming = Incoming(site.identity_folder, clean=work.clean, min_free_bytes=int(site.arrivals.min_free_gib * 2**30))
    with only_one(incoming.folder / ".lock", "another process receives for this site already"), work.alone():
        incoming.sweep()
        counts = work.work(all_quiet=True)
        if site.arrivals.watch:
            counts += WatchFolder(site.arrivals.watch, incoming, quiet_s=0.0).look(all_quiet=True)
            counts += work.work(all_quiet=True)
    print(", ".join(f"{number} {what}" for what, number in sorted(counts.items())) or "nothing new")
    return 1 if counts["failed"] or counts["no room"] else 0


class _Worker:
    """The process that works off what arrives, started again when it ends."""

    def __init__(self, command: list[str], at_work: Path, *, notes: Path) -> None:
        """`at_work` is where it writes which file it reads, `notes` where we write how often it had to be started again."""
        self._command, self._at_work, self._notes = command, at_work, notes
        self._process: subprocess.Popen[bytes] | None = None
        self._pause_s, self._next, self._began = 1.0, 0.0, 0.0

    def look(self) -> None:
        """Start it if it isn't there, after a pause that grows."""
        if self._process is not None and self._process.poll() is not None:
            log.error("the process that reads images has ended (%d); it is started again", self._process.returncode)
            crashes.note(self._notes, "reader", self._process.returncode)
            if time.monotonic() - self._began > LONGEST_PAUSE_S:
                self._pause_s = 1.0
            self._next, self._process = time.monotonic() + self._pause_s, None
            self._pause_s = min(LONGEST_PAUSE_S, 2 * self._pause_s)
        if self._process is None and time.monotonic() >= self._next:
            self._began = time.monotonic()
            self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL)
        elif self._process is not None and time.monotonic() - self._began > crashes.WELL_S:
            crashes.forget(self._notes, "reader")

    def stop(self) -> None:
        """Let it finish its file."""
        crashes.forget(self._notes, "reader")
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            self._at_work.unlink(missing_ok=True)  # we ended it, and not the file that it was reading


@contextmanager
def _until_told() -> Iterator[Callable[[], bool]]:
    """Whether SIGTERM or SIGINT has come."""
    told = threading.Event()

    def tell(number: int, frame: FrameType | None) -> None:
        told.set()

    before = [(number, signal.signal(number, tell)) for number in (signal.SIGTERM, signal.SIGINT)]
    try:
        yield told.is_set
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def _sleep(stopped: Callable[[], bool], seconds: float) -> None:
    until = time.monotonic() + seconds
    while not stopped() and time.monotonic() < until:
        time.sleep(0.05)


def _log_here() -> None:
    """Our own lines on standard error; of threads that fail, the kind of error and never its text."""
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    logging.getLogger("konsil").setLevel(logging.INFO)

    def say(failure: Any) -> None:
        log.error("a thread failed (%s)", failure.exc_type.__name__)

    threading.excepthook = say
