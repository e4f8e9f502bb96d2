"""Masks out of a trained model, for the hospital's own eyes: called by `konsil-site segment`.

    <out>/<pseudonym>/<series>.nii.gz     the mask on the image's own grid
    <out>/<pseudonym>/<series>.seg.dcm    the same as DICOM SEG, where the images came as DICOM; names the patient again
    <out>/<pseudonym>/<series>.entropy.nii.gz, .disagreement.nii.gz, .unsure.dcm    with --heat-maps: where the model is unsure
    <out>/masks.csv                       what was found in millilitres, how sure, whom to look at first, who was refused, why

Nothing of this is a release: no ledger is asked, and the files stay in the hospital. Each series' files appear whole or not
at all.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fl_client.admission import key_of, label_map, series_rules, tell_left_out
from fl_client.cohort import CaseUnreadable, Cohort
from fl_client.intake.heat_map import write_heat_map
from fl_client.intake.labels import LabelMap
from fl_client.intake.visitors import Originals, visitors
from fl_client.intake.volume import GeometryRefused
from fl_client.intake.write_back import NOTE, write_nifti, write_seg
from fl_client.site import Site
from fl_client.trained import Trained, load_trained
from fl_client.uncertainty import Jury, convene, other_models
from tasks.case import Volume
from tasks.uncertainty import triage
from tasks.uncertainty.views import MEMBERS

Mask = npt.NDArray[np.uint8]
SOME_REFUSED = 3
"""Exit status when masks were asked for and some could not be made; each is listed with its reason."""


@dataclass(frozen=True)
class Source:
    """Whose images there are: by patient and series, each read when its turn comes. Without originals there is no SEG."""

    images: Mapping[tuple[str, str], Callable[[], tuple[Volume, Originals | None]]]
    refused: Mapping[str, str] = field(default_factory=dict)  # pseudonym: reason
    left_out: Mapping[str, str] = field(default_factory=dict)  # handle: reason
    where: Mapping[str, Path] = field(default_factory=dict)  # pseudonym or handle: place. For the screen only


@dataclass(frozen=True)
class Row:
    """What became of one series, or of a patient (`series` empty)."""

    patient: str
    series: str
    volumes_ml: Mapping[str, float] = field(default_factory=dict)
    refused: str = ""
    spread_ml: Mapping[str, float] = field(default_factory=dict)
    agreement: Mapping[str, float] = field(default_factory=dict)  # of the members, by structure; empty: of one member
    expected: Mapping[str, float] = field(default_factory=dict)  # Dice, where there is a calibration
    low: Mapping[str, float] = field(default_factory=dict)  # Dice that nine patients in ten reach
    sureness: triage.Sure | None = None
    no_map: str = ""  # why there is no Parametric Map, where one was asked for and the mask is here


def segment(
    site: Site,
    model: Path,
    folder: Path | None,
    *,
    out: Path,
    study: str | None = None,
    patients: Sequence[str] = (),
    labels: str = "cardiac",
    rules: Path | None = None,
    members: int = MEMBERS,
    also: Sequence[Path] = (),
    heat_maps: bool = False,
) -> int:
    """Write a mask for every patient and series that the model reads: of a folder of DICOM, or (None) of the site's cohort.

    `patients` are pseudonyms; none means all. `members` look at each image: the model and those of `also` as they are, and then
    views of them; one tells no doubt. `heat_maps` writes where they are unsure. Returns 0, or 3 if somebody was refused. Raises
    `ValueError` and `OSError` in words, before anything is written, for a model, study, label map or folder that won't do.
    """
    trained = load_trained(model, study, site)
    jury = convene(site, trained, model, count=members, also=other_models(also, study, site))
    if heat_maps:
        jury.require_maps()
    _require_new(out, inside=(site.cohort_folder, *([folder] if folder else [])))
    meanings = None
    if folder is not None:
        meanings = label_map(labels)
        require_meanings(trained.task.settings.structures, meanings, labels)
    with progress_bars() as advance:
        if folder is None:
            source = _cohort(site, trained.task.settings.series)
        else:
            source = _dicom(site, folder, trained.task.settings.series, rules, partial(advance, "reading headers"))
        source = _only(source, patients, str(folder or site.cohort_folder))
        if not source.images and not source.refused:
            tell_left_out(source.left_out, source.where)
            raise ValueError(f"{folder or site.cohort_folder} holds no images that the model reads")
        out.mkdir(mode=0o700, parents=True, exist_ok=True)  # a SEG names the patient
        rows = [Row(patient, "", refused=reason) for patient, reason in source.refused.items()]
        for done, ((patient, series), read) in enumerate(source.images.items(), 1):
            try:
                rows.append(_one(jury, patient, series, read, out, meanings, trained.name, heat_maps))
            except GeometryRefused as reason:
                rows.append(Row(patient, series, refused=str(reason)))
            advance("segmenting", done, len(source.images))
    rows.sort(key=lambda row: (row.patient, row.series))
    first = triage.order(_by_patient(rows))
    _write_table(rows, trained.task.settings.structures, [patient for patient, _ in first], out)
    _tell(rows, source, out, trained)
    _tell_first(first, jury)
    return SOME_REFUSED if any(row.refused or row.no_map for row in rows) else 0


# -- the steps, in the order above ---------------------------------------------------------------------------------------


def _require_new(out: Path, *, inside: Sequence[Path]) -> None:
    """Masks go into a folder of their own: `admit` would take them for a reader's, and old ones may be corrected by hand."""
    for place in inside:
        if out.resolve().is_relative_to(place.resolve()):
            raise ValueError(f"{out} lies in {place}, where the masks would be taken for a reader's; choose another --out")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} stands already; masks are never written over others, so choose a new --out")


