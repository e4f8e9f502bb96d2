"""Noise taken out of the hospitals' mean update by what generated patients say updates look like: a Wiener filter.

The gradients of patients who don't exist span a few dozen directions, and real patients' mean gradient lies mostly in them,
while the noise of differential privacy lies in all directions alike. So the coordinator measures, in each of these directions
and in what is left of each array, how much of the update's square is more than the noise's, which is known, and keeps that
share (Wiener 1949; empirical Bayes, James and Stein 1961). It works on what hospitals have released, and looks at nobody's
patients: by post-processing it costs no privacy, and hospitals need not know of it. That public gradients span what private
ones need is after Yu et al. 2021 (arXiv 2102.12677), who add their noise inside such a span; here the noise stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import FedAvg

Numbers = npt.NDArray[np.float64]
Arrays = Mapping[str, npt.NDArray[Any]]

Gradients = Callable[[Arrays, int], npt.NDArray[np.float32]]
"""(the arrays that hospitals train, round) -> gradients of patients who are free to look at, (patients, numbers)."""

Noise = Callable[[Sequence[float]], float]
"""Declared sizes of the hospitals that answered -> standard deviation of the noise on each number of their mean update."""

_FAINT = 1e-9  # of the largest: directions shorter than that are rounding
_COLUMNS = 2**16


def filtered(update: Numbers, noise_std: float, gradients: npt.NDArray[np.float32], sizes: Sequence[int]) -> Numbers:
    """What of a noisy update is likely no noise.

    Parameters
    ----------
    update : (numbers,)
        The mean update, or a mean of several, with noise.
    noise_std : float
        Of the noise on each of its numbers; 0 gives the update back.
    gradients : (patients, numbers)
        Of free patients at the same weights.
    sizes : sequence of int
        How many numbers each array has, in their order; their sum is `numbers`. What lies outside the gradients' span is
        judged array by array.

    Returns
    -------
    (numbers,), no longer than `update`. Along direction u, in which the free gradients have the mean square l, the share
    a l / (a l + noise_std^2) is kept, with one a for all directions: that which explains the update's length in them.
    """
    if noise_std == 0:
        return update.copy()
    mixes, squares = _span(gradients)  # each direction as a mix of the gradients: as rows they would be twice their size
    along = mixes @ _times(gradients, update)
    noise = noise_std**2
    strength = max(0.0, float(along @ along - len(along) * noise) / float(squares.sum())) if len(along) else 0.0
    rest = update - _mixed(gradients, along @ mixes)
    kept = _mixed(gradients, (along * (strength * squares / (strength * squares + noise))) @ mixes)
    first = 0
    for size in sizes:
        part = rest[first : first + size]
        signal = max(0.0, float(part @ part) / max(1, size) - noise)
        kept[first : first + size] += signal / (signal + noise) * part
        first += size
    return kept


def _span(gradients: npt.NDArray[np.float32]) -> tuple[Numbers, Numbers]:
    """Mixes (k, patients) whose products with the gradients are orthonormal directions, and the mean square along each (k,)."""
    count = max(1, len(gradients))
    products = np.zeros((len(gradients), len(gradients)))
    for part in _parts(gradients):
        products += part @ part.T
    squares, axes = np.linalg.eigh(products / count)
    there = squares > _FAINT * max(squares.max(initial=0.0), np.finfo(np.float64).tiny)
    squares, axes = squares[there], axes[:, there]
    return (axes / np.sqrt(squares * count)).T, squares


def _times(gradients: npt.NDArray[np.float32], vector: Numbers) -> Numbers:
    """Each gradient's product with a vector of as many numbers, (patients,)."""
    found, first = np.zeros(len(gradients)), 0
    for part in _parts(gradients):
        found += part @ vector[first : first + part.shape[1]]
        first += part.shape[1]
    return found


def _mixed(gradients: npt.NDArray[np.float32], weights: Numbers) -> Numbers:
    """The sum of the gradients with these weights (patients,): (numbers,)."""
    return np.concatenate([weights @ part for part in _parts(gradients)])


def _parts(gradients: npt.NDArray[np.float32]) -> Iterator[Numbers]:
    """A few columns at a time in double precision: the whole would take twice what the gradients do."""
    for first in range(0, max(1, gradients.shape[1]), _COLUMNS):
        yield gradients[:, first : first + _COLUMNS].astype(np.float64)


class FedWiener(FedAvg):
    """Steps of a given length along the momentum of the hospitals' mean updates, after the noise was filtered out of it.

    The length is `server_learning_rate` (`eta`, which a schedule may change), whatever the update's own: the filter shortens by
    what it can't tell from noise, and a schedule, not the noise, decides how far a round goes. Of the noise that is left most
    lies across the way, in far more directions than the loss looks at.
    """

    def __init__(self, *, server_learning_rate: float, server_momentum: float, noise: Noise, gradients: Gradients) -> None:
        super().__init__()
        self.eta = server_learning_rate
        self.momentum = server_momentum
        self.noise = noise
        self.gradients = gradients
        self.current_arrays: dict[str, npt.NDArray[Any]] = {}  # what the answers started from
        self.sizes: Sequence[float] = ()  # declared by those who answered
        self.mean: dict[str, Numbers] | None = None
        self.variance = 0.0  # of the noise in `mean`
        self.weight = 0.0  # of all updates so far in `mean`: 1 after many rounds

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The arrays after one step; (None, None) without an answer."""
        averaged, metrics = super().aggregate_train(server_round, replies)
        if averaged is None:
            return None, metrics
        sent = {name: self.current_arrays[name] for name in averaged}
        old = 1.0 - self.momentum
        before = self.mean or {name: np.zeros(array.shape) for name, array in sent.items()}
        self.mean = {
            name: self.momentum * before[name] + old * (array.astype(np.float64) - averaged[name].numpy())
            for name, array in sent.items()
        }
        self.variance = self.momentum**2 * self.variance + (old * self.noise(self.sizes)) ** 2
        self.weight = self.momentum * self.weight + old
        flat = np.concatenate([array.ravel() for array in self.mean.values()]) / self.weight
        std = math.sqrt(self.variance) / self.weight
        gradients = self.gradients(sent, server_round) if std else np.zeros((0, len(flat)), np.float32)
        step = filtered(flat, std, gradients, [array.size for array in sent.values()])
        length = float(np.linalg.norm(step))
        step *= self.eta / length if length else 0.0
        moved, first = {}, 0
        for name, array in sent.items():
            part = step[first : first + array.size].reshape(array.shape)
            moved[name] = Array((array - part).astype(array.dtype))
            first += array.size
        return ArrayRecord(moved), metrics

    def remembered(self) -> dict[str, npt.NDArray[Any]]:
        """What the next round needs of the rounds before; empty before the first."""
        if self.mean is None:
            return {}
        told = {f"mean/{name}": array for name, array in self.mean.items()}
        return {**told, "noise/variance": np.array([self.variance]), "noise/weight": np.array([self.weight])}

    def remember(self, parts: Mapping[str, Mapping[str, npt.NDArray[Any]]]) -> None:
        """Go on from what `remembered` gave, by the first word of its names."""
        noise = parts.get("noise", {})
        self.mean = {name: np.asarray(array, np.float64) for name, array in parts["mean"].items()} if "mean" in parts else None
        self.variance = float(noise["variance"][0]) if noise else 0.0
        self.weight = float(noise["weight"][0]) if noise else 0.0
