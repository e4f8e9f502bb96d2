"""What a researcher decides about a study of an intensity scale, beside the hospitals and the promise of privacy."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, JsonValue

from conf.frozen import Frozen


class IntensityStudy(Frozen):
    """Which percentiles of which series are counted, and how many free patients are shown in the scale."""

    task: dict[str, JsonValue]
    shown: Annotated[int, Field(ge=1, le=24)] = 6
