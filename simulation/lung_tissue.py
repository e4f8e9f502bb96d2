"""How dense each place of a drawn piece of lung is, in Hounsfield units, and how far it is from the nodule's surface.

Hounsfield units: air -1000, lung in inspiration -850 to -910, fat -50 to -100, blood 45 to 65, bone above 700 (the table of
Prokop and Galanski 2003, Spiral and Multislice Computed Tomography of the Body), muscle 10 to 40 without contrast agent, spongy
bone about 180. The lung is denser at the back (J Comput Assist Tomogr 1979, 3:740); emphysema is below -950 (Zach et al. 2012,
Invest Radiol 47:596). A ground-glass nodule lies between about -750 and -450 (Wang et al. 2018, Iran J Radiol 15:e61846), and
what is above -160 is its solid part (Lee et al. 2018, PLoS One 13:e0205490). Everything else is assumed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from simulation.lung import CROP_MM, Border, Grid, Lung, Nodule
from simulation.lung_tree import REACH_MM, Tubes, airways, arteries_and_veins, beside_nodule, draw

Floats = npt.NDArray[np.float32]
AIR, FAT, MUSCLE, BLOOD, LIVER, SKIN, MARROW, CORTEX, WALL_OF_AIRWAY, SCAR = -1000, -100, 45, 45, 58, 20, 180, 1000, 10, -150
FAR_MM = 60.0
"""Distance from the nodule's surface that is said of every place outside its surroundings."""


@dataclass(frozen=True, eq=False)
class Density:
    """Over the grid: `hu`, and `depth_mm` below the nodule's surface, negative outside it; the lung's border cuts it off."""

    hu: Floats
    depth_mm: Floats


def density(lung: Lung, grid: Grid) -> Density:
    """What is where, on the points of `grid`; borders are soft over one step, so that averages have their partial volume."""
    axes = grid.axes
    width = np.float32(np.mean(grid.step_mm))
    outside = [_beyond(lung, border, axes) for border in lung.borders]
    hu = _parenchyma(lung, grid, outside[0])
    if lung.fissure is not None:
        normal, distance = lung.fissure
        away = _along(axes, normal) - np.float32(distance) + 2.5 * wander(lung.seed, 130, axes, 34.0)
        _paint(hu, np.float32(lung.fissure_share) * np.exp(-((away / np.float32(0.5)) ** 2)), -60)
    if lung.band is not None:
        normal, distance, thickness = lung.band
        away = _along(axes, normal) - np.float32(distance) + 2.0 * wander(lung.seed, 131, axes, 18.0)
        patch = np.clip(wander(lung.seed, 132, axes, 26.0) + np.float32(0.2), 0, 1)
        _paint(hu, patch * np.exp(-((away / np.float32(thickness)) ** 2)), SCAR)
    depth = _nodule_depth(lung.nodule, lung.seed, grid)
    if lung.nodule.kind != "solid":
        _paint_nodule(hu, lung, grid, depth)
    _paint_vessels(hu, lung, grid)
    if lung.nodule.kind == "solid":
        _paint_nodule(hu, lung, grid, depth)
    for border, beyond in zip(lung.borders, outside, strict=True):
        tissue = {"chest wall": _chest_wall, "mediastinum": _mediastinum, "diaphragm": _below_diaphragm}[border.place]
        np.minimum(depth, -beyond, out=depth)
        there = ndimage.find_objects((beyond > -width).view(np.uint8))
        if there:
            part = there[0]
            z, y, x = (axis[where] for axis, where in zip(axes, part, strict=True))
            _paint(
                hu[part], np.clip(beyond[part] / width + np.float32(0.5), 0, 1), tissue(lung, border, beyond[part], (z, y, x))
            )
    return Density(hu, depth)


def wander(seed: int, use: int, axes: tuple[Floats, Floats, Floats], wavelength_mm: float) -> Floats:
    """A smooth random field of mean 0 and variance 1, bumps about `wavelength_mm` apart, as `simulation.brain.wander` makes it.

    In a fifth of the time, since the largest product comes last and nothing is turned round for it.
    """
    reach = CROP_MM / 2 + 8 + wavelength_mm
    knots = np.arange(-reach, reach, wavelength_mm / 2)
    field = np.random.default_rng([seed, use]).standard_normal((len(knots),) * 3, np.float32)
    z, y, x = (_near(axis, knots, wavelength_mm) for axis in axes)
    planes = (z @ field.reshape(len(knots), -1)).reshape(len(z), len(knots), len(knots))
    return np.asarray((y @ planes).reshape(-1, len(knots)) @ x.T, np.float32).reshape(len(z), len(y), len(x))


