"""The heart of a generated patient as polar contours: for each short-axis level, radius over angle around the long axis.

Everything that a reader would draw (endocardium, epicardium, right ventricle) is a row of a small table, so volumes can be set
exactly (end-diastolic volume, ejection fraction), muscle is conserved from diastole to systole, and drawing an image is a table
look-up. Conventions of contouring: Schulz-Menger et al. 2020, JCMR 22:19 (papillary muscles belong to the blood pool here; a
basal slice counts where muscle surrounds more than half of the cavity).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy import ndimage

if TYPE_CHECKING:
    from simulation.patient import Patient
    from simulation.right_heart import RightHeart

Floats = npt.NDArray[np.float32]

ANGLES = 512
"""Rows of the tables span the circle in this many steps; angle 0 is lateral, 90 degrees anterior, 180 septal, 270 inferior."""
THETA: Floats = (np.arange(ANGLES, dtype=np.float32) + 0.5) * np.float32(2 * np.pi / ANGLES)


@dataclass(frozen=True, eq=False)
class Contours:
    """Radii in mm around the long axis, each (levels, ANGLES); from inside out they never decrease.

    `endo` and `epi` are what a reader draws; `cavity` is the jagged tissue border of the blood with trabeculae cut out,
    `core` where blood moves fast.
    `surrounded` (levels,) is the fraction of the cavity's rim that is muscle; `zn` (levels,) is the normalised height, 0 at the
    valve plane and 1 at the tip of the cavity.
    """

    zn: Floats
    core: Floats
    cavity: Floats
    endo: Floats
    epi: Floats
    right_cavity: Floats
    right: Floats
    right_wall: Floats
    fat: Floats
    surrounded: Floats

    @property
    def in_mask(self) -> npt.NDArray[np.bool_]:
        """Levels (levels,) that a reader contours: muscle around more than half of the cavity, or the muscle of the apex."""
        return np.asarray((self.surrounded > 0.5) & (self.epi.max(axis=1) > 1.0), np.bool_)


def _bump(theta: Floats, centre: float, width: float) -> Floats:
    """1 at `centre`, falling to about 0.37 one `width` (radians) away, periodic."""
    return np.asarray(np.exp((np.cos(theta - centre) - 1) * 2 / width**2), np.float32)


def shortening(patient: Patient, phase: float) -> float:
    """Length of the ventricle at this phase relative to diastole; about 0.85 at the end of a normal systole (assumed)."""
    return 1.0 - 0.25 * patient.ejection_fraction * phase


def _diastole(patient: Patient, zn: Floats) -> tuple[Floats, Floats]:
    """Endocardial radius for unit size and wall thickness in mm at end-diastole, both (levels, ANGLES)."""
    z = zn[:, None]
    inside = np.clip(z, 0, 1)
    profile = np.sqrt(np.clip(1 - inside**patient.apex_power, 0, 1)) * (1 - 0.10 * np.clip(-z * 5, 0, 1))
    shape = np.ones((len(zn), ANGLES), np.float32)
    for order, (size, angle) in enumerate(zip(patient.lobes, patient.lobe_angles, strict=True), start=2):
        shape += size * np.cos(order * (THETA[None] - angle) + 0.6 * z)
    shape -= patient.septal_flattening * _bump(THETA, np.pi, 0.75)[None] * np.clip(1.1 - inside, 0, 1)
    wall = patient.wall_mm * (1 - 0.38 * inside**2) * (1 + 0.06 * np.cos(THETA[None] - 2.2))
    hypertrophy = _bump(THETA, patient.hypertrophy_angle, 1.0)[None] * np.clip(1.25 - inside, 0, 1)
    wall = wall * (1 + (patient.septal_ratio - 1) * hypertrophy)
    if patient.disease == "infarct":  # old scars are thin
        wall = wall * (1 - 0.35 * scar_field(patient, zn))
    return (profile * shape).astype(np.float32), wall.astype(np.float32)


def scar_field(patient: Patient, zn: Floats) -> Floats:
    """How much of each place of the wall belongs to a transmural lesion, 0..1, (levels, ANGLES)."""
    field = np.zeros((len(zn), ANGLES), np.float32)
    for lesion in patient.lesions:
        along = np.exp(-(((zn - lesion.height) / max(lesion.extent, 0.05)) ** 2))[:, None]
        field = np.maximum(field, _bump(THETA, lesion.angle, lesion.width / 2)[None] * along * min(1.0, lesion.outer))
    return field


def _size(patient: Patient) -> float:
    """The radius (mm) that gives the cavity below the valve plane the patient's end-diastolic volume."""
    zn = (np.arange(96, dtype=np.float32) + 0.5) / np.float32(96)
    unit, _ = _diastole(patient, zn)
    millilitres_per_mm2 = 0.5 * float((unit**2).mean()) * 2 * np.pi * patient.length_mm / 1000
    return float(np.sqrt(patient.edv_ml / millilitres_per_mm2))


