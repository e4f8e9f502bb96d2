"""`konsil-site start`: one process in the foreground that keeps a hospital's parts running for months.

Its children are the intake (which sees identities), Flower's SuperNode and our worker (the trainer, which never does), and the
hospital's page. A part that dies is started again, after a pause that grows. `--only` runs one role alone, for separate users.
The hospital's own switch (`halt.py`) is looked at twice a second: when it says stopped, everything ends at once.

    <folder>/run/trainer.pid, page.pid, <identity_folder>/run/intake.pid    who runs, since when, its log; locked while it does

How often a part had to be started again is noted beside them (`crashes.py`).
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import IO

import psutil

from fl_client import crashes
from fl_client.halt import halted
from fl_client.sharing import make_folder, replaceable
from fl_client.site import Site
from fl_client.supernode import environment, runtime_folder

STOPPED = 3
"""Exit status when the hospital's switch says that nothing may run; a supervisor above should not start it again."""

ROLES = ("intake", "trainer", "page")

LOOK_S = 0.5
"""Seconds between two looks at the children and at the switch."""

LONGEST_PAUSE_S = 60.0
"""Before a child that keeps dying is started again. One that lived so long starts from a short pause."""

WORKER_STOP_S, CHILD_STOP_S = 4.0, 5.0
"""Seconds that a child gets to end before it is killed."""

RUNS, HIDDEN = "runs, as another user or in another container", "can't be seen from here: its folder is closed to this user"
"""What can be told of a role whose process can't be looked at."""

_PR_SET_PDEATHSIG = 1  # prctl(2)


class AlreadyRunning(ValueError):
    """The hospital's daemon runs already."""


class Child:
    """One part of the hospital as a process of its own, started again when it dies."""

    def __init__(self, name: str, command: Sequence[str], environment: dict[str, str], *, notes: Path | None = None) -> None:
        """`notes` is the folder in which it is noted how often it had to be started again; None: nowhere."""
        self.name = name
        self._notes = notes
        self._is_noted = self._is_told = False  # that it ended; by us, to end
        self.command = list(command)
        self.environment = environment
        self.process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._again = 0.0
        self._pause_s = 0.0

    def start(self) -> None:
        """Start the process; its output goes where ours goes."""
        self._started, self._is_told = time.monotonic(), False
        self.process = subprocess.Popen(
            self.command,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            process_group=0,  # Ctrl-C reaches us alone, so that we end them in order
            preexec_fn=_end_with_parent,
        )
        _say(f"{self.name} started (process {self.process.pid})")

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.process is not None and self.process.poll() is None

    def look(self) -> bool:
        """Start it again if it is dead and its pause is over; True if it has just died."""
        if self.alive:
            if self._is_noted and time.monotonic() - self._started > crashes.WELL_S:
                self.forget()
            return False
        if self.process is not None:
            lived, status = time.monotonic() - self._started, self.process.returncode
            self._pause_s = 1.0 if lived > LONGEST_PAUSE_S else min(LONGEST_PAUSE_S, max(1.0, 2 * self._pause_s))
            self._again = time.monotonic() + self._pause_s
            self.process = None
            _say(f"{self.name} ended by itself ({crashes.how(status)}); it is started again in {self._pause_s:g} s")
            if self._notes is not None and not self._is_told:
                crashes.note(self._notes, self.name, status)
                self._is_noted = True
            return True
        if time.monotonic() >= self._again:
            self.start()
        return False

    def forget(self) -> None:
        """What was noted of its ends is over."""
        if self._notes is not None:
            crashes.forget(self._notes, self.name)
        self._is_noted = False

    def tell(self, number: signal.Signals) -> None:
        """Send a signal to end, if it runs."""
        if self.process is not None and self.process.poll() is None:
            self._is_told = True
            self.process.send_signal(number)

    def end(self, *, within_s: float) -> None:
        """Wait until it has ended, and kill it if that takes too long."""
        if self.process is None:
            return
        try:
            self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            _say(f"{self.name} did not end within {within_s:g} s and is killed")
            self.process.kill()
            self.process.wait()
        self.process = None


