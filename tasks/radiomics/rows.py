"""One patient as rows of a table: a row per region, radiomic and clinical columns, the label and how sure it is.

Whatever is undefined or missing is NaN, in columns and labels alike; learners say what they make of it. Nothing here looks at
another patient.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tasks.case import UNKNOWN, Case, Volume
from tasks.radiomics.features import Extractor, Features, RegionRefused, to_image
from tasks.radiomics.intensity import standardised
from tasks.radiomics.segments import aha_segments
from tasks.radiomics.settings import Image, Settings

Floats = npt.NDArray[np.float64]
Masks = npt.NDArray[np.uint8]
Segment = Callable[[Volume], Masks]


@dataclass(frozen=True, eq=False)
class Rows:
    """`X` (rows, columns); `y` (rows,) 0 or 1; `certainty` (rows,); `region` (rows,) 0 where there are no regions."""

    X: Floats
    y: Floats
    certainty: Floats
    region: npt.NDArray[np.int64]


def rows_of(case: Case, settings: Settings, extractor: Extractor | None, segment: Segment | None) -> Rows:
    """The rows of one patient. `extractor` belongs to `settings.image`, `segment` to its predicted masks.

    Raises `ValueError`, naming the case, where there is no such image or no mask for it, where the features can't be computed,
    and where no row has a label.
    """
    found: dict[int, Features] = {0: {}}
    if settings.image is not None and extractor is not None:
        found = features_of(case, settings.image, extractor, segment)
    numbers = sorted(found)
    X = np.array([[_radiomic(found[n], f.name, case) for f in settings.radiomic] for n in numbers], np.float64)
    X = X.reshape(len(numbers), len(settings.radiomic))
    clinical = np.array([_clinical(case, feature.name) for feature in settings.clinical], np.float64)
    X = np.hstack([X, np.broadcast_to(clinical, (len(numbers), len(clinical)))])
    value = np.array([_number(case, _numbered(settings.label.endpoint, n)) for n in numbers])
    y = np.where(np.isnan(value), np.nan, value >= settings.label.positive_from)
    if np.isnan(y).all():
        raise ValueError(f"case {case.patient} has no label: its endpoint {settings.label.endpoint} is missing")
    sure = settings.certainty
    certainty = np.array([_number(case, _numbered(sure.endpoint, n)) if sure else math.nan for n in numbers])
    X[~np.isfinite(X)] = np.nan
    return Rows(X, y, certainty, np.array(numbers, np.int64))


def regions_of(case: Case, image: Image, segment: Segment | None) -> tuple[Volume, Masks, Masks]:
    """The volume that features come from, its mask, and the number of each voxel's region, 0 for none (slices, rows, columns).

    Raises `ValueError`, naming the case, for an image or mask that isn't there, and for a ventricle that can't be divided.
    """
    volume = case.volume(image.series)
    if volume is None:
        there = ", ".join(other.series for other in case.volumes) or "no image"
        raise ValueError(f"case {case.patient} has no {image.series}; it has {there}")
    mask = segment(volume) if segment is not None else volume.mask
    if mask is None:
        raise ValueError(f"case {case.patient}: nobody has drawn a mask on its {image.series}")
    try:
        regions = aha_segments(mask, volume.affine) if image.regions == "aha" else (mask == image.label).astype(np.uint8)
    except ValueError as error:
        raise ValueError(f"case {case.patient}: {error}") from None
    if image.regions == "label" and image.label == UNKNOWN:
        raise ValueError(f"label {UNKNOWN} stands for voxels that nobody labelled; it is no region")
    return volume, mask, regions


def features_of(case: Case, image: Image, extractor: Extractor, segment: Segment | None) -> dict[int, Features]:
    """Everything that the parameters give, by region of more than one voxel: one voxel has no texture and no extent.

    Raises `ValueError`, naming the case, where there is nothing to compute from.
    """
    volume, mask, regions = regions_of(case, image, segment)
    counts = np.bincount(regions.ravel(), minlength=1)
    labels = [int(n) for n in np.flatnonzero(counts) if n and counts[n] > 1]
    if not labels:
        there = ", ".join(map(str, np.unique(mask)))
        raise ValueError(f"case {case.patient}: its mask holds no region of more than one voxel (its values: {there})")
    try:
        values = standardised(np.asarray(volume.image, np.float32), mask, image.intensity)
        return extractor.features(to_image(values, volume.spacing_mm), to_image(regions, volume.spacing_mm), labels)
    except (RegionRefused, ValueError) as error:
        raise ValueError(f"case {case.patient}: {error}") from None


def _radiomic(found: Features, name: str, case: Case) -> float:
    if name not in found:
        there = ", ".join(sorted(found)[:5])
        raise ValueError(f"case {case.patient}: the parameters give no feature {name}; they give {there}, ...")
    return found[name]


def _clinical(case: Case, name: str) -> float:
    if name.endswith("?"):
        return float(math.isnan(_number(case, name[:-1])))
    if wanted := re.fullmatch(r"(.+)=([^=]+)", name):
        value = case.endpoints.get(wanted[1])
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return math.nan
        number = _number(case, wanted[1])
        return float(str(value) == wanted[2] if math.isnan(number) else f"{number:g}" == wanted[2])
    return _number(case, name)


def _number(case: Case, name: str) -> float:
    """An endpoint as a number; NaN where it is missing or is no number."""
    value = case.endpoints.get(name)
    try:
        return math.nan if value is None else float(value)
    except ValueError:
        return math.nan


def _numbered(endpoint: str, region: int) -> str:
    return endpoint.replace("NN", f"{region:02d}")
