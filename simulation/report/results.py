"""A run folder as tables: which arm, on which patients, had which score.

Only files of the run folder are read, and only those that are there; everything that a report shows is looked up here.
Structures are whatever the scores name after `dice/`; nothing in this file knows a heart from a hippocampus.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import isfinite, nan
from pathlib import Path
from typing import Any

from fl_server.record import Record
from fl_server.report.statistics import Values

PRIVATE, PLAIN = "federation_private", "federation_plain"
ALONE_OWN, ALONE_ELSEWHERE = "alone (own patients)", "alone (elsewhere)"

ARMS = {
    "pretrained": "Starting model, no hospital data",
    ALONE_OWN: "Each hospital alone, own patients",
    ALONE_ELSEWHERE: "Each hospital alone, elsewhere",
    "ensemble": "Ensemble of the local models",
    "pooled": "All data in one place",
    PLAIN: "Federation without privacy",
    PRIVATE: "Federation with privacy",
}
"""The arms in the order in which a report lists them, in words; `Run.words_of` knows what this run started from."""


ROLES = {"site": "On the hospitals that trained", "held_out": "On the hospital that took no part", "real": "On real patients"}
"""In what role a hospital's patients were tested."""


@dataclass(frozen=True)
class Score:
    """What one model had on one patient."""

    arm: str
    seed: int
    hospital: str
    role: str  # site, held_out, real
    patient: str
    scores: dict[str, float]


