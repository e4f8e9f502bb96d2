"""Which tissue of a drawn brain is where: the hippocampus in the middle of what a network has to tell it from.

Around the hippocampus lie shells whose thickness depends on the direction and on the place along it: fimbria and the fluid
of temporal horn and choroid fissure above, white matter and parahippocampal cortex below, a cistern beyond. The amygdala
sits on the head. Further away come thalamus, deep nuclei, brainstem, cerebellum, and gyri cut out of a random field.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from simulation.brain import ALONG, REACH_MM, STEP_MM, Brain, wander

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.uint8]

ANGLES = 128
_ANGLE = (np.arange(ANGLES) + 0.5) / ANGLES * 2 * np.pi - np.pi
"""Directions around the axis in a coronal section: 0 medial, pi/2 up, pi lateral."""


class Tissue(IntEnum):
    """Label values of the drawn brain; a scanner gives each a grey value."""

    WHITE = 0
    CORTEX = 1
    FLUID = 2
    HIPPOCAMPUS = 3
    AMYGDALA = 4
    THALAMUS = 5
    NUCLEI = 6
    BRAINSTEM = 7
    CEREBELLUM = 8
    FOLIA = 9
    FIMBRIA = 10
    VESSEL = 11


@dataclass(frozen=True, eq=False)
class Place:
    """Every voxel (S, A, M) in the coordinates of the hippocampus: mm from its axis in the same coronal section."""

    index: npt.NDArray[np.intp]  # into the brain's tables over ALONG
    along: Floats  # mm in front of the uncal apex
    up: Floats  # mm
    medial: Floats  # mm
    angle: npt.NDArray[np.intp]  # into tables over directions
    distance: Floats  # mm to the surface, negative inside
    position: Floats  # -1 end of the tail, 0 uncal apex, 1 tip of the head


def tissues(brain: Brain, place: Place, axes: tuple[Floats, Floats, Floats]) -> Labels:
    """`Tissue` of every voxel (S, A, M) of a grid with these axes, in which `place` was found."""
    rng = np.random.default_rng([brain.seed, 82])
    tissue = _surroundings(brain, place, axes, rng)
    _shells(brain, place, tissue, axes, rng)
    tissue[place.distance < 0] = Tissue.HIPPOCAMPUS
    return tissue


def locate(brain: Brain, axes: tuple[Floats, Floats, Floats]) -> Place:
    """Turn and bend space: straight rows of voxels become the brain's own coordinates."""
    superior, anterior, medial = np.meshgrid(*axes, indexing="ij", sparse=True)
    rotation = _rotation(brain.turn_rad).astype(np.float32)
    bent = []
    for n, row in enumerate(rotation):
        straight = row[0] * superior + row[1] * anterior + row[2] * medial
        bent.append(straight + 1.6 * wander(brain.seed, 90 + n, axes, 26.0) + 0.45 * wander(brain.seed, 93 + n, axes, 9.0))
    s, a, m = bent
    index = np.clip((a + REACH_MM) / STEP_MM, 0, len(ALONG) - 1).astype(np.intp)
    table = brain.tables
    up, aside = s - table["superior"][index], m - table["medial"][index]
    tilt = table["tilt"][index]
    cosine, sine = np.cos(tilt), np.sin(tilt)
    u, v = cosine * aside + sine * up, cosine * up - sine * aside
    radius = np.sqrt(u * u + v * v)
    width = np.maximum(table["width"][index], 0.05)
    height = np.maximum(table["height"][index], 0.05)
    position = table["position"][index]
    depth, phase = brain.digitations
    bumps = 1 + depth * np.sin(u * np.float32(2 * np.pi / 5.5) + np.float32(phase)) * np.clip(3 * position, 0, 1)
    across = np.clip(u / width, -1.2, 1.2)
    side = np.where(v > 0, np.float32(1 - brain.flat) * bumps, np.float32(1 + brain.flat))
    v_bent = v - np.float32(brain.cup) * (u * u - width * width / 4)
    inside = np.sqrt((u / width) ** 2 + (v_bent / (height * side * np.maximum(1 - np.float32(brain.egg) * across, 0.3))) ** 2)
    distance = radius * (1 - 1 / np.maximum(inside, 1e-3))
    tip = a - np.float32(brain.head_mm)  # in front of the tip there is no section to be near to
    distance = np.where(tip > 0, np.sqrt(radius**2 + tip**2), np.maximum(distance, -6))
    angle = np.clip((np.arctan2(v, u) + np.float32(np.pi)) * np.float32(ANGLES / (2 * np.pi)), 0, ANGLES - 1).astype(np.intp)
    return Place(index, a, up, aside, angle, distance.astype(np.float32), position)


def _rotation(angles: tuple[float, float, float]) -> npt.NDArray[np.float64]:
    result = np.eye(3)
    for (i, j), angle in zip(((1, 2), (0, 2), (0, 1)), angles, strict=True):
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        result = result @ turn
    return result


