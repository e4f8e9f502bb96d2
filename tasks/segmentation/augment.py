"""Training views of one patient: which slices, from where, and how they are changed.

Half of the views are wide looks and half are close looks at the heart, as inference takes them. All randomness is drawn
from the given generator first and applied afterwards, in one batched call, so a view can be drawn again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from tasks.segmentation.look import sample
from tasks.segmentation.settings import Settings

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Drawn:
    """What was drawn for R views: everything `apply` needs beside the arrays."""

    item: npt.NDArray[np.int64]  # (R,) which slice (2D) or volume (3D)
    centre_mm: Floats  # (R, d)
    matrix: Floats  # (R, d, d) half axes of the look, mm
    gamma: Floats  # (R,)
    gain: Floats  # (R,)
    offset: Floats  # (R,)
    bias: Floats  # (R, 2 d) coefficients of u and u^2 along each axis
    blur: Floats  # (R,)
    noise: Floats  # (R, 1, *voxels), already scaled


def draw(arrays: Mapping[str, npt.NDArray[Any]], views: int, rng: np.random.Generator, settings: Settings) -> Drawn:
    """Draw `views` views of the patient. Depends on the patient's own arrays and on `rng`, on nothing else."""
    a, dims = settings.augment, settings.spatial_dims
    item = _items(np.asarray(arrays["labelled"]), views, rng, settings)

    def within(spread: float, *shape: int) -> npt.NDArray[np.float64]:
        return rng.uniform(-spread, spread, (views, *shape))

    centre = np.asarray(arrays["centre_mm"], np.float64)[item]
    turn = int(rng.integers(2))  # an odd number of views: either kind may get the odd one
    close = (np.arange(views) + turn) % 2 == 0
    close &= np.isfinite(centre).all(axis=1)
    field = np.broadcast_to(np.array(settings.field_mm), (views, dims))
    shift = within(1.0, dims)
    if settings.roi_mm is None:
        centre, shift = np.zeros_like(centre), shift * a.shift_mm
    else:
        field = np.where(close[:, None], np.array(settings.roi_mm), field)
        centre = np.where(close[:, None], centre, 0.0)
        shift = shift * np.where(close, a.roi_shift_mm, a.shift_mm)[:, None]
    scale = (1 + within(a.scale, 1)) * (1 + within(a.scale / 4, dims))
    matrix = rotations(within(np.deg2rad(a.rotation_deg), dims * (dims - 1) // 2), dims) * (field * scale / 2)[:, None, :]
    return Drawn(
        item=item,
        centre_mm=(centre + shift).astype(np.float32),
        matrix=matrix.astype(np.float32),
        gamma=np.exp(within(a.gamma)).astype(np.float32),
        gain=(1 + within(a.contrast)).astype(np.float32),
        offset=within(a.contrast / 2).astype(np.float32),
        bias=within(a.bias, 2 * dims).astype(np.float32),
        blur=rng.uniform(0, a.blur, views).astype(np.float32),
        noise=rng.standard_normal((views, 1, *settings.voxels), np.float32)
        * rng.uniform(0, a.noise, (views, *[1] * (dims + 1))).astype(np.float32),
    )


def apply(arrays: Mapping[str, npt.NDArray[Any]], drawn: Drawn, settings: Settings) -> tuple[torch.Tensor, torch.Tensor]:
    """The views themselves: image (R, 1, *voxels) float32 and classes (R, *voxels) int64, 255 where unknown."""
    dims = settings.spatial_dims
    image = torch.from_numpy(arrays["image"][drawn.item].astype(np.float32))[:, None]
    mask = torch.from_numpy(arrays["mask"][drawn.item].astype(np.float32))[:, None]

    def look(source: torch.Tensor, *, nearest: bool) -> torch.Tensor:
        return sample(
            source,
            source_mm=settings.working_field_mm,
            centre_mm=drawn.centre_mm,
            matrix=drawn.matrix,
            shape=settings.voxels,
            nearest=nearest,
        )

    x = look(image, nearest=False)
    y = look(mask, nearest=True)[:, 0].long()

    ones = [1] * dims
    column = (len(drawn.item), 1, *ones)
    x = x + torch.from_numpy(drawn.blur).view(column) * (_three_voxel_mean(x, dims) - x)
    x = x.clamp_(min=1e-4).pow_(torch.from_numpy(drawn.gamma).view(column))
    x = x.mul_(torch.from_numpy(drawn.gain).view(column) * _bias_field(drawn.bias, settings))
    x = x.add_(torch.from_numpy(drawn.offset).view(column)).add_(torch.from_numpy(drawn.noise))
    return x, y


def _items(labelled: npt.NDArray[np.bool_], views: int, rng: np.random.Generator, settings: Settings) -> npt.NDArray[np.int64]:
    """Which slices: mostly labelled ones, each once before any comes twice."""
    drawn_on, empty = np.flatnonzero(labelled), np.flatnonzero(~labelled)
    from_empty = rng.random(views) < settings.empty_share
    if not len(drawn_on):
        from_empty[:] = True
    if not len(empty):
        from_empty[:] = False
    item = np.empty(views, np.int64)
    for pool, chosen in ((drawn_on, ~from_empty), (empty, from_empty)):
        count = int(chosen.sum())
        if count:
            rounds = [rng.permutation(pool) for _ in range(-(-count // len(pool)))]
            item[chosen] = np.concatenate(rounds)[:count]
    return item


def rotations(angles: npt.NDArray[np.float64], dims: int) -> npt.NDArray[np.float64]:
    """Rotation matrices (R, d, d): in 2D one turn, in 3D one in each plane of two axes, one after the other."""
    planes = [(i, j) for i in range(dims) for j in range(i + 1, dims)]
    result = np.broadcast_to(np.eye(dims), (len(angles), dims, dims))
    for (i, j), angle in zip(planes, angles.T, strict=True):
        turn = np.tile(np.eye(dims), (len(angles), 1, 1))
        turn[:, i, i] = turn[:, j, j] = np.cos(angle)
        turn[:, i, j], turn[:, j, i] = -np.sin(angle), np.sin(angle)
        result = result @ turn
    return result


def _three_voxel_mean(x: torch.Tensor, dims: int) -> torch.Tensor:
    pool = F.avg_pool2d if dims == 2 else F.avg_pool3d
    return pool(x, 3, stride=1, padding=1, count_include_pad=False)


def _bias_field(coefficients: Floats, settings: Settings) -> torch.Tensor:
    """The exponential of a second-order polynomial in the position, as a product over the axes: (R, 1, *voxels)."""
    dims = settings.spatial_dims
    result: torch.Tensor | None = None
    for axis, n in enumerate(settings.voxels):
        u = (np.arange(n, dtype=np.float32) + 0.5) * (2 / n) - 1
        along = np.exp(coefficients[:, axis, None] * u + coefficients[:, dims + axis, None] * (u * u - 1 / 3))
        shape = [len(coefficients), 1] + [1] * dims
        shape[2 + axis] = n
        factor = torch.from_numpy(along).view(shape)
        result = factor if result is None else result * factor
    if result is None:
        raise ValueError("an image needs at least one axis")
    return result