class Run:
    """One run folder, read once. Raises `FileNotFoundError` without a record, `ValueError` for a broken line."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.record = Record.read(folder / "record.json")
        settings = folder / "settings.json"
        self.settings: dict[str, Any] = json.loads(settings.read_text()) if settings.exists() else {}
        self.metrics: list[dict[str, Any]] = list(_lines(folder / "metrics.jsonl"))
        self.scores = [
            Score(
                arm=str(line["arm"]),
                seed=int(line["seed"]),
                hospital=str(line["hospital"]),
                role=str(line["role"]),
                patient=str(line["patient"]),
                scores={name: nan if value is None else float(value) for name, value in line["scores"].items()},
            )
            for line in _lines(folder / "scores.jsonl")
        ]
        arms = {score.arm for score in self.scores} | {str(line["arm"]) for line in self.metrics}
        self.headline = PRIVATE if PRIVATE in arms or PLAIN not in arms else PLAIN
        names = [name for score in self.scores for name in score.scores] + [name for line in self.metrics for name in line]
        self.structures = tuple(dict.fromkeys(name.removeprefix("dice/") for name in names if name.startswith("dice/")))

    @property
    def overlays(self) -> Path:
        """The folder of image examples; it may be missing."""
        return self.folder / "overlays"

    @property
    def seeds(self) -> list[int]:
        """Seeds that scores exist for, else those that the record names."""
        return sorted({score.seed for score in self.scores}) or self.record.seeds or [self.record.seed]

    @property
    def sites(self) -> list[str]:
        """Hospitals that take part in the training, in the record's order."""
        return list(self.record.sites)

    def hospitals(self, role: str) -> list[str]:
        """Hospitals that were tested in this role; sites in the record's order."""
        found = dict.fromkeys(score.hospital for score in self.scores if score.role == role)
        return sorted(found, key=lambda name: (self.sites.index(name) if name in self.sites else len(self.sites), name))

    @property
    def tuned_on_real(self) -> bool:
        """Whether the start was pre-trained by readers whose habits were chosen on patients of a real hospital tested here.

        That is so of Sunnybrook (`simulation.pretraining`). Settings that are not there are taken to be the usual ones.
        """
        sunnybrook = any("sunnybrook" in name.lower() for name in self.hospitals("real"))
        sunnybrook |= (self.settings.get("real") or {}).get("labels") == "sunnybrook"
        return sunnybrook and bool(self.hospitals("real")) and self.settings.get("pretraining", True) is not None

    @property
    def start(self) -> str | None:
        """Whose weights all arms began with, in words, where patients have a share in them; None where it is nobody's.

        So it is of another model that was taken over, and of generated patients in the intensities of hospitals.
        """
        worn = (self.settings.get("pretraining") or {}).get("intensities")
        if self.settings.get("start_from") is None and not worn:
            return None
        words = self.folder / "start.json"
        return str(json.loads(words.read_text())["source"]) if words.exists() else "another model"

    def words_of(self, arm: str) -> str:
        """What this run's report calls an arm."""
        if arm == "pretrained" and self.start is not None:
            return f"Starting model: {self.start}"
        return ARMS.get(arm, arm)

    @property
    def models(self) -> list[str]:
        """Arms as they were trained (`alone/A` one by one), local models first."""
        found = dict.fromkeys(score.arm for score in self.scores)
        alone = sorted(arm for arm in found if arm.startswith("alone/"))
        return alone + [arm for arm in ARMS if arm in found] + [a for a in found if a not in ARMS and a not in alone]

    def arms(self, role: str) -> list[str]:
        """Arms to compare on this role's patients: the local models count as one arm, or two on the sites."""
        return [arm for arm in ARMS if any(self._rows(arm, role))]

    def values(self, key: str, arm: str, role: str, hospital: str | None = None) -> Values:
        """The score `key` of one arm by (seed, hospital, patient).

        A patient's several lines (series, or several local models) are averaged, so that the patient counts once.
        """
        collected: dict[tuple[int, str, str], list[float]] = {}
        for score in self._rows(arm, role):
            value = score.scores.get(key, nan)
            if (hospital is None or score.hospital == hospital) and isfinite(value):
                collected.setdefault((score.seed, score.hospital, score.patient), []).append(value)
        return {where: sum(several) / len(several) for where, several in collected.items()}

    def missed(self, structure: str, arm: str, role: str, hospital: str) -> int:
        """Test results in which the model outlined nothing where the reader did: a surface Dice, of 0, but no distance.

        Every seed's model counts for itself.
        """
        surface = self.values(f"surface_dice/{structure}", arm, role, hospital)
        return len(surface.keys() - self.values(f"hd95_mm/{structure}", arm, role, hospital).keys())

    def fixed(self, arm: str) -> bool:
        """Whether this arm is one model that doesn't depend on the study's seed: where every seed starts from."""
        return arm == "pretrained" and len({score.seed for score in self.scores if score.arm == arm}) == 1

    def dice(self, arm: str, role: str, hospital: str | None = None) -> Values:
        """A patient's Dice, averaged over the structures it is defined for."""
        collected: dict[tuple[int, str, str], list[float]] = {}
        for structure in self.structures:
            for where, value in self.values(f"dice/{structure}", arm, role, hospital).items():
                collected.setdefault(where, []).append(value)
        return {where: sum(several) / len(several) for where, several in collected.items()}

    def patients(self, role: str) -> int:
        """Distinct patients that were tested in this role."""
        return len({(score.hospital, score.patient) for score in self.scores if score.role == role})

    def rounds(self, arm: str, hospital: str, key: str) -> dict[int, list[float]]:
        """A metric by round, one number per seed."""
        found: dict[int, list[float]] = {}
        for line in self.metrics:
            if line["arm"] == arm and line.get("hospital") == hospital and line.get("round") is not None:
                value = line.get(key)
                if value is not None and isfinite(value):
                    found.setdefault(int(line["round"]), []).append(float(value))
        return dict(sorted(found.items()))

    def epsilon(self, hospital: str) -> float | None:
        """The last epsilon this hospital's ledger stood at, or None where no privacy was promised."""
        site = self.record.sites.get(hospital)
        by_round = self.epsilon_by_round(hospital)
        return site.epsilon if site and site.epsilon is not None else (by_round[max(by_round)] if by_round else None)

    def epsilon_by_round(self, hospital: str) -> dict[int, float]:
        """Epsilon after each round, from the record."""
        by_round = {r.round: r.sites[hospital].epsilon for r in self.record.rounds if hospital in r.sites}
        return {number: value for number, value in by_round.items() if value is not None}

    def _rows(self, arm: str, role: str) -> Iterator[Score]:
        is_row = _rule(arm)
        return (score for score in self.scores if score.role == role and is_row(score))


def _rule(arm: str) -> Callable[[Score], bool]:
    if arm == ALONE_OWN:
        return lambda score: score.arm == f"alone/{score.hospital}"
    if arm == ALONE_ELSEWHERE:
        return lambda score: score.arm.startswith("alone/") and score.arm != f"alone/{score.hospital}"
    return lambda score: score.arm == arm


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if line.strip():
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number} is no JSON object: {error}") from None
