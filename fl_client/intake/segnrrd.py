"""Segmentations of 3D Slicer (`.seg.nrrd`): a NRRD volume whose header says what each label of each layer means.

Source: the Slicer developer guide, "Segmentation labelmap file format". Segments that don't overlap
share one layer under different label values; further layers are a first axis of the array. Older files have one layer per
segment and no label values.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from fl_client.intake.labels import LabelMap
from fl_client.intake.mask import Drawing, Flags, MaskRefused, flatten
from fl_client.intake.volume_file import affine_of, opened

SUFFIX = ".seg.nrrd"
_SEGMENT = re.compile(r"Segment(\d+)_(Name|LabelValue|Layer|Tags)")
_TERMINOLOGY = re.compile(r"TerminologyEntry:([^|]*)")


def read_segnrrd(path: Path, labels: LabelMap) -> Drawing:
    """The segments on the grid of the file. Raises `MaskRefused`, `UnmappedLabel` and `GeometryRefused`."""
    image = opened(path, "mask", layers=True)
    fields = {key: image.GetMetaData(key) for key in image.GetMetaDataKeys()}
    if (
        "fractional"
        in fields.get("Segmentation_SourceRepresentation", fields.get("Segmentation_MasterRepresentation", "")).lower()
    ):
        raise MaskRefused("the segmentation is fractional; a mask needs one label per voxel")
    segments = _segments(fields)
    if not segments:
        raise MaskRefused("the segmentation names no segments: its header has none of Slicer's fields")
    array = sitk.GetArrayFromImage(image)
    layers = array[..., None] if array.ndim == 3 else array  # (slices, rows, columns, layers)
    if layers[..., 0].size == 1:
        raise MaskRefused("the mask is empty")  # Slicer's way of saving a segmentation without voxels
    one_each = not any("LabelValue" in segment or "Layer" in segment for segment in segments.values())

    def drawn() -> Iterator[tuple[int, Flags]]:
        for number, segment in sorted(segments.items()):
            value = labels.of_segment(f"segment {number}", segment.get("Name", ""), _codes(segment.get("Tags", "")))
            layer = number if one_each else _whole(segment.get("Layer", "0"))
            label = 1 if one_each else _whole(segment.get("LabelValue", "1"))
            if not 0 <= layer < layers.shape[-1]:
                raise MaskRefused(f"segment {number} lies in layer {layer}; the file has {layers.shape[-1]}")
            yield value, layers[..., layer] == label

    _check_labels(layers, segments, one_each=one_each)
    mask, notes = flatten(drawn(), layers.shape[:3], labels)
    return Drawing(mask, affine_of(image), notes)


def _segments(fields: Mapping[str, str]) -> dict[int, dict[str, str]]:
    found: dict[int, dict[str, str]] = {}
    for key, text in fields.items():
        if match := _SEGMENT.fullmatch(key):
            found.setdefault(int(match[1]), {})[match[2]] = text
    return found


def _codes(tags: str) -> list[tuple[str, str]]:
    """Coded concepts of a segment's terminology: type first, then the anatomic region.

    An entry is context~category~type~modifier~context~region~modifier, a concept scheme^value^meaning.
    """
    entry = _TERMINOLOGY.search(tags)
    parts = entry[1].split("~") if entry else []
    concepts = [parts[index].split("^") for index in (2, 5) if index < len(parts)]
    return [(concept[0], concept[1]) for concept in concepts if len(concept) > 1 and concept[1]]


def _check_labels(
    layers: np.ndarray[tuple[int, ...], np.dtype[np.generic]], segments: dict[int, dict[str, str]], *, one_each: bool
) -> None:
    """Every label in the array belongs to a segment of the header: what else there is, nobody named."""
    for layer in range(layers.shape[-1]):
        held = {int(value) for value in np.unique(layers[..., layer])} - {0}
        if one_each:
            named = {1} if layer in segments else set()
        else:
            mine = [segment for segment in segments.values() if _whole(segment.get("Layer", "0")) == layer]
            named = {_whole(segment.get("LabelValue", "1")) for segment in mine}
        if held - named:
            raise MaskRefused(
                f"layer {layer} holds the labels {sorted(held - named)[:5]}, which belong to no segment of the header"
            )


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise MaskRefused("a segment's layer or label value is no whole number") from None
