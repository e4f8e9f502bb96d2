"""From a patient's two masks to volumes, mass and ejection fraction of the left ventricle, and what they are compared by.

Volumes are those of all voxels with a value (slices times distance between slices, as Simpson's rule for a stack does). Mass is
the wall at end-diastole times 1.05 g/ml; body surface area is Mosteller's (N Engl J Med 1987, 317:1098).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tasks.case import Case
from tasks.reference_values.settings import Measure, Settings

GRAMS_PER_ML = 1.05  # of myocardium

Mask = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Ventricle:
    """One patient's left ventricle, and of whom it is. None is not known."""

    edv_ml: float
    esv_ml: float
    mass_g: float | None
    age: float
    sex: str
    bsa_m2: float | None

    def value(self, measure: Measure) -> float | None:
        """The measure in its own unit; None where it isn't known."""
        plain = {
            "edv": self.edv_ml,
            "esv": self.esv_ml,
            "sv": self.edv_ml - self.esv_ml,
            "ef": 100 * (1 - self.esv_ml / self.edv_ml),
            "mass": self.mass_g,
        }[measure.name]
        if plain is None or not measure.indexed:
            return plain
        return None if self.bsa_m2 is None else plain / self.bsa_m2


def ventricle(case: Case, settings: Settings, masks: Mapping[str, Mask]) -> Ventricle:
    """Measure the masks of the two series. Raises `ValueError`, naming the case, for what isn't there or can't be right."""
    age, sex = number(case, settings.age), case.endpoints.get(settings.sex)
    if age is None or sex not in ("F", "M"):
        raise ValueError(f"case {case.patient} has no {settings.sex if age is not None else settings.age} to compare it by")
    edv, wall = (_millilitres(case, settings.diastole, masks, value) for value in (settings.blood_pool, settings.myocardium))
    esv = _millilitres(case, settings.systole, masks, settings.blood_pool)
    if not 0 < esv < edv:
        raise ValueError(f"case {case.patient}: the cavity's masks give {edv:.0f} ml filled and {esv:.0f} ml contracted")
    return Ventricle(edv, esv, GRAMS_PER_ML * wall if wall else None, age, str(sex), surface(case, settings))


def surface(case: Case, settings: Settings) -> float | None:
    """Body surface area in m², after Mosteller; None where height or weight isn't known, or stands in another unit."""
    height, weight = number(case, settings.height_cm), number(case, settings.weight_kg)
    if height is None or weight is None or not (50 <= height <= 260 and 3 <= weight <= 400):
        return None
    return body_surface_m2(height, weight)


def body_surface_m2(height_cm: float, weight_kg: float) -> float:
    """Square root of height times weight over 3600.

    >>> round(body_surface_m2(175, 70), 3)
    1.845
    """
    return math.sqrt(height_cm * weight_kg / 3600)


def number(case: Case, endpoint: str) -> float | None:
    """An endpoint as a finite number; None where it is missing or a word."""
    value = case.endpoints.get(endpoint)
    if value is None or isinstance(value, str):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def _millilitres(case: Case, series: str, masks: Mapping[str, Mask], value: int) -> float:
    volume, mask = case.volume(series), masks.get(series)
    if volume is None or mask is None:
        raise ValueError(f"case {case.patient} has no {series}" + ("" if volume is None else " that anybody has drawn on"))
    return float(np.prod(volume.spacing_mm)) / 1000 * int(np.count_nonzero(mask == value))