def _contraction(patient: Patient, zn: Floats, phase: float, size: float) -> Floats:
    """Factor on the endocardial radius at this phase, (levels, ANGLES); scars move little, the rest makes up the volume."""
    stiff = 0.8 * scar_field(patient, zn) if patient.disease == "infarct" else np.zeros((len(zn), ANGLES), np.float32)
    levels = (np.arange(48, dtype=np.float32) + 0.5) / np.float32(48)
    unit, _ = _diastole(patient, levels)
    held = 0.8 * scar_field(patient, levels) if patient.disease == "infarct" else np.zeros_like(unit)
    wanted = (1 - patient.ejection_fraction * phase) / shortening(patient, phase) * float((unit**2).sum())
    low, high = 0.05, 1.2
    for _ in range(24):  # bisection: the volume grows with the factor
        middle = (low + high) / 2
        volume = float((unit**2 * (middle + (1 - middle) * held) ** 2).sum())
        low, high = (middle, high) if volume < wanted else (low, middle)
    factor = (low + high) / 2
    return np.asarray(factor + (1 - factor) * stiff, np.float32)


def _noise(rng: np.random.Generator, levels: Floats, smooth: float, spacing_mm: float) -> Floats:
    """Unit-variance noise over (levels, angle), smooth over `smooth` table steps and `spacing_mm` along the axis.

    It is drawn on fixed heights and interpolated, so that the same patient has the same muscle in every scan.
    """
    knots = np.arange(-30.0, 180.0, spacing_mm)
    field = ndimage.gaussian_filter1d(rng.standard_normal((len(knots), ANGLES)).astype(np.float32), smooth, axis=1, mode="wrap")
    field /= field.std()
    place = np.clip((levels - knots[0]) / spacing_mm, 0, len(knots) - 1.001)
    below = place.astype(np.intp)
    part = (place - below).astype(np.float32)[:, None]
    return np.asarray(field[below] * (1 - part) + field[below + 1] * part, np.float32)


def _left_ventricle(patient: Patient, z: Floats, phase: float) -> tuple[Floats, Floats, Floats, Floats]:
    """Normalised height (levels,), endocardium, epicardium, and how closed the wall is, each (levels, ANGLES)."""
    length = patient.length_mm * shortening(patient, phase)
    descent = patient.length_mm - length  # the valve plane moves, the apex stays
    zn = np.where(z < patient.length_mm, (z - descent) / length, 1 + (z - patient.length_mm) / patient.length_mm).astype(
        np.float32
    )
    size = _size(patient)
    unit, wall = _diastole(patient, zn)
    beyond = np.sqrt(np.clip(1 - ((z - patient.length_mm) / (0.7 * patient.wall_mm)).clip(0) ** 2, 0, 1))[:, None]
    relaxed_endo = size * unit
    # towards the tip the wall is cut obliquely and looks thicker
    relaxed_epi = (relaxed_endo + wall * (1 + 0.5 * np.clip(zn[:, None], 0, 1) ** 6)) * beyond
    endo = relaxed_endo * _contraction(patient, zn, phase, size)
    epi = np.sqrt(endo**2 + (relaxed_epi**2 - relaxed_endo**2).clip(0) * (patient.length_mm / length))
    if patient.right_heart is not None:
        endo, epi = _pressed(patient.right_heart, zn, endo, epi, phase)
    # the valve plane is tilted: the wall opens first towards the outflow tract
    height = (z - descent)[:, None] - patient.base_tilt_mm * np.cos(THETA[None] - patient.outflow_angle)
    closed = np.clip(height / 7.0 + 0.3, 0, 1)
    closed = closed * closed * (3 - 2 * closed)
    epi = endo + (epi - endo) * closed
    return zn, endo, epi, closed


