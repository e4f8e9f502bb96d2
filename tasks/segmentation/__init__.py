"""Segmentation with a U-Net: cardiac structures in short-axis MR by default, any labelled structure in 2D or 3D by settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from conf.study import words
from tasks.segmentation.settings import Settings
from tasks.segmentation.task import SegmentationTask

__all__ = ["SegmentationTask", "Settings", "build"]


def build(settings: Mapping[str, Any], *, models: Path | None = None) -> SegmentationTask:
    """The task with these settings; it leans on no `models`.

    Raises `ValueError` saying which setting is wrong, its value and what is right.
    """
    try:
        return SegmentationTask(Settings.model_validate(dict(settings)))
    except ValidationError as error:
        known = ", ".join(Settings.model_fields)
        unknown = any(item["type"] == "extra_forbidden" for item in error.errors())
        raise ValueError(f"task segmentation: {words(error)}" + (f"; there are {known}" if unknown else "")) from error
