"""What the researcher sees while it runs: one line per part of the work, with the time left; for rounds also who answered,
Dice and epsilon. On a pipe instead of a terminal, one plain line when a part begins and when it ends.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from types import TracebackType

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fl_server.record import Round
from simulation.arms import Arm
from simulation.scoring import Scores
from simulation.settings import Simulation

WIDE = 110
"""Columns of a terminal that has room for everything; on a narrower one bars are short and the time gone by is left out."""


class Screen:
    """Progress of a rehearsal. Use it in a `with` block."""

    def __init__(self, simulation: Simulation, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        self._wide = self.console.width >= WIDE or not self.console.is_terminal
        self._progress = Progress(
            TextColumn("{task.description:<26}"),
            BarColumn(bar_width=24 if self._wide else 8),
            MofNCompleteColumn(),
            *([TimeElapsedColumn()] if self._wide else []),
            TimeRemainingColumn(),
            TextColumn("{task.fields[more]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._begun: dict[str, float] = {}
        logging.getLogger("flwr").setLevel(logging.WARNING)  # its lines would tear the progress bars
        self.note(f"konsil rehearsal '{simulation.name}', size {simulation.size.profile}")

    def __enter__(self) -> Screen:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def note(self, text: str) -> None:
        """A line that stays."""
        self.console.print(text, markup=False)

    def advance(self, what: str, done: float, total: int, more: str = "") -> None:
        """Show that `done` of `total` parts of `what` are done."""
        if what not in self._tasks:
            self._begun[what] = time.monotonic()
            self._tasks[what] = self._progress.add_task(what, total=total, more=more)
            if not self.console.is_terminal:
                self.note(f"{what}: {total} to do")
        self._progress.update(self._tasks[what], completed=done, total=total, more=more)
        if done == total and not self.console.is_terminal:
            self.note(f"{what}: done in {time.monotonic() - self._begun[what]:.0f} s {more}")

    def part(self, what: str, index: int, count: int, name: str) -> Callable[[int, int], None]:
        """Progress of part `index` of `count`, which itself has parts, on the line of the whole."""

        def advance(done: int, total: int) -> None:
            self.advance(what, index + done / max(total, 1), count, f"{name} {done}/{total}")

        return advance

    def rounds(self, arm: Arm) -> Callable[[Round, Mapping[str, Scores]], None]:
        """Progress of one federation's rounds."""
        what = f"{arm.name} seed {arm.study.seed}"
        self.advance(what, 0, arm.study.rounds)
        last = ""

        def advance(answers: Round, means: Mapping[str, Scores]) -> None:
            nonlocal last
            used = sum(site.answer == "used" for site in answers.sites.values())
            dice = [value for name in answers.sites for key, value in means.get(name, {}).items() if key.startswith("dice/")]
            spent = [site.epsilon for site in answers.sites.values() if site.epsilon is not None]
            last = f"Dice {np.mean(dice):.3f}" if dice else last
            epsilon = f"ε {max(spent):.2f}" if spent else "no privacy"
            sites = f"{used}/{len(answers.sites)}"
            more = f"{sites} sites  {last}  {epsilon}" if self._wide else f"{sites} {last} {epsilon}"
            self.advance(what, answers.round, arm.study.rounds, more)
            if not self.console.is_terminal and dice:
                self.note(f"  round {answers.round}: {more}")

        return advance
