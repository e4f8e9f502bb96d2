"""A piece of lung that doesn't exist, with one nodule in it: what is drawn by seed, in millimetres from the nodule's centre.

Directions are (superior, posterior, left), the order of the axes of an axial stack. `draw_lung` draws who it is and what is
where; `simulation.lung_tree` grows the vessels and airways, `simulation.lung_tissue` says how dense each place is and
`simulation.lung_scan` makes CT images of it.

Kinds of nodules and what they look like follow the Fleischner Society's words (Hansell et al. 2008, Radiology 246:697) and
Chu et al. 2019 (BMC Cancer 19:1060: lobulation, spiculation and pleural retraction become more frequent with size). Their
shares, sizes and shapes are assumed; no real CT was looked at.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Vector = tuple[float, float, float]
Kind = Literal["solid", "part-solid", "ground-glass"]
Attachment = Literal["none", "pleura", "vessel", "fissure"]
KINDS: tuple[Kind, ...] = ("solid", "part-solid", "ground-glass")
KIND_SHARES = (0.6, 0.2, 0.2)
ATTACHMENTS: tuple[Attachment, ...] = ("none", "pleura", "vessel", "fissure")
ATTACHMENT_SHARES = (0.4, 0.28, 0.22, 0.1)
"""More of the rare and of the hard ones than any clinic sees: a network that has seen them interpolates."""

CROP_MM = 64.0
"""Edge of a crop."""

Place = Literal["chest wall", "mediastinum", "diaphragm"]


@dataclass(frozen=True)
class Nodule:
    """One nodule. Lengths in mm; the body is an ellipsoid with lobes, `radius_mm` that of a ball of the ellipsoid's volume."""

    kind: Kind
    attachment: Attachment
    radius_mm: float
    stretch: Vector  # factors of the radius along the axes, product 1
    turn: tuple[Vector, Vector, Vector]  # rotation of these axes
    lobes: tuple[tuple[Vector, float], ...]  # centre and radius, in radii of the body
    roughness: float  # of the surface, in radii
    margin_mm: float  # over which the edge fades
    spicules: tuple[tuple[Vector, float, float], ...]  # direction, length (mm) and radius at the root (mm)
    hu: float  # of the body
    mottle_hu: float
    core: tuple[Vector, float, float] | None  # solid part of a part-solid one: centre and radius in radii, Hounsfield units
    calcium: tuple[float, float] | None  # radius in radii, Hounsfield units
    cavity: tuple[Vector, float] | None  # centre and radius in radii, filled with air


@dataclass(frozen=True)
class Border:
    """Where the lung ends: a bent surface whose normal points out of the lung, `distance_mm` from the nodule's centre."""

    place: Place
    normal: Vector
    distance_mm: float
    bend: tuple[float, float]  # 1/mm, along the tangent in the axial plane and across it; positive: the lung is convex
    waviness_mm: float


@dataclass(frozen=True)
class ChestWall:
    """Layers from the pleura to the air around the patient, mm; ribs run obliquely around the chest."""

    pleural_fat_mm: float
    rib_mm: tuple[float, float]  # height and thickness
    rib_spacing_mm: float
    rib_phase: float
    rib_slope: float  # mm down per mm along the wall
    muscle_mm: float
    fat_mm: float


@dataclass(frozen=True, eq=False)
class Lung:
    """One patient's nodule and what is around it."""

    seed: int
    age: int
    sex: Literal["F", "M"]
    side: Literal["left", "right"]
    nodule: Nodule
    borders: tuple[Border, ...]
    wall: ChestWall
    fissure: tuple[Vector, float] | None  # normal and distance (mm) from the nodule's centre
    fissure_share: float  # of a voxel in the middle of the fissure that is pleura
    hilum: Vector  # where vessels and airways come from
    parenchyma_hu: float
    gradient_hu_per_mm: float  # denser towards the back, where the patient lies
    emphysema: tuple[float, float]  # share-like threshold (standard deviations, large: none) and size of the holes in mm
    dependent_hu: float  # how much denser the last centimetre at the back is
    band: tuple[Vector, float, float] | None  # a scar: normal, distance and thickness (mm)
    contrast_hu: float  # what a contrast agent adds to blood; 0: none was given
    airway_ratio: float  # lumen over the artery beside it
    vessels: tuple[int, int]  # ends of arteries and of veins in the crop and just around it
    offset_mm: Vector  # from the nodule's centre to the middle of the crop


