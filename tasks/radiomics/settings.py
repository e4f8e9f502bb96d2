"""What a radiomics study settles beforehand: where the numbers come from, their public bounds, the label, the learner.

All of it stands in the Study. What determines a feature's value goes in as one hash, so that a hospital whose libraries would
compute another number says no instead of computing it.
"""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, JsonValue, model_validator

from conf.study import Frozen
from tasks.radiomics import forest
from tasks.radiomics.features import Extractor
from tasks.radiomics.forest import Feature
from tasks.radiomics.harmonise import Harmonisation

SOURCES = ("extraction.py", "rows.py", "segments.py", "intensity.py", "task.py", "harmonise.py")
"""Files of this folder that decide a row beside the extractor's own."""


class Predicted(Frozen):
    """Masks that a trained segmentation model draws: its task's settings, and which weights (`tasks.fingerprint`)."""

    task: dict[str, JsonValue]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Image(Frozen):
    """Features of regions of one image."""

    series: str = "lge"
    regions: Literal["aha", "label"] = "aha"  # aha: the 17 segments of the left ventricle; label: one region
    label: Annotated[int, Field(ge=1, le=254)] = 1  # regions=label: the value in the mask
    intensity: str = "none"  # how intensities are made comparable within the patient; see `intensity.py`
    parameters: dict[str, JsonValue]  # as a pyradiomics parameter file
    masks: Literal["reader"] | Predicted = "reader"
    extraction: str = ""  # `identity` of these settings with the libraries of whoever wrote the study

    @property
    def identity(self) -> str:
        """SHA-256 of what determines a feature's value beside the scan: settings, engine, libraries, this package."""
        facts = self.model_dump(mode="json", exclude={"parameters", "extraction"})
        # in one order: a Study sorts the keys of its settings
        drawn = _segmentation() if isinstance(self.masks, Predicted) else ""
        return _identity(json.dumps(facts, sort_keys=True) + drawn, json.dumps(self.parameters, sort_keys=True))


class Label(Frozen):
    """What is learned: an endpoint of the case, positive from a value on. NN stands for the number of the region."""

    endpoint: str
    positive_from: float = 1.0


class Certainty(Frozen):
    """How sure the reader was of a label, an endpoint from 1 to `most`, and what is made of it."""

    endpoint: str
    use: Literal["all", "exclude", "weight"] = "exclude"
    least: Annotated[int, Field(ge=1)] = 3  # exclude: labels below are left out; also what counts as certain in a report
    most: Annotated[int, Field(ge=1)] = 5  # weight: a label counts certainty / most


class ForestLearner(Frozen):
    """Extremely randomised trees whose leaves are counted: one noisy sum (`forest.py`)."""

    kind: Literal["forest"]
    trees: Annotated[int, Field(ge=1, le=4096)] = 256
    depth: Annotated[int, Field(ge=1, le=10)] = 4
    central: Annotated[float, Field(gt=0, le=1)] = 0.5
    class_share: Annotated[float, Field(ge=0.01, le=0.99)] = 0.75
    shrinkage: Annotated[float, Field(ge=0)] = 3.0
    seed: Annotated[int, Field(ge=0)] = 0


class PerceptronLearner(Frozen):
    """Logistic regression (no hidden layer) or a small network, learned by noisy gradients."""

    kind: Literal["perceptron"]
    hidden: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = ()


class Settings(Frozen):
    """The whole task. `radiomic` names features of the image, `clinical` endpoints of the case, both with public bounds.

    A clinical column may be an endpoint's own number (`age`), 1 where it has a value and else 0 (`cp=4`), or 1 where it is
    missing and else 0 (`ca?`).
    """

    image: Image | None = None  # None: one row per patient, of clinical columns alone
    radiomic: tuple[Feature, ...] = ()
    clinical: tuple[Feature, ...] = ()
    label: Label
    certainty: Certainty | None = None
    class_weights: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (1.0, 1.0)  # never counted
    harmonisation: Harmonisation | None = None  # of the radiomic columns, by scanner
    learner: Annotated[ForestLearner | PerceptronLearner, Field(discriminator="kind")]
    bins: Annotated[int, Field(ge=2, le=1000)] = 20  # of the histogram that hospitals judge the model by

    @model_validator(mode="after")
    def _there_is_something_to_learn_from(self) -> Self:
        names = [feature.name for feature in self.columns]
        if not names:
            raise ValueError("radiomic and clinical are both empty: there is nothing to learn from")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"columns stand twice: {', '.join(twice)}")
        if self.harmonisation and (self.harmonisation.features != self.radiomic or self.harmonisation.covariates):
            raise ValueError("harmonisation must be of the radiomic columns and their bounds, in order, without covariates")
        if self.radiomic and self.image is None:
            raise ValueError("radiomic columns need an image to come from")
        return self

    @property
    def columns(self) -> tuple[Feature, ...]:
        """All columns, radiomic ones first."""
        return (*self.radiomic, *self.clinical)

    @property
    def forest(self) -> forest.Settings:
        """The settings of the trees. Raises `ValueError` for another learner."""
        if not isinstance(self.learner, ForestLearner):
            raise ValueError(f"the learner is a {self.learner.kind}, and no forest")
        return forest.Settings(features=self.columns, classes=(0, 1), **self.learner.model_dump(exclude={"kind"}))

    @property
    def hash(self) -> str:
        """SHA-256 of what decides a patient's rows: studies that differ in bounds, learner or weights share them."""
        facts: dict[str, Any] = {"label": self.label.model_dump(), "certainty": self.certainty and self.certainty.endpoint}
        facts |= {"columns": [[f.name for f in self.radiomic], [f.name for f in self.clinical]]}
        facts |= {"image": self.image.identity if self.image else _sources()}
        return hashlib.sha256(json.dumps(["radiomics/rows", facts], sort_keys=True).encode()).hexdigest()


@functools.cache
def _identity(facts: str, parameters: str) -> str:
    text = json.dumps([facts, Extractor.of(json.loads(parameters)).hash, _sources()])
    return hashlib.sha256(text.encode()).hexdigest()


@functools.cache  # the text of the code in memory, if it is read early
def _sources() -> str:
    return "".join((Path(__file__).parent / name).read_text() for name in SOURCES)


@functools.cache
def _segmentation() -> str:
    return "".join(path.read_text() for path in sorted((Path(__file__).parent.parent / "segmentation").glob("*.py")))


def settle(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with the hash of the extraction filled in where it is empty: as they stand in a Study."""
    read = Settings.model_validate(settings)
    if read.image is None or read.image.extraction:
        return settings
    return {**settings, "image": {**settings["image"], "extraction": read.image.identity}}