SHARPNESS = 8
"""How sharply the flat septum meets the round free wall; larger is sharper (assumed)."""
BULGE_WIDTH = 0.11
"""Half extent of a bulge, as a fraction of the free wall's arc and of the cavity's length (assumed)."""


@lru_cache(maxsize=1)
def _chords() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Eccentricity of a circle cut by a chord, rising, and how far from the centre in radii that chord is."""
    chords = np.linspace(1.5, 0.05, 120)
    theta = np.linspace(0, np.pi, 721)
    found = []
    for chord in chords:
        radius = (1 + (np.clip(-np.cos(theta), 0, None) / chord) ** SHARPNESS) ** (-1 / SHARPNESS)
        x, y = radius * np.cos(theta), radius * np.sin(theta)
        across = 1 + float(radius[-1])  # from the free wall to the septum
        along = 2 * float(np.interp((1 - radius[-1]) / 2, x[::-1], y[::-1]))
        found.append(along / across)
    return np.array(found), chords


def _pressed(right: RightHeart, zn: Floats, endo: Floats, epi: Floats, phase: float) -> tuple[Floats, Floats]:
    """Endocardium and epicardium (levels, ANGLES) with the septum pressed flat; each level keeps its areas of blood and muscle.

    The eccentricity index is the diameter along the septum over the one across, each through the other's middle (Ryan et al.
    1985, J Am Coll Cardiol 5:918). From end-diastole to end-systole it goes with the stroke volume, and the tip stays round:
    both assumed.
    """
    diastole, systole = right.eccentricity
    middle = float(np.interp(diastole + (systole - diastole) * phase, *_chords()))
    chord = middle / (1.001 - np.clip(zn, 0, 1)[:, None] ** 6)
    mean = np.sqrt((endo**2).mean(axis=1, keepdims=True)).clip(1e-3)
    reach = endo / mean * np.clip(-np.cos(THETA), 0, None)[None] / chord
    pressed = endo * (1 + reach**SHARPNESS) ** (-1 / SHARPNESS)
    pressed *= mean / np.sqrt((pressed**2).mean(axis=1, keepdims=True)).clip(1e-3)
    # a wall that runs obliquely to the radius is longer along it
    slope = (np.roll(pressed, -1, axis=1) - np.roll(pressed, 1, axis=1)) / (4 * np.pi / ANGLES * pressed.clip(1.0))
    wall = (epi - endo) * np.sqrt(1 + slope**2).clip(1, 1.6)
    wall = ndimage.gaussian_filter1d(wall, 10.0, axis=1, mode="wrap")
    squared, mixed = (wall**2).mean(axis=1), (wall * pressed).mean(axis=1)
    muscle = (epi**2 - endo**2).mean(axis=1)
    share = (np.sqrt(mixed**2 + squared * muscle) - mixed) / squared.clip(1e-6)
    return np.asarray(pressed, np.float32), np.asarray(pressed + wall * share[:, None], np.float32)


def contours(patient: Patient, z_mm: npt.ArrayLike, phase: float, right_phase: float | None = None) -> Contours:
    """Contours at the heights `z_mm` (levels,) below the diastolic valve plane; phase 0 is end-diastole, 1 end-systole.

    In between it is the share of the stroke volume that has left; the right ventricle's is the left one's unless given.
    """
    z = np.asarray(z_mm, np.float32)
    rng = np.random.default_rng([patient.seed, 11])
    zn, endo, epi, closed = _left_ventricle(patient, z, phase)
    surrounded = (closed > 0.3).mean(axis=1)
    # trabeculae: muscle into the cavity, in some sectors and not in others, longer towards the apex and on the free wall
    sectors = np.clip(0.6 + 0.8 * _noise(rng, z, 40.0, 22.0), 0.05, 1.6)
    spikes = np.clip(np.abs(0.8 * _noise(rng, z, 8.0, 11.0) + 0.5 * _noise(rng, z, 3.5, 7.0)) - 0.35, 0, 1.5)
    depth = patient.trabeculation_mm * (0.30 + 0.8 * np.clip(zn, 0, 1))[:, None] * (1 + 0.3 * phase)
    depth = depth * (0.35 + 0.65 * (0.5 + 0.5 * np.cos(THETA[None] + 0.4)))
    cavity = np.maximum(endo - sectors * spikes * depth * closed, 0.3 * endo)
    beside = phase if right_phase is None else right_phase
    emptied = _emptied(patient, phase, beside)
    right, right_cavity, right_wall = _right_ventricle(patient, zn, epi, emptied, _noise(rng, z, 7.0, 9.0), beside)
    right_wall = np.maximum(right_wall, epi + 1.6 * (1 - closed))  # above the valve plane the atrium has a thin wall
    hull = np.maximum(right_wall, epi + 0.2)
    hull = np.maximum(ndimage.gaussian_filter1d(hull, 15.0, axis=1, mode="wrap"), hull)
    # fat fills the grooves (the smooth hull does that), thickens at the base, and is patchy elsewhere
    groove = 1 + 1.0 * np.clip(1 - np.abs(zn[:, None]) * 3, 0, 1)
    pad = 0.05 + 0.9 * _bump(THETA, 2.2, 0.9) + 0.5 * _bump(THETA, 4.2, 0.6)
    patches = np.clip(0.35 * pad[None] + 0.30 * _noise(rng, z, 26.0, 20.0) * (0.4 + pad[None]), 0, 2)
    fat = hull + patient.epicardial_fat_mm * patches * groove
    if patient.right_heart is not None and patient.right_heart.fat:
        fat = fat + 3.0 * _fatty(patient, zn)
    core = cavity - patient.slow_rim_mm * np.clip(0.45 + 0.35 * _noise(rng, z, 16.0, 14.0), 0, 1.3)
    core = np.maximum(core, 0.3 * cavity)
    tables = (zn, core, cavity, endo, epi, right_cavity, right, right_wall, fat, surrounded)
    return Contours(*(np.asarray(table, np.float32) for table in tables))


def _emptied(patient: Patient, phase: float, right_phase: float) -> float:
    """How wide the right ventricle's crescent is, relative to the patient's width at end-diastole.

    A sick one has a volume of its own, which the width is solved for: below the valve plane, as the mask counts it.
    """
    right = patient.right_heart
    if right is None:
        return float(1 - 0.55 * min(patient.ejection_fraction + 0.05, 0.65) * right_phase)
    length = patient.length_mm * shortening(patient, phase)
    top = -0.05
    step = (1 - top) / 64
    zn = (top + (np.arange(64, dtype=np.float32) + 0.5) * step).astype(np.float32)
    heights = (patient.length_mm - length + zn * length).astype(np.float32)
    zn, _, epi, _ = _left_ventricle(patient, heights, phase)
    crescent = _crescent(patient, zn, 1.0)
    bulge = _bulges(patient, zn, BULGE_WIDTH)
    cubic_mm = 2000 * right.edv_ml * (1 - right.ejection_fraction * right_phase) / (2 * np.pi / ANGLES * step * length)
    a, b = float((crescent**2).sum()), float((crescent * (epi + bulge)).sum())
    rest = float((bulge * (2 * epi + bulge)).sum()) - cubic_mm
    return max((float(np.sqrt(max(b**2 - a * rest, 0.0))) - b) / a, 0.1)


def _along(patient: Patient, zn: Floats) -> tuple[Floats, Floats]:
    """Where between anterior (0) and inferior insertion (1) each angle lies, and the ventricle's taper, 1 at the base."""
    height = np.clip(zn, 0, 1)[:, None]
    taper = np.sqrt(np.clip(1 - (height / patient.right_apex) ** 1.9, 0, 1))
    base = np.clip(1 - height * 1.7, 0, 1)
    above = np.clip(-zn * 4, 0, 1)[:, None]
    anterior = np.pi - (1.05 + 0.40 * base) * patient.right_span * (0.35 + 0.65 * taper)
    inferior = np.pi + (1.15 - 0.15 * above) * patient.right_span * (0.35 + 0.65 * taper)
    return np.clip((THETA[None] - anterior) / (inferior - anterior), 0, 1), taper