def _bump(centre_deg: float, width_deg: float) -> Floats:
    """Over the directions: 1 at the centre, falling to the sides like a bell."""
    off = np.angle(np.exp(1j * (_ANGLE - np.deg2rad(centre_deg))))
    return np.asarray(np.exp(-0.5 * (off / np.deg2rad(width_deg)) ** 2), np.float32)


def _window(low_deg: float, high_deg: float, soft_deg: float = 8.0) -> Floats:
    """Over the directions: 1 from `low_deg` to `high_deg` going up, 0 elsewhere."""
    off = np.rad2deg(np.angle(np.exp(1j * (_ANGLE - np.deg2rad((low_deg + high_deg) / 2)))))
    reach = (high_deg - low_deg) / 2
    return np.asarray(1 / (1 + np.exp((np.abs(off) - reach) / (soft_deg / 3))), np.float32)


def _along(brain: Brain, knots: dict[float, float]) -> Floats:
    """Over ALONG: values between positions of the hippocampus, such as {-1: at the end of the tail, 1: at the tip}."""
    return np.interp(brain.tables["position"], list(knots), list(knots.values())).astype(np.float32)


def _thickness(brain: Brain, rng: np.random.Generator) -> dict[str, Floats]:
    """Of each shell in mm, (places along, directions)."""

    def shell(along: Floats, around: Floats) -> Floats:
        return along[:, None] * around[None]

    roof, horn, fissure = rng.uniform(0.2, 1.4), rng.uniform(0.6, 3.6), rng.uniform(0.5, 2.5)
    wide = rng.uniform(0.6, 2.0)  # how much the horn widens in front of the head and towards the atrium
    fimbria = rng.uniform(0.3, 1.8)
    white, cortex = rng.uniform(1.5, 3.4), rng.uniform(2.4, 3.8)
    medial_end = rng.uniform(-30, 5)  # where white matter ends and the subiculum joins the cortex
    over = {-1.6: 1.5, -1: 1.3, 0: 1, 0.5: 0.8, 0.9: 0.15, 1.2: 0}
    return {
        "fimbria": shell(_along(brain, {-1.6: 1.5, -1: 1.3, -0.2: 1, 0.15: 0}), fimbria * _bump(rng.uniform(95, 145), 22)),
        "fluid": shell(_along(brain, over), roof * _window(20, 165) + fissure * _bump(rng.uniform(15, 45), 20))
        + shell(
            _along(brain, {-1.6: 4 * wide, -1: 1.5 * wide, -0.4: 0.7, 0.2: 0.8, 0.7: wide, 1.1: 0.5, 1.3: 0}),
            horn * _bump(rng.uniform(155, 178), 20),
        ),
        "white": shell(_along(brain, {-1.5: 1.2, 0: 1, 0.6: 0.7, 1.2: 0.5}), white * _window(-178, medial_end)),
        "cortex": shell(_along(brain, {-1.5: 1, 1: 1.1}), cortex * _window(-140, rng.uniform(5, 30))),
        "cistern": shell(
            _along(brain, {-1.5: 1, 0: 1, 1: 1.6}),
            rng.uniform(1.0, 3.5) * _window(-60, 35, 15) + rng.uniform(0.3, 1.4) * _window(-140, -60, 15),
        ),
    }


def _shells(brain: Brain, place: Place, tissue: Labels, axes: tuple[Floats, Floats, Floats], rng: np.random.Generator) -> None:
    """Lay the amygdala and the layers around both into `tissue`, the outermost first."""
    thick = _thickness(brain, rng)
    uneven = 1 + 0.3 * wander(brain.seed, 96, axes, 11.0)
    centre = np.array([rng.normal(6.5, 1.0), rng.normal(0.85, 0.08) * brain.head_mm, rng.normal(0.5, 1.5)])
    radii = np.array([rng.normal(7.2, 0.8), rng.normal(8.5, 1.0), rng.normal(9.5, 1.0)])
    offsets = (place.up - centre[0], place.along - centre[1], place.medial - centre[2])
    ratio = np.sqrt(sum((offset / np.float32(radius)) ** 2 for offset, radius in zip(offsets, radii, strict=True)))
    amygdala = (ratio - 1) * np.float32(radii.mean())
    both = np.minimum(place.distance, amygdala)

    def mm(name: str) -> Floats:
        found: Floats = thick[name][place.index, place.angle] * uneven
        return found

    white, cortex, cistern = mm("white"), mm("cortex"), mm("cistern")
    fimbria, fluid = mm("fimbria"), mm("fluid")
    lower = white + cortex
    present = (place.position > -1.9) & (lower + cistern > 0.15)
    tissue[present & (both < lower + cistern)] = Tissue.FLUID
    tissue[present & (both < lower) & (cortex > 0.3)] = Tissue.CORTEX
    tissue[present & (both < white)] = Tissue.WHITE
    tissue[amygdala < 0] = Tissue.AMYGDALA
    gap, filled = rng.uniform(-0.6, 1.1), rng.choice([Tissue.WHITE, Tissue.FLUID, Tissue.WHITE])
    upper = np.sin(_ANGLE)[place.angle] > 0.1
    tissue[(place.distance < gap * uneven) & (amygdala < 1) & upper] = filled
    tissue[place.distance < fimbria + fluid] = Tissue.FLUID
    tissue[place.distance < fimbria] = Tissue.FIMBRIA


