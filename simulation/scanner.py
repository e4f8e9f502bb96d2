"""A magnetic resonance scanner that doesn't exist: tissue labels in, an integer image like a DICOM series' out.

Order of events as in the real thing: plan the stack, hold the breath, excite (signal equation), receive (surface coils), sample
k-space (resolution, ghosts, noise), reconstruct, scale. `random_scanner` draws scanners of no hospital for pre-training.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, field_validator

from conf.study import Frozen
from simulation import tissue
from simulation.phantom import Anatomy, Grid, Patient, anatomy, truth
from simulation.reception import acquire, grey_values, sensitivity, textured
from simulation.tissue import Tissue

Floats = npt.NDArray[np.float32]
Series = Literal["cine_ed", "cine_es", "lge"]
PHASE = {"cine_ed": 0.0, "cine_es": 1.0, "lge": 0.08}
"""Cardiac phase of each series; late enhancement is triggered to the rest period of diastole."""


class Scanner(Frozen):
    """One scanner with the protocol its department uses. Defaults: a 1.5 T system with phase-sensitive late enhancement."""

    name: str = "A"
    manufacturer: str = "SIEMENS"
    field_strength_t: float = 1.5  # 1.5 or 3.0
    matrix: Annotated[int, Field(ge=32, le=512)] = 192  # rows and columns of the image
    pixel_mm: Annotated[float, Field(gt=0.5, le=4)] = 1.6
    slice_thickness_mm: Annotated[float, Field(gt=0, le=20)] = 8.0
    slice_gap_mm: Annotated[float, Field(ge=0, le=10)] = 2.0
    apex_first: bool = False  # order of the slices
    in_plane_rotation_deg: float = 0.0  # how operators turn the short-axis view, counter-clockwise; ± 8 degrees by patient
    planning_sd_mm: Annotated[float, Field(ge=0, le=40)] = 7.0  # scatter of the heart around the image centre
    snr: Annotated[float, Field(gt=0)] = 30.0  # blood in the middle of the heart over the noise of one channel
    coil_bias: Annotated[float, Field(ge=0, le=2)] = 0.5  # 0 uniform; 1 the raw sensitivity of the surface coils
    ghosting: Annotated[float, Field(ge=0, le=0.5)] = 0.02
    breath_hold_shift_mm: Annotated[float, Field(ge=0, le=10)] = 0.7
    resolution: Annotated[float, Field(gt=0.3, le=1)] = 0.88  # acquired over reconstructed matrix, read direction
    phase_resolution: Annotated[float, Field(gt=0.3, le=1)] = 0.80  # the same in the phase direction, relative to read
    edge_roll_off: Annotated[float, Field(ge=0, le=1)] = 0.25  # part of k-space that the window tapers
    circular_view: bool = False  # black outside the inscribed circle, as some gradient corrections leave it
    tr_ms: Annotated[float, Field(gt=1, le=10)] = 3.2
    flip_deg: Annotated[float, Field(gt=5, le=90)] = 55.0
    inflow: Annotated[float, Field(gt=0.5, le=2)] = 1.2  # fresh blood is brighter than steady state says
    flow_mottle: Annotated[float, Field(ge=0, le=0.6)] = 0.06
    texture: Annotated[float, Field(ge=0, le=0.5)] = 0.05
    fat_out_of_phase: bool = True  # fat's sign in bSSFP: cancels water at borders (black rims)
    banding: Annotated[float, Field(ge=0, le=1)] = 0.0  # off-resonance stripes
    inversion_time_error_ms: Annotated[float, Field(ge=0)] = 12.0  # standard deviation of the operator's choice
    gadolinium_mmol_per_kg: Annotated[float, Field(gt=0, le=0.4)] = 0.15
    delay_min: Annotated[float, Field(gt=1, le=60)] = 12.0
    psir: bool = True  # phase-sensitive (signed) or magnitude late enhancement
    intensity_scale: Annotated[float, Field(gt=1)] = 400.0  # grey value of blood in the middle of the heart on cine

    @field_validator("field_strength_t")
    @classmethod
    def _tissue_values_are_known(cls, value: float) -> float:
        tissue.relaxation(value)
        return value


@dataclass(frozen=True, eq=False)
class Scan:
    """One series of one patient; arrays are (slices, rows, columns).

    `image` uint16; `mask`, `lesion`, `aha` uint8 as in `Truth`. `affine` (4, 4) takes the index (slice, row, column, 1) to LPS
    millimetres. Times in milliseconds; `grid` and `phase` let a reader draw contours of their own.
    """

    series: Series
    image: npt.NDArray[np.uint16]
    mask: npt.NDArray[np.uint8]
    lesion: npt.NDArray[np.uint8]
    aha: npt.NDArray[np.uint8]
    affine: npt.NDArray[np.float64]
    inversion_time_ms: float | None
    trigger_time_ms: float
    grid: Grid
    phase: float


def scan(patient: Patient, scanner: Scanner, series: Series, *, seed: int, oversampling: int = 2, subslices: int = 3) -> Scan:
    """Image this patient on this scanner. Equal arguments give equal bytes, in any process.

    `seed` is the examination: cine and late enhancement of one seed share the planned stack. `oversampling=1, subslices=2` is
    the fast setting: coarser partial volume at about half of the time.

    >>> from simulation.phantom import draw_patient
    >>> scan(draw_patient(3, {"normal": 1}), Scanner(matrix=96, pixel_mm=2.5), "lge", seed=0, oversampling=1).image.dtype
    dtype('uint16')
    """
    if series not in PHASE:
        raise ValueError(f"no series named '{series}'; known are {', '.join(PHASE)}")
    grid = plan(patient, scanner, series, seed=seed, oversampling=oversampling, subslices=subslices)
    phase = PHASE[series]
    rng = scan_rng(patient, scanner, series, seed=seed)
    tissues, drawn = anatomy(patient, grid, phase), truth(patient, grid, phase)
    table, ecv_axis, ecv_signal, ti_ms = contrast(patient, scanner, series, rng)
    image = render(tissues, table, ecv_axis, ecv_signal, grid)
    image = textured(image, drawn, scanner, rng, blood=series != "lge")
    place = affine(patient, grid)
    image *= sensitivity(patient, grid, place, scanner.coil_bias)
    reference = float(abs(table[Tissue.BLOOD]))
    received = acquire(image, scanner, reference, rng)
    beat_ms = 60000.0 / patient.heart_rate_per_min
    return Scan(
        series=series,
        image=grey_values(received, scanner, reference, is_signed(scanner, series)),
        mask=drawn.mask,
        lesion=drawn.lesion,
        aha=drawn.aha,
        affine=place,
        inversion_time_ms=ti_ms,
        trigger_time_ms=round(beat_ms * {"cine_ed": 0.02, "cine_es": 0.36, "lge": 0.72}[series], 1),
        grid=grid,
        phase=phase,
    )


def scan_rng(patient: Patient, scanner: Scanner, series: str, *, seed: int) -> np.random.Generator:
    """The chances of one scan: contrast, textures, ghosts and noise, in this order."""
    return np.random.default_rng([patient.seed, seed, zlib.crc32(f"{scanner.name}/{series}".encode()), 33])


def plan(patient: Patient, scanner: Scanner, series: str, *, seed: int, oversampling: int, subslices: int) -> Grid:
    """The stack an operator plans: from a slice in the atria to the apex, centred roughly on the heart."""
    rng = np.random.default_rng([patient.seed, seed, zlib.crc32(scanner.name.encode()), 31])
    offset = np.clip(rng.normal(0, scanner.planning_sd_mm, 2), -40, 40)
    rotation = np.deg2rad(scanner.in_plane_rotation_deg + rng.normal(0, 8))
    step = scanner.slice_thickness_mm + scanner.slice_gap_mm
    first = -step * rng.uniform(0.35, 1.35)
    last = patient.length_mm + 0.7 * patient.wall_mm + step * rng.uniform(-0.5, 0.4)
    levels = np.arange(first, last, step, dtype=np.float32)
    if scanner.apex_first:
        levels = levels[::-1].copy()
    breath = np.random.default_rng([patient.seed, seed, zlib.crc32(f"{scanner.name}/{series[:4]}".encode()), 32])
    return Grid(
        levels_mm=levels,
        shape=(scanner.matrix, scanner.matrix),
        pixel_mm=scanner.pixel_mm,
        thickness_mm=scanner.slice_thickness_mm,
        rotation_rad=float(rotation),
        offset_mm=(float(offset[0]), float(offset[1])),
        shifts_mm=breath.normal(0, scanner.breath_hold_shift_mm, (len(levels), 2)).astype(np.float32),
        oversampling=oversampling,
        subslices=subslices,
    )


def affine(patient: Patient, grid: Grid) -> npt.NDArray[np.float64]:
    """Index (slice, row, column, 1) to LPS millimetres: double-oblique, right-handed or not as the slices are ordered."""
    lateral, anterior, apical = patient.frame
    cosine, sine = np.cos(grid.rotation_rad), np.sin(grid.rotation_rad)
    column = cosine * lateral - sine * anterior
    row = -sine * lateral - cosine * anterior
    step = float(grid.levels_mm[1] - grid.levels_mm[0]) if len(grid.levels_mm) > 1 else grid.thickness_mm
    centre = np.array(patient.heart_place_mm) + (float(grid.levels_mm[0]) - 0.45 * patient.length_mm) * apical
    centre = centre - grid.offset_mm[0] * lateral - grid.offset_mm[1] * anterior
    rows, columns = grid.shape
    out = np.eye(4)
    out[:3, 0], out[:3, 1], out[:3, 2] = step * apical, grid.pixel_mm * row, grid.pixel_mm * column
    out[:3, 3] = centre - grid.pixel_mm * ((rows - 1) / 2 * row + (columns - 1) / 2 * column)
    return out


# -- contrast ------------------------------------------------------------------------------------------------------------


def is_signed(scanner: Scanner, series: str) -> bool:
    """Whether images of this series show where the signal is negative."""
    return series == "lge" and scanner.psir


def contrast(
    patient: Patient, scanner: Scanner, series: str, rng: np.random.Generator
) -> tuple[Floats, Floats, Floats, float | None]:
    """Signal of each tissue (16,), ECV and the myocardium's signal over it, and the inversion time (ms) where there is one."""
    if series == "lge":
        return _late_enhancement(patient, scanner, rng)
    return *cine_contrast(scanner, rng), None


