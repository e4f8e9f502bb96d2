"""One heartbeat: how much of its stroke volume each ventricle has given away, over time from the R wave.

Isovolumic contraction, ejection, isovolumic relaxation, rapid filling, diastasis, atrial contraction. When the valves open and
close follows the systolic time intervals of Weissler et al. 1968 (Circulation 37:149), which shorten with the heart rate more
slowly than the beat does: ejection takes a third of the cycle at 60 beats a minute and nearly half of it at 110. Filling has
what is left. Isovolumic relaxation and the duration of the atrial wave by age are those of Nagueh et al. 2009 (J Am Soc
Echocardiogr 22:107). In failing hearts ejection is shorter and starts later, as Garrard et al. 1970 found (Circulation 42:455:
ejection fraction = 1.125 - 1.25 x pre-ejection period / ejection time); thick hearts fill later and more slowly (JCMR 2012, 14
Suppl 1:P305). What is marked so is assumed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.special import betainc

from simulation.patient import Patient

Doubles = npt.NDArray[np.float64]

Q_TO_R_MS = 40.0
"""Weissler counts from the Q wave; scanners trigger on the R wave (assumed)."""
NORMAL_EJECTION_FRACTION = 0.62
EJECTION = (2.0, 2.6)
RAPID_FILLING = (2.0, 3.0)
ATRIAL_FILLING = (2.2, 2.2)
"""Shapes of the flows, as densities of beta distributions: outflow and inflow peak early, the atrial wave is even (assumed)."""
RIGHT_MS = 18.0
"""How much earlier the pulmonary valve opens, and later closes, than the aortic one (assumed)."""
DIASTASIS = 0.05
"""Share of the filling that comes between rapid filling and the atrium, where 150 ms or more lie between them."""


@dataclass(frozen=True)
class Beat:
    """One ventricle's beat. Times in ms after the R wave; shares of the filling add up to 1 with the rapid one."""

    cycle: float  # from one R wave to the next
    opens: float  # the valve of the great artery
    closes: float
    fills: float  # the valve of the atrium opens
    rapid: float  # duration of rapid filling
    atrial: float  # duration of the atrium's contraction, which ends with the cycle
    atrial_share: float

    @property
    def systole(self) -> float:
        """From the R wave to the end of ejection, as a share of the cycle."""
        return self.closes / self.cycle

    def contraction(self, time_ms: npt.ArrayLike) -> Doubles:
        """Share of the stroke volume that has left the ventricle at these times: 0 at end-diastole, 1 at end-systole."""
        time = np.mod(np.asarray(time_ms, np.float64), self.cycle)
        ejected = betainc(*EJECTION, np.clip((time - self.opens) / (self.closes - self.opens), 0, 1))
        start = self.cycle - self.atrial
        rapid = betainc(*RAPID_FILLING, np.clip((time - self.fills) / self.rapid, 0, 1))
        between = start - self.fills - self.rapid
        slow = DIASTASIS * min(max(between, 0.0) / 150, 1.0)  # none is left where the atrium follows at once
        drift = np.clip((time - self.fills - self.rapid) / max(between, 1.0), 0, 1)
        atrial = betainc(*ATRIAL_FILLING, np.clip((time - start) / self.atrial, 0, 1))
        filled = (1 - slow - self.atrial_share) * rapid + slow * drift + self.atrial_share * atrial
        return np.asarray(ejected - filled, np.float64)


def left_beat(patient: Patient, heart_rate_per_min: float | None = None) -> Beat:
    """The left ventricle's beat, at the patient's own heart rate unless another is given.

    >>> from simulation.patient import draw_patient
    >>> 0.3 < left_beat(draw_patient(3, {"normal": 1.0}), 60).systole < 0.4
    True
    """
    rate = patient.heart_rate_per_min if heart_rate_per_min is None else heart_rate_per_min
    if not 30 <= rate <= 180:
        raise ValueError(f"a heart rate lies between 30 and 180 per minute here, not {rate:g}")
    cycle = 60000.0 / rate
    man = patient.sex == "M"
    before = 131 - 0.4 * rate if man else 133 - 0.4 * rate
    ejection = 413 - 1.7 * rate if man else 418 - 1.6 * rate
    weak = max(0.0, NORMAL_EJECTION_FRACTION - patient.ejection_fraction)
    ratio = before / ejection + weak / 1.25  # the whole electromechanical systole keeps its length
    ejection = (before + ejection) / (1 + ratio)
    opens = ejection * ratio - Q_TO_R_MS
    stiff = patient.disease in ("hcm", "amyloid")
    relaxation = float(np.interp(patient.age, (20, 30, 50, 70), (50, 67, 74, 87))) + (20 if stiff else 0)
    relaxation *= min(1.0, np.sqrt(cycle / 860))  # faster hearts relax faster (assumed)
    fills = opens + ejection + relaxation
    atrial = float(np.interp(patient.age, (30, 50, 70), (127, 133, 138))) * min(1.0, np.sqrt(cycle / 860))
    share = 0.2 + 0.004 * max(0, patient.age - 40) + (0.1 if stiff else 0.0)  # a fifth; more with age and stiffness (assumed)
    rapid = min(260.0 + (60 if stiff else 0), cycle - fills)
    return Beat(cycle, opens, opens + ejection, fills, rapid, atrial, min(share, 0.5))


def right_beat(patient: Patient, heart_rate_per_min: float | None = None) -> Beat:
    """The right ventricle's: it ejects a little longer against less pressure, and relaxes in less time."""
    left = left_beat(patient, heart_rate_per_min)
    closes = left.closes + RIGHT_MS
    fills = max(closes + 5, left.fills - RIGHT_MS)
    return replace(
        left, opens=max(left.opens - RIGHT_MS, 10.0), closes=closes, fills=fills, rapid=min(left.rapid, left.cycle - fills)
    )


def volume_ml(patient: Patient, time_ms: npt.ArrayLike, heart_rate_per_min: float | None = None) -> Doubles:
    """The left ventricle's volume at these times after the R wave."""
    given = left_beat(patient, heart_rate_per_min).contraction(time_ms)
    return np.asarray(patient.edv_ml * (1 - patient.ejection_fraction * given), np.float64)
