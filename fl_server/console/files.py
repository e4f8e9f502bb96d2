"""The folders that the console looks at: a coordinator's, or any folder of runs, and what stands in one of them right now."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path

from conf.study import Study
from fl_server import runs
from fl_server.live import Now
from fl_server.record import Record
from fl_server.runs import Standing

REHEARSED = ("record.json", "*/record.json", "arms/*/*/record.json", "arms/*/*/*/record.json")
"""Where records are in a researcher's folder of runs, and in the folder of one rehearsal (docs/run_folder.md)."""

Found = tuple[Record | None, Now | None, Standing | None]


@dataclass
class Files:
    """What stands in a study's folder. A record of a thousand hospitals takes seconds to read: it is read when it changes."""

    folder: Path
    _stamp: tuple[int, int, int] | None = None
    _record: Record | None = field(default=None, repr=False)

    def read(self) -> Found:
        """The record, the present moment and what is wanted. Raises `OSError` and `ValueError` for what can't be read."""
        now = Now.read(self.folder)  # before the record: what it says of a round's end is not newer than the record
        return self._latest(), now, Standing.read(self.folder)

    def study(self) -> Study | None:
        """What was asked to be run, which is known before there is a record; None where it does not stand."""
        try:
            return Study.from_json((self.folder / runs.STUDY).read_text())
        except (OSError, ValueError):
            return None

    def _latest(self) -> Record | None:
        try:
            found = (self.folder / "record.json").stat()
        except FileNotFoundError:
            return None
        stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
        if stamp != self._stamp:
            self._record = runs.record_of(self.folder)
            self._stamp = stamp
        return self._record


def studies(folder: Path) -> dict[str, Path]:
    """Name -> folder of every study in a researcher's folder of runs, or in that of one rehearsal; the latest last.

    Raises `ValueError` if there is none.
    """
    paths = {path.parent for path in itertools.chain.from_iterable(folder.glob(pattern) for pattern in REHEARSED)}
    paths |= {path.parent for path in folder.glob(f"*/{runs.FILE}")}
    kept = [path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    kept.sort(key=lambda path: (path.stat().st_mtime, path))
    found = {path.relative_to(folder).as_posix(): path for path in kept}
    if "." in found:
        found[folder.resolve().name] = found.pop(".")
    if not found:
        raise ValueError(f"{folder} holds no study: no record.json, neither in it nor in a folder of it")
    return found


def study(folder: Path, name: str) -> Path:
    """The folder of the study of this name in a researcher's folder of runs. Raises `ValueError`."""
    found = studies(folder)
    if name not in found:
        raise ValueError(f"no study '{name}' in {folder}; there are {', '.join(found)}")
    return found[name]
