"""The scale of an image, and bringing an image to another: the landmarks of Nyul and Udupa 1999 (doi:10.1002/
(SICI)1522-2594(199912)42:6<1072::AID-MRM11>3.0.CO;2-M), which piecewise linear maps take to each other.

Grey values of MR have no unit. An image's 1st and 99th percentile become 0 and 1, and where its other percentiles then lie says
how bright muscle, blood and fat are on this scanner beside each other. No mask is asked for.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from tasks.case import Case, Volume
from tasks.intensity_scale.settings import ENDS, Settings
from tasks.segmentation.look import inside

Floats = npt.NDArray[np.float64]

BRIGHTEST = 1.5
"""What is brighter on the scale is cut: vessels in the surface coil's hot spot."""


def landmarks(volume: Volume, settings: Settings) -> Floats:
    """Where the percentiles lie between the 1st (0) and the 99th (1): (percentiles,), rising, within [0, 1].

    Raises `ValueError` for an image with values that aren't finite or without contrast.
    """
    low, high, own = _measured(volume, settings)
    return np.clip((own - low) / (high - low), 0.0, 1.0)


def in_scale(volume: Volume, wanted: npt.ArrayLike, settings: Settings) -> Volume:
    """The volume with its percentiles at `wanted` (percentiles,) of 0..1, float32 from 0 to 1.5; its mask stays.

    The map is monotone: what was brighter isn't darker afterwards. Raises `ValueError` as `landmarks` does.
    """
    low, high, own = _measured(volume, settings)
    from_ = np.array([low, *own, high, low + BRIGHTEST * (high - low)])
    to = np.array([0.0, *np.asarray(wanted, np.float64), 1.0, BRIGHTEST])
    told_apart = np.concatenate([[True], np.diff(from_) > 0])  # of equal grey values, which two percentiles may be, the first
    image = np.interp(volume.image, from_[told_apart], to[told_apart]).astype(np.float32)
    return dataclasses.replace(volume, image=image)


def case_in_scale(case: Case, wanted: npt.ArrayLike, settings: Settings) -> Case:
    """The case with the volumes of these series in the scale; others stay as they are. `ValueError` if it has none of these."""
    if not any(one.series in settings.series for one in case.volumes):
        there = ", ".join(one.series for one in case.volumes) or "no volume"
        raise ValueError(f"the intensity scale is of {', '.join(settings.series)}; case {case.patient} has {there}")
    volumes = (in_scale(one, wanted, settings) if one.series in settings.series else one for one in case.volumes)
    return dataclasses.replace(case, volumes=tuple(volumes))


def _measured(volume: Volume, settings: Settings) -> tuple[float, float, Floats]:
    """The 1st and the 99th percentile, and those between them, in the image's own grey values."""
    image = np.asarray(volume.image, np.float64)
    if not np.isfinite(image).all():
        raise ValueError(f"{volume.series} has values that are not finite")
    if settings.field_mm is not None:
        shape = image.shape[1:]
        size = [n * mm for n, mm in zip(shape, volume.spacing_mm[1:], strict=True)]
        field = (settings.field_mm, settings.field_mm)
        image = image[:, inside(shape, size_mm=size, centre_mm=np.zeros(2), box_mm=field)]
    low, *own, high = np.percentile(image, (ENDS[0], *settings.percentiles, ENDS[1]))
    if not high > low:
        raise ValueError(f"{volume.series} has no usable contrast: its 1st and 99th percentile are {low:g} and {high:g}")
    return float(low), float(high), np.array(own)
