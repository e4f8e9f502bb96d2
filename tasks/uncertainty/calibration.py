"""What members' agreement is worth: the Dice that a reader would find, and probabilities that can be taken at their word.

Two things are learned from patients whom a reader has drawn and no training has seen. For each structure a monotone curve
from agreement to expected Dice (isotonic regression, Zadrozny and Elkan 2002, doi:10.1145/775047.775151), with how far below
the expectation one patient in ten lies. For all voxels one temperature (Guo et al. 2017, arXiv:1706.04599). Both are made of
patients without noise: a hospital's own stay in the house; those of generated patients tell of nobody.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError, model_validator

from conf.study import Frozen, words
from tasks.uncertainty.examine import LEAST, Judged, tempered

FEWEST = 8
"""Patients below which nothing is learned: a curve through fewer follows single patients."""
FOLDS = 5
BINS = 15
ONE_IN = 0.1
"""Part of the patients who lie below `low`."""
COLDEST, HOTTEST = 0.2, 5.0
"""Temperatures that are looked for between."""

Share = Annotated[float, Field(ge=0, le=1)]
Floats = npt.NDArray[np.float64]


class Curve(Frozen):
    """Expected Dice of one structure by the members' agreement: straight lines between these points, level beyond them.

    At agreement 0 it is 0, whatever was seen: the mask is empty, or no other member's overlaps with it.
    """

    agreement: tuple[Share, ...]  # rising
    dice: tuple[Share, ...]  # rising or level
    below: Share  # one patient in ten has a Dice that lies farther below the expectation
    patients: int

    @model_validator(mode="after")
    def _rises(self) -> Self:
        for name, points in (("agreement", self.agreement), ("dice", self.dice)):
            if not points or list(points) != sorted(points):
                raise ValueError(f"{name} must hold numbers that rise")
        if len(self.agreement) != len(self.dice):
            raise ValueError(f"{len(self.agreement)} points of agreement and {len(self.dice)} of Dice make no curve")
        return self

    def expected(self, agreement: float) -> float:
        """The Dice that a reader would find on average."""
        return float(_along(np.float64(agreement), self.agreement, self.dice))

    def low(self, agreement: float) -> float:
        """What nine patients in ten of this agreement reach."""
        return max(0.0, self.expected(agreement) - self.below)


class Calibration(Frozen):
    """What was learned of one model's members, and how well it did on patients that each part of it had not seen."""

    kind: Literal["konsil-uncertainty/1"] = "konsil-uncertainty/1"
    models: tuple[str, ...]  # fingerprints of the networks
    members: int
    of: str  # whose patients, in words
    patients: int
    temperature: Annotated[float, Field(gt=0)]
    curves: dict[str, Curve]  # by structure; a structure that too few patients had has none
    error_before: Share  # expected calibration error of the voxels' probabilities (the mean over classes), as they are
    error_after: Share  # and at the temperature that the other patients gave
    miss: Share  # mean absolute difference of expected and true Dice
    rank: float | None  # rank correlation of agreement and Dice, mean over the structures; None: it can't be told

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Read one. Raises `ValueError` in words for a file that holds something else, and `OSError`."""
        try:
            return cls.model_validate_json(path.read_text())
        except (ValidationError, UnicodeDecodeError) as error:
            said = words(error).splitlines()[0] if isinstance(error, ValidationError) else "it is no text"
            raise ValueError(f"{path} holds no calibration that this konsil can read: {said}") from None

    def expected(self, agreement: Mapping[str, float]) -> dict[str, float]:
        """Expected Dice of the structures that there is a curve for."""
        return {name: self.curves[name].expected(value) for name, value in agreement.items() if name in self.curves}

    def low(self, agreement: Mapping[str, float]) -> dict[str, float]:
        """What nine patients in ten reach."""
        return {name: self.curves[name].low(value) for name, value in agreement.items() if name in self.curves}


def calibrate(judged: Sequence[Judged], *, models: Sequence[str], members: int, of: str) -> Calibration:
    """Learn from volumes that were examined and judged; a patient's series count as one patient wherever patients are parted.

    Raises `ValueError` in words for fewer than `FEWEST` patients, and for one member.
    """
    fold = _folds(judged)
    if members < 2:
        raise ValueError(
            "one member can't disagree with itself: there is nothing to calibrate; take --members 8, or where a study trained "
            "without augmentation another model beside it (--also)"
        )
    if len(fold) < FEWEST:
        raise ValueError(f"{len(fold)} patients can be learned from, and a calibration needs {FEWEST}")
    before, after = [], []
    for number in range(FOLDS):
        out = [one for one in judged if fold[one.patient] == number and one.truth.size]
        if out:
            temperature = _temperature([one for one in judged if fold[one.patient] != number])
            before.append(calibration_error(out, 1.0))
            after.append(calibration_error(out, temperature))
    curves, misses, ranks = dict[str, Curve](), list[float](), list[float]()
    for name in dict.fromkeys(name for one in judged for name in one.dice):
        rows = [one for one in judged if name in one.dice and name in one.agreement]
        if len({one.patient for one in rows}) < FEWEST:
            continue
        curves[name], miss, rank = _learned(rows, name)
        misses.append(miss)
        if rank is not None:
            ranks.append(rank)
    if not curves:
        raise ValueError(f"no structure was drawn by a reader in {FEWEST} patients: there is nothing to calibrate by")
    return Calibration(
        models=tuple(models),
        members=members,
        of=of,
        patients=len(fold),
        temperature=_temperature(judged),
        curves=curves,
        error_before=float(np.mean(before)),
        error_after=float(np.mean(after)),
        miss=float(np.mean(misses)),
        rank=float(np.mean(ranks)) if ranks else None,
    )


def _learned(rows: Sequence[Judged], name: str) -> tuple[Curve, float, float | None]:
    """The curve of one structure, how far it misses patients who were not learned from, and the rank correlation."""
    fold = _folds(rows)  # as even among these patients, however they lie among all
    x, y = np.array([(one.agreement[name], one.dice[name]) for one in rows]).T
    folds = np.array([fold[one.patient] for one in rows])
    guess = np.empty(len(y))
    for number in np.unique(folds):
        guess[folds == number] = _along(x[folds == number], *_isotonic(x[folds != number], y[folds != number]))
    below = max(0.0, min(1.0, -float(np.quantile(y - guess, ONE_IN))))
    points, values = _isotonic(x, y)
    curve = Curve(agreement=tuple(points), dice=tuple(values), below=below, patients=len(fold))
    return curve, float(np.abs(y - guess).mean()), rank_correlation(x, y)


def _along(agreement: Floats | np.float64, points: Sequence[float], dice: Sequence[float]) -> Floats:
    """Dice at these agreements; 0 at agreement 0."""
    return np.where(agreement > 0, np.interp(agreement, points, dice), 0.0)


def _folds(judged: Sequence[Judged]) -> dict[str, int]:
    """Patients dealt out over the folds, in the order of their pseudonyms, which say nothing."""
    return {patient: number % FOLDS for number, patient in enumerate(sorted({one.patient for one in judged}))}


def _isotonic(x: Floats, y: Floats) -> tuple[list[float], list[float]]:
    """Corners of the best curve that never falls, both 0..1."""
    from sklearn.isotonic import IsotonicRegression  # here: it takes a second to import, and using a curve needs none

    fitted = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(x, y)
    return fitted.X_thresholds_.clip(0, 1).tolist(), fitted.y_thresholds_.clip(0, 1).tolist()


def _temperature(judged: Sequence[Judged]) -> float:
    """The temperature at which a reader's labels are likeliest, each volume counting alike; 1 where there is no voxel."""
    from scipy.optimize import minimize_scalar

    known = [one for one in judged if one.truth.size]
    if not known:
        return 1.0

    def surprise(logarithm: float) -> float:
        told = [_of_truth(tempered(one.log_p, math.exp(logarithm)), one) for one in known]
        return float(np.mean([-np.log(p.clip(LEAST)).mean() for p in told]))

    found = minimize_scalar(surprise, bounds=(math.log(COLDEST), math.log(HOTTEST)), method="bounded", options={"xatol": 0.01})
    return float(math.exp(found.x))


