"""The door in, from end to end: a folder of files becomes cases of the cohort and reasons for what stayed outside.

    read header → de-identify → group by patient and series → geometry gate → volume → mask → check → quality → admit

Every patient ends as one case or one refusal, every other file as one line that says why it was left out. Nothing of the
original is written anywhere: pseudonyms, reasons in words and numbers, arrays. Texts of foreign exceptions are never
repeated, since they may quote a header.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from conf.study import Frozen
from fl_client.cohort import Cohort
from fl_client.intake import quality
from fl_client.intake.deidentify import Deidentifier, Unattributable, discreet
from fl_client.intake.endpoints import FILE as ENDPOINTS
from fl_client.intake.endpoints import EndpointRules, EndpointsUnreadable, Row, read_endpoints
from fl_client.intake.labels import LabelMap, UnmappedLabel
from fl_client.intake.mask import MaskRefused, check_mask, onto_grid, read_seg
from fl_client.intake.volume import Frame, GeometryRefused, to_volume
from tasks.case import Case, Volume

MR, CT = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.2"
SEG, LABELMAP_SEG = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"
DIRECTORY = "1.2.840.10008.1.3.10"
NEAR_R_WAVE = 8
"""A cine's lone masked phase is end-diastole within one part in so many of the cycle, before or after the R wave."""

SYSTOLE = (0.2, 0.6)
"""And end-systole if it lies between these shares of the cycle after the R wave: about a third at rest, more at high rates."""

Progress = Callable[[int, int], None]
"""Called with (files or patients done, in all)."""


class SeriesRule(Frozen):
    """A DICOM series becomes `name` if it has this modality and all `words` stand in its description."""

    name: str
    words: tuple[str, ...] = ()  # lower case; none matches every description
    modality: str = "MR"
    phases: bool = False  # a cine: gives `<name>_ed` and `<name>_es`


class SeriesRules(Frozen):
    """Which series the study wants, in order: the first rule that fits names the series. Others stay outside."""

    rules: tuple[SeriesRule, ...] = (
        SeriesRule(name="cine_ed", words=("cine", "ed")),
        SeriesRule(name="cine_es", words=("cine", "es")),
        SeriesRule(name="cine", words=("cine",), phases=True),
        SeriesRule(name="lge", words=("lge",)),
    )

    @property
    def words(self) -> frozenset[str]:
        """The only words of a series description that de-identification lets through."""
        return frozenset(word for rule in self.rules for word in rule.words)

    def match(self, header: Dataset) -> SeriesRule | None:
        """The first rule that fits a de-identified header."""
        words = set(str(header.get("SeriesDescription", "")).split())
        return next((rule for rule in self.rules if header.get("Modality") == rule.modality and words >= set(rule.words)), None)


@dataclass(frozen=True)
class Intake:
    """What became of a folder. `left_out` are files, series and table rows that belong to no admitted or refused patient."""

    expected: int  # patients that the folder speaks of
    admitted: tuple[str, ...]
    refused: Mapping[str, str]  # pseudonym: reason
    left_out: Mapping[str, str] = field(default_factory=dict)  # handle: reason
    where: Mapping[str, Path] = field(
        default_factory=dict, repr=False
    )  # handle: file. For the screen at the hospital; never stored


class Refused(ValueError):
    """A patient can't be admitted; the text is the reason."""


class Reasons:
    """Why files, series and patients of a folder are of no use, kept in memory alone."""

    def __init__(self, deidentify: Deidentifier) -> None:
        self.deidentify = deidentify
        self.refused: dict[str, str] = {}
        self.left_out: dict[str, str] = {}
        self.where: dict[str, Path] = {}

    def refuse(self, pseudonym: str, reason: str) -> None:
        """A patient stays outside."""
        self.refused[pseudonym] = reason

    def leave_out(self, what: str, reason: str, path: Path | None = None) -> None:
        """A file, series or row stays outside; `what` must already be a handle."""
        self.left_out[what] = reason
        if path is not None:
            self.where[what] = path


