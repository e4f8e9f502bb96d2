"""Generated patients: who they are. Anatomy and disease drawn from one seed and a case mix, independent of any scanner.

The same patient can be scanned anywhere, any number of times. Distributions are plausible and not fitted to data; normal sizes
are of the order of Kawel-Boehm et al. 2020, JCMR 22:87.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from simulation import tissue
from simulation.right_heart import RightHeart, arrhythmogenic, overloaded

Disease = Literal["normal", "myocarditis", "infarct", "hcm", "dcm", "amyloid", "ph", "arvc"]
Range = tuple[float, float]
DISEASES: tuple[Disease, ...] = ("normal", "myocarditis", "infarct", "hcm", "dcm", "amyloid", "ph", "arvc")
"""New ones come last: a case mix without them draws the patients it always drew."""

MEAN_AGE = {"infarct": 62, "amyloid": 62, "ph": 60, "arvc": 38}
"""Where it isn't 48. Pulmonary hypertension: 60 ± 13 in 124 patients (PMC5843365); arrhythmogenic cardiomyopathy shows between
the second and fourth decade (te Riele et al. 2014, JCMR 16:50); the others are assumed."""
WOMEN = {"ph": 0.69}
"""Share of women where it isn't a half: 85 of the same 124."""


@dataclass(frozen=True)
class Lesion:
    """A patch of enhanced wall.

    Centre angle and full width in radians, height and half extent in fractions of the cavity's length, from `inner` to `outer`
    depth (0 endocardium, 1 epicardium), with this extracellular volume fraction.
    """

    angle: float
    width: float
    height: float
    extent: float
    inner: float
    outer: float
    ecv: float
    obstruction: bool = False  # microvascular obstruction: a dark core that the contrast agent does not reach


@dataclass(frozen=True)
class Patient:
    """Anatomy and disease of one generated patient. Lengths in mm, angles in radians, 0 lateral and 90 degrees anterior."""

    seed: int
    disease: Disease
    age: int
    sex: Literal["F", "M"]
    haematocrit: float
    heart_rate_per_min: float
    ejection_fraction: float
    edv_ml: float  # left-ventricular end-diastolic volume
    length_mm: float  # valve plane to the tip of the cavity
    wall_mm: float  # basal wall at end-diastole
    septal_ratio: float  # thickest over remote wall
    hypertrophy_angle: float
    apex_power: float  # larger is blunter
    lobes: tuple[float, float, float]  # relative size of the 2nd to 4th circular harmonic of the outline
    lobe_angles: tuple[float, float, float]
    septal_flattening: float
    base_tilt_mm: float
    outflow_angle: float
    trabeculation_mm: float
    slow_rim_mm: float  # blood at the wall that moves slowly and is darker on cine
    papillary_mm: float
    papillary_angles: tuple[float, float]
    right_width_mm: float
    right_span: float
    right_apex: float
    right_lean: float
    right_wall_mm: float
    epicardial_fat_mm: float
    axis_tilt: tuple[float, float]  # how far the long axis leaves the slices' normal, mm per mm
    heart_angles_deg: tuple[float, float, float]  # small rotations of the short-axis frame within the body
    heart_place_mm: tuple[float, float, float]  # centre of the left ventricle in the body, LPS
    torso_mm: tuple[float, float]  # half width and half depth
    skin_fat_mm: float
    muscle_mm: float
    rib_spacing_mm: float
    dome_mm: float  # diaphragm below the heart's lower border
    mediastinum: float
    sternotomy: bool  # steel wires in the breastbone
    ecv: float  # of remote myocardium
    lesions: tuple[Lesion, ...] = ()
    right_heart: RightHeart | None = None  # only where the right ventricle is sick: its size is then this one's

    @cached_property
    def frame(self) -> npt.NDArray[np.float64]:
        """Unit vectors in LPS as rows: lateral, anterior (up in a usual short-axis view), towards the apex."""
        lateral, down = (
            np.array([0.77, 0.62, 0.15]),
            np.array([-0.15, 0.42, -0.90]),
        )  # as in published double-oblique short axes
        a, b, c = np.deg2rad(self.heart_angles_deg)
        turn = np.array([[1, -c, b], [c, 1, -a], [-b, a, 1]])
        lateral, down = turn @ lateral, turn @ down
        lateral = lateral / np.linalg.norm(lateral)
        down = down - lateral * (down @ lateral)
        down = down / np.linalg.norm(down)
        return np.stack([lateral, -down, np.cross(down, lateral)])


