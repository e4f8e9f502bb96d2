"""What the person at the hospital's door does: let images in, and count who is inside.

Called by `konsil-site admit` and `cohort`. What is printed here stays on the hospital's own screen: it names files,
which nothing that is stored does.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from pydantic import ValidationError

from conf.study import words
from fl_client.accounting import last_round, listed, reckoning, summary
from fl_client.cohort import CaseUnreadable, Cohort
from fl_client.intake.admit import admit_folder
from fl_client.intake.clinical import admit_fhir
from fl_client.intake.door import Intake
from fl_client.intake.endpoints import EndpointRules
from fl_client.intake.labels import LabelMap
from fl_client.intake.mapping import ClinicalMapping
from fl_client.intake.pairs import admit_pairs
from fl_client.intake.series import SeriesRules
from fl_client.intake.sunnybrook import admit_sunnybrook
from fl_client.intake.table import admit_table
from fl_client.intake.way_back import WayBack
from fl_client.sharing import is_shared
from fl_client.site import Site
from fl_client.synthetic import how_many
from fl_client.yaml_file import read_yaml

REMEDY = "move it to damaged/ and admit all images of this patient again; if it is only closed to this user, open it"
"""What to do about a damaged folder of the cohort."""


def key_of(site: Site) -> bytes:
    """The hospital's secret. Raises `FileNotFoundError`, or `PermissionError` if other users may read it."""
    if not site.key_file.exists():
        raise FileNotFoundError(f"{site.key_file} is missing: pseudonyms need the hospital's key (konsil-site init makes one)")
    mode = site.key_file.stat().st_mode & 0o777
    if mode & 0o077:
        raise PermissionError(f"{site.key_file} has mode {mode:04o}, so others may read it; do: chmod 600 {site.key_file}")
    return site.key_file.read_bytes()


def admit(
    site: Site,
    folder: Path,
    *,
    masks: Path | None,
    series: str,
    rules: Path | None,
    labels: str | None,
    columns: Path | None = None,
    id_column: str | None = None,
    quiet: bool = False,
) -> int:
    """Let a folder in, or a table, and print what became of it; 0 if any patient was admitted.

    With `masks` it is a folder of NIfTI or NRRD images of the series `series`, or of DICOM whose masks lie there; with
    `link.csv`, `dicom/` and `contours/` in it the Sunnybrook layout; otherwise DICOM. `rules` is a YAML file of
    series rules, `labels` the name or file of a label map (default: `sunnybrook` for that layout, else `cardiac`). A file
    instead of a folder is a table of patients without images.
    `columns` is a YAML file that says which columns of it, or of `endpoints.csv` beside DICOM, may pass; `id_column` is the
    one that holds the identifiers (default: what the file says, else a table's first).

    Raises `ValueError` and `OSError` in words; where a file that was named is missing or wrong, before anything is made.
    """
    key = key_of(site)
    if not folder.exists():
        raise FileNotFoundError(f"{folder} is missing: a folder of images is let in, or a table of comma-separated values")
    contours = all((folder / name).exists() for name in ("link.csv", "dicom", "contours"))
    meanings = label_map(labels or ("sunnybrook" if contours and masks is None else "cardiac"))
    wanted = series_rules(rules)
    endpoints = column_rules(columns, id_column=id_column, first="" if folder.is_file() else "patient_id")
    cohort = Cohort(site.cohort_folder)
    if not is_shared(site.folder):
        site.cohort_folder.chmod(0o700)
    if folder.is_file():
        found = admit_table(folder, cohort, key=key, rules=endpoints)
    elif masks is not None and not _is_dicom(folder):
        found = admit_pairs(folder, masks, cohort, key=key, labels=meanings, series_name=series)
    elif contours:
        found = admit_sunnybrook(folder, cohort, key=key, labels=meanings)
    else:
        with closing(WayBack(site.identity_folder / "map.sqlite")) as way_back:
            found = admit_folder(
                folder,
                cohort,
                key=key,
                labels=meanings,
                series=wanted,
                endpoints=endpoints,
                masks=masks,
                accept_faces=site.arrivals.accept_faces,
                way_back=way_back,
                keep_days="dates" in site.arrivals.retain,
            )
    _tell(found, quiet=quiet)
    return 0 if found.admitted else 1


