"""What one training view's segmentation is worth: Dice over the structures plus weighted cross-entropy, one number per row.

A row's loss must depend on that row alone, or clipping per patient would promise what it doesn't hold. So there is no mean
over rows, no class that is dropped because nobody in the batch shows it, and no weight that was counted from data.
"""

from __future__ import annotations

import torch

from tasks.case import UNKNOWN
from tasks.segmentation.partial import may_be
from tasks.segmentation.settings import Settings

NEVER = -1e4
"""Logarithm of a probability that adds nothing in any precision that we train in."""


def dice_and_cross_entropy(output: torch.Tensor, target: torch.Tensor, settings: Settings) -> torch.Tensor:
    """Loss per row: logits (rows, classes, *space) and classes (rows, *space), 255 unknown -> (rows,).

    Soft Dice (Milletari et al. 2016, without squares) is averaged over the structures, each smoothed by
    `dice_smooth` voxels, so a structure absent from a row scores 0 only if nothing of it is predicted. The cross-entropy
    is a sum over known voxels, weighted by class, divided by the row's number of voxels, a constant. Unknown voxels
    have neither loss nor gradient.

    With `partial_labels: marginal` a voxel that is one of several classes (`partial`) has the cross-entropy of their sum of
    probabilities, weighted as background, and a part in the Dice of structures that it can't be (Shi et al. 2021, Medical Image
    Analysis 70:101979; Fidon et al. 2021, arXiv 2107.03846).
    """
    space = tuple(range(1, target.dim()))
    known = (target != UNKNOWN).to(output.dtype)  # (rows, *space)
    log_p = output.log_softmax(1)
    classes = torch.arange(output.shape[1], device=output.device).view(1, -1, *[1] * len(space))
    truth = (target.unsqueeze(1) == classes).to(output.dtype)  # (rows, classes, *space); all 0 where unknown
    weight = torch.tensor(settings.weights, dtype=output.dtype, device=output.device).view_as(classes)
    cross_entropy = -(weight * truth * log_p).flatten(1).sum(1) / target[0].numel()

    known = known.unsqueeze(1)
    if settings.partial_labels == "marginal":  # the same work for every row, whatever its labels
        several, possible = may_be(target, output.shape[1])
        together = log_p.masked_fill(~possible, NEVER).logsumexp(1)
        cross_entropy = cross_entropy - (weight[:, 0] * several * together).flatten(1).sum(1) / target[0].numel()
        known = known * ~(several.unsqueeze(1) & possible[:, 1:])

    p = log_p.exp()[:, 1:] * known
    truth = truth[:, 1:]
    axes = tuple(axis + 1 for axis in space)
    overlap = (p * truth).sum(axes)  # (rows, structures)
    dice = (2 * overlap + settings.dice_smooth) / (p.sum(axes) + truth.sum(axes) + settings.dice_smooth)
    return settings.ce_weight * cross_entropy + settings.dice_weight * (1 - dice).mean(1)
