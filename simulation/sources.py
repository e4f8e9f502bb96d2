"""The text of the code that a kept result depends on: results outlive the process that made them, and code changes.

Whoever keeps something (a cohort, pre-trained weights, a finished arm, scores) puts the text of what made it into its key,
so that changed code is never answered with an old result. A comment changes a text too; that costs a repetition, no more.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
LEARNING = (
    *("conf/study.py", "tasks", "fl_client/privacy", "fl_client/app.py", "fl_client/cohort.py", "fl_client/device.py"),
    *("fl_client/patients.py", "fl_client/price.py", "fl_client/release.py", "fl_client/training_cases.py"),
    "fl_client/synthetic.py",
    *(
        "fl_server/rounds.py",
        "fl_server/strategy.py",
        "fl_server/combine.py",
        "fl_server/wiener.py",
        "fl_server/references.py",
        "fl_server/weights.py",
        "simulation/arms.py",
    ),
)
"""From prepared arrays to the model of a round: what a training's result depends on beside study, patients and start."""
SCORING = ("tasks", "simulation/scoring.py", "simulation/results.py")
"""From weights to the rows of `scores.jsonl`."""


def source_text(*places: str) -> bytes:
    """The Python files named, or found in the folders named (relative to the packages' root), one after another."""
    return b"".join(path.read_bytes() for place in places for path in _files(ROOT / place))


@cache  # the text is that of the code in memory only if it is read early, once for a process
def digest(*places: str) -> str:
    """Short hash of the source text and of torch's version, which decides how the same code adds up."""
    return hashlib.sha256(torch.__version__.encode() + source_text(*places)).hexdigest()[:16]


def _files(place: Path) -> list[Path]:
    return [place] if place.suffix == ".py" else sorted(place.rglob("*.py"))
