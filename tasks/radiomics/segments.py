"""The 17 segments of the left ventricle (American Heart Association), found from a mask and where it lies in the patient.

Rings and their numbers follow Cerqueira et al. 2002, Circulation 105:539: basal, mid and apical thirds of the cavity's length
and the cap beyond it; six, six, four and one segment, counted from the anterior wall towards the septum. The septum is where
the right ventricle borders the wall. What a stack of thick slices does not show is estimated: the tip of the cavity lies
between two slices, and the valve plane above the first slice that muscle surrounds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from tasks.case import UNKNOWN

BLOOD_POOL, MYOCARDIUM, RIGHT_VENTRICLE = 1, 2, 3

TOWARDS_APEX = np.array([0.62, -0.67, -0.42])
"""Where the apex lies in most people, seen from the valves (LPS): left, in front and below."""
CONTACT_MM = 2.5
"""Right-ventricular blood this near to the wall borders it: half a pixel, and a thin gap between two contours."""

# The constants below were fitted to 30 generated patients whose anatomy is known (`simulation.heart`), and tested on others.
VALVE_MM = (-3.0, 11.8)
"""The valve plane lies a + b * (wall area in the first ring slice / mean of the next two) above the first ring slice.

The plane is tilted, so the ring opens little by little towards it: a ring that is half as strong as the next is near the plane.
"""
VALVE_SD_MM = 1.3
"""How far off that is."""
BLUNTNESS = (2.4, 0.3)
"""Mean and spread of p in: area of the cavity at height h = area at the base * (1 - h ** p). 2 is an ellipsoid."""
AREA_SD = 0.03
"""How far cavities leave that curve, as a part of their largest area."""
SEPTUM = (0.524, 0.145)
"""Mid septum as a part of the way from the inferior to the anterior insertion: a - b * (0.6 - h) at heights h below 0.6.