def _crescent(patient: Patient, zn: Floats, emptied: float) -> Floats:
    """Distance (mm) of the right free wall's inner border from the septum, (levels, ANGLES).

    A crescent on the septum between two insertion angles; it narrows towards the apex, has an acute lower margin, and leans to
    the outflow tract at the base.
    """
    height = np.clip(zn, 0, 1)[:, None]
    base = np.clip(1 - height * 1.7, 0, 1)
    above = np.clip(-zn * 4, 0, 1)[:, None]
    along, taper = _along(patient, zn)
    lean = 1 + (0.8 * base + 0.3 * above) * (0.45 - along) * patient.right_lean - 0.2 * (1 - taper)
    margin = 0.22 * np.exp(-(((along - 0.78) / 0.13) ** 2)) * (1 - 0.6 * base)
    waves = 0.06 * np.cos(5 * THETA[None] + patient.lobe_angles[0] + 2 * height) + 0.04 * np.cos(
        9 * THETA[None] + patient.lobe_angles[1]
    )
    crescent = np.power(4 * along * (1 - along), 0.72) * lean + margin * 4 * along * (1 - along)
    thickness = patient.right_width_mm * taper * emptied * crescent * (1 + waves)
    return np.where(taper > 0.12, thickness.clip(0), 0)