def _surroundings(brain: Brain, place: Place, axes: tuple[Floats, Floats, Floats], rng: np.random.Generator) -> Labels:
    """What lies farther away, each in its direction."""
    seed = brain.seed
    along, up, medial = place.along, place.up, place.medial
    slow = wander(seed, 97, axes, 18.0)
    tissue = np.full(along.shape, Tissue.WHITE, np.uint8)

    fold = wander(seed, 98, axes, float(rng.uniform(13, 20)))
    gyri = (up < 3 + 2 * slow) | (medial < -rng.uniform(11, 17) + 2 * slow)
    tissue[gyri & (np.abs(fold) < rng.uniform(0.45, 0.75))] = Tissue.CORTEX
    tissue[gyri & (np.abs(fold) < rng.uniform(0.08, 0.2))] = Tissue.FLUID

    deep = (up > 4) & ~gyri
    nucleus = wander(seed, 99, axes, float(rng.uniform(11, 16)))
    tissue[deep & (nucleus > rng.uniform(0.6, 1.3)) & (medial < 6 + 3 * slow)] = Tissue.NUCLEI
    centre, radii = (rng.normal(15, 2), rng.normal(-13, 3), rng.normal(11, 2)), (rng.normal(11, 1), rng.normal(14, 2), 11)
    tissue[deep & (_ratio(place, centre, radii) < 1 + 0.1 * slow)] = Tissue.THALAMUS

    inner = medial + 0.35 * np.clip(up, -20, 0) > rng.normal(8.5, 1.5) + 1.2 * slow
    low = up < rng.normal(3, 1.5) + slow
    front, behind = rng.normal(7, 3), rng.normal(-13, 3)
    tissue[inner & low & (along > front)] = Tissue.FLUID
    stem = inner & (along <= front) & (up < 14)
    tissue[stem & ((along > behind + 2 * slow) | (up > 2))] = Tissue.BRAINSTEM
    tissue[stem & (wander(seed, 100, axes, 9.0) > 1.6)] = Tissue.NUCLEI
    floor = -rng.normal(13, 2.0) + 1.0 * slow + rng.uniform(0.6, 1.1) * np.clip(medial + 3, -20, 12)  # the tentorium
    cerebellum = (along < rng.normal(0, 3) + 2 * slow) & (up < floor)
    tissue[cerebellum & (up > floor - rng.uniform(0.5, 2))] = Tissue.FLUID
    tissue[cerebellum & (up <= floor - rng.uniform(0.5, 2))] = Tissue.CEREBELLUM
    heading = rng.normal(size=3) * (1, 1, 0.6)
    heading /= np.linalg.norm(heading)
    way = heading[0] * up + heading[1] * along + heading[2] * medial + 1.5 * slow + 0.8 * fold
    folia = np.sin(way.astype(np.float32) * np.float32(2 * np.pi / rng.uniform(2.0, 3.6)))
    tissue[(tissue == Tissue.CEREBELLUM) & (folia > rng.uniform(0, 0.7))] = Tissue.FOLIA

    atrium = (rng.normal(6, 1.5), -brain.tail_mm * rng.normal(1.12, 0.08), rng.normal(-6, 1.5))
    size = np.array([rng.normal(7, 1.5), rng.normal(8, 1.5), rng.normal(4.5, 1.2)]) * (0.8 + max(brain.age - 40, 0) / 150)
    tissue[_ratio(place, atrium, size) < 1 + 0.15 * slow] = Tissue.FLUID
    vessels = (tissue == Tissue.FLUID) & (wander(seed, 101, axes, 6.0) > rng.uniform(1.7, 3.5))
    tissue[vessels] = Tissue.VESSEL
    return tissue


def _ratio(place: Place, centre: npt.ArrayLike, radii: npt.ArrayLike) -> Floats:
    """Distance from an ellipsoid's centre as a part of its radius; (superior, anterior, medial) as `Brain` has them."""
    c, r = np.asarray(centre, np.float32), np.maximum(np.asarray(radii, np.float32), 0.5)
    parts = ((place.up - c[0]) / r[0], (place.along - c[1]) / r[1], (place.medial - c[2]) / r[2])
    return np.asarray(np.sqrt(parts[0] ** 2 + parts[1] ** 2 + parts[2] ** 2), np.float32)
