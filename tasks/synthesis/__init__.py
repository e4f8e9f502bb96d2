"""A generator of scans: a diffusion model that draws an image for a mask, a kind of series and what is known of a patient."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from conf.study import words
from tasks.synthesis.settings import Settings
from tasks.synthesis.task import SynthesisTask

__all__ = ["Settings", "SynthesisTask", "build"]


def build(settings: Mapping[str, Any], *, models: Path | None = None) -> SynthesisTask:
    """The task with these settings; it leans on no `models`.

    Raises `ValueError` saying which setting is wrong, its value and what is right.
    """
    try:
        return SynthesisTask(Settings.model_validate(dict(settings)))
    except ValidationError as error:
        known = ", ".join(Settings.model_fields)
        unknown = any(item["type"] == "extra_forbidden" for item in error.errors())
        raise ValueError(f"task synthesis: {words(error)}" + (f"; there are {known}" if unknown else "")) from error
