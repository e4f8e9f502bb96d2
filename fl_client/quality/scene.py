"""What of a magnetic resonance image is field, tissue and air: the ground that quality parameters are measured on.

In-plane parameters look at no more than `SLICES` slices, evenly spread over the stack, so that a thick stack costs no more
than a thin one. Scanners leave black what they did not reconstruct (a disc or a barrel after gradient correction) and some
blank out the air; neither is air in which anything can be measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Floats = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]

SLICES = 8
"""So many slices are looked at, at most."""

AIR_SHARE = 0.02
"""Air is measured where it covers at least this share of the field."""

MARGIN = 3
"""Pixels between tissue and what counts as air: ringing and partial volume stay out."""

BLOCK = 8
"""Side of the blocks, in pixels, by which the noise of air is measured."""

MAGNITUDE = (1.2, 12.0)
"""Mean over standard deviation of air in a magnitude image: 1.9 for one coil (Rayleigh), about 8 for sixteen, 1.3 for the
absolute value of real noise. A signed image has its air at 0 or at an offset, and a ratio far from these."""

_IN_PLANE = ndimage.generate_binary_structure(3, 1)[1:2]


@dataclass(frozen=True, eq=False)
class Scene:
    """Some slices of an image, float32 (slices, rows, columns), and masks of the same shape.

    `field` is what the scanner reconstructed; `tissue` gives signal; `air` is dark and reaches the far corners of the field.
    `level` is the median of tissue above `floor`, the image's darkest hundredth.
    """

    image: Floats
    field: Flags
    tissue: Flags
    air: Flags
    floor: float
    level: float

    @property
    def body(self) -> Flags:
        """The field without the air: tissue and the lungs between."""
        beside = ndimage.binary_dilation(self.air, _IN_PLANE, iterations=MARGIN + 1) & ~self.tissue
        body: Flags = self.field & ~beside
        return body

    @property
    def darkest_is_zero(self) -> bool:
        """Whether no signal is value zero: neither a signed image, nor a cut-out without anything dark in it."""
        return 0 <= self.floor < 0.25 * (self.floor + self.level)

    @cached_property
    def why_no_air(self) -> str:
        """Why nothing can be measured in the air; empty if something can."""
        if self.air.sum() < AIR_SHARE * max(self.field.sum(), 1):
            return f"air covers less than {AIR_SHARE:.0%} of the field"
        if (self.image[self.air] == self.image.min()).mean() > 0.5:
            return "the scanner blanked out the air"
        mean, sd = self.quiet_air
        if sd <= 1e-4 * (self.floor + self.level):
            return "the scanner blanked out the air, or left pieces of less than 8 x 8 pixels"
        if not MAGNITUDE[0] <= mean / sd <= MAGNITUDE[1]:
            return "its noise is not that of a magnitude image"
        return ""

    @cached_property
    def quiet_air(self) -> tuple[float, float]:
        """Mean and standard deviation within blocks of the darkest quarter of the air, where ghosts hardly reach.

        Both are 0 if there is too little.
        """
        slices, rows, columns = self.image.shape
        high, wide = rows // BLOCK, columns // BLOCK

        def blocks(array: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
            cut = array[:, : high * BLOCK, : wide * BLOCK].reshape(slices, high, BLOCK, wide, BLOCK)
            return cut.swapaxes(2, 3).reshape(-1, BLOCK * BLOCK)

        values = np.asarray(blocks(self.image), np.float64)[np.asarray(blocks(self.air), bool).all(axis=1)]
        if len(values) < 4:
            return 0.0, 0.0
        means = values.mean(axis=1)
        values = values[means <= np.percentile(means, 25)]
        return float(values.mean()), float(np.sqrt(values.var(axis=1).mean()))


def look_at(image: npt.NDArray[np.generic]) -> Scene:
    """The scene of one volume (slices, rows, columns)."""
    slices = some_slices(image)
    black = padding(slices)
    field = np.broadcast_to(~black, slices.shape)
    seen = slices[:, ~black]
    if seen.size == 0 or seen.min() == seen.max():
        nothing = np.zeros_like(field)
        return Scene(slices, field, nothing, nothing, 0.0, 0.0)
    floor = float(np.percentile(seen.ravel()[::3], 1))
    smooth = ndimage.uniform_filter(slices, (0, 3, 3))
    tissue: Flags = field & (smooth > _threshold(smooth[:, ~black].ravel()[::3], floor))
    level = max(float(np.median(slices[tissue][::3])) - floor, 0.0) if tissue.any() else 0.0
    return Scene(slices, field, tissue, _air(field[0], tissue), floor, level)


def some_slices(image: npt.NDArray[np.generic]) -> Floats:
    """At most `SLICES` slices, from first to last, as float32."""
    chosen = np.unique(np.linspace(0, len(image) - 1, min(SLICES, len(image))).round().astype(int))
    return np.asarray(image[chosen], np.float32)


def padding(slices: Floats) -> Flags:
    """Pixels (rows, columns) that were never reconstructed: of the smallest value in every slice, reaching the edge.

    A scanner that blanks out the air leaves black what differs from slice to slice; that is no padding.
    """
    black = slices == slices.min()
    always: Flags = black.all(axis=0)
    if always.mean() < 0.01 or always.sum() < 0.8 * black.sum() / len(black):
        return np.zeros_like(always)
    pieces, _ = ndimage.label(always)
    edge = np.unique(np.concatenate([pieces[0], pieces[-1], pieces[:, 0], pieces[:, -1]]))
    outside: Flags = np.isin(pieces, edge[edge > 0])
    return outside


def touching(field: Flags, body: Flags) -> float:
    """Share of the field's rim (rows, columns) that lies in the body (slices, rows, columns): what was cut off."""
    rim = field & ~ndimage.binary_erosion(field, border_value=0)
    return float(body[:, rim].mean()) if rim.any() else 0.0


def _threshold(values: Floats, floor: float) -> float:
    """Otsu's threshold (IEEE Trans Syst Man Cybern 9, 1979) of logarithms.

    On that scale neither bright fat nor a coil nearby moves it much, and ghosts stay on the side of the air.
    """
    offset = 0.02 * float(np.percentile(values, 99) - floor) - floor
    counts, edges = np.histogram(np.log(np.maximum(values + offset, 1e-3)), bins=128)
    middle = (edges[:-1] + edges[1:]) / 2
    below, sums = np.cumsum(counts)[:-1], np.cumsum(counts * middle)
    above = counts.sum() - below  # the last bin is never alone above: both sides hold something
    between = below * above * (sums[:-1] / below - (sums[-1] - sums[:-1]) / above) ** 2
    return float(np.exp(middle[:-1][between.argmax()])) - offset


def _air(field: Flags, tissue: Flags) -> Flags:
    """What is dark and hangs together with the far corners of the field, away from tissue and from the rim of a disc."""
    near = ndimage.binary_dilation(tissue, _IN_PLANE, iterations=MARGIN)
    inner = ndimage.binary_erosion(field, iterations=2, border_value=1)
    rows, columns = (np.arange(n) - (n - 1) / 2 for n in field.shape)
    away = np.hypot(rows[:, None], columns[None])
    far = inner & (away >= np.percentile(away[field], 95))  # air is there, lungs are not
    dark = inner & ~near
    pieces, _ = ndimage.label(dark, np.where(_IN_PLANE, 1, np.zeros((3, 1, 1), int)))
    reached = np.unique(pieces[:, far])
    air: Flags = np.isin(pieces, reached[reached > 0])
    return air
