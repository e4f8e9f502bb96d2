"""What the gate said of a run's generator (`simulation.gate`): its file, and the answer in a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FILE = "gate.json"


def read(folder: Path) -> dict[str, Any] | None:
    """What the gate said of a run: `passed`, and `findings` with question, passed and words; None if it wasn't asked."""
    path = folder / FILE
    if not path.exists():
        return None
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def in_a_line(found: dict[str, Any] | None) -> str:
    """What the gate said, for a screen."""
    if found is None:
        return "The gate was not asked about these scans: they should not leave this machine"
    if found["passed"]:
        return "The gate is open: these scans may be used and may leave"
    no = [one["question"] for one in found["findings"] if one["passed"] is False]
    if no:
        return f"The gate is shut, for the answer is no: {' '.join(no)} See the report."
    return "The gate is shut: there were too few patients to tell. See the report."
