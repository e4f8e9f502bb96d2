"""A whole cine of a generated heart: the same patient on the same stack at 8 to 25 moments of one beat.

Contrast, texture, coils and breath-hold are those of one examination; noise and ghosts are each moment's own. The first moment
is the R wave: its mask is that of the series `cine_ed`. `simulation.scanner.scan` makes the two phases that most studies want.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simulation.cycle import Doubles, left_beat, right_beat
from simulation.patient import Patient
from simulation.phantom import Grid, anatomy, truth
from simulation.reception import acquire, grey_values, sensitivity, textured
from simulation.scanner import Scanner, affine, cine_contrast, plan, render
from simulation.tissue import Tissue

FEWEST, MOST = 8, 25
"""Phases that cines have: with fewer, end-systole falls between two of them."""


@dataclass(frozen=True, eq=False)
class Cine:
    """A beat of one patient; arrays are (phases, slices, rows, columns).

    `image` uint16; `mask` uint8 as in `Truth`. `affine` (4, 4) takes the index (slice, row, column, 1) to LPS millimetres.
    `trigger_times_ms` (phases,) count from the R wave; `left` and `right` (phases,) are the shares of the stroke volume that
    have left each ventricle.
    """

    image: npt.NDArray[np.uint16]
    mask: npt.NDArray[np.uint8]
    affine: npt.NDArray[np.float64]
    trigger_times_ms: Doubles
    cycle_ms: float
    left: Doubles
    right: Doubles
    grid: Grid

    @property
    def end_diastole(self) -> int:
        """The phase with the fullest left ventricle."""
        return int(self.left.argmin())

    @property
    def end_systole(self) -> int:
        """The phase with the emptiest left ventricle."""
        return int(self.left.argmax())

    def volumes_ml(self, label: int = 1) -> Doubles:
        """Volume of a structure by phase, counted in voxels of the mask with the distance between slices as their height."""
        voxel = abs(float(np.linalg.det(self.affine[:3, :3]))) / 1000
        return np.asarray((self.mask == label).sum(axis=(1, 2, 3)) * voxel, np.float64)


def scan_cine(
    patient: Patient,
    scanner: Scanner,
    *,
    seed: int,
    phases: int = 25,
    heart_rate_per_min: float | None = None,
    oversampling: int = 2,
    subslices: int = 3,
) -> Cine:
    """Image this patient's beat on this scanner, at moments equally far apart. Equal arguments give equal bytes.

    `seed` is the examination: `scan` with the same one has the same stack. Raises `ValueError` for fewer than 8 or more than 25
    phases and for a heart rate that is none.

    >>> from simulation.phantom import draw_patient
    >>> small = Scanner(matrix=64, pixel_mm=4, slice_gap_mm=12)
    >>> scan_cine(draw_patient(3, {"normal": 1}), small, seed=0, phases=8, oversampling=1, subslices=1).image.shape[0]
    8
    """
    if not FEWEST <= phases <= MOST:
        raise ValueError(f"a cine has {FEWEST} to {MOST} phases, not {phases}")
    beats = left_beat(patient, heart_rate_per_min), right_beat(patient, heart_rate_per_min)
    cycle = beats[0].cycle
    times = np.arange(phases) * cycle / phases
    left, right = (beat.contraction(times) for beat in beats)
    grid = plan(patient, scanner, "cine_ed", seed=seed, oversampling=oversampling, subslices=subslices)
    frames = [
        scan_moment(patient, scanner, grid, seed=seed, phase=float(a), right_phase=float(b), number=n)
        for n, (a, b) in enumerate(zip(left, right, strict=True))
    ]
    image, mask = (np.stack(part) for part in zip(*frames, strict=True))
    return Cine(image, mask, affine(patient, grid), np.round(times, 2), cycle, left, right, grid)


def scan_moment(
    patient: Patient,
    scanner: Scanner,
    grid: Grid,
    *,
    seed: int,
    phase: float,
    right_phase: float | None = None,
    number: int = 0,
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint8]]:
    """Image and mask (slices, rows, columns) at any phase: the shares of the stroke volume that have left the ventricles.

    `number` tells the noise of one moment from that of another; everything else is the examination's (`seed`).
    """
    examination = zlib.crc32(f"{scanner.name}/cine".encode())
    rng = np.random.default_rng([patient.seed, seed, examination, 34])
    tissues = anatomy(patient, grid, phase, right_phase)
    drawn = truth(patient, grid, phase, right_phase)
    table, ecv_axis, ecv_signal = cine_contrast(scanner, rng)
    image = textured(render(tissues, table, ecv_axis, ecv_signal, grid), drawn, scanner, rng, blood=True)
    image *= sensitivity(patient, grid, affine(patient, grid), scanner.coil_bias)
    reference = float(abs(table[Tissue.BLOOD]))
    received = acquire(image, scanner, reference, np.random.default_rng([patient.seed, seed, examination, 35, number]))
    return grey_values(received, scanner, reference, False), drawn.mask