class Daemon:
    """The parts of one hospital, or those of some roles, from start to stop."""

    def __init__(self, settings: Path, roles: Sequence[str]) -> None:
        self.site = Site.load(settings)
        self.roles = roles
        self.stop = threading.Event()
        self.children = _children(self.site, settings.resolve(), roles)

    def run(self) -> int:
        """Keep the parts running until SIGTERM or SIGINT (0) or until the hospital's switch says stopped (`STOPPED`)."""
        with ExitStack() as ending:
            for role in self.roles:
                ending.enter_context(_only_one(self.site, role))
            for number in (signal.SIGTERM, signal.SIGINT):
                ending.callback(signal.signal, number, signal.signal(number, self._told))
            ending.callback(self._kill)  # whatever happens, nobody is left behind
            self._note("started")
            for child in self.children.values():
                child.forget()
                ending.callback(child.forget)  # somebody stops us, and it is not running any more
                child.start()
            while not self.stop.wait(LOOK_S):
                if halted(self.site.folder) == "stopped":
                    self._halt()
                    return STOPPED
                self._look()
            self._end()
        return 0

    def _told(self, number: int, frame: FrameType | None) -> None:
        self.stop.set()

    def _look(self) -> None:
        for child in self.children.values():
            if child.look() and child.name == "worker" and self._handing_over():
                # the SuperNode would wait for ever for the rest of that message
                self.children["supernode"].tell(signal.SIGTERM)

    def _handing_over(self) -> bool:
        """Whether the worker was exchanging a message with the SuperNode when it was last heard of."""
        return doing(self.site) in ("taking a message", "handing over an answer")

    def _end(self) -> None:
        """End all, the worker first: what it was working on is answered with a failure, which the SuperNode carries out."""
        _say("stopping")
        working = "worker" in self.children and doing(self.site) not in ("", "waiting")
        for child in self.children.values():
            if child.name != "supernode":
                child.tell(signal.SIGTERM)
        if "worker" in self.children:
            self.children["worker"].end(within_s=WORKER_STOP_S)
            if working:
                time.sleep(1.5)  # the SuperNode looks for an answer every half second
            self.children["supernode"].tell(signal.SIGTERM)
        end = time.monotonic() + CHILD_STOP_S
        for child in self.children.values():
            child.end(within_s=max(0.1, end - time.monotonic()))
        self._note("ended")

    def _halt(self) -> None:
        """End all at once, the door out first: nothing that is still being worked on leaves."""
        _say("stopped by the hospital's switch (konsil-site resume takes it away)")
        for name in ("supernode", "worker"):
            if name in self.children:
                self.children[name].tell(signal.SIGKILL)
        for child in self.children.values():
            child.tell(signal.SIGTERM)
        for child in self.children.values():
            child.end(within_s=CHILD_STOP_S)
        self._note("stopped by the switch")

    def _kill(self) -> None:
        for child in self.children.values():
            child.tell(signal.SIGKILL)
            child.end(within_s=CHILD_STOP_S)

    def _note(self, what: str) -> None:
        """A line in the audit log, which belongs to the trainer's side of the house."""
        if "trainer" not in self.roles:
            return
        from fl_client.audit import AuditLog

        log = AuditLog(self.site.folder / "audit.jsonl")
        log.append("daemon", what=what, roles=list(self.roles), konsil=version("konsil"), flower=version("flwr"))


def start(settings: Path, only: str = "") -> int:
    """Run the hospital, or one role of it, until told to stop; the exit status.

    Raises `ValueError` if there is nothing to run or a setting is missing, `AlreadyRunning`, and `OSError`.
    """
    site = Site.load(settings)
    if halted(site.folder) == "stopped":
        _say("this hospital has stopped its work; konsil-site resume takes the switch away")
        return STOPPED
    roles = roles_of(site, only)
    if only == "intake" and (wrong := replaceable(settings, site.key_file, site.identity_folder)):
        raise ValueError(f"identities would not be safe from the trainer's user: {wrong[0]}")
    rehearsing = {
        "noise_seed: the noise can be repeated and protects nobody": site.noise_seed is not None,
        "accept_no_privacy: updates may leave without noise": site.accept_no_privacy,
        "approve_all: nobody is asked": site.approve_all,
    }
    for warning in (text for text, is_set in rehearsing.items() if is_set):
        print(f"{settings}: for rehearsals only: {warning}", file=sys.stderr)
    return Daemon(settings, roles).run()


