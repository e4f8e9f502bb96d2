"""What lies around the heart: chest wall with ribs, lungs with their vessels, diaphragm, liver, stomach, spleen, great vessels.

The thorax is a body in LPS coordinates (mm), cut by the oblique plane of each slice, so that ribs and vessels get the cross sections
they have in a real short-axis view. It changes slowly along the slices and is therefore evaluated once per slice. All sizes are
plausible and assumed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from simulation.heart import Contours
from simulation.tissue import Tissue

if TYPE_CHECKING:
    from simulation.phantom import Grid, Patient

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.uint8]


def labels(patient: Patient, grid: Grid, tables: Contours) -> Labels:
    """Tissue labels (slices, H, W) of everything but the heart on the oversampled grid."""
    lateral, anterior = grid.coordinates(grid.oversampling)
    axes = patient.frame.astype(np.float32)
    centre = grid.shifts_mm + np.array(grid.offset_mm, np.float32)  # where the body's heart place lies in the image
    below = float(np.median(tables.fat[tables.zn.argsort()[len(tables.zn) // 3]])) + patient.dome_mm  # radius at about a third
    inplane = [lateral * axes[0, n] + anterior * axes[1, n] for n in range(3)]
    dome = -below * 0.9
    tree = _vessels(patient, dome)
    out = np.empty((len(grid.levels_mm), *lateral.shape), np.uint8)
    for k, level in enumerate(grid.levels_mm):
        along = level - 0.45 * patient.length_mm
        origin = np.array(patient.heart_place_mm, np.float32) + along * axes[2]
        origin = origin - centre[k, 0] * axes[0] - centre[k, 1] * axes[1]
        out[k] = _plane(patient, inplane[0] + origin[0], inplane[1] + origin[1], inplane[2] + origin[2], dome)
        _paint_vessels(out[k], tree, origin, axes, grid)
    return out


def _plane(patient: Patient, left: Floats, posterior: Floats, superior: Floats, dome_mm: float) -> Labels:
    """Labels of one plane from the LPS position of its points."""
    rng = np.random.default_rng([patient.seed, 21])
    phase = rng.uniform(0, 2 * np.pi, 8)
    half_width, half_depth = patient.torso_mm
    x, y = left / half_width, (posterior - 6) / half_depth
    e = np.sqrt(x * x + y * y) + np.float32(1e-4)
    slope = np.sqrt((x / half_width) ** 2 + (y / half_depth) ** 2) / e
    depth = (1 - e) / slope  # mm under the skin
    front = np.clip(-y / e, 0, 1)
    skin = patient.skin_fat_mm * (0.75 + 0.4 * front + 0.15 * np.sin(left / 31 + phase[0]))
    muscle = patient.muscle_mm * (0.7 + 0.5 * np.abs(x) / e * front + 0.2 * np.sin(superior / 27 + phase[1]))
    bone = depth - skin - muscle  # mm under the surface of the rib cage
    cage = np.float32(12.0)

    # the cavity of the chest and what the diaphragm separates
    lobes = 24 * np.exp(-(((left + 72) / 62) ** 2) - ((posterior - 4) / 75) ** 2) + 15 * np.exp(
        -(((left - 92) / 42) ** 2) - ((posterior - 22) / 70) ** 2
    )
    edge = np.clip(e * e * e * e, 0, 1)
    height = superior - (dome_mm + lobes - 75 * edge * edge + 2.5 * np.sin(left / 19 + phase[2]))
    out = np.full(left.shape, Tissue.LUNG, np.uint8)

    # mediastinum: fat with vessels behind and to the right of the heart, and a fat pad in front
    waist = ((left - 8) / (36 * patient.mediastinum)) ** 2 + ((posterior - 14) / 88) ** 2
    pad = ((left - 18) / (52 * patient.mediastinum)) ** 2 + ((posterior + half_depth * 0.80) / (24 * patient.mediastinum)) ** 2
    pad_low = (
        ((left - 62) / 34) ** 2
        + ((posterior + half_depth * 0.62) / 26) ** 2
        + ((height - 4) / (9 + 8 * patient.mediastinum)) ** 2
    )
    out[(waist < 1 + 0.12 * np.sin(superior / 9 + phase[3])) | (pad < 1) | (pad_low < 1)] = Tissue.FAT

    under = height < 0
    abdomen = out[under]
    if abdomen.size:
        abdomen[:] = _abdomen(patient, left[under], posterior[under], superior[under], height[under], dome_mm, phase)
        out[under] = abdomen
    out[np.abs(height) < 1.1] = Tissue.MUSCLE

    def disc(centre_left: float, centre_posterior: float, radius: float) -> Floats:
        return np.asarray(np.hypot(left - centre_left, posterior - centre_posterior) - radius, np.float32)

    aorta = disc(26 + 3 * phase[4] - 9, 58, 11.5)
    out[aorta < 1.6] = Tissue.CORTEX
    out[aorta < 0] = Tissue.BLOOD
    cava = disc(-26, 12, 11)
    out[(cava < 0)] = Tissue.RIGHT_BLOOD
    out[disc(10, 52, 6) < 0] = Tissue.MUSCLE  # oesophagus

    # wall of the chest, from the inside out
    wall = bone < cage
    out[wall] = Tissue.MUSCLE
    out[wall & (bone > cage - 2.2)] = Tissue.FAT  # extrapleural fat
    run = (superior - 0.42 * posterior + 0.04 * left + 12 * phase[5]) / patient.rib_spacing_mm
    beside = (np.abs(run - np.floor(run) - 0.5)) * patient.rib_spacing_mm
    rib = (beside / 6.8) ** 2 + ((bone - 5.2) / 4.6) ** 2
    out[wall & (rib < 1.35) & (bone > 0)] = Tissue.FAT
    out[rib < 1] = Tissue.CORTEX
    out[rib < 0.62] = Tissue.MARROW
    breastbone = (left / 17) ** 2 + ((bone - 5) / 6) ** 2
    ahead = posterior < 0
    out[ahead & (breastbone < 1)] = Tissue.CORTEX
    out[ahead & (breastbone < 0.7)] = Tissue.MARROW
    spine = np.hypot(left / 1.15, posterior - half_depth * 0.72) - 17
    out[spine < 0] = Tissue.CORTEX
    out[spine < -1.8] = Tissue.MARROW
    out[bone < 0] = Tissue.MUSCLE
    split = np.abs(bone + 0.55 * muscle) < 0.9
    out[(bone < 0) & split] = Tissue.FAT  # fascia between the layers of muscle
    out[depth < skin] = Tissue.FAT
    out[depth < 1.6] = Tissue.MUSCLE  # skin
    out[depth < 0] = Tissue.AIR
    return out


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
    loops = (
        np.sin(left / 8.5 + phase[6] + 0.8 * np.sin(superior / 15))
        + np.sin(superior / 9.5 + phase[7])
        + np.sin(posterior / 11 + phase[0])
    )
    out[loops > 0.7] = Tissue.STOMACH
    out[loops > 1.9] = Tissue.AIR
    reach = 26 + 9 * np.sin(phase[1]) - 0.22 * (posterior + 30) + 0.10 * (superior - dome_mm)
    out[left < reach] = Tissue.LIVER
    stomach = np.sqrt(((left - 74) / 40) ** 2 + ((posterior + 4) / 46) ** 2 + ((superior - dome_mm + 40) / 36) ** 2)
    stomach += 0.05 * np.sin(left / 6 + phase[2]) * np.sin(superior / 7)
    out[stomach < 1] = Tissue.MUSCLE
    inside = stomach < 0.9
    out[inside] = Tissue.STOMACH if phase[3] > 2 else Tissue.FAT
    out[inside & (posterior < -8 + 14 * np.sin(phase[4]) + 2 * np.sin(left / 5))] = (
        Tissue.AIR if phase[5] > 1.5 else Tissue.STOMACH
    )
    spleen = ((left - 106) / 27) ** 2 + ((posterior - 46) / 40) ** 2 + ((superior - dome_mm + 30) / 38) ** 2
    out[spleen < 1] = Tissue.SPLEEN
    out[(height > -3.5) & (left > 10)] = Tissue.FAT
    return out


def _vessels(patient: Patient, dome_mm: float) -> Floats:
    """Centre-line points of branching vessels, (n, 5): LPS position, radius (mm), 0 for the lungs and 1 for the liver."""
    rng = np.random.default_rng([patient.seed, 22])
    trees = []
    for place, roots, radius, organ in (
        ((58, 22, 30), 9, 4.5, 0),
        ((-48, 18, 30), 9, 4.5, 0),
        ((-45, 5, dome_mm - 45), 8, 4.0, 1),
    ):
        start = np.repeat(np.array([place], np.float32), roots, axis=0) + rng.normal(0, 6, (roots, 3)).astype(np.float32)
        course = rng.normal(0, 1, (roots, 3)).astype(np.float32)
        size = np.full(roots, radius, np.float32) * rng.uniform(0.6, 1.1, roots).astype(np.float32)
        for _ in range(5):
            course /= np.linalg.norm(course, axis=1, keepdims=True)
            length = rng.uniform(16, 34, len(start)).astype(np.float32)
            steps = np.linspace(0, 1, 22, dtype=np.float32)
            points = start[:, None] + course[:, None] * (length[:, None] * steps)[..., None]
            widths = size[:, None] * (1 - 0.3 * steps)
            kind = np.full(widths.shape, organ, np.float32)
            trees.append(np.concatenate([points, widths[..., None], kind[..., None]], axis=2).reshape(-1, 5))
            start = np.repeat(points[:, -1], 2, axis=0)
            course = np.repeat(course, 2, axis=0) + rng.normal(0, 0.45, (len(start), 3)).astype(np.float32)
            size = np.repeat(size * 0.72, 2) * rng.uniform(0.75, 1.05, len(start)).astype(np.float32)
    return np.concatenate(trees).astype(np.float32)


def _paint_vessels(out: Labels, tree: Floats, origin: Floats, axes: Floats, grid: Grid) -> None:
    """Draw the vessels that one slice (H, W) cuts, in place, only over lung and liver."""
    away = tree[:, :3] - origin
    near = np.abs(away @ axes[2]) < 0.35 * grid.thickness_mm
    away, radius, organ = away[near], tree[near, 3], tree[near, 4]
    row, column = grid.pixel_of(away @ axes[0], away @ axes[1], grid.oversampling)
    step = grid.pixel_mm / grid.oversampling
    reach = int(np.ceil(4.8 / step))
    offsets = np.stack(np.meshgrid(np.arange(-reach, reach + 1), np.arange(-reach, reach + 1), indexing="ij"), -1).reshape(
        -1, 2
    )
    rows = np.rint(row).astype(np.intp)[:, None] + offsets[None, :, 0]
    columns = np.rint(column).astype(np.intp)[:, None] + offsets[None, :, 1]
    inside = (offsets**2).sum(1)[None] * np.float32(step * step) < (radius**2)[:, None]
    inside &= (rows >= 0) & (rows < out.shape[0]) & (columns >= 0) & (columns < out.shape[1])
    which, spot = np.nonzero(inside)
    rows, columns = rows[which, spot], columns[which, spot]
    host = out[rows, columns]
    new = np.where(radius[which] > 1.7, np.uint8(Tissue.RIGHT_BLOOD), np.uint8(Tissue.SMALL_VESSEL))
    fits = (host == Tissue.LUNG) & (organ[which] == 0) | (host == Tissue.LIVER) & (organ[which] == 1)
    order = np.argsort(new[fits], kind="stable")[::-1]  # thick vessels last, so that they win
    out[rows[fits][order], columns[fits][order]] = new[fits][order]