class Door(Reasons):
    """What one walk through the door writes down: admissions, refusals and what was left out, each reason once."""

    def __init__(self, cohort: Cohort, deidentify: Deidentifier) -> None:
        super().__init__(deidentify)
        self.cohort = cohort
        self.admitted: list[str] = []
        self._known = {(line["what"], line["reason"]) for line in cohort.refused}

    def admit(self, case: Case, notes: Mapping[str, float | bool | str] = {}) -> None:
        """Merge the case with what the cohort has of this patient, and store it. Raises `OSError` if the disk can't take it."""
        merged = merge(self.cohort, case)
        self.cohort.admit(merged)
        quality.record(self.cohort.folder, merged, notes)
        self.admitted.append(case.patient)

    def refuse(self, pseudonym: str, reason: str) -> None:
        """A patient stays outside, and the cohort says so."""
        super().refuse(pseudonym, reason)
        self._write(pseudonym, reason)

    def leave_out(self, what: str, reason: str, path: Path | None = None) -> None:
        """A file, series or row stays outside, and the cohort says so without its path."""
        super().leave_out(what, reason, path)
        self._write(what, reason)

    def _write(self, what: str, reason: str) -> None:
        if (what, reason) not in self._known:  # the same folder twice gives the same cohort
            self.cohort.refuse(what, reason)
            self._known.add((what, reason))

    def summary(self, expected: int) -> Intake:
        """The walk's outcome."""
        return Intake(expected, tuple(sorted(self.admitted)), self.refused, self.left_out, self.where)


def merge(cohort: Cohort, case: Case) -> Case:
    """One patient is one case, however many studies arrive: new series and endpoints replace old ones, others stay."""
    try:
        old = cohort.case(case.patient)
    except KeyError:
        return case
    new = {volume.series for volume in case.volumes}
    volumes = (*case.volumes, *(volume for volume in old.volumes if volume.series not in new))
    return Case(
        case.patient,
        tuple(sorted(volumes, key=lambda volume: volume.series)),
        {**old.endpoints, **case.endpoints},
        {**old.scanner, **case.scanner},
    )


@dataclass
class Patient:
    """All that a folder holds of one patient, de-identified."""

    series: dict[str, list[Frame]] = field(default_factory=dict)  # series UID: images
    masks: list[Frame] = field(default_factory=list)