def draw_lung(seed: int) -> Lung:
    """The lung of this seed. Equal seeds give equal lungs.

    >>> draw_lung(3).nodule.kind
    'solid'
    """
    rng = np.random.default_rng([seed, 121])
    side: Literal["left", "right"] = "left" if rng.random() < 0.45 else "right"
    nodule = _nodule(rng)
    outwards = _outwards(rng, side)
    borders = _borders(rng, nodule, outwards)
    fissure = None
    if nodule.attachment == "fissure" or rng.random() < 0.4:
        distance = nodule.radius_mm * rng.uniform(0.55, 1.0) if nodule.attachment == "fissure" else rng.uniform(9, 34)
        fissure = _unit(np.array([rng.normal(0.55, 0.25), rng.normal(-0.7, 0.3), rng.normal(0, 0.3)])), float(distance)
    female = rng.random() < 0.5
    smoker = rng.random() < 0.35
    return Lung(
        seed=seed,
        age=int(np.clip(rng.normal(63, 11), 25, 90)),
        sex="F" if female else "M",
        side=side,
        nodule=nodule,
        borders=borders,
        wall=ChestWall(
            pleural_fat_mm=float(rng.gamma(1.5, 0.6)),
            rib_mm=(float(rng.normal(13, 1.2)), float(np.clip(rng.normal(7.5, 0.8), 5.5, 10))),
            rib_spacing_mm=float(rng.normal(27, 2.5)),
            rib_phase=float(rng.uniform(0, 1)),
            rib_slope=float(rng.uniform(0.25, 0.9)) * (1 if side == "left" else -1),
            muscle_mm=float(np.clip(rng.gamma(3, 2.5 if female else 4), 1.5, 25)),
            fat_mm=float(np.clip(rng.gamma(2.5, 8 if female else 5), 3, 50)),
        ),
        fissure=fissure,
        fissure_share=float(rng.uniform(0.15, 0.4)),
        hilum=_hilum(rng, outwards),
        parenchyma_hu=float(rng.normal(-868, 22)),
        gradient_hu_per_mm=float(rng.uniform(0.0, 0.7)),
        emphysema=(float(rng.uniform(0.6, 2.0)) if smoker else 9.0, float(rng.uniform(5, 11))),
        dependent_hu=float(rng.uniform(60, 250)) if rng.random() < 0.35 else 0.0,
        band=_band(rng) if rng.random() < 0.15 else None,
        contrast_hu=float(rng.uniform(70, 260)) if rng.random() < 0.45 else 0.0,
        airway_ratio=float(np.clip(rng.normal(0.7, 0.1), 0.5, 1.0)),
        vessels=(int(rng.integers(260, 400)), int(rng.integers(190, 300))),
        offset_mm=_vector(rng.uniform(-6, 6, 3)),
    )


def _nodule(rng: np.random.Generator) -> Nodule:
    kind = KINDS[int(rng.choice(len(KINDS), p=KIND_SHARES))]
    attachment = ATTACHMENTS[int(rng.choice(len(ATTACHMENTS), p=ATTACHMENT_SHARES))]
    median = {"solid": 8.5, "part-solid": 13.0, "ground-glass": 10.5}[kind]
    radius = float(np.clip(np.exp(rng.normal(np.log(median), 0.42)), 4.0, 30.0)) / 2
    large = float(np.clip((radius - 3) / 7, 0, 1))  # what malignancy does to a margin comes with size
    lobulated = rng.random() < 0.25 + 0.55 * large
    spiculated = kind != "ground-glass" and rng.random() < 0.08 + 0.5 * large
    stretch = np.exp(rng.normal(0, 0.14, 3) * (1.6 if attachment == "fissure" else 1))
    axes = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    return Nodule(
        kind=kind,
        attachment=attachment,
        radius_mm=radius,
        stretch=_vector(stretch / np.cbrt(stretch.prod())),
        turn=(_vector(axes[0]), _vector(axes[1]), _vector(axes[2])),
        lobes=tuple(_lobe(rng) for _ in range(int(rng.integers(3, 8)) if lobulated else int(rng.integers(0, 3)))),
        roughness=float(rng.uniform(0.01, 0.05) + (0.05 * rng.random() if lobulated or spiculated else 0)),
        margin_mm=float(rng.uniform(0.2, 0.9) if kind == "solid" else rng.uniform(0.9, 3.0)),
        spicules=tuple(_spicule(rng, radius) for _ in range(int(rng.integers(25, 70)))) if spiculated else (),
        hu=_hu(rng, kind),
        mottle_hu=float(rng.uniform(3, 15) if kind == "solid" else rng.uniform(25, 80)),
        core=_core(rng) if kind == "part-solid" else None,
        calcium=(float(rng.uniform(0.35, 0.95)), float(rng.uniform(180, 900)))
        if kind == "solid" and rng.random() < 0.1
        else None,
        cavity=(
            (_vector(rng.normal(0, 0.2, 3)), float(rng.uniform(0.2, 0.55)))
            if kind != "ground-glass" and radius > 6 and rng.random() < 0.15
            else None
        ),
    )


def _hu(rng: np.random.Generator, kind: Kind) -> float:
    """Of the body; ground glass that is hardly denser than lung is nobody's nodule."""
    if kind == "solid":
        return float(rng.normal(35, 15))
    return float(np.clip(rng.normal(-560 if kind == "part-solid" else -610, 65), -730, -430))


