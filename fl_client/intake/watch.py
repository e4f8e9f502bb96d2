"""The other way in: a folder that somebody else fills, for hospitals without a DICOM door and for exports by hand.

Files are copied, not moved: the folder is not ours. A file is taken once it has not changed for a while, and remembered by
name, size and time in `<identity>/watched.jsonl`, so that it is taken once. Links are not followed. Tables, and
masks in files of other formats, are noted and stay: `konsil-site admit` takes them.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from fl_client.intake.incoming import Incoming, NoRoom
from fl_client.intake.part10 import PREAMBLE, NotPart10, split
from fl_client.intake.quarantine import append_line, lines_of
from fl_client.intake.seldom import Seldom

Look = tuple[int, int]  # size in bytes, time of the last change in ns


class WatchFolder:
    """A folder that is looked through again and again."""

    def __init__(self, folder: Path, incoming: Incoming, *, quiet_s: float) -> None:
        """Raises `NotADirectoryError` for a folder that isn't there."""
        if not folder.is_dir():
            raise NotADirectoryError(f"arrivals.watch: {folder} is no folder")
        self._folder, self._incoming, self._quiet_s = folder, incoming, quiet_s
        self._memory = incoming.folder.parent / "watched.jsonl"
        self._taken: dict[str, Look] = {
            str(line.get("file")): (line.get("size", -1), line.get("changed_ns", -1)) for line in lines_of(self._memory)
        }
        self._seldom = Seldom()
        self._growing: dict[str, tuple[Look, float]] = {}  # since when a file looks as it does

    def look(self, *, all_quiet: bool = False) -> Counter[str]:
        """Take in what has stopped growing (`all_quiet`: what lies there) and give counts."""
        counts: Counter[str] = Counter()
        now, growing = time.monotonic(), {}
        for path in self._files():
            name = _handle(path.relative_to(self._folder))
            try:
                before = _look(path)
                if before is None or self._taken.get(name) == before:
                    continue
                same, since = self._growing.get(name, (before, now))
                if same != before:
                    since = now
                growing[name] = (before, since)
                if all_quiet or now - since >= self._quiet_s:
                    counts[self._take(path, name, before)] += 1
            except NoRoom as reason:
                self._seldom.warning(f"the watch folder waits: {reason.strerror}")
                counts["no room"] += 1
                break
            except OSError as error:
                self._seldom.warning(f"files of the watch folder could not be taken ({type(error).__name__})")
                counts["failed"] += 1
        self._growing = growing
        return counts

    def _files(self) -> Iterator[Path]:
        for folder, names, files in os.walk(self._folder):
            names.sort()
            yield from (Path(folder, file) for file in sorted(files))

    def _take(self, path: Path, name: str, before: Look) -> str:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(file, "rb") as opened:
            data = opened.read(PREAMBLE)
            try:
                split(data)
                opened.seek(0)
                whole = bytearray(before[0])  # read into its place: `read` would hold it twice
                length = opened.readinto(whole)
                start, syntax = split(whole)
            except NotPart10 as reason:
                self._incoming.quarantine.note(name, f"{reason}; it lies in the watch folder still")
                self._remember(name, before)
                return "not DICOM"
        if _look(path) != before or length != before[0]:
            return "growing"
        view = memoryview(whole)
        kept = self._incoming.keep(view[:start], view[start:], transfer_syntax=syntax, instance=name)
        self._remember(name, before)
        return kept

    def _remember(self, name: str, look: Look) -> None:
        append_line(self._memory, {"file": name, "size": look[0], "changed_ns": look[1]})
        self._taken[name] = look


def _look(path: Path) -> Look | None:
    """Size and time of a plain file; None for links and the like."""
    found = path.lstat()
    return (found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else None


def _handle(path: Path) -> str:
    """A name for a path, which may itself name a person."""
    return "W" + hashlib.sha256(os.fsencode(path)).hexdigest()[:16].upper()
