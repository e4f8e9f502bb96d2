"""Height and weight of generated patients, and a ventricle that goes with body size and age, for studies of reference values.

`draw_patient` knows neither: there volumes depend on sex and disease alone. Here the same patient, with the same seed, gets a
body from a random stream of its own, and volumes, length and wall are scaled to that body and age. Nothing that was drawn
before changes for hospitals which don't ask for it (`hospitals.bodies`). Each figure stands with its source; "assumed" has
none.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from simulation.patient import Patient
from simulation.right_heart import SURFACE_M2
from tasks.reference_values.measures import body_surface_m2

# Assumed, of the order of NHANES 2007-2010 (Fryar et al. 2012, Vital Health Stat 11(252)), with the leaner bodies of people who
# are counted as healthy: cm at age 48, and kg/m2.
HEIGHT_CM = {"F": (163.0, 6.5), "M": (177.0, 7.0)}
BMI = {"F": (24.8, 3.6), "M": (26.0, 3.2)}
SHRINKING_CM_PER_YEAR = 0.06  # assumed: later births are taller, and people shrink
BMI_PER_YEAR = 0.03  # assumed

# Of 100 % of a deviation from the mean that patient.py draws, so much is left beside body size: 10/76 and 12/81 (the same
# source) over 24/128 and 30/160.
KEPT = {"F": (10 / 76) / (24 / 128), "M": (12 / 81) / (30 / 160)}
# Volumes are smaller with age in both sexes; mass in men, hardly in women; ejection fraction stays (Petersen et al. 2017, JCMR
# 19:18, in words). How much per year: assumed.
VOLUME_PER_YEAR = -0.005
MASS_PER_YEAR = {"F": 0.0, "M": -0.002}
MIDDLE_AGE = 48
MEAN_EDV_ML = {"F": 128.0, "M": 160.0}  # patient.py's


@dataclass(frozen=True)
class Physique:
    """A body: height in cm, weight in kg."""

    height_cm: float
    weight_kg: float

    @property
    def surface_m2(self) -> float:
        """Body surface area after Mosteller."""
        return body_surface_m2(self.height_cm, self.weight_kg)


def physique(patient: Patient) -> Physique:
    """The patient's body, from the seed's own stream: whole centimetres, and kilograms with one decimal place."""
    rng = np.random.default_rng([patient.seed, 91])
    years = patient.age - MIDDLE_AGE
    (tall, tall_sd), (stout, stout_sd) = HEIGHT_CM[patient.sex], BMI[patient.sex]
    height = round(float(np.clip(rng.normal(tall - SHRINKING_CM_PER_YEAR * years, tall_sd), 140, 205)))
    bmi = float(np.clip(rng.normal(stout + BMI_PER_YEAR * years, stout_sd), 17, 42))
    return Physique(float(height), round(bmi * (height / 100) ** 2, 1))


def embodied(patient: Patient, body: Physique) -> Patient:
    """The patient with a ventricle for this body and age; disease, ejection fraction and all else stay.

    End-diastolic volume goes with body surface, what was drawn beside the sex's mean is kept in part, and age shrinks it.
    Length follows as the cube root. The wall follows so that mass, which goes as wall times volume to two thirds, is
    in proportion to body surface and changes with age by its own rate. A sick right ventricle goes with body surface, so that
    its volume per square metre stays, and ejects what goes with the left one.
    """
    sex, years = patient.sex, patient.age - MIDDLE_AGE
    size = body.surface_m2 / SURFACE_M2[sex]
    own = (patient.edv_ml / MEAN_EDV_ML[sex]) ** (KEPT[sex] - 1)
    edv = float(np.clip(patient.edv_ml * own * size * np.exp(VOLUME_PER_YEAR * years), 60, 360))
    thicker = np.exp((MASS_PER_YEAR[sex] - 2 / 3 * VOLUME_PER_YEAR) * years)
    right = patient.right_heart
    if right is not None:
        ejected = right.ejection_fraction * edv / (patient.edv_ml * size)
        right = replace(right, edv_ml=right.edv_ml * size, ejection_fraction=float(np.clip(ejected, 0.12, 0.55)))
    return replace(
        patient,
        right_heart=right,
        edv_ml=edv,
        length_mm=float(np.clip(patient.length_mm * (edv / patient.edv_ml) ** (1 / 3), 58, 130)),
        wall_mm=float(np.clip(patient.wall_mm * size ** (1 / 3) * thicker, 4.5, 17.0)),
    )
