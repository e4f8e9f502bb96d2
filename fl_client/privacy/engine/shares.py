"""What one patient may add to a sum: a gradient, scaled down to the bound, in double precision.

Both engines add here, so that the promise is kept in one place. Norms stay on the device until the step is over: asking a
GPU for a number makes it wait for everything before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

Loss = Callable[[Tensor, Tensor], Tensor]
"""(output, target) -> one number per row, shape (rows,). Row i depends on row i alone."""


_FEW_NUMBERS = 4096
"""In a parameter whose shares are measured and added by one call; with more, a call for each patient is quicker."""


class LossMisshapen(ValueError):
    """The task's loss isn't one number per row: there is nothing to clip, for any patient."""


def row_losses(loss: Loss, output: Tensor, target: Tensor, rows: int) -> Tensor:
    """One patient's loss, (rows,); raises `LossMisshapen` for any other shape."""
    per_row = loss(output, target)
    if per_row.shape != (rows,):
        shape = tuple(per_row.shape)
        raise LossMisshapen(
            f"the loss of one patient with {rows} rows has shape {shape}; it must be ({rows},), one number per row"
        )
    return per_row


class Shares:
    """The sum as it grows. float64, so that rounding can't lift a patient's share above the bound or tell who came before."""

    def __init__(self, parameters: Sequence[nn.Parameter], max_grad_norm: float) -> None:
        self.bound = max_grad_norm
        self.total = [torch.zeros_like(p, dtype=torch.float64, requires_grad=False) for p in parameters]
        self._norms: list[Tensor] = []
        self._losses: list[Tensor] = []
        self.failed: list[str] = []

    def add(self, gradient: Sequence[Tensor | None], loss: Tensor) -> None:
        """One patient's gradient; None where a parameter has no part in it. Not finite adds exactly zero."""
        there = [(share, part) for share, part in zip(self.total, gradient, strict=True) if part is not None]
        parts = torch._foreach_norm([part for _, part in there], 2, torch.float64) if there else ()
        norm = torch.stack(parts).norm() if parts else torch.zeros((), dtype=torch.float64, device=loss.device)
        self.note(norm, loss)
        if norm.is_cuda:  # the same without asking the device for a number
            scale = self._scale(norm, self.bound)
            for share, part in there:
                share.add_((part.double() * scale).nan_to_num_(0.0, 0.0, 0.0))  # finite unless the norm isn't: then 0 * inf
        elif math.isfinite(norm):
            factor = float(self._scale(norm, self.bound))
            for share, part in there:
                share.add_(part, alpha=factor)

    def add_each(self, gradients: Sequence[Tensor | None], norms: Tensor, losses: Tensor) -> None:
        """Several patients' gradients, (patients, *shape), with their `each_norm`. Who isn't finite adds exactly zero."""
        self.note(norms, losses)
        scales = self._scale(norms, self.bound)
        if norms.is_cuda:  # the same without asking the device for numbers
            for share, part in zip(self.total, gradients, strict=True):
                if part is not None:
                    share.add_((scales @ part.flatten(1).double().nan_to_num_(0.0, 0.0, 0.0)).view_as(share))
            return
        there = torch.nonzero(norms.isfinite()).flatten()  # one after the other: who isn't there changes nothing for the others
        for share, part in zip(self.total, gradients, strict=True):
            if part is None:
                continue
            if part[0].numel() <= _FEW_NUMBERS:
                scaled = part[there].flatten(1).double() * scales[there, None]
                share.copy_(torch.cat([share.flatten()[None], scaled]).cumsum(0)[-1].view_as(share))
                continue
            for patient in there.tolist():
                share.add_(part[patient], alpha=float(scales[patient]))

    def take(self, other: Shares) -> None:
        """Add what another sum of the same parameters holds."""
        for share, part in zip(self.total, other.total, strict=True):
            share.add_(part)
        self._norms += other._norms
        self._losses += other._losses
        self.failed += other.failed

    def _scale(self, norms: Tensor, bound: float) -> Tensor:
        scale = torch.where(norms <= bound, torch.ones_like(norms), bound / norms)
        return torch.where(norms.isfinite(), scale, torch.zeros_like(norms))

    def note(self, norms: Tensor, losses: Tensor) -> None:
        """Write a patient down without a share, or several."""
        self._norms.append(norms.reshape(-1))
        self._losses.append(losses.detach().double().reshape(-1))

    @property
    def norms(self) -> list[float]:
        """Before clipping, one per patient, in the order of adding."""
        return _numbers(self._norms)

    @property
    def losses(self) -> list[float]:
        """One per patient, in the order of adding."""
        return _numbers(self._losses)


def each_norm(gradients: Sequence[Tensor | None], losses: Tensor) -> Tensor:
    """L2 norms of several patients' gradients, each (patients, *shape): over all parameters together, float64."""
    squares = torch.zeros(len(losses), dtype=torch.float64, device=losses.device)
    for part in gradients:
        if part is None:
            continue
        if part.is_cuda or part[0].numel() <= _FEW_NUMBERS:
            squares += torch.linalg.vector_norm(part.flatten(1), dim=1, dtype=torch.float64).square()
        else:  # one at a time, for which the double precision stays in the cache
            squares += torch.stack([torch.linalg.vector_norm(own, dtype=torch.float64) for own in part]).square()
    return squares.sqrt()


def _numbers(pieces: Sequence[Tensor]) -> list[float]:
    """All at once: a device is asked a single time."""
    return [float(number) for number in torch.cat(list(pieces)).tolist()] if pieces else []
