"""Enhanced multi-frame images made by hand from classic slices: nested as PS3.3 C.7.6.16 has it, frames in any order."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.1"
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"
NOT_PER_FRAME = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices",
                 "InstanceNumber", "TriggerTime", "InversionTime", "EchoTime", "RescaleSlope", "RescaleIntercept")  # fmt: skip


def item(**elements: object) -> Dataset:
    dataset = Dataset()
    for name, value in elements.items():
        setattr(dataset, name, value)
    return dataset


def enhanced(
    slices: Sequence[Dataset], further: Callable[[int], dict[str, Dataset]] = lambda index: {}, *, sop_class: str = ENHANCED_MR
) -> Dataset:
    """One instance whose frames are these slices in this order; `further` gives more functional groups per frame."""
    result = copy.deepcopy(slices[0])
    for name in NOT_PER_FRAME:
        if name in result:
            del result[name]
    result.SOPClassUID = result.file_meta.MediaStorageSOPClassUID = sop_class
    result.SOPInstanceUID = result.file_meta.MediaStorageSOPInstanceUID = generate_uid(
        entropy_srcs=[str(one.SOPInstanceUID) for one in slices]
    )
    result.InstanceNumber, result.NumberOfFrames = 1, len(slices)
    first = slices[0]
    result.SharedFunctionalGroupsSequence = [
        item(
            PlaneOrientationSequence=[item(ImageOrientationPatient=first.ImageOrientationPatient)],
            PixelMeasuresSequence=[item(PixelSpacing=first.PixelSpacing, SliceThickness=first.SliceThickness)],
        )
    ]
    result.PerFrameFunctionalGroupsSequence = []
    for index, one in enumerate(slices):
        groups = item(
            FrameContentSequence=[item(StackID="1", InStackPositionNumber=index + 1)],
            PlanePositionSequence=[item(ImagePositionPatient=one.ImagePositionPatient)],
            MRImageFrameTypeSequence=[item(FrameType=["ORIGINAL", "PRIMARY", "M", "NONE"])],
        )
        for name, group in further(index).items():
            setattr(groups, name, [group])
        result.PerFrameFunctionalGroupsSequence.append(groups)
    result.PixelData = b"".join(one.PixelData for one in slices)
    return result