def _near(axis: Floats, knots: npt.NDArray[np.float64], wavelength_mm: float) -> Floats:
    weight = np.exp(-0.5 * ((axis[:, None] - knots[None]) / (0.4 * wavelength_mm)) ** 2)
    return np.asarray(weight / np.sqrt((weight**2).sum(axis=1, keepdims=True)), np.float32)


# -- borders of the lung -------------------------------------------------------------------------------------------------


def _along(axes: tuple[Floats, Floats, Floats], normal: tuple[float, float, float]) -> Floats:
    """Position along a direction, over the grid."""
    z, y, x = (axis * np.float32(part) for axis, part in zip(axes, normal, strict=True))
    return np.asarray(z[:, None, None] + y[:, None] + x, np.float32)


def _tangent(border: Border) -> tuple[float, float, float]:
    """Along the border in the axial plane."""
    _, y, x = border.normal
    length = float(np.sqrt(y * y + x * x)) or 1.0
    return 0.0, x / length, -y / length


def _beyond(lung: Lung, border: Border, axes: tuple[Floats, Floats, Floats]) -> Floats:
    """Distance beyond the border, mm, negative in the lung."""
    tangent = _tangent(border)
    around, up = _along(axes, tangent), axes[0][:, None, None]
    bent = np.float32(border.bend[0] / 2) * around**2 + np.float32(border.bend[1] / 2) * up**2
    slope = np.sqrt(1 + (np.float32(border.bend[0]) * around) ** 2 + (np.float32(border.bend[1]) * up) ** 2)
    use, wavelength = {"chest wall": (133, 24.0), "mediastinum": (134, 30.0), "diaphragm": (135, 30.0)}[border.place]
    beyond = (_along(axes, border.normal) - np.float32(border.distance_mm) + bent) / slope
    beyond += np.float32(border.waviness_mm) * wander(lung.seed, use, axes, wavelength)
    if border.place == "chest wall":  # the lung bulges between the ribs
        beyond += np.float32(0.7) * np.cos(2 * np.pi * _ribs(lung, around, up))
    return np.asarray(beyond, np.float32)


def _ribs(lung: Lung, around: Floats, up: Floats) -> Floats:
    """Height in units of the distance between ribs; whole numbers are in the middle of a rib."""
    wall = lung.wall
    return np.asarray((up + np.float32(wall.rib_slope) * around) / np.float32(wall.rib_spacing_mm) + np.float32(wall.rib_phase))


def _chest_wall(lung: Lung, border: Border, beyond: Floats, axes: tuple[Floats, Floats, Floats]) -> Floats:
    """From the pleura outwards: fat, ribs between muscles, muscle with planes of fat, fat, skin, air."""
    wall = lung.wall
    height, thickness = wall.rib_mm
    middle = wall.pleural_fat_mm + 1.2 + thickness / 2
    mottled = wander(lung.seed, 136, axes, 7.0)
    hu = MUSCLE + 10 * mottled
    inner = wall.pleural_fat_mm + thickness + 2.4  # where the muscles on the ribs begin
    plane = np.clip(1.4 - np.abs(beyond - np.float32(inner + 0.8) - 0.6 * mottled), 0, 1)
    pleura = np.clip(np.float32(wall.pleural_fat_mm + 0.5) - beyond, 0, 1) * np.float32(min(1.0, wall.pleural_fat_mm))
    strands = np.clip((wander(lung.seed, 137, axes, 12.0) - np.float32(0.8)) * 4, 0, 1) * (beyond > np.float32(inner))
    _paint(hu, np.maximum(np.maximum(plane, pleura), strands), FAT + 15 * mottled)
    steep = np.float32(1 / np.sqrt(1 + wall.rib_slope**2))
    rib = _ribs(lung, _along(axes, _tangent(border)), axes[0][:, None, None])
    across = (rib - np.rint(rib)) * np.float32(wall.rib_spacing_mm) * steep
    ratio = np.sqrt((across / np.float32(height / 2)) ** 2 + ((beyond - np.float32(middle)) / np.float32(thickness / 2)) ** 2)
    depth = (1 - ratio) * np.float32(thickness / 2)
    bone = np.clip(depth + np.float32(0.5), 0, 1)
    _paint(hu, bone, MARROW + 60 * mottled + (CORTEX - MARROW) * np.clip(1.7 - np.abs(depth - np.float32(0.6)) * 1.4, 0, 1))
    muscle, skin = inner + wall.muscle_mm, inner + wall.muscle_mm + wall.fat_mm
    for begin, value in ((muscle, FAT + 12 * mottled), (skin, SKIN), (skin + 1.8, AIR)):
        _paint(hu, np.clip((beyond - np.float32(begin)) / np.float32(0.9) + np.float32(0.5), 0, 1), value)
    return np.asarray(hu, np.float32)


