"""What was measured on single test patients, as `clinical.json` beside a record holds it.

Only somebody who may look at every test patient can write such a file: a rehearsal on generated patients
(`simulation.clinical`), or a hospital about its own. From a real federation it is missing, and the report says what can't be
told without it. The file is read leniently: a number that is not there, or is not finite, is None.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from conf.study import words

FILE = "clinical.json"
SCHEMA = "konsil-clinical/1"
BINS = 10
"""Of predicted probability, all of the same width, in a reliability table."""

Role = Literal["site", "held_out", "real"]


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


Number = Annotated[float | None, BeforeValidator(_finite)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore")


class Volume(_Part):
    """How large one structure is in one series, as the reader drew it and as the model did; `again`: on the second scan."""

    series: str
    structure: str
    drawn_ml: Number = None
    predicted_ml: Number = None
    drawn_again_ml: Number = None
    predicted_again_ml: Number = None


class Agreement(_Part):
    """Mean Dice of one structure between the readers, and between the model and each of them."""

    readers: Number = None
    model: Number = None


class Patient(_Part):
    """One test patient. `dice` has one number per seed of the study, in the seeds' order."""

    hospital: str
    role: Role = "site"
    patient: str
    scanner: str = ""
    sex: str | None = None
    age: Number = None
    disease: str | None = None
    dice: dict[str, list[Number]] = {}
    dice_again: dict[str, Number] = {}  # of the first seed's model, on the second scan
    volumes: list[Volume] = []  # of the first seed's model, as all that follows
    doubt: Number = None  # 1 - mean Dice between segmentations under dropout, mean over structures and series
    entropy: Number = None  # of the class probabilities of one pass, mean over what it segmented, 0..1
    reliability: dict[str, list[tuple[int, float, int]]] = {}  # structure -> BINS x (voxels, sum of probabilities, drawn so)
    readers: dict[str, Agreement] = {}


class Methods(_Part):
    """How it was measured, for the reader; empty where it wasn't."""

    dropout: float = 0.0  # probability that a feature channel is left out in a pass; 0: no passes under dropout
    passes: int = 0
    trained_with_dropout: bool = False
    readers: list[str] = []  # by name; the first is the hospital's own, who drew what the model is compared with
    rescans: bool = False
    reliability_margin_mm: float = 0.0  # voxels that far around what was drawn or predicted are counted
    seconds: float = 0.0


class CalibrationBin(_Part):
    """Rows whose predicted probability lies in one bin: mean prediction, observed share, and its 95 % interval."""

    predicted: Number = None
    observed: Number = None
    low: Number = None
    high: Number = None
    rows: float = 0.0


class Area(_Part):
    """An area under the ROC curve with its 95 % interval."""

    value: Number = None
    low: Number = None
    high: Number = None
    patients: int | None = None


class Classified(_Part):
    """What a classifier's answers amount to, where the study trained one."""

    arm: str = ""
    auc: Area = Area()
    by_hospital: dict[str, Area] = {}
    calibration: list[CalibrationBin] = []
    brier: Number = None


class Measured(_Part):
    """The whole of `clinical.json`."""

    schema_name: str = SCHEMA
    study_hash: str
    arm: str = ""
    seeds: list[int] = []
    structures: list[str] = []
    methods: Methods = Methods()
    patients: list[Patient] = []
    classifier: Classified | None = None
    generated: bool = False  # the patients don't exist

    def write(self, path: Path) -> None:
        """Write it as JSON, whole. The key of the schema's name is `schema`."""
        data = self.model_dump(mode="json")
        part = path.with_suffix(".part")
        with open(part, "w") as file:
            json.dump({"schema": data.pop("schema_name"), **data}, file, allow_nan=False)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)

    @classmethod
    def read(cls, path: Path) -> Measured | None:
        """What stands there; None if there is no such file. Raises `ValueError` for another schema and for what is none."""
        try:
            data = json.loads(path.read_text())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise ValueError(f"{path} is no JSON: {error}") from None
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            found = data.get("schema") if isinstance(data, dict) else type(data).__name__
            raise ValueError(f"{path} has schema {found!r}; this konsil reads {SCHEMA!r}")
        data["schema_name"] = data.pop("schema")
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise ValueError(f"{path} can't be read:\n{words(error)}") from None
