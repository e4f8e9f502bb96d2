"""The gradient of one layer for every patient of a batch, from what went in and what came back.

Each rule is a function with the arguments of the torch function it stands for, preceded by the book in which it writes. Rows
of one patient lie next to each other along axis 0, as many for each. What goes on to the layer before is computed for all
rows at once; what a parameter gets is summed within each patient, written to the book, and not handed on.
Sources: Goodfellow 2015, arXiv:1510.01799 (linear layers); Rochette et al. 2019, arXiv:1912.06015 (convolutions by groups).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_aten = torch.ops.aten


class NoRule(Exception):
    """A parameter is used in a way that no rule here covers."""


class Book(Protocol):
    """Where the parameters' gradients are written, patient by patient."""

    patients: int

    def learns(self, parameter: Tensor) -> bool:
        """Whether this is a parameter that is trained. A frozen one costs nothing here."""

    def sources(self, value: Tensor) -> tuple[Tensor, ...]:
        """The parameters of which alone it is made: of itself, if it is one; of none, if it holds data."""

    def write(self, parameter: Tensor, gradient: Tensor) -> None:
        """Add (patients, *shape of the parameter)."""


@dataclass(frozen=True)
class _Layer:
    """Whose gradients a backward pass writes: the parameters as the model holds them, None where frozen or absent."""

    book: Book
    weight: Tensor | None
    bias: Tensor | None = None

    @classmethod
    def of(cls, book: Book, weight: Tensor | None, bias: Tensor | None = None) -> _Layer:
        return cls(book, *(p if p is not None and book.learns(p) else None for p in (weight, bias)))


def _within(book: Book, per_row: Tensor) -> Tensor:
    """(rows, ...) -> (patients, ...): the sum over each patient's rows."""
    return _apart(book, per_row).sum(1)