def _bulges(patient: Patient, zn: Floats, width: float) -> Floats:
    """The bulges' outlines, each `width` wide, in mm (levels, ANGLES); 0 at the insertions and where nothing bulges."""
    along, taper = _along(patient, zn)
    out = np.zeros(along.shape, np.float32)
    for bulge in patient.right_heart.bulges if patient.right_heart else ():
        away = ((along - bulge.along) / width) ** 2 + ((np.clip(zn, 0, 1)[:, None] - bulge.height) / width) ** 2
        out = np.maximum(out, bulge.size_mm * np.exp(-away))
    return np.asarray(np.where(taper > 0.12, out * np.clip(8 * along * (1 - along), 0, 1), 0), np.float32)


def _fatty(patient: Patient, zn: Floats) -> Floats:
    """Share of the right free wall's thickness that is fat, (levels, ANGLES): at the bulges and around them."""
    share = patient.right_heart.fat if patient.right_heart else 0.0
    return np.asarray(share * np.clip(_bulges(patient, zn, 2 * BULGE_WIDTH) / 6, 0, 1), np.float32)


def _right_ventricle(
    patient: Patient, zn: Floats, epi: Floats, emptied: float, noise: Floats, phase: float
) -> tuple[Floats, Floats, Floats]:
    """Outer border of the right-ventricular blood as drawn, as jagged tissue, and of the free wall, each (levels, ANGLES)."""
    height = np.clip(zn, 0, 1)[:, None]
    thickness = _crescent(patient, zn, emptied)
    muscle = np.full_like(thickness, patient.right_wall_mm)
    if patient.right_heart is not None:
        thickness = thickness + _bulges(patient, zn, BULGE_WIDTH)
        thicker = 1 + 0.6 * patient.right_heart.ejection_fraction * phase  # assumed: it keeps its volume, roughly
        muscle = muscle * thicker * (1 - _fatty(patient, zn))
    right = epi + thickness
    spikes = np.clip(np.abs(noise) - 0.4, 0, 1.6) * patient.trabeculation_mm * (0.5 + 1.2 * height)
    right_cavity = np.maximum(right - spikes, epi + 0.35 * thickness)
    free_wall = right + np.where(thickness > 0.2, muscle * np.clip(thickness / 4, 0.3, 1), 0)
    return right, right_cavity, free_wall
