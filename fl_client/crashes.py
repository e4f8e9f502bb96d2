"""Parts of the hospital that end by themselves again and again: noted where a person looks, and not in a log alone.

Whoever starts a part again notes that it had to. Status, check, page and metrics tell it, until the part has run well for a
while or is stopped by somebody. What the intake's side notes lies in the identity zone, since it is another user's.

    <folder>/run/supernode.ended.json, worker.ended.json, page.ended.json
    <identity_folder>/run/intake.ended.json, reader.ended.json
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
from datetime import UTC, datetime
from pathlib import Path

from fl_client.sharing import file_mode, make_folder
from fl_client.site import Site

PARTS = {"intake": ("intake", "reader"), "trainer": ("supernode", "worker"), "page": ("page",)}
"""The processes of each role. The reader is the intake's own, which reads the images that have arrived."""

NAMES = {
    "intake": "the intake",
    "reader": "the intake's process that reads images",
    "supernode": "the SuperNode",
    "worker": "the worker",
    "page": "the page",
}

WELL_S = 300.0
"""A part that has run so long runs well: longer than the pause before a start (a minute) and what a start takes."""

MANY = 2
"""Ends that are told. A single one is in the log: the part runs again."""

UNKNOWN_LOG = "what konsil-site start prints"


def run_folder(site: Site, role: str) -> Path:
    """Where the processes of a role note that they run, and how they ended."""
    return (site.identity_folder if role == "intake" else site.folder) / "run"


def note(folder: Path, part: str, status: int) -> None:
    """Put down that a part has ended by itself, with this exit status; a disk that can't take it stops nobody."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    before = _read(folder, part)
    line = {
        "times": int(before.get("times", 0)) + 1,
        "first": str(before.get("first", now)),
        "last": now,
        "how": how(status),
        "log": own_log(),
    }
    path = _path(folder, part)
    new = path.with_name(f"{path.name}.{os.getpid()}.part")
    with contextlib.suppress(OSError):
        make_folder(folder)
        new.unlink(missing_ok=True)
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, file_mode(folder)), "w") as file:
            json.dump(line, file)
        new.replace(path)


def forget(folder: Path, part: str) -> None:
    """The part runs well, or was stopped by somebody."""
    with contextlib.suppress(OSError):
        _path(folder, part).unlink(missing_ok=True)


def counts(site: Site) -> dict[str, int]:
    """How often each part has ended since it last ran well, as far as this user can see; parts that run well are not there."""
    found = {part: _read(run_folder(site, role), part) for role, parts in PARTS.items() for part in parts}
    return {part: int(line["times"]) for part, line in found.items() if line}


def told(site: Site) -> dict[str, str]:
    """A sentence for each part that has ended again and again, as far as this user can see."""
    sentences = {}
    for role, parts in PARTS.items():
        for part in parts:
            line = _read(run_folder(site, role), part)
            if line and int(line["times"]) >= MANY:
                sentences[part] = (
                    f"{NAMES[part]} has ended {line['times']} times since {_when(line['first'])}, the last time at "
                    f"{_when(line['last'])} with {line['how']}; its log: {line['log']}"
                )
    return sentences


def how(status: int) -> str:
    """An exit status of `subprocess`, in words."""
    if status >= 0:
        return f"exit status {status}"
    names = {one.value: one.name for one in signal.Signals}
    return f"signal {names.get(-status, -status)}"


def own_log() -> str:
    """Where a person finds what this process and its children print, as far as it can be told."""
    try:
        written = os.fstat(2)
        if os.environ.get("JOURNAL_STREAM") == f"{written.st_dev}:{written.st_ino}":  # systemd.exec(5)
            unit = Path("/proc/self/cgroup").read_text().strip().rpartition("/")[2]
            return f"journalctl -u {unit}" if unit.endswith(".service") else "journalctl"
        place = str(Path("/proc/self/fd/2").readlink())
    except OSError:
        return UNKNOWN_LOG
    if place.startswith("/dev/pts/") or place.startswith("/dev/tty"):
        return f"the terminal {place}, where it was started"
    return place if place.startswith("/") and not place.startswith("/dev/") else UNKNOWN_LOG


def _path(folder: Path, part: str) -> Path:
    return folder / f"{part}.ended.json"


def _read(folder: Path, part: str) -> dict[str, str]:
    """What was noted of a part; empty if nothing was, or if it can't be read."""
    try:
        line = json.loads(_path(folder, part).read_text())
        int(line["times"])
        return {key: str(line[key]) for key in ("times", "first", "last", "how", "log")}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _when(iso: str) -> str:
    return f"{iso[:16].replace('T', ' ')} UTC"
