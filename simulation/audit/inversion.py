"""Gradient inversion: drawing a patient's image from the update of one round.

A hospital of one patient with one slice, the worst there is, takes one step by the production loop. The attacker has the
network, the update, and, which no real one has, the mask; it looks for the image whose gradient points the same way (Geiping et
al. 2020: cosine distance and total variation). Without privacy, with it, and against a hospital that had nobody, which shows
what the mask alone gives away. A demonstration: that this attack fails proves nothing about others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fl_client.privacy import calibrate, os_noise, train
from simulation.audit.check import Check, Finding, Setting
from simulation.audit.drawn import Ward
from simulation.patient import draw_patient
from simulation.phantom import truth
from simulation.scanner import Scanner, plan, scan

SIDE = 24
DECLARED = 1
EPSILONS = (8.0, 3.0)
DELTA = 1e-3
BOUND = 1.0
ROUGH = 2e-7
"""What the attacker knows of images: they are smooth in places."""
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Attacked:
    """One arm: how alike the image found and the patient's are (Pearson), and the image."""

    name: str
    alike: float
    image: Floats


def attack(setting: Setting) -> Finding:
    """Each arm once; a picture of all."""
    found = Finding()
    image, mask = _slice(1234 + setting.seed)
    arms: list[tuple[str, bool, float | None]] = [("without privacy", True, None)]
    arms += [(f"epsilon {epsilon:g}", True, epsilon) for epsilon in EPSILONS]
    arms += [(f"epsilon {EPSILONS[0]:g}, nobody there", False, EPSILONS[0])]
    steps = setting.audit.inversion_steps
    results = []
    for done, (name, there, epsilon) in enumerate(arms):
        model = _network(setting.seed)
        update = _update(model, image, mask, there=there, epsilon=epsilon)
        drawn = _inverted(_network(setting.seed), update, mask, steps=steps, seed=setting.seed)
        alike = float(np.corrcoef(drawn.ravel(), image.numpy().ravel())[0, 1])
        results.append(Attacked(name, alike, drawn))
        found.figures[f"{name}: likeness"] = alike
        setting.advance(done + 1, len(arms))
    plain, private, nobody = results[0].alike, max(r.alike for r in results[1:-1]), results[-1].alike
    found.require(plain > 0.7, f"without privacy the image isn't found ({plain:.2f}): the attack says nothing about privacy")
    found.require(
        private < (plain + max(nobody, 0)) / 2, f"with privacy the image found is {private:.2f} alike; without, {plain:.2f}"
    )
    found.pictures.append(_picture(image.numpy(), results, setting.folder / "gradient_inversion.png"))
    return found


def _slice(seed: int) -> tuple[Tensor, Tensor]:
    """The middle slice of a generated patient around the heart: image (SIDE, SIDE) of mean 0 and spread 1, and mask."""
    patient, scanner = draw_patient(seed, {"normal": 1.0}), Scanner()
    scanned = scan(patient, scanner, "cine_ed", seed=seed, oversampling=1, subslices=1)
    grid = plan(patient, scanner, "cine_ed", seed=seed, oversampling=1, subslices=1)
    marked = truth(patient, grid, 0.0).mask
    middle = len(scanned.image) // 2
    rows, columns = np.nonzero(marked[middle])
    reach = int(1.7 * max(np.ptp(rows), np.ptp(columns))) // 2 + 1
    y, x = int(rows.mean()), int(columns.mean())
    cut = (slice(max(0, y - reach), y + reach), slice(max(0, x - reach), x + reach))
    image = torch.from_numpy(np.ascontiguousarray(scanned.image[middle][cut], np.float32))
    mask = torch.from_numpy(np.ascontiguousarray(marked[middle][cut], np.float32))
    image = F.interpolate(image[None, None], (SIDE, SIDE), mode="area")[0, 0]
    mask = F.interpolate(mask[None, None], (SIDE, SIDE), mode="nearest")[0, 0]
    return (image - image.mean()) / image.std(), mask.long()


