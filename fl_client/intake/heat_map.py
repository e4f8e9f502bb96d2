"""Where a model is unsure, for viewers: a DICOM Parametric Map on the grid of the images that it was made on.

Values are numbers from 0 to 1 per voxel and no probability of anything being there, so it is no fractional segmentation:
that would say of each voxel how much of it belongs to a structure. Stored as whole thousandths, which more viewers read than
floating point, with a real world value mapping that tells it. DICOM PS3.3 A.75 and C.8.32 (Parametric Map), C.7.6.16.2.11
(mapping); the quantity has no code in DICOM's lists, so it is konsil's own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import highdicom as hd
import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid

from fl_client.intake.deidentify import discreet
from fl_client.intake.multiframe import Chosen
from fl_client.intake.write_back import NOTE, images_of, name_frames

STORAGE = "1.2.840.10008.5.1.4.1.1.30"
"""SOP class of a Parametric Map."""
ENTROPY = Code("ENTROPY", "99KONSIL", "Entropy of class probabilities, 0 sure to 1 guessing")
NO_UNIT = Code("1", "UCUM", "no units")
STEPS = 1000
"""Stored value of 1.0."""


def make_heat_map(
    values: npt.NDArray[np.floating], source: Path | Sequence[Dataset] | Chosen, *, algorithm: str
) -> hd.pm.ParametricMap:
    """Entropy (slices, rows, columns) from 0 to 1 as a Parametric Map that refers to the images it was made on.

    `source` is as in `write_back.make_seg`. Raises `ValueError` for a shape that isn't the series' and for other values.
    """
    if not (np.isfinite(values).all() and values.min(initial=0) >= 0 and values.max(initial=0) <= 1):
        raise ValueError("a heat map holds numbers from 0 to 1")
    with discreet():
        images, places = images_of(source, values.shape, "heat map")
        stored = np.rint(values * STEPS).astype(np.uint16)
        entropy = [
            str(images[0].SeriesInstanceUID),
            algorithm,
            hashlib.sha256(stored.tobytes()).hexdigest(),
            *([str(source.numbers)] if isinstance(source, Chosen) else []),
        ]
        made = hd.pm.ParametricMap(
            source_images=images,
            pixel_array=stored,
            series_instance_uid=generate_uid(entropy_srcs=["heat map series", *entropy]),
            series_number=int(images[0].get("SeriesNumber") or 0) + 200,
            sop_instance_uid=generate_uid(entropy_srcs=["heat map", *entropy]),
            instance_number=1,
            manufacturer="konsil",
            manufacturer_model_name="konsil",
            software_versions=version("konsil"),
            device_serial_number="none",
            contains_recognizable_visual_features=False,
            real_world_value_mappings=[
                hd.pm.RealWorldValueMapping(
                    lut_label="ENTROPY",
                    lut_explanation="0: sure, 1: guessing",
                    unit=NO_UNIT,
                    value_range=(0, STEPS),
                    slope=1 / STEPS,
                    intercept=0,
                    quantity_definition=ENTROPY,
                )
            ],
            voi_lut_transformations=[hd.VOILUTTransformation(window_center=STEPS / 2, window_width=STEPS)],
            content_description=NOTE,
            content_label="ENTROPY",
            content_qualification="RESEARCH",
            plane_positions=places,
            series_description=("uncertainty of " + algorithm)[:64],
        )
        made.Laterality = made.get("Laterality") or ""  # of paired organs; empty: not said
        if isinstance(source, Chosen):
            name_frames(made, source)
    return made


def write_heat_map(
    values: npt.NDArray[np.floating], source: Path | Sequence[Dataset] | Chosen, path: Path | str, *, algorithm: str
) -> None:
    """Write a heat map, as `make_heat_map` makes it."""
    with discreet():
        make_heat_map(values, source, algorithm=algorithm).save_as(path)
