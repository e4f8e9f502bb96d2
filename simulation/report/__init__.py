"""The study report: one HTML file that a clinician can read, and the last lines on the terminal.

It reads the files of a run folder and nothing else, so a report can be written again at any time, anywhere. The page holds
its pictures and styles itself and asks nothing of any network.
"""

from __future__ import annotations

from pathlib import Path

from simulation.report import words
from simulation.report.page import page
from simulation.report.results import Run
from simulation.report.statistics import mean

__all__ = ["summary_lines", "write_report"]


def write_report(folder: Path) -> Path:
    """Write `report.html` into the run folder and return its path.

    Raises `FileNotFoundError` when there is no record.json; every other file may be missing.
    """
    path = folder / "report.html"
    part = folder / "report.part"
    part.write_text(page(Run(folder)), encoding="utf-8")
    part.replace(path)
    return path


def summary_lines(folder: Path) -> list[str]:
    """The verdict, Dice and epsilon by hospital, and where the report lies: the last lines on the screen."""
    run = Run(folder)
    lines = [words.VERDICTS[run.record.verdict]]
    lines += [f"  {reason}" for reason in run.record.reasons[:5]]
    if len(run.record.reasons) > 5:
        lines.append(f"  and {len(run.record.reasons) - 5} more, in the report")
    if banner := words.rehearsal_banner(run):
        lines.append(banner)
    width = max((len(name) for role in ("site", "held_out", "real") for name in run.hospitals(role)), default=0)
    width = max([width, *map(len, run.sites)])
    shown = [(name, "site", "") for name in run.sites]
    shown += [(name, "held_out", "  held out") for name in run.hospitals("held_out")]
    shown += [(name, "real", "  real patients") for name in run.hospitals("real")]
    for name, role, note in shown:
        means = {s: mean(run.values(f"dice/{s}", run.headline, role, name)).value for s in run.structures}
        dice = [f"{structure.replace('_', ' ')} {words.number(value)}" for structure, value in means.items()]
        spent = f"  ε {words.epsilon(run.epsilon(name))}" if role == "site" and run.epsilon(name) is not None else ""
        lines.append(f"  {name:<{width}}  Dice {', '.join(dice) or '–'}{spent}{note}")
    lines.append(f"Report: {folder / 'report.html'}")
    return lines
