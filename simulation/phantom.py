"""Generated patients: who they are, and where which tissue is on any imaging grid.

A `Patient` is anatomy and disease drawn from one seed and a case mix, and knows nothing of scanners: the same patient can be
scanned anywhere. `anatomy` gives hard tissue labels on a finer grid than the image, so that a scanner's partial volume arises
by averaging. Distributions are plausible, not fitted; normal sizes are of the order of Kawel-Boehm et al. 2020, JCMR 22:87.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from simulation import thorax, tissue
from simulation.heart import ANGLES, THETA, Contours, contours
from simulation.tissue import Tissue

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.uint8]
Disease = Literal["normal", "myocarditis", "infarct", "hcm", "dcm", "amyloid"]
DISEASES: tuple[Disease, ...] = ("normal", "myocarditis", "infarct", "hcm", "dcm", "amyloid")


@dataclass(frozen=True)
class Lesion:
    """A patch of enhanced wall: centre angle and full width (radians), height and half extent (fractions of the cavity's length),
    from `inner` to `outer` depth (0 endocardium, 1 epicardium), with this extracellular volume fraction.
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
    return DISEASES[int(np.searchsorted(np.cumsum(weights) / weights.sum(), rng.random(), side="right"))]


def draw_patient(seed: int, case_mix: Mapping[str, float]) -> Patient:
    """The patient of this seed in a population with these disease weights (relative, missing ones are 0).

    Independent of any scanner. Raises `ValueError` for unknown diseases or weights that are no distribution.

    >>> draw_patient(7, {"dcm": 1.0}).disease
    'dcm'
    """
    rng = np.random.default_rng([seed, 1])
    disease = _draw_disease(rng, case_mix)
    sex: Literal["F", "M"] = "F" if rng.random() < 0.5 else "M"
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
    edv = float(np.clip(edv, 75, 360))
    length = 84 * (edv / 140) ** (1 / 3) * sphere
    return Patient(
        seed=seed,
        disease=disease,
        age=int(np.clip(normal(62 if disease in ("infarct", "amyloid") else 48, 14), 18, 89)),
        sex=sex,
        haematocrit=float(np.clip(normal(0.40 if female else 0.44, 0.035), 0.28, 0.54)),
        heart_rate_per_min=float(np.clip(normal(68, 11), 45, 110)),
        ejection_fraction=float(np.clip(fraction, 0.10, 0.78)),
        edv_ml=edv,
        length_mm=float(np.clip(length, 62, 130)),
        wall_mm=float(np.clip(wall, 5.0, 17.0)),
        septal_ratio=float(septal),
        hypertrophy_angle=float(hypertrophy_angle),
        apex_power=float(uniform(1.9, 2.9)),
        lobes=(float(abs(normal(0.03, 0.035))), float(normal(0.0, 0.018)), float(normal(0.0, 0.010))),
        lobe_angles=(float(uniform(0, 2 * np.pi)), float(uniform(0, 2 * np.pi)), float(uniform(0, 2 * np.pi))),
        septal_flattening=float(np.clip(normal(0.02, 0.03), -0.02, 0.12)),
        base_tilt_mm=float(uniform(3, 10)),
        outflow_angle=float(normal(2.45, 0.25)),
        trabeculation_mm=float(uniform(2.0, 8.5)),
        papillary_mm=float(np.clip(normal(4.6, 0.9), 2.8, 7.5)),
        papillary_angles=(float(normal(0.62, 0.18)), float(normal(-1.05, 0.2))),
        right_width_mm=float(np.clip(normal(31, 6.5), 17, 52)),
        right_span=float(np.clip(normal(1.0, 0.09), 0.75, 1.25)),
        right_apex=float(np.clip(normal(0.90, 0.07), 0.72, 1.02)),
        right_lean=float(np.clip(normal(0.9, 0.4), 0, 1.8)),
        right_wall_mm=float(np.clip(normal(2.6, 0.5), 1.6, 5.0)),
        epicardial_fat_mm=float(np.clip(rng.gamma(2.2, 2.4), 0.5, 15)),
        axis_tilt=(float(normal(0, 0.10)), float(normal(0, 0.10))),
        heart_angles_deg=(float(normal(0, 7)), float(normal(0, 7)), float(normal(0, 9))),
        heart_place_mm=(float(normal(42, 8)), float(normal(-27, 7)), 0.0),
        torso_mm=(float(normal(158 if female else 172, 14)), float(normal(112 if female else 120, 12))),
        skin_fat_mm=float(np.clip(rng.gamma(2.5, 7.5 if female else 5.5), 3.0, 55)),
        muscle_mm=float(np.clip(normal(9 if female else 14, 4), 4, 28)),
        rib_spacing_mm=float(normal(25, 2)),
        dome_mm=float(normal(1, 5)),
        mediastinum=float(uniform(0.7, 1.2)),
        sternotomy=bool(rng.random() < (0.20 if disease == "infarct" else 0.03)),
        ecv=float(np.clip(ecv, 0.19, 0.65)),
        lesions=tuple(lesions),
    )


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
        Lesion(
            float(rng.normal(angle, 0.14)),
            float(rng.uniform(0.2, 0.5)),
            float(rng.uniform(0.1, 0.5)),
            float(rng.uniform(0.15, 0.35)),
            0.3,
            0.9,
            float(rng.uniform(0.36, 0.5)),
        )
        for angle in (2.15, 4.1)
        if rng.random() < 0.75
    ]


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


