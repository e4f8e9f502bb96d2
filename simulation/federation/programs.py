"""Processes of the federation: commands that end, and daemons that run until they are told to stop."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import psutil

QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
STOP_S = 30.0
"""Seconds that a daemon gets to end by itself."""


class CommandFailed(RuntimeError):
    """A command did not do what it was asked; the text holds the end of what it said."""


def konsil_site(settings: Path, *words: str) -> list[str]:
    """The command line of a hospital."""
    return [sys.executable, "-m", "fl_client", "--site", str(settings), *words]


def konsil_study(*words: str) -> list[str]:
    """The command line of the coordinator."""
    return [sys.executable, "-m", "fl_server", *words]


def run(command: Sequence[str], *, log: Path, timeout_s: float = 600.0, expect: Sequence[int] = (0,)) -> str:
    """Run a command to its end, append what it says to `log`, and give its standard output. Raises `CommandFailed`."""
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=timeout_s, check=False, stdin=subprocess.DEVNULL
    )
    with open(log, "a") as file:
        file.write(f"$ {' '.join(command)}\n{done.stdout}{done.stderr}")
    if done.returncode not in expect:
        said = (done.stdout + done.stderr).strip().splitlines()[-15:]
        raise CommandFailed(f"{' '.join(command[2:])} ended with {done.returncode}:\n" + "\n".join(said))
    return done.stdout


def environment() -> dict[str, str]:
    """That of this process, less reports to others."""
    return {**os.environ, **QUIET}


def free_port() -> int:
    """A port of the loopback interface that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def require_ended(folder: Path, *, timeout_s: float = STOP_S) -> None:
    """Wait until no program of konsil or Flower works in this folder any more, this one and those that started it aside.

    Raises `CommandFailed`, naming those that are left.
    """
    us = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    end = time.monotonic() + timeout_s
    while left := [words for pid, words in _command_lines() if pid not in us and _works_in(folder, words)]:
        if time.monotonic() > end:
            raise CommandFailed("these processes have not ended:\n" + "\n".join(left))
        time.sleep(0.2)


def _command_lines() -> list[tuple[int, str]]:
    return [(process.pid, " ".join(process.info["cmdline"] or ())) for process in psutil.process_iter(["cmdline"])]


def _works_in(folder: Path, words: str) -> bool:
    return f"{folder}{os.sep}" in words and any(name in words for name in ("fl_client", "fl_server", "flwr"))


class Daemon:
    """A process that runs until the block ends. What it says goes to `log`."""

    def __init__(self, name: str, command: Sequence[str], *, log: Path, more: Mapping[str, str] = {}) -> None:
        self.name, self.log = name, log
        self._file = open(log, "ab")  # noqa: SIM115 - as long as the process lives
        self._process = subprocess.Popen(
            command, env={**environment(), **more}, stdout=self._file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
        )

    def wait_for(self, words: str, *, timeout_s: float = 120.0) -> None:
        """Return once it has said `words`. Raises `CommandFailed` if it ends before, or takes longer."""
        end = time.monotonic() + timeout_s
        while words not in (said := self.log.read_text(errors="replace")):
            ended = self._process.poll()
            if ended is not None or time.monotonic() > end:
                why = f"ended with {ended}" if ended is not None else f"did not say {words!r} in {timeout_s:g} s"
                raise CommandFailed(f"{self.name} {why}:\n" + "\n".join(said.splitlines()[-15:]))
            time.sleep(0.1)

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether it has ended, by itself or by another's hand."""
        return self._process.poll() is not None

    def stop(self) -> int:
        """Tell it to end, and wait; its exit status. What doesn't listen is killed."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()
        finally:
            self._file.close()

    def __enter__(self) -> Daemon:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()
