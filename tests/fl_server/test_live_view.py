"""The live view, in a terminal of its own while a study really runs, and what it draws."""

import fcntl
import io
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import time

import pytest
from rich.console import Console

from fl_server.commands import LEFT
from fl_server.console.picture import LAST, Picture, SitePicture
from fl_server.console.view import View, spark
from fl_server.record import Record
from fl_server.rounds import run
from fl_server.weights import initial_state
from simulation.grid import InProcessGrid

LISTENING = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execvp(sys.argv[1], sys.argv[1:])"
"""Runs a command that hears Ctrl-C, which a shell makes everything ignore that it starts in the background, tests too."""


class Terminal:
    """A program in a pseudo-terminal of a size."""

    def __init__(self, command, *, columns=100, rows=30):
        self.inside, outside = pty.openpty()
        fcntl.ioctl(outside, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "", "LINES": "", "PYTHONIOENCODING": "utf-8"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", LISTENING, *command],
            stdin=outside,
            stdout=outside,
            stderr=outside,
            env=environment,
            start_new_session=True,
        )
        os.close(outside)
        self.said = ""

    def read_until(self, words, *, timeout_s=200.0):
        end = time.monotonic() + timeout_s
        while words not in self.plain and time.monotonic() < end:
            try:
                self.said += os.read(self.inside, 65536).decode(errors="replace")
            except OSError:  # EIO is what Linux says when the other end is closed
                break
        assert words in self.plain, self.plain[-2000:]

    @property
    def plain(self):
        """What was said, without the sequences that move the cursor and colour the letters."""
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.said)

    def end(self, *, timeout_s=200.0):
        return self.process.wait(timeout_s)

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.inside)


class RunningStudy:
    """A study in a thread, whose first round ends when somebody says so; its folder."""

    def __init__(self, hospitals):
        self.study = hospitals.study(name="slow", rounds=3, sites=("a", "b", "nowhere"))
        self.folder, self._nodes, self._go_on = hospitals.folder / "runs" / "slow", hospitals.nodes, threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        grid = InProcessGrid("fl_client.app:app", self._nodes, {"study": self.study.to_json()})
        run(
            grid, self.study, initial_state(self.study), folder=self.folder, observer=lambda entry, model: self._go_on.wait(200)
        )

    def go_on(self):
        self._go_on.set()

    def end(self):
        self.go_on()
        self._thread.join()


@pytest.fixture
def study_that_runs(hospitals):
    """A study that is in its first round."""
    running = RunningStudy(hospitals)
    end = time.monotonic() + 200
    while not (running.folder / "now.json").exists() and time.monotonic() < end:
        time.sleep(0.02)
    yield running
    running.end()


def konsil(*arguments):
    return [sys.executable, "-m", "fl_server", *map(str, arguments)]


@pytest.fixture
def terminal(study_that_runs):
    """A terminal in which somebody watches the study."""
    opened = Terminal(konsil("watch", "slow", "--runs", study_that_runs.folder.parent))
    yield opened
    opened.close()


def test_a_terminal_shows_the_study_until_its_verdict_which_is_the_exit_code(study_that_runs, terminal):
    terminal.read_until("epsilon (promise 8)")
    terminal.read_until("verdict: degraded so far")
    terminal.read_until("left")
    study_that_runs.go_on()
    terminal.read_until("over: degraded, 3 of 3 rounds")
    assert terminal.end() == 3
    assert "●●" in terminal.plain
    assert "○○" in terminal.plain
    assert "left" in terminal.plain
    assert "\x1b[" in terminal.said


def test_ctrl_c_ends_the_looking_and_not_the_study(study_that_runs, terminal):
    terminal.read_until("slow  ")
    os.killpg(terminal.process.pid, signal.SIGINT)  # as the terminal does
    terminal.read_until("the study goes on; konsil-study watch slow looks again")
    assert terminal.end() == LEFT
    record = study_that_runs.folder / "record.json"
    assert not Record.read(record).finished
    study_that_runs.end()
    assert (Record.read(record).finished, Record.read(record).verdict) == (True, "degraded")


