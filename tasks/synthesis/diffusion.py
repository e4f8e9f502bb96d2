"""Noise and images: training rows of one patient, how well their noise is told, and images drawn from noise.

An image x of 0..1.5 is learned as 2 x - 1. At level t of `levels` it stands as sqrt(a) x + sqrt(1 - a) noise, a falling along
a cosine (Nichol and Dhariwal 2021, arXiv 2102.09672), and the network tells the velocity sqrt(a) noise - sqrt(1 - a) x
(Salimans and Ho 2022, arXiv 2202.00512). The schedule and the steps back are MONAI's.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tasks.case import UNKNOWN
from tasks.segmentation.augment import rotations
from tasks.segmentation.look import box, sample
from tasks.synthesis.settings import Settings
from tasks.synthesis.tone import toned

BRIGHTEST = 1.5
"""Largest value of a prepared image (`tasks.segmentation.prepare.working_image`)."""

JUDGED_AT = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Noise levels, of the highest that is learned, at which a generator is judged."""


def example(
    arrays: Mapping[str, npt.NDArray[Any]], views: int, rng: np.random.Generator, settings: Settings
) -> tuple[torch.Tensor, torch.Tensor]:
    """`views` noisy looks at one patient: input (views, channels, *voxels) float32 and velocity (views, *voxels).

    Each image is taken once before any comes twice, and the noise levels of a patient's views are spread evenly, up to
    `settings.highest`. With a `tone` (knots,) among the arrays the patient is shown in it, and the network is told so.
    """
    dims, count = settings.spatial_dims, len(arrays["image"])
    rounds = [rng.permutation(count) for _ in range(-(-views // count))]
    item = np.concatenate(rounds)[:views]

    def within(spread: float, *shape: int) -> npt.NDArray[np.float64]:
        return rng.uniform(-spread, spread, (views, *shape))

    shift = within(settings.shift_mm, dims)
    half = np.array(settings.field_mm) / 2 * (1 + within(settings.scale, 1))
    matrix = rotations(within(np.deg2rad(settings.rotation_deg), dims * (dims - 1) // 2), dims) * half[:, None, :]
    image, classes = look(arrays, item, settings, shift_mm=shift, matrix=matrix)
    tone = arrays.get("tone")
    if tone is not None:
        image = toned(image, tone)
    facts = told(torch.from_numpy(arrays["facts"][item]), settings, tone=tone)
    level = settings.highest * (rng.permutation(views) + rng.random(views)) / views
    noise = torch.from_numpy(rng.standard_normal(image.shape, np.float32))
    return noisy(image, classes, facts, level, noise, settings)


def told(facts: torch.Tensor, settings: Settings, *, tone: npt.ArrayLike | None = None) -> torch.Tensor:
    """What the network is told (rows, told) beside these facts (rows, facts): this tone, or that it is the learned one."""
    if not settings.tone_knots:
        return facts
    own = [1.0, *[0.0] * settings.tone_knots] if tone is None else [0.0, *np.asarray(tone, np.float64).tolist()]
    return torch.cat([facts, torch.tensor(own).to(facts).expand(len(facts), -1)], dim=1)


def look(
    arrays: Mapping[str, npt.NDArray[Any]],
    item: npt.NDArray[np.integer],
    settings: Settings,
    *,
    shift_mm: npt.NDArray[np.floating] | float = 0.0,
    matrix: npt.NDArray[np.floating] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Looks at the located structures: images (rows, 1, *voxels), 0..1.5, and classes (rows, *voxels) int64."""
    centre = np.nan_to_num(np.asarray(arrays["centre_mm"], np.float64)[item]) + shift_mm
    matrix = box(settings.field_mm) if matrix is None else matrix

    def seen(name: str, *, nearest: bool) -> torch.Tensor:
        return sample(
            torch.from_numpy(arrays[name][item].astype(np.float32))[:, None],
            source_mm=settings.looks.working_field_mm,
            centre_mm=centre,
            matrix=matrix,
            shape=settings.voxels,
            nearest=nearest,
        )

    return seen("image", nearest=False).clamp_(0, BRIGHTEST), seen("mask", nearest=True)[:, 0].long()


def noisy(
    image: torch.Tensor,
    classes: torch.Tensor,
    facts: torch.Tensor,
    level: npt.NDArray[np.floating],
    noise: torch.Tensor,
    settings: Settings,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Images at noise levels of 0..1 as the network sees them, with what it is `told`, and the velocities to be found."""
    step = torch.from_numpy(np.minimum(np.asarray(level) * settings.levels, settings.levels - 1).astype(np.int64))
    kept = _kept(settings.levels)[step].view(-1, *[1] * (image.ndim - 1))
    x = 2 * image - 1
    there = kept.sqrt() * x + (1 - kept).sqrt() * noise
    velocity = kept.sqrt() * noise - (1 - kept).sqrt() * x
    return composed(there, classes, facts, step / settings.levels, settings), velocity[:, 0]


def composed(
    there: torch.Tensor, classes: torch.Tensor, facts: torch.Tensor, level: torch.Tensor, settings: Settings
) -> torch.Tensor:
    """What the network sees: noisy image, a channel for each structure, one for what is unknown, what it is told, the level."""
    number = torch.arange(1, 1 + len(settings.structures), device=classes.device).view(1, -1, *[1] * settings.spatial_dims)
    outlined = (classes[:, None] == number).float()
    unknown = (classes[:, None] == UNKNOWN).float()
    everywhere = torch.cat([facts, level[:, None].to(facts.dtype)], dim=1)
    planes = everywhere.view(*everywhere.shape, *[1] * settings.spatial_dims).expand(-1, -1, *there.shape[2:])
    return torch.cat([there, outlined, unknown, planes], dim=1)


@torch.inference_mode()
def explained(model: torch.nn.Module, arrays: Mapping[str, npt.NDArray[Any]], settings: Settings) -> dict[float, float]:
    """Share of the velocity's power that the model tells, by `JUDGED_AT`; 1 is all of it, 0 what silence has.

    Of all images of one prepared case, under noise that is the same for every case.
    """
    device = next(model.parameters()).device
    image, classes = look(arrays, np.arange(len(arrays["image"])), settings)
    facts = told(torch.from_numpy(np.asarray(arrays["facts"])), settings)
    found = {}
    for number, level in enumerate(JUDGED_AT):
        noise = torch.from_numpy(np.random.default_rng([7, number]).standard_normal(image.shape, np.float32))
        rows, velocity = noisy(image, classes, facts, np.full(len(image), settings.highest * level), noise, settings)
        answer = model(rows.to(device)).cpu()
        found[level] = 1 - float((answer - velocity).square().sum() / velocity.square().sum())
    return found


@torch.inference_mode()
def drawn(
    model: torch.nn.Module,
    classes: torch.Tensor,
    facts: torch.Tensor,
    noise: torch.Tensor,
    settings: Settings,
    *,
    sketch: torch.Tensor | None = None,
    steps: int | None = None,
) -> torch.Tensor:
    """Images (rows, 1, *voxels), 0..1.5, for masks (rows, *voxels) and what is `told` (rows, told), from this noise.

    By the deterministic way back of Song et al. 2020 (DDIM, arXiv 2010.02502), by default in the steps of the settings. It
    begins with the `sketch`, images of the same shape, at level `settings.begin` (Meng et al. 2021, SDEdit, arXiv
    2108.01073), or with noise alone where there is none.
    """
    from monai.networks.schedulers import DDIMScheduler

    device = next(model.parameters()).device
    way = DDIMScheduler(
        num_train_timesteps=settings.levels,
        schedule="cosine",
        prediction_type="v_prediction",
        clip_sample=True,
        clip_sample_min=-1.0,
        clip_sample_max=2 * BRIGHTEST - 1,
    )
    way.set_timesteps(steps or settings.draw_steps, device=device)
    levels = [int(level) for level in way.timesteps if sketch is None or level <= settings.begin * settings.levels]
    classes, facts, there = classes.to(device), facts.to(device), noise.to(device)
    if sketch is not None:
        kept = _kept(settings.levels)[levels[0]]
        there = kept.sqrt() * (2 * sketch.to(device) - 1) + (1 - kept).sqrt() * there
    for level in levels:
        share = torch.full((len(there),), level / settings.levels, device=device)
        velocity = model(composed(there, classes, facts, share, settings))
        there, _ = way.step(velocity[:, None], level, there)
    return ((there + 1) / 2).clamp(0, BRIGHTEST).cpu()


@functools.cache
def _kept(levels: int) -> torch.Tensor:
    from monai.networks.schedulers import DDPMScheduler

    kept: torch.Tensor = DDPMScheduler(num_train_timesteps=levels, schedule="cosine").alphas_cumprod
    return kept.float()
