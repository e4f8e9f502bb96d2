"""One gradient per patient, clipped once, summed.

Whatever happens among a patient's rows (slices, phases, augmented views) is free; what leaves this file moves by at most
`max_grad_norm` when a patient is added or removed. Two engines compute it (`engine`): a loop over the patients, exact for any
network, and one pass over many of them, where a patient alone would leave the processor idle and the network allows it.
Source: Abadi et al. 2016, Algorithm 1, with the patient in place of the example.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from fl_client.privacy.engine.loop import PatientLoop
from fl_client.privacy.engine.one_pass import each_gradient
from fl_client.privacy.engine.shares import Loss as Loss
from fl_client.privacy.engine.shares import LossMisshapen as LossMisshapen
from fl_client.privacy.engine.shares import Shares, each_norm
from fl_client.privacy.engine.trial import Engine, engine_for, tried

_BYTES = {"cpu": 256 * 2**20, "cuda": 2 * 2**30}
"""Memory for the gradients of the patients of one pass. A large network gets few patients at a time, or one."""
_NUMBERS = {"cpu": 2**17, "cuda": 2**22}
"""Input numbers in one pass, which bound its activations. A CPU is quickest with 20 slices of 80 x 80: larger tensors are given
back to the operating system after each use, and cost as much to get again as to compute."""
_FULL = {"cpu": 2**14, "cuda": 2**20}
"""Input numbers with which a pass fills the processor: 4 slices of 64 x 64. More places only stay free more often."""
_FEW, _MANY = 4, 64
"""Places in a pass of large and of small patients, where memory allows them. Free places are computed with the rest."""

_Patient = tuple[Tensor, Tensor]


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


def clipped_sum(
    model: nn.Module,
    parameters: Sequence[nn.Parameter],
    patients: Iterable[tuple[Tensor, Tensor]],
    loss: Loss,
    *,
    max_grad_norm: float,
    engine: Literal["auto", "loop", "one_pass"] = "auto",
    autocast: torch.dtype | None = None,
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
    engine : "auto", "loop" or "one_pass"
        `auto` is right everywhere but in a test or a measurement. `one_pass` is taken only if the network allows it.
    autocast : torch.dtype or None
        Forward pass in this precision (`torch.bfloat16`), in the loop; gradients, norms and sum keep theirs, and so does the
        bound.

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
        or patients has nothing left to clip, and no hook would notice. For `engine="one_pass"` also if the network doesn't
        allow it, with the reason.
    """
    if not max_grad_norm > 0:
        raise ValueError(f"max_grad_norm must be positive, not {max_grad_norm}")
    step = _Step(model, parameters, loss, max_grad_norm=max_grad_norm, engine=engine, autocast=autocast)
    for x, y in patients:
        step.add(x, y)
    shares = step.ended()
    return ClippedSum(shares.total, shares.norms, shares.losses, shares.failed)


class _Step:
    """Patients on their way into the sum: those of equal shape wait for one another, if one pass takes them together."""

    def __init__(
        self,
        model: nn.Module,
        parameters: Sequence[nn.Parameter],
        loss: Loss,
        *,
        max_grad_norm: float,
        engine: str,
        autocast: torch.dtype | None,
    ) -> None:
        self.shares = Shares(parameters, max_grad_norm)
        self.loop = PatientLoop(model, parameters, loss, autocast=autocast)
        self.engine = engine
        self.ways: dict[object, tuple[Engine, int]] = {}
        self.waiting: dict[object, list[_Patient]] = {}

    def add(self, x: Tensor, y: Tensor) -> None:
        """Now, or when enough have come."""
        kind = (x.shape, x.dtype, y.shape, y.dtype)
        if kind not in self.ways:  # for each shape: what is odd about one patient decides nothing for the others
            places = places_for(self.loop.parameters, x)
            self.ways[kind] = self._way(x, y, places), places
            self.waiting[kind] = []
        way, places = self.ways[kind]
        if way.name == "loop":
            self.loop.add(self.shares, x, y)
            return
        self.waiting[kind].append((x, y))
        if len(self.waiting[kind]) == places:
            self._together(kind)

    def ended(self) -> Shares:
        """The shares of all, those who still wait included."""
        for kind in self.waiting:
            while self.waiting[kind]:
                self._together(kind)
        return self.shares

    def _way(self, x: Tensor, y: Tensor, places: int) -> Engine:
        if self.engine == "loop" or (self.engine == "auto" and self.loop.autocast):
            return Engine("loop")
        if self.loop.autocast:
            raise ValueError(
                "engine='one_pass' doesn't suit autocast, whose coarse products nobody has compared patient by patient"
            )
        if self.engine == "auto":
            return engine_for(self.loop.model, self.loop.parameters, x, y, self.loop.loss, places)
        way = tried(self.loop.model, self.loop.parameters, x, y, self.loop.loss, places)
        if way.name != "one_pass" and not any(other.name == "one_pass" for other, _ in self.ways.values()):
            raise ValueError(f"engine='one_pass' doesn't suit {type(self.loop.model).__name__}: {way.why}; take 'auto'")
        return way

    def _together(self, kind: object) -> None:
        """One pass over those who wait, of as many places as ever: a free one shows the first patient again, unread.

        In a pass of other size kernels add in another order, and one patient more or less would move the last bits of all
        the others. In places, who else is there moves no bit: the trial has compared it. Who isn't finite adds nothing.
        """
        patients, self.waiting[kind] = self.waiting[kind], []
        loop, (way, places) = self.loop, self.ways[kind]
        try:
            seated = [*patients, *[patients[0]] * (places - len(patients))]
            x, y = (torch.stack(parts) for parts in zip(*seated, strict=True))
            losses, found = each_gradient(loop.model, loop.parameters, x, y, loop.loss, apart=way.apart)
        except LossMisshapen:
            raise
        except Exception:
            self._one_is_to_blame(kind, patients)
            return
        gradients = [None if gradient is None else gradient[: len(patients)] for gradient in found]
        losses = losses[: len(patients)]
        self.shares.add_each(gradients, each_norm(gradients, losses), losses)

    def _one_is_to_blame(self, kind: object, patients: Sequence[_Patient]) -> None:
        """Who fails alone leaves, and the others wait again. Nobody does if the pass is what fails: for want of memory, say."""
        alone = Shares(self.loop.parameters, self.shares.bound)
        good = []
        for patient in patients:
            before = len(alone.failed)
            self.loop.add(alone, *patient)
            if len(alone.failed) == before:
                good.append(patient)
        if len(good) < len(patients):
            self.waiting[kind].extend(good)
            self.shares.failed.extend(alone.failed)
        else:
            self.ways[kind] = Engine("loop", why="one pass failed"), 1
            self.shares.take(alone)


def places_for(parameters: Sequence[nn.Parameter], x: Tensor) -> int:
    """How many patients share a pass: a power of two, known from the network and the rows' shape alone."""
    kind = x.device.type if x.device.type in _BYTES else "cpu"
    each = sum(p.numel() * p.element_size() for p in parameters)
    numbers = max(1, x.numel())
    wanted = min(_MANY, max(_FEW, _FULL[kind] // numbers))
    most = max(1, min(wanted, _BYTES[kind] // max(1, each), _NUMBERS[kind] // numbers))
    return 1 << (most.bit_length() - 1)