def cine_contrast(scanner: Scanner, rng: np.random.Generator) -> tuple[Floats, Floats, Floats]:
    """Signal of each tissue (16,), and of myocardium over its ECV, in balanced SSFP."""
    t1, t2, density, _ = tissue.relaxation(scanner.field_strength_t)
    t1 = t1 * rng.lognormal(0, 0.05, t1.shape).astype(np.float32)
    t2 = t2 * rng.lognormal(0, 0.07, t2.shape).astype(np.float32)
    for alike in (Tissue.PAPILLARY, Tissue.RIGHT_WALL):
        t1[alike], t2[alike] = t1[Tissue.MYOCARDIUM], t2[Tissue.MYOCARDIUM]
    table = tissue.bssfp(t1, t2, density, tr_ms=scanner.tr_ms, flip_deg=scanner.flip_deg)
    table[Tissue.BLOOD] *= scanner.inflow * rng.lognormal(0, 0.04)
    table[Tissue.RIGHT_BLOOD] *= scanner.inflow * rng.lognormal(0, 0.06)
    if scanner.fat_out_of_phase:
        table[Tissue.FAT] *= -1
        table[Tissue.MARROW] *= -1
    ecv = np.linspace(0.05, 0.80, 76, dtype=np.float32)
    excess = ecv - np.float32(tissue.ECV_NORMAL)  # oedema and fibrosis lengthen T1 and T2: slopes assumed
    heart_t1, heart_t2 = t1[Tissue.MYOCARDIUM] * (1 + 0.6 * excess), t2[Tissue.MYOCARDIUM] * (1 + 0.6 * excess)
    signal = tissue.bssfp(heart_t1, heart_t2, density[[Tissue.MYOCARDIUM]], tr_ms=scanner.tr_ms, flip_deg=scanner.flip_deg)
    return table, ecv, signal


