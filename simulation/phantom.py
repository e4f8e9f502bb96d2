"""Where which tissue of a generated patient is, on any imaging grid.

`anatomy` gives hard tissue labels on a finer grid than the image, so that a scanner's partial volume arises by averaging;
`truth` gives what stands at the centre of each voxel: mask, lesions and segments. Patients are drawn in `simulation.patient`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simulation import thorax
from simulation.heart import ANGLES, THETA, Contours, contours
from simulation.patient import DISEASES, Disease, Lesion, Patient, draw_patient
from simulation.tissue import Tissue

__all__ = [
    "DISEASES",
    "Anatomy",
    "Disease",
    "Grid",
    "Lesion",
    "Patient",
    "Polar",
    "Truth",
    "anatomy",
    "draw_patient",
    "polar",
    "rasterise",
    "segments",
    "truth",
]

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Grid:
    """Where an image looks: `levels_mm` (slices,) below the diastolic valve plane, square pixels, and how the view is turned.

    `rotation_rad` turns the picture counter-clockwise against the usual short-axis view; `offset_mm` (lateral, anterior) is
    where the left ventricle's axis lies from the image centre; `shifts_mm` (slices, 2) are breath-hold differences, likewise.
    """

    levels_mm: Floats
    shape: tuple[int, int]
    pixel_mm: float
    thickness_mm: float
    rotation_rad: float
    offset_mm: tuple[float, float]
    shifts_mm: Floats
    oversampling: int = 2
    subslices: int = 3

    @property
    def sub_levels_mm(self) -> Floats:
        """Heights of the sub-slices, (slices, subslices)."""
        part = (np.arange(self.subslices, dtype=np.float32) + 0.5) / self.subslices - 0.5
        return np.asarray(self.levels_mm[:, None] + part[None] * self.thickness_mm, np.float32)

    def coordinates(self, oversampling: int) -> tuple[Floats, Floats]:
        """Lateral and anterior position (mm, rows x columns) of the sample points relative to the image centre."""
        rows, columns = self.shape[0] * oversampling, self.shape[1] * oversampling
        step = np.float32(self.pixel_mm / oversampling)
        x = (np.arange(columns, dtype=np.float32) - (columns - 1) / 2)[None, :] * step
        y = (np.arange(rows, dtype=np.float32) - (rows - 1) / 2)[:, None] * step
        cosine, sine = np.float32(np.cos(self.rotation_rad)), np.float32(np.sin(self.rotation_rad))
        return x * cosine - y * sine, -(x * sine + y * cosine)

    def pixel_of(self, lateral: Floats, anterior: Floats, oversampling: int) -> tuple[Floats, Floats]:
        """Row and column (fractional) of a place relative to the image centre; the inverse of `coordinates`."""
        cosine, sine = np.cos(self.rotation_rad), np.sin(self.rotation_rad)
        x, y = lateral * cosine - anterior * sine, -lateral * sine - anterior * cosine
        step = self.pixel_mm / oversampling
        row = y / step + (self.shape[0] * oversampling - 1) / 2
        column = x / step + (self.shape[1] * oversampling - 1) / 2
        return np.asarray(row, np.float32), np.asarray(column, np.float32)

    def axis(self, patient: Patient, levels_mm: Floats) -> Floats:
        """Lateral and anterior position (slices, 2) of the long axis at these heights, relative to the image centre."""
        lean = np.asarray(levels_mm, np.float32)[:, None] - np.float32(0.45 * patient.length_mm)
        place = np.array(self.offset_mm, np.float32)[None] + lean * np.array(patient.axis_tilt, np.float32)[None]
        return np.asarray(place + self.shifts_mm, np.float32)


@dataclass(frozen=True, eq=False)
class Polar:
    """A window of the image in polar coordinates around the long axis: distance (mm) and angle as table index."""

    window: tuple[slice, slice]
    rho: Floats  # (slices, h, w)
    index: npt.NDArray[np.intp]  # (slices, h, w)


def polar(patient: Patient, grid: Grid, radius_mm: float, oversampling: int) -> Polar:
    """Polar coordinates of every pixel within about `radius_mm` of the long axis, and the window that holds them."""
    centre = grid.axis(patient, grid.levels_mm)
    rows, columns = grid.pixel_of(centre[:, 0], centre[:, 1], oversampling)
    reach = radius_mm * oversampling / grid.pixel_mm + 2
    low_row, high_row = int(max(0, rows.min() - reach)), int(min(grid.shape[0] * oversampling, rows.max() + reach))
    low_column, high_column = int(max(0, columns.min() - reach)), int(min(grid.shape[1] * oversampling, columns.max() + reach))
    window = (slice(low_row, max(high_row, low_row + 1)), slice(low_column, max(high_column, low_column + 1)))
    lateral, anterior = (axis[window] for axis in grid.coordinates(oversampling))
    u = lateral[None] - centre[:, 0, None, None]
    v = anterior[None] - centre[:, 1, None, None]
    angle = np.arctan2(v, u)
    angle *= np.float32(ANGLES / (2 * np.pi))
    index = np.floor(angle).astype(np.intp)
    index &= ANGLES - 1  # a power of two: negative angles wrap
    return Polar(window, np.sqrt(u * u + v * v), index)


@dataclass(frozen=True, eq=False)
class Anatomy:
    """Hard tissue labels (`Tissue` values) on the oversampled grid.

    `thorax` (slices, H, W) is everything around the heart; `heart` (slices, subslices, h, w) replaces it inside `window`. `ecv`
    (slices, h, w) is the extracellular volume fraction of enhanced myocardium, 0 elsewhere.
    """

    thorax: Labels
    heart: Labels
    window: tuple[slice, slice]
    ecv: Floats

    @property
    def labels(self) -> Labels:
        """All labels in one array, (slices, subslices, H, W)."""
        full = np.repeat(self.thorax[:, None], self.heart.shape[1], axis=1)
        full[:, :, self.window[0], self.window[1]] = self.heart
        return full


_RINGS = np.array(
    [
        Tissue.BLOOD,
        Tissue.SLOW_BLOOD,
        Tissue.PAPILLARY,
        Tissue.MYOCARDIUM,
        Tissue.RIGHT_BLOOD,
        Tissue.PAPILLARY,
        Tissue.RIGHT_WALL,
        Tissue.FAT,
        Tissue.CORTEX,  # pericardium
        255,
    ],
    np.uint8,
)


def anatomy(patient: Patient, grid: Grid, phase: float, right_phase: float | None = None) -> Anatomy:
    """Tissue labels of the patient on this grid at a cardiac phase (0 end-diastole, 1 end-systole), as `contours` has it."""
    levels = grid.sub_levels_mm
    tables = contours(patient, levels.ravel(), phase, right_phase)
    pericardium = tables.fat + 1.4
    place = polar(patient, grid, float(pericardium.max()) + 1, grid.oversampling)
    surroundings = thorax.labels(patient, grid, tables)
    slices, subslices = levels.shape
    heart = np.empty((slices, subslices, *place.rho.shape[1:]), np.uint8)
    ecv = np.zeros(place.rho.shape, np.float32)
    rings = np.stack(
        [
            tables.core,
            tables.cavity,
            tables.endo,
            tables.epi,
            tables.right_cavity,
            tables.right,
            tables.right_wall,
            tables.fat,
            pericardium,
        ]
    )
    for k in range(slices):
        background = surroundings[k][place.window]
        first = k * subslices
        reach = float(pericardium[first : first + subslices].max())
        near = np.flatnonzero(place.rho[k].ravel() < reach)  # the rest is not heart
        rho, index = place.rho[k].ravel()[near], place.index[k].ravel()[near]
        behind = background.ravel()[near]
        heart[k] = background
        for s in range(subslices):
            count = np.zeros(rho.shape, np.uint8)
            for ring in rings[:, first + s]:
                count += rho >= ring.take(index)
            layer = _RINGS.take(count)
            np.copyto(layer, behind, where=count == len(rings))
            _papillaries(patient, tables, first + s, rho, index, phase, layer)
            _aortic_root(patient, tables, first + s, rho, index, layer)
            heart[k, s].ravel()[near] = layer
        if patient.lesions:
            ecv[k].ravel()[near] = _lesion_ecv(patient, tables, first + subslices // 2, rho, index)
    return Anatomy(surroundings, heart, place.window, ecv)


def _aortic_root(
    patient: Patient, tables: Contours, level: int, rho: Floats, index: npt.NDArray[np.intp], layer: Labels
) -> None:
    """Draw the root of the aorta into a sub-slice above the valve plane: a round vessel between both outflow tracts."""
    above = -float(tables.zn[level]) * patient.length_mm
    if above < 2.5:
        return
    column = int(patient.outflow_angle * ANGLES / (2 * np.pi)) % ANGLES
    radius = 11.5 + 0.05 * patient.length_mm - 2.0
    distance = float(tables.endo[level, column]) - 0.25 * radius + 0.15 * above
    beside = THETA.take(index) - np.float32(patient.outflow_angle)
    gap = np.sqrt(rho * rho + distance * distance - 2 * distance * rho * np.cos(beside))
    layer[gap < radius + 1.5] = Tissue.CORTEX
    layer[gap < radius] = Tissue.BLOOD


def _papillaries(
    patient: Patient, tables: Contours, level: int, rho: Floats, index: npt.NDArray[np.intp], phase: float, layer: Labels
) -> None:
    """Draw the two papillary muscles into one sub-slice: rounded, attached to the wall below the mid level."""
    height = float(tables.zn[level])
    if not 0.22 < height < 0.80:
        return
    for number, angle in enumerate(patient.papillary_angles):
        belly = float(np.sin(np.pi * (height - 0.18) / 0.66))
        radius = patient.papillary_mm * (0.45 + 0.65 * belly) * (1 + 0.12 * phase) * (1 - 0.12 * number)
        column = int(angle * ANGLES / (2 * np.pi)) % ANGLES
        wall = float(tables.endo[level, column])
        distance = max(wall - radius * (0.55 + 0.9 * max(0.0, 0.5 - height) * 2), 0.35 * wall)
        # distance from the muscle's centre by the law of cosines, only where it can be near
        near = np.flatnonzero(np.abs(rho - distance) < radius * 1.3)
        r, beside = rho[near], THETA[index[near]] - np.float32(angle)
        flat = layer[near]
        gap = r * r + distance * distance - 2 * distance * r * np.cos(beside)
        flat[
            (gap < radius * radius * (1 + 0.25 * np.cos(3 * beside * 4 + number)))
            & ((flat == Tissue.BLOOD) | (flat == Tissue.SLOW_BLOOD))
        ] = Tissue.PAPILLARY
        layer[near] = flat


def _lesion_ecv(patient: Patient, tables: Contours, level: int, rho: Floats, index: npt.NDArray[np.intp]) -> Floats:
    """Extracellular volume fraction inside lesions of one level, 0 elsewhere, (h, w)."""
    out = np.zeros(rho.shape, np.float32)
    inside = np.nonzero((rho >= tables.endo[level][index]) & (rho < tables.epi[level][index]))
    column = index[inside]
    depth = (rho[inside] - tables.endo[level][column]) / np.maximum(tables.epi[level] - tables.endo[level], 0.5)[column]
    value = np.zeros(depth.shape, np.float32)
    rng = np.random.default_rng([patient.seed, 12])
    for lesion in patient.lesions:
        waves = rng.normal(0, 1, (5, 3))
        ragged = (
            sum(
                a / (n + 1.5) * np.cos((2 * n + 3) * THETA + 3 * b + 9 * c * tables.zn[level])
                for n, (a, b, c) in enumerate(waves)
            )
            * 0.10
        )
        beside = np.abs(np.angle(np.exp(1j * (THETA - lesion.angle)))) / (lesion.width / 2)
        away = beside**2 + ((float(tables.zn[level]) - lesion.height) / lesion.extent) ** 2 + 2.0 * ragged
        there = (away[column] < 1) & (depth > lesion.inner + ragged[column]) & (depth < lesion.outer + ragged[column])
        value[there] = np.maximum(value[there], lesion.ecv)
        if lesion.obstruction:
            value[there & (away[column] < 0.35) & (depth > 0.08) & (depth < 0.45)] = 0.10
    out[inside] = value
    return out


@dataclass(frozen=True, eq=False)
class Truth:
    """What stands at the centre of every voxel of the image grid, each (slices, rows, columns) uint8.

    `mask`: 1 left-ventricular blood pool with papillaries, 2 myocardium, 3 right-ventricular blood pool. `lesion`: 1 in
    enhanced myocardium. `aha`: segment 1..17 in myocardium (Cerqueira et al. 2002, Circulation 105:539), 0 elsewhere.
    """

    mask: Labels
    lesion: Labels
    aha: Labels


def truth(patient: Patient, grid: Grid, phase: float, right_phase: float | None = None) -> Truth:
    """Mask, lesions and segments on the image's own grid, from the contours at each slice's centre."""
    tables = contours(patient, grid.levels_mm, phase, right_phase)
    place = polar(patient, grid, float(tables.right.max()) + 1, 1)
    shape = (len(grid.levels_mm), *grid.shape)
    mask, lesion = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    inner = rasterise(tables, place)
    mask[:, place.window[0], place.window[1]] = inner
    if patient.lesions:
        for k in np.nonzero(tables.in_mask)[0]:
            enhanced = _lesion_ecv(patient, tables, int(k), place.rho[k], place.index[k]) > 0
            lesion[k][place.window] = enhanced & (inner[k] == 2)
    aha = np.zeros(shape, np.uint8)
    aha[:, place.window[0], place.window[1]] = segments(tables, place.index, inner)
    return Truth(mask, lesion, aha)


def rasterise(tables: Contours, place: Polar) -> Labels:
    """The mask (slices, h, w) that these contours enclose. The right ventricle is drawn from the tricuspid plane on."""
    mask = np.zeros(place.rho.shape, np.uint8)
    drawn = tables.in_mask
    for k in range(len(mask)):
        rho, index = place.rho[k], place.index[k]
        if not (drawn[k] or -0.05 < tables.zn[k] < 1.0):
            continue
        inside_wall = rho < tables.epi[k][index]
        if tables.zn[k] > -0.05:
            mask[k][~inside_wall & (rho < tables.right[k][index])] = 3
        if drawn[k]:
            mask[k][inside_wall] = 2
            mask[k][rho < tables.endo[k][index]] = 1
    return mask


def segments(tables: Contours, index: npt.NDArray[np.intp], mask: Labels) -> Labels:
    """Segments of the AHA model (slices, h, w) in the myocardium of `mask`: thirds of the cavity's length; the cap is 17."""
    degrees = np.rad2deg(THETA)
    six = (((degrees - 60) // 60).astype(int) % 6 + 1).astype(np.uint8)  # 1 anterior, 2 anteroseptal, 3 inferoseptal, ...
    four = (((degrees - 45) // 90).astype(int) % 4 + 13).astype(np.uint8)  # 13 anterior, 14 septal, 15 inferior, 16 lateral
    out = np.zeros(mask.shape, np.uint8)
    for k, height in enumerate(tables.zn):
        if height < 1 / 3:
            table = six
        elif height < 2 / 3:
            table = six + np.uint8(6)
        elif height < 1:
            table = four
        else:
            table = np.full(ANGLES, 17, np.uint8)
        out[k] = np.where(mask[k] == 2, table[index[k]], 0)
    return out