def require_meanings(structures: Mapping[str, int], labels: LabelMap, said: str) -> None:
    """A DICOM SEG says in codes what a value means, so that the label map has to know every structure of the model."""
    known = {name: structure.value for name, structure in labels.structures.items()}
    strangers = [f"{name} ({value})" for name, value in structures.items() if known.get(name) != value]
    if strangers:
        there = ", ".join(f"{name} ({value})" for name, value in known.items())
        raise ValueError(
            f"the model segments {', '.join(strangers)}, and the label map {said} knows {there}; pass another with --labels"
        )


def _cohort(site: Site, wanted: Collection[str]) -> Source:
    cohort = Cohort(site.cohort_folder)
    images: dict[tuple[str, str], Callable[[], tuple[Volume, Originals | None]]] = {}
    refused, where = {}, {}
    for case in cohort.look():
        if isinstance(case, CaseUnreadable):
            refused[case.folder.name], where[case.folder.name] = f"can't be read: {case.reason}", case.folder
            continue
        series = [volume.series for volume in case.volumes if volume.series in wanted]
        images |= {(case.patient, name): partial(_of_cohort, cohort, case.patient, name) for name in series}
        if not series:
            there = ", ".join(volume.series for volume in case.volumes) or "no images"
            refused[case.patient] = f"none of the series that the model reads ({', '.join(wanted)}); there are {there}"
    return Source(images, refused, where=where)


def _of_cohort(cohort: Cohort, patient: str, series: str) -> tuple[Volume, None]:
    try:
        volume = cohort.case(patient).volume(series)
    except CaseUnreadable as unreadable:
        raise GeometryRefused(f"can't be read: {unreadable.reason}") from None
    if volume is None:
        raise GeometryRefused(f"{series} went from the cohort meanwhile")
    return volume, None


def _dicom(
    site: Site, folder: Path, wanted: Collection[str], rules: Path | None, progress: Callable[[int, int], None]
) -> Source:
    found, reasons = visitors(folder, key=key_of(site), rules=series_rules(rules), wanted=wanted, progress=progress)
    images = {(visitor.patient, name): partial(visitor.read, name) for visitor in found for name in sorted(visitor.series)}
    return Source(images, reasons.refused, reasons.left_out, reasons.where)


def _only(source: Source, patients: Sequence[str], place: str) -> Source:
    if not patients:
        return source
    strangers = set(patients) - {patient for patient, _ in source.images} - source.refused.keys()
    if strangers:
        raise ValueError(f"no patient {', '.join(sorted(strangers))} in {place}; --patient takes pseudonyms")
    images = {key: read for key, read in source.images.items() if key[0] in patients}
    refused = {patient: reason for patient, reason in source.refused.items() if patient in patients}
    return Source(images, refused, source.left_out, source.where)


def _one(
    jury: Jury,
    patient: str,
    series: str,
    read: Callable[[], tuple[Volume, Originals | None]],
    out: Path,
    labels: LabelMap | None,
    name: str,
    heat_maps: bool,
) -> Row:
    """Segment one series and write what was found. Raises `GeometryRefused` with the reason, having written nothing."""
    volume, originals = read()
    try:
        found = jury.examine(volume)
    except ValueError as error:  # an image without contrast, an answer without numbers
        raise GeometryRefused(str(error)) from None
    place, mask = out / patient, found.mask
    place.mkdir(mode=0o700, exist_ok=True)
    parts: dict[Path, Path] = {}
    no_map = ""

    def part(ending: str) -> Path:
        made = place / f".{series}.part.{ending}"
        parts[made] = place / f"{series}.{ending}"
        return made

    try:
        _write_nifti(mask, volume, part("nii.gz"))
        if heat_maps and found.disagreement is not None:
            _write_nifti(found.entropy(jury.temperature), volume, part("entropy.nii.gz"))
            _write_nifti(found.disagreement, volume, part("disagreement.nii.gz"))
        if originals is not None and labels is not None:
            if mask.any():
                with _words_for_dicom("SEG"):
                    write_seg(mask, originals, part("seg.dcm"), labels, algorithm=name)
            if heat_maps:
                unsure = part("unsure.dcm")
                try:
                    with _words_for_dicom("Parametric Map"):
                        write_heat_map(found.entropy(jury.temperature), originals, unsure, algorithm=name)
                except GeometryRefused as reason:  # the mask needs no map
                    no_map = str(reason)
                    del parts[unsure]
                    unsure.unlink(missing_ok=True)
        for made, finished in parts.items():
            made.replace(finished)
    finally:
        for made in parts:
            made.unlink(missing_ok=True)
        if not any(place.iterdir()):
            place.rmdir()
    voxel_ml = float(np.prod(volume.spacing_mm)) / 1000
    return Row(
        patient,
        series,
        {name: voxel_ml * int((mask == value).sum()) for name, value in jury.settings.structures.items()},
        spread_ml=found.spread_ml,
        agreement=found.agreement,
        expected=jury.calibration.expected(found.agreement) if jury.calibration else {},
        low=jury.calibration.low(found.agreement) if jury.calibration else {},
        sureness=jury.sureness(found),
        no_map=no_map,
    )


