"""What a study of an intensity scale settles beforehand: which series, which part of the image, which percentiles."""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from conf.frozen import Frozen

ENDS = (1.0, 99.0)
"""Percentiles that are 0 and 1 of every image; what is looked for lies between them."""

Percentile = Annotated[float, Field(gt=ENDS[0], lt=ENDS[1])]


class Settings(Frozen):
    """The whole task. Percentiles are of the grey values within `field_mm` around the middle of the image, over all slices."""

    series: Annotated[tuple[str, ...], Field(min_length=1, max_length=16)]
    percentiles: Annotated[tuple[Percentile, ...], Field(min_length=1, max_length=64)]
    field_mm: Annotated[float, Field(gt=0)] | None = None  # along rows and columns; None: all of it

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if any(low >= high for low, high in itertools.pairwise(self.percentiles)):
            raise ValueError(f"percentiles must rise, not {list(self.percentiles)}")
        if len(set(self.series)) < len(self.series):
            raise ValueError(f"series stand twice: {', '.join(self.series)}")
        return self

    @property
    def length(self) -> int:
        """Numbers that a patient adds: one to be counted, and one for each percentile."""
        return 1 + len(self.percentiles)

    @property
    def hash(self) -> str:
        """SHA-256 of the settings and of the code that measures."""
        here = Path(__file__).parent
        code = (here / "scale.py").read_text() + (here.parent / "segmentation" / "look.py").read_text()
        return hashlib.sha256(json.dumps(["intensity_scale/1", self.model_dump(mode="json"), code]).encode()).hexdigest()[:32]
