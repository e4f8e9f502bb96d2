"""A patient as the gate sees them: pooled looks, to find whom an image is near to, and radiomic features, to compare sets.

Real and drawn images come here on one grid and one scale: the generator's look at the located structures, each volume's own
1st and 99th percentile made 0 and 1. What is left of brightness and contrast is therefore that between parts of an image.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from tasks.case import UNKNOWN, Case
from tasks.radiomics.features import Extractor, to_image
from tasks.segmentation.prepare import classes_of
from tasks.synthesis.diffusion import BRIGHTEST, look
from tasks.synthesis.prepare import prepare
from tasks.synthesis.settings import Settings
from tasks.synthesis.volumes import middle

Floats = npt.NDArray[np.float64]
Masks = npt.NDArray[np.uint8]

POOLED = 16
"""Voxels along each axis of a pooled look: whose heart it is can still be seen, and the noise of the scanner no more."""

PARAMETERS = {
    "imageType": {"Original": {}},
    "featureClass": {"firstorder": ["10Percentile", "Median", "90Percentile"], "glcm": ["Contrast", "Correlation"]},
    "setting": {"binWidth": 0.1, "minimumROIDimensions": 1, "force2D": True},  # slices may lie far apart
}
"""As a pyradiomics parameter file. Few, because covariances of many features need more patients than a hospital has."""


@dataclass(frozen=True, eq=False)
class Seen:
    """One patient: `looks` (images, pooled voxels) and `features` (features,), NaN for a structure that no mask has."""

    patient: str
    looks: Floats
    features: Floats


def seen(case: Case, settings: Settings) -> Seen:
    """A real patient, through the generator's look. Raises `ValueError` for a case without a usable mask or contrast."""
    arrays = prepare(case, settings)
    image, classes = look(arrays, np.arange(len(arrays["image"])), settings)
    images, masks, number = image[:, 0].numpy(), classes.numpy().astype(np.uint8), arrays["volume"]
    return _seen(case, [(images[number == one], masks[number == one]) for one in np.unique(number)], settings)


def seen_as_drawn(case: Case, settings: Settings) -> Seen:
    """A patient whom the generator drew (`volumes.synthetic`): already on its grid, and not resampled another time.

    Raises `ValueError` for a case on another grid, or without a mask.
    """
    grid = (-1, *settings.voxels)
    try:
        volumes = [middle(volume, settings) for volume in case.volumes]
    except ValueError as error:
        raise ValueError(f"case {case.patient}: {error}") from None
    parts = [(np.asarray(v.image, np.float32).reshape(grid), classes_of(v, settings.looks).reshape(grid)) for v in volumes]
    return _seen(case, parts, settings)


def _seen(case: Case, volumes: list[tuple[npt.NDArray[np.float32], Masks]], settings: Settings) -> Seen:
    if not volumes:
        raise ValueError(f"case {case.patient} holds no image")
    images = [scaled(image) for image, _ in volumes]
    try:
        features = [_features(image, mask, settings) for image, (_, mask) in zip(images, volumes, strict=True)]
    except ValueError as error:
        raise ValueError(f"case {case.patient}: {error}") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the mean of nothing is NaN, as promised
        mean = np.nanmean(features, axis=0)
    return Seen(case.patient, pooled(np.concatenate(images)), mean)


def scaled(image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """A volume's images with its 1st and 99th percentile at 0 and 1, cut at 0 and 1.5; zeros where there is no contrast."""
    low, high = np.percentile(image, (1, 99))
    return np.clip((image - low) / (high - low), 0, BRIGHTEST) if high > low else np.zeros_like(image)


def pooled(images: npt.NDArray[np.float32]) -> Floats:
    """Means over boxes, (images, voxels) from (images, *voxels): `POOLED` voxels along each axis that has as many."""
    rows, shape = torch.from_numpy(images)[:, None], [min(POOLED, n) for n in images.shape[1:]]
    if len(shape) == 2:
        found = F.adaptive_avg_pool2d(rows, (shape[0], shape[1]))
    else:
        found = F.adaptive_avg_pool3d(rows, (shape[0], shape[1], shape[2]))
    return found.flatten(1).numpy().astype(np.float64)


def _features(image: npt.NDArray[np.float32], classes: Masks, settings: Settings) -> Floats:
    """Of each structure in the settings' order, then of the whole look: (regions * features,)."""
    spacing = (1.0, *(mm / n for mm, n in zip(settings.field_mm[-2:], settings.voxels[-2:], strict=True)))
    stack = image.reshape(-1, *image.shape[-2:])  # a 3D look is one volume already
    regions = np.where(classes == UNKNOWN, 0, classes).reshape(stack.shape)
    counts = np.bincount(regions.ravel(), minlength=1 + len(settings.structures))
    labels = [number for number in range(1, len(counts)) if counts[number] > 1]  # one voxel has no texture
    found: dict[int, Mapping[str, float]] = {}
    grey = to_image(stack, spacing)
    if labels:
        found |= _extractor().features(grey, to_image(regions, spacing), labels)
    found[0] = _extractor().features(grey, to_image(np.ones_like(regions), spacing), [1])[1]
    none = dict.fromkeys(found[0], np.nan)
    return np.array([list(found.get(number, none).values()) for number in (*range(1, len(counts)), 0)]).ravel()


@functools.cache
def _extractor() -> Extractor:
    return Extractor.of(PARAMETERS)
