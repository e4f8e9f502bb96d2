"""A case as arrays: every image of the patient on one grid, in one range of intensities, with the masks beside it.

Runs once per case. Training views are cut from the result in well under a millisecond each, which the original volumes,
each with its own spacing and size, wouldn't allow. Nothing here looks at more than one patient.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import gaussian_filter1d

from tasks.case import UNKNOWN, Case, Volume
from tasks.segmentation.look import box, inside, sample
from tasks.segmentation.partial import ANY_OF, code
from tasks.segmentation.settings import Settings
from tasks.task import Arrays


def prepare(case: Case, settings: Settings) -> Arrays:
    """The labelled images of a case, stacked: N is the number of 2D slices or of 3D volumes.

    image (N, *working_voxels) float16, about 0..1; mask (N, *working_voxels) uint8, classes in the settings' order and
    255 where unknown (see `partial` for what lies between); centre_mm (N, d) float32, middle of the located structures from the
    middle of the image, NaN where the volume shows none; labelled (N,) bool, whether any structure was drawn; volume (N,)
    uint8, which of the case's volumes it belongs to. Slices of which nothing is known are left out. Raises `ValueError` for a
    case without a usable mask.
    """
    volumes = [v for v in case.volumes if v.series in settings.series and v.mask is not None]
    if not volumes:
        found = ", ".join(f"{v.series} {'with' if v.mask is not None else 'without'} mask" for v in case.volumes) or "no volume"
        raise ValueError(f"case {case.patient} has no mask for any of {', '.join(settings.series)}; it has {found}")
    images, masks, centres, numbers = [], [], [], []
    for number, volume in enumerate(volumes):
        image, mask = working_image(volume, settings), working_mask(volume, settings)
        known = (classes_of(volume, settings) != UNKNOWN).reshape(len(mask), -1).any(axis=1)
        images.append(image[known].astype(np.float16))
        masks.append(mask[known])
        centres.append(np.repeat(centre_mm_of(mask, settings)[None], known.sum(), axis=0))
        numbers.append(np.full(known.sum(), number, np.uint8))
    mask = np.concatenate(masks)
    if not len(mask):
        raise ValueError(f"every voxel of the masks of case {case.patient} is unknown")
    return {
        "image": np.concatenate(images),
        "mask": mask,
        "centre_mm": np.concatenate(centres).astype(np.float32),
        "volume": np.concatenate(numbers),
        "labelled": ((mask != 0) & (mask < ANY_OF)).reshape(len(mask), -1).any(axis=1),
    }


def working_image(volume: Volume, settings: Settings) -> npt.NDArray[np.float32]:
    """The image on the working grid, normalised: (slices, *working_voxels) in 2D, (1, *working_voxels) in 3D.

    The 1st and 99th percentile within the working field become 0 and 1; what is brighter is cut at 1.5. Raises
    `ValueError` for an image with values that aren't finite or without contrast.
    """
    image = np.asarray(volume.image, np.float32)
    size_mm = image_size_mm(volume)
    dims = settings.spatial_dims
    seen = inside(image.shape[-dims:], size_mm=size_mm[-dims:], centre_mm=np.zeros(dims), box_mm=settings.working_field_mm)
    low, high = map(float, np.percentile(image[..., seen] if dims == 2 else image[seen], (1, 99)))
    if not np.isfinite(image).all() or not high > low:
        raise ValueError(f"{volume.series} has no usable contrast: its 1st and 99th percentile are {low:g} and {high:g}")
    image = np.clip((image - low) / (high - low), 0, 1.5)
    for axis, (own, wanted) in enumerate(zip(volume.spacing_mm[-dims:], settings.working_mm, strict=True)):
        if wanted > 1.2 * own:  # before a coarser grid: smooth away what it can't carry
            image = gaussian_filter1d(image, 0.5 * np.sqrt((wanted / own) ** 2 - 1), axis=axis - dims)
    return _to_working(image, volume, settings, nearest=False)


def working_mask(volume: Volume, settings: Settings) -> npt.NDArray[np.uint8]:
    """The mask on the working grid, as classes in the settings' order; unknown stays 255, other labels are background.

    Outside the image is background, so that the network learns to find nothing there.
    """
    classes = classes_of(volume, settings).astype(np.float32)
    return _to_working(classes, volume, settings, nearest=True).astype(np.uint8)


def classes_of(volume: Volume, settings: Settings) -> npt.NDArray[np.uint8]:
    """Mask values -> classes 0, 1, 2, ... in the settings' order; 255 stays, labels of no structure become 0.

    If the reader didn't look for one of the settings' structures, an unlabelled voxel may belong to it: it is unknown, or with
    `partial_labels: marginal` the number that `partial.code` gives it. Raises `ValueError` if there is no mask.
    """
    if volume.mask is None:
        raise ValueError(f"{volume.series} has no mask")
    table = np.zeros(256, np.uint8)
    table[UNKNOWN] = UNKNOWN
    if volume.annotated is not None and not set(settings.structures.values()) <= set(volume.annotated):
        missing = [n for n, label in enumerate(settings.structures.values(), start=1) if label not in volume.annotated]
        table[0] = code(missing, settings.classes) if settings.partial_labels == "marginal" else UNKNOWN
    for number, label in enumerate(settings.structures.values(), start=1):
        table[label] = number
    return table[np.asarray(volume.mask)]


def image_size_mm(volume: Volume) -> tuple[float, ...]:
    """Size of a volume from border to border along its axes."""
    return tuple(n * mm for n, mm in zip(volume.image.shape, volume.spacing_mm, strict=True))


def _to_working(
    array: npt.NDArray[np.float32], volume: Volume, settings: Settings, *, nearest: bool
) -> npt.NDArray[np.float32]:
    dims = settings.spatial_dims
    rows = torch.from_numpy(array)[:, None] if dims == 2 else torch.from_numpy(array)[None, None]
    result = sample(
        rows,
        source_mm=image_size_mm(volume)[-dims:],
        centre_mm=np.zeros(dims),
        matrix=box(settings.working_field_mm),
        shape=settings.working_voxels,
        nearest=nearest,
    )
    return result[:, 0].numpy()


def centre_mm_of(mask: npt.NDArray[np.uint8], settings: Settings) -> npt.NDArray[np.float64]:
    """Middle of the located structures of one volume, (d,), NaN if there are none."""
    where = np.argwhere(np.isin(mask, settings.located))[:, -settings.spatial_dims :]
    if not len(where):
        return np.full(settings.spatial_dims, np.nan)
    shape = np.array(settings.working_voxels)
    middle: npt.NDArray[np.float64] = ((where.mean(axis=0) + 0.5) / shape - 0.5) * np.array(settings.working_field_mm)
    return middle
