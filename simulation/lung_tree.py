"""Vessels and airways of a piece of lung: trees grown from the hilum to ends scattered in the lung, and drawn as tubes.

Each end joins the tree where the way to it and the whole way from the hilum are short together (Cuntz et al. 2010, PLoS Comput
Biol 6:e1000877). A branch is as thick as its ends make it: the cubes of the radii add up (Murray 1926, PNAS 12:207). Airways
accompany arteries, with a lumen of about 0.7 of the artery (more in old age: Matsuoka et al. 2003, AJR 180:513) and a wall of a
fifth of the whole; both numbers are assumed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simulation.lung import CROP_MM, Grid, Lung

Floats = npt.NDArray[np.float32]
Points = npt.NDArray[np.float64]
END_MM = (0.22, 0.4)
"""Radii of the ends: of the order of arteries of secondary lobules, assumed."""
BALANCE = 0.45
"""What a millimetre of way from the hilum costs against a millimetre of new vessel."""
REACH_MM = CROP_MM / 2 + 9
SMALLEST_AIRWAY_MM = 0.75
"""Radius of an artery beside which CT still shows a bronchus: of 2 mm across (Webb 2015, High-Resolution CT of the Lung)."""
THIN = 0.6
"""Radius in steps of the grid below which a tube is drawn by its volume."""
WALL = 0.2
"""Thickness of an airway's wall over the diameter of the whole."""


@dataclass(frozen=True, eq=False)
class Tubes:
    """Straight pieces with tapering radii: `start`, `end` (n, 3) in mm, `radii` (n, 2) at both ends."""

    start: Points
    end: Points
    radii: Points

    def chosen(self, which: npt.NDArray[np.bool_]) -> Tubes:
        """Some of the pieces."""
        return Tubes(self.start[which], self.end[which], self.radii[which])

    def scaled(self, factor: float) -> Tubes:
        """The same with other radii."""
        return Tubes(self.start, self.end, self.radii * factor)


def arteries_and_veins(lung: Lung, ends: Points, lobe: npt.NDArray[np.bool_]) -> tuple[Tubes, Tubes]:
    """Both trees; `ends` (n, 3) are places in the lung, of which `lobe` says on which side of the fissure they lie."""
    rng = np.random.default_rng([lung.seed, 123])
    number = lung.vessels[0] * len(ends) // sum(lung.vessels)
    trees = []
    for those, beside in ((slice(0, number), 0.0), (slice(number, None), 14.0)):
        root = np.array(lung.hilum) + rng.normal(0, 1, 3) * beside
        trees.append(_tree(rng, root, ends[those], lobe[those]))
    return trees[0], trees[1]


def beside_nodule(lung: Lung) -> Tubes:
    """The vessel that a juxtavascular nodule sits on: past its surface, bent a little, thinner at the far end."""
    rng = np.random.default_rng([lung.seed, 124])
    radius = float(rng.uniform(0.8, 1.9))
    aside = rng.normal(size=3)
    aside /= np.sqrt((aside**2).sum())
    along = np.cross(aside, rng.normal(size=3))
    along /= np.sqrt((along**2).sum())
    touch = aside * (lung.nodule.radius_mm * rng.uniform(0.75, 1.05) + 0.4 * radius)
    way = np.linspace(-45, 45, 13)[:, None]
    points = touch + along * way + aside * (way**2) * rng.uniform(0, 0.006) + np.cross(aside, along) * np.sin(way / 14) * 1.8
    radii = radius * np.linspace(1.15, 0.7, len(points))
    return Tubes(points[:-1], points[1:], np.stack([radii[:-1], radii[1:]], axis=1))


def airways(lung: Lung, arteries: Tubes) -> tuple[Tubes, Tubes]:
    """Whole bronchi and their lumina, beside the arteries that are thick enough."""
    rng = np.random.default_rng([lung.seed, 125])
    seen = arteries.chosen(arteries.radii.mean(axis=1) > SMALLEST_AIRWAY_MM)
    lumen = seen.radii * lung.airway_ratio
    outer = lumen / (1 - 2 * WALL)
    along = seen.end - seen.start
    along = along / np.maximum(np.sqrt((along**2).sum(axis=1, keepdims=True)), 1e-6)
    towards = rng.normal(size=3)
    aside = towards - along * (along * towards).sum(axis=1, keepdims=True)
    aside = aside / np.maximum(np.sqrt((aside**2).sum(axis=1, keepdims=True)), 1e-6)
    gap = seen.radii + 0.9 * outer
    start, end = seen.start + aside * gap[:, :1], seen.end + aside * gap[:, 1:]
    return Tubes(start, end, outer), Tubes(start, end, lumen)