def _draw_disease(rng: np.random.Generator, case_mix: Mapping[str, float]) -> Disease:
    unknown = sorted(set(case_mix) - set(DISEASES))
    if unknown:
        raise ValueError(f"case_mix names unknown diseases {unknown}; known are {', '.join(DISEASES)}")
    weights = np.array([float(case_mix.get(disease, 0.0)) for disease in DISEASES])
    if not np.isfinite(weights).all() or (weights < 0).any() or weights.sum() <= 0:
        raise ValueError(f"case_mix must hold non-negative weights with a positive sum, not {dict(case_mix)}")
    share = np.cumsum(weights)  # the last one is the sum, added up in this order however many diseases there are
    return DISEASES[int(np.searchsorted(share / share[-1], rng.random(), side="right"))]


def draw_patient(seed: int, case_mix: Mapping[str, float]) -> Patient:
    """The patient of this seed in a population with these disease weights (relative, missing ones are 0).

    Independent of any scanner. Raises `ValueError` for unknown diseases or weights that are no distribution.

    >>> draw_patient(7, {"dcm": 1.0}).disease
    'dcm'
    """
    rng = np.random.default_rng([seed, 1])
    disease = _draw_disease(rng, case_mix)
    sex: Literal["F", "M"] = "F" if rng.random() < WOMEN.get(disease, 0.5) else "M"
    normal, uniform = rng.normal, rng.uniform
    female = sex == "F"
    edv = normal(128, 24) if female else normal(160, 30)
    wall = normal(7.8, 1.0) if female else normal(9.0, 1.2)
    fraction, ecv = normal(0.62, 0.05), normal(tissue.ECV_NORMAL, tissue.ECV_NORMAL_SD)
    septal, sphere, lesions = 1.0 + abs(normal(0.08, 0.06)), normal(1.0, 0.06), []
    hypertrophy_angle = normal(2.4, 0.4)
    if disease == "myocarditis":
        edv, fraction, ecv = edv * uniform(0.95, 1.3), fraction - abs(normal(0.07, 0.06)), ecv + uniform(0.0, 0.06)
        lesions = _myocarditis(rng)
    elif disease == "infarct":
        edv, fraction = edv * uniform(1.0, 1.9), fraction - abs(normal(0.20, 0.09))
        lesions = _infarct(rng)
    elif disease == "hcm":
        edv, fraction, wall, ecv = (
            edv * 0.92,
            fraction + 0.05,
            wall * uniform(1.05, 1.3),
            ecv + tissue.ECV_HCM - tissue.ECV_NORMAL,
        )
        septal, lesions = uniform(1.4, 2.2), _insertion_points(rng)
    elif disease == "dcm":
        edv, fraction, wall = edv * uniform(1.4, 2.5), normal(0.29, 0.08), wall * uniform(0.78, 1.05)
        ecv, sphere = ecv + tissue.ECV_DCM - tissue.ECV_NORMAL, sphere * 0.92
        lesions = _midwall(rng)
    elif disease == "amyloid":
        edv, fraction, wall = edv * 0.88, fraction - uniform(0.02, 0.18), wall * uniform(1.35, 1.8)
        ecv = normal(tissue.ECV_AMYLOID, 0.06)
        lesions = [Lesion(0.0, 20.0, 0.4, 1.6, -0.1, float(uniform(0.35, 0.6)), float(np.clip(ecv + 0.09, 0.40, 0.75)))]
    elif disease == "ph":  # half of such patients have 40 ml/m2 or less (van Wolferen et al. 2007, Eur Heart J 28:1250)
        edv, fraction, lesions = edv * uniform(0.5, 0.8), fraction - abs(normal(0.02, 0.04)), _hinges(rng)
    elif disease == "arvc":
        edv, fraction, lesions = edv * uniform(0.95, 1.15), fraction - abs(normal(0.04, 0.05)), _lateral_rim(rng)
    edv = float(np.clip(edv, 55 if disease == "ph" else 75, 360))
    length = float(np.clip(84 * (edv / 140) ** (1 / 3) * sphere, 62, 130))
    skin_fat = float(np.clip(rng.gamma(2.5, 7.5 if female else 5.5), 3.0, 55))
    muscle = float(np.clip(normal(9 if female else 14, 4), 4, 28))
    cage = (
        float(normal(130 if female else 142, 9)),
        float(normal(90 if female else 97, 8)),
    )  # half width and depth to the pleura
    place = _fitted(np.array([normal(42, 8), normal(-26, 6), 0.0]), cage, 0.55 * length + wall + 4)
    patient = Patient(
        seed=seed,
        disease=disease,
        age=int(np.clip(normal(MEAN_AGE.get(disease, 48), 14), 18, 89)),
        sex=sex,
        haematocrit=float(np.clip(normal(0.40 if female else 0.44, 0.035), 0.28, 0.54)),
        heart_rate_per_min=float(np.clip(normal(68, 11), 45, 110)),
        ejection_fraction=float(np.clip(fraction, 0.10, 0.78)),
        edv_ml=edv,
        length_mm=length,
        wall_mm=float(np.clip(wall, 5.0, 17.0)),
        septal_ratio=float(septal),
        hypertrophy_angle=float(hypertrophy_angle),
        apex_power=float(uniform(1.9, 2.9)),
        lobes=(float(abs(normal(0.03, 0.035))), float(normal(0.0, 0.018)), float(normal(0.0, 0.010))),
        lobe_angles=(float(uniform(0, 2 * np.pi)), float(uniform(0, 2 * np.pi)), float(uniform(0, 2 * np.pi))),
        septal_flattening=float(np.clip(normal(0.02, 0.03), -0.02, 0.12)),
        base_tilt_mm=float(uniform(3, 10)),
        outflow_angle=float(normal(2.45, 0.25)),
        trabeculation_mm=float(uniform(2.5, 11.0)),
        slow_rim_mm=float(uniform(0.0, 7.0)),
        papillary_mm=float(np.clip(normal(4.6, 0.9), 2.8, 7.5)),
        papillary_angles=(float(normal(0.62, 0.18)), float(normal(-1.05, 0.2))),
        right_width_mm=float(np.clip(normal(30, 6) * (edv / 150) ** 0.25, 16, 50)),
        right_span=float(np.clip(normal(1.0, 0.09), 0.75, 1.25)),
        right_apex=float(np.clip(normal(0.90, 0.07), 0.72, 1.02)),
        right_lean=float(np.clip(normal(0.9, 0.4), 0, 1.8)),
        right_wall_mm=float(np.clip(normal(2.6, 0.5), 1.6, 5.0)),
        epicardial_fat_mm=float(np.clip(rng.gamma(2.2, 2.4), 0.5, 15)),
        axis_tilt=(float(normal(0, 0.10)), float(normal(0, 0.10))),
        heart_angles_deg=(float(normal(0, 7)), float(normal(0, 7)), float(normal(0, 9))),
        heart_place_mm=place,
        torso_mm=(cage[0] + skin_fat + muscle + 11, cage[1] + skin_fat + muscle + 11),
        skin_fat_mm=skin_fat,
        muscle_mm=muscle,
        rib_spacing_mm=float(normal(25, 2)),
        dome_mm=float(normal(1, 5)),
        mediastinum=float(uniform(0.7, 1.2)),
        sternotomy=bool(rng.random() < (0.20 if disease == "infarct" else 0.03)),
        ecv=float(np.clip(ecv, 0.19, 0.65)),
        lesions=tuple(lesions),
    )
    return _with_right_heart(patient, rng) if disease in ("ph", "arvc") else patient


