"""What a study of a generator may choose: what it draws, given what, on which grid, with which network.

All of it is agreed between the sites before anything runs and nothing of it is computed from a patient.
"""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from conf.study import Frozen
from tasks.segmentation.settings import Settings as Looks

Length = Annotated[float, Field(gt=0)]


class Settings(Frozen):
    """Settings of the task `synthesis`; the defaults are those of short-axis cardiac MR.

    Lengths per axis are in the order of the image's axes: (rows, columns) in 2D, (slices, rows, columns) in 3D; one number
    stands for all.
    """

    spatial_dims: Literal[2, 3] = 2
    structures: dict[str, int] = Field({"blood_pool": 1, "myocardium": 2, "right_ventricle": 3})  # name -> value in the masks
    series: tuple[str, ...] = ("cine_ed", "cine_es")
    conditions: dict[str, tuple[str, ...]] = Field({})  # a fact of the scanner or an endpoint -> the values that are told apart
    tone_knots: Annotated[int, Field(ge=0, le=64)] = 0  # numbers of the tone that is learned (see `tone`); none without

    voxels: tuple[int, ...] = (64, 64)  # of a look that is learned from
    field_mm: tuple[Length, ...] = (128.0, 128.0)  # around the located structures
    drawn_voxels: tuple[int, ...] | None = (
        None  # of images that are drawn, of the same size in mm; none: as many as learned from
    )
    working_mm: tuple[Length, ...] = (2.0, 2.0)  # grid that cases are stored on for training
    locate: tuple[str, ...] = ("blood_pool", "myocardium")  # what the look is centred on; none: all structures

    rotation_deg: Annotated[float, Field(ge=0, le=180)] = 10.0  # of training views, uniform within +-
    scale: Annotated[float, Field(ge=0, lt=0.9)] = 0.1
    shift_mm: Annotated[float, Field(ge=0)] = 6.0

    patch: Annotated[int, Field(ge=1)] = 1  # voxels on a side that the network sees as one with as many channels
    channels: tuple[Annotated[int, Field(ge=1)], ...] = (16, 32, 48)
    attention: tuple[bool, ...] = (False, False, True)  # at which of these levels, beside the middle
    res_blocks: Annotated[int, Field(ge=1)] = 1  # at each level
    head_channels: Annotated[int, Field(ge=1)] = 16  # of each attention head
    groups: Annotated[int, Field(ge=1)] = 8  # of the group norms; divides every number of channels
    trainable: Literal["all", "up", "norm", "head", "tone"] = "all"

    levels: Annotated[int, Field(ge=10)] = 1000  # of noise, along a cosine
    begin: Annotated[float, Field(gt=0, le=1)] = 1.0  # that drawing begins at; below 1 the case's own image is noised so far
    learned_to: Annotated[float, Field(gt=0, le=1)] | None = None  # none above this level is learned; left out: `begin`
    draw_steps: Annotated[int, Field(ge=1)] = 20  # from level 1 to an image; fewer from below
    coherence: Annotated[float, Field(ge=0, le=1)] = 0.5  # share of the first noise that all slices of a volume have in common

    @model_validator(mode="before")
    @classmethod
    def _one_number_is_all_axes(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        data = dict(data)
        dims = data.get("spatial_dims", 2)
        for name in ("voxels", "field_mm", "working_mm"):
            value = data.get(name, cls.model_fields[name].default)
            if isinstance(value, int | float) and dims in (2, 3):
                data[name] = (value,) * dims
        if isinstance(data.get("drawn_voxels"), int) and dims in (2, 3):
            data["drawn_voxels"] = (data["drawn_voxels"],) * dims
        return data

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if len(self.attention) != len(self.channels):
            raise ValueError(f"attention needs a yes or no for each of {len(self.channels)} levels, not {list(self.attention)}")
        halved = self.patch * 2 ** (len(self.channels) - 1)
        for name, voxels in (("voxels", self.voxels), ("drawn_voxels", self.canvas)):
            if len(voxels) != self.spatial_dims or any(n < halved or n % halved for n in voxels):
                raise ValueError(
                    f"{name} {list(voxels)} must be {self.spatial_dims} multiples of {halved}, which patch and levels divide "
                    "them by"
                )
        for count in self.channels:
            if count % self.groups:
                raise ValueError(f"groups is {self.groups}, which doesn't divide {count} channels")
        last = len(self.channels) - 1
        for level, (count, there) in enumerate(zip(self.channels, self.attention, strict=True)):
            if (there or level == last) and count % self.head_channels:
                raise ValueError(
                    f"head_channels is {self.head_channels}, which doesn't divide {count} channels of level {level}"
                )
        if self.draw_steps > self.levels:
            raise ValueError(f"draw_steps is {self.draw_steps}, and there are {self.levels} levels")
        if self.begin > self.highest:
            raise ValueError(
                f"drawing begins at level {self.begin:g}, and nothing above learned_to {self.highest:g} is learned"
            )
        if self.trainable == "tone" and not self.tone_knots:
            raise ValueError("trainable is tone, and without tone_knots there is none")
        for name, values in self.conditions.items():
            if not values or len(set(values)) != len(values):
                raise ValueError(f"conditions.{name} needs values that differ, not {list(values)}")
        _ = self.looks  # its own checks
        return self

    @property
    def highest(self) -> float:
        """The highest noise level that is learned from."""
        return self.learned_to or self.begin

    @property
    def canvas(self) -> tuple[int, ...]:
        """Voxels of an image that is drawn."""
        return self.drawn_voxels or self.voxels

    @property
    def canvas_mm(self) -> tuple[float, ...]:
        """Its size from border to border."""
        return tuple(n * mm / of for n, mm, of in zip(self.canvas, self.field_mm, self.voxels, strict=True))

    @property
    def looks(self) -> Looks:
        """The segmentation task's settings that bring a case onto the working grid."""
        return Looks(
            spatial_dims=self.spatial_dims,
            structures=self.structures,
            series=self.series,
            voxels=self.voxels,
            field_mm=self.field_mm,
            roi_mm=None,
            locate=self.locate,
            working_mm=self.working_mm,
            margin=2.0,  # the look is at the heart, which needn't be in the middle
            channels=(4, 8),
            strides=(2,),
            partial_labels="ignore",
        )

    @property
    def facts(self) -> int:
        """Numbers that a row is told beside its mask: which series, and the values of the conditions."""
        return len(self.series) + sum(len(values) for values in self.conditions.values())

    @property
    def hash(self) -> str:
        """SHA-256 over `prepare`'s code and exactly the settings it reads: studies with other networks share the arrays."""
        conditions = [[name, *values] for name, values in self.conditions.items()]
        text = json.dumps({"task": "synthesis", "looks": self.looks.hash, "conditions": conditions})
        return hashlib.sha256(text.encode() + _preparing()).hexdigest()


@functools.cache
def _preparing() -> bytes:
    return (Path(__file__).parent / "prepare.py").read_bytes()