Towards the base the right ventricle reaches over to the outflow tract, so the middle of its arc lies anterior to the septum's.
"""
SEPTAL_HEIGHTS = (0.1, 0.8)
"""Insertions are looked for between these heights: above, the wall is open towards the outflow tract; below, the arc ends."""

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class _Frame:
    """How the slices lie, in coordinates of their plane (mm) whose third axis points from slice 0 to the last slice."""

    across: Floats  # (2,): one step along the columns
    down: Floats  # (2,): one step along the rows
    step: float  # mm from slice to slice
    normal: Floats  # (3,): the third axis in LPS

    @classmethod
    def of(cls, affine: Floats) -> _Frame:
        column, row, ahead = affine[:3, 2], affine[:3, 1], affine[:3, 0]
        normal = np.cross(column, row)
        normal = normal / np.linalg.norm(normal)
        if normal @ ahead < 0:
            normal = -normal
        first = column / np.linalg.norm(column)
        second = np.cross(normal, first)
        return cls(
            np.array([column @ first, column @ second]), np.array([row @ first, row @ second]), float(normal @ ahead), normal
        )

    @property
    def pixel_mm2(self) -> float:
        return float(abs(self.across[0] * self.down[1] - self.across[1] * self.down[0]))

    def place(self, inside: npt.NDArray[np.bool_]) -> Floats:
        """Where the pixels of a slice (rows, columns) that are true lie, (n, 2) mm."""
        rows, columns = np.nonzero(inside)
        return np.asarray(rows[:, None] * self.down + columns[:, None] * self.across, np.float64)

    def distance(self, outside: npt.NDArray[np.bool_]) -> Floats:
        """Distance of each pixel that is true to the nearest that is not, mm."""
        spacing = (float(np.linalg.norm(self.down)), float(np.linalg.norm(self.across)))
        return np.asarray(ndimage.distance_transform_edt(outside, sampling=spacing), np.float64)


@dataclass(frozen=True, eq=False)
class _Slice:
    """One short-axis slice. Areas in mm2; places in mm within the plane."""

    pool: float
    wall: float
    centre: Floats | None  # (2,): middle of the cavity, None without one
    surrounded: float  # part of the cavity's rim that is muscle, 0 without a cavity
    contact: Floats  # (n, 2): right-ventricular blood that borders the wall

    @property
    def ring(self) -> bool:
        """Whether muscle surrounds more than half of a cavity: a slice that readers count as ventricle."""
        return self.surrounded > 0.5


def aha_segments(mask: Labels, affine: Floats) -> Labels:
    """Segment 1..17 of every myocardial voxel, 0 elsewhere, in the shape of `mask` (slices, rows, columns).

    `mask` holds 1 left-ventricular blood pool, 2 myocardium, 3 right-ventricular blood pool, 255 unknown (no segment);
    `affine` (4, 4) takes the index (slice, row, column, 1) to LPS millimetres. Either end of the stack may be the base. A stack
    that ends before the tip of the cavity has no segment 17. Raises `ValueError` when the mask lacks a structure, has too few
    slices, or contradicts the affine about where the apex is.

    On generated patients 97 % of the voxels are right in the mean. The rest is mostly whole slices near the border of two
    thirds, which a stack 5 to 14 mm apart leaves in doubt.
    """
    _check(mask, affine)
    frame = _Frame.of(affine)
    looked = [_look(labels, frame) for labels in mask]
    rings = sum(one.ring for one in looked)
    if rings < 3:
        raise ValueError(f"muscle surrounds a cavity in {rings} slices; base, mid and apex need three such slices at least")
    apical = _apical(mask, frame)  # 1: the last slice is at the apex, -1: slice 0 is
    stack = looked[::apical]
    heights = _heights(stack, frame.step)
    septum = _septum(stack, heights, apical)
    hollow = [one.centre for one in stack if one.centre is not None]
    out = np.zeros(mask.shape, np.uint8)
    for labels, numbers, one, height in zip(mask[::apical], out[::apical], stack, heights, strict=True):
        wall = labels == MYOCARDIUM
        if height >= 1:
            numbers[wall] = 17
        elif wall.any():
            centre = hollow[0] if one.centre is None else one.centre  # muscle above the cavity's first slice
            degrees = np.rad2deg(_angles(frame.place(wall) - centre, apical) - septum) + 180
            numbers[wall] = _number(degrees % 360, height)
    return out


def _angles(place: Floats, apical: int) -> Floats:
    """Angle of places (n, 2) around the long axis in radians, growing from the lateral to the anterior wall to the septum.

    Lateral, anterior and apical are a right-handed frame, so this is the plane's own sense if its third axis is apical.
    """
    return np.asarray(np.arctan2(place[:, 1] * apical, place[:, 0]), np.float64)


def _number(degrees: Floats, height: float) -> Labels:
    """Segment at each angle (n,), 0 lateral, 90 anterior, 180 septal, 270 inferior, above the tip of the cavity."""
    if height >= 2 / 3:
        return np.asarray((degrees - 45) // 90 % 4 + 13, np.uint8)
    return np.asarray((degrees - 60) // 60 % 6 + (1 if height < 1 / 3 else 7), np.uint8)


def _check(mask: npt.NDArray[np.uint8], affine: npt.NDArray[np.float64]) -> None:
    if mask.ndim != 3:
        raise ValueError(f"a mask has three axes (slices, rows, columns); this one has shape {mask.shape}")
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise ValueError(f"the affine must be a finite 4 x 4 matrix that can be inverted, not {affine.tolist()}")
    present = set(np.unique(mask).tolist())
    strange = sorted(present - {0, BLOOD_POOL, MYOCARDIUM, RIGHT_VENTRICLE, UNKNOWN})
    if strange:
        raise ValueError(f"the mask has labels {strange}; known are 1 blood pool, 2 myocardium, 3 right ventricle, 255 unknown")
    if MYOCARDIUM not in present:
        raise ValueError("the mask has no myocardium (label 2), so there is nothing to divide into segments")
    if BLOOD_POOL not in present:
        raise ValueError("the mask has no left-ventricular blood pool (label 1), so the long axis can't be found")
    if RIGHT_VENTRICLE not in present:
        raise ValueError("the mask has no right ventricle (label 3), so the septum can't be found")


def _apical(mask: Labels, frame: _Frame) -> int:
    """1 if the slices run from base to apex, -1 if from apex to base: towards it, the ventricles shrink."""
    area = np.isin(mask, (BLOOD_POOL, RIGHT_VENTRICLE)).sum(axis=(1, 2)).astype(np.float64)
    heart = np.flatnonzero((area > 0) | (mask == MYOCARDIUM).any(axis=(1, 2)))
    middle = (heart[0] + heart[-1]) / 2
    shrinks = float((area * (middle - np.arange(len(mask)))).sum())
    leads = float(frame.normal @ TOWARDS_APEX)
    if shrinks == 0:
        raise ValueError("the ventricles are as large at one end of the stack as at the other, so base and apex can't be told")
    if shrinks * leads < 0 and abs(leads) > 0.5:
        raise ValueError(
            "mask and affine contradict each other: the ventricles shrink towards the "
            f"{'last' if shrinks > 0 else 'first'} slice, which the affine places on the side of the heart's base; "
            "with a mirrored affine, anterior and inferior walls would be confused"
        )
    return 1 if shrinks > 0 else -1


def _look(labels: Labels, frame: _Frame) -> _Slice:
    """Measure one slice (rows, columns)."""
    pool, wall, right = _largest(labels == BLOOD_POOL), labels == MYOCARDIUM, _largest(labels == RIGHT_VENTRICLE)
    rim = ndimage.binary_dilation(pool) & ~pool
    surrounded = float(wall[rim].mean()) if rim.any() else 0.0
    if surrounded < 0.2:  # a stray patch, or the atrium: it says nothing about the ventricle's cavity
        pool = np.zeros_like(pool)
    contact = right & (frame.distance(~wall) < CONTACT_MM) if wall.any() else np.zeros_like(right)
    return _Slice(
        pool=float(pool.sum()) * frame.pixel_mm2,
        wall=float(wall.sum()) * frame.pixel_mm2,
        centre=frame.place(pool).mean(axis=0) if pool.any() else None,
        surrounded=surrounded,
        contact=frame.place(contact),
    )


def _largest(inside: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The largest connected part: stray pixels of a model's mask would move centres and insertions."""
    parts, count = ndimage.label(inside)
    if count < 2:
        return inside
    return np.asarray(parts == 1 + int(np.argmax(np.bincount(parts.ravel())[1:])), np.bool_)


