"""Reference values by age and sex: how volumes, mass and ejection fraction are spread over patients, from one noisy sum."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.reference_values.task import ReferenceTask

__all__ = ["build"]


def build(settings: Mapping[str, Any], *, models: Path | None = None) -> ReferenceTask:
    """The task with these settings; `models` is where a model that draws its masks is looked for.

    Raises `ValueError` saying which setting is wrong, and where `models` lacks the model.
    """
    from pydantic import ValidationError

    from conf.study import words
    from tasks.reference_values.settings import Settings
    from tasks.reference_values.task import ReferenceTask

    try:
        read = Settings.model_validate(dict(settings))
    except ValidationError as error:
        raise ValueError(f"task reference_values: {words(error)}") from error
    masks = read.masks
    if masks != "reader" and models is not None and not (models / f"{masks.sha256}.pt").is_file():
        raise ValueError(
            f"the study's masks are drawn by the model {masks.sha256[:12]}, which this site hasn't got yet "
            "(konsil-site add-model FILE)"
        )
    return ReferenceTask(read, models=models)
