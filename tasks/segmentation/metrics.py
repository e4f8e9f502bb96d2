"""How good a segmentation is, on the image's own grid: Dice, Hausdorff 95, surface Dice, volumes, ejection fraction.

Dice and surfaces are MONAI's, in three dimensions with the volume's own spacing. A value that the labels can't decide is
NaN rather than flattering: voxels nobody labelled are left out, and a structure whose surroundings nobody labelled has no
Dice at all, because every prediction would agree with it. Nikolov et al. 2018 (surface Dice), arXiv:1809.04430.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import binary_dilation

from tasks.case import UNKNOWN, Volume
from tasks.segmentation.settings import Settings

Mask = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]
KNOWN_BORDER = 0.5
"""Share of the voxels around a structure, within its slices, that must be labelled for its scores to be defined."""


def case_scores(pairs: Sequence[tuple[Volume, Mask]], settings: Settings, *, full: bool) -> dict[str, float]:
    """Scores of one case from its volumes and their predicted masks (mask values as in `settings.structures`).

    `dice/<structure>`; if `full` also `hd95_mm/...`, `surface_dice/...`, `volume_error_ml/...` (predicted minus
    drawn); each is the mean over the case's volumes in which it is defined, NaN if it is in none. `ef_error` (predicted
    minus drawn ejection fraction, as a fraction of 1) if the structures have a `blood_pool` and the case cine_ed and cine_es.
    """
    found: dict[str, list[float]] = {}
    blood: dict[str, tuple[float, float]] = {}
    for volume, predicted in pairs:
        scores = volume_scores(volume, predicted, settings, full=full)
        for name, value in scores.items():
            found.setdefault(name, []).append(value)
        if full and "blood_pool" in settings.structures:
            blood[volume.series] = _drawn_and_predicted_ml(volume, predicted, "blood_pool", settings)
    result = {name: _mean(values) for name, values in found.items()}
    if {"cine_ed", "cine_es"} <= blood.keys():
        result["ef_error"] = _ejection_fraction(blood, 1) - _ejection_fraction(blood, 0)
    return result


def volume_scores(volume: Volume, predicted: Mask, settings: Settings, *, full: bool) -> dict[str, float]:
    """Scores of one volume, as `case_scores` names them. Raises `ValueError` if the volume has no mask."""
    result: dict[str, float] = {}
    for name in settings.structures:
        truth, guess, defined = _compared(volume, predicted, name, settings)
        scores = _overlap(truth, guess)
        if full:
            scores |= _surfaces(truth, guess, volume.spacing_mm, settings.surface_tolerance_mm)
            ml = float(np.prod(volume.spacing_mm)) / 1000
            scores["volume_error_ml"] = (float(guess.sum()) - float(truth.sum())) * ml
        result |= {f"{metric}/{name}": value if defined else float("nan") for metric, value in scores.items()}
    order = ("dice", "hd95_mm", "surface_dice", "volume_error_ml")
    return dict(sorted(result.items(), key=lambda item: order.index(item[0].split("/")[0])))


def _compared(volume: Volume, predicted: Mask, name: str, settings: Settings) -> tuple[Bools, Bools, bool]:
    """Drawn and predicted structure without the unknown voxels, and whether the labels can judge it at all."""
    if volume.mask is None:
        raise ValueError(f"{volume.series} has no mask to be compared with")
    mask = np.asarray(volume.mask)
    value = settings.structures[name]
    return mask == value, (predicted == value) & (mask != UNKNOWN), can_be_judged(mask, value)


def can_be_judged(mask: Mask, value: int) -> bool:
    """Whether a volume's mask (slices, rows, columns) shows this structure and enough of what surrounds it."""
    truth, known = mask == value, mask != UNKNOWN
    around = binary_dilation(truth, np.array([[[0, 1, 0], [1, 1, 1], [0, 1, 0]]], bool)) & ~truth
    return bool(truth.any()) and bool(known[around].mean() >= KNOWN_BORDER if around.any() else True)


def _overlap(truth: Bools, guess: Bools) -> dict[str, float]:
    from monai.metrics import compute_dice  # late: importing MONAI takes seconds

    if not truth.any():
        return {"dice": float("nan")}
    return {"dice": float(compute_dice(_batch(guess), _batch(truth)).item())}


def _surfaces(truth: Bools, guess: Bools, spacing_mm: Sequence[float], tolerance_mm: float) -> dict[str, float]:
    """Both NaN without a drawn structure; a structure that was missed altogether has surface Dice 0 and no distance."""
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice

    if not truth.any():
        return {"hd95_mm": float("nan"), "surface_dice": float("nan")}
    if not guess.any():
        return {"hd95_mm": float("nan"), "surface_dice": 0.0}
    corner = np.argwhere(truth | guess)
    crop = tuple(slice(low, high + 1) for low, high in zip(corner.min(0), corner.max(0), strict=True))
    y, p = (_batch(np.pad(array[crop], 1)) for array in (truth, guess))  # a rim of background, or the border isn't one
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*always_return_as_numpy", FutureWarning)  # MONAI 1.6 calls itself the old way
        distance = compute_hausdorff_distance(p, y, include_background=True, percentile=95, spacing=list(spacing_mm))
        within = compute_surface_dice(p, y, [tolerance_mm], include_background=True, spacing=list(spacing_mm))
    return {"hd95_mm": float(distance.item()), "surface_dice": float(within.item())}


def _batch(mask: Bools) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(mask)).to(torch.uint8)[None, None]


def _drawn_and_predicted_ml(volume: Volume, predicted: Mask, name: str, settings: Settings) -> tuple[float, float]:
    truth, guess, defined = _compared(volume, predicted, name, settings)
    if not defined:
        return float("nan"), float("nan")
    ml = float(np.prod(volume.spacing_mm)) / 1000
    return float(truth.sum()) * ml, float(guess.sum()) * ml


def _ejection_fraction(blood: Mapping[str, tuple[float, float]], which: int) -> float:
    diastole, systole = blood["cine_ed"][which], blood["cine_es"][which]
    return (diastole - systole) / diastole if diastole > 0 else float("nan")


def _mean(values: Sequence[float]) -> float:
    defined = [value for value in values if np.isfinite(value)]
    return float(np.mean(defined)) if defined else float("nan")
