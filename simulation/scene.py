"""What lies in front of the scanner: a patient on one stack of slices, as far as no scanner's contrast or noise changes it.

Most of a scan's time is anatomy. It is kept here as shares of tissues: partial volume is linear in the tissues' signal, so fine
pixels and sub-slices are averaged once (`scanner.render` averages signals instead, anew in every scan). Many pixels have the
same shares, and each names its row of a table. `simulation.rescan` makes images of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from simulation.patient import Patient
from simulation.phantom import Anatomy, Grid, anatomy, truth
from simulation.reception import coil_field
from simulation.scanner import PHASE, Scanner, Series, affine, plan
from simulation.tissue import Tissue

Floats = npt.NDArray[np.float32]
STACK = ("matrix", "pixel_mm", "slice_thickness_mm", "slice_gap_mm", "apex_first")
"""Settings of a scanner that are the scene's: they say where the pixels lie. So do the operator's turn and planning."""


@dataclass(frozen=True, eq=False)
class Scene:
    """One patient on one stack at one cardiac phase. `code` (slices, rows, columns) names a row of `shares`.

    `shares` (codes, 16 + lesions) float32: how much of a pixel each tissue is, then muscle of each ECV in `ecv` (lesions,).
    `mask` as in `phantom.Truth`; `coils` is `reception.coil_field`.
    """

    patient: Patient
    scanner: Scanner  # whose stack it is
    series: Series
    grid: Grid
    code: npt.NDArray[np.int32]
    shares: Floats
    ecv: Floats
    mask: npt.NDArray[np.uint8]
    coils: npt.NDArray[np.float64]

    @property
    def affine(self) -> npt.NDArray[np.float64]:
        """As of `scanner.Scan`."""
        return affine(self.patient, self.grid)

    def every(self, step: int, first: int) -> Scene:
        """The scene with every `step`-th slice, from `first` on."""
        part = slice(first, None, step)
        grid = replace(self.grid, levels_mm=self.grid.levels_mm[part], shifts_mm=self.grid.shifts_mm[part])
        arrays = {name: getattr(self, name)[part] for name in ("code", "mask", "coils")}
        return replace(self, grid=grid, **arrays)

    def on(self, scanner: Scanner) -> Scanner:
        """The same scanner, with the scene's stack."""
        return scanner.model_copy(update={name: getattr(self.scanner, name) for name in STACK})


def scene(patient: Patient, scanner: Scanner, series: Series, *, seed: int, oversampling: int = 2, subslices: int = 3) -> Scene:
    """What `scanner.scan` with these arguments looks at."""
    grid = plan(patient, scanner, series, seed=seed, oversampling=oversampling, subslices=subslices)
    tissues = anatomy(patient, grid, PHASE[series])
    code, shares, ecv = _shares(tissues, grid)
    return Scene(
        patient=patient,
        scanner=scanner,
        series=series,
        grid=grid,
        code=code,
        shares=shares,
        ecv=ecv,
        mask=truth(patient, grid, PHASE[series]).mask,
        coils=coil_field(patient, grid, affine(patient, grid)),
    )


def _shares(tissues: Anatomy, grid: Grid) -> tuple[npt.NDArray[np.int32], Floats, Floats]:
    """Code of every pixel, the table of shares, and the ECV of each kind of lesion that has a column in it."""
    ecv = np.unique(tissues.ecv[tissues.ecv > 0])
    enhanced = (tissues.ecv > 0)[:, None] & (tissues.heart == Tissue.MYOCARDIUM)
    lesion = (len(Tissue) + np.searchsorted(ecv, tissues.ecv)).astype(np.uint8)[:, None]
    heart = np.where(enhanced, lesion, tissues.heart)
    labels = replace(tissues, heart=heart).labels  # (slices, subslices, H, W)
    rows, columns, fine = *grid.shape, grid.oversampling
    samples = labels.reshape(*labels.shape[:2], rows, fine, columns, fine).transpose(0, 2, 4, 1, 3, 5)
    samples = samples.reshape(len(labels), rows, columns, -1)
    kinds = len(Tissue) + len(ecv)
    code = samples[..., 0].astype(np.int32)
    mixed = (samples != samples[..., :1]).any(axis=-1)
    found, which = np.unique(np.sort(samples[mixed], axis=-1), axis=0, return_inverse=True)
    code[mixed] = kinds + which.reshape(-1)
    shares = np.zeros((len(found), kinds), np.float32)
    for sample in found.T:
        shares[np.arange(len(found)), sample] += 1
    return code, np.concatenate([np.eye(kinds, dtype=np.float32), shares / np.float32(samples.shape[-1])]), ecv