def draw(tubes: Tubes, grid: Grid, into: Floats) -> None:
    """Raise `into` (of the grid's shape) to the share of each voxel that the tubes fill."""
    axes = grid.axes
    width = float(np.mean(grid.step_mm))
    low, high = (np.array([axis[where] for axis in axes]) for where in (0, -1))
    margin = tubes.radii.max(axis=1, keepdims=True) + width
    near = ((np.maximum(tubes.start, tubes.end) > low - margin) & (np.minimum(tubes.start, tubes.end) < high + margin)).all(
        axis=1
    )
    thin = tubes.radii.mean(axis=1) < THIN * width
    np.maximum(into, _threads(tubes.chosen(near & thin), grid), out=into)
    thick = tubes.chosen(near & ~thin)
    for start, end, (first, last) in zip(thick.start, thick.end, thick.radii, strict=True):
        reach = max(first, last) + width
        part = grid.around(np.minimum(start, end) - reach, np.maximum(start, end) + reach)
        if part is None:
            continue
        z, y, x = (axis[where] for axis, where in zip(axes, part, strict=True))
        z, y, x = z[:, None, None] - np.float32(start[0]), y[:, None] - np.float32(start[1]), x - np.float32(start[2])
        along = end - start
        dz, dy, dx = (np.float32(part) for part in along)
        t = np.clip((z * dz + y * dy + x * dx) / np.float32(max((along**2).sum(), 1e-6)), 0, 1)
        distance = np.sqrt((z - t * dz) ** 2 + (y - t * dy) ** 2 + (x - t * dx) ** 2)
        radius = np.float32(first) + t * np.float32(last - first)
        share = np.clip((radius - distance) / np.float32(width) + np.float32(0.5), 0, 1)
        np.maximum(into[part], share, out=into[part])


def _threads(tubes: Tubes, grid: Grid) -> Floats:
    """Tubes that are thinner than a voxel: their volume, laid down point by point between the eight nearest voxels."""
    number = 16  # points to a piece, which is about 4 mm long
    part = ((np.arange(number) + 0.5) / number)[:, None]
    along = (tubes.end - tubes.start)[:, None]
    points = (tubes.start[:, None] + along * part).reshape(-1, 3)
    radius = tubes.radii[:, :1] + (tubes.radii[:, 1:] - tubes.radii[:, :1]) * part[:, 0]
    volume = (np.pi * radius**2 * np.sqrt((along**2).sum(axis=2)) / number).ravel() / np.prod(grid.step_mm)
    first = np.array([axis[0] for axis in grid.axes])
    place = (points - first) / np.array(grid.step_mm)
    below = np.floor(place).astype(np.intp)
    rest = place - below
    total = np.zeros(int(np.prod(grid.shape)))
    for corner in np.ndindex(2, 2, 2):
        index = below + corner
        weight = volume * np.where(np.array(corner) == 1, rest, 1 - rest).prod(axis=1)
        inside = ((index >= 0) & (index < grid.shape)).all(axis=1)
        flat = np.ravel_multi_index(tuple(index[inside].T), grid.shape)
        total += np.bincount(flat, weight[inside], len(total))
    return np.asarray(np.minimum(total, 1), np.float32).reshape(grid.shape)


