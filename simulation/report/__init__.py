"""The study report: one HTML file that a clinician can read, and the last lines on the terminal.

It reads the files of a run folder and nothing else, so a report can be written again at any time, anywhere. The page holds
its pictures and styles itself and asks nothing of any network. A folder with radiomics.json gets the page of a radiomics study,
one with reference_values.json that of reference values; studies of a generator and of an intensity scale have theirs.
"""

from __future__ import annotations

from pathlib import Path

from fl_server.report.statistics import mean
from simulation.report import intensity_scale, radiomics, reference_values, synthesis, words
from simulation.report.page import page
from simulation.report.radiomics_results import FILE, Findings
from simulation.report.results import Run
from simulation.whole_file import write_whole

__all__ = ["summary_lines", "write_report"]


def write_report(folder: Path) -> Path:
    """Write `report.html` into the run folder and return its path.

    Raises `FileNotFoundError` when there is no record.json; every other file may be missing. Raises `ValueError` for a
    radiomics.json that holds no JSON object.
    """
    if (folder / reference_values.VALUES).exists():
        text = reference_values.page(folder)
    elif synthesis.is_one(folder):
        text = synthesis.page(folder)
    elif intensity_scale.is_one(folder):
        text = intensity_scale.page(folder)
    else:
        text = radiomics.page(Findings(folder)) if (folder / FILE).exists() else page(Run(folder))
    path = folder / "report.html"
    write_whole(path, text)
    return path


def summary_lines(folder: Path) -> list[str]:
    """The verdict, Dice and epsilon by hospital, and where the report lies: the last lines on the screen.

    Of a radiomics study: the verdict, AUC and epsilon by arm and by hospital, and where the report lies.
    """
    if (folder / reference_values.VALUES).exists():
        return reference_values.summary_lines(folder)
    if synthesis.is_one(folder):
        return synthesis.summary_lines(folder)
    if intensity_scale.is_one(folder):
        return intensity_scale.summary_lines(folder)
    if (folder / FILE).exists():
        return radiomics.summary_lines(Findings(folder))
    run = Run(folder)
    lines = [words.VERDICTS[run.record.verdict]]
    lines += [f"  {reason}" for reason in run.record.reasons[:5]]
    if len(run.record.reasons) > 5:
        lines.append(f"  and {len(run.record.reasons) - 5} more, in the report")
    lines += words.chosen(run.record)
    if made := words.faults(run):
        lines.append(f"  {len(made)} faults were made on purpose; the report names them")
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
