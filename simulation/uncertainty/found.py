"""What a rehearsal found out about its model's sureness: `uncertainty.json` in the run's folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from conf.study import Frozen
from tasks.uncertainty.calibration import Calibration

FILE, PICTURE = "uncertainty.json", "uncertainty.npz"


class Ranked(Frozen):
    """One test patient, the mean over series."""

    hospital: str
    role: str
    patient: str
    agreement: dict[str, float]  # by structure
    expected: dict[str, float]  # Dice; empty without a calibration
    low: dict[str, float]
    dice: dict[str, float]  # by a reader's mask
    sureness: float  # of the least sure series: who is looked at first

    @property
    def error(self) -> float:
        """1 minus the mean Dice of the structures."""
        return 1 - float(np.mean(list(self.dice.values())))


class Figures(Frozen):
    """Whether it can be believed, on all test patients who took part in no training. None: it can't be told."""

    patients: int
    rank: float | None  # Spearman's correlation of sureness and mean Dice
    looked: int  # the first fifth of the triage order
    caught: int  # so many of the worst fifth are in it
    caught_by_chance: float
    risk: float  # mean error
    area: float  # mean error over all coverages: of the surest part of the patients, as the part grows
    area_at_best: float  # if patients stood in the order of their errors
    miss: float | None  # mean absolute difference of expected and true Dice, over structures and patients
    held: float | None  # part of them whose Dice is at least the one that nine in ten should reach
    error_before: float  # expected calibration error of voxels' probabilities
    error_after: float  # at the calibration's temperature


class Unsure(Frozen):
    """What stands in `uncertainty.json`."""

    kind: str = "konsil-unsure/1"
    model: str  # fingerprint
    members: int
    classes: tuple[str, ...]  # background first
    calibration: Calibration | None
    trouble: str  # why there is none
    figures: Figures
    patients: tuple[Ranked, ...]  # who should be looked at first to whom last
    before: tuple[tuple[tuple[float, float, int], ...], ...]  # reliability by class: predicted, drawn, voxels
    after: tuple[tuple[tuple[float, float, int], ...], ...]


def read(folder: Path) -> Unsure | None:
    """What a run's folder holds of it; None if nobody measured it. Raises `ValueError` for a file that holds something else."""
    path = folder / FILE
    return Unsure.model_validate_json(path.read_text()) if path.exists() else None
