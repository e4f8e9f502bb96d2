"""Whole cases of patients who don't exist: images that a generator draws for the masks of a case."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from tasks.case import Case, Volume
from tasks.segmentation.look import box, sample
from tasks.segmentation.prepare import centre_mm_of, classes_of, image_size_mm, working_image, working_mask
from tasks.synthesis.diffusion import BRIGHTEST, drawn, told
from tasks.synthesis.prepare import facts
from tasks.synthesis.settings import Settings
from tasks.synthesis.tone import tone_of, toned


def synthetic(
    model: torch.nn.Module, case: Case, rng: np.random.Generator, settings: Settings, *, steps: int | None = None
) -> Case:
    """The case's masks with images that the model draws for them, on the generator's grid around the located structures.

    Give it a case that was drawn: a patient's masks would be in what it returns, and with `settings.begin` below 1, where
    drawing begins with the case's own images, so would those. Endpoints and scanner stay. Raises `ValueError` for a case
    without a mask of the series. What drawing begins with is brought to the learned tone before.
    """
    volumes = [v for v in case.volumes if v.series in settings.series and v.mask is not None]
    if not volumes:
        raise ValueError(
            f"case {case.patient} has no mask for any of {', '.join(settings.series)}: nothing to draw an image for"
        )
    made = [_volume(model, one, facts(case, one.series, settings), rng, settings, steps) for one in volumes]
    return dataclasses.replace(case, volumes=tuple(made))


def middle(volume: Volume, settings: Settings) -> Volume:
    """What lies in the middle of a volume that was drawn: as much as is learned from. Raises `ValueError` for another grid."""
    dims = settings.spatial_dims
    if volume.image.shape[-dims:] != settings.canvas:
        raise ValueError(f"{volume.series} is {volume.image.shape}, not of {settings.canvas} voxels as it would be drawn")
    first = [(n - of) // 2 for n, of in zip(settings.canvas, settings.voxels, strict=True)]
    part = tuple(slice(start, start + of) for start, of in zip(first, settings.voxels, strict=True))
    part = (slice(None),) * (3 - dims) + part
    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, 3 - dims : 3] @ first
    mask = None if volume.mask is None else volume.mask[part]
    return dataclasses.replace(volume, image=volume.image[part], mask=mask, affine=affine)


def _volume(
    model: torch.nn.Module,
    volume: Volume,
    known: npt.NDArray[np.float32],
    rng: np.random.Generator,
    settings: Settings,
    steps: int | None,
) -> Volume:
    dims = settings.spatial_dims
    looks = settings.looks
    centre = np.nan_to_num(centre_mm_of(working_mask(volume, looks), looks))  # the image's own middle where nothing was drawn

    def look(source: npt.NDArray[np.floating], size_mm: Sequence[float], *, nearest: bool) -> torch.Tensor:
        return sample(
            torch.from_numpy(source.astype(np.float32)),
            source_mm=size_mm,
            centre_mm=centre,
            matrix=box(settings.canvas_mm),
            shape=settings.canvas,
            nearest=nearest,
        )

    classes = classes_of(volume, looks).astype(np.float32)
    classes = classes[:, None] if dims == 2 else classes[None, None]
    mask = look(classes, image_size_mm(volume)[-dims:], nearest=True)[:, 0].long()
    sketch = None
    if settings.begin < 1:
        sketch = look(working_image(volume, looks)[:, None], looks.working_field_mm, nearest=False)
        if (tone := tone_of(model)) is not None:
            sketch = toned(sketch.clamp_(0, BRIGHTEST), tone)
    rows = len(mask)
    common, own = rng.standard_normal((1, 1, *settings.canvas)), rng.standard_normal((rows, 1, *settings.canvas))
    noise = np.sqrt(settings.coherence) * common + np.sqrt(1 - settings.coherence) * own
    image = drawn(
        model,
        mask,
        told(torch.from_numpy(known).expand(rows, -1), settings),
        torch.from_numpy(noise.astype(np.float32)),
        settings,
        sketch=sketch,
        steps=steps,
    )
    shape = mask.shape if dims == 2 else mask.shape[1:]
    values = np.array([0, *settings.structures.values(), *[255] * (255 - len(settings.structures))], np.uint8)
    return Volume(
        volume.series,
        image.reshape(shape).numpy(),
        _affine(volume, centre, settings),
        values[mask.reshape(shape).numpy()],
        volume.annotated,
    )


def _affine(volume: Volume, centre_mm: npt.NDArray[np.float64], settings: Settings) -> npt.NDArray[np.float64]:
    """From indices of what was drawn to the patient coordinates of the volume whose mask it was drawn for."""
    dims = settings.spatial_dims
    spacing = np.array(volume.spacing_mm)
    along = volume.affine[:3, :3] / spacing  # unit vectors of the axes
    new = spacing.copy()
    new[-dims:] = np.array(settings.canvas_mm) / np.array(settings.canvas)
    first_mm = np.zeros(3)  # of the first voxel's centre, from that of the volume's own first voxel, along its axes
    half = np.array(image_size_mm(volume)) / 2 - spacing / 2
    first_mm[-dims:] = half[-dims:] + centre_mm - np.array(settings.canvas_mm) / 2 + new[-dims:] / 2
    affine = np.eye(4)
    affine[:3, :3] = along * new
    affine[:3, 3] = volume.affine[:3, 3] + along @ first_mm
    return affine
