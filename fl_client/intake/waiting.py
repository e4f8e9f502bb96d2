"""What lies in the identity zone and takes room: originals that wait to be worked off, and those in the quarantine.

Numbers alone, for `konsil-site status` and `check`; nothing is read but names, sizes and lists.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from fl_client.intake.attempts import failures
from fl_client.intake.incoming import PENDING, STUDY, clean_folder, done
from fl_client.site import Site

LONG_S = 3600.0  # beyond arrivals.quiet_s: who waits longer is worth a look
GIB = 2**30


@dataclass(frozen=True)
class Waiting:
    """What waits at one instant. Times are seconds since 1970."""

    studies: int = 0
    originals: int = 0
    bytes: int = 0
    since: float | None = None  # when the oldest came
    failing: int = 0  # originals that failed and are tried again
    patients: int = 0  # whose files are clean and who are still to be let in
    failing_patients: int = 0
    aside: int = 0  # originals in the quarantine
    aside_bytes: int = 0

    def is_long(self, *, quiet_s: float) -> bool:
        """Whether somebody should look."""
        late = self.since is not None and time.time() - self.since > quiet_s + LONG_S
        return late or self.failing > 0 or self.failing_patients > 0

    def told(self) -> Iterator[str]:
        """In sentences; none if nothing lies there."""
        if self.originals:
            since = datetime.fromtimestamp(self.since or 0.0).isoformat(sep=" ", timespec="minutes")
            failing = f"; {self.failing} of them failed and are tried again" if self.failing else ""
            yield (
                f"{self.studies} studies wait to be worked off: {self.originals} originals, {_gib(self.bytes)}, "
                f"the oldest since {since}{failing}"
            )
        if self.patients:
            failing = f"; {self.failing_patients} of them failed and are tried again" if self.failing_patients else ""
            yield f"{self.patients} patients wait to be let in{failing}"
        if self.aside:
            yield f"{self.aside} originals lie in quarantine, {_gib(self.aside_bytes)} (konsil-site quarantine)"


def waiting(site: Site) -> Waiting:
    """Look once. Raises `PermissionError` for a user who may not see the identity zone."""
    incoming, clean = site.identity_folder / "incoming", clean_folder(site)
    failed = failures(incoming)
    studies, originals, size, failing, oldest = 0, 0, 0, 0, None
    for study in sorted(incoming.iterdir()) if incoming.exists() else ():
        if not STUDY.fullmatch(study.name):
            continue
        became, here = done(study), 0
        for name, length, came in _files(study):
            line = became.get(name)
            if line and line["clean"] and (clean / str(line["clean"])).exists():
                continue  # kept for keep_originals_days, and worked off
            here += 1
            size += length
            failing += name in failed
            oldest = came if oldest is None else min(oldest, came)
        studies += here > 0
        originals += here
    marks = list((site.identity_folder / PENDING).glob("P*"))
    aside = list(_files(site.identity_folder / "quarantine"))
    return Waiting(
        studies=studies,
        originals=originals,
        bytes=size,
        since=oldest,
        failing=failing,
        patients=len(marks),
        failing_patients=sum(times_of(mark) > 0 for mark in marks),
        aside=len(aside),
        aside_bytes=sum(length for _, length, _ in aside),
    )


def times_of(mark: Path) -> int:
    """How often the patient of this mark could not be let in."""
    try:
        return int(mark.read_text() or 0)
    except (FileNotFoundError, ValueError):  # let in just now, or cut short
        return 0


def _files(folder: Path) -> Iterator[tuple[str, int, float]]:
    """Name, size and time of arrival of each original in a folder; what goes meanwhile is left out."""
    for path in folder.glob("*.dcm"):
        try:
            found = path.stat()
        except FileNotFoundError:
            continue
        yield path.name, found.st_size, found.st_mtime


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size / 2**20:.1f} MiB"
