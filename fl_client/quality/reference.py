"""Where a patient's images stand: among those of the hospital's own cohort, and against a reference range.

The hospital's own numbers stay there. The range that konsil brings (`conf/quality_reference.yaml`) says in `source` of what it
was made; a hospital writes its own with `konsil-site quality --write-reference`, and may show that one to whom it likes.
Which one it compares with is its setting `quality_reference`.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from conf.frozen import Frozen
from conf.quality import METRICS, Series
from conf.study import words
from fl_client.cohort import CaseUnreadable, Cohort
from fl_client.quality import records
from fl_client.quality.measure import Quality
from fl_client.yaml_file import read_yaml

Found = Mapping[str, Mapping[str, Quality]]
"""Quality by patient and series."""

OUTLYING = 3.5
"""Modified z-score beyond which a value is an outlier (Iglewicz and Hoaglin, How to Detect and Handle Outliers, 1993)."""

RATIOS = ("noise_sigma", "snr", "snr_air", "cnr", "ghosting", "air_artifacts")
"""Parameters that differ by factors: their logarithms are compared, or every good scanner would be an outlier."""

FEWEST = 10
"""With fewer values nobody is called an outlier."""


class Range(Frozen):
    """5th percentile, median and 95th percentile of so many images."""

    low: float
    median: float
    high: float
    images: Annotated[int, Field(ge=1)]

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if not self.low <= self.median <= self.high:
            raise ValueError(f"low {self.low:g}, median {self.median:g} and high {self.high:g} are not in this order")
        return self


class Reference(Frozen):
    """Ranges by series and parameter, and of what they were made."""

    source: Annotated[str, Field(min_length=1, max_length=1000)]  # whose images, how many, of which scanners
    ranges: Annotated[dict[Series, dict[str, Range]], Field(min_length=1)]

    @field_validator("ranges")
    @classmethod
    def _of_known_parameters(cls, ranges: dict[str, dict[str, Range]]) -> dict[str, dict[str, Range]]:
        for series, metrics in ranges.items():
            if unknown := sorted(set(metrics) - set(METRICS)):
                raise ValueError(f"{series} has no parameter {unknown[0]!r}; there are {', '.join(METRICS)}")
        return ranges

    @classmethod
    def load(cls, path: Path | None = None) -> Reference:
        """The range of this file, or konsil's own. Raises `ValueError` and `OSError` in words that name the file."""
        place = path or Path(str(files("conf") / "quality_reference.yaml"))
        try:
            return cls.model_validate(read_yaml(place))
        except ValidationError as error:
            raise ValueError(f"{place}: {words(error)}") from None
        except FileNotFoundError:
            raise FileNotFoundError(f"{place} is missing: it was to hold the reference range of image quality") from None

    def save(self, path: Path) -> None:
        """Write it as YAML to a new file (`FileExistsError`)."""
        with open(path, "x") as file:
            file.write(yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, default_flow_style=None, width=120))


class Standing(NamedTuple):
    """One value: its percentile in the cohort (0..100), modified z-score, and reference range, if there is one."""

    patient: str
    series: str
    metric: str
    value: float
    percentile: float
    z: float
    range: Range | None

    @property
    def outlying(self) -> bool:
        """Far from the rest of the cohort."""
        return abs(self.z) > OUTLYING

    @property
    def side(self) -> str:
        """`below`, `within` or `above` the reference range; empty without one."""
        if self.range is None:
            return ""
        return "below" if self.value < self.range.low else "above" if self.value > self.range.high else "within"

    @property
    def concerns(self) -> bool:
        """Outside the reference range, and not on the side that is the better one."""
        better = {"high": "above", "low": "below"}.get(METRICS[self.metric].better)
        return self.side in ("below", "above") and self.side != better


def found_in(cohort: Cohort) -> tuple[dict[str, dict[str, Quality]], dict[str, str]]:
    """The quality of every patient with images, measured where no record is; and why that of some can't be had."""
    found: dict[str, dict[str, Quality]] = {}
    unreadable: dict[str, str] = {}
    for patient in cohort.patients:
        try:
            if by_series := records.of(cohort, patient):
                found[patient] = by_series
        except CaseUnreadable as damaged:
            unreadable[patient] = damaged.reason
        except KeyError:
            continue  # withdrawn since the list was made
    return found, unreadable


def values_of(found: Found, series: str, metric: str) -> dict[str, float]:
    """What was measured of one parameter, by patient."""
    values = {patient: by_series[series].values.get(metric) for patient, by_series in found.items() if series in by_series}
    return {patient: value for patient, value in values.items() if value is not None}


def ranges_of(found: Found) -> dict[str, dict[str, Range]]:
    """The ranges of these patients, by series and parameter."""
    result: dict[str, dict[str, Range]] = {}
    for series in sorted({series for by_series in found.values() for series in by_series}):
        for metric in METRICS:
            values = list(values_of(found, series, metric).values())
            if values:
                low, median, high = (float(f"{value:.4g}") for value in np.percentile(values, (5, 50, 95)))
                result.setdefault(series, {})[metric] = Range(low=low, median=median, high=high, images=len(values))
    return result


def standings(found: Found, reference: Reference | None = None) -> list[Standing]:
    """Every value with its place, in order of series, parameter and patient."""
    result = []
    for series, metrics in ranges_of(found).items():
        for metric in metrics:
            values = values_of(found, series, metric)
            scores = scores_of(metric, np.array(list(values.values())))
            known = reference.ranges.get(series, {}).get(metric) if reference else None
            ordered = np.sort(list(values.values()))
            for (patient, value), z in zip(values.items(), scores, strict=True):
                middle = (ordered.searchsorted(value, "left") + ordered.searchsorted(value, "right")) / 2
                result.append(Standing(patient, series, metric, value, 100 * float(middle) / len(ordered), float(z), known))
    return result


def scores_of(metric: str, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Modified z-scores of one parameter's values, of logarithms for `RATIOS` that are all positive."""
    return modified_z(np.log(values) if metric in RATIOS and (values > 0).all() else values)


def modified_z(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Distance from the median over 1.4826 median absolute deviations; over 1.2533 mean ones where half are equal.

    0 for all where fewer than `FEWEST` are known.

    >>> import numpy as np
    >>> modified_z(np.array([1.0, 2, 3, 4, 5, 6, 7, 8, 9, 100])).round(2)[-1]
    np.float64(25.5)
    """
    away = values - np.median(values)
    scale = 1.4826 * float(np.median(np.abs(away))) or 1.2533 * float(np.abs(away).mean())
    return away / scale if scale and len(values) >= FEWEST else np.zeros(len(values))
