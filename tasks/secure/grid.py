"""Numbers on a grid: named arrays of floats as one vector of whole numbers modulo 2**32, and back.

Only whole numbers can be masked and summed without rounding. The step of the grid comes from public facts alone (bound,
declared patients, noise), so that the sum of all sites can't leave the 32 bits, and so that what rounding does to one
patient's influence is known: it adds at most one step in each coordinate. Source: Kairouz, Liu, Steinke 2021, without
their rotation and their rounding at random.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tasks.secure.circle import Circle, WrongSum
from tasks.secure.masks import Vector
from tasks.secure.noise import TOTAL_VARIATION, Bits, discrete_gaussian

Floats = npt.NDArray[np.floating]
_HALF = 2**31 - 1  # largest number of the 32 bits, as signed
_DEVIATIONS = 10  # noise up to so many standard deviations never leaves them; beyond lies 2e-23 per number
_PIECE = 1 << 16  # numbers at a time
FINEST_NOISE = 16.0
"""Steps that the noise of one site must span at least: then sums of discrete Gaussians are discrete Gaussians but for
exp(-2000)."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """How totals become whole numbers; the same at every site and at the coordinator.

    All of it from the study, never from a question: on different grids the sites' noise would not add up to what was promised.

    Parameters
    ----------
    circle
        Who sums.
    shapes
        Name and shape of every array of a site's total; their order is that of the vector.
    bound
        L2 norm that one patient's contribution, all arrays together, can have at most.
    patients
        Declared patients of all sites together.
    noise_multiplier
        Promised noise of the sum over `bound`; 0 is none.

    Raises
    ------
    ValueError
        Where no grid of 32 bits can hold the sum, or the noise would be too small for it.
    """

    circle: Circle
    shapes: Mapping[str, tuple[int, ...]]
    bound: float
    patients: int
    noise_multiplier: float

    def __post_init__(self) -> None:
        if not 0 < self.bound < math.inf:
            raise ValueError(f"a secure sum needs a finite positive bound on one patient's contribution, not {self.bound}")
        if self.patients < 1:
            raise ValueError(f"the hospitals of a secure sum declare at least one patient together, not {self.patients}")
        if not 0 <= self.noise_multiplier < math.inf:
            raise ValueError(f"noise_multiplier must be a finite number >= 0, not {self.noise_multiplier}")
        if self.length < 1:
            raise ValueError("there is nothing to sum: no array, or empty ones")
        if self._room() < _HALF / 2:
            raise ValueError(
                f"a multiplier of {self.noise_multiplier} on {self.length} numbers of {len(self.circle.keys)} "
                "hospitals does not fit into 32 bits"
            )
        if 0 < self.share_std < FINEST_NOISE:
            raise ValueError(
                f"noise of {self.share_std:.3g} steps at each site is too coarse for this grid: it needs {FINEST_NOISE:g}. "
                f"Fewer declared patients ({self.patients}) or a larger noise_multiplier ({self.noise_multiplier}) would do"
            )

    @property
    def length(self) -> int:
        """Numbers in the vector."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    @property
    def step(self) -> float:
        """Distance of two points of the grid, a power of two, so that dividing by it rounds nothing."""
        least = self.bound * (self.patients + self._noise_per_sensitivity()) / self._room()
        return math.ldexp(1.0, math.ceil(math.log2(least)))

    @property
    def sensitivity(self) -> float:
        """L2 distance, in steps, of the totals with and without one patient, after rounding."""
        return self.bound / self.step + math.sqrt(self.length)

    @property
    def share_std(self) -> float:
        """Standard deviation, in steps, of the noise that each site adds: its share of what is promised for the sum."""
        return self.noise_multiplier * self.sensitivity / math.sqrt(self.circle.noise_shares)

    @property
    def sampling_error(self) -> float:
        """Total variation of the noise that counts, as it is drawn, from exact discrete Gaussians: all shares, all numbers."""
        return self.circle.noise_shares * self.length * TOTAL_VARIATION

    @property
    def max_error(self) -> float:
        """What rounding can do to one number of the sum: half a step at each site."""
        return len(self.circle.keys) * self.step / 2

    def encode(self, arrays: Mapping[str, Floats], *, patients: int, bits: Bits) -> Vector:
        """A site's total on the grid with its noise: uint32, (length,).

        `patients` is what the site declares. A total that more patients than these made is cut to what these can make, so
        that the sum stays within 32 bits; cutting brings neighbours no further apart.
        """
        if set(arrays) != set(self.shapes):
            raise ValueError(f"the sum is over {', '.join(self.shapes)}, not over {', '.join(arrays)}")
        most = math.floor(patients * self.bound / self.step)
        vector = np.empty(self.length, dtype=np.uint32)
        place = 0
        for name, shape in self.shapes.items():
            if arrays[name].shape != shape:
                raise ValueError(f"'{name}' has shape {arrays[name].shape}, not {shape}")
            flat = arrays[name].reshape(-1)
            for start in range(0, flat.size, _PIECE):
                piece = np.rint(flat[start : start + _PIECE].astype(np.float64) / self.step)
                if not np.isfinite(piece).all():
                    raise ValueError(f"'{name}' holds a number that is not finite")
                whole = np.clip(piece, -most, most).astype(np.int64)
                whole += discrete_gaussian(whole.size, std=self.share_std, bits=bits)
                vector[place : place + whole.size] = whole.astype(np.uint32)  # modulo 2**32
                place += whole.size
        return vector

    def decode(self, total: Vector, *, sites: Sequence[str]) -> dict[str, npt.NDArray[np.float64]]:
        """The sum over `sites` as named arrays.

        Raises `WrongSum` for a sum that no patients and no noise make but in one of 10**20 cases: so look masks that were left
        on. It takes some hundred numbers to be seen; a sum of few may pass.
        """
        if total.shape != (self.length,) or total.dtype != np.uint32:
            raise ValueError(f"the sum must be uint32 of ({self.length},), not {total.dtype} of {total.shape}")
        signed = total.view(np.int32)
        norm = math.sqrt(sum(float(np.square(piece.astype(np.float64)).sum()) for piece in _in_pieces(signed)))
        noise = self.share_std * math.sqrt(len(sites))
        most = (
            self.patients * self.bound / self.step
            + noise * (math.sqrt(self.length) + _DEVIATIONS)
            + len(sites) * math.sqrt(self.length)
        )
        if norm > most:
            raise WrongSum(
                f"the sum has a norm of {norm * self.step:.4g}; {self.patients} patients of at most {self.bound:g} and the "
                f"noise make at most {most * self.step:.4g}: masks were left on, or a site sent what it may not"
            )
        found, place = {}, 0
        for name, shape in self.shapes.items():
            size = math.prod(shape)
            found[name] = (signed[place : place + size] * np.float64(self.step)).reshape(shape)
            place += size
        return found

    def _noise_per_sensitivity(self) -> float:
        """How many times the sensitivity the noise of all sites together reaches."""
        return _DEVIATIONS * self.noise_multiplier * math.sqrt(len(self.circle.keys) / self.circle.noise_shares)

    def _room(self) -> float:
        """Steps left in one direction for bound and noise, after what rounding takes at every site."""
        return _HALF - len(self.circle.keys) - self._noise_per_sensitivity() * math.sqrt(self.length)


def _in_pieces(vector: npt.NDArray[np.int32]) -> list[npt.NDArray[np.int32]]:
    return [vector[start : start + _PIECE] for start in range(0, len(vector), _PIECE)]
