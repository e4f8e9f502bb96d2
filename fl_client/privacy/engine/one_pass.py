"""Many patients in one forward and one backward pass, with the gradient of each.

While the network runs, every torch function that is handed a parameter is looked at. One with a rule (`rules`) is computed for
all rows, and its backward pass writes each patient's gradient down. A module in which a parameter meets any other function is
run patient by patient, each with parameters of its own, and ordinary autograd does the rest. A gradient that arrives by any
other way than these two is noticed and refused, so that nothing is lost in silence.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from fl_client.privacy.engine.loop import lower_precision
from fl_client.privacy.engine.rules import RULES, NoRule
from fl_client.privacy.engine.shares import Loss, LossMisshapen, row_losses


class Found:
    """The gradients of one pass: for each parameter (patients, *shape), or None."""

    def __init__(self, parameters: Sequence[nn.Parameter], patients: int) -> None:
        self.patients = patients
        self._index = {id(parameter): i for i, parameter in enumerate(parameters)}
        self.gradients: list[Tensor | None] = [None] * len(parameters)

    def learns(self, parameter: Tensor) -> bool:
        """Whether it is one of the parameters."""
        return id(parameter) in self._index

    def write(self, parameter: Tensor, gradient: Tensor) -> None:
        """Add to it: a layer may be used more than once."""
        i = self._index[id(parameter)]
        gradient = gradient.to(parameter.dtype)
        before = self.gradients[i]
        self.gradients[i] = gradient if before is None else before.add_(gradient)


class _Layers(TorchFunctionMode):
    """Sends what has a rule to its rule. `others` collects the parameters that met something else."""

    def __init__(self, book: Found) -> None:
        super().__init__()
        self.book = book
        self.others: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        met = [a for a in _tensors((*args, *kwargs.values())) if self.book.learns(a)]
        if not met:
            return func(*args, **kwargs)
        rule = RULES.get(func)
        if rule is not None:
            try:
                return rule(self.book, *args, **kwargs)
            except NoRule:
                pass
        out = func(*args, **kwargs)
        if any(o.requires_grad for o in _tensors((out,))):
            self.others |= {id(parameter) for parameter in met}
        return out


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def without_rule(model: nn.Module, parameters: Sequence[nn.Parameter], x: Tensor) -> list[str]:
    """Names of the modules whose own parameters meet a function without a rule when the network sees `x` (rows, ...)."""
    layers = _Layers(Found(parameters, len(x)))
    with layers:
        model(x)
    return [name for name, m in model.named_modules() if layers.others & {id(p) for p in m.parameters(recurse=False)}]


def each_gradient(
    model: nn.Module,
    parameters: Sequence[nn.Parameter],
    x: Tensor,
    y: Tensor,
    loss: Loss,
    *,
    apart: Sequence[str] = (),
    autocast: torch.dtype | None = None,
) -> tuple[Tensor, list[Tensor | None]]:
    """The mean loss of each patient, (patients,), and their gradients, each (patients, *shape) or None.

    `x` and `y` are (patients, rows, ...), as many rows for each. The modules in `apart` are run patient by patient: see
    `without_rule`. Raises `NoRule` if a gradient came by a way that no rule covers or the network's output isn't one tensor of
    rows, and `LossMisshapen` if the loss isn't one number per row.
    """
    patients, rows = x.shape[:2]
    book = Found(parameters, patients)
    flat = x.flatten(0, 1)
    layers = _Layers(book)
    with ExitStack() as stack:
        stack.enter_context(lower_precision(x, autocast))
        modules = dict(model.named_modules())
        alone = [stack.enter_context(_apart(modules[name], layers, flat)) for name in apart]
        with layers:
            out = model(flat)
        if not isinstance(out, Tensor) or len(out) != len(flat):
            raise NoRule("a network whose output isn't one tensor of rows")
        losses = _losses(loss, out.reshape(patients, rows, *out.shape[1:]), y)
    own = [leaf for unit in alone for leaf in unit]
    found = torch.autograd.grad(losses.sum(), [*parameters, *(leaf for _, _, leaf in own)], allow_unused=True)
    ours, theirs = found[: len(parameters)], found[len(parameters) :]
    if any(gradient is not None for gradient in ours):
        raise NoRule("a parameter has a gradient that no rule wrote")
    for (parameter, patient, _), gradient in zip(own, theirs, strict=True):
        if gradient is not None:
            whole = torch.zeros((patients, *parameter.shape), dtype=gradient.dtype, device=gradient.device)
            whole[patient] = gradient
            book.write(parameter, whole)
    return losses.detach(), book.gradients


def _losses(loss: Loss, out: Tensor, y: Tensor) -> Tensor:
    """(patients,): each patient's mean. vmap shows the loss one patient at a time, so that it can't mix them."""
    rows = out.shape[1]
    try:
        return vmap(lambda o, t: row_losses(loss, o, t, rows).mean())(out, y)
    except LossMisshapen:
        raise
    except Exception:  # a loss that vmap can't follow
        return torch.stack([row_losses(loss, o, t, rows).mean() for o, t in zip(out, y, strict=True)])


@contextmanager
def _apart(module: nn.Module, layers: _Layers, x: Tensor) -> Iterator[list[tuple[nn.Parameter, int, Tensor]]]:
    """While this lasts, `module` is run patient by patient; gives (parameter, patient, that patient's own copy)."""
    book, ordinary = layers.book, module.forward
    learned = {name: p for name, p in module.named_parameters() if book.learns(p)}
    copies = [{name: p.detach().clone().requires_grad_() for name, p in learned.items()} for _ in range(book.patients)]
    inside = False

    def each(*args: Any, **kwargs: Any) -> Any:
        nonlocal inside
        if inside:
            return ordinary(*args, **kwargs)
        inside = True
        try:
            parts = [functional_call(module, copies[p], *_cut(args, kwargs, p, book.patients, x)) for p in range(book.patients)]
        finally:
            inside = False
        leaves = [tree_flatten(part) for part in parts]
        joined = [torch.cat(pieces) for pieces in zip(*(flat for flat, _ in leaves), strict=True)]
        return tree_unflatten(joined, leaves[0][1])

    setattr(module, "forward", each)  # noqa: B010 - a method
    try:
        yield [(learned[name], p, copy) for p, own in enumerate(copies) for name, copy in own.items()]
    finally:
        del module.forward


def _cut(args: Any, kwargs: Any, patient: int, patients: int, x: Tensor) -> Any:
    """The arguments of one patient. What neither has a gradient nor is part of the input is a constant for all."""
    storage = x.untyped_storage().data_ptr()

    def part(value: Any) -> Any:
        if not isinstance(value, Tensor) or not (value.requires_grad or value.untyped_storage().data_ptr() == storage):
            return value
        if len(value) % patients:
            raise NoRule(f"axis 0 of length {len(value)} isn't the rows of {patients} patients")
        rows = len(value) // patients
        return value[patient * rows : (patient + 1) * rows]

    return tree_map(part, (args, kwargs))
