"""The door in, from end to end: a folder of files becomes cases of the cohort and reasons for what stayed outside.

    read header → de-identify → group by patient and series → geometry gate → volume → mask → check → quality → admit

Every patient ends as one case or one refusal, every other file as one line that says why it was left out. Nothing of the
original is written anywhere: pseudonyms, reasons in words and numbers, arrays. Texts of foreign exceptions are never
repeated, since they may quote a header.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydicom.dataset import Dataset

from fl_client.cohort import Cohort
from fl_client.intake.clean import AlreadyClean
from fl_client.intake.deidentify import Deidentifier, discreet
from fl_client.intake.door import Door, Intake, Progress, Refused
from fl_client.intake.endpoints import FILE as ENDPOINTS
from fl_client.intake.endpoints import EndpointRules, EndpointsUnreadable, Row, read_endpoints
from fl_client.intake.headers import Patient, read_headers, references
from fl_client.intake.labels import LabelMap, UnmappedLabel
from fl_client.intake.mask import MaskRefused, check_mask, onto_grid, read_seg
from fl_client.intake.series import SeriesRules, chosen, lone_phases
from fl_client.intake.volume import Frame, GeometryRefused, to_volume
from tasks.case import Case, Volume


def admit_folder(
    folder: Path,
    cohort: Cohort,
    *,
    key: bytes | None,
    labels: LabelMap,
    series: SeriesRules | None = None,
    endpoints: EndpointRules | None = None,
    progress: Progress | None = None,
) -> Intake:
    """Let in a folder of DICOM files, nested as they may be, with DICOM SEG masks and an `endpoints.csv` if there is one.

    `key` is the hospital's secret; the same key gives the same pseudonyms. None: a folder of the clean store, whose
    files are de-identified. Raises `NotADirectoryError` for a folder that isn't
    there and `OSError` if the cohort can't be written; whatever else is wrong with a file or patient becomes a reason.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is no folder; the intake reads a folder of DICOM files")
    rules = series or SeriesRules()
    deidentify = Deidentifier(key, words=rules.words | labels.words) if key is not None else AlreadyClean()
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
    wanted = chosen(pseudonym, patient, rules, door)
    volumes: dict[str, Volume] = {}
    instances: dict[str, str] = {}  # SOP instance UID: series name
    frames_of: dict[str, list[Frame]] = {}
    for name, frames in wanted.items():
        try:
            volumes[name], frames_of[name] = to_volume(name, frames)
        except GeometryRefused as reason:
            raise GeometryRefused(f"{name}: {reason}") from None
        instances |= {str(frame.header.SOPInstanceUID): name for frame in frames}
    notes: dict[str, float | bool | str] = {}
    for number, mask in enumerate(patient.masks, 1):
        uids = set(references(mask.header))
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
    for name, why in lone_phases(wanted, rules, patient.masks).items():
        door.leave_out(f"{pseudonym}-{name}", why)
    first = frames_of[min(frames_of)][0].header
    scanner: dict[str, float | str] = {"manufacturer": str(first.get("Manufacturer", "other"))}
    if first.get("MagneticFieldStrength"):
        scanner["field_strength_t"] = float(first.MagneticFieldStrength)
    return Case(pseudonym, tuple(volumes[name] for name in sorted(volumes)), {}, scanner), notes


def _with_mask(volume: Volume, seg: Dataset, image: Dataset, labels: LabelMap) -> tuple[Volume, bool]:
    if seg.get("FrameOfReferenceUID") != image.get("FrameOfReferenceUID"):
        raise MaskRefused("its frame of reference is not that of the images: their coordinates can't be compared")
    mask, affine = read_seg(seg, labels)
    mask, resampled = onto_grid(mask, affine, volume)
    check_mask(mask, volume.spacing_mm, labels)
    return Volume(volume.series, volume.image, volume.affine, mask), resampled
