"""Which engine a network gets, found out once for each architecture with numbers that were drawn for it.

One pass over many patients is taken where a patient alone doesn't fill the processor, and only if it has agreed with the loop
to double precision, patient by patient, on random weights and a random input, and if in the precision of the training no bit
of a patient's gradient depends on the place in the pass or on the others in it. A network on which it fails or disagrees keeps
the loop: one that mixes rows, keeps something between calls, or lets parameters act in a way that no rule follows. Nothing of a
patient has a part in the choice but the shape of the rows.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from fl_client.privacy.engine.loop import PatientLoop
from fl_client.privacy.engine.one_pass import each_gradient, without_rule
from fl_client.privacy.engine.shares import Loss

log = logging.getLogger("konsil.privacy")

_ENOUGH = 4e6
"""Multiplications and additions in the average operation on one patient's rows: 0.1 ms of one core, much more than it takes to
call it. With fewer, patients had better be taken together. U-Nets of usual size have 1e7 and more, SwinUNETR on slices 1e6."""
_LARGE = 2**16
"""Input numbers of a patient of whom a CPU had better not take two at once: more than ten slices of 80 x 80, or a volume."""
_PATIENTS, _ROWS = 3, 2  # in the trial; different, so that one can't stand for the other
_AGREED = 1e-9


@dataclass(frozen=True)
class Engine:
    """`one_pass`, with the modules that are run patient by patient in it, or `loop`, and why."""

    name: Literal["loop", "one_pass"]
    apart: tuple[str, ...] = ()
    why: str = ""


_chosen: dict[object, Engine] = {}
_tried: dict[object, Engine] = {}


def engine_for(model: nn.Module, parameters: Sequence[nn.Parameter], x: Tensor, y: Tensor, loss: Loss, places: int) -> Engine:
    """The engine for patients like `x` (rows, ...) and `y`, of which only shape, precision and device are looked at."""
    key = _structure(model, parameters, x, y, loss, places)
    if key not in _chosen:
        if x.device.type == "cpu" and x.numel() > _LARGE and (work := _work(model, x)) > _ENOUGH:
            _chosen[key] = Engine("loop", why=f"a patient is large, and each operation long enough ({work:.1e} flop)")
        elif places == 1:
            _chosen[key] = Engine("loop", why="there is room for one patient at a time")
        else:
            _chosen[key] = tried(model, parameters, x, y, loss, places)
        log.info("%s: %s, %s", type(model).__name__, _chosen[key].name, _chosen[key].why)
    return _chosen[key]


def tried(model: nn.Module, parameters: Sequence[nn.Parameter], x: Tensor, y: Tensor, loss: Loss, places: int) -> Engine:
    """`one_pass` if it does what it should on random weights and rows of the shape of `x`'s; else the loop."""
    key = _structure(model, parameters, x, y, loss, places)
    if key not in _tried:
        _tried[key] = _trial(model, parameters, x, y, loss, places)
    return _tried[key]


def _trial(model: nn.Module, parameters: Sequence[nn.Parameter], x: Tensor, y: Tensor, loss: Loss, places: int) -> Engine:
    if not x.is_floating_point():
        return Engine("loop", why="the input isn't of real numbers")
    try:
        twin, learned = _twin(model, parameters, torch.float64)
        apart = without_rule(twin, learned, _drawn((_ROWS, *x.shape[1:]), torch.float64, x.device))
        apart = [name for name in apart if not any(name.startswith(f"{other}.") for other in apart)]
        if "" in apart:
            return Engine("loop", why="the network itself holds a parameter without a rule")
        differs = _from_the_loop(twin, learned, x, apart)
        if not differs <= _AGREED:
            return Engine("loop", why=f"one pass differs from the loop by {differs:.1e}")
        del twin, learned
        coarse = x.dtype != torch.float64  # in double precision the sum itself is rounded as much
        if coarse and (moved := _by_the_others(*_twin(model, parameters, x.dtype), x, y, loss, places, apart)):
            return Engine("loop", why=f"in one pass {moved}")
    except Exception as error:
        return Engine("loop", why=f"one pass isn't possible: {type(error).__name__}: {error}")
    return Engine("one_pass", tuple(apart), f"agreed; patient by patient: {', '.join(apart) or 'no layer'}")


def _from_the_loop(twin: nn.Module, learned: Sequence[nn.Parameter], x: Tensor, apart: Sequence[str]) -> float:
    """By how much the gradients of one pass differ from the loop's, in double precision; see `_apartness`."""
    rows = _drawn((_PATIENTS, _ROWS, *x.shape[1:]), torch.float64, x.device)
    with torch.no_grad():
        like = twin(rows[0])
    weight = _drawn((_PATIENTS, *like.shape), torch.float64, x.device, seed=2)
    _, together = each_gradient(twin, learned, rows, weight, _any_loss, apart=apart)
    loop = PatientLoop(twin, learned, _any_loss)
    worst = 0.0
    for patient in range(_PATIENTS):
        _, alone = loop.gradient(rows[patient], weight[patient])
        apartness = _apartness([None if g is None else g[patient] for g in together], alone)
        worst = apartness if math.isnan(apartness) else max(worst, apartness)
    return worst


