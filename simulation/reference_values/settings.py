"""What a researcher decides about a study of reference values, beside the hospitals and the promise of privacy."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, JsonValue

from conf.frozen import Frozen


class Reference(Frozen):
    """Which measures are counted, and how many patients held back are shown among the curves."""

    task: dict[str, JsonValue]
    shown: Annotated[int, Field(ge=0, le=12)] = 2  # of each hospital's test patients
