"""DICOM segmentations (SEG, binary and label map), read by highdicom.

Every segment is looked up in the label map by its name and its code. Segments that overlap are laid over each other by the
map's priority; a fractional segmentation has no one label per voxel and is refused.
"""

from __future__ import annotations

from collections.abc import Iterator

import highdicom as hd
import numpy as np
from pydicom.dataset import Dataset

from fl_client.intake.labels import LabelMap
from fl_client.intake.mask import Drawing, Flags, MaskRefused, flatten


def read_seg(seg: Dataset, labels: LabelMap) -> Drawing:
    """A de-identified DICOM SEG with its pixels, on its own grid.

    Raises `MaskRefused` for fractional segments, frames that form no volume, and an overlap that the map has no priority for;
    `UnmappedLabel` for a segment whose label and code the map doesn't know.
    """
    if "SegmentSequence" not in seg or not seg.SegmentSequence:
        raise MaskRefused("the segmentation names no segments")
    # a label map may describe its background, number 0, which is no segment
    values = {int(item.SegmentNumber): _value(item, labels) for item in seg.SegmentSequence if int(item.SegmentNumber)}
    if seg.get("SegmentationType") not in ("BINARY", "LABELMAP"):
        raise MaskRefused("the segmentation is fractional; a mask needs one label per voxel")
    try:
        opened = hd.seg.Segmentation.from_dataset(seg, copy=False)
    except Exception as error:  # highdicom raises many kinds; the texts may hold identifiers
        raise MaskRefused(f"the segmentation can't be read ({type(error).__name__})") from None
    try:
        volume = opened.get_volume(combine_segments=True, dtype=np.uint16)
    except Exception as error:
        if "overlap" in str(error).lower():
            # opened anew: the table that highdicom looked into stays half made
            return _laid_over(hd.seg.Segmentation.from_dataset(seg, copy=False), values, labels)
        raise MaskRefused(f"the segmentation can't be read: its frames form no volume ({type(error).__name__})") from None
    mask = np.zeros(volume.array.shape, np.uint8)
    for number, value in values.items():
        mask[volume.array == number] = value
    return Drawing(mask, np.asarray(volume.affine, np.float64))


def _laid_over(opened: hd.seg.Segmentation, values: dict[int, int], labels: LabelMap) -> Drawing:
    """Overlapping segments, one after the other: all at once would take the memory of as many volumes."""
    try:
        first = opened.get_volume(segment_numbers=[min(values)], combine_segments=False)

        def segments() -> Iterator[tuple[int, Flags]]:
            for number, value in values.items():
                array = opened.get_volume(segment_numbers=[number], combine_segments=False).array
                yield value, array[..., 0] > 0

        mask, notes = flatten(segments(), first.array.shape[:3], labels)
    except MaskRefused as refused:
        raise MaskRefused(f"the segmentation can't be read: {refused}") from None
    except Exception as error:
        raise MaskRefused(f"the segmentation can't be read: its frames form no volume ({type(error).__name__})") from None
    return Drawing(mask, np.asarray(first.affine, np.float64), notes)


def _value(segment: Dataset, labels: LabelMap) -> int:
    types = segment.get("SegmentedPropertyTypeCodeSequence") or []
    codes = [(str(item.get("CodingSchemeDesignator", "")), str(item.get("CodeValue", ""))) for item in types[:1]]
    return labels.of_segment(f"segment {int(segment.SegmentNumber)}", str(segment.get("SegmentLabel", "") or ""), codes)
