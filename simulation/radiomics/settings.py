"""What a researcher decides about a radiomics study, beside the hospitals and the promise of privacy."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, JsonValue

from conf.study import Frozen

Masks = Literal["reader", "unet"]


class Descent(Frozen):
    """Noisy full-batch gradient descent of a perceptron, one step per round, exactly summed over the sites."""

    hidden: tuple[Annotated[int, Field(ge=1)], ...] = ()
    rounds: Annotated[int, Field(ge=1)] = 30
    learning_rate: Annotated[float, Field(gt=0)] = 1.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 0.5
    views: Annotated[int, Field(ge=1)] = 1  # rows of a patient in a step: the number of regions, or 1


class Classifier(Frozen):
    """The study's second half, from masks to a classifier. Its promise is the study's, less what the masks' model takes."""

    task: dict[str, JsonValue]  # of the forest; the perceptrons learn from the same rows
    masks: Annotated[tuple[Masks, ...], Field(min_length=1)] = ("reader",)  # unet: drawn by the federation's own model
    share: Annotated[float, Field(gt=0, lt=1)] = 0.8  # of the promise, for the classifier where a model draws masks first
    evaluation_share: Annotated[float, Field(ge=0, lt=1)] = 0.3  # of the classifier's, for scores by the hospitals
    folds: Annotated[int, Field(ge=2)] = 5  # grouped by patient
    logistic: Descent | None = Descent()
    mlp: Descent | None = None
    baselines: bool = True  # scikit-learn's forest and boosting: pooled, alone, union of trees
    calibration_patients: Annotated[int, Field(ge=0)] = 0  # scanned by every scanner, for ComBat; 0: no harmonisation
    sensitivity: Annotated[float, Field(gt=0, lt=1)] = 0.9  # at which specificity is stated
    robustness: str | None = None  # table of conf/signature that the report shows
