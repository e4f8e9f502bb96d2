"""Voxels of which a reader's silence says something: unlabelled where only some structures were looked for.

Such a voxel is background or one of the structures that nobody looked for, and none of the others. Stored masks hold it as one
number, `ANY_OF` plus a bit for each structure that it may be, between the classes and 255, which may be anything.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import numpy.typing as npt
import torch

from tasks.case import UNKNOWN

ANY_OF = 128
MOST = 6
"""Structures that fit into one number below 255 with theirs."""


def code(missing: Collection[int], classes: int) -> int:
    """The number of a voxel that is background or one of `missing` (classes from 1 on); 255 where that says nothing."""
    structures = classes - 1
    if structures > MOST or len(missing) >= structures:
        return UNKNOWN
    return ANY_OF + sum(1 << (number - 1) for number in missing)


def seen_for(mask: npt.NDArray[np.uint8], number: int) -> npt.NDArray[np.uint8]:
    """The mask for who judges one structure, a class from 1 on.

    What may be several things is unknown if it may be that one, and background otherwise.
    """
    several = (mask >= ANY_OF) & (mask != UNKNOWN)
    perhaps = (mask >> np.uint8(number - 1)) & 1 == 1 if number <= MOST else np.zeros(mask.shape, bool)
    return np.where(several, np.where(perhaps, np.uint8(UNKNOWN), np.uint8(0)), mask)


def may_be(target: torch.Tensor, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Which voxels are one of several, bool (rows, *space), and what these may be, bool (rows, classes, *space).

    A voxel that is none of those may be anything here.
    """
    several = (target >= ANY_OF) & (target != UNKNOWN)
    bits = torch.where(several, target - ANY_OF, -1)  # -1: all bits
    shift = torch.arange(classes - 1, device=target.device).view(1, -1, *[1] * (target.dim() - 1))
    structures = ((bits.unsqueeze(1) >> shift) & 1).bool()
    return several, torch.cat([torch.ones_like(several).unsqueeze(1), structures], dim=1)
