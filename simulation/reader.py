"""A human reader and the follow-up: contours with habits, a call and a certainty for each segment, a clinical endpoint.

The reader draws the same contours as the truth, displaced by a systematic and a random part in millimetres, so that
disagreement between hospitals has a known size. Segment calls follow what is visible (extent and conspicuity of enhancement);
certainty has the five steps of a Likert item.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field
from scipy import ndimage

from conf.study import Frozen
from simulation.heart import ANGLES, contours
from simulation.phantom import Patient, polar, rasterise
from simulation.scanner import Scan

SEGMENTS = 17


class Reader(Frozen):
    """One reader's habits. Positive millimetres draw outwards."""

    name: str = "reader"
    contour_bias_mm: Annotated[float, Field(ge=-4, le=4)] = 0.0  # of both contours
    epicardial_bias_mm: Annotated[float, Field(ge=-4, le=4)] = 0.0  # of the epicardium in addition
    contour_sd_mm: Annotated[float, Field(ge=0, le=4)] = 0.4  # wavering along the contour, smooth over about 30 degrees
    patient_sd_mm: Annotated[float, Field(ge=0, le=4)] = 0.2  # shift of all contours of one patient
    perception_sd: Annotated[float, Field(ge=0)] = 0.35  # noise of the segment call
    threshold: float = 0.55  # evidence at which a segment is called positive


@dataclass(frozen=True, eq=False)
class Reading:
    """What one reader says about one scan.

    `mask` (slices, rows, columns) uint8 as the true mask; per segment (17,): `segments_positive` the call, `certainty` 1
    (guess) to 5 (certain), `segments_true` whether more than 4 % is enhanced, `fraction_true` how much.
    """

    mask: npt.NDArray[np.uint8]
    segments_positive: npt.NDArray[np.bool_]
    certainty: npt.NDArray[np.uint8]
    segments_true: npt.NDArray[np.bool_]
    fraction_true: npt.NDArray[np.float64]


def read(scan: Scan, patient: Patient, reader: Reader, *, seed: int) -> Reading:
    """Contours and segment calls of this reader. Equal arguments give equal readings."""
    rng = np.random.default_rng([patient.seed, seed, zlib.crc32(f"{reader.name}/{scan.series}".encode()), 61])
    fraction, evidence = _evidence(scan, patient)
    evidence = evidence - reader.threshold + rng.normal(0, reader.perception_sd, SEGMENTS)
    certainty = np.clip(np.rint(1 + 4 * np.tanh(1.1 * np.abs(evidence))), 1, 5).astype(np.uint8)
    return Reading(
        mask=_contour(scan, patient, reader, rng),
        segments_positive=evidence > 0,
        certainty=certainty,
        segments_true=fraction > 0.04,
        fraction_true=fraction,
    )


def _contour(scan: Scan, patient: Patient, reader: Reader, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    tables = contours(patient, scan.grid.levels_mm, scan.phase)
    levels = len(scan.grid.levels_mm)

    def wavering() -> npt.NDArray[np.float32]:
        field = ndimage.gaussian_filter1d(rng.standard_normal((levels, ANGLES)).astype(np.float32), 22.0, axis=1, mode="wrap")
        return np.asarray(reader.contour_sd_mm * field / field.std(), np.float32)

    habit = reader.contour_bias_mm + rng.normal(0, reader.patient_sd_mm)
    there = tables.endo > 1.0  # where the cavity is closed nobody draws one
    endo = np.where(there, np.maximum(tables.endo + habit + wavering(), 0.5), 0)
    epi = np.where(tables.epi > 1.0, np.maximum(tables.epi + habit + reader.epicardial_bias_mm + wavering(), endo), 0)
    right = np.where(tables.right > tables.epi + 0.2, np.maximum(tables.right + habit + wavering(), epi), epi)
    drawn = replace(
        tables, endo=np.asarray(endo, np.float32), epi=np.asarray(epi, np.float32), right=np.asarray(right, np.float32)
    )
    place = polar(patient, scan.grid, float(right.max()) + 1, 1)
    mask = np.zeros(scan.mask.shape, np.uint8)
    mask[:, place.window[0], place.window[1]] = rasterise(drawn, place)
    return mask


def _evidence(scan: Scan, patient: Patient) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Enhanced fraction of each segment (17,) and how strongly it shows: more extent, and ECV further above remote muscle."""
    count = np.bincount(scan.aha.ravel(), minlength=SEGMENTS + 1)[1:]
    enhanced = np.bincount(scan.aha[scan.lesion > 0], minlength=SEGMENTS + 1)[1:]
    fraction = enhanced / np.maximum(count, 1)
    contrast = max((lesion.ecv for lesion in patient.lesions), default=patient.ecv) - min(patient.ecv, 0.33)
    return fraction, 14 * fraction * np.clip(contrast / 0.25, 0, 1.5)


def endpoint(patient: Patient, scan: Scan, *, seed: int) -> tuple[float, int]:
    """Follow-up: months until the event or the end of observation, and 1 if it was the event.

    Weibull hazard rising with scar, low ejection fraction of either ventricle, age and amyloid; its coefficients are assumed.
    """
    rng = np.random.default_rng([patient.seed, seed, 62])
    fraction, _ = _evidence(scan, patient)
    risk = 0.035 * (patient.age - 52) - 3.2 * (patient.ejection_fraction - 0.6) + 4.5 * float(fraction.mean())
    risk += 1.0 if patient.disease == "amyloid" else 0.0
    if patient.right_heart is not None:
        risk -= 3.2 * (patient.right_heart.ejection_fraction - 0.6)
    months = 140 * (-np.log(rng.uniform()) / np.exp(risk)) ** (1 / 1.3)
    censored = rng.uniform(12, 84)
    return float(round(min(months, censored), 2)), int(months < censored)