def admit_folder(
    folder: Path,
    cohort: Cohort,
    *,
    key: bytes,
    labels: LabelMap,
    series: SeriesRules | None = None,
    endpoints: EndpointRules | None = None,
    progress: Progress | None = None,
) -> Intake:
    """Let in a folder of DICOM files, nested as they may be, with DICOM SEG masks and an `endpoints.csv` if there is one.

    `key` is the hospital's secret; the same key gives the same pseudonyms. Raises `NotADirectoryError` for a folder that isn't
    there and `OSError` if the cohort can't be written; whatever else is wrong with a file or patient becomes a reason.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is no folder; the intake reads a folder of DICOM files")
    rules = series or SeriesRules()
    deidentify = Deidentifier(key, words=rules.words | labels.words)
    door = Door(cohort, deidentify)
    with discreet():
        patients = read_headers(folder, door, progress)
        rows = _read_rows(folder / ENDPOINTS, endpoints or EndpointRules(), door)
        owners = {uid: pseudonym for pseudonym, patient in patients.items() for uid in patient.series}
        for done, (pseudonym, patient) in enumerate(sorted(patients.items()), 1):
            row = rows.pop(pseudonym, Row({}))
            try:
                if row.problem:
                    raise Refused(row.problem)
                case, notes = _case(pseudonym, patient, rules, labels, owners, door)
            except (Refused, GeometryRefused, MaskRefused, UnmappedLabel) as reason:
                door.refuse(pseudonym, str(reason))
            except Exception as error:  # a header that breaks an assumption is a reason, never a traceback
                door.refuse(pseudonym, f"its files can't be understood ({type(error).__name__})")
            else:
                door.admit(Case(case.patient, case.volumes, row.values, case.scanner), notes)
            if progress:
                progress(done, len(patients))
        for pseudonym in sorted(rows):
            door.refuse(pseudonym, f"stands in {ENDPOINTS}, but there are no images")
    return door.summary(len(patients.keys() | rows.keys()))


def read_headers(folder: Path, reasons: Reasons, progress: Progress | None) -> dict[str, Patient]:
    """De-identified headers by patient and series; files that are no images or masks of anybody are left out."""
    patients: dict[str, Patient] = {}
    seen: dict[str, Path] = {}  # SOP instance: first file
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / ENDPOINTS]
    for done, path in enumerate(files, 1):
        handle = reasons.deidentify.handle(path.relative_to(folder).as_posix())
        try:
            header = read_header(path, reasons.deidentify)
        except Unattributable as reason:
            reasons.leave_out(handle, str(reason), path)
        except InvalidDicomError:
            reasons.leave_out(handle, "not a DICOM file", path)
        except Exception as error:
            reasons.leave_out(handle, f"the header can't be read ({type(error).__name__}): corrupt or cut short", path)
        else:
            # a patient whose every file is of no use still ends as a refusal
            patient = patients.setdefault(header.PatientID, Patient())
            unfit = unsuitable(header)
            instance = str(header.get("SOPInstanceUID", ""))
            if unfit is None and instance in seen and _digest(seen[instance]) == _digest(path):
                unfit = "a copy of another file, byte by byte"
            if unfit is not None:
                reasons.leave_out(handle, unfit, path)
            elif header.SOPClassUID in (SEG, LABELMAP_SEG):
                patient.masks.append(Frame(path, header))
            else:
                patient.series.setdefault(str(header.get("SeriesInstanceUID", "")), []).append(Frame(path, header))
            seen.setdefault(instance, path)
        if progress:
            progress(done, len(files))
    return patients


def read_header(path: Path, deidentify: Deidentifier) -> Dataset:
    """The de-identified header; a segmentation keeps its pixels, which are the mask. Raises many kinds of exception."""
    with pydicom.dcmread(path, stop_before_pixels=True) as original:
        if original.get("SOPClassUID") in (SEG, LABELMAP_SEG):
            original = pydicom.dcmread(path)
        elif original.file_meta.get("MediaStorageSOPClassUID") == DIRECTORY:
            raise Unattributable("a DICOMDIR: the files it lists are read instead")
        header = deidentify(original)
    for element in header.iterall():
        _ = element.value  # converts numbers now, so that a broken one is this file's fault
    return header


def unsuitable(header: Dataset) -> str | None:
    """Why a readable file is neither a slice nor a mask, or None if it is one."""
    kind = header.get("SOPClassUID")
    if kind in (SEG, LABELMAP_SEG):
        return None
    if kind not in (MR, CT):
        # a private UID may carry a hospital's own root, so only the standard's names are repeated
        standard = str(kind or "").startswith("1.2.840.10008.")
        name = pydicom.uid.UID(str(kind)).name if standard else "an object of no standard class"
        return f"{name} is neither MR or CT images, slice by slice, nor a segmentation"
    if header.get("BurnedInAnnotation") == "YES":
        return "BurnedInAnnotation is YES: names may stand in the pixels"
    if header.get("Rows") is None or header.get("Columns") is None:
        return "an image header without Rows and Columns"
    return None


def _digest(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()


def _read_rows(path: Path, rules: EndpointRules, door: Door) -> dict[str, Row]:
    if not path.exists():
        return {}
    try:
        rows, notes = read_endpoints(path, rules, door.deidentify)
    except EndpointsUnreadable as reason:
        door.leave_out(ENDPOINTS, str(reason), path)
        return {}
    for number, note in enumerate(notes, 1):
        door.leave_out(f"{ENDPOINTS}-{number}", note, path)
    return rows


def _case(
    pseudonym: str, patient: Patient, rules: SeriesRules, labels: LabelMap, owners: Mapping[str, str], door: Door
) -> tuple[Case, dict[str, float | bool | str]]:
    """The patient's wanted series as volumes with their masks. Raises the refusals."""
    wanted = latest(pseudonym, patient, rules, door)
    volumes: dict[str, Volume] = {}
    instances: dict[str, str] = {}  # SOP instance UID: series name
    frames_of: dict[str, list[Frame]] = {}
    for rule, frames in wanted:
        for name, some in phases(rule, frames, patient.masks):
            try:
                volumes[name], frames_of[name] = to_volume(name, some)
            except GeometryRefused as reason:
                raise GeometryRefused(f"{name}: {reason}") from None
            instances |= {str(frame.header.SOPInstanceUID): name for frame in some}
    notes: dict[str, float | bool | str] = {}
    for number, mask in enumerate(patient.masks, 1):
        uids = set(_references(mask.header))
        series = {str(item.get("SeriesInstanceUID", "")) for item in mask.header.get("ReferencedSeriesSequence", [])}
        strangers = {owners[uid] for uid in series if uid in owners} - {pseudonym}
        if strangers:
            raise Refused(f"mask {number} refers to images of another patient, {', '.join(sorted(strangers))}")
        names = {instances[uid] for uid in uids if uid in instances}
        if not names and series and series <= patient.series.keys():
            door.leave_out(f"{pseudonym}-mask-{number}", "drawn on a series that the study doesn't ask for", mask.path)
            continue
        if len(names) != 1 or not uids <= instances.keys():
            absent = len(uids - instances.keys())
            raise Refused(
                f"mask {number} refers to {len(uids)} images, of which {absent} are not here, in {len(names)} wanted series; "
                "a mask belongs to the images of one"
            )
        name = names.pop()
        if volumes[name].mask is not None:
            raise Refused(f"two masks for {name}; one of them has to go")
        try:
            volumes[name], resampled = _with_mask(volumes[name], mask.header, frames_of[name][0].header, labels)
        except (MaskRefused, UnmappedLabel) as reason:
            raise MaskRefused(f"the mask of {name}: {reason}") from None
        notes[f"mask_resampled/{name}"] = resampled
    first = frames_of[min(frames_of)][0].header
    scanner: dict[str, float | str] = {"manufacturer": str(first.get("Manufacturer", "other"))}
    if first.get("MagneticFieldStrength"):
        scanner["field_strength_t"] = float(first.MagneticFieldStrength)
    return Case(pseudonym, tuple(volumes[name] for name in sorted(volumes)), {}, scanner), notes