def test_on_a_pipe_there_are_plain_lines(study_that_runs):
    command = konsil("watch", "slow", "--runs", study_that_runs.folder.parent)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watching:
        first = watching.stdout.readline()
        study_that_runs.go_on()
        rest, errors = watching.stdout.read(), watching.stderr.read()  # communicate loses what stands in the buffer
        watching.wait(200)
    said = first + rest
    assert watching.returncode == 3, errors
    assert "\x1b" not in said
    rounds = re.findall(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  round (\d) of 3, \d+ s: a, b used; nowhere absent", said, re.M)
    assert rounds == ["1", "2", "3"], said
    assert "over: degraded" in said


def drawn(picture, *, columns=100, rows=30, encoding="utf-8"):
    """The view as lines of a terminal of this size."""
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="replace")
    console = Console(file=file, width=columns, height=rows, force_terminal=True, color_system=None, legacy_windows=False)
    with console.capture() as capture:
        console.print(View(picture))
    return capture.get().splitlines()


def of(sites, **settings):
    fields = {
        "name": "many",
        "study_hash": "0" * 64,
        "state": "round",
        "said": "in round 3 of 9",
        "ended_rounds": 2,
        "rounds": 9,
    }
    return Picture(**{**fields, "promise": 4.0, "verdict": "degraded", "sites": sites, **settings})


def test_of_many_hospitals_those_are_shown_that_somebody_looks_for():
    well = SitePicture(answers={"used": 2}, last=["used", "used"], epsilon=1.0)
    sites = {f"h{number:03}": well for number in range(500)}
    sites["h321"] = well.model_copy(update={"last": ["used", "failed"], "answers": {"used": 1, "failed": 1}})
    sites["h432"] = well.model_copy(update={"awaited_s": 42.0})
    lines = drawn(of(sites))
    assert len(lines) <= 30
    said = "\n".join(lines)
    assert "h321" in said
    assert "awaited 42 s" in said
    assert "more" in said


@pytest.mark.parametrize(("columns", "rows"), [(60, 18), (80, 24), (200, 50)])
def test_the_view_fits_the_terminal(columns, rows):
    sites = {f"hospital-{n}": SitePicture(answers={}, last=["used"] * LAST, epsilon=3.9, seconds=12.5) for n in range(40)}
    scores = {"dice/myocardium": [(number, number / 9) for number in range(1, 9)]}
    reasons = ["round 1: " + "long " * 60] * 30
    lines = drawn(of(sites, scores=scores, reasons=reasons, left_s=4000.0), columns=columns, rows=rows)
    assert len(lines) <= rows
    assert max(map(len, lines)) <= columns


def test_without_unicode_marks_are_letters():
    sites = {"a": SitePicture(answers={}, last=["used", "late", "absent", "declined", "failed", "quarantined"], epsilon=1.0)}
    said = "\n".join(drawn(of(sites, scores={"dice": [(1, 0.1), (2, 0.3)]}), encoding="ascii"))
    assert "uladfq" in said
    assert "?" not in said
    assert said.isascii()


def test_a_price_over_the_promise_is_drawn_no_longer_than_its_bar():
    sites = {"a": SitePicture(answers={}, last=["used"], epsilon=9.0), "b": SitePicture(answers={}, last=[])}
    said = "\n".join(drawn(of(sites)))
    assert " 9.00 ━━━━━━━━━━━━" in said
    assert "not told yet" in said


@pytest.mark.parametrize(
    ("values", "drawn"), [([0.0, 1.0], "▁█"), ([0.5, 0.5, 0.5], "▅▅▅"), ([3.0], "▅"), ([-1.0, 0.0, 1.0], "▁▅█")]
)
def test_a_row_of_blocks_goes_from_the_lowest_to_the_highest(values, drawn):
    assert spark(values) == drawn
