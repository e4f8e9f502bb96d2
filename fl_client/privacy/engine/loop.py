"""One patient after the other: an ordinary forward and backward pass over that patient's own rows.

Exact for any network and any loss, since nothing but this patient is computed with; memory is one patient's. On a CPU a
patient with a few slices fills the processor as well as a batch does, and fits its caches better: nothing is quicker there.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from fl_client.privacy.engine.shares import Loss, LossMisshapen, Shares, row_losses


class PatientLoop:
    """The gradient of one patient at a time."""

    def __init__(
        self, model: nn.Module, parameters: Sequence[nn.Parameter], loss: Loss, *, autocast: torch.dtype | None = None
    ) -> None:
        self.model, self.parameters, self.loss, self.autocast = model, parameters, loss, autocast
        compiled = hasattr(model, "_orig_mod")  # by torch.compile, which has kernels of its own
        self._quick = not compiled and any(isinstance(m, nn.PReLU) and m.num_parameters == 1 for m in model.modules())

    def add(self, shares: Shares, x: Tensor, y: Tensor) -> None:
        """Add one patient's share; who fails adds nothing and is noted. Raises `LossMisshapen` alone."""
        try:
            mean, gradient = self.gradient(x, y)
        except LossMisshapen:
            raise
        except Exception as error:
            shares.failed.append(f"{type(error).__name__}: {error}")
            return
        shares.add(gradient, mean)

    def gradient(self, x: Tensor, y: Tensor) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        """One patient's mean loss over the rows, and its gradient; None where a parameter has no part in it."""
        with self._layers(x), lower_precision(x, self.autocast):
            mean = row_losses(self.loss, self.model(x), y, len(x)).mean()
        return mean.detach(), torch.autograd.grad(mean, self.parameters, allow_unused=True)

    def _layers(self, x: Tensor) -> AbstractContextManager[Any]:
        return _QuickPReLU() if self._quick and x.device.type == "cpu" else nullcontext()


def lower_precision(x: Tensor, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """Automatic mixed precision on the device of `x`; None leaves the precision alone."""
    return torch.autocast(x.device.type, dtype=dtype) if dtype is not None else nullcontext()


class _QuickPReLU(TorchFunctionMode):
    """On a CPU torch's PReLU goes backward ten times slower than the same by way of leaky ReLU: an eighth of a U-Net's time."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.prelu and not kwargs and args[1].numel() == 1 and args[0].dtype == args[1].dtype:
            return _OneSlope.apply(*args)  # type: ignore[no-untyped-call]
        return func(*args, **(kwargs or {}))


class _OneSlope(torch.autograd.Function):
    """PReLU with one slope for all channels: y = x where x > 0, else slope * x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.slope, ctx.shape = float(slope), slope.shape
        out: Tensor = torch.ops.aten.leaky_relu(x, ctx.slope)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (x,) = ctx.saved_tensors
        dx = torch.ops.aten.leaky_relu_backward(dy, x, ctx.slope, False) if ctx.needs_input_grad[0] else None
        dslope = None
        if ctx.needs_input_grad[1]:
            dslope = torch.dot(x.clamp(max=0).flatten(), dy.flatten()).reshape(ctx.shape)
        return dx, dslope