def _heights(stack: list[_Slice], step: float) -> list[float]:
    """Height of each slice, base first: 0 at the valve plane, 1 at the tip of the cavity.

    How the cavity's area falls from slice to slice tells where it ends and, less surely, where it begins; how open the first
    ring is tells that too. Both are weighed over a grid of valve planes, lengths and shapes, and the mean is taken.
    """
    rings = [k for k, one in enumerate(stack) if one.ring]
    first, last = rings[0], max(k for k, one in enumerate(stack) if one.centre is not None)
    area = np.array([one.pool for one in stack[first : last + 1]])
    strength = stack[first].wall / float(np.mean([stack[k].wall for k in rings[1:3]]))
    expected = VALVE_MM[0] + VALVE_MM[1] * float(np.clip(strength, 0.3, 1.2))
    # axes of the grid: valve plane (mm above the first ring), tip (mm below it), bluntness, slice
    valve = np.linspace(0, max(step, 8.0) + 2, 25)[:, None, None, None]
    tip = (last - first + np.arange(0.005, 1.5, 1 / 24))[None, :, None, None] * step
    blunt = BLUNTNESS[0] + BLUNTNESS[1] * np.linspace(-2, 2, 9)[None, None, :, None]
    shape = 1 - ((np.arange(len(area)) * step + valve) / (tip + valve)).clip(0, 1) ** blunt
    size = (shape * area).sum(-1, keepdims=True) / (shape**2).sum(-1, keepdims=True)
    cost = (((shape * size - area) / (AREA_SD * area.max())) ** 2).sum(-1, keepdims=True)
    cost = cost + ((valve - expected) / VALVE_SD_MM) ** 2 + ((blunt - BLUNTNESS[0]) / BLUNTNESS[1]) ** 2
    weight = np.exp(-(cost - cost.min()) / 2)
    weight = weight / weight.sum()
    above, below = float((weight * valve).sum()), float((weight * tip).sum())
    heights = [((k - first) * step + above) / (below + above) for k in range(len(stack))]
    return [max(height, 1.0) if k > last else height for k, height in enumerate(heights)]  # without a cavity: the cap


def _septum(stack: list[_Slice], heights: list[float], apical: int) -> float:
    """Angle (radians) of the middle of the septum, one for the whole heart: mean over slices, wide arcs count more."""
    total = 0j
    for one, height in zip(stack, heights, strict=True):
        if one.centre is None or len(one.contact) < 2 or not SEPTAL_HEIGHTS[0] < height < SEPTAL_HEIGHTS[1]:
            continue
        angle = np.sort(_angles(one.contact - one.centre, apical))
        gaps = np.diff(angle, append=angle[0] + 2 * np.pi)
        widest = int(np.argmax(gaps))
        width = 2 * np.pi - float(gaps[widest])
        part = SEPTUM[0] - SEPTUM[1] * max(0.0, 0.6 - height)
        # the arc begins at the anterior insertion, behind the widest gap, and runs on to the inferior one
        total += width * np.exp(1j * (angle[widest] - part * width))
    if total == 0:
        raise ValueError("the right ventricle borders the wall in no slice between base and apex, so the septum can't be found")
    return float(np.angle(total))