def _with_right_heart(patient: Patient, rng: np.random.Generator) -> Patient:
    """The patient with a sick right ventricle in the place of a healthy one.

    Its wall is thicker than 5 mm, where hypertrophy begins (Lang et al. 2015, J Am Soc Echocardiogr 28:1), or thin; it reaches
    the apex; the left cavity is round but for what the right one does to it. Extents are assumed.
    """
    stroke = patient.edv_ml * patient.ejection_fraction
    pressed = patient.disease == "ph"
    if pressed:
        right = overloaded(rng, sex=patient.sex, left_edv_ml=patient.edv_ml, stroke_ml=stroke)
    else:
        right = arrhythmogenic(rng, sex=patient.sex, stroke_ml=stroke)
    round_, *others = patient.lobes
    return replace(
        patient,
        right_heart=right,
        right_wall_mm=float(rng.uniform(5.2, 9.0) if pressed else rng.uniform(1.2, 2.2)),
        right_span=patient.right_span * 1.08,
        right_apex=float(rng.uniform(0.97, 1.02)),
        lobes=(0.3 * round_, 0.5 * others[0], others[1]),
        septal_flattening=0.0,
    )


def _fitted(place: npt.NDArray[np.float64], cage: tuple[float, float], reach_mm: float) -> tuple[float, float, float]:
    """The heart's place, moved back along its axis until its apex lies inside the rib cage."""
    axis = np.array([0.62, -0.67, -0.42])
    for _ in range(60):
        left, posterior, _ = place + reach_mm * axis
        if (left / cage[0]) ** 2 + ((posterior - 6) / cage[1]) ** 2 < 0.88:
            break
        place = place - axis
    return float(place[0]), float(place[1]), float(place[2])


