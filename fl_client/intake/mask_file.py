"""A mask in a file of its own: 3D Slicer's `.seg.nrrd`, or a label volume with or without ITK-SNAP's label descriptions.

Label volumes are NIfTI, NRRD or MetaImage. Whose a file is and on which image it was drawn, `drawn_on` finds out; here it is
read, each format by its own rules.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np

from fl_client.intake.itksnap import SUFFIXES as DESCRIPTIONS
from fl_client.intake.itksnap import meanings, read_descriptions
from fl_client.intake.labels import LabelMap
from fl_client.intake.mask import Drawing
from fl_client.intake.segnrrd import SUFFIX as SLICER
from fl_client.intake.segnrrd import read_segnrrd
from fl_client.intake.volume_file import read_grid, stem_of

SHARED = "labels"  # labels.txt or labels.label describes every volume of its folder


def descriptions_of(path: Path) -> Path | None:
    """ITK-SNAP's label descriptions of a volume: its name with .txt or .label, else `labels.txt` or `labels.label` there."""
    places = [path.with_name(stem + suffix) for stem in (stem_of(path), SHARED) for suffix in DESCRIPTIONS]
    return next((place for place in places if place.is_file()), None)


def all_descriptions(volumes: Collection[Path]) -> set[Path]:
    """The label descriptions that belong to any of these volumes."""
    return {found for path in volumes if (found := descriptions_of(path)) is not None}


def read_mask_file(path: Path, labels: LabelMap) -> Drawing:
    """The mask on its own grid. Raises `MaskRefused`, `UnmappedLabel` and `GeometryRefused`."""
    if path.name.lower().endswith(SLICER):
        return read_segnrrd(path, labels)
    values, affine = read_grid(path, "mask")
    described = descriptions_of(path)
    if described is None or not np.array_equal(values, np.rint(values)):
        return Drawing(labels.translate(values), affine)
    names = read_descriptions(described)
    mask = np.zeros(values.shape, np.uint8)
    for number, value in meanings(names, labels, {int(held) for held in np.unique(values)} - {0}).items():
        mask[values == number] = value
    return Drawing(mask, affine)
