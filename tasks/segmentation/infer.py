"""From a volume to a mask on the volume's own grid, in one or two looks.

The wide look finds the left ventricle, as the localisation network of the IRP study did, but with the same weights: the
second look is the same network at a finer scale, centred on what the first one found. Probabilities, not labels, are
brought back to the original grid, and the decision is made there. Outside the close look the wide look decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import label

from tasks.case import Volume
from tasks.segmentation.look import box, inside, sample
from tasks.segmentation.prepare import image_size_mm, working_image
from tasks.segmentation.settings import Settings

ROWS_AT_ONCE = 32
"""Slices per forward pass: bounds the memory of a volume with many slices."""


@dataclass(frozen=True, eq=False)
class Segmentation:
    """A volume's segmentation, on its own grid (slices, rows, columns)."""

    mask: npt.NDArray[np.uint8]  # mask values as in the settings' `structures`
    uncertainty: npt.NDArray[np.float32]  # entropy of the class probabilities / log(classes), 0..1
    centre_mm: tuple[float, ...] | None  # where the close look was taken, from the image's middle; None: it wasn't


@torch.inference_mode()
def segment(model: torch.nn.Module, settings: Settings, volume: Volume) -> Segmentation:
    """Segment one volume with a network (rows, 1, *voxels) -> logits, on the device of its parameters.

    The model is used in eval mode and left as it was found. Raises `ValueError` for an image without contrast.
    """
    was_training = model.training
    model.eval()
    try:
        p, centre = probabilities(model, settings, volume)
    finally:
        model.train(was_training)
    entropy = (-(p * p.clamp(min=1e-9).log()).sum(1) / np.log(p.shape[1])).cpu().numpy().reshape(volume.image.shape)
    winner = decided(p, settings).reshape(volume.image.shape)
    labels = np.array([0, *settings.structures.values()], np.uint8)
    return Segmentation(labels[winner], entropy, None if centre is None else tuple(float(c) for c in centre))


def probabilities(
    model: torch.nn.Module, settings: Settings, volume: Volume
) -> tuple[torch.Tensor, npt.NDArray[np.float64] | None]:
    """Class probabilities on the volume's grid, (slices, classes, rows, columns) or (1, classes, *volume), and the centre."""
    parameter = next(model.parameters(), None)
    device = parameter.device if parameter is not None else torch.device("cpu")
    work = torch.from_numpy(working_image(volume, settings))[:, None].to(device)
    dims = settings.spatial_dims
    return looks(model, settings, work, size_mm=image_size_mm(volume)[-dims:], shape=volume.image.shape[-dims:])


def looks(
    model: torch.nn.Module, settings: Settings, work: torch.Tensor, *, size_mm: Sequence[float], shape: Sequence[int]
) -> tuple[torch.Tensor, npt.NDArray[np.float64] | None]:
    """Class probabilities of a volume on the working grid (rows, 1, *working_voxels), on a grid of one's own, and the centre.

    That grid has `shape` and reaches `size_mm` from border to border, about the same middle: (rows, classes, *shape).
    """
    middle = np.zeros(settings.spatial_dims)
    wide = _look(model, settings, work, centre_mm=middle, size_mm=settings.field_mm)
    p = _back(wide, image_mm=size_mm, shape=shape, centre_mm=middle, size_mm=settings.field_mm)
    if settings.roi_mm is None:
        return p, None
    centre = _located(wide, settings)
    close = _look(model, settings, work, centre_mm=centre, size_mm=settings.roi_mm)
    seen = torch.from_numpy(inside(shape, size_mm=size_mm, centre_mm=centre, box_mm=settings.roi_mm)).to(work.device)
    return torch.where(seen, _back(close, image_mm=size_mm, shape=shape, centre_mm=centre, size_mm=settings.roi_mm), p), centre


def decided(p: torch.Tensor, settings: Settings) -> npt.NDArray[np.uint8]:
    """The likeliest classes of one volume: (rows, classes, *shape) -> (rows, *shape), perhaps of the largest piece alone."""
    winner: npt.NDArray[np.uint8] = p.max(1).indices.to(torch.uint8).cpu().numpy()  # ten times faster than argmax on a CPU
    if settings.keep_largest:
        volume = winner if settings.spatial_dims == 2 else winner[0]
        winner = (volume * largest(volume > 0)).reshape(winner.shape)
    return winner


def _look(
    model: torch.nn.Module,
    settings: Settings,
    work: torch.Tensor,
    *,
    centre_mm: npt.NDArray[np.float64],
    size_mm: tuple[float, ...],
) -> torch.Tensor:
    """Probabilities (rows, classes, *voxels) of one upright look at all rows, averaged over quarter turns if asked for."""
    x = sample(work, source_mm=settings.working_field_mm, centre_mm=centre_mm, matrix=box(size_mm), shape=settings.voxels)
    turns = max(settings.test_time_rotations, 1)
    parts = []
    for rows in torch.split(x, ROWS_AT_ONCE):
        p = [torch.rot90(model(torch.rot90(rows, k, (-2, -1))).softmax(1), -k, (-2, -1)) for k in range(turns)]
        parts.append(torch.stack(p).mean(0))
    return torch.cat(parts)


def _located(wide: torch.Tensor, settings: Settings) -> npt.NDArray[np.float64]:
    """Middle (d,) of the largest piece of what the wide look takes for the located structures, in mm; else the image's."""
    found = torch.isin(wide.max(1).indices, torch.tensor(settings.located, device=wide.device)).cpu().numpy()
    where = np.argwhere(largest(found))[:, -settings.spatial_dims :]
    if not len(where):
        return np.zeros(settings.spatial_dims)
    middle: npt.NDArray[np.float64] = ((where.mean(axis=0) + 0.5) / np.array(settings.voxels) - 0.5) * np.array(
        settings.field_mm
    )
    return middle


def _back(
    p: torch.Tensor,
    *,
    image_mm: Sequence[float],
    shape: Sequence[int],
    centre_mm: npt.NDArray[np.float64],
    size_mm: tuple[float, ...],
) -> torch.Tensor:
    """A look's probabilities on the image's own grid; all background outside the look."""
    objects = sample(
        p[:, 1:],
        source_mm=size_mm,
        centre_mm=-centre_mm,  # the image's middle, as the look sees it
        matrix=box(image_mm),
        shape=shape,
    )
    return torch.cat((1 - objects.sum(1, keepdim=True), objects), 1)


def largest(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The largest connected piece (neighbours share a face); nothing if there is nothing."""
    pieces, count = label(mask)
    if count < 2:
        return mask
    biggest: npt.NDArray[np.bool_] = pieces == 1 + np.bincount(pieces.ravel())[1:].argmax()
    return biggest
