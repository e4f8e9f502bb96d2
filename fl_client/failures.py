"""What failed at this site: in full for the hospital's own people, and once more as places in the code, for those who help.

log/failures.log     number, traceback, texts of exceptions, which may quote what they like; for the house alone
log/failures.jsonl   number, kinds of the exceptions, files and lines of code: taken from the exceptions themselves, no texts
"""

from __future__ import annotations

import json
import os
import secrets
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fl_client.sharing import file_mode, make_folder


def write_failure(folder: Path, error: BaseException, *, run: int, number: str) -> None:
    """Append the failure to both logs of the folder, made if it isn't there. Raises `OSError`."""
    make_folder(folder)
    when = datetime.now(UTC).isoformat(timespec="seconds")
    text = "".join(traceback.format_exception(error))
    _append(folder / "failures.log", f"{when} run {run}\nnumber {number}\n{text}\n")
    facts = {"when": when, "run": run, "number": number, **places(error)}
    _append(folder / "failures.jsonl", json.dumps(facts) + "\n")


def new_number() -> str:
    """Eight hexadecimal digits by which both sides can speak of one failure."""
    return secrets.token_hex(4)


def failures(folder: Path) -> Iterator[dict[str, Any]]:
    """The failures as places in the code, oldest first."""
    path = folder / "failures.jsonl"
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            yield json.loads(line)
        except ValueError:  # cut short by a power failure
            continue


def places(error: BaseException) -> dict[str, list[str]]:
    """Kinds of the exception and of what it came from, and where each was raised, innermost last."""
    kinds, where = [], []
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        kinds.append(type(link).__name__)
        where += [f"{_file(frame.filename)}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(link.__traceback__)]
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return {"kinds": kinds, "where": where}


def _file(path: str) -> str:
    """A file of the code without the places it lies in; any other is only 'elsewhere'."""
    parts = Path(path).parts
    for root in ("site-packages", "fl_client", "fl_server", "tasks", "conf", "simulation"):
        if root in parts:
            rest = parts[parts.index(root) :]
            return "/".join(rest[1:] if root == "site-packages" else rest)
    return "elsewhere"


def _append(path: Path, text: str) -> None:
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, file_mode(path.parent))
    with open(file, "a") as log:
        log.write(text)
