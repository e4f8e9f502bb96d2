"""Tissues of the generated thorax and the signal equations that turn them into brightness.

Relaxation times, proton densities and extracellular volume fractions stand here with their source; a value marked
"assumed" has none and is of textbook order. One quantity, the extracellular volume fraction (ECV), drives scar, diffuse
fibrosis and amyloid alike, as in the SCMR consensus on T1 and ECV mapping (Messroghli et al. 2017, JCMR 19:75).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


class Tissue(IntEnum):
    """Index into every table below, and the value of a voxel in the hard label maps."""

    AIR = 0
    LUNG = 1
    FAT = 2
    MUSCLE = 3
    LIVER = 4
    STOMACH = 5
    SPLEEN = 6
    BLOOD = 7  # left heart and arteries
    MYOCARDIUM = 8
    PAPILLARY = 9  # papillary muscles and trabeculae: muscle inside the blood pool
    RIGHT_WALL = 10  # right-ventricular free wall, atrial walls
    RIGHT_BLOOD = 11  # right heart and veins
    MARROW = 12
    CORTEX = 13  # cortical bone, pericardium, sternal fibrous tissue
    SMALL_VESSEL = 14  # lung and liver vessels thinner than a slice: half blood
    SLOW_BLOOD = 15  # blood at the wall and between trabeculae: no inflow enhancement, some muscle in it


@dataclass(frozen=True)
class Relaxation:
    """T1 and T2 in milliseconds at 1.5 T and 3 T, relative proton density, extracellular volume fraction."""

    t1_ms: tuple[float, float]
    t2_ms: tuple[float, float]
    density: float
    ecv: float


# B04: de Bazelaire et al. 2004, Radiology 230:652, measured in vivo at 3 T; T1 there was 21 % longer on average than at 1.5 T,
# which gives the 1.5 T column where no other source stands (T2 taken as equal). Proton densities: assumed throughout, save the
# lung. ECV of other organs than the heart: assumed.
TISSUES: dict[Tissue, Relaxation] = {
    Tissue.AIR: Relaxation((1000, 1000), (1, 1), 0.0, 0.0),
    # T1 1.37-1.41 s at 1.5 T (Mai et al. 1999, MRM 41:866), assumed equal at 3 T; T2* 1.8 ms and water 0.25 of tissue at the
    # lung's rest volume (Theilmann et al. 2009, JMRI 30:527), T2* at bSSFP's echo time folded into the density
    Tissue.LUNG: Relaxation((1390, 1390), (40, 40), 0.25 * 0.25, 0.10),
    Tissue.FAT: Relaxation((316, 382), (68, 68), 0.95, 0.02),  # B04: 382 / 68 at 3 T
    Tissue.MUSCLE: Relaxation((742, 898), (29, 29), 0.80, 0.12),  # B04, paravertebral: 898 / 29 at 3 T
    Tissue.LIVER: Relaxation((669, 809), (46, 34), 0.90, 0.28),  # B04: 809 / 34 at 3 T; T2 at 1.5 T assumed
    Tissue.STOMACH: Relaxation((900, 1100), (80, 70), 0.70, 0.12),  # assumed: mixed content
    Tissue.SPLEEN: Relaxation((1098, 1328), (61, 61), 0.85, 0.33),  # B04: 1328 / 61 at 3 T
    # T1 at 3 T 1664 arterial, 1584 venous (Lu et al. 2004, MRM 52:679); T1 at 1.5 T and all T2 of blood assumed. Its ECV is
    # 1 - haematocrit, set by patient
    Tissue.BLOOD: Relaxation((1500, 1664), (240, 160), 0.95, 0.58),
    # 996 ± 31 and 1184 ± 38; T2 55.8 ± 2.8 and 51.6 ± 3 (Granitz et al. 2019, Wien Klin Wochenschr 131:143). ECV by patient
    Tissue.MYOCARDIUM: Relaxation((996, 1184), (55.8, 51.6), 0.80, 0.25),
    Tissue.PAPILLARY: Relaxation((996, 1184), (55.8, 51.6), 0.80, 0.25),
    Tissue.RIGHT_WALL: Relaxation((996, 1184), (55.8, 51.6), 0.80, 0.25),
    Tissue.RIGHT_BLOOD: Relaxation((1450, 1584), (180, 110), 0.95, 0.58),  # less oxygen, shorter T2
    Tissue.MARROW: Relaxation((484, 586), (49, 49), 0.80, 0.10),  # B04, L4 vertebra: 586 / 49 at 3 T
    Tissue.CORTEX: Relaxation((1000, 1000), (2, 2), 0.15, 0.02),  # assumed: nearly no signal
    Tissue.SMALL_VESSEL: Relaxation((1475, 1620), (180, 120), 0.50, 0.58),
    Tissue.SLOW_BLOOD: Relaxation((1475, 1620), (200, 130), 0.84, 0.58),
}

# Myocardial ECV. Normal 0.25 ± 0.04 (Dabir et al. 2014, JCMR 16:69); amyloid 0.43 ± 0.12 (Barison et al. 2015, J Intern Med
# 277:605). The others are assumed, in the order normal < diffuse fibrosis < acute inflammation < infarct of Sado et al. 2012,
# Heart 98:1436, whose abstract compares these groups.
ECV_NORMAL = 0.25
ECV_NORMAL_SD = 0.02  # assumed: the spread of a true value is narrower than that of a measured one
ECV_AMYLOID = 0.43
ECV_DCM = 0.28
ECV_HCM = 0.29
ECV_MYOCARDITIS_LESION = 0.45
ECV_INFARCT = 0.58

# Longitudinal relaxivity of gadobutrol in human plasma at 37 degrees C, L/(mmol s), at 1.5 T and 3 T: Szomolanyi et al. 2019,
# Invest Radiol 54:559.
RELAXIVITY = (4.78, 4.97)
# Gadobutrol leaves the plasma with a half-life of 1.5 h: Staks et al. 1994, Invest Radiol 29:709.
PLASMA_HALF_LIFE_MIN = 90.0
# Apparent distribution volume (L/kg) 10-20 min after the bolus. Derived: myocardial T1 falls from 1017 to 426 ms 15 min after
# 0.2 mmol/kg with ECV 0.22 (aus dem Siepen et al. 2018, Open Heart 5:e000717), taking the relaxivity of their agent as 4.1.
DISTRIBUTION_L_PER_KG = 0.118


def _column(field_strength_t: float) -> int:
    if field_strength_t not in (1.5, 3.0):
        raise ValueError(f"tissue values are known at 1.5 T and 3.0 T, not at {field_strength_t} T")
    return int(field_strength_t == 3.0)


def relaxation(field_strength_t: float) -> tuple[Floats, Floats, Floats, Floats]:
    """T1 (ms), T2 (ms), proton density and ECV of every tissue, each of shape (16,), indexed by `Tissue`."""
    column = _column(field_strength_t)
    rows = [TISSUES[tissue] for tissue in Tissue]
    table = np.array([(row.t1_ms[column], row.t2_ms[column], row.density, row.ecv) for row in rows], np.float32)
    return table[:, 0], table[:, 1], table[:, 2], table[:, 3]


def bssfp(t1_ms: Floats, t2_ms: Floats, density: Floats, *, tr_ms: float, flip_deg: float) -> Floats:
    """Steady-state signal of balanced SSFP on resonance at TE = TR/2, relative to the equilibrium magnetisation.

    Freeman and Hill 1971, J Magn Reson 4:366; the form with E1, E2 of Scheffler and Lehnhardt 2003, Eur Radiol 13:2409.
    """
    e1, e2, angle = np.exp(-tr_ms / t1_ms), np.exp(-tr_ms / t2_ms), np.deg2rad(flip_deg)
    signal = density * np.sqrt(e2) * np.sin(angle) * (1 - e1) / (1 - (e1 - e2) * np.cos(angle) - e1 * e2)
    return np.asarray(signal, np.float32)


def inversion_recovery(t1_ms: Floats, density: Floats, *, ti_ms: float, rr_ms: float, efficiency: float = 0.97) -> Floats:
    """Longitudinal magnetisation at the inversion time, repeated every `rr_ms`, signed: negative before the null.

    The inversion leaves -(2 efficiency - 1) of the magnetisation; readout disturbance is neglected.
    """
    kept = 2 * efficiency - 1
    before = (1 - np.exp(-rr_ms / t1_ms)) / (1 + kept * np.exp(-rr_ms / t1_ms))  # steady state just before the inversion
    signal = density * (1 - (1 + kept * before) * np.exp(-ti_ms / t1_ms))
    return np.asarray(signal, np.float32)


def null_time(t1_ms: float, *, rr_ms: float, efficiency: float = 0.97) -> float:
    """The inversion time (ms) at which tissue of this T1 gives no signal."""
    kept = 2 * efficiency - 1
    before = (1 - np.exp(-rr_ms / t1_ms)) / (1 + kept * np.exp(-rr_ms / t1_ms))
    return float(t1_ms * np.log(1 + kept * before))


def plasma_gadolinium(*, dose_mmol_per_kg: float, delay_min: float) -> float:
    """Concentration in plasma (mmol/L) `delay_min` after the bolus."""
    return dose_mmol_per_kg / DISTRIBUTION_L_PER_KG * float(np.exp2(-delay_min / PLASMA_HALF_LIFE_MIN))


def t1_after_contrast(t1_ms: Floats, ecv: Floats, *, plasma_mmol_per_l: float, field_strength_t: float) -> Floats:
    """T1 (ms) once the agent has filled the extracellular space: R1 = R1 native + relaxivity x ECV x plasma concentration."""
    rate_per_s = 1000.0 / t1_ms + RELAXIVITY[_column(field_strength_t)] * ecv * plasma_mmol_per_l
    return np.asarray(1000.0 / rate_per_s, np.float32)
