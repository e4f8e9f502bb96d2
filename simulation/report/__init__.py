"""The study report: one HTML file that a clinician can read, and the last lines on the terminal.

It reads the files of a run folder and nothing else, so a report can be written again at any time, anywhere. The page holds
its pictures and styles itself and asks nothing of any network. A folder with radiomics.json gets the page of a radiomics study,
one with reference_values.json that of reference values; studies of a generator and of an intensity scale have theirs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from fl_server.record import Record
from simulation.report import intensity_scale, radiomics, radiomics_results, reference_values, study, synthesis
from simulation.whole_file import write_whole

__all__ = ["summary_lines", "write_report"]


class Kind(Protocol):
    """A module that reports on one kind of run."""

    def page(self, folder: Path) -> str:
        """The whole report as one HTML text."""

    def summary_lines(self, folder: Path) -> list[str]:
        """The verdict and the figures that matter first."""


def write_report(folder: Path) -> Path:
    """Write `report.html` into the run folder and return its path.

    Raises `FileNotFoundError` when there is no record.json; every other file may be missing. Raises `ValueError` for a
    radiomics.json that holds no JSON object.
    """
    path = folder / "report.html"
    write_whole(path, _kind(folder).page(folder))
    return path


def summary_lines(folder: Path) -> list[str]:
    """The last lines on the screen: the verdict, the figures that matter first, epsilon by hospital, where the report lies."""
    return [*_kind(folder).summary_lines(folder), f"Report: {folder / 'report.html'}"]


def _kind(folder: Path) -> Kind:
    """Which report a run gets: by what it left, else by its task."""
    if (folder / reference_values.VALUES).exists():
        return reference_values
    if (folder / radiomics_results.FILE).exists():
        return radiomics
    task = Record.read(folder / "record.json").study.get("task", {}).get("name")
    return {synthesis.TASK: synthesis, intensity_scale.TASK: intensity_scale}.get(task, study)
