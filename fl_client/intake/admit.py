"""The door in, from end to end: a folder of files becomes cases of the cohort and reasons for what stayed outside.

    read header → de-identify → group by patient and series → geometry gate → volume → mask → check → quality → admit

Every patient ends as one case or one refusal, every other file as one line that says why it was left out. Nothing of the
original is written anywhere: pseudonyms, reasons in words and numbers, arrays. Texts of foreign exceptions are never
repeated, since they may quote a header.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from pathlib import Path

from fl_client.cohort import Cohort
from fl_client.intake.clean import AlreadyClean
from fl_client.intake.deidentify import Deidentifier, discreet
from fl_client.intake.door import Door, Intake, Progress, Refused
from fl_client.intake.drawings import Drawings
from fl_client.intake.drawn_on import MaskFile, by_patient, mask_files
from fl_client.intake.endpoints import FILE as ENDPOINTS
from fl_client.intake.endpoints import EndpointRules, EndpointsUnreadable, Row, read_endpoints
from fl_client.intake.headers import Patient, read_headers
from fl_client.intake.labels import LabelMap, UnmappedLabel
from fl_client.intake.mask import MaskRefused, Notes
from fl_client.intake.moments import Moment
from fl_client.intake.placement import place
from fl_client.intake.pseudonyms import Pseudonyms
from fl_client.intake.series import SeriesRules, chosen, day_of, lone_phases
from fl_client.intake.volume import Frame, GeometryRefused, to_volume
from fl_client.intake.way_back import TwoPeople, WayBack
from tasks.case import Case, Volume


def admit_folder(
    folder: Path,
    cohort: Cohort,
    *,
    key: bytes | None,
    labels: LabelMap,
    series: SeriesRules | None = None,
    endpoints: EndpointRules | None = None,
    masks: Path | None = None,
    names: Pseudonyms | None = None,
    accept_faces: bool = False,
    measure: bool = True,
    short: Collection[str] = (),
    moments: Mapping[str, Moment] = {},
    keep_days: bool = True,
    way_back: WayBack | None = None,
    progress: Progress | None = None,
) -> Intake:
    """Let in a folder of DICOM files, nested as they may be, with the masks and the `endpoints.csv` that lie in it.

    `masks` is a further folder of masks alone, DICOM or files; how those are named, `drawn_on` says. Without `measure` the
    quality of images is measured when somebody asks for it.
    Without `keep_days` the cohort doesn't learn the (moved) days of the images, and can't tell a later one from an earlier.
    `way_back` knows whom the hospital has let in: who is there under another number, or with another birth date, is refused;
    the others are written down there. `moments` say of masks of the clean store when they were drawn.
    `short` are series of which an image may not pass: a patient whose wanted series is among them is refused.
    Without `accept_faces` originals that show a head are left out, as others that the pixel policy stops (`pixels.problem`).
    `key` is the hospital's secret; the same key gives the same pseudonyms. None: a folder of the clean store, whose files are
    de-identified; there `names`, made with the key, finds whose a patient number in a mask's file name is. Raises
    `NotADirectoryError` for a folder that isn't there and `OSError` if the cohort can't be written; whatever else is wrong with
    a file or patient becomes a reason.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is no folder; the intake reads a folder of DICOM files")
    if masks is not None and not masks.is_dir():
        raise NotADirectoryError(f"{masks} is no folder; masks are read from a folder")
    rules = series or SeriesRules()
    deidentify = Deidentifier(key, words=rules.words | labels.words) if key is not None else AlreadyClean()
    door = Door(cohort, deidentify, measure=measure)
    with discreet():
        beside, described = mask_files(folder)
        skip = {*beside, *described}
        patients = read_headers(folder, door, progress, skip=skip, accept_faces=accept_faces, originals=key is not None)
        files = by_patient(beside, folder, patients, door, names=names or deidentify, beside=True)
        if masks is not None:
            _add(masks, patients, files, door, names or deidentify)
        rows = _read_rows(folder / ENDPOINTS, endpoints or EndpointRules(), door)
        owners = {uid: pseudonym for pseudonym, patient in patients.items() for uid in patient.series}
        for done, (pseudonym, patient) in enumerate(sorted(patients.items()), 1):
            row = rows.pop(pseudonym, Row({}))
            patient.moments.update(moments)
            doubt = _doubt(pseudonym, patient, way_back, door)
            try:
                if row.problem or doubt:
                    raise Refused(doubt or row.problem)
                case, notes, apart, days = _case(
                    pseudonym, patient, files.get(pseudonym, []), rules, labels, owners, short, door
                )
            except (Refused, GeometryRefused, MaskRefused, UnmappedLabel) as reason:
                door.refuse(pseudonym, str(reason))
            except Exception as error:  # a header that breaks an assumption is a reason, never a traceback
                door.refuse(pseudonym, f"its files can't be understood ({type(error).__name__})")
            else:
                whole = Case(case.patient, case.volumes, row.values, case.scanner)
                door.admit(whole, notes, apart=apart, days=days if keep_days else {})
            if progress:
                progress(done, len(patients))
        for pseudonym in sorted(rows):
            door.refuse(pseudonym, f"stands in {ENDPOINTS}, but there are no images")
    return door.summary(len(patients.keys() | rows.keys()))