def _myocarditis(rng: np.random.Generator) -> list[Lesion]:
    """Patchy, subepicardial in the inferolateral wall, sometimes midwall in the septum."""
    lesions = []
    for _ in range(int(rng.integers(2, 7))):
        lateral = rng.random() < 0.72
        lesions.append(
            Lesion(
                angle=float(rng.normal(-0.5, 0.5) if lateral else rng.normal(np.pi, 0.4)),
                width=float(rng.uniform(0.5, 1.5) if lateral else rng.uniform(0.4, 1.0)),
                height=float(rng.uniform(0.05, 0.85)),
                extent=float(rng.uniform(0.15, 0.45)),
                inner=float(rng.uniform(0.40, 0.62)) if lateral else 0.34,
                outer=1.05 if lateral else 0.70,
                ecv=float(rng.normal(tissue.ECV_MYOCARDITIS_LESION, 0.05)),
            )
        )
    return lesions


def _infarct(rng: np.random.Generator) -> list[Lesion]:
    """Subendocardial to transmural in one coronary territory: LAD, right or circumflex artery."""
    angle, height = ((2.1, 0.6), (4.65, 0.35), (-0.2, 0.4))[int(rng.choice(3, p=(0.45, 0.33, 0.22)))]
    scar = Lesion(
        angle=float(rng.normal(angle, 0.3)),
        width=float(rng.uniform(0.9, 2.1)),
        height=float(rng.normal(height, 0.12)),
        extent=float(rng.uniform(0.25, 0.6)),
        inner=-0.1,
        outer=float(rng.uniform(0.35, 1.05)),
        ecv=float(np.clip(rng.normal(tissue.ECV_INFARCT, 0.05), 0.42, 0.72)),
        obstruction=bool(rng.random() < 0.2),
    )
    return [scar]


def _insertion_points(rng: np.random.Generator) -> list[Lesion]:
    """Fibrosis where the right ventricle inserts, typical of hypertrophic cardiomyopathy."""
    return [
        _at_an_insertion(rng, (angle, 0.14), width=(0.2, 0.5), height=(0.1, 0.5), extent=(0.15, 0.35), depth=(0.3, 0.9))
        for angle in (2.15, 4.1)
        if rng.random() < 0.75
    ]


def _at_an_insertion(
    rng: np.random.Generator, angle: tuple[float, float], *, width: Range, height: Range, extent: Range, depth: Range
) -> Lesion:
    """A patch at an angle with this mean and deviation, its sizes drawn from ranges, from one depth to the other."""
    return Lesion(
        angle=float(rng.normal(*angle)),
        width=float(rng.uniform(*width)),
        height=float(rng.uniform(*height)),
        extent=float(rng.uniform(*extent)),
        inner=depth[0],
        outer=depth[1],
        ecv=float(rng.uniform(0.36, 0.5)),
    )


def _midwall(rng: np.random.Generator) -> list[Lesion]:
    """The septal midwall stripe of about every third dilated heart."""
    if rng.random() > 0.4:
        return []
    angle, width = float(rng.normal(np.pi, 0.2)), float(rng.uniform(0.5, 1.1))
    return [
        Lesion(
            angle, width, float(rng.uniform(0.1, 0.4)), float(rng.uniform(0.2, 0.4)), 0.35, 0.65, float(rng.uniform(0.36, 0.46))
        )
    ]


def _hinges(rng: np.random.Generator) -> list[Lesion]:
    """Enhancement where a right ventricle under pressure inserts, in 40 of 58 (Freed et al. 2012, JCMR 14:11)."""
    if rng.random() > 40 / 58:
        return []
    return [
        _at_an_insertion(rng, (angle, 0.10), width=(0.25, 0.55), height=(0.05, 0.5), extent=(0.2, 0.4), depth=(0.35, 1.05))
        for angle in (1.95, 4.3)
    ]


def _lateral_rim(rng: np.random.Generator) -> list[Lesion]:
    """Subepicardial enhancement of the inferolateral wall, in two of five arrhythmogenic hearts (assumed)."""
    if rng.random() > 0.4:
        return []
    return [
        Lesion(
            float(rng.normal(-0.5, 0.25)),
            float(rng.uniform(0.7, 1.6)),
            float(rng.uniform(0.1, 0.6)),
            float(rng.uniform(0.25, 0.5)),
            float(rng.uniform(0.50, 0.65)),
            1.05,
            float(rng.uniform(0.40, 0.52)),
        )
    ]
