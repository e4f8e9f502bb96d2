"""Many patients in one forward and one backward pass, with the gradient of each.

While the network runs, every torch function that is handed a parameter is looked at. One with a rule (`rules`) is computed for
all rows, and its backward pass writes each patient's gradient down. What is made of parameters alone, like entries looked up in
a table of positions, is followed until it is added to the rows, which has a rule as well. A module in which a parameter meets
any other function is mapped over the patients, each with parameters of its own, and ordinary autograd does the rest. A gradient
that arrives by any other way than these is noticed and refused, so that nothing is lost in silence.
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

from fl_client.privacy.engine.rules import RULES, NoRule, addition
from fl_client.privacy.engine.shares import Loss, LossMisshapen, row_losses


class Found:
    """The gradients of one pass: for each parameter (patients, *shape), or None.

    `known` holds what is made of parameters alone, by its id: the tensor, so that no other gets the id, and the parameters.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], patients: int) -> None:
        self.patients = patients
        self._index = {id(parameter): i for i, parameter in enumerate(parameters)}
        self.gradients: list[Tensor | None] = [None] * len(parameters)
        self.known: dict[int, tuple[Tensor, tuple[Tensor, ...]]] = {id(p): (p, (p,)) for p in parameters}

    def learns(self, parameter: Tensor) -> bool:
        """Whether it is one of the parameters."""
        return id(parameter) in self._index

    def sources(self, value: Tensor) -> tuple[Tensor, ...]:
        """The parameters of which alone it is made; a parameter is made of itself, and what holds data of none."""
        return self.known.get(id(value), (value, ()))[1]

    def follow(self, value: Tensor, sources: tuple[Tensor, ...]) -> None:
        """From now on it is known to be made of these parameters alone."""
        self.known[id(value)] = value, sources

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
        if not self._is_known((*args, *kwargs.values())):
            return func(*args, **kwargs)
        given = list(_tensors((*args, *kwargs.values())))
        sources = tuple({id(p): p for value in given for p in self.book.sources(value)}.values())
        rule = RULES.get(func)
        if rule is addition or (rule is not None and all(map(self.book.learns, filter(self.book.sources, given)))):
            try:
                return rule(self.book, *args, **kwargs)
            except NoRule:
                pass
        out = func(*args, **kwargs)
        made = [value for value in _tensors((out,)) if value.requires_grad]
        if all(self.book.sources(value) or not value.is_floating_point() for value in given):  # places are whole numbers
            for value in made:
                self.book.follow(value, sources)
        elif made:
            self.others |= {id(parameter) for parameter in sources}
        return out

    def _is_known(self, values: Iterable[Any]) -> bool:
        """Whether something that is made of parameters is among them: asked at every call, so in few steps."""
        known = self.book.known
        return any(id(value) in known or (isinstance(value, (list, tuple)) and self._is_known(value)) for value in values)


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
        if x.is_cuda:  # a coarser product would make patients move with the size of the pass
            stack.enter_context(torch.backends.cudnn.flags(deterministic=True, allow_tf32=False))
        modules = dict(model.named_modules())
        alone = [stack.enter_context(_apart(modules[name], layers, flat)) for name in apart]
        with layers:
            out = model(flat)
        if not isinstance(out, Tensor) or len(out) != len(flat):
            raise NoRule("a network whose output isn't one tensor of rows")
        losses = _losses(loss, out.reshape(patients, rows, *out.shape[1:]), y)
    own = [leaf for unit in alone for leaf in unit]
    found = torch.autograd.grad(losses.sum(), [*parameters, *(copies for _, copies in own)], allow_unused=True)
    if any(gradient is not None for gradient in found[: len(parameters)]):
        raise NoRule("a parameter has a gradient that no rule wrote")
    for (parameter, _), gradient in zip(own, found[len(parameters) :], strict=True):
        if gradient is not None:
            book.write(parameter, gradient)
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
def _apart(module: nn.Module, layers: _Layers, x: Tensor) -> Iterator[list[tuple[nn.Parameter, Tensor]]]:
    """While this lasts, `module` is run patient by patient; gives (parameter, the patients' own copies of it)."""
    patients, ordinary = layers.book.patients, module.forward
    learned = {name: p for name, p in module.named_parameters() if layers.book.learns(p)}
    copies = {name: p.detach().repeat(patients, *[1] * p.dim()).view(patients, *p.shape) for name, p in learned.items()}
    for copy in copies.values():
        copy.requires_grad_()
    inside = False

    def alone(own: dict[str, Tensor], values: list[Any], form: Any) -> Any:
        args, kwargs = tree_unflatten(values, form)
        return functional_call(module, own, args, kwargs)

    def each(*args: Any, **kwargs: Any) -> Any:
        nonlocal inside
        if inside:
            return ordinary(*args, **kwargs)
        flat, form = tree_flatten((args, kwargs))
        cut = [_rows_of_each(value, patients, x) for value in flat]
        axes = [0 if theirs else None for _, theirs in cut]
        values = [value for value, _ in cut]
        inside = True
        try:
            try:
                out = vmap(lambda own, *v: alone(own, list(v), form), in_dims=(0, *axes), randomness="different")(
                    copies, *values
                )
                return tree_map(lambda o: o.flatten(0, 1), out)
            except Exception:  # what vmap can't follow
                parts = [
                    alone(
                        {n: c[p] for n, c in copies.items()},
                        [v[p] if a == 0 else v for v, a in zip(values, axes, strict=True)],
                        form,
                    )
                    for p in range(patients)
                ]
        finally:
            inside = False
        leaves = [tree_flatten(part) for part in parts]
        return tree_unflatten([torch.cat(pieces) for pieces in zip(*(flat for flat, _ in leaves), strict=True)], leaves[0][1])

    setattr(module, "forward", each)  # noqa: B010 - a method
    try:
        yield [(learned[name], copy) for name, copy in copies.items()]
    finally:
        del module.forward


def _rows_of_each(value: Any, patients: int, x: Tensor) -> tuple[Any, bool]:
    """(patients, rows of one, ...) and true; what neither has a gradient nor is part of the input is a constant for all."""
    if not isinstance(value, Tensor):
        return value, False
    if not (value.requires_grad or value.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()):
        return value, False
    if len(value) % patients:
        raise NoRule(f"axis 0 of length {len(value)} isn't the rows of {patients} patients")
    return value.reshape(patients, len(value) // patients, *value.shape[1:]), True
