"""Diseases of the right ventricle: how large, how weak and how shaped it is, and what it does to the septum.

Two of them. `ph`, pressure overload by pulmonary hypertension: a wide, thick-walled right ventricle presses the septum flat,
the left one is small and underfilled, the pulmonary trunk is wide. `arvc`, arrhythmogenic right-ventricular cardiomyopathy: a
wide, thin-walled right ventricle with fat in its wall and bulges in the triangle of dysplasia. Everybody else has none of this
and is drawn without it. Each figure stands with its source; "assumed" has none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

SURFACE_M2 = {"F": 128 / 76, "M": 160 / 81}
"""Body surface that the sexes' mean left-ventricular volumes in `patient.py`, 128 and 160 ml, are for: 76 and 81 ml/m2
(Kawel-Boehm et al. 2015, JCMR 17:29, as quoted in Cardiovasc Diagn Ther 2020, 10:1918, table 3)."""
TASK_FORCE_ML_PER_M2 = {"F": 100.0, "M": 110.0}
"""End-diastolic volume from which the right ventricle fulfils a major criterion of the cardiomyopathy, where a part of its wall
does not move: Marcus et al. 2010, Eur Heart J 31:806; an ejection fraction of 0.40 or less is the other one."""


@dataclass(frozen=True)
class Bulge:
    """A place of the free wall that bulges by `size_mm` and does not contract.

    `along` runs from 0 at the wall's anterior insertion to 1 at the inferior one, `height` is a fraction of the left cavity's
    length.
    """

    along: float
    height: float
    size_mm: float


@dataclass(frozen=True)
class RightHeart:
    """A sick right ventricle and what goes with it."""

    edv_ml: float
    ejection_fraction: float
    eccentricity: tuple[float, float]  # of the left cavity at end-diastole and at end-systole: 1 is round
    trunk_mm: float  # diameter of the pulmonary trunk
    bulges: tuple[Bulge, ...] = ()
    fat: float = 0.0  # share of the free wall's thickness that fat has replaced at the bulges


def overloaded(rng: np.random.Generator, *, sex: Literal["F", "M"], left_edv_ml: float, stroke_ml: float) -> RightHeart:
    """A right ventricle that pumps against pulmonary hypertension.

    It is 1.3 to 2.5 times as large as the left one: 1.27 to 1.69 is mildly, up to 2.29 moderately, more severely dilated
    (Altmayer et al. 2018, Sci Rep 8:7200); and no smaller than 84 ml/m2 in a body of the sex's usual size, the median of van
    Wolferen et al. 2007, Eur Heart J 28:1250. What it ejects is what the left one ejects, and up to a quarter more that leaks
    back through the tricuspid valve (assumed), so that its ejection fraction is low. The septum is flat in both phases, most at
    end-systole, as Ryan et al. 1985 (J Am Coll Cardiol 5:918) have it for pressure, not volume; 1.16 at end-systole tells
    children with pulmonary hypertension from healthy ones best (PMC7236425), and how much more adults have is assumed. A normal
    trunk measures 23 ± 2 mm in men and 21 ± 2 mm in women (Burman et al. 2016, JCMR 18:12); 29 to 40 mm is assumed.
    """
    edv = max(left_edv_ml * float(rng.uniform(1.3, 2.5)), 84 * SURFACE_M2[sex])
    diastole = float(rng.uniform(1.12, 1.35))
    systole = diastole + float(rng.uniform(0.12, 0.40))
    fraction = stroke_ml * float(rng.uniform(1.0, 1.25)) / edv
    return RightHeart(edv, float(np.clip(fraction, 0.12, 0.55)), (diastole, systole), float(rng.uniform(29, 40)))


def arrhythmogenic(rng: np.random.Generator, *, sex: Literal["F", "M"], stroke_ml: float) -> RightHeart:
    """A right ventricle with arrhythmogenic cardiomyopathy, in a body of the sex's usual size.

    Its volume fulfils the Task Force's major criterion by 3 to 40 % (the range is assumed); what it ejects is what the left one
    ejects and up to 15 % more (assumed). It bulges where the wall is weakest: outflow tract, inferior wall under the tricuspid
    valve, apex, the triangle of dysplasia (Marcus et al. 1982, Circulation 65:384); sizes are assumed.
    """
    edv = TASK_FORCE_ML_PER_M2[sex] * float(rng.uniform(1.03, 1.40)) * SURFACE_M2[sex]
    fraction = stroke_ml * float(rng.uniform(1.0, 1.15)) / edv
    places = ((0.20, 0.04), (0.84, 0.14), (0.50, 0.72))  # outflow, inferior, apex
    bulges = [
        Bulge(float(rng.normal(along, 0.03)), float(rng.normal(height, 0.03)), float(rng.uniform(9, 17)))
        for along, height in places
        if rng.random() < 0.85
    ]
    return RightHeart(
        edv,
        float(np.clip(fraction, 0.12, 0.55)),
        (float(rng.uniform(1.0, 1.1)), 1.0),
        float(rng.uniform(22, 28)),
        tuple(bulges) or (Bulge(*places[1], 12.0),),
        float(rng.uniform(0.4, 0.8)),
    )