def _is_dicom(folder: Path) -> bool:
    """Whether any file of the folder begins as DICOM files do: `DICM` after 128 bytes."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                if file.read(132)[128:] == b"DICM":
                    return True
    return False


def admit_clinical(site: Site, path: Path, *, mapping: Path, quiet: bool = False) -> int:
    """Let in clinical values from FHIR, by the mapping in a YAML file, and print what became of it; 0 if anybody was admitted.

    Raises `ValueError` in words for a mapping or a delivery that can't be read.
    """
    try:
        wanted = ClinicalMapping.model_validate(read_yaml(mapping))
    except ValidationError as error:
        raise ValueError(f"{mapping}: {words(error)}") from None
    found = admit_fhir(path, Cohort(site.cohort_folder), key=key_of(site), mapping=wanted)
    if not is_shared(site.folder):
        site.cohort_folder.chmod(0o700)
    _tell(found, quiet=quiet)
    return 0 if found.admitted else 1


def label_map(said: str) -> LabelMap:
    """The label map of this name or file. Raises `ValueError` in words for wrong contents."""
    try:
        return LabelMap.load(said)
    except ValidationError as error:
        raise ValueError(f"{said}: {words(error)}") from None


def series_rules(file: Path | None) -> SeriesRules:
    """The series rules in a YAML file, or the usual ones. Raises `ValueError` in words for wrong contents."""
    try:
        return SeriesRules.model_validate(read_yaml(file)) if file else SeriesRules()
    except ValidationError as error:
        raise ValueError(f"{file}: {words(error)}") from None


def column_rules(file: Path | None, *, id_column: str | None, first: str) -> EndpointRules:
    """The columns declared in a YAML file, and no others, or the usual ones. Raises `ValueError` in words for wrong contents.

    `first` is the column of the identifiers where neither the file nor `id_column` names one; empty means the first one.
    """
    try:
        declared = {"patient_id": first, **read_yaml(file)} if file else {"patient_id": first}
        if id_column is not None:
            declared["patient_id"] = id_column
        return EndpointRules.only(declared) if file else EndpointRules.model_validate(declared)
    except ValidationError as error:
        raise ValueError(f"{file or 'the columns'}: {words(error)}") from None


def cohort(site: Site, *, everybody: bool = False) -> int:
    """Print who is inside, with which series and masks, and what became of all others; 1 if a folder can't be read.

    `everybody` adds one line per patient.
    """
    inside = Cohort(site.cohort_folder)
    images: Counter[str] = Counter()
    masks: Counter[str] = Counter()
    damaged: dict[str, CaseUnreadable] = {}
    for case in inside.look():
        if isinstance(case, CaseUnreadable):
            damaged[case.folder.name] = case
            continue
        for volume in case.volumes:
            images[volume.series] += 1
            masks[volume.series] += volume.mask is not None
    print(f"{len(inside) - len(damaged)} patients in {inside.folder}; {site.name} declares {site.declared_size} in public")
    for which in ("train", "test"):
        side = inside.split(which, test_fraction=site.test_fraction)
        print(f"  {which}: {len([patient for patient in side if patient not in damaged])}")
    choose = inside.split("validation", test_fraction=site.test_fraction, validation_fraction=site.validation_fraction)
    if there := len([patient for patient in choose if patient not in damaged]):
        print(f"  of the first, {there} choose among models and don't train where a study validates")
    for series in sorted(images):
        print(f"  {series}: {images[series]} images, {masks[series]} with a mask")
    print(f"{len(inside.refused)} lines in {inside.folder / 'refused.jsonl'} say what stayed outside, and why")
    found = reckoning(site)
    for line in summary(found):
        print(line)
    if cases := how_many(site):
        print(f"{cases} synthetic cases train beside them and are no patients (konsil-site synthetic)")
    if told := last_round(site):
        print(told)
    for line in listed(site, found) if everybody else ():
        print(line)
    if damaged:
        inside.make_damaged_folder()
    if aside := inside.put_aside:
        print(f"{len(aside)} damaged folders lie in {inside.damaged_folder}; delete them once nothing in them is missed")
    gone = [name for name in aside if name.partition(".")[0] not in inside.patients]
    for name in gone:
        print(
            f"{inside.damaged_folder / name}: this patient is not inside; admit all images of this patient again",
            file=sys.stderr,
        )
    for unreadable in damaged.values():
        print(f"{unreadable}; {REMEDY}", file=sys.stderr)
    return 1 if damaged or gone else 0


def _tell(found: Intake, *, quiet: bool) -> None:
    print(f"{found.expected} patients: {len(found.admitted)} admitted, {len(found.refused)} refused")
    if not quiet:
        for pseudonym in found.admitted:
            print(f"  {pseudonym} admitted")
    for pseudonym, reason in sorted(found.refused.items()):
        print(f"  {pseudonym} refused: {reason}")
    tell_left_out(found.left_out, found.where)


def tell_left_out(left_out: Mapping[str, str], where: Mapping[str, Path]) -> None:
    """Print what belongs to nobody, one line per reason, with the first three paths."""
    by_reason: dict[str, list[str]] = {}
    for handle, reason in left_out.items():
        by_reason.setdefault(reason, []).append(str(where.get(handle, handle)))
    for reason, what in by_reason.items():
        more = f" and {len(what) - 3} more" if len(what) > 3 else ""
        print(f"  left out: {', '.join(what[:3])}{more}: {reason}")
