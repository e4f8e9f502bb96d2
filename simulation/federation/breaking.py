"""Real processes, killed: the coordinator's service, Flower's SuperLink, a study's process, a hospital's worker.

Who supervises the coordinator on a real machine (systemd, Compose) starts it again when it has ended; here `Supervised` does.
Nothing else helps: the coordinator takes up its studies by itself.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import psutil

from fl_client.site import Site
from fl_server.live import Now
from fl_server.record import Record
from simulation.faults.coordinator import CoordinatorKilled, SuperLinkKilled
from simulation.faults.crashes import CrashInTraining
from simulation.faults.fault import Fault
from simulation.faults.house import InHouse
from simulation.faults.plan import Plan
from simulation.faults.wire import Offline
from simulation.federation.programs import CommandFailed, Daemon, konsil_study

READY = "certificate valid until"
"""What the coordinator says when hospitals can reach it."""


class Supervised:
    """`konsil-study serve`, started again whenever it has ended."""

    def __init__(self, folder: Path, *, log: Path) -> None:
        self.folder, self.log = folder, log
        self.starts = 0
        self.daemon = self._start()

    def supervise(self) -> None:
        """Start it again if it has ended."""
        if self.daemon.ended:
            self.daemon.stop()
            self.daemon = self._start()

    def kill(self) -> None:
        """Kill the service itself, which is the gate; what it has started ends with it."""
        os.kill(self.daemon.pid, signal.SIGKILL)

    def kill_superlink(self) -> None:
        """Kill Flower's SuperLink. Raises `CommandFailed` if none runs."""
        for process in psutil.Process(self.daemon.pid).children():
            if "fl_server.superlink" in process.cmdline():
                process.kill()
                return
        raise CommandFailed("the coordinator has no SuperLink that could be killed")

    def kill_study(self, name: str) -> None:
        """Kill the process in which this study runs. Raises `CommandFailed` if none runs."""
        now = self.now(name)
        if now is None or not now.alive:
            raise CommandFailed(f"study {name} has no process that could be killed")
        os.kill(now.pid, signal.SIGKILL)

    def now(self, name: str) -> Now | None:
        """What this study does at this moment."""
        return Now.read(self.folder / "runs" / name)

    def record(self, name: str) -> Record | None:
        """What has been of this study."""
        path = self.folder / "runs" / name / "record.json"
        return Record.read(path) if path.exists() else None

    def until(self, done: Callable[[], bool], *, what: str, timeout_s: float) -> None:
        """Supervise until something is so. Raises `CommandFailed` if it isn't in time."""
        end = time.monotonic() + timeout_s
        while not done():
            if time.monotonic() > end:
                said = self.log.read_text(errors="replace").splitlines()[-15:]
                raise CommandFailed(f"{what}: not within {timeout_s:g} s\n" + "\n".join(said))
            self.supervise()
            time.sleep(0.1)

    def in_round(self, name: str, number: int) -> bool:
        """Whether the study's process has asked the hospitals for this round, or a later one."""
        now = self.now(name)
        return now is not None and now.alive and now.phase == "round" and now.round >= number

    def finished(self, name: str) -> bool:
        """Whether the study has come to its end."""
        record = self.record(name)
        return record is not None and record.finished

    def _start(self) -> Daemon:
        self.starts += 1
        log = self.log if self.starts == 1 else self.log.with_name(f"{self.log.stem}.{self.starts}{self.log.suffix}")
        return Daemon("the coordinator", konsil_study("serve", "--folder", str(self.folder)), log=log)

    def __enter__(self) -> Supervised:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.daemon.stop()


class Breaking:
    """A plan's faults, made on the processes and folders of a town while a study of it runs.

    They begin when the coordinator's process says that it has asked for the round, and end when it asks for a later one: real
    hospitals may be a little before or behind that. `daemons` are the hospitals' processes, by name, without those that are
    switched off.
    """

    def __init__(
        self,
        plan: Plan,
        coordinator: Supervised,
        study: str,
        settings: Mapping[str, Path],
        daemons: MutableMapping[str, Daemon],
        start: Callable[[str], Daemon],
    ) -> None:
        self.plan, self.coordinator, self.study = plan, coordinator, study
        self.settings, self.daemons, self.start = settings, daemons, start
        self.made: list[Fault] = []
        self._open: dict[int, ExitStack] = {}
        self._begun: set[int] = set()

    def step(self) -> None:
        """Look where the study is, and do what is due."""
        now = self.coordinator.now(self.study)
        if now is None or now.phase != "round" or not now.alive:
            return
        for place, fault in enumerate(self.plan.plan):
            if place not in self._begun and now.round >= fault.rounds[0]:
                self._begun.add(place)
                self._open[place] = self._begin(fault)
                self.made.append(fault)
            elif place in self._open and now.round > fault.rounds[1]:
                self._open.pop(place).close()

    def close(self) -> None:
        """Mend what is still broken."""
        for stack in self._open.values():
            stack.close()
        self._open.clear()

    def _begin(self, fault: Fault) -> ExitStack:
        mending = ExitStack()
        if isinstance(fault, InHouse):
            mending.enter_context(fault.made(Site.load(self.settings[fault.site])))
        elif isinstance(fault, Offline):
            self.daemons.pop(fault.site).stop()
            mending.callback(self._switch_on, fault.site)
        elif isinstance(fault, SuperLinkKilled):
            self.coordinator.kill_superlink()
        elif isinstance(fault, CoordinatorKilled):
            self.coordinator.kill_study(self.study)
        elif isinstance(fault, CrashInTraining):
            kill_worker(self.settings[fault.site])
        else:
            raise CommandFailed(f"nobody knows how to make {fault.fault} of real processes")
        return mending

    def _switch_on(self, site: str) -> None:
        self.daemons[site] = self.start(site)


def kill_worker(settings: Path) -> None:
    """Kill the process of a hospital that works on a study, of whom its daemon starts another. Raises `CommandFailed`."""
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "fl_client.worker" in words and str(settings) in words:
            process.kill()
            return
    raise CommandFailed(f"the hospital {settings.parent.name} has no worker that could be killed")