def latest(pseudonym: str, patient: Patient, rules: SeriesRules, reasons: Reasons) -> list[tuple[SeriesRule, list[Frame]]]:
    """The series that the study asks for, the latest of each rule; the rest is left out. Raises `Refused` if none is left."""
    found: dict[str, list[tuple[str, str]]] = {}  # rule name: (date, series UID)
    by_name = {rule.name: rule for rule in rules.rules}
    unasked: dict[str, int] = {}
    for uid, frames in sorted(patient.series.items()):
        rule = rules.match(frames[0].header)
        if rule is None:
            reason = f"a series of {len(frames)} {frames[0].header.get('Modality', '')} images that no series rule asks for"
            reasons.leave_out(f"{pseudonym}-{uid[-12:]}", reason)
            unasked[reason] = unasked.get(reason, 0) + 1
        else:
            dates = [str(frame.header.get("StudyDate") or frame.header.get("AcquisitionDate") or "") for frame in frames]
            found.setdefault(rule.name, []).append((max(dates), uid))
    if not found:
        wanted = ", ".join(f"{rule.name} ({rule.modality})" for rule in rules.rules)
        raise Refused(f"no usable series: the study asks for {wanted}; there were {'; '.join(unasked) or 'no MR or CT slices'}")
    result = []
    for name, series in sorted(found.items()):
        latest = max(date for date, _ in series)
        newest = [uid for date, uid in series if date == latest]
        if len(newest) > 1:
            raise Refused(f"{len(newest)} series are {name} and none is later than the other; the study wants one")
        for date, uid in series:
            if date < latest:
                reasons.leave_out(f"{pseudonym}-{uid[-12:]}", f"an earlier {name} of a patient with a later one")
        result.append((by_name[name], patient.series[newest[0]]))
    return result


