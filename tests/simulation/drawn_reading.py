"""Two small cohorts for a reading: generated patients from two scanners, of which the second plays the generator."""

from fl_client.cohort import Cohort
from simulation.hospital_case import patient_case
from simulation.reader import Reader
from simulation.scanner import Scanner

SCANNERS = {
    "real": (Scanner(name="one", matrix=144, pixel_mm=1.5, snr=32, coil_bias=0.4), 100),
    "synthetic": (Scanner(name="other", field_strength_t=3.0, matrix=160, pixel_mm=1.35, slice_gap_mm=0, apex_first=True), 900),
}
EACH = 3


def cohorts(place):
    """The folders of the real and of the synthetic scans, made in this place."""
    for kind, (scanner, first) in SCANNERS.items():
        cohort = Cohort(place / kind)
        for seed in range(first, first + EACH):
            cohort.admit(patient_case(seed, scanner, Reader(), {"normal": 1.0}, ("cine_ed",), oversampling=1, subslices=2))
    return place / "real", place / "synthetic"