def _network(seed: int) -> nn.Module:
    """Smooth and without norm layers: easier to invert than any network that we train."""
    torch.manual_seed(seed)
    first, second = nn.Conv2d(1, 16, 5, padding=2), nn.Conv2d(16, 16, 3, padding=1)
    return nn.Sequential(first, nn.Sigmoid(), second, nn.Sigmoid(), nn.Conv2d(16, 4, 3, padding=1))


def _loss(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target, reduction="none").flatten(1).mean(1)


def _update(model: nn.Module, image: Tensor, mask: Tensor, *, there: bool, epsilon: float | None) -> list[Tensor]:
    """The gradient that can be read from the round's weights."""
    before = [parameter.detach().clone() for parameter in model.parameters()]
    multiplier = 0.0 if epsilon is None else calibrate(epsilon=epsilon, delta=DELTA, sample_rate=1.0, steps=1)
    train(
        model,
        Ward({"patient": (image[None, None], mask[None])} if there else {}),
        parameters=list(model.parameters()),
        loss=_loss,
        steps=1,
        sample_rate=1.0,
        views=1,
        declared_size=DECLARED,
        max_grad_norm=math.inf if epsilon is None else BOUND,
        noise_multiplier=multiplier,
        optimizer="sgd",
        learning_rate=1.0,
        noise=os_noise(),
        sampling_rng=np.random.default_rng(),
    )
    return [was - now.detach() for was, now in zip(before, model.parameters(), strict=True)]


def _inverted(model: nn.Module, update: list[Tensor], mask: Tensor, *, steps: int, seed: int) -> Floats:
    """The image whose gradient points most as the update does."""
    parameters = list(model.parameters())
    generator = torch.Generator().manual_seed(seed)
    guess = torch.randn((1, 1, SIDE, SIDE), generator=generator).mul_(0.3).requires_grad_()
    follow = torch.optim.Adam([guess], lr=0.1)
    slower = torch.optim.lr_scheduler.CosineAnnealingLR(follow, steps)
    length = torch.sqrt(sum((part.square().sum() for part in update), torch.zeros(())))
    for _ in range(steps):
        follow.zero_grad()
        gradient = torch.autograd.grad(_loss(model(guess), mask[None]).sum(), parameters, create_graph=True)
        along = sum(((g * u).sum() for g, u in zip(gradient, update, strict=True)), torch.zeros(()))
        own = torch.sqrt(sum((g.square().sum() for g in gradient), torch.zeros(())))
        rough = (guess[..., 1:] - guess[..., :-1]).abs().mean() + (guess[..., 1:, :] - guess[..., :-1, :]).abs().mean()
        (1 - along / (own * length) + ROUGH * rough).backward()  # type: ignore[no-untyped-call]
        follow.step()
        slower.step()
        with torch.no_grad():
            guess.clamp_(-3, 5)
    return np.asarray(guess.detach()[0, 0].double().numpy(), np.float64)


def _picture(image: npt.NDArray[np.floating], results: list[Attacked], path: Path) -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.1 * (len(results) + 1), 2.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(results) + 1)
    panels = [
        ("the patient (generated)", np.asarray(image, np.float64)),
        *((f"{r.name}\n{r.alike:.2f} alike", r.image) for r in results),
    ]
    for panel, (title, shown) in zip(axes, panels, strict=True):
        low, high = np.percentile(shown, [1, 99])
        panel.imshow(shown, cmap="gray", vmin=low, vmax=high)
        panel.set_title(title, fontsize=9)
        panel.axis("off")
    figure.savefig(path, dpi=130)
    return path


CHECKS = (
    Check(
        "gradient inversion",
        "From one round's update of one patient's slice the slice can be drawn; with privacy it can't by the same means.",
        "empirical",
        attack,
        reads="Correlation of the image found with the patient's: 1 is the same image.",
        wanted=lambda audit: audit.inversion_steps > 0,
    ),
)
