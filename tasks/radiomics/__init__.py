"""Radiomics: numbers that describe a region of an image, and what can be learned from them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.radiomics.task import ForestTask, PerceptronTask

__all__ = ["build", "settle"]


def build(settings: Mapping[str, Any], *, models: Path | None = None) -> ForestTask | PerceptronTask:
    """The task with these settings; `models` is where a model that draws its masks is looked for.

    Raises `ValueError` saying which setting is wrong, its value and what is right; where this installation would compute other
    features than the study's; and where `models` lacks the model.
    """
    from pydantic import ValidationError

    from conf.study import words
    from tasks.radiomics.settings import ForestLearner, Predicted, Settings
    from tasks.radiomics.task import ForestTask, PerceptronTask

    try:
        read = Settings.model_validate(dict(settings))
    except ValidationError as error:
        known = ", ".join(Settings.model_fields)
        unknown = any(item["type"] == "extra_forbidden" for item in error.errors())
        raise ValueError(f"task radiomics: {words(error)}" + (f"; there are {known}" if unknown else "")) from error
    image = read.image
    if image is not None and image.extraction not in ("", image.identity):
        from tasks.radiomics.features import version

        raise ValueError(
            f"the study's features are those of extraction {image.extraction[:12]}; this installation ({version()}) would "
            f"compute those of {image.identity[:12]}: another engine, library or konsil"
        )
    predicted = image.masks if image is not None and isinstance(image.masks, Predicted) else None
    if predicted and models is not None and not (models / f"{predicted.sha256}.pt").is_file():
        raise ValueError(
            f"the study's masks are drawn by the model {predicted.sha256[:12]}, which this site hasn't got yet "
            "(konsil-site add-model FILE)"
        )
    return ForestTask(read, models=models) if isinstance(read.learner, ForestLearner) else PerceptronTask(read, models=models)


def settle(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as they stand in a Study: with the hash of everything that determines a feature's value."""
    from tasks.radiomics import settings as module

    return module.settle(dict(settings))
