"""What a study of reference values settles beforehand: the measures, the ranges their histograms divide, and the age bands.

All of it is public before anybody is measured. A range is the sex's own, because the same cells cut from 40 to 125 ml/m2 say
more of women than cells that have to reach as far as men do; published reference ranges are what it is chosen by. Few wide
bins beat many narrow ones: each has the same noise.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, JsonValue, model_validator

from conf.frozen import Frozen

SEXES = ("F", "M")
UNITS = {"edv": "ml", "esv": "ml", "sv": "ml", "ef": "%", "mass": "g"}
WORDS = {
    "edv": "end-diastolic volume",
    "esv": "end-systolic volume",
    "sv": "stroke volume",
    "ef": "ejection fraction",
    "mass": "myocardial mass",
}
MOST_CELLS = 4096
"""Of all measures together; every cell has the same noise."""

MeasureName = Literal["edv", "esv", "sv", "ef", "mass"]
Edge = Annotated[float, Field(gt=0, le=10_000)]


class Predicted(Frozen):
    """Masks that a trained segmentation model draws: its task's settings, and which weights (`tasks.fingerprint`)."""

    task: dict[str, JsonValue]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Measure(Frozen):
    """One measure of the left ventricle and the range that its histogram divides evenly, `female` and `male`.

    The first and last bin reach to zero and to infinity. `indexed` divides by body surface area; patients whose height or
    weight isn't known are then not counted for this measure.
    """

    name: MeasureName
    indexed: bool = False
    female: tuple[Edge, Edge]
    male: tuple[Edge, Edge]
    bins: Annotated[int, Field(ge=4, le=64)] = 8

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        for sex, (low, high) in (("female", self.female), ("male", self.male)):
            if low >= high:
                raise ValueError(f"{self.key}: the {sex} range must rise, not go from {low:g} to {high:g}")
        if self.indexed and self.name == "ef":
            raise ValueError("ejection fraction is a ratio; it is not indexed to body surface area")
        return self

    @property
    def key(self) -> str:
        """A name that tells it from the others: `edv`, `edv_index`."""
        return self.name + ("_index" if self.indexed else "")

    @property
    def unit(self) -> str:
        """ml, ml/m², g, g/m² or %."""
        return UNITS[self.name] + ("/m²" if self.indexed else "")

    @property
    def words(self) -> str:
        """For people."""
        return WORDS[self.name] + (" by body surface area" if self.indexed else "")

    def inner_edges(self, sex: str) -> tuple[float, ...]:
        """What parts the bins of this sex, `bins - 1` rising numbers."""
        low, high = self.female if sex == "F" else self.male
        return tuple(low + (high - low) * n / self.bins for n in range(1, self.bins))


class Settings(Frozen):
    """The whole task. `age`, `sex` (F or M), `height_cm` and `weight_kg` name endpoints of the case."""

    measures: Annotated[tuple[Measure, ...], Field(min_length=1, max_length=10)]
    age_edges: Annotated[tuple[Annotated[float, Field(ge=0, le=120)], ...], Field(min_length=3, max_length=17)]
    masks: Literal["reader"] | Predicted = "reader"
    diastole: str = "cine_ed"  # series
    systole: str = "cine_es"
    blood_pool: Annotated[int, Field(ge=1, le=254)] = 1  # values in the mask
    myocardium: Annotated[int, Field(ge=1, le=254)] = 2
    age: str = "age"
    sex: str = "sex"
    height_cm: str = "height_cm"
    weight_kg: str = "weight_kg"
    suppress_below: Annotated[int, Field(ge=0, le=1000)] = 10  # patients of a sex and age band, about whom nothing is said

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if any(low >= high for low, high in itertools.pairwise(self.age_edges)):
            raise ValueError(f"age_edges must rise, not {list(self.age_edges)}")
        keys = [measure.key for measure in self.measures]
        if twice := sorted({key for key in keys if keys.count(key) > 1}):
            raise ValueError(f"measures stand twice: {', '.join(twice)}")
        if self.length > MOST_CELLS:
            raise ValueError(f"the histograms have {self.length} cells; at most {MOST_CELLS} are counted")
        return self

    @property
    def bands(self) -> int:
        """Age bands; a patient as old as an edge is in the band above it, and who is outside all of them isn't counted."""
        return len(self.age_edges) - 1

    @property
    def length(self) -> int:
        """Cells of all measures: sexes times bands times bins."""
        return sum(len(SEXES) * self.bands * measure.bins for measure in self.measures)

    @property
    def hash(self) -> str:
        """SHA-256 of what decides a patient's cells."""
        facts = self.model_dump(mode="json", exclude={"suppress_below"})
        code = "" if self.masks == "reader" else _segmentation()
        return hashlib.sha256(json.dumps(["reference_values/1", facts, code], sort_keys=True).encode()).hexdigest()[:32]


def _segmentation() -> str:
    return "".join(path.read_text() for path in sorted((Path(__file__).parent.parent / "segmentation").glob("*.py")))