def _of_truth(p: npt.NDArray[np.float32], one: Judged) -> npt.NDArray[np.float32]:
    return np.asarray(p[one.truth, np.arange(len(one.truth))])


def reliability(judged: Sequence[Judged], temperature: float) -> list[list[tuple[float, float, int]]]:
    """By class, background first: of each bin of predicted probability its mean, the part of the voxels that a reader drew so,
    and how many there are. Empty bins are left out.
    """
    import torch
    from monai.metrics.calibration import calibration_binning  # late: importing MONAI takes seconds

    known = [one for one in judged if one.truth.size]
    if not known:
        return []
    p = np.ascontiguousarray(np.concatenate([tempered(one.log_p, temperature) for one in known], axis=1))
    truth = np.concatenate([one.truth for one in known])
    hot = np.arange(len(p))[:, None] == truth
    predicted, drawn, count = calibration_binning(torch.from_numpy(p)[None], torch.from_numpy(hot)[None], num_bins=BINS)
    table = torch.stack((predicted[0], drawn[0], count[0]), -1).tolist()
    return [[(float(a), float(b), int(n)) for a, b, n in rows if n] for rows in table]


def calibration_error(judged: Sequence[Judged], temperature: float) -> float:
    """Expected calibration error (Naeini et al. 2015) of each class against all others, the mean over the classes."""
    tables = reliability(judged, temperature)
    errors = [sum(n * abs(a - b) for a, b, n in rows) / sum(n for _, _, n in rows) for rows in tables]
    return float(np.mean(errors)) if errors else 0.0


def rank_correlation(x: npt.ArrayLike, y: npt.ArrayLike) -> float | None:
    """Spearman's; None for fewer than three, or where all of one are the same."""
    from scipy.stats import spearmanr

    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(spearmanr(x, y).statistic)