@dataclass(frozen=True, eq=False)
class Grid:
    """Where an image looks: `levels_mm` (slices,) below the diastolic valve plane, square pixels, and how the view is turned.

    `rotation_rad` turns the picture counter-clockwise against the usual short-axis view; `offset_mm` (lateral, anterior) is the
    left ventricle's axis relative to the image centre; `shifts_mm` (slices, 2) are breath-hold differences in the same directions.
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


def anatomy(patient: Patient, grid: Grid, phase: float) -> Anatomy:
    """Tissue labels of the patient on this grid at a cardiac phase (0 end-diastole, 1 end-systole)."""
    levels = grid.sub_levels_mm
    tables = contours(patient, levels.ravel(), phase)
    pericardium = tables.fat + 1.4
    place = polar(patient, grid, float(pericardium.max()) + 1, grid.oversampling)
    surroundings = thorax.labels(patient, grid, tables)
    slices, subslices = levels.shape
    heart = np.empty((slices, subslices, *place.rho.shape[1:]), np.uint8)
    ecv = np.zeros(place.rho.shape, np.float32)
    rings = np.stack(
        [tables.cavity, tables.endo, tables.epi, tables.right_cavity, tables.right, tables.right_wall, tables.fat, pericardium]
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
        flat[(gap < radius * radius * (1 + 0.25 * np.cos(3 * beside * 4 + number))) & (flat == Tissue.BLOOD)] = Tissue.PAPILLARY
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
            sum(a * np.cos((n + 2) * 2 * THETA + 3 * b + 9 * c * tables.zn[level]) for n, (a, b, c) in enumerate(waves)) * 0.07
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

    `mask`: 1 left-ventricular blood pool with papillaries, 2 myocardium, 3 right-ventricular blood pool. `lesion`: 1 in enhanced
    myocardium. `aha`: segment 1..17 in myocardium (Cerqueira et al. 2002, Circulation 105:539), 0 elsewhere.
    """

    mask: Labels
    lesion: Labels
    aha: Labels


def truth(patient: Patient, grid: Grid, phase: float) -> Truth:
    """Mask, lesions and segments on the image's own grid, from the contours at each slice's centre."""
    tables = contours(patient, grid.levels_mm, phase)
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
    """Segments of the AHA model (slices, h, w) in the myocardium of `mask`: thirds of the cavity's length, and the cap as 17."""
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
