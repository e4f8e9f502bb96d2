"""Scans of generated people who are patients of no hospital: on them features are chosen and scanners compared, at no privacy.

    python -m simulation.signature        # measures the columns of conf/task/radiomics.yaml, rewrites conf/signature/lge.csv

A column is worth its noise if it tells segments apart, and says the same when a patient is scanned on another scanner or drawn
by another reader (intraclass correlation; Zwanenburg et al. 2019, Sci Rep 9:614). docs/signature.md tells what was chosen.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import yaml
from sklearn.metrics import roc_auc_score

from conf.study import Frozen
from simulation.hospital_case import patient_case
from simulation.machine import executor, unordered
from simulation.reader import Reader
from simulation.settings import GeneratedHospital
from tasks.case import Case
from tasks.radiomics.extraction import Extraction
from tasks.radiomics.forest import Feature
from tasks.radiomics.robustness import icc_columns
from tasks.radiomics.rows import Rows, rows_of
from tasks.radiomics.settings import Settings

Floats = npt.NDArray[np.float64]
CONF = Path(__file__).resolve().parent.parent / "conf"
TABLE = CONF / "signature" / "lge.csv"
COLUMNS = ("column", "auc", "icc_rescan", "icc_mask", "lower", "upper")
SEEDS = 10_000  # between the patients of two hospitals


class Collection(Frozen):
    """How many are drawn, and from which seeds: far from those of hospitals (1 000 000) and of pre-training (50 000 000).

    Columns and scale were chosen on patients from 60 000 000 on; what stands in the table was measured on others.
    """

    patients: int = 20  # per hospital
    repeated: int = 8  # of these, scanned on the next hospital's scanner, and drawn by another reader
    first_seed: int = 61_000_000
    oversampling: int = 2
    subslices: int = 3


USUAL = Collection()
SECOND_READER = Reader(name="second", contour_bias_mm=0.5, epicardial_bias_mm=-0.3, contour_sd_mm=0.9, patient_sd_mm=0.5)
"""Draws less steadily than any hospital's reader: about as far from the first as a fair segmentation model is."""


@dataclass(frozen=True, eq=False)
class Measured:
    """One patient of the collection: rows, and those of the same segments from a second scanner and a second reader."""

    hospital: str
    seed: int
    rows: Rows
    rescanned: Rows | None
    redrawn: Rows | None


@dataclass(frozen=True)
class Column:
    """What one column is worth. `auc` on certain segments, below 0.5 for a column that falls where segments are positive."""

    feature: Feature
    auc: float
    icc_rescan: float
    icc_mask: float


def profiles(hospitals: str) -> dict[str, GeneratedHospital]:
    """The hospitals of `conf/hospitals/<hospitals>.yaml`, by name."""
    sites = yaml.safe_load((CONF / "hospitals" / f"{hospitals}.yaml").read_text())["sites"]
    return {name: GeneratedHospital.model_validate(site) for name, site in sites.items()}


def learned_from(task: str = "radiomics") -> Settings:
    """The settings of `conf/task/<task>.yaml`."""
    settings = yaml.safe_load((CONF / "task" / f"{task}.yaml").read_text())
    return Settings.model_validate({key: value for key, value in settings.items() if key != "name"})


def calibration_cases(
    hospitals: Mapping[str, GeneratedHospital], seed: int, collection: Collection = USUAL
) -> Iterator[tuple[str, Case]]:
    """The patient of this seed on every hospital's scanner, drawn by its reader: (hospital, case).

    The case mix is the hospitals' mean, so that who is scanned does not depend on where. A draw whose ventricle nobody can
    divide into segments is the caller's to leave out. Seeds of the measured patients begin at `collection.first_seed`.
    """
    mix = {
        disease: sum(hospital.case_mix.get(disease, 0.0) / sum(hospital.case_mix.values()) for hospital in hospitals.values())
        for disease in sorted({disease for hospital in hospitals.values() for disease in hospital.case_mix})
    }
    for name, hospital in hospitals.items():
        yield name, _case(seed, hospital, hospital.reader, mix, collection)