def _write_nifti(values: Mask | npt.NDArray[np.float32], volume: Volume, path: Path) -> None:
    try:
        write_nifti(values, volume, path)
    except RuntimeError:  # SimpleITK's text is a page long
        raise OSError(f"{path.parent} takes no NIfTI file; is the disk full, or read-only?") from None


@contextmanager
def _words_for_dicom(kind: str) -> Iterator[None]:
    try:
        yield
    except OSError:
        raise
    except ValueError as error:
        raise GeometryRefused(f"no DICOM {kind} can refer to these images: {error}") from None
    except Exception as error:  # highdicom copies headers, and what is odd in them ends here
        raise GeometryRefused(f"no DICOM {kind} can refer to these images ({type(error).__name__})") from None


def _by_patient(rows: Sequence[Row]) -> dict[str, list[triage.Sure | None]]:
    found: dict[str, list[triage.Sure | None]] = {}
    for row in rows:
        if not row.refused:
            found.setdefault(row.patient, []).append(row.sureness)
    return found


def _write_table(rows: Sequence[Row], structures: Collection[str], first: Sequence[str], out: Path) -> None:
    """A line for each row. `first`: patients, who should be looked at first to whom last."""
    columns: dict[str, Callable[[Row], Mapping[str, float]]] = {
        "ml": lambda row: row.volumes_ml,
        "ml_sd": lambda row: row.spread_ml,
        "agreement": lambda row: row.agreement,
        "expected_dice": lambda row: row.expected,
        "expected_dice_low": lambda row: row.low,
    }
    place = {patient: number for number, patient in enumerate(first, 1)}
    part = out / ".masks.part.csv"
    with open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        named = [f"{name}_{what}" for what in columns for name in structures]
        writer.writerow(["patient", "series", *named, "look", "refused"])
        for row in rows:
            known = [(take(row), name) for take in columns.values() for name in structures]
            numbers = [f"{values[name]:.3f}" if name in values else "" for values, name in known]
            writer.writerow([row.patient, row.series, *numbers, "" if row.refused else place.get(row.patient, ""), row.refused])
    part.replace(out / "masks.csv")


def _tell_first(first: Sequence[tuple[str, float]], jury: Jury) -> None:
    """Whom a person should look at first, and what that is told by."""
    if first:
        what = "expected Dice" if jury.calibration else "agreement"
        some = first[: triage.first_of(len(first))]
        print(f"Look first at: {', '.join(f'{patient} ({what} {value:.2f})' for patient, value in some)}. {jury.told}")
    else:
        print(jury.told)


def _tell(rows: Sequence[Row], source: Source, out: Path, trained: Trained) -> None:
    made = [row for row in rows if not row.refused]
    people = len({row.patient for row in made})
    print(f"{trained.name}: {len(made)} masks of {people} patients in {out}, {len(rows) - len(made)} refused. {NOTE}")
    for row in rows:
        who = f"{row.patient} {row.series}".rstrip()
        if row.refused:
            print(f"  {who} refused: {row.refused}{_at(row, source)}")
        elif any(row.volumes_ml.values()):
            print(f"  {who}: {', '.join(f'{name} {ml:.1f} ml' for name, ml in row.volumes_ml.items())}{_at(row, source)}")
        else:
            print(f"  {who}: the model found nothing; the mask is empty, and there is no DICOM SEG of it{_at(row, source)}")
        if row.no_map:
            print(f"  {who}: the mask is here, the heat map is not: {row.no_map}")
    tell_left_out(source.left_out, source.where)


def _at(row: Row, source: Source) -> str:
    return f"  ({source.where[row.patient]})" if row.patient in source.where else ""


@contextmanager
def progress_bars() -> Iterator[Callable[[str, int, int], None]]:
    """Bars on a terminal, nothing on a pipe: call it with what is done, how many, and of how many."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description:<16}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bars:
        begun = {}

        def advance(what: str, done: int, total: int) -> None:
            if what not in begun:
                begun[what] = bars.add_task(what, total=total)
            bars.update(begun[what], completed=done, total=total)

        yield advance
