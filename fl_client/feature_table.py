"""The table that `konsil-site features` writes: which columns, in which units, as CSV or Parquet, with a header that says so.

A table of features is of use years later only if it tells what its numbers are. CSV has no place for that, so `<name>.json`
beside the table says it, for Parquet too; there the same text also stands in the file itself, under the key `konsil`.
Units of radiomic features follow pyradiomics' definitions (https://pyradiomics.readthedocs.io/en/latest/features.html).
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.case import Case
from tasks.radiomics.features import Extractor, Features
from tasks.radiomics.settings import Image, Settings

Value = float | int | str | None
Row = tuple[Case, int, Features]
"""A case, the number of one of its regions (0: it has none), and the features of that region."""

OF_SEGMENTS = ("segment", "call", "certainty")
"""Endpoints that the intake reads per AHA segment, as `call_01` to `call_17`: in the table one column `call_NN`."""

MISSING = "an empty cell in CSV, null in Parquet: what the patient hasn't got, or what is undefined for the region"

_WALLS = ("anterior", "anteroseptal", "inferoseptal", "inferior", "inferolateral", "anterolateral")
AHA_SEGMENTS = (
    *(f"{third} {wall}" for third in ("basal", "mid") for wall in _WALLS),
    *(f"apical {wall}" for wall in ("anterior", "septal", "inferior", "lateral")),
    "apex",
)
"""Names of segments 1 to 17 (Cerqueira et al. 2002, Circulation 105:539)."""

GREY = {
    "none": "grey value as stored",
    "remote": "% of the left ventricle's range of grey values",
    "myocardium": "hundredths of a standard deviation of the myocardium's grey values",
}
"""One unit of the intensity scales in `tasks.radiomics.intensity`."""

_MM = ("Maximum3DDiameter", "Maximum2DDiameter", "MaximumDiameter", "AxisLength", "Perimeter")
_CLINICAL = {
    **{"age": "years", "ef": "% or parts of 1, as the hospital writes it", "edv_ml": "ml", "esv_ml": "ml"},
    **{"mass_g": "g", "time_months": "months", "time_days": "days"},
}


@dataclass(frozen=True)
class Column:
    """One column: what it holds, in which unit (None: not known; 1: a pure number), and a value per row."""

    name: str
    kind: str  # patient, region, radiomic, clinical, label, certainty
    values: Sequence[Value]
    meaning: str = ""
    unit: str | None = None

    @property
    def is_text(self) -> bool:
        """True if any value is a word: then all are written as text."""
        return self.kind == "patient" or any(isinstance(value, str) for value in self.values)

    @property
    def about(self) -> dict[str, Any]:
        """The column's line in the header."""
        type_ = "text" if self.is_text else "whole number" if self.name == "region" else "number"
        return {"name": self.name, "kind": self.kind, "type": type_, "unit": self.unit, "meaning": self.meaning}

    def cells(self) -> list[Value]:
        """The values as they are written; None for what is missing."""
        if self.is_text:
            return [None if _is_missing(value) else str(value) for value in self.values]
        if self.name == "region":
            return [None if value is None else int(value) for value in self.values]
        return [None if _is_missing(value) else float(value) for value in self.values]  # type: ignore[arg-type]


def columns_of(rows: Sequence[Row], image: Image | None, settings: Settings | None) -> list[Column]:
    """The columns of a table of these rows: who and where, features of `image`, endpoints, and what `settings` learn."""
    aha = image is not None and image.regions == "aha"
    columns = [Column("patient", "patient", [case.patient for case, _, _ in rows], "pseudonym; one patient is one case")]
    if image is not None:
        number = {True: "number of the AHA segment", False: "value of the mask"}[aha]
        regions: Sequence[Value] = [region if aha else image.label for _, region, _ in rows]
        columns.append(Column("region", "region", regions, number))
    if aha:
        names = [AHA_SEGMENTS[region - 1] for _, region, _ in rows]
        columns.append(Column("segment", "region", names, "name of the AHA segment (Cerqueira et al. 2002)"))
    if image is not None:
        rescaled = bool(image.parameters.get("setting") and Extractor.of(image.parameters).settled["set"].get("normalize"))
        for name in dict.fromkeys(name for _, _, values in rows for name in values):
            unit = unit_of_feature(name, intensity=image.intensity, rescaled=rescaled)
            columns.append(Column(name, "radiomic", [values.get(name) for _, _, values in rows], "", unit))
    columns += _endpoints(rows, by_segment=aha)
    if settings is not None:
        endpoint, least = settings.label.endpoint, settings.label.positive_from
        value = [_number(case, endpoint, region) for case, region, _ in rows]
        label = [None if each is None else float(each >= least) for each in value]
        columns.append(Column("label", "label", label, f"1 where the endpoint {endpoint} is {least:g} or more, else 0", "1"))
        if sure := settings.certainty:
            value = [_number(case, sure.endpoint, region) for case, region, _ in rows]
            meaning = f"how sure the reader was of the label, 1 to {sure.most}: the endpoint {sure.endpoint}"
            columns.append(Column("certainty", "certainty", value, meaning, "1"))
    return columns