def measured(
    hospitals: Mapping[str, GeneratedHospital], settings: Settings, collection: Collection, *, workers: int | None = None
) -> list[Measured]:
    """The collection's patients, in order. Those whose ventricle can't be divided into segments are left out."""
    names = list(hospitals)
    jobs = [
        (name, hospitals[name], hospitals[names[(place + 1) % len(names)]], number, SEEDS * place, settings, collection)
        for place, name in enumerate(names)
        for number in range(collection.patients)
    ]
    with executor(workers) as pool:
        found = [one for one in unordered(pool, _measure, jobs) if one is not None]
    return sorted(found, key=lambda one: one.seed)


def judged(patients: Sequence[Measured], settings: Settings) -> tuple[Column, ...]:
    """AUC and intraclass correlations of the radiomic columns. Values on a log scale are compared by their logarithm."""
    features = settings.radiomic
    X, y = np.vstack([p.rows.X for p in patients]), np.concatenate([p.rows.y for p in patients])
    certainty = np.concatenate([p.rows.certainty for p in patients])
    certain = np.ones(len(y), bool) if settings.certainty is None else certainty >= settings.certainty.least
    rescan = _repetitions([(p.rows, p.rescanned) for p in patients if p.rescanned is not None], features)
    redrawn = _repetitions([(p.rows, p.redrawn) for p in patients if p.redrawn is not None], features)
    result = []
    for n, feature in enumerate(features):
        use = certain & np.isfinite(X[:, n]) & np.isfinite(y)
        result.append(Column(feature, float(roc_auc_score(y[use], X[use, n])), rescan[n], redrawn[n]))
    return tuple(result)


def write(columns: Sequence[Column], path: Path = TABLE) -> None:
    """One line per column: name, AUC, the two correlations, the public bounds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for column in columns:
            numbers = (f"{column.auc:.3f}", f"{column.icc_rescan:.3f}", f"{column.icc_mask:.3f}")
            writer.writerow([column.feature.name, *numbers, f"{column.feature.lower:g}", f"{column.feature.upper:g}"])


def _case(seed: int, scanned: GeneratedHospital, reader: Reader, mix: Mapping[str, float], collection: Collection) -> Case:
    return patient_case(
        seed,
        scanned.scanner,
        reader,
        mix,
        ("lge",),
        oversampling=collection.oversampling,
        subslices=collection.subslices,
    )


def _measure(
    name: str,
    hospital: GeneratedHospital,
    next_hospital: GeneratedHospital,
    number: int,
    offset: int,
    settings: Settings,
    collection: Collection,
) -> Measured | None:
    seed = collection.first_seed + offset + number
    extraction = Extraction(settings.image) if settings.image else None

    def rows(scanned: GeneratedHospital, reader: Reader) -> Rows | None:
        case = _case(seed, scanned, reader, hospital.case_mix, collection)
        try:
            return rows_of(case, settings, extraction)
        except ValueError:
            return None

    first = rows(hospital, hospital.reader)
    if first is None:
        return None
    repeat = number < collection.repeated
    rescanned = rows(next_hospital, hospital.reader) if repeat else None
    return Measured(name, seed, first, rescanned, rows(hospital, SECOND_READER) if repeat else None)


def _repetitions(pairs: Sequence[tuple[Rows, Rows]], features: Sequence[Feature]) -> tuple[float, ...]:
    """ICC(3,1) of each column over the segments that both have: a shift between scanners is what harmonisation is for."""
    tables: tuple[list[Floats], list[Floats]] = ([], [])
    for one, other in pairs:
        _, here, there = np.intersect1d(one.region, other.region, return_indices=True)
        tables[0].append(one.X[here])
        tables[1].append(other.X[there])
    log = np.array([feature.scale == "log" for feature in features])
    scaled = []
    for table in tables:
        values = np.vstack(table)[:, : len(features)]
        with np.errstate(invalid="ignore", divide="ignore"):
            logarithms = np.where(values > 0, np.log(values), np.nan)
        scaled.append(np.where(log, logarithms, values))
    return tuple(one.value for one in icc_columns(scaled, kind="consistency"))


def main() -> None:
    """Measure and write."""
    settings = learned_from()
    patients = measured(profiles("six_myocarditis"), settings, USUAL)
    write(judged(patients, settings))
    rows = sum(len(patient.rows.y) for patient in patients)
    positive = np.nanmean(np.concatenate([patient.rows.y for patient in patients]))
    sys.stdout.write(f"{len(patients)} patients, {rows} segments, {positive:.3f} positive: {TABLE}\n")


if __name__ == "__main__":
    main()