def _late_enhancement(patient: Patient, scanner: Scanner, rng: np.random.Generator) -> tuple[Floats, Floats, Floats, float]:
    """Signal of each tissue (16,) and of myocardium over its ECV, both signed, and the inversion time chosen (ms)."""
    t1, _, density, ecv = tissue.relaxation(scanner.field_strength_t)
    t1 = t1 * rng.lognormal(0, 0.04, t1.shape).astype(np.float32)
    t1[Tissue.PAPILLARY] = t1[Tissue.RIGHT_WALL] = t1[Tissue.MYOCARDIUM]
    muscle = [Tissue.MYOCARDIUM, Tissue.PAPILLARY, Tissue.RIGHT_WALL]
    ecv[muscle] = patient.ecv
    ecv[[Tissue.BLOOD, Tissue.RIGHT_BLOOD, Tissue.SLOW_BLOOD]] = 1 - patient.haematocrit
    plasma = tissue.plasma_gadolinium(
        dose_mmol_per_kg=scanner.gadolinium_mmol_per_kg, delay_min=scanner.delay_min
    ) * rng.lognormal(0, 0.08)
    enhanced = tissue.t1_after_contrast(t1, ecv, plasma_mmol_per_l=plasma, field_strength_t=scanner.field_strength_t)
    rr_ms = 2 * 60000.0 / patient.heart_rate_per_min  # every second beat
    # an operator nulls what looks like normal muscle; in amyloid there is none, and the choice falls in between
    nulled = np.asarray([min(patient.ecv, 0.33)], np.float32)
    remote = tissue.t1_after_contrast(
        t1[[Tissue.MYOCARDIUM]], nulled, plasma_mmol_per_l=plasma, field_strength_t=scanner.field_strength_t
    )
    ti_ms = tissue.null_time(float(remote[0]), rr_ms=rr_ms) + rng.normal(4, scanner.inversion_time_error_ms)
    ti_ms = float(np.round(np.clip(ti_ms, 120, 600)))
    table = tissue.inversion_recovery(enhanced, density, ti_ms=ti_ms, rr_ms=rr_ms)
    axis = np.linspace(0.05, 0.80, 76, dtype=np.float32)
    wall = tissue.t1_after_contrast(
        np.full_like(axis, t1[Tissue.MYOCARDIUM]), axis, plasma_mmol_per_l=plasma, field_strength_t=scanner.field_strength_t
    )
    signal = tissue.inversion_recovery(wall, np.full_like(axis, density[Tissue.MYOCARDIUM]), ti_ms=ti_ms, rr_ms=rr_ms)
    return table, axis, signal, ti_ms


