"""Enhanced multi-frame MR and CT, taken apart: every frame becomes a slice with a header of its own.

An enhanced image says once what holds for all frames (shared functional groups) and per frame what differs (PS3.3 C.7.6.16).
Here both are laid flat into the elements that a classic slice has, so that splitting, the geometry gate and rescaling know one
kind of slice. Images converted from classic ones ("legacy converted") carry what didn't fit anywhere as unassigned attributes,
which are laid flat, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.uid import (
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
    LegacyConvertedEnhancedMRImageStorage,
)

from fl_client.intake.volume import Frame

ENHANCED = frozenset(
    map(
        str,
        (
            EnhancedMRImageStorage,
            EnhancedCTImageStorage,
            LegacyConvertedEnhancedMRImageStorage,
            LegacyConvertedEnhancedCTImageStorage,
        ),
    )
)

GROUPS = (
    "UnassignedSharedConvertedAttributesSequence",
    "UnassignedPerFrameConvertedAttributesSequence",
    "PixelMeasuresSequence",
    "PlanePositionSequence",
    "PlaneOrientationSequence",
    "PixelValueTransformationSequence",
    "FrameContentSequence",
    "MRImageFrameTypeSequence",
    "CTImageFrameTypeSequence",
    "MREchoSequence",
    "MRDiffusionSequence",
    "CardiacSynchronizationSequence",
    "TemporalPositionSequence",
    "CTAcquisitionDetailsSequence",
    "ConversionSourceAttributesSequence",  # which classic slice it was: a mask may have been drawn on that
)
"""Functional groups whose elements are laid flat, in this order: a later one overrides what an earlier one says."""

NAMES = {"FrameType": "ImageType", "EffectiveEchoTime": "EchoTime", "FrameAcquisitionNumber": "AcquisitionNumber"}
"""Elements that a classic slice knows by another name."""

LEFT_BEHIND = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "NumberOfFrames")


@dataclass(frozen=True, eq=False)
class Chosen:
    """Frames of one multi-frame image as it came, in slice order, for a mask that has to name them."""

    image: Dataset
    numbers: tuple[int, ...]  # from 1

    @property
    def positions(self) -> npt.NDArray[np.float64]:
        """ImagePositionPatient of each, (frames, 3) mm. Raises `Unframed` for a frame without one."""
        shared = self.image.get("SharedFunctionalGroupsSequence") or [Dataset()]
        found = []
        for number in self.numbers:
            groups = self.image.PerFrameFunctionalGroupsSequence[number - 1]
            places = groups.get("PlanePositionSequence") or shared[0].get("PlanePositionSequence")
            if not places:
                raise Unframed(f"frame {number} has no position")
            found.append(places[0].ImagePositionPatient)
        return np.array(found, float)


class Unframed(ValueError):
    """The enhanced image can't be taken apart; the text says why."""


def frames_of(path: Path, header: Dataset) -> list[Frame]:
    """Every frame of a de-identified enhanced image, numbered from 1, with a flat header. Raises `Unframed`."""
    count = int(header.get("NumberOfFrames") or 0)
    per_frame = header.get("PerFrameFunctionalGroupsSequence") or []
    if count < 1 or len(per_frame) != count:
        raise Unframed(f"an enhanced image of {count} frames that describes {len(per_frame)} of them")
    shared = _flat(header.get("SharedFunctionalGroupsSequence") or [])
    stays = Dataset()
    for element in header:
        if element.keyword not in LEFT_BEHIND:
            stays.add(element)
    stays.update(shared)
    frames = []
    for number, groups in enumerate(per_frame, 1):
        flat = Dataset()
        flat.update(stays)
        flat.update(_flat([groups]))
        frames.append(Frame(path, flat, number))
    return frames


def _flat(items: list[Dataset]) -> Dataset:
    """The elements of the known groups in one dataset, without nesting."""
    flat = Dataset()
    for item in items:
        for name in GROUPS:
            for group in item.get(name) or []:
                for element in group:
                    keyword = NAMES.get(element.keyword, element.keyword)
                    if element.VR != "SQ":
                        setattr(flat, keyword, element.value)
                    elif keyword == "DiffusionGradientDirectionSequence" and element.value:
                        flat.DiffusionGradientOrientation = element.value[0].get("DiffusionGradientOrientation")
    return flat