def phases(rule: SeriesRule, frames: list[Frame], masks: list[Frame]) -> Iterator[tuple[str, list[Frame]]]:
    """A cine as its end-diastolic and end-systolic phase; any other series as it is.

    Phases are the frames' ranks by trigger time at their slice position. Masks say which phases matter: a reader draws on
    end-diastole and end-systole, and the heart contracts, so that of two masked phases end-diastole is the one nearer to the
    R wave (cyclically). A single masked phase has nothing to be compared with: it is named by where it lies in the cycle, or
    refused. Without masks only the first phase, at the R wave, is taken as end-diastole.
    """
    if not rule.phases:
        yield rule.name, frames
        return
    positions: dict[tuple[float, ...], list[Frame]] = {}
    for frame in frames:
        if frame.header.get("TriggerTime") in (None, "") or frame.header.get("ImagePositionPatient") in (None, ""):
            raise GeometryRefused(f"{rule.name}: a cine image without TriggerTime or position")
        positions.setdefault(tuple(map(float, frame.header.ImagePositionPatient)), []).append(frame)
    counts = {len(some) for some in positions.values()}
    if len(counts) > 1:
        raise GeometryRefused(
            f"{rule.name}: {min(counts)} to {max(counts)} phases per slice; every slice needs the same number"
        )
    ranked = [sorted(some, key=lambda frame: float(frame.header.TriggerTime)) for some in positions.values()]
    phases = [[some[rank] for some in ranked] for rank in range(counts.pop())]
    drawn = {uid for mask in masks for uid in _references(mask.header)}
    masked = [rank for rank, phase in enumerate(phases) if any(str(frame.header.SOPInstanceUID) in drawn for frame in phase)]
    if len(masked) > 2:
        raise Refused(f"{rule.name}: masks on {len(masked)} phases; the study reads end-diastole and end-systole")
    if len(masked) == 1:
        yield f"{rule.name}_{_only_phase(rule.name, masked[0], len(phases))}", phases[masked[0]]
        return
    masked.sort(key=lambda rank: min(rank, len(phases) - rank))
    for suffix, rank in zip(("ed", "es"), masked or [0], strict=False):
        yield f"{rule.name}_{suffix}", phases[rank]


def _only_phase(name: str, rank: int, count: int) -> str:
    """`ed` or `es` for the one phase that somebody drew on. Raises `Refused` where it could be neither or both."""
    if min(rank, count - rank) <= count / NEAR_R_WAVE:
        return "ed"
    if SYSTOLE[0] <= rank / count <= SYSTOLE[1]:
        return "es"
    raise Refused(
        f"{name}: only phase {rank + 1} of {count} has a mask, {rank / count:.0%} of the cycle after the R wave; end-diastole "
        f"lies within {1 / NEAR_R_WAVE:.1%} of it and end-systole between {SYSTOLE[0]:.0%} and {SYSTOLE[1]:.0%} after it"
    )


def _references(seg: Dataset) -> Iterator[str]:
    """SOP instances of the images that a segmentation was drawn on."""
    for series in seg.get("ReferencedSeriesSequence", []):
        for item in series.get("ReferencedInstanceSequence", []):
            yield str(item.get("ReferencedSOPInstanceUID", ""))


def _with_mask(volume: Volume, seg: Dataset, image: Dataset, labels: LabelMap) -> tuple[Volume, bool]:
    if seg.get("FrameOfReferenceUID") != image.get("FrameOfReferenceUID"):
        raise MaskRefused("its frame of reference is not that of the images: their coordinates can't be compared")
    mask, affine = read_seg(seg, labels)
    mask, resampled = onto_grid(mask, affine, volume)
    check_mask(mask, volume.spacing_mm, labels)
    return Volume(volume.series, volume.image, volume.affine, mask), resampled