def _endpoints(rows: Sequence[Row], *, by_segment: bool) -> list[Column]:
    """A column per endpoint; those that are read per segment stand in one column, each in its own segment's row."""
    taken = {"patient", "region", "segment", "label", "certainty"}
    folded = re.compile(rf"({'|'.join(OF_SEGMENTS)})_(0[1-9]|1[0-7])") if by_segment else None
    names: dict[str, bool] = {}  # True: of the row's segment
    for case, _, _ in rows:
        for name in case.endpoints:
            match = folded.fullmatch(name) if folded else None
            names[f"{match[1]}_NN" if match else name] = match is not None
    columns = []
    for name, own in names.items():
        values = [case.endpoints.get(name.replace("NN", f"{region:02d}") if own else name) for case, region, _ in rows]
        meaning = f"endpoint of the case: {name}" + (", NN the segment of the row" if own else "")
        called = f"endpoint_{name}" if name in taken else name
        columns.append(Column(called, "clinical", values, meaning, unit_of_endpoint(name)))
    return columns


def _number(case: Case, endpoint: str, region: int) -> float | None:
    """The endpoint as a study reads it, NN the region's number; None where it is missing or is no number."""
    value = case.endpoints.get(endpoint.replace("NN", f"{region:02d}"))
    try:
        return None if value is None else float(value)
    except ValueError:
        return None


def unit_of_feature(name: str, *, intensity: str, rescaled: bool = False) -> str | None:
    """The unit of a feature by its name in pyradiomics; `rescaled`: its parameters change grey values on their own.

    Textures are taken of grey levels after discretisation, and have none that a person would use: None.
    """
    image, _, rest = name.partition("_")
    kind, _, feature = rest.partition("_")
    if kind in ("shape", "shape2D"):
        return _unit_of_shape(feature)
    if kind != "firstorder":
        return None
    if feature == "Entropy":
        return "bit"
    if feature in ("Skewness", "Kurtosis", "Uniformity"):
        return "1"
    grey = None if rescaled or not image.startswith(("original", "log-", "wavelet")) else GREY.get(intensity)
    if grey is None:
        return None
    if feature in ("Energy", "Variance"):
        return f"({grey})^2"
    return f"mm3 ({grey})^2" if feature == "TotalEnergy" else grey


def _unit_of_shape(feature: str) -> str:
    if feature.endswith("Volume"):
        return "mm3"
    if feature.endswith("Ratio"):
        return "1/mm"
    if "Surface" in feature:
        return "mm2"
    return "mm" if any(part in feature for part in _MM) else "1"


def unit_of_endpoint(name: str) -> str | None:
    """The unit of an endpoint that the intake knows by name."""
    return _CLINICAL.get(name)


def as_csv(columns: Sequence[Column]) -> bytes:
    """Comma-separated values in UTF-8, names in the first line; numbers with all their digits, empty cells where missing."""
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([column.name for column in columns])
    for row in zip(*(column.cells() for column in columns), strict=True):
        writer.writerow(["" if value is None else repr(value) if isinstance(value, float) else value for value in row])
    return out.getvalue().encode()


def as_parquet(columns: Sequence[Column], metadata: Mapping[str, str]) -> bytes:
    """A Parquet file: text, whole numbers (32 bits, which R has) and numbers (64 bits), null where missing."""
    import pyarrow  # here: half a second that no other command needs
    from pyarrow import parquet

    types = {"text": pyarrow.string(), "whole number": pyarrow.int32(), "number": pyarrow.float64()}
    arrays = [pyarrow.array(column.cells(), types[column.about["type"]]) for column in columns]
    table = pyarrow.table(arrays, names=[column.name for column in columns])
    out = io.BytesIO()
    parquet.write_table(table.replace_schema_metadata(dict(metadata)), out)
    return out.getvalue()


def _is_missing(value: Value) -> bool:
    return value is None or (isinstance(value, float) and not math.isfinite(value))
