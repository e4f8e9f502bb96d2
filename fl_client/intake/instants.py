"""Several images at each slice position, told apart by when they were taken: a cine's phases, an inversion series, a perfusion.

Scanners say "when" in different elements, classic or enhanced; the first one that tells all images of every position apart
counts. Images are ranked at their own position, because trigger times differ between slices with the heart rate; what has one
rank has to lie at nearly the same share of the cycle on all slices, or else images are missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset

from fl_client.intake.volume import Frame, GeometryRefused

WHEN: tuple[tuple[str, str], ...] = (
    ("NominalCardiacTriggerDelayTime", "trigger delay"),
    ("TriggerTime", "trigger time"),
    ("TemporalPositionIdentifier", "temporal position"),
    ("TemporalPositionIndex", "temporal position"),
    ("TemporalPositionTimeOffset", "time offset"),
    ("InversionTime", "inversion time"),
    ("AcquisitionNumber", "acquisition number"),
)
"""Elements that say when, in the order in which they are asked, and what they are called in words."""

IN_MS = ("NominalCardiacTriggerDelayTime", "TriggerTime")
SHIFTED = 0.75
"""Phases by which images of one rank may lie apart in their own cycles. A slice that lacks its first image is off by one."""


@dataclass(frozen=True)
class Instants:
    """Frames by rank in time, each list with one frame per position, and what ranked them."""

    frames: list[list[Frame]]
    by: str


def instants(frames: Sequence[Frame], *, cycle: bool = False) -> Instants:
    """The frames by rank in time at their positions. `cycle` says that time is that of a heartbeat and is compared over slices.

    Raises `GeometryRefused` for images without a position, positions with unequal numbers of images, images that no element
    tells apart, and ranks that mean different parts of the cycle on different slices.
    """
    positions: dict[tuple[float, ...], list[Frame]] = {}
    for frame in frames:
        if frame.header.get("ImagePositionPatient") in (None, ""):
            raise GeometryRefused("an image without a position")
        place = np.round(np.array(frame.header.ImagePositionPatient, float), 2)
        positions.setdefault(tuple(place), []).append(frame)
    several = list(positions.values())
    counts = sorted({len(some) for some in several})
    if counts == [1]:
        return Instants([list(frames)], "nothing")
    found = next(((keyword, words) for keyword, words in WHEN if _tells_apart(keyword, several)), None)
    if found is None:
        raise GeometryRefused(
            f"{len(frames)} images at {len(several)} positions, which neither trigger time nor temporal position tells apart"
        )
    keyword, words = found
    if len(counts) > 1:
        raise GeometryRefused(f"{counts[0]} to {counts[-1]} phases per slice; every slice needs the same number")
    ranked = [sorted(some, key=lambda frame: _when(frame.header, keyword)) for some in several]
    if cycle and keyword in IN_MS:
        _check_cycles(ranked, keyword, words)
    return Instants([[some[rank] for some in ranked] for rank in range(counts[0])], words)


def _when(header: Dataset, keyword: str) -> float:
    return float(header[keyword].value)


def _tells_apart(keyword: str, positions: Sequence[Sequence[Frame]]) -> bool:
    """Whether every image has the element, and no two at one position have the same."""
    for some in positions:
        values = [frame.header.get(keyword) for frame in some]
        if any(value in (None, "") for value in values) or len({float(value) for value in values}) < len(values):
            return False
    return True


def _check_cycles(ranked: Sequence[Sequence[Frame]], keyword: str, words: str) -> None:
    """Whether one rank is one part of the heartbeat on all slices, each slice's own cycle taken as one."""
    times = np.array([[_when(frame.header, keyword) for frame in some] for some in ranked])  # (positions, phases) ms
    count = times.shape[1]
    if count < 3:
        return  # of two images the step between phases says nothing
    cycles = times[:, -1:] + np.median(np.diff(times, axis=1), axis=1, keepdims=True)
    apart = np.ptp(times / cycles, axis=0) * count  # in phases, by rank
    if apart.max() > SHIFTED:
        rank = int(apart.argmax())
        raise GeometryRefused(
            f"image {rank + 1} of {count} lies at a {words} of {times[:, rank].min():g} to {times[:, rank].max():g} ms on "
            f"different slices, which is {apart.max():.1f} phases apart in the slices' own cycles: images are missing"
        )
