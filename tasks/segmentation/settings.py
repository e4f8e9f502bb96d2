"""What a segmentation study may choose: structures, series, looks, network, loss weights, augmentation.

All of it is agreed between the sites before anything runs and nothing of it is computed from a patient, so none of it
costs privacy. One number for a length stands for the same number along every axis of the network's input.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from conf.study import Frozen
from tasks.case import UNKNOWN

Length = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
PREPARED_BY = ("prepare.py", "look.py", "partial.py")
"""The code that makes the prepared arrays; when it changes, they are made anew."""


class Augment(Frozen):
    """How far a training view may differ from the image it was taken from; each value is drawn anew for each row."""

    rotation_deg: Annotated[float, Field(ge=0, le=180)] = 30.0  # uniform within +-; in 3D about each axis
    scale: Annotated[float, Field(ge=0, lt=0.9)] = 0.15  # the look's size times 1 +- this, each axis a quarter of it again
    shift_mm: Annotated[float, Field(ge=0)] = 12.0  # wide look: its centre, uniform within +- along each axis
    roi_shift_mm: Annotated[float, Field(ge=0)] = 8.0  # close look: as far as a localisation may be off
    gamma: Annotated[float, Field(ge=0)] = 0.3  # exponent exp(+- this)
    contrast: Annotated[float, Field(ge=0, lt=1)] = 0.2  # gain 1 +- this and offset +- half of this
    bias: Annotated[float, Field(ge=0)] = 0.2  # smooth field exp(+-), of second order in the position
    blur: Share = 0.6  # up to this share of a three-voxel mean
    noise: Annotated[float, Field(ge=0)] = 0.04  # standard deviation up to this, image range being about 0..1


class Settings(Frozen):
    """Settings of the task `segmentation`; the defaults are those of short-axis cardiac MR.

    Lengths per axis are in the order of the image's axes: (rows, columns) in 2D, (slices, rows, columns) in 3D.
    """

    spatial_dims: Literal[2, 3] = 2
    structures: dict[str, int] = Field({"blood_pool": 1, "myocardium": 2, "right_ventricle": 3})  # name -> value in the masks
    series: tuple[str, ...] = ("cine_ed", "cine_es")

    # the looks: a wide one at the middle of the image, then a close one at what the wide one found
    voxels: tuple[int, ...] = (80, 80)  # the network's input, the same for both looks
    field_mm: tuple[Length, ...] = (192.0, 192.0)
    roi_mm: tuple[Length, ...] | None = (120.0, 120.0)  # None: the wide look alone
    locate: tuple[str, ...] = ("blood_pool", "myocardium")  # what the close look is centred on; none: all structures
    working_mm: tuple[Length, ...] = (1.5, 1.5)  # grid that cases are stored on for training
    margin: Annotated[float, Field(ge=1, le=2)] = 1.25  # stored field / field_mm: room for shifts and rotations
    test_time_rotations: Literal[0, 4] = 0  # quarter turns in the image plane that are averaged; 0: the upright look alone
    keep_largest: bool = True  # of the union of the structures, keep the largest connected piece

    # the network
    channels: tuple[Annotated[int, Field(ge=1)], ...] = (16, 32, 64, 128)
    strides: tuple[Literal[1, 2], ...] = (2, 2, 2)
    num_res_units: Annotated[int, Field(ge=0)] = 1
    groups: Annotated[int, Field(ge=1)] = 4  # of the group norms; divides every number of channels
    head_channels: Annotated[int, Field(ge=1)] = 16  # full-resolution features that the last 1 x 1 convolution reads
    trainable: Literal["all", "decoder", "norm", "head"] = "all"

    # the loss: weights are public choices, never counted from data
    dice_weight: Annotated[float, Field(ge=0)] = 1.0
    ce_weight: Annotated[float, Field(ge=0)] = 1.0
    class_weights: tuple[Annotated[float, Field(ge=0)], ...] = ()  # background, then the structures; none: all 1
    dice_smooth: Annotated[float, Field(gt=0)] = 1.0  # voxels added to numerator and denominator
    # a voxel without a label, where only some structures were looked for: none of these, or nothing is known of it
    partial_labels: Literal["marginal", "ignore"] = "marginal"

    augment: Augment = Augment()
    empty_share: Share = 0.15  # of 2D views, from slices on which nothing was drawn (beyond base and apex)
    surface_tolerance_mm: Length = 2.0  # surface Dice counts border points nearer than this as right

    @model_validator(mode="before")
    @classmethod
    def _one_number_is_all_axes(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        data = dict(data)
        dims = data.get("spatial_dims", 2)
        for name in ("voxels", "field_mm", "roi_mm", "working_mm"):
            value = data.get(name, cls.model_fields[name].default)
            if isinstance(value, int | float) and dims in (2, 3):
                data[name] = (value,) * dims
        return data

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for name in ("voxels", "field_mm", "roi_mm", "working_mm"):
            value = getattr(self, name)
            if value is not None and len(value) != self.spatial_dims:
                raise ValueError(f"{name} needs {self.spatial_dims} numbers (or one for all axes), not {list(value)}")
        if not self.structures or not self.series:
            raise ValueError("structures and series must each name at least one")
        labels = list(self.structures.values())
        if len(set(labels)) != len(labels) or not all(0 < label < UNKNOWN for label in labels):
            raise ValueError(f"structures need different mask values from 1 to {UNKNOWN - 1}, not {self.structures}")
        strangers = sorted(set(self.locate) - set(self.structures))
        if strangers and self.roi_mm is not None:
            raise ValueError(f"locate names {strangers}, but the structures are {list(self.structures)}")
        if len(self.channels) < 2 or len(self.strides) != len(self.channels) - 1:
            raise ValueError(f"strides needs one number fewer than channels ({list(self.channels)}), not {list(self.strides)}")
        reduction = math.prod(self.strides)
        if any(n < reduction or n % reduction for n in self.voxels):
            raise ValueError(f"voxels {list(self.voxels)} must be multiples of {reduction}, the product of the strides")
        for count in (*self.channels, self.head_channels):
            if count % self.groups:
                raise ValueError(f"groups is {self.groups}, which doesn't divide {count} channels")
        if self.class_weights and len(self.class_weights) != self.classes:
            raise ValueError(
                f"class_weights needs {self.classes} numbers (background, {', '.join(self.structures)}), "
                f"not {list(self.class_weights)}"
            )
        if self.dice_weight == 0 and self.ce_weight == 0:
            raise ValueError("dice_weight and ce_weight are both 0, so there is nothing to learn")
        looks = [self.voxels, self.field_mm] + ([self.roi_mm] if self.roi_mm else [])
        if self.test_time_rotations and any(look[-1] != look[-2] for look in looks):
            raise ValueError("test_time_rotations needs looks with as many rows as columns, in voxels and in mm")
        return self

    @property
    def classes(self) -> int:
        """Number of network outputs: background and the structures, in the settings' order."""
        return 1 + len(self.structures)

    @property
    def weights(self) -> tuple[float, ...]:
        """One weight per class for the cross-entropy."""
        return self.class_weights or (1.0,) * self.classes

    @property
    def located(self) -> tuple[int, ...]:
        """Classes whose voxels the close look is centred on."""
        names = list(self.structures)
        return tuple(1 + names.index(name) for name in (self.locate or names) if name in names)

    @property
    def working_voxels(self) -> tuple[int, ...]:
        """Shape of one stored slice (2D) or volume (3D)."""
        return tuple(math.ceil(field * self.margin / mm) for field, mm in zip(self.field_mm, self.working_mm, strict=True))

    @property
    def working_field_mm(self) -> tuple[float, ...]:
        """Size of what is stored, a whole number of working voxels."""
        return tuple(n * mm for n, mm in zip(self.working_voxels, self.working_mm, strict=True))

    @property
    def hash(self) -> str:
        """SHA-256 over `prepare`'s code and exactly the settings it reads: studies with other losses share the arrays."""
        names = ("spatial_dims", "structures", "series", "working_mm", "margin", "field_mm", "locate")
        facts = {name: getattr(self, name) for name in names}
        facts["structures"] = list(self.structures.items())  # their order numbers the classes
        if self.partial_labels != "ignore":
            facts["partial_labels"] = self.partial_labels
        text = json.dumps({"task": "segmentation", **facts}, sort_keys=True)
        return hashlib.sha256(text.encode() + _preparing()).hexdigest()


@functools.cache
def _preparing() -> bytes:
    return b"".join((Path(__file__).parent / name).read_bytes() for name in PREPARED_BY)
