"""Files of a study that a browser may have: a short list of names, each with its kind, and nothing that hides behind a link.

What is HTML is shown without scripts, in a sandbox, and with nothing from elsewhere: it holds hospitals' own words.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PIECE = 256 * 1024

ALONE = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; font-src data:; form-action 'none'; base-uri 'none'; "
    "frame-ancestors 'none'; sandbox"
)
"""Policy of a report: its own style and pictures, all in one file."""


@dataclass(frozen=True)
class Kind:
    """A file that may be had."""

    words: str
    media: str
    shown: bool = False  # in the browser; else it is saved


FILES = {
    "clinical_report.html": Kind("the report for clinicians", "text/html; charset=utf-8", shown=True),
    "clinical_report.pdf": Kind("the report for clinicians, to print (PDF)", "application/pdf"),
    "report.html": Kind("the report", "text/html; charset=utf-8", shown=True),
    "report.pdf": Kind("the report to print (PDF)", "application/pdf"),
    "record.json": Kind("the record, for programs", "application/json"),
}
"""By name. Weights are not among them."""

CARD = Kind("a model's card", "text/plain; charset=utf-8", shown=True)


def there(folder: Path) -> list[tuple[str, str, int]]:
    """Name, words and bytes of the files that this study has."""
    found = []
    for name, kind in FILES.items():
        try:
            file = os.lstat(folder / name)
        except OSError:
            continue
        if stat.S_ISREG(file.st_mode):
            found.append((name, kind.words, file.st_size))
    return found


@dataclass(frozen=True)
class Card:
    """The card of a registered model."""

    model: str
    version: str
    standing: str  # registered, deprecated, withdrawn
    reason: str
    path: Path


def cards(registry: Path | None, study_hash: str) -> list[Card]:
    """The cards of the models that were registered from this study; what can't be read is left out."""
    if registry is None:
        return []
    said = _standings(registry / "log.jsonl")
    found = []
    for path in sorted(registry.glob("*/*/card.json")):
        model, version = path.parent.parent.name, path.parent.name
        facts = _lines(path)
        if facts and facts[0].get("study_hash") == study_hash:
            standing, reason = said.get((model, version), ("registered", ""))
            found.append(Card(model, version, standing, reason, path.with_name("card.md")))
    return found


def _standings(log: Path) -> dict[tuple[str, str], tuple[str, str]]:
    """(model, version) -> the last that the registry's log says of it. Whether its chain holds, `konsil-study models` tells."""
    keys = ("name", "version", "standing", "reason")
    lines = [[str(line.get(key, "")) for key in keys] for line in _lines(log, each_line=True)]
    return {(model, version): (standing, reason) for model, version, standing, reason in lines}


def _lines(path: Path, *, each_line: bool = False) -> list[dict[str, Any]]:
    try:
        text = path.read_text()
        found = [json.loads(line) for line in text.splitlines()] if each_line else [json.loads(text)]
    except (OSError, ValueError):
        return []
    return [line for line in found if isinstance(line, dict)]


def opened(path: Path) -> tuple[int, int]:
    """A descriptor of a plain file, and its size. Raises `OSError` for what is none, or isn't there."""
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    found = os.fstat(file)
    if not stat.S_ISREG(found.st_mode):
        os.close(file)
        raise OSError(f"{path.name} is no plain file")
    return file, found.st_size


def pieces(file: int, size: int) -> Iterator[bytes]:
    """The first `size` bytes; closes the file."""
    with open(file, "rb") as whole:
        while size > 0 and (piece := whole.read(min(PIECE, size))):
            size -= len(piece)
            yield piece
