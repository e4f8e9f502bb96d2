"""One gradient per patient, clipped once, summed.

Each patient is an ordinary forward and backward pass over that patient's own rows (slices, phases, augmented views), so the
gradient is exact for any module and any loss, no hook is needed, and memory is one patient's. Whatever happens among a
patient's rows is free; what leaves this file moves by at most `max_grad_norm` when a patient is added or removed.
Source: Abadi et al. 2016, Algorithm 1, with the patient in place of the example.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

Loss = Callable[[Tensor, Tensor], Tensor]
"""(output, target) -> one number per row, shape (rows,). Row i depends on row i alone."""


@dataclass(frozen=True)
class ClippedSum:
    """The bounded sum, which may be noised and released, and what must stay at the hospital.

    `gradients` are float64, one tensor per parameter. `norms` (before clipping) and `losses`, one per patient, are raw
    facts about patients: for the hospital's own log only, and left out of `repr` so that no message carries them.
    """

    gradients: list[Tensor]
    norms: list[float] = field(repr=False)
    losses: list[float] = field(repr=False)
    failed: list[str] = field(repr=False, default_factory=list)  # why a patient's gradient could not be computed


class LossMisshapen(ValueError):
    """The task's loss isn't one number per row: there is nothing to clip, for any patient."""


def clipped_sum(
    model: nn.Module,
    parameters: Sequence[nn.Parameter],
    patients: Iterable[tuple[Tensor, Tensor]],
    loss: Loss,
    *,
    max_grad_norm: float,
) -> ClippedSum:
    """Sum over patients of each patient's gradient, scaled down to an L2 norm of at most `max_grad_norm`.

    Parameters
    ----------
    model : nn.Module
        Has passed `require_private`. Its parameters and their `.grad` are left alone.
    parameters : sequence of nn.Parameter
        What is learned. The norm is taken over all of them together.
    patients : iterable of (x, y)
        One entry per patient: input (rows, channels, *space) and target (rows, *space), on the model's device.
    loss : callable
        Maps (output, target) to shape (rows,). A patient's gradient is that of the mean over the rows.
    max_grad_norm : float
        Bound on one patient's contribution; `math.inf` clips nothing.

    Returns
    -------
    ClippedSum
        Zeros for no patients. A patient whose gradient is not finite contributes exactly zero (and appears in `norms` as
        what it was): 0 * inf would make the sum NaN, which is a release about that patient. So does one whose gradient
        can't be computed: a step that fails because of one patient tells of that patient.

    Raises
    ------
    ValueError
        If `max_grad_norm` is not positive, or the loss isn't one number per row. A loss that is already a mean over rows
        or patients has nothing left to clip, and no hook would notice.
    """
    if not max_grad_norm > 0:
        raise ValueError(f"max_grad_norm must be positive, not {max_grad_norm}")
    # float64, so that rounding can't lift a patient's share above the bound or tell who was summed before
    total = [torch.zeros_like(parameter, dtype=torch.float64, requires_grad=False) for parameter in parameters]
    norms, losses, failed = [], [], list[str]()
    for x, y in patients:
        try:
            mean, gradient = _gradient(model, parameters, x, y, loss)
        except LossMisshapen:
            raise
        except Exception as error:
            failed.append(f"{type(error).__name__}: {error}")
            continue
        norm = _norm(gradient)
        if math.isfinite(norm):
            scale = 1.0 if norm <= max_grad_norm else max_grad_norm / norm
            for share, part in zip(total, gradient, strict=True):
                if part is not None:
                    share.add_(part, alpha=scale)
        norms.append(norm)
        losses.append(float(mean.detach()))
    return ClippedSum(total, norms, losses, failed)


def _gradient(
    model: nn.Module, parameters: Sequence[nn.Parameter], x: Tensor, y: Tensor, loss: Loss
) -> tuple[Tensor, list[Tensor | None]]:
    """One patient's loss, and its gradient in float64; None where a parameter has no part in it."""
    per_row = loss(model(x), y)  # (rows,)
    if per_row.shape != (len(x),):
        shape = tuple(per_row.shape)
        raise LossMisshapen(
            f"the loss of one patient with {len(x)} rows has shape {shape}; it must be ({len(x)},), one number per row"
        )
    mean = per_row.mean()
    found = torch.autograd.grad(mean, parameters, allow_unused=True)
    return mean, [None if g is None else g.double() for g in found]


def _norm(gradient: Sequence[Tensor | None]) -> float:
    """L2 norm over all tensors together."""
    parts = torch._foreach_norm([part for part in gradient if part is not None])
    return float(torch.stack(parts).norm()) if parts else 0.0