def _doubt(pseudonym: str, patient: Patient, way_back: WayBack | None, door: Door) -> str:
    """In words, that the files are of two people, by themselves or by what the hospital knows; else they are known now.

    Empty if nothing says so. Raises `OSError`.
    """
    if not (doubt := patient.doubt()) and way_back is not None and pseudonym not in door.cohort.withdrawn:
        try:
            way_back.remember_all(patient.facts, door.deidentify)
        except TwoPeople as reason:
            doubt = f"{reason}; so says what has been let in here before"
    patient.facts.clear()  # they name the patient
    return doubt


def _add(folder: Path, patients: dict[str, Patient], files: dict[str, list[MaskFile]], door: Door, names: Pseudonyms) -> None:
    """The masks of a folder of their own, to the patients whose images are here."""
    there, described = mask_files(folder)
    for pseudonym, some in by_patient(there, folder, patients, door, names=names, beside=False).items():
        files.setdefault(pseudonym, []).extend(some)
    originals = not isinstance(door.deidentify, AlreadyClean)
    for pseudonym, drawn in read_headers(folder, door, None, skip={*there, *described}, originals=originals).items():
        for mask in drawn.masks:
            if pseudonym not in patients:
                door.leave_out(f"{pseudonym}-mask", "a mask of a patient without images here", mask.path)
        if pseudonym in patients:
            patients[pseudonym].add_masks(drawn)
        for uid, images in drawn.series.items():
            reason = f"{len(images)} images in the folder of masks; images are read from the other folder"
            door.leave_out(f"{pseudonym}-{uid[-12:]}", reason)


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
    pseudonym: str,
    patient: Patient,
    files: Sequence[MaskFile],
    rules: SeriesRules,
    labels: LabelMap,
    owners: Mapping[str, str],
    short: Collection[str],
    door: Door,
) -> tuple[Case, Notes, frozenset[str], dict[str, str]]:
    """The patient's wanted series as volumes with their masks, what `chosen` left out, and days. Raises the refusals."""
    wanted, apart = chosen(pseudonym, patient, rules, door)
    for name, frames in wanted.items():
        if any(frame.header.get("SeriesInstanceUID") in short for frame in frames):
            raise Refused(f"{name}: one of its images is in the quarantine, and the stack would be shorter without it")
    volumes: dict[str, Volume] = {}
    frames_of: dict[str, list[Frame]] = {}
    for name, frames in wanted.items():
        try:
            volumes[name], frames_of[name] = to_volume(name, frames)
        except GeometryRefused as reason:
            raise GeometryRefused(f"{name}: {reason}") from None
    notes = _of_images(frames_of)
    drawings = Drawings(pseudonym, patient, volumes, frames_of, known=rules.names, labels=labels, owners=owners, reasons=door)
    for name, drawing, by_geometry in chain(drawings, drawings.of_files(files)):
        if volumes[name].mask is not None:
            raise Refused(f"two masks for {name}; one of them has to go")
        try:
            volumes[name], more = place(volumes[name], drawing, labels)
        except (MaskRefused, UnmappedLabel) as reason:
            raise MaskRefused(f"the mask of {name}: {reason}") from None
        notes |= more
        if by_geometry:
            notes[f"mask_by_geometry/{name}"] = True
    for name, why in lone_phases(wanted, rules, patient.masks).items():
        door.leave_out(f"{pseudonym}-{name}", why)
    days = {name: day_of(frames) for name, frames in frames_of.items()}
    first = frames_of[min(frames_of)][0].header
    scanner: dict[str, float | str] = {"manufacturer": str(first.get("Manufacturer", "other"))}
    if first.get("MagneticFieldStrength"):
        scanner["field_strength_t"] = float(first.MagneticFieldStrength)
    scanner["modality"] = "/".join(sorted({str(frames[0].header.Modality) for frames in frames_of.values()}))
    return Case(pseudonym, tuple(volumes[name] for name in sorted(volumes)), {}, scanner), notes, apart, days


def _of_images(frames_of: Mapping[str, list[Frame]]) -> Notes:
    """What headers say that measuring quality needs, by series."""
    notes: Notes = {}
    for name, frames in frames_of.items():
        header = frames[0].header
        if header.get("SliceThickness"):
            notes[f"slice_thickness_mm/{name}"] = float(header.SliceThickness)
        if header.get("ParallelAcquisition") == "YES":
            notes[f"parallel_imaging/{name}"] = True
    return notes
