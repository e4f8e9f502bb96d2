"""Radiomic features of the whole cohort as one table: called by `konsil-site features`.

    TABLE.csv or TABLE.parquet    a row per patient and region
    TABLE.json                    what made it, every column with its unit, and who was left out, why

The numbers are those that a study here would learn from, and beside them everything else that its parameters give. Features
are kept in the cohort as prepared arrays: a second table is written without computing, and new images of a patient take the
old numbers away. Nothing of this is a release: no ledger is asked, nothing is protected, and the table stays in the hospital.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from conf.study import Study, words
from fl_client.cohort import Cohort
from fl_client.every_feature import FULL, Found, extract
from fl_client.feature_table import MISSING, Column, as_csv, as_parquet, columns_of
from fl_client.site import Site
from fl_client.yaml_file import read_yaml
from tasks.radiomics.features import Extractor
from tasks.radiomics.features import version as engine_version
from tasks.radiomics.intensity import SCALES
from tasks.radiomics.settings import Image, Settings
from tasks.radiomics.task import RadiomicsTask
from tasks.task import load

SCHEMA = "konsil-features/1"
SOME_LEFT_OUT = 3
"""Exit status when the table was written and somebody isn't in it; each is listed with the reason."""
STAYS = (
    "The table holds numbers of single patients. It stays in the hospital: it is no release, nothing in it is protected by "
    "privacy, and the ledger doesn't count it."
)


@dataclass(frozen=True)
class Wanted:
    """What is to be extracted: a study's, or what was said on the command line."""

    image: Image | None  # None: the study learns from clinical columns alone
    settings: Settings | None = None  # of the study
    study: Study | None = None

    @classmethod
    def of_study(cls, study: Study, models: Path) -> Wanted:
        """Raises `ValueError`, in words, for a study of another task and where this site would compute other numbers."""
        task = load(study.task, models=models)
        if not isinstance(task, RadiomicsTask):
            raise ValueError(
                f"study {study.name} learns the task {study.task['name']}, which has no radiomic features; name a radiomics "
                "study, or pass --parameters and --series"
            )
        return cls(task.settings.image, task.settings, study)

    @classmethod
    def of_parameters(cls, file: Path, *, series: str | None, regions: str | None, intensity: str | None) -> Wanted:
        """`regions` is `aha` or a value of the mask. Raises `ValueError`, in words, and `OSError`."""
        if not series:
            raise ValueError("--parameters needs --series: which images features are taken of, such as lge")
        said = regions or "aha"
        if said != "aha" and not said.isdigit():
            raise ValueError(f"--regions is aha (17 segments of the left ventricle) or a value of the mask, not {said!r}")
        where = {"regions": "aha"} if said == "aha" else {"regions": "label", "label": int(said)}
        parameters = read_yaml(file)
        Extractor.of(parameters)
        try:
            image = Image.model_validate(
                {"series": series, **where, "intensity": intensity or "none", "parameters": parameters}
            )
        except ValidationError as error:
            raise ValueError(f"{file}, --regions {said}: {words(error)}") from None
        return cls(image)


def features(site: Site, wanted: Wanted, *, out: Path, force: bool = False, workers: int | None = None) -> int:
    """Write the table and its header; print who was left out. Returns 0, or 3 if somebody was.

    `workers` is the number of processes (default: one per core). Raises `ValueError` and `OSError` in words, having written
    nothing, for a file that is not to be overwritten, a disk that is full, and a cohort without anybody to write about.
    """
    header = _require_place(out, site, force=force)
    if wanted.image is not None and wanted.image.intensity not in SCALES:
        raise ValueError(f"no intensity scale named '{wanted.image.intensity}'; known are {', '.join(SCALES)}")
    cohort = Cohort(site.cohort_folder)
    if not cohort.patients:
        raise ValueError(f"{site.cohort_folder} holds no patient yet; konsil-site admit lets them in")
    try:
        found = extract(cohort, wanted.image, models=site.models_folder, workers=workers)
        if found.cases:
            columns = columns_of(found.rows, wanted.image, wanted.settings)
            _write_both(out, header, columns, _about(site, wanted, found, columns))
    except OSError as error:
        if error.errno not in FULL:
            raise
        where = error.filename or site.folder
        raise OSError(
            f"there is no room left on the disk ({where}): no table was written. What is computed is kept; free some space and "
            "ask again"
        ) from None
    if found.cases:
        count = sum(column.kind == "radiomic" for column in columns)
        print(
            f"{len(found.rows)} rows of {len(found.cases)} patients, {count} radiomic features: {out}; what they are: {header}"
        )
    for patient, reason in sorted(found.left_out.items()):
        print(f"  {patient} left out: {reason}")
    if not found.cases:
        raise ValueError(
            f"none of the {len(found.left_out)} patients at {site.name} has what was asked for; no table was written"
        )
    print(STAYS)
    return SOME_LEFT_OUT if found.left_out else 0


