"""The one training loop of a hospital: differentially private SGD with the patient as its unit.

Every step draws patients, each with the same probability and independently of the others; sums their clipped gradients;
adds Gaussian noise to the sum; divides by a number that is public; and lets an optimiser follow the result. Only the
parameters may leave. Source: Abadi et al. 2016, Algorithm 1; Poisson sampling as its accounting assumes it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from fl_client.privacy.clip import Loss, clipped_sum
from fl_client.privacy.gate import require_private
from fl_client.privacy.noise import Noise, noise_std, noised


class PatientExamples(Protocol):
    """The hospital's training patients, as the loop sees them."""

    @property
    def patients(self) -> Sequence[str]:
        """Pseudonyms, each once."""

    def example(self, patient: str, views: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """`views` rows of one patient: input (views, channels, *space) and target (views, *space).

        Nothing but this patient and `rng` may decide what comes back.
        """


@dataclass(frozen=True)
class TrainingReport:
    """What happened, for the hospital's own log. None of it has noise: **it doesn't leave the hospital**.

    `norms[s]` and `losses[s]` hold one number per patient of step s: gradient norm before clipping, and loss. `failed` names
    patients whose rows could not be drawn, with the reason; they added nothing.
    """

    steps: int
    norms: list[list[float]] = field(repr=False)
    losses: list[list[float]] = field(repr=False)
    failed: dict[str, str] = field(repr=False)

    def clipped_fraction(self, max_grad_norm: float) -> float:
        """Share of patients' gradients that were longer than the bound; NaN if no patient was ever drawn."""
        norms = [norm for step in self.norms for norm in step]
        return sum(norm > max_grad_norm for norm in norms) / len(norms) if norms else float("nan")


def train(
    model: nn.Module,
    examples: PatientExamples,
    *,
    parameters: Sequence[nn.Parameter],
    loss: Loss,
    steps: int,
    sample_rate: float,
    views: int,
    declared_size: int,
    max_grad_norm: float,
    noise_multiplier: float,
    optimizer: Literal["sgd", "adam"],
    learning_rate: float,
    weight_decay: float = 0.0,
    proximal_mu: float = 0.0,
    noise: Noise,
    sampling_rng: np.random.Generator,
    device: torch.device | str = "cpu",
    precision: Literal["float32", "bfloat16"] = "float32",
) -> TrainingReport:
    """Train `parameters` of `model` in place, on `device`.

    Parameters
    ----------
    model : nn.Module
        The global model; `require_private` is asked first.
    examples : PatientExamples
        The hospital's training patients.
    parameters : sequence of nn.Parameter
        What moves. Every other parameter keeps its value.
    loss : callable
        (output, target) to one number per row, shape (rows,).
    steps : int
        Gradient steps, each one noisy release in the ledger's eyes.
    sample_rate : float
        Probability that a patient takes part in a step. A step may draw nobody; it is then noise alone, and counts.
    views : int
        Rows drawn from each patient in a step; free, because they are inside the clipping.
    declared_size : int
        The size the hospital declares in public. The sum is divided by `sample_rate * declared_size`, never by how many
        patients were drawn or there are.
    max_grad_norm, noise_multiplier : float
        Bound on one patient's gradient, and noise standard deviation over that bound. No privacy is `math.inf` and 0.
    optimizer, learning_rate, weight_decay : "sgd" or "adam", float, float
        torch's optimisers with their defaults, fresh at every call; all they see is the noisy gradient.
    proximal_mu : float
        FedProx: pull towards the parameters at the start, added after the noise because it depends on no patient.
    sampling_rng : numpy Generator
        Who is drawn has to stay secret for the accounting of `sample_rate` < 1 to hold: outside rehearsals use
        `np.random.default_rng()`, which is seeded by the operating system, and never a seed from a study.
    noise : Noise
        Where the noise comes from: `os_noise()` outside rehearsals.
    device : torch.device or str
        Where model and patients are computed. On a GPU the next patient is prepared while one is computed.
    precision : "float32" or "bfloat16"
        Of the forward pass (torch's autocast). Gradients, bound, sum and noise keep theirs.

    Raises
    ------
    TypeError
        From `require_private`.
    ValueError
        For settings that can't be right, or a loss that isn't one number per row.
    """
    require_private(model)
    _require_once(examples)
    _require_sensible(steps=steps, sample_rate=sample_rate, views=views, declared_size=declared_size, parameters=parameters)
    std = noise_std(noise_multiplier=noise_multiplier, bound=max_grad_norm)
    denominator = sample_rate * declared_size  # public
    model.to(device).train()
    start = [parameter.detach().clone() for parameter in parameters]
    follow = _optimizer(optimizer, parameters, learning_rate=learning_rate, weight_decay=weight_decay)
    norms, losses = list[list[float]](), list[list[float]]()
    failed: dict[str, str] = {}
    autocast = torch.bfloat16 if precision == "bfloat16" else None
    for _ in range(steps):
        drawn = _draw(examples, sample_rate=sample_rate, views=views, rng=sampling_rng, device=device, failed=failed)
        if torch.device(device).type == "cuda":
            drawn = _ahead(drawn)
        total = clipped_sum(model, parameters, drawn, loss, max_grad_norm=max_grad_norm, autocast=autocast)
        for parameter, before, share in zip(parameters, start, total.gradients, strict=True):
            gradient = (noised(share, std, noise) / denominator).to(parameter.dtype)
            parameter.grad = gradient.add_(parameter.detach() - before, alpha=proximal_mu)
        follow.step()
        failed |= {f"one of step {len(norms) + 1}, number {n}": reason for n, reason in enumerate(total.failed, 1)}
        norms.append(total.norms)
        losses.append(total.losses)
    follow.zero_grad(set_to_none=True)
    return TrainingReport(steps, norms, losses, failed)


def one_sum(
    model: nn.Module,
    examples: PatientExamples,
    *,
    parameters: Sequence[nn.Parameter],
    loss: Loss,
    views: int,
    max_grad_norm: float,
    sampling_rng: np.random.Generator,
    device: torch.device | str = "cpu",
) -> tuple[list[Tensor], dict[str, str]]:
    """The sum of all patients' clipped gradients, float64 and WITHOUT noise; and who could not be drawn, with the reason.

    For secure aggregation, which adds the noise in whole numbers: **it doesn't leave the hospital as it is**. Parameters and
    errors as in `train`.
    """
    require_private(model)
    _require_once(examples)
    _require_sensible(steps=1, sample_rate=1.0, views=views, declared_size=1, parameters=parameters)
    model.to(device).train()
    failed: dict[str, str] = {}
    drawn = _draw(examples, sample_rate=1.0, views=views, rng=sampling_rng, device=device, failed=failed)
    total = clipped_sum(model, parameters, drawn, loss, max_grad_norm=max_grad_norm)
    failed |= {f"number {n}": reason for n, reason in enumerate(total.failed, 1)}
    return total.gradients, failed


def _draw(
    examples: PatientExamples,
    *,
    sample_rate: float,
    views: int,
    rng: np.random.Generator,
    device: torch.device | str,
    failed: dict[str, str],
) -> Iterator[tuple[Tensor, Tensor]]:
    """The patients of one step. Each has a generator of its own, so that no patient's presence moves another's draw.

    One who raises is left out: a training that fails because of one patient tells the coordinator of that patient.
    """
    key = rng.integers(2**63)
    for patient in examples.patients:
        own = np.random.default_rng([int(key), int.from_bytes(hashlib.sha256(patient.encode()).digest()[:16], "big")])
        if own.random() < sample_rate:
            try:
                x, y = (part.to(device) for part in examples.example(patient, views, own))
            except Exception as error:
                failed[patient] = f"{type(error).__name__}: {error}"
                continue
            yield x, y


def _ahead(drawn: Iterator[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """The same, with the next patient made in a thread of its own meanwhile: a GPU needn't wait for the augmentation."""
    with ThreadPoolExecutor(1) as hand:
        coming = hand.submit(next, drawn, None)
        while (patient := coming.result()) is not None:
            coming = hand.submit(next, drawn, None)
            yield patient


def _optimizer(
    name: str, parameters: Sequence[nn.Parameter], *, learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=learning_rate, weight_decay=weight_decay)
    if name == "adam":
        return torch.optim.Adam(parameters, lr=learning_rate, weight_decay=weight_decay)
    raise ValueError(f"no optimizer named {name!r}; there are 'sgd' and 'adam'")


def _require_once(examples: PatientExamples) -> None:
    if len(set(examples.patients)) < len(examples.patients):  # who is listed twice would be clipped twice
        raise ValueError("a patient is listed more than once; all rows of a patient belong under one pseudonym")


def _require_sensible(
    *, steps: int, sample_rate: float, views: int, declared_size: int, parameters: Sequence[nn.Parameter]
) -> None:
    if not 0 < sample_rate <= 1:
        raise ValueError(f"sample_rate must lie in (0, 1], not {sample_rate}")
    for name, value in (("steps", steps), ("views", views), ("declared_size", declared_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    if not parameters:
        raise ValueError("no parameters to train; the task's `trainable` names none")