def _by_the_others(
    twin: nn.Module, learned: Sequence[nn.Parameter], x: Tensor, y: Tensor, loss: Loss, places: int, apart: Sequence[str]
) -> str:
    """What moves a bit of a patient's gradient in passes of so many places; empty if nothing does."""
    rows = _drawn((places, *x.shape), x.dtype, x.device)
    if y.is_floating_point():
        target = _drawn((places, *y.shape), y.dtype, y.device, seed=2).sigmoid_()
    else:
        target = torch.zeros((places, *y.shape), dtype=y.dtype, device=y.device)  # a label that every loss knows

    def found(rows: Tensor, target: Tensor) -> list[Tensor]:
        _, gradients = each_gradient(twin, learned, rows, target, loss, apart=apart)
        return [gradient for gradient in gradients if gradient is not None]

    before = found(rows, target)
    if not all(gradient.isfinite().all() for gradient in before):
        return "the gradient of random rows isn't finite"
    if not all(
        torch.equal(one.roll(1, 0), other) for one, other in zip(before, found(rows.roll(1, 0), target.roll(1, 0)), strict=True)
    ):
        return "the place moves a patient's gradient"
    rows[1:] = math.nan
    if not all(torch.equal(one[0], other[0]) for one, other in zip(before, found(rows, target), strict=True)):
        return "the others move a patient's gradient"
    return ""


def _drawn(shape: Sequence[int], dtype: torch.dtype, device: torch.device, seed: int = 0) -> Tensor:
    """Normal numbers, the same at each call."""
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(device, dtype)


def _any_loss(output: Tensor, weight: Tensor) -> Tensor:
    """A different direction of the output for every row and voxel, curved so that rows can't be exchanged."""
    return (weight * output + 0.1 * output.square()).reshape(len(output), -1).mean(1)


def _twin(model: nn.Module, parameters: Sequence[nn.Parameter], dtype: torch.dtype) -> tuple[nn.Module, list[nn.Parameter]]:
    """A copy in this precision with shaken weights (zeros would hide a wrong rule) and without drop-out."""
    where = {id(p): name for name, p in model.named_parameters()}
    twin = copy.deepcopy(model).to(dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in twin.parameters():
            p.add_(torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p), alpha=0.1)
    for module in twin.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    named = dict(twin.named_parameters())
    return twin, [named[where[id(p)]] for p in parameters]


def _apartness(one: Sequence[Tensor | None], other: Sequence[Tensor | None]) -> float:
    """Largest difference of any number over the length of the whole gradient."""
    length = sum(float(g.square().sum()) for g in other if g is not None) ** 0.5
    worst = 0.0
    for a, b in zip(one, other, strict=True):
        if a is None and b is None:
            continue
        a, b = (torch.zeros(()) if g is None else g.detach().cpu() for g in (a, b))
        worst = max(worst, float((a - b).abs().max()))
    return worst / length if length > 0 else float("inf")


class _Calls(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what is computed."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def _work(model: nn.Module, x: Tensor) -> float:
    """Floating-point operations of the average call in one patient's forward pass, counted without computing.

    Infinite where that fails.
    """
    try:
        ghost = copy.deepcopy(model).to("meta")
        with FlopCounterMode(display=False) as flops, _Calls() as calls, torch.no_grad():  # type: ignore[no-untyped-call]
            ghost(torch.empty(x.shape, dtype=x.dtype, device="meta"))
    except Exception:
        return float("inf")
    total, count = flops.get_total_flops(), calls.count
    return float(total) / max(1, int(count))


def _structure(model: nn.Module, parameters: Sequence[nn.Parameter], x: Tensor, y: Tensor, loss: Loss, places: int) -> object:
    """Equal for two models that compute alike: modules and settings, what is learned, the rows, the loss, the threads."""
    learned = {id(p) for p in parameters}
    tree = tuple((name, type(m), m.training, m.extra_repr(), _settings(m)) for name, m in model.named_modules())
    shapes = tuple((name, p.shape, p.dtype, id(p) in learned) for name, p in model.named_parameters())
    judged = tuple(getattr(loss, name, type(loss)) for name in ("__module__", "__qualname__"))
    return tree, shapes, x.shape, x.dtype, x.device, y.shape, y.dtype, judged, places, torch.get_num_threads()


def _settings(module: nn.Module) -> tuple[tuple[str, object], ...]:
    plain = (bool, int, float, str, type(None))
    return tuple((k, v) for k, v in vars(module).items() if not k.startswith("_") and isinstance(v, plain))