# -- the steps, in the order above ---------------------------------------------------------------------------------------


def _require_place(out: Path, site: Site, *, force: bool) -> Path:
    """Where the header goes. Nothing is overwritten that nobody named."""
    if out.suffix.lower() not in (".csv", ".parquet"):
        raise ValueError(f"{out} should end in .parquet or .csv, which says how the table is written")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {out.parent} for the table")
    if out.resolve().is_relative_to(site.cohort_folder.resolve()):
        raise ValueError(f"{out} lies in the cohort, where the table would be taken for a patient's; choose another --out")
    header = out.with_suffix(".json")
    for path in (out, header):
        if path.is_dir() or (path.exists() and not force):
            raise FileExistsError(f"{path} stands already; choose another --out, or write over it with --force")
    return header


def _about(site: Site, wanted: Wanted, found: Found, columns: Sequence[Column]) -> dict[str, Any]:
    """The header."""
    image, study, settings = wanted.image, wanted.study, wanted.settings
    about: dict[str, Any] = {
        "schema": SCHEMA,
        "about": "one row per patient" + (" and region" if image else ""),
        "warning": STAYS,
        "made": {"at": site.name, "when": datetime.now(UTC).isoformat(timespec="seconds"), "konsil": version("konsil")},
        "study": None,
        "patients": len(found.cases),
        "rows": len(found.rows),
        "left_out": dict(sorted(found.left_out.items())),
        "missing": MISSING,
        "image": None,
    }
    if study is not None and settings is not None:
        learned = [feature.name for feature in settings.columns]
        about["study"] = {"name": study.name, "hash": study.hash, "learns_from": learned}
    if image is not None:
        extractor = Extractor.of(image.parameters)
        about["image"] = {
            "extraction": image.identity,
            "engine": engine_version(),
            "parameters": extractor.settled,
            "series": image.series,
            "regions": "the 17 AHA segments" if image.regions == "aha" else f"voxels of the mask's value {image.label}",
            "masks": "a reader's" if image.masks == "reader" else f"drawn by the model {image.masks.sha256}",
            "intensity": image.intensity,
        }
    return about | {"columns": [column.about for column in columns]}


def _write_both(out: Path, header: Path, columns: Sequence[Column], about: dict[str, Any]) -> None:
    """Both files are complete on the disk before either takes its place; the header names its table by SHA-256."""
    if out.suffix.lower() == ".csv":
        table = as_csv(columns)
    else:
        table = as_parquet(columns, {"konsil": json.dumps(about)})
    text = json.dumps({**about, "table_sha256": hashlib.sha256(table).hexdigest()}, indent=1) + "\n"
    parts = {path: path.with_name(f".{path.name}.part") for path in (out, header)}
    try:
        for path, content in ((out, table), (header, text.encode())):
            parts[path].unlink(missing_ok=True)  # of a run that was killed; a name of its own would stay for ever
            file = os.open(parts[path], os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(file, "wb") as part:
                part.write(content)
                part.flush()
                os.fsync(part.fileno())
        for path, finished in parts.items():
            finished.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(out.parent)) from None
    finally:
        for part_path in parts.values():
            part_path.unlink(missing_ok=True)
