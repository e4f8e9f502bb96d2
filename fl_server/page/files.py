"""Files of a study that a browser may have: a short list of names, each with its kind, and nothing that hides behind a link.

What is HTML is shown without scripts, in a sandbox, and with nothing from elsewhere: it holds hospitals' own words.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

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
    "report.html": Kind("the report", "text/html; charset=utf-8", shown=True),
    "report.pdf": Kind("the report to print (PDF)", "application/pdf"),
    "model_card.md": Kind("the model card", "text/plain; charset=utf-8", shown=True),
    "model_card.html": Kind("the model card", "text/html; charset=utf-8", shown=True),
    "record.json": Kind("the record, for programs", "application/json"),
}
"""By name. Weights are not among them."""


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


def opened(folder: Path, name: str) -> tuple[int, int]:
    """A descriptor of the file and its size. Raises `KeyError` for a name that isn't listed, `OSError` for one not there."""
    kind = FILES[name]
    file = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    found = os.fstat(file)
    if not stat.S_ISREG(found.st_mode):
        os.close(file)
        raise OSError(f"{name} is no plain file, so it is not {kind.words}")
    return file, found.st_size


def pieces(file: int, size: int) -> Iterator[bytes]:
    """The first `size` bytes; closes the file."""
    with open(file, "rb") as whole:
        while size > 0 and (piece := whole.read(min(PIECE, size))):
            size -= len(piece)
            yield piece