def _mediastinum(lung: Lung, border: Border, beyond: Floats, axes: tuple[Floats, Floats, Floats]) -> Floats:
    """Large vessels and heart in fat."""
    blood = np.float32(BLOOD + lung.contrast_hu)
    lumps = wander(lung.seed, 138, axes, 30.0) + np.clip(beyond / 12, 0, 1)
    share = np.clip((lumps - np.float32(0.15)) * 6, 0, 1) * np.clip(beyond - np.float32(1.0), 0, 1)
    return np.asarray(FAT + 8 * wander(lung.seed, 136, axes, 7.0) + share * (blood - FAT), np.float32)


def _below_diaphragm(lung: Lung, border: Border, beyond: Floats, axes: tuple[Floats, Floats, Floats]) -> Floats:
    """Liver on the right; spleen, fat and bowel on the left look much the same here."""
    organ = np.float32(LIVER + 0.35 * lung.contrast_hu)
    share = 1.0 if lung.side == "right" else np.clip(wander(lung.seed, 139, axes, 28.0) * 5 + 2, 0, 1)
    inside = np.clip(beyond - np.float32(1.5), 0, 1) * share
    return np.asarray(MUSCLE * (beyond < 2) + FAT * (beyond >= 2) * (1 - inside) + inside * organ, np.float32)


# -- inside the lung -----------------------------------------------------------------------------------------------------


def _parenchyma(lung: Lung, grid: Grid, beyond: Floats) -> Floats:
    """Lung between its vessels: finer and coarser unevenness, denser at the back, with holes where there is emphysema."""
    axes, steps = grid.axes, grid.step_mm
    rng = np.random.default_rng([lung.seed, 140])
    fine = ndimage.gaussian_filter(rng.standard_normal(beyond.shape, np.float32), [1.2 / step for step in steps], truncate=3)
    fine /= fine.std()
    coarse = wander(lung.seed, 141, axes, 13.0)
    hu = np.float32(lung.parenchyma_hu) + 14 * fine + 11 * coarse
    hu += np.float32(lung.gradient_hu_per_mm) * axes[1][:, None]
    if lung.dependent_hu and lung.borders[0].normal[1] > 0.3:  # the chest wall at the back
        hu += np.float32(lung.dependent_hu) * np.exp(beyond / np.float32(5)) * np.clip(1 + 0.5 * coarse, 0, 2)
    threshold, size = lung.emphysema
    if threshold < 5:
        holes = np.clip((wander(lung.seed, 142, axes, size) + 0.3 * fine - np.float32(threshold)) * 2.5, 0, 1)
        hu += holes * (np.float32(-985) - hu) * np.float32(0.85)
    return np.asarray(hu, np.float32)


def _paint_vessels(hu: Floats, lung: Lung, grid: Grid) -> None:
    ends, lobe = _ends(lung)
    arteries, veins = arteries_and_veins(lung, ends, lobe)
    vessels = np.zeros(grid.shape, np.float32)
    for tubes in (arteries, veins, *([beside_nodule(lung)] if lung.nodule.attachment == "vessel" else [])):
        draw(tubes, grid, vessels)
    _paint(hu, vessels, BLOOD + lung.contrast_hu)
    whole, lumen = airways(lung, arteries)
    for tubes, value in ((whole, WALL_OF_AIRWAY), (lumen, AIR)):
        share = np.zeros(grid.shape, np.float32)
        draw(tubes, grid, share)
        _paint(hu, share, value)