def _tree(rng: np.random.Generator, root: Points, ends: Points, lobe: npt.NDArray[np.bool_]) -> Tubes:
    """Pieces of the tree that supplies these ends."""
    order = np.argsort(((ends - root) ** 2).sum(axis=1))
    ends, lobe = ends[order], lobe[order]
    points, parent, way = np.zeros((len(ends) + 1, 3)), np.zeros(len(ends) + 1, np.intp), np.zeros(len(ends) + 1)
    side = np.zeros(len(ends) + 1, np.bool_)
    points[0], parent[0] = root, -1
    for n, (end, here) in enumerate(zip(ends, lobe, strict=True), start=1):
        gap = np.sqrt(((points[:n] - end) ** 2).sum(axis=1))
        cost = gap + BALANCE * way[:n] + 60.0 * (side[:n] != here)
        cost[0] -= 60.0 * here  # the hilum is of both lobes
        nearest = int(cost.argmin())
        points[n], parent[n], way[n], side[n] = end, nearest, way[nearest] + gap[nearest], here
    cubes = rng.uniform(*END_MM, len(points)) ** 3
    for n in range(len(points) - 1, 0, -1):
        cubes[parent[n]] += cubes[n]
    radius = np.cbrt(cubes)
    points = _smoothed(points, parent)
    return _pieces(rng, points, parent, radius)


def _smoothed(points: Points, parent: npt.NDArray[np.intp]) -> Points:
    """Corners rounded: each branching point moves between what it joins; ends and the root stay."""
    number = np.bincount(parent[1:], minlength=len(points))
    inner = (number > 0) & (parent >= 0)
    for _ in range(2):
        children = np.stack([np.bincount(parent[1:], points[1:, axis], len(points)) for axis in range(3)], axis=1)
        mean = children / np.maximum(number, 1)[:, None]
        points = np.where(inner[:, None], 0.4 * points + 0.3 * points[parent] + 0.3 * mean, points)
    return points


def _headings(points: Points, parent: npt.NDArray[np.intp], radius: Points) -> tuple[Points, npt.NDArray[np.bool_]]:
    """Direction of the tree at every point (n, 3), and whether it continues its parent's branch, as the thickest child does."""
    number = len(points)
    main = np.full(number, -1, np.intp)
    for n in range(number - 1, 0, -1):
        if main[parent[n]] < 0 or radius[n] > radius[main[parent[n]]]:
            main[parent[n]] = n
    behind = np.where(parent >= 0, parent, np.arange(number))
    ahead = np.where(main >= 0, main, np.arange(number))
    way = points[ahead] - points[behind]
    stem = main[behind] == np.arange(number)
    return way / np.maximum(np.sqrt((way**2).sum(axis=1, keepdims=True)), 1e-6), stem


def _pieces(rng: np.random.Generator, points: Points, parent: npt.NDArray[np.intp], radius: Points) -> Tubes:
    """Every branch in pieces of about 4 mm, bent as the whole piece of lung is; a branch is thickest where it starts."""
    waves = rng.normal(0, 1, (4, 3)) * 2 * np.pi / rng.uniform(16, 40, (4, 1))
    sway, phase = rng.normal(0, 0.85, (4, 3)), rng.uniform(0, 2 * np.pi, 4)

    heading, stem = _headings(points, parent, radius)
    starts, ends, radii = [], [], []
    for n in range(1, len(points)):
        begin, stop = points[parent[n]], points[n]
        length = float(np.sqrt(((stop - begin) ** 2).sum()))
        part = np.linspace(0, 1, max(1, int(np.ceil(length / 4))) + 1)[:, None]
        first = heading[parent[n]] if stem[n] else (stop - begin) / max(length, 1e-6)
        back = 1 - part
        line = (1 + 2 * part) * back**2 * begin + part**2 * (3 - 2 * part) * stop  # a cubic with these headings at its ends
        line += length * part * back * (back * first - part * heading[n])
        thick = min(radius[parent[n]], 1.5 * radius[n])
        taper = thick + (radius[n] - thick) * np.minimum(part[:, 0] * 2.5, 1)
        starts.append(line[:-1])
        ends.append(line[1:])
        radii.append(np.stack([taper[:-1], taper[1:]], axis=1))
    start, end = np.concatenate(starts), np.concatenate(ends)
    for place in (start, end):
        straight = place.copy()
        for wave, shift, size in zip(waves, phase, sway, strict=True):
            place += np.sin((straight * wave).sum(axis=1, keepdims=True) + shift) * size
    return Tubes(start, end, np.concatenate(radii))
