"""Results that benchmarks keep in files, perhaps from several processes at a time, and how they tell of long work."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any


def keep(path: Path, result: Any) -> None:
    """Write the result as JSON: the file is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps(result))
    part.rename(path)


def told(what: str, done: int, of: int) -> None:
    """How far something is, in a line that the next one overwrites."""
    print(f"{what} {done} of {of}", file=sys.stderr, end="\r", flush=True)