def _apart(book: Book, x: Tensor) -> Tensor:
    """(rows, ...) -> (patients, rows of one, ...). Windows and tokens count as rows: a patient's lie together."""
    if len(x) % book.patients:
        raise NoRule(f"axis 0 of length {len(x)} isn't the rows of {book.patients} patients")
    return x.reshape(book.patients, len(x) // book.patients, *x.shape[1:])


# -- convolutions -----------------------------------------------------------------------------------------------------


def convolution(
    book: Book,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """`torch.conv1d`, `conv2d`, `conv3d`."""
    if isinstance(padding, str):
        raise NoRule(f"a convolution with padding={padding!r}")
    return _convolve(book, input, weight, bias, (stride, padding, dilation, False, 0, groups))


def transposed_convolution(
    book: Book,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    """`torch.conv_transpose1d`, `conv_transpose2d`, `conv_transpose3d`."""
    return _convolve(book, input, weight, bias, (stride, padding, dilation, True, output_padding, groups))


def _convolve(book: Book, x: Tensor, weight: Tensor, bias: Tensor | None, how: tuple[Any, ...]) -> Tensor:
    if x.dim() != weight.dim():
        raise NoRule("a convolution of an input without rows")
    d = weight.dim() - 2
    stride, padding, dilation, transposed, output_padding, groups = how
    how = (_each(stride, d), _each(padding, d), _each(dilation, d), transposed, _each(output_padding, d), groups)
    out: Tensor = _Convolution.apply(x, weight, bias, _Layer.of(book, weight, bias), how)  # type: ignore[no-untyped-call]
    return out


def _each(value: Any, axes: int) -> list[int]:
    values = [int(v) for v in value] if isinstance(value, (tuple, list, torch.Size)) else [int(value)]
    return values * axes if len(values) == 1 else values


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, layer: _Layer, how: tuple[Any, ...]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.layer, ctx.how = layer, how
        out: Tensor = _aten.convolution(x, weight, bias, *how)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        layer, how = ctx.layer, ctx.how
        book = layer.book
        if layer.weight is not None:
            many = by_groups if dy.is_cuda else one_by_one
            book.write(layer.weight, many(x, weight, dy, how, book.patients))
        if layer.bias is not None:
            book.write(layer.bias, _within(book, dy.flatten(2).sum(2)))
        dx = None
        if ctx.needs_input_grad[0]:
            dx = _aten.convolution_backward(dy, x, weight, None, *how, [True, False, False])[0]
        return dx, None, None, None, None


def one_by_one(x: Tensor, weight: Tensor, dy: Tensor, how: tuple[Any, ...], patients: int) -> Tensor:
    """(patients, *weight): a call for each patient. On a CPU the quicker way; each fills it."""
    rows = len(x) // patients
    return torch.stack(
        [
            _aten.convolution_backward(dy[i : i + rows], x[i : i + rows], weight, None, *how, [False, True, False])[1]
            for i in range(0, len(x), rows)
        ]
    )


def by_groups(x: Tensor, weight: Tensor, dy: Tensor, how: tuple[Any, ...], patients: int) -> Tensor:
    """(patients, *weight): one call, in which every patient is a group of channels of its own. For a GPU."""

    def beside(rows: Tensor) -> Tensor:
        return rows.reshape(patients, len(rows) // patients, *rows.shape[1:]).transpose(0, 1).flatten(1, 2)

    stacked = weight.repeat(patients, *[1] * (weight.dim() - 1))  # only its shape matters here
    *rest, groups = how
    found: Tensor = _aten.convolution_backward(
        beside(dy), beside(x), stacked, None, *rest, groups * patients, [False, True, False]
    )[1]
    return found.reshape(patients, *weight.shape)


# -- linear -----------------------------------------------------------------------------------------------------------


def linear(book: Book, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`; any number of axes between rows and features."""
    if input.dim() < 2:
        raise NoRule("a linear layer on an input without rows")
    out: Tensor = _Linear.apply(input, weight, bias, _Layer.of(book, weight, bias))  # type: ignore[no-untyped-call]
    return out


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, layer: _Layer) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.layer = layer
        return F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        layer = ctx.layer
        book = layer.book
        if layer.weight is not None:
            each = _apart(book, dy).flatten(1, -2), _apart(book, x).flatten(1, -2)  # (patients, rows and tokens, features)
            book.write(layer.weight, torch.bmm(each[0].transpose(1, 2), each[1]))
        if layer.bias is not None:
            book.write(layer.bias, _apart(book, dy).flatten(1, -2).sum(1))
        return (dy @ weight if ctx.needs_input_grad[0] else None), None, None, None


# -- norms ------------------------------------------------------------------------------------------------------------


def group_norm(
    book: Book,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:
    """`torch.group_norm`."""
    if input.dim() < 3:
        raise NoRule("group normalisation without space")
    out: Tensor = _GroupNorm.apply(input, weight, bias, _Layer.of(book, weight, bias), num_groups, eps)  # type: ignore[no-untyped-call]
    return out


def instance_norm(
    book: Book,
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:
    """`torch.instance_norm`: group normalisation with a group for each channel."""
    if running_mean is not None or running_var is not None or not use_input_stats:
        raise NoRule("instance normalisation with running statistics")
    return group_norm(book, input, input.shape[1], weight, bias, eps)


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, layer: _Layer, groups: int, eps: float
    ) -> Tensor:
        x = x.contiguous()
        rows, channels = x.shape[:2]
        y, mean, rstd = _aten.native_group_norm(x, weight, bias, rows, channels, math.prod(x.shape[2:]), groups, eps)
        ctx.save_for_backward(x, weight, mean, rstd)
        ctx.layer, ctx.groups = layer, groups
        out: Tensor = y
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, rstd = ctx.saved_tensors
        layer, groups = ctx.layer, ctx.groups
        book = layer.book
        dy = dy.contiguous()
        rows, channels = x.shape[:2]
        total = dy.flatten(2).sum(2)  # (rows, channels)
        if layer.weight is not None:
            along = (dy * x).flatten(2).sum(2)
            mean_of, rstd_of = (t.view(rows, groups).repeat_interleave(channels // groups, 1) for t in (mean, rstd))
            book.write(layer.weight, _within(book, (along - total * mean_of) * rstd_of))
        if layer.bias is not None:
            book.write(layer.bias, _within(book, total))
        dx = None
        if ctx.needs_input_grad[0]:
            space = math.prod(x.shape[2:])
            dx = _aten.native_group_norm_backward(
                dy, x, mean, rstd, weight, rows, channels, space, groups, [True, False, False]
            )[0]
        return dx, None, None, None, None, None


def layer_norm(
    book: Book,
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    """`torch.layer_norm`."""
    shape = _each(normalized_shape, 1)
    if input.dim() <= len(shape):
        raise NoRule("layer normalisation over the rows")
    out: Tensor = _LayerNorm.apply(input, weight, bias, _Layer.of(book, weight, bias), shape, eps)  # type: ignore[no-untyped-call]
    return out


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, layer: _Layer, shape: list[int], eps: float
    ) -> Tensor:
        y, mean, rstd = _aten.native_layer_norm(x, shape, weight, bias, eps)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.layer, ctx.shape = layer, shape
        out: Tensor = y
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, rstd = ctx.saved_tensors
        layer, shape = ctx.layer, ctx.shape
        book = layer.book
        before = x.dim() - len(shape)

        def summed(t: Tensor) -> Tensor:
            return _apart(book, t).flatten(1, before).sum(1) if before > 1 else _within(book, t)

        if layer.weight is not None:
            book.write(layer.weight, summed(dy * ((x - mean) * rstd)))
        if layer.bias is not None:
            book.write(layer.bias, summed(dy))
        dx = None
        if ctx.needs_input_grad[0]:
            dx = _aten.native_layer_norm_backward(dy, x, shape, mean, rstd, weight, bias, [True, False, False])[0]
        return dx, None, None, None, None, None


# -- PReLU ------------------------------------------------------------------------------------------------------------


def prelu(book: Book, input: Tensor, weight: Tensor) -> Tensor:
    """`torch.prelu`, with one slope or one for each channel."""
    out: Tensor = _PReLU.apply(input, weight, _Layer.of(book, weight))  # type: ignore[no-untyped-call]
    return out


class _PReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: Tensor, layer: _Layer) -> Tensor:
        ctx.save_for_backward(x, slope)
        ctx.layer = layer
        return F.prelu(x, slope)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, slope = ctx.saved_tensors
        layer = ctx.layer
        if layer.weight is not None:
            below = (x.clamp(max=0) * dy).flatten(1) if slope.numel() == 1 else (x.clamp(max=0) * dy).flatten(2)
            per_row = below.sum(-1, keepdim=slope.numel() == 1) if x.dim() > 2 or slope.numel() == 1 else below.squeeze(-1)
            layer.book.write(layer.weight, _within(layer.book, per_row))
        if not ctx.needs_input_grad[0]:
            return None, None, None
        if slope.numel() == 1 and not x.is_cuda:  # many times quicker than choosing voxel by voxel; would stop a GPU
            return _aten.leaky_relu_backward(dy, x, float(slope), False), None, None
        wide = slope.view(1, -1, *[1] * (x.dim() - 2)) if slope.numel() > 1 else slope
        return torch.where(x > 0, dy, dy * wide), None, None


# -- what is added to all rows alike ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Shared:
    """A tensor with the way back to the parameters of which it is made, which autograd is not to go by itself."""

    book: Book
    tensor: Tensor

    def write(self, each: Tensor) -> None:
        """Take each patient's gradient, (patients, ...), back to the parameters."""
        sources, shape = self.book.sources(self.tensor), self.tensor.shape
        own = torch.stack([patient.sum_to_size(shape) for patient in each.unsqueeze(1)])
        back = torch.autograd.grad(self.tensor, sources, own, retain_graph=True, is_grads_batched=True)
        for parameter, gradient in zip(sources, back, strict=True):
            self.book.write(parameter, gradient)


def addition(book: Book, input: Any, other: Any, *, alpha: float = 1) -> Tensor:
    """`a + b`, where one side has rows and the other is made of parameters alone: a table of positions, for instance."""
    rows, shared = (other, input) if isinstance(input, Tensor) and book.sources(input) else (input, other)
    if alpha != 1 or not isinstance(rows, Tensor) or not rows.requires_grad or book.sources(rows):
        raise NoRule("parameters added to what may be a constant, or times a number")
    alike = shared.dim() < rows.dim() or len(shared) == 1
    if not alike or shared.dtype != rows.dtype or not _fits(shared.shape, rows.shape):
        raise NoRule("parameters that aren't added to all rows alike")
    if len(rows) % book.patients:
        raise NoRule(f"axis 0 of length {len(rows)} isn't the rows of {book.patients} patients")
    out: Tensor = _Addition.apply(rows, shared.detach(), _Shared(book, shared))  # type: ignore[no-untyped-call]
    return out


def _fits(small: torch.Size, large: torch.Size) -> bool:
    """Whether the small shape is repeated to make the large one."""
    return all(one in (1, other) for one, other in zip(reversed(small), reversed(large), strict=False))


class _Addition(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, values: Tensor, shared: _Shared) -> Tensor:
        ctx.shared = shared
        return rows + values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        ctx.shared.write(_within(ctx.shared.book, dy))
        return dy, None, None


# -- which rule for which function --------------------------------------------------------------------------------------


RULES: dict[Callable[..., Any], Callable[..., Tensor]] = {
    torch.conv1d: convolution,
    torch.conv2d: convolution,
    torch.conv3d: convolution,
    torch.conv_transpose1d: transposed_convolution,
    torch.conv_transpose2d: transposed_convolution,
    torch.conv_transpose3d: transposed_convolution,
    F.linear: linear,
    F.group_norm: group_norm,
    torch.group_norm: group_norm,
    F.instance_norm: instance_norm,
    torch.instance_norm: instance_norm,
    F.layer_norm: layer_norm,
    torch.layer_norm: layer_norm,
    torch.prelu: prelu,
    torch.add: addition,
    Tensor.add: addition,  # and `a + b`
}