def _lobe(rng: np.random.Generator) -> tuple[Vector, float]:
    towards = np.asarray(_unit(rng.normal(size=3)))
    return _vector(towards * rng.uniform(0.55, 0.95)), float(rng.uniform(0.38, 0.62))


def _spicule(rng: np.random.Generator, radius: float) -> tuple[Vector, float, float]:
    return _unit(rng.normal(size=3)), float(radius * rng.uniform(0.3, 1.0) + rng.uniform(1, 6)), float(rng.uniform(0.45, 1.1))


def _core(rng: np.random.Generator) -> tuple[Vector, float, float]:
    return _vector(rng.normal(0, 0.22, 3)), float(rng.uniform(0.25, 0.7)), float(rng.normal(-20, 45))


def _band(rng: np.random.Generator) -> tuple[Vector, float, float]:
    return _unit(rng.normal(size=3)), float(rng.uniform(8, 28)), float(rng.uniform(0.5, 1.8))


def _outwards(rng: np.random.Generator, side: str) -> npt.NDArray[np.float64]:
    """Which way the nearest chest wall lies: any way round from the back to the front, never towards the midline."""
    angle = np.deg2rad(rng.uniform(-80, 80))  # from lateral, positive to the back
    lateral = 1.0 if side == "left" else -1.0
    return np.asarray(_unit(np.array([rng.normal(0.1, 0.2), np.sin(angle), lateral * np.cos(angle)])))


def _borders(rng: np.random.Generator, nodule: Nodule, outwards: npt.NDArray[np.float64]) -> tuple[Border, ...]:
    """The chest wall nearly always, the mediastinum and the diaphragm now and then; a subpleural nodule touches the first."""
    radius, clear = nodule.radius_mm, nodule.radius_mm + 3
    distance = radius * rng.uniform(-0.1, 0.8) if nodule.attachment == "pleura" else clear + rng.gamma(2.0, 9)
    bend = float(1 / rng.uniform(65, 150)), float(1 / rng.uniform(120, 400))
    borders = [Border("chest wall", _vector(outwards), float(distance), bend, float(rng.uniform(0.3, 0.9)))]
    if rng.random() < 0.25:
        inwards = _unit(-outwards + rng.normal(0, 0.25, 3))
        room = clear + float(rng.uniform(4, 30))
        borders.append(Border("mediastinum", inwards, room, (float(rng.normal(0, 0.008)), 0.0), float(rng.uniform(1.5, 4))))
    if rng.random() < 0.16:
        down = _unit(np.array([-1.0, rng.normal(0, 0.3), rng.normal(0, 0.3)]))
        hollow = float(-1 / rng.uniform(60, 120))
        borders.append(
            Border("diaphragm", down, clear + float(rng.uniform(2, 25)), (hollow, hollow), float(rng.uniform(0.3, 1)))
        )
    return tuple(borders)


def _hilum(rng: np.random.Generator, outwards: npt.NDArray[np.float64]) -> Vector:
    towards = np.asarray(_unit(-outwards + rng.normal(0, 0.35, 3) + np.array([rng.normal(0, 0.5), 0, 0])))
    return _vector(towards * rng.uniform(48, 75))


def _vector(values: npt.ArrayLike) -> Vector:
    z, y, x = (float(value) for value in np.asarray(values))
    return z, y, x


def _unit(values: npt.NDArray[np.float64]) -> Vector:
    return _vector(values / np.sqrt((values**2).sum()))


@dataclass(frozen=True)
class Grid:
    """Sample points of a crop: numbers and steps (mm) along (superior, posterior, left), and where its middle lies."""

    shape: tuple[int, int, int]
    step_mm: Vector
    middle_mm: Vector

    @property
    def axes(self) -> tuple[Floats, Floats, Floats]:
        """Positions along each axis, mm from the nodule's centre."""
        z, y, x = (
            (middle + (np.arange(n) - (n - 1) / 2) * step).astype(np.float32)
            for n, step, middle in zip(self.shape, self.step_mm, self.middle_mm, strict=True)
        )
        return z, y, x

    def around(self, low: npt.NDArray[np.float64], high: npt.NDArray[np.float64]) -> tuple[slice, slice, slice] | None:
        """The part of the grid between two corners (mm), or None where they have nothing in common."""
        slices = []
        for n, step, middle, first, last in zip(self.shape, self.step_mm, self.middle_mm, low, high, strict=True):
            start = middle - (n - 1) / 2 * step
            begin, end = max(0, int(np.floor((first - start) / step))), min(n, int(np.ceil((last - start) / step)) + 1)
            if begin >= end:
                return None
            slices.append(slice(begin, end))
        return slices[0], slices[1], slices[2]
