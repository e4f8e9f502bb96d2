"""What `konsil-site check` says about one thing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, how it is, and what to do if it isn't right."""

    level: Literal["ok", "warn", "mend"]
    what: str
    text: str