def roles_of(site: Site, only: str = "") -> tuple[str, ...]:
    """Which roles this hospital has, or the one that was asked for. Raises `ValueError` in words if it has none."""
    has = {
        "intake": site.dicom is not None or site.arrivals.watch is not None,
        "trainer": site.coordinator is not None,
        "page": site.page is not None,
    }
    missing = {
        "intake": "dicom (a port for images) or arrivals.watch (a folder of them)",
        "trainer": "coordinator (konsil-site join adds it)",
        "page": "page",
    }
    if only and not has[only]:
        raise ValueError(f"there is no {only} to start: site.yaml lacks {missing[only]}")
    if not any(has.values()):
        raise ValueError(f"there is nothing to start: site.yaml has none of {'; '.join(missing.values())}")
    return (only,) if only else tuple(role for role in ROLES if has[role])


def doing(site: Site) -> str:
    """What the worker was doing when it last said so; nothing, if it has not."""
    try:
        return str(json.loads((runtime_folder(site) / "worker.json").read_text())["doing"])
    except (OSError, ValueError, KeyError):
        return ""


def running(site: Site) -> dict[str, int]:
    """Which roles run now, as the process ids of their daemons. A file that an ended process left behind counts for nothing.

    Of other users' and other containers' processes `elsewhere` tells, as far as anything can be told.
    """
    found = {}
    for role in ROLES:
        try:
            told = json.loads(_pid_file(site, role).read_text())
            process = psutil.Process(int(told["pid"]))
            if abs(process.create_time() - float(told["started"])) < 2.0:  # else another process has got its number
                found[role] = process.pid
        except (OSError, ValueError, KeyError, psutil.Error):
            continue
    return found


def elsewhere(site: Site) -> dict[str, str]:
    """Roles of which this process can't see whether they run, or under which number: in words what can be told.

    A role holds a lock as long as it runs, which is seen across users and containers where the folder is. An intake's file
    lies in the identity zone, and says nothing to a user to whom that is closed.
    """
    seen, found = running(site), {}
    for role in (role for role in ROLES if role not in seen):
        try:
            with open(_pid_file(site, role)) as file:
                if _is_held(file):
                    found[role] = RUNS
        except FileNotFoundError:
            continue
        except OSError:
            found[role] = HIDDEN
    return found


def started(site: Site, role: str) -> tuple[float, str]:
    """For how many seconds the role's daemon has run, and where its log is; endless and unknown if it can't be told."""
    try:
        told = json.loads(_pid_file(site, role).read_text())
        return time.time() - float(told["started"]), str(told["log"])
    except (OSError, ValueError, KeyError, TypeError):
        return float("inf"), crashes.UNKNOWN_LOG


def _is_held(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # let go of when the file is closed
    except BlockingIOError:
        return True
    return False


def _children(site: Site, settings: Path, roles: Sequence[str]) -> dict[str, Child]:
    def own(module: str, *more: str) -> list[str]:
        return [sys.executable, "-m", module, "--site", str(settings), *more]

    commands: dict[str, list[str]] = {}
    if "intake" in roles:
        commands["intake"] = own("fl_client", "intake")
    if "trainer" in roles:
        commands["supernode"] = own("fl_client.supernode")
        commands["worker"] = own("fl_client.worker")
    if "page" in roles:
        commands["page"] = own("fl_client", "page")
    notes = {part: crashes.run_folder(site, role) for role, parts in crashes.PARTS.items() for part in parts}
    return {name: Child(name, command, environment(site), notes=notes[name]) for name, command in commands.items()}


def _pid_file(site: Site, role: str) -> Path:
    return crashes.run_folder(site, role) / f"{role}.pid"


@contextmanager
def _only_one(site: Site, role: str) -> Iterator[None]:
    """Hold the role's file, locked, with our process id and its start in it. Raises `AlreadyRunning`."""
    path = _pid_file(site, role)
    make_folder(path.parent)
    with open(path, "a+") as file:
        _lock(file, role, path)
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "started": psutil.Process().create_time(), "log": crashes.own_log()}))
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def _lock(file: IO[str], role: str, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        raise AlreadyRunning(f"the {role} of this hospital runs already ({path}: {file.read() or 'just starting'})") from None


def _end_with_parent() -> None:
    """In a new child: end when the parent does, even if that was killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _say(text: str) -> None:
    print(f"konsil-site: {text}", flush=True)
