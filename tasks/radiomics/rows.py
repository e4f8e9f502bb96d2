"""One patient as rows of a table: a row per region, radiomic and clinical columns, the label and how sure it is.

Whatever is undefined or missing is NaN, in columns and labels alike; learners say what they make of it. Nothing here looks at
another patient.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tasks.case import Case
from tasks.radiomics.extraction import Extraction
from tasks.radiomics.features import Features
from tasks.radiomics.settings import Settings

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Rows:
    """`X` (rows, columns); `y` (rows,) 0 or 1; `certainty` (rows,); `region` (rows,) 0 where there are no regions."""

    X: Floats
    y: Floats
    certainty: Floats
    region: npt.NDArray[np.int64]


def rows_of(case: Case, settings: Settings, extraction: Extraction | None) -> Rows:
    """The rows of one patient; `extraction` is that of `settings.image`, None without one.

    Raises `ValueError`, naming the case, where there is no such image or no mask for it, where the features can't be computed,
    and where no row has a label.
    """
    found: dict[int, Features] = {0: {}} if extraction is None else extraction.features(case)
    numbers = sorted(found)
    X = np.array([[_radiomic(found[n], f.name, case) for f in settings.radiomic] for n in numbers], np.float64)
    X = X.reshape(len(numbers), len(settings.radiomic))
    clinical = np.array([_clinical(case, feature.name) for feature in settings.clinical], np.float64)
    X = np.hstack([X, np.broadcast_to(clinical, (len(numbers), len(clinical)))])
    value = np.array([_number(case, _numbered(settings.label.endpoint, n)) for n in numbers])
    y = np.where(np.isnan(value), np.nan, value >= settings.label.positive_from)
    if np.isnan(y).all():
        raise ValueError(f"case {case.patient} has no label: its endpoint {settings.label.endpoint} is missing")
    sure = settings.certainty
    certainty = np.array([_number(case, _numbered(sure.endpoint, n)) if sure else math.nan for n in numbers])
    X[~np.isfinite(X)] = np.nan
    return Rows(X, y, certainty, np.array(numbers, np.int64))


def _radiomic(found: Features, name: str, case: Case) -> float:
    if name not in found:
        there = ", ".join(sorted(found)[:5])
        raise ValueError(f"case {case.patient}: the parameters give no feature {name}; they give {there}, ...")
    return found[name]


def _clinical(case: Case, name: str) -> float:
    if name.endswith("?"):
        return float(math.isnan(_number(case, name[:-1])))
    if wanted := re.fullmatch(r"(.+)=([^=]+)", name):
        value = case.endpoints.get(wanted[1])
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return math.nan
        number = _number(case, wanted[1])
        return float(str(value) == wanted[2] if math.isnan(number) else f"{number:g}" == wanted[2])
    return _number(case, name)


def _number(case: Case, name: str) -> float:
    """An endpoint as a number; NaN where it is missing or is no number."""
    value = case.endpoints.get(name)
    try:
        return math.nan if value is None else float(value)
    except ValueError:
        return math.nan


def _numbered(endpoint: str, region: int) -> str:
    return endpoint.replace("NN", f"{region:02d}")
