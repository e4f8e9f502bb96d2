"""The study report for a clinician: `konsil-study report`."""

from __future__ import annotations

import argparse
from pathlib import Path

from fl_server.commands import Commands


def add(commands: Commands, house: argparse.ArgumentParser) -> None:
    """The command and its options."""
    told = commands.add_parser("report", parents=[house], help="write the report for clinicians, as a page and as a PDF")
    told.set_defaults(run=lambda options: report(options.run_or_folder, house=options.folder, to=options.to))
    told.add_argument("run_or_folder", help="a folder with record.json, or a study's name, number or hash here")
    told.add_argument("--to", type=Path, default=None, help="folder to write into (default: the study's own)")


def report(run_or_folder: str, *, house: Path, to: Path | None) -> int:
    """Write both files and print where they lie. Raises `ValueError` where there is no such study, or no record of it yet."""
    from fl_server.report import write

    folder = Path(run_or_folder)
    if folder.name == "record.json":
        folder = folder.parent
    if not (folder / "record.json").is_file():
        if folder.is_dir():
            raise ValueError(f"{folder} holds no record.json; a study writes it when its first round is over")
        from fl_server.house import House
        from fl_server.runs import find

        try:
            runs = House.load(house).runs
        except FileNotFoundError as error:
            raise ValueError(f"{run_or_folder} is no folder with a record.json; to find a study by its name: {error}") from None
        folder = find(runs, run_or_folder)
        if not (folder / "record.json").is_file():
            raise ValueError(f"{folder} holds no record.json yet; the report can be written after the first round")
    for path in write(folder, to=to):
        print(path)
    return 0