def _ends(lung: Lung) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Where vessels end (n, 3), mm: anywhere in the lung but not at its border, at the fissure or in a solid nodule."""
    rng = np.random.default_rng([lung.seed, 122])
    places = rng.uniform(-REACH_MM, REACH_MM, (2 * sum(lung.vessels), 3))
    kept = (places**2).sum(axis=1) > (1.1 * lung.nodule.radius_mm * (lung.nodule.kind == "solid")) ** 2
    for border in lung.borders:
        around = (places * _tangent(border)).sum(axis=1)
        bent = border.bend[0] / 2 * around**2 + border.bend[1] / 2 * places[:, 0] ** 2
        kept &= (places * border.normal).sum(axis=1) - border.distance_mm + bent < -4
    lobe = np.zeros(len(places), np.bool_)
    if lung.fissure is not None:
        away = (places * lung.fissure[0]).sum(axis=1) - lung.fissure[1]
        kept &= np.abs(away) > 5
        lobe = away > 0
    places, lobe = places[kept], lobe[kept]
    share = min(1.0, len(places) / (2 * sum(lung.vessels)) + 0.5)  # a crop that is half wall has half the vessels
    number = max(4, min(len(places), round(sum(lung.vessels) * share)))
    return places[:number], lobe[:number]


# -- the nodule ----------------------------------------------------------------------------------------------------------


def _box(nodule: Nodule, grid: Grid) -> tuple[slice, slice, slice]:
    reach = np.full(3, 1.75 * nodule.radius_mm + 4)
    part = grid.around(-reach, reach)
    if part is None:
        raise ValueError("the crop has to hold the nodule's centre")
    return part


def _nodule_depth(nodule: Nodule, seed: int, grid: Grid) -> Floats:
    """Distance below the surface of body and lobes over the grid, mm, negative outside; far from it -`FAR_MM`."""
    depth = np.full(grid.shape, -FAR_MM, np.float32)
    part = _box(nodule, grid)
    axes = tuple(axis[where] for axis, where in zip(grid.axes, part, strict=True))
    z, y, x = axes
    radius = np.float32(nodule.radius_mm)
    own = [_along((z, y, x), row) / np.float32(factor) for row, factor in zip(nodule.turn, nodule.stretch, strict=True)]
    sharp = np.float32(9.0 / nodule.radius_mm)  # lobes meet in notches that are rounded over a ninth of the radius
    total = np.exp(sharp * (radius - np.sqrt(own[0] ** 2 + own[1] ** 2 + own[2] ** 2)))
    for centre, size in nodule.lobes:
        away = [axis - np.float32(middle * nodule.radius_mm) for axis, middle in zip(own, centre, strict=True)]
        total += np.exp(sharp * (np.float32(size) * radius - np.sqrt(away[0] ** 2 + away[1] ** 2 + away[2] ** 2)))
    uneven = np.float32(nodule.roughness * nodule.radius_mm) * wander(seed, 143, (z, y, x), max(2.5, 0.7 * nodule.radius_mm))
    depth[part] = np.log(total) / sharp + uneven
    return depth


def _paint_nodule(hu: Floats, lung: Lung, grid: Grid, depth: Floats) -> None:
    nodule, seed = lung.nodule, lung.seed
    part = _box(nodule, grid)
    z, y, x = (axis[where] for axis, where in zip(grid.axes, part, strict=True))
    axes, radius = (z, y, x), nodule.radius_mm
    width = float(np.mean(grid.step_mm))
    below, inner = depth[part], hu[part]
    edge = np.float32(max(nodule.margin_mm, width))
    body = np.float32(nodule.hu) + np.float32(nodule.mottle_hu) * wander(seed, 144, axes, 3.5)
    share = np.clip(below / edge + np.float32(0.5), 0, 1)

    def ball(centre: tuple[float, float, float], size: float, soft: float) -> Floats:
        away = (axis - np.float32(middle * radius) for axis, middle in zip(axes, centre, strict=True))
        dz, dy, dx = away
        uneven = np.float32(0.18 * size * radius) * wander(seed, 145, axes, max(3.0, size * radius))
        distance = np.sqrt(dz[:, None, None] ** 2 + dy[:, None] ** 2 + dx**2) + uneven
        return np.asarray(
            np.clip((np.float32(size * radius) - distance) / np.float32(max(soft, width)) + 0.5, 0, 1), np.float32
        )

    if nodule.core is not None:
        _paint(body, ball(nodule.core[0], nodule.core[1], 1.5), nodule.core[2])
    if nodule.calcium is not None:
        _paint(body, ball((0.0, 0.0, 0.0), nodule.calcium[0], 1.2), nodule.calcium[1])
    if nodule.cavity is not None:
        _paint(body, ball(nodule.cavity[0], nodule.cavity[1], 0.6), -960)
    _paint(inner, share, body)
    if nodule.spicules:
        spicules = np.zeros(grid.shape, np.float32)
        draw(_spicules(nodule), grid, spicules)
        _paint(hu, np.clip(spicules - (depth > 0), 0, 1) * np.float32(0.9), 10)


def _spicules(nodule: Nodule) -> Tubes:
    """From inside the surface outwards, thinner and thinner."""
    towards = np.array([direction for direction, _, _ in nodule.spicules])
    length = np.array([reach for _, reach, _ in nodule.spicules])[:, None]
    root = np.array([thick for _, _, thick in nodule.spicules])
    start = towards * 0.8 * nodule.radius_mm
    return Tubes(start, start + towards * (length + 0.2 * nodule.radius_mm), np.stack([root, 0.25 * root], axis=1))


def _paint(hu: Floats, share: Floats, value: Floats | float) -> None:
    """Replace a share of what is there."""
    hu += share * (value - hu)