def render(tissues: Anatomy, table: Floats, ecv_axis: Floats, ecv_signal: Floats, grid: Grid) -> Floats:
    """Signal averaged over sub-slices and fine pixels: partial volume, (slices, rows, columns)."""
    signal = table[tissues.thorax]
    heart = table[tissues.heart]
    for k in range(len(heart)):
        enhanced = tissues.ecv[k] > 0
        if enhanced.any():
            value = np.interp(tissues.ecv[k][enhanced], ecv_axis, ecv_signal).astype(np.float32)
            for layer, labels in zip(heart[k], tissues.heart[k], strict=True):
                layer[enhanced] = np.where(labels[enhanced] == Tissue.MYOCARDIUM, value, layer[enhanced])
    signal[:, tissues.window[0], tissues.window[1]] = heart.mean(axis=1)
    if grid.oversampling == 1:
        return np.asarray(signal, np.float32)
    rows, columns, fine = *grid.shape, grid.oversampling
    return np.asarray(signal.reshape(len(signal), rows, fine, columns, fine).mean(axis=(2, 4)), np.float32)


def random_scanner(seed: int) -> Scanner:
    """A scanner of no hospital: field, vendor, geometry, contrast and defects drawn widely (domain randomisation).

    It covers, among others, a 1.5 T GE cine with 1.37 mm pixels, 8-10 mm slices and 256 x 256 pixels.
    """
    rng = np.random.default_rng([seed, 51])
    uniform = rng.uniform
    maker = ("SIEMENS", "PHILIPS", "GE MEDICAL SYSTEMS", "CANON")[int(rng.integers(4))]
    high = rng.random() < 0.35
    pixel = float(uniform(1.0, 2.0))
    view = float(uniform(270, 390))
    turn = float(rng.choice([0.0, 0.0, 0.0, 0.0, 90.0, -90.0, 180.0]) + rng.normal(0, 14))
    thick = float(uniform(5, 10))
    return Scanner(
        name=f"R{seed}",
        manufacturer=maker,
        field_strength_t=3.0 if high else 1.5,
        matrix=int(np.clip(round(view / pixel / 16) * 16, 144, 320)),
        pixel_mm=pixel,
        slice_thickness_mm=thick,
        slice_gap_mm=float(rng.choice([0.0, 0.0, 2.0, uniform(0, 4)])),
        apex_first=bool(rng.random() < 0.5),
        in_plane_rotation_deg=turn,
        planning_sd_mm=float(uniform(4, 16)),
        snr=float(np.exp(uniform(np.log(10), np.log(70)))),
        coil_bias=float(uniform(0.1, 1.2)),
        ghosting=float(rng.beta(1.2, 12) * 0.3),
        breath_hold_shift_mm=float(uniform(0, 2.0)),
        resolution=float(uniform(0.65, 1.0)),
        phase_resolution=float(uniform(0.6, 1.0)),
        edge_roll_off=float(uniform(0.05, 0.7)),
        circular_view=bool(maker.startswith("GE") and rng.random() < 0.7),
        tr_ms=float(uniform(2.6, 4.2)),
        flip_deg=float(uniform(35, 50) if high else uniform(42, 70)),
        inflow=float(uniform(0.9, 1.5)),
        flow_mottle=float(uniform(0.0, 0.16)),
        texture=float(uniform(0.02, 0.10)),
        fat_out_of_phase=bool(rng.random() < 0.85),
        banding=float(uniform(0.2, 0.8) if rng.random() < (0.35 if high else 0.1) else 0.0),
        inversion_time_error_ms=float(uniform(5, 40)),
        gadolinium_mmol_per_kg=float(uniform(0.1, 0.2)),
        delay_min=float(uniform(8, 20)),
        psir=bool(rng.random() < 0.6),
        intensity_scale=float(np.exp(uniform(np.log(120), np.log(1800)))),
    )
