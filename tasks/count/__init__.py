"""How many patients there are of which kind: small public tables of counts, one noisy sum."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.count.task import CountTask

__all__ = ["build"]


def build(settings: Mapping[str, Any], *, models: Path | None = None) -> CountTask:
    """The task with these settings; it leans on no model. Raises `ValueError` saying which setting is wrong."""
    from pydantic import ValidationError

    from conf.study import words
    from tasks.count.settings import Settings
    from tasks.count.task import CountTask

    try:
        return CountTask(Settings.model_validate(dict(settings)))
    except ValidationError as error:
        raise ValueError(f"task count: {words(error)}") from error
