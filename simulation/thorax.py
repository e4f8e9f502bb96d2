"""What lies around the heart: chest wall with ribs, lungs with their vessels, diaphragm, liver, stomach, spleen, great vessels.

The thorax is a body in LPS coordinates (mm), cut by the oblique plane of each slice, so that ribs and vessels get the cross
sections they have in a real short-axis view. It changes slowly along the slices and is therefore evaluated once per slice. All
sizes are plausible and assumed.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from simulation.heart import Contours
from simulation.interpolation import enlarge
from simulation.tissue import Tissue

if TYPE_CHECKING:
    from simulation.patient import Patient
    from simulation.phantom import Grid

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.uint8]

CAGE_MM = np.float32(11.5)
"""Thickness of the rib cage between muscle and pleura."""
COARSE = 33
"""Samples per side of fields that are smooth over centimetres; they are interpolated to the pixels."""


@dataclass(frozen=True, eq=False)
class Points:
    """Points of the body, every field (n,) or (H, W), in mm: where they lie, how deep, and what is smooth around them."""

    left: Floats
    posterior: Floats
    superior: Floats
    depth: Floats  # under the skin
    bone: Floats  # under the surface of the rib cage
    diaphragm: Floats  # its height here
    skin: Floats  # thickness of the fat under the skin
    muscle: Floats  # thickness of the muscle under that
    warp_x: Floats
    warp_y: Floats
    warp_z: Floats

    def at(self, where: npt.NDArray[np.intp]) -> Points:
        """The points of these flat indices."""
        return Points(*(getattr(self, field.name).ravel()[where] for field in fields(self)))


def labels(patient: Patient, grid: Grid, tables: Contours) -> Labels:
    """Tissue labels (slices, H, W) of everything but the heart on the oversampled grid."""
    lateral, anterior = grid.coordinates(grid.oversampling)
    axes = patient.frame.astype(np.float32)
    centre = grid.shifts_mm + np.array(grid.offset_mm, np.float32)  # where the body's heart place lies in the image
    third = np.abs(tables.zn - 0.3).argmin()
    dome = -0.92 * float(np.median(tables.fat[third])) - patient.dome_mm
    tree = _vessels(patient, dome)
    inplane = [lateral * axes[0, n] + anterior * axes[1, n] for n in range(3)]
    out = np.empty((len(grid.levels_mm), *lateral.shape), np.uint8)
    for k, level in enumerate(grid.levels_mm):
        along = level - 0.45 * patient.length_mm
        origin = np.array(patient.heart_place_mm, np.float32) + along * axes[2]
        origin = origin - centre[k, 0] * axes[0] - centre[k, 1] * axes[1]
        out[k] = _plane(patient, inplane[0] + origin[0], inplane[1] + origin[1], inplane[2] + origin[2], dome)
        _paint_vessels(out[k], tree, origin, axes, grid)
    return out


def _smooth_fields(patient: Patient, left: Floats, posterior: Floats, superior: Floats, dome_mm: float) -> tuple[Floats, ...]:
    """Diaphragm height, thickness of skin fat and of muscle, and three warps (mm), each (H, W), from a coarse grid.

    Coordinates are affine in the pixel, so the corners' samples carry them exactly.
    """
    rows = np.linspace(0, left.shape[0] - 1, COARSE).round().astype(int)
    columns = np.linspace(0, left.shape[1] - 1, COARSE).round().astype(int)
    x, y, z = (axis[np.ix_(rows, columns)] for axis in (left, posterior, superior))
    rng = np.random.default_rng([patient.seed, 23])
    phase = rng.uniform(0, 2 * np.pi, 12)
    half_width, half_depth = patient.torso_mm
    right_lobe = 26 * np.exp(-(((x + 72) / 62) ** 2) - ((y - 4) / 75) ** 2)
    left_lobe = 15 * np.exp(-(((x - 95) / 42) ** 2) - ((y - 22) / 70) ** 2)
    edge = np.clip((x / half_width) ** 2 + ((y - 6) / half_depth) ** 2, 0, 1) ** 2
    diaphragm = dome_mm + right_lobe + left_lobe - 75 * edge + 3 * np.sin(x / 21 + phase[0]) + 2 * np.sin(y / 17 + phase[1])
    front = np.clip(-y / half_depth, 0, 1)
    skin = patient.skin_fat_mm * (0.75 + 0.45 * front + 0.15 * np.sin(x / 31 + phase[2]) + 0.15 * np.sin(z / 43 + phase[3]))
    muscle = patient.muscle_mm * (0.7 + 0.6 * np.abs(x) / half_width * front + 0.25 * np.sin(z / 27 + phase[4]))

    def warp(n: int) -> Floats:
        a, b, c = (np.sin(axis / length + phase[n + m]) for m, (axis, length) in enumerate(((x, 14), (y, 11), (z, 12))))
        return np.asarray(5.0 * (a * b + b * c + a * c), np.float32)

    fields = (diaphragm, skin, muscle, warp(5), warp(7), warp(9))
    return tuple(enlarge(field.astype(np.float32), *left.shape) for field in fields)


def _plane(patient: Patient, left: Floats, posterior: Floats, superior: Floats, dome_mm: float) -> Labels:
    """Labels of one plane from the LPS position of its points."""
    phase = np.random.default_rng([patient.seed, 21]).uniform(0, 2 * np.pi, 8)
    half_width, half_depth = (np.float32(half) for half in patient.torso_mm)
    smooth = _smooth_fields(patient, left, posterior, superior, dome_mm)
    # the chest narrows and leans back towards the neck
    narrow = 1 / (1 - np.clip(superior, -80, 160) * np.float32(0.0016))
    x, y = left * narrow / half_width, (posterior - 6 - np.float32(0.20) * superior) * narrow / half_depth
    square_x, square_y = x * x, y * y
    square = square_x + square_y
    steep = np.sqrt(square_x / half_width**2 + square_y / half_depth**2 + np.float32(1e-12))
    depth = (np.sqrt(square) - square) / steep  # mm under the skin
    _, skin, muscle, *_ = smooth
    bone = depth - skin - muscle  # mm under the surface of the rib cage
    points = Points(left, posterior, superior, np.asarray(depth, np.float32), np.asarray(bone, np.float32), *smooth)
    out = np.full(left.shape, Tissue.AIR, np.uint8)
    wall = np.flatnonzero((depth >= 0) & (bone < CAGE_MM))
    inside = np.flatnonzero((depth >= 0) & ~(bone < CAGE_MM))
    out.ravel()[wall] = _chest_wall(patient, phase, points.at(wall))
    out.ravel()[inside] = _inside(patient, dome_mm, phase, points.at(inside))
    return out


def _inside(patient: Patient, dome_mm: float, phase: npt.NDArray[np.float64], p: Points) -> Labels:
    """Labels of points inside the rib cage: lungs, mediastinum, and the abdomen under the diaphragm."""
    out = np.full(p.left.shape, Tissue.LUNG, np.uint8)
    height = p.superior - p.diaphragm
    xw, yw = p.left + p.warp_x, p.posterior + p.warp_y
    size = patient.mediastinum
    # fat around the great vessels, a pad in front of the heart and one in the angle to the diaphragm
    waist = ((xw - 6) / (26 * size)) ** 2 + ((yw - 16 - np.float32(0.1) * p.superior) / 66) ** 2
    inward = p.bone - CAGE_MM
    pad = ((xw - 18) / (46 * size)) ** 2 + ((inward - 2) / (13 * size)) ** 2 + np.clip(yw + 20, 0, None)
    corner = (
        ((xw - 58) / 40) ** 2 + ((inward - 6) / (20 * size)) ** 2 + (height / (7 + 11 * size)) ** 2 + np.clip(yw - 20, 0, None)
    )
    out[np.minimum(np.minimum(waist, pad), corner) < 1] = Tissue.FAT
    shift_mm = float(3 * phase[4] - 9)
    trunk_mm = patient.right_heart.trunk_mm if patient.right_heart else 26.0
    _great_vessels(out, p.left, p.posterior, p.superior, shift_mm, trunk_mm / 2)
    under = np.flatnonzero(height < 0)
    if under.size:
        out[under] = _abdomen(patient, xw[under], yw[under], p.superior[under] + p.warp_z[under], height[under], dome_mm, phase)
    out[np.abs(height) < 1.0] = Tissue.MUSCLE
    _descending(out, p.left, p.posterior, shift_mm)
    return out


def _chest_wall(patient: Patient, phase: npt.NDArray[np.float64], p: Points) -> Labels:
    """Labels of points between skin and pleura: ribs with marrow, muscle in layers, fat, breastbone and spine."""
    out = np.full(p.left.shape, Tissue.MUSCLE, np.uint8)
    out[p.bone > CAGE_MM - 0.8 - np.float32(0.06) * p.skin] = Tissue.FAT  # extrapleural fat
    run = (p.superior - np.float32(0.42) * p.posterior + np.float32(0.04) * p.left + 12 * phase[5]) / patient.rib_spacing_mm
    run = run.astype(np.float32)
    beside = np.abs(run - np.floor(run) - np.float32(0.5)) * np.float32(patient.rib_spacing_mm)
    rib = (beside / 6.8) ** 2 + ((p.bone - 5.2) / 4.6) ** 2
    out[(rib < 1.35) & (p.bone > 0)] = Tissue.FAT
    out[rib < 1] = Tissue.CORTEX
    out[rib < 0.62] = Tissue.MARROW
    outer = p.bone < 0
    out[outer] = Tissue.MUSCLE
    out[outer & (np.abs(p.bone + np.float32(0.55) * p.muscle + np.float32(0.15) * p.warp_z) < 0.8)] = Tissue.FAT  # fascia
    breastbone = (p.left / 17) ** 2 + ((p.bone - 5) / 6) ** 2 + np.clip(p.posterior, 0, None)
    out[breastbone < 1] = Tissue.CORTEX
    out[breastbone < 0.7] = Tissue.MARROW
    spine = (p.left / 1.15) ** 2 + (p.posterior - np.float32(0.72 * patient.torso_mm[1])) ** 2
    out[spine < 17.0**2] = Tissue.CORTEX
    out[spine < 15.2**2] = Tissue.MARROW
    out[p.depth < p.skin] = Tissue.FAT
    out[p.depth < 1.2] = Tissue.MUSCLE  # skin
    if patient.sternotomy:  # steel wires destroy the signal around them
        wire = np.abs(run * 0.8 - np.floor(run * 0.8) - 0.5) * patient.rib_spacing_mm / 0.8
        lost = (
            ((p.left + 0.3 * p.warp_x) / 15) ** 2 + ((p.bone - 5) / 15) ** 2 + (wire / 10) ** 2 + np.clip(p.posterior, 0, None)
        )
        out[(lost < 1 + 0.08 * p.warp_y) & (lost > 0.45)] = Tissue.FAT
        out[lost < 0.8 + 0.08 * p.warp_z] = Tissue.AIR
    return out


def _vessel(out: Labels, distance_squared: Floats, radius: float, blood: Tissue) -> None:
    out[distance_squared < (radius + 1.4) ** 2] = Tissue.CORTEX
    out[distance_squared < radius**2] = blood


def _great_vessels(
    out: Labels, left: Floats, posterior: Floats, superior: Floats, shift_mm: float, trunk_radius: float
) -> None:
    """Vena cava, ascending aorta, pulmonary trunk and its left branch, all above the level of the heart's middle.

    A wide trunk lies further left of the aorta, and its branch is wide with it.
    """
    above = superior > 18
    if above.any():
        x, y, z = left[above], posterior[above], superior[above]
        part = out[above]
        _vessel(part, (x + 27) ** 2 + (y - 2) ** 2, 9.5, Tissue.RIGHT_BLOOD)
        _vessel(
            part,
            (y - 22) ** 2 + (z - 52 - 0.15 * x) ** 2 + np.clip(12 - x, 0, None) ** 2 + np.clip(x - 70, 0, None) ** 2,
            9.5 * trunk_radius / 13.0,
            Tissue.RIGHT_BLOOD,
        )
        _vessel(part, (x - 2 - shift_mm) ** 2 + (y + 12 - 0.1 * z) ** 2, 15.5, Tissue.BLOOD)
        _vessel(
            part,
            (x - (14 + trunk_radius) - shift_mm) ** 2 + (y + 22 - 0.5 * (z - 20)) ** 2 + np.clip(z - 60, 0, None) ** 2,
            trunk_radius,
            Tissue.RIGHT_BLOOD,
        )
        out[above] = part


def _descending(out: Labels, left: Floats, posterior: Floats, shift_mm: float) -> None:
    """Descending aorta, oesophagus and lower vena cava, which pass the diaphragm."""
    _vessel(out, (left - 26 - shift_mm) ** 2 + (posterior - 56) ** 2, 11.5, Tissue.BLOOD)
    _vessel(out, ((left + 26) ** 2 + (posterior - 14) ** 2), 11.0, Tissue.RIGHT_BLOOD)
    out[(left - 8) ** 2 + (posterior - 46) ** 2 < 36] = Tissue.MUSCLE


def _abdomen(
    patient: Patient,
    left: Floats,
    posterior: Floats,
    superior: Floats,
    height: Floats,
    dome_mm: float,
    phase: npt.NDArray[np.float64],
) -> Labels:
    """Labels of points (n,) below the diaphragm."""
    out = np.full(left.shape, Tissue.FAT, np.uint8)
    loops = np.sin(left / 10.5 + phase[6]) + np.sin(superior / 11.5 + phase[7]) + np.sin(posterior / 13 + phase[0])
    out[loops > 0.6] = Tissue.MUSCLE
    out[loops > 0.9] = Tissue.STOMACH
    out[loops > 1.9] = Tissue.AIR
    stomach = np.sqrt(((left - 74) / 40) ** 2 + ((posterior + 4) / 46) ** 2 + ((superior - dome_mm + 40) / 36) ** 2)
    out[stomach < 1] = Tissue.MUSCLE
    inside = stomach < 0.9
    out[inside] = Tissue.STOMACH if phase[3] > 2 else Tissue.FAT
    out[inside & (posterior < -8 + 14 * np.sin(phase[4]))] = Tissue.AIR if phase[5] > 1.5 else Tissue.STOMACH
    spleen = ((left - 106) / 27) ** 2 + ((posterior - 46) / 40) ** 2 + ((superior - dome_mm + 30) / 38) ** 2
    out[spleen < 1] = Tissue.SPLEEN
    # the left lobe of the liver thins out to a wedge under the heart
    tip = 52 + 22 * np.sin(phase[1])
    wedge = np.clip((tip - left) / 70, 0, 3)
    thick = 14 + 95 * wedge * wedge - 0.25 * (posterior + 20)
    out[(left < tip) & (height > -thick) & (height < -1.0 - 3.0 * np.clip(left / 40, 0, 1.2))] = Tissue.LIVER
    out[(height > -3.0) & (left > tip)] = Tissue.FAT
    return out


@lru_cache(maxsize=4)
def _tree(seed: int, dome_mm: float) -> Floats:
    rng = np.random.default_rng([seed, 22])
    trees = []
    organs = (((56, 20, 26), 20, 3.4, 0), ((-46, 16, 26), 14, 3.4, 0), ((-45, 5, dome_mm - 45), 9, 4.0, 1))
    for place, roots, radius, organ in organs:
        start = np.repeat(np.array([place], np.float32), roots, axis=0) + rng.normal(0, 6, (roots, 3)).astype(np.float32)
        course = rng.normal(0, 1, (roots, 3)).astype(np.float32)
        size = np.full(roots, radius, np.float32) * rng.uniform(0.5, 1.1, roots).astype(np.float32)
        for _ in range(5):
            course /= np.linalg.norm(course, axis=1, keepdims=True)
            length = rng.uniform(12, 28, len(start)).astype(np.float32)
            steps = np.linspace(0, 1, 18, dtype=np.float32)
            points = start[:, None] + course[:, None] * (length[:, None] * steps)[..., None]
            widths = size[:, None] * (1 - 0.25 * steps)
            kind = np.full(widths.shape, organ, np.float32)
            trees.append(np.concatenate([points, widths[..., None], kind[..., None]], axis=2).reshape(-1, 5))
            start = np.repeat(points[:, -1], 2, axis=0)
            course = np.repeat(course, 2, axis=0) + rng.normal(0, 0.5, (len(start), 3)).astype(np.float32)
            size = np.repeat(size * 0.76, 2) * rng.uniform(0.7, 1.05, len(start)).astype(np.float32)
    return np.concatenate(trees).astype(np.float32)


def _vessels(patient: Patient, dome_mm: float) -> Floats:
    """Centre-line points of branching vessels, (n, 5): LPS position, radius (mm), 0 for the lungs and 1 for the liver."""
    return _tree(patient.seed, round(dome_mm, 3))


def _along(points: Floats, axis: Floats) -> Floats:
    """Component (n,) of points (n, 3) along a unit vector."""
    return np.asarray(points[:, 0] * axis[0] + points[:, 1] * axis[1] + points[:, 2] * axis[2], np.float32)


def _paint_vessels(out: Labels, tree: Floats, origin: Floats, axes: Floats, grid: Grid) -> None:
    """Draw the vessels that one slice (H, W) cuts, in place, only over lung and liver."""
    near = np.flatnonzero(np.abs(_along(tree[:, :3] - origin, axes[2])) < 0.33 * grid.thickness_mm)
    away, radius, organ = tree[near, :3] - origin, tree[near, 3], tree[near, 4]
    row, column = grid.pixel_of(_along(away, axes[0]), _along(away, axes[1]), grid.oversampling)
    step = grid.pixel_mm / grid.oversampling
    reach = int(np.ceil(4.0 / step))
    offsets = np.stack(np.meshgrid(np.arange(-reach, reach + 1), np.arange(-reach, reach + 1), indexing="ij"), -1).reshape(
        -1, 2
    )
    rows = np.rint(row).astype(np.intp)[:, None] + offsets[None, :, 0]
    columns = np.rint(column).astype(np.intp)[:, None] + offsets[None, :, 1]
    inside = (offsets**2).sum(1)[None] * np.float32(step * step) <= (radius**2)[:, None]
    inside &= (rows >= 0) & (rows < out.shape[0]) & (columns >= 0) & (columns < out.shape[1])
    which, spot = np.nonzero(inside)
    rows, columns = rows[which, spot], columns[which, spot]
    host = out[rows, columns]
    thick = radius[which] > 1.6
    fits = ((host == Tissue.LUNG) & (organ[which] == 0)) | ((host == Tissue.LIVER) & (organ[which] == 1))
    for kind, blood in ((False, Tissue.SMALL_VESSEL), (True, Tissue.RIGHT_BLOOD)):  # thick vessels last, so that they win
        chosen = fits & (thick == kind)
        out[rows[chosen], columns[chosen]] = blood
