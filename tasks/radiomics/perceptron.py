"""Logistic regression, or a small network, over columns with public bounds.

Each column is scaled by its own bounds to -1..1, beyond which it is cut off; what is missing lies in the middle. No statistic
of any patient enters, so there is nothing to release but the gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tasks.radiomics.forest import Feature


def scaled(X: npt.ArrayLike, columns: Sequence[Feature]) -> npt.NDArray[np.float32]:
    """(rows, columns) in -1..1: linear between the bounds, or linear in the logarithm; missing values are 0."""
    low, high = np.array([[feature.lower, feature.upper] for feature in columns], np.float64).T
    log = np.array([feature.scale == "log" for feature in columns])
    table = np.clip(np.asarray(X, np.float64), low, high)
    with np.errstate(divide="ignore", invalid="ignore"):  # of columns on a linear scale, whose logarithm is not used
        table, low, high = (np.where(log, np.log(values), values) for values in (table, low, high))
    unit: npt.NDArray[np.float32] = np.nan_to_num(2 * (table - low) / (high - low) - 1, nan=0.0).astype(np.float32)
    return unit


class Perceptron(nn.Module):
    """(rows, columns) to the logit of being positive, (rows,). Starts at even odds for everybody without a hidden layer."""

    def __init__(self, columns: int, hidden: Sequence[int]) -> None:
        super().__init__()
        widths = (columns, *hidden)
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, hidden, strict=False))
        self.out = nn.Linear(widths[-1], 1)
        if not hidden:
            nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, (rows,)."""
        for layer in self.hidden:
            x = torch.tanh(layer(x))
        logit: Tensor = self.out(x).squeeze(1)
        return logit


def loss(logit: Tensor, target: Tensor) -> Tensor:
    """Weighted cross-entropy, one number per row; `target` (rows, 2) holds label and weight."""
    return nn.functional.binary_cross_entropy_with_logits(logit, target[:, 0], reduction="none") * target[:, 1]
