"""What a check is: a claim that konsil makes, an attempt to refute it, and what was found.

A check reports figures whether it passes or not, so that a reader sees how close it came. One that stumbles over an exception
has not passed: an attack that could not be carried out says nothing for konsil.
"""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

from simulation.audit.settings import Audit

RARE = 1e-7
"""How often a test of chance may give a false alarm."""

Kind = Literal["certain", "statistical", "empirical"]
Figure = float | int | str


@dataclass
class Finding:
    """What one check saw. `problems` are sentences; none means passed. `pictures` are PNG files in the check's folder."""

    figures: dict[str, Figure] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    pictures: list[Path] = field(default_factory=list)

    def require(self, holds: bool, otherwise: str) -> None:
        """Note a problem unless `holds`."""
        if not holds:
            self.problems.append(otherwise)


@dataclass(frozen=True)
class Setting:
    """What a check is given: how hard to try, a folder of its own, a seed for what is drawn, and a place to report progress."""

    audit: Audit
    folder: Path
    seed: int = 0
    advance: Callable[[int, int], None] = lambda done, total: None


@dataclass(frozen=True)
class Check:
    """One claim and the attempt to refute it. `certain`: one counterexample is enough, and chance has no part."""

    name: str
    claim: str
    kind: Kind
    run: Callable[[Setting], Finding]
    wanted: Callable[[Audit], bool] = lambda audit: True
    reads: str = ""  # what its figures are, where their names don't say it


@dataclass(frozen=True)
class Result:
    """A check that was run."""

    check: Check
    finding: Finding
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether nothing was found."""
        return not self.finding.problems

    def facts(self) -> dict[str, Any]:
        """For `audit.json`."""
        return {
            "check": self.check.name,
            "claim": self.check.claim,
            "kind": self.check.kind,
            "passed": self.passed,
            "figures": {name: _plain(value) for name, value in self.finding.figures.items()},
            "problems": self.finding.problems,
            "cpu_s": round(self.seconds, 2),
        }


def carried_out(check: Check, setting: Setting) -> Result:
    """Run the check; an exception in it is a problem found."""
    began = time.process_time()
    setting.folder.mkdir(parents=True, exist_ok=True)
    try:
        finding = check.run(setting)
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(last.filename).name}:{last.lineno}"
        finding = Finding(problems=[f"the check could not be carried out: {type(error).__name__}: {error} ({where})"])
    return Result(check, finding, time.process_time() - began)


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """`owner.name` is `value` while this lasts; for spies, and for what a check has to switch off."""
    own = name in vars(owner)
    before = vars(owner)[name] if own else None
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)


def std_ratio(deviates: npt.ArrayLike, std: float) -> tuple[float, float]:
    """Standard deviation found over the one promised, and the two-sided p-value of the chi-square test, mean 0 assumed."""
    values = np.asarray(deviates, np.float64).ravel() / std
    square = float(np.sum(values**2))
    p = 2 * min(stats.chi2.cdf(square, values.size), stats.chi2.sf(square, values.size))
    return math.sqrt(square / values.size), float(min(1.0, p))


def correlation_z(one: npt.ArrayLike, other: npt.ArrayLike) -> float:
    """Correlation of two vectors of noise, in standard deviations of what independent ones would have."""
    a, b = (np.asarray(v, np.float64).ravel() for v in (one, other))
    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / length * math.sqrt(a.size) if length > 0 else math.inf


def told(figures: Mapping[str, Figure]) -> str:
    """Figures on one line."""
    return "; ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in figures.items()
    )


def _plain(value: Figure) -> Figure | None:
    return None if isinstance(value, float) and not math.isfinite(value) else value
