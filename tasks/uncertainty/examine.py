"""One volume, seen by all members: the mask that is handed out, where they are unsure, and how far they agree.

Per voxel: the entropy of the mean probabilities (how undecided the members are together) and of it the part that comes from
their disagreement, the mutual information of answer and member (Houlsby et al. 2011, arXiv:1112.5745; Depeweg et al. 2018,
arXiv:1710.07283). Per structure: the mean Dice between what the other members draw and the mask that is handed out
(Roy et al. 2019, NeuroImage 195:11, take it between all pairs), and the spread of the volumes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import distance_transform_edt
from torch import nn

from tasks.case import Volume
from tasks.segmentation.infer import decided, probabilities
from tasks.segmentation.metrics import volume_scores
from tasks.segmentation.partial import ANY_OF
from tasks.segmentation.prepare import classes_of
from tasks.segmentation.settings import Settings

MARGIN_MM = 10.0
"""Voxels whose probabilities are judged lie so near to something drawn or found: the far background is right for everybody."""
VOXELS = 4000
"""So many of them are kept of one volume."""
LEAST = 1e-9
"""Probabilities below are taken to be this: a logarithm needs one."""

Mask = npt.NDArray[np.uint8]
Map = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Examined:
    """A volume's segmentation and how sure it is, on its own grid (slices, rows, columns)."""

    mask: Mask  # mask values as in the settings' `structures`: the first member's, as `segment` gives it
    log_p: npt.NDArray[np.float32]  # (classes, slices, rows, columns): logarithm of the members' mean probability
    disagreement: Map | None  # mutual information / log(classes), 0..1; None: one member alone can't disagree
    agreement: Mapping[str, float]  # mean Dice of the other members' masks with this one, 0 where nobody found it; empty: one
    spread_ml: Mapping[str, float]  # standard deviation of the members' volumes; empty: one member
    members: int

    def entropy(self, temperature: float = 1.0) -> Map:
        """Entropy of the mean probabilities at this temperature / log(classes), 0 sure to 1 guessing."""
        p = tempered(self.log_p, temperature)
        found: Map = (-(p * np.log(p.clip(LEAST))).sum(0) / math.log(len(p))).clip(0, 1)
        return found


@torch.inference_mode()
def examine(members: Sequence[nn.Module], settings: Settings, volume: Volume) -> Examined:
    """Segment a volume with all members (`views.members_of`), each in eval mode and left as it was found.

    Raises `ValueError` for an image without contrast, and for a member whose answer holds numbers that aren't finite.
    """
    shape, classes = volume.image.shape, settings.classes
    total, own = torch.zeros(()), torch.zeros(())
    masks = []
    for member in members:
        p = _answer(member, settings, volume)
        masks.append(decided(p, settings).reshape(shape))
        total, own = total + p / len(members), own + _entropy(p) / len(members)
    disagreement = None
    if len(members) > 1:
        gained = (_entropy(total) - own).clamp(min=0) / math.log(classes)
        disagreement = gained.cpu().numpy().reshape(shape)
    ml = float(np.prod(volume.spacing_mm)) / 1000
    agreement, spread = {}, {}
    for number, name in enumerate(settings.structures, start=1):
        drawn = [mask == number for mask in masks]
        if len(members) > 1:
            agreement[name] = float(np.mean([dice(other, drawn[0]) for other in drawn[1:]]))
            spread[name] = float(np.std([ml * int(one.sum()) for one in drawn], ddof=1))
    labels = np.array([0, *settings.structures.values()], np.uint8)
    log_p = total.clamp(min=LEAST).log().movedim(1, 0).reshape(classes, *shape).cpu().numpy()
    return Examined(labels[masks[0]], log_p, disagreement, agreement, spread, len(members))


def _answer(member: nn.Module, settings: Settings, volume: Volume) -> torch.Tensor:
    was_training = member.training
    member.eval()
    try:
        p, _ = probabilities(member, settings, volume)
    finally:
        member.train(was_training)
    if not bool(torch.isfinite(p).all()):
        raise ValueError(f"the model answers to {volume.series} with numbers that are not finite: nothing can be drawn by it")
    return p


def _entropy(p: torch.Tensor) -> torch.Tensor:
    """Of (rows, classes, *space), in nats: (rows, *space)."""
    return -(p * p.clamp(min=LEAST).log()).sum(1)


def dice(a: Bools, b: Bools) -> float:
    """Of two masks. Where both are empty it is 0: nobody found anything, and somebody should look."""
    return 2 * int((a & b).sum()) / max(int(a.sum()) + int(b.sum()), 1)


def tempered(log_p: npt.NDArray[np.float32], temperature: float) -> npt.NDArray[np.float32]:
    """Probabilities (classes, ...) from logarithms; above 1 they are flatter, below sharper."""
    scaled = log_p / np.float32(temperature)
    p = np.exp(scaled - scaled.max(0))
    return np.asarray(p / p.sum(0), np.float32)


# -- what a reader's mask says of it -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Judged:
    """A volume that was examined, and that a reader has drawn on."""

    patient: str
    series: str
    agreement: Mapping[str, float]
    dice: Mapping[str, float]  # of the mask that was handed out; structures that the labels can't judge are left out
    log_p: npt.NDArray[np.float32]  # (classes, n): of voxels near what was drawn or found
    truth: npt.NDArray[np.uint8]  # (n,) their classes


def judge(found: Examined, patient: str, volume: Volume, settings: Settings) -> Judged:
    """Compare with the volume's own mask. Raises `ValueError` for a volume without one."""
    scores = volume_scores(volume, found.mask, settings, full=False)
    truth = classes_of(volume, settings)
    drawn = (truth > 0) & (truth < ANY_OF)
    there = drawn | (found.mask > 0)
    near = np.zeros(there.shape, bool)
    if there.any():
        near = (distance_transform_edt(~there, sampling=volume.spacing_mm) <= MARGIN_MM) & (truth < ANY_OF)
    places = np.flatnonzero(near)
    if len(places) > VOXELS:  # evenly spread, the same at every call
        places = places[np.linspace(0, len(places) - 1, VOXELS).astype(np.int64)]
    return Judged(
        patient,
        volume.series,
        found.agreement,
        {name.removeprefix("dice/"): value for name, value in scores.items() if math.isfinite(value)},
        found.log_p.reshape(len(found.log_p), -1)[:, places],
        truth.ravel()[places],
    )
