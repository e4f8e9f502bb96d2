"""The base of all settings: read once, never changed, strict about names."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Settings that can't change once read, and that refuse a key they don't know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
