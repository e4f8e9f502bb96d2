"""The intensity scale of the hospitals' images: where percentiles of the grey values lie on average, from one noisy sum."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.intensity_scale.task import IntensityTask

__all__ = ["build"]


def build(settings: Mapping[str, Any], *, models: Path | None = None) -> IntensityTask:
    """The task with these settings; it leans on no model. Raises `ValueError` saying which setting is wrong."""
    from pydantic import ValidationError

    from conf.study import words
    from tasks.intensity_scale.settings import Settings
    from tasks.intensity_scale.task import IntensityTask

    try:
        return IntensityTask(Settings.model_validate(dict(settings)))
    except ValidationError as error:
        raise ValueError(f"task intensity_scale: {words(error)}") from error
