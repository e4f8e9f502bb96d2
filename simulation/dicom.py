"""A generated patient as a hospital's archive would hold it: MR or CT series, DICOM SEG masks, and a row in endpoints.csv.

The headers carry invented personal data at the top level, in nested sequences and in a private block, so that the door in has
something to remove. Image values are written as they are (no rescaling), so that what comes back through the intake is the
same array.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

from fl_client.intake.labels import LabelMap
from fl_client.intake.write_back import write_seg
from simulation.cine import Cine
from tasks.case import Case, Volume

INVENTED = "Invented: this person does not exist, and no scanner made this image; drawn by konsil to try it out"
"""What the headers say plainly, for whoever finds such a file in an archive."""

BODY_PARTS = {"t1": "BRAIN", "ct": "CHEST"}
"""Of series, as DICOM calls them (PS3.16 L); all others are of the heart."""

FAMILY_NAMES = ("Abendroth", "Brunnthaler", "Castellani", "Dubrovin", "Eskilsson", "Fontanarosa", "Grzeszczak", "Haraldsen")
GIVEN_NAMES = ("Annelore", "Bertrand", "Concetta", "Dagobert", "Eleonora", "Frederika", "Gianluca", "Hildegund")


@dataclass(frozen=True)
class Identity:
    """A person who does not exist. Dates are YYYYMMDD."""

    patient_id: str
    name: str  # DICOM PN: family^given
    birth_date: str
    sex: str
    institution: str
    address: str
    physician: str
    operator: str
    accession: str
    device_serial: str
    study_date: str
    study_time: str

    @classmethod
    def invent(cls, patient: str) -> Identity:
        """The same person for the same pseudonym, each time."""
        seed = hashlib.sha256(f"identity/{patient}".encode()).digest()
        family, other, given = FAMILY_NAMES[seed[0] % 8], FAMILY_NAMES[seed[1] % 8], GIVEN_NAMES[seed[2] % 8]
        return cls(
            patient_id=f"MRN-{int.from_bytes(seed[3:7], 'big'):010d}",
            name=f"{family}^{given}",
            birth_date=f"{1930 + seed[7] % 70}{1 + seed[8] % 12:02d}{1 + seed[9] % 28:02d}",
            sex="FM"[seed[10] % 2],
            institution=f"Clinic of Nowhere {seed[11]}",
            address=f"{seed[12]} Invented Lane, Nowhere",
            physician=f"{other}^Doctor{seed[13]}",
            operator=f"{other}^Operator{seed[14]}",
            accession=f"ACC{int.from_bytes(seed[15:19], 'big'):010d}",
            device_serial=f"SN{int.from_bytes(seed[19:23], 'big'):010d}",
            study_date=f"20{15 + seed[23] % 10}{1 + seed[24] % 12:02d}{1 + seed[25] % 28:02d}",
            study_time=f"{8 + seed[26] % 10:02d}{seed[27] % 60:02d}00",
        )


def write_patient(
    case: Case,
    folder: Path,
    *,
    identity: Identity | None = None,
    labels: LabelMap | None = None,
    inversion_time_ms: float = 300.0,
    trigger_times_ms: Mapping[str, float] | None = None,
) -> None:
    """Write every volume of the case as a series of MR Image Storage, every mask as DICOM SEG, and a row of endpoints.csv.

    Series named `ct`, in Hounsfield units, become CT Image Storage.
    Files lie in `folder/<patient id>/<series>/`. `labels` names the mask's values (default: the cardiac map).
    `inversion_time_ms` is written for series named `lge`, `trigger_times_ms` (by series name) for cine. Manufacturer and field
    strength come from `case.scanner`. Raises `ValueError` for values that 16 bits can't hold exactly and for a sheared affine.
    """
    person = identity or Identity.invent(case.patient)
    label_map = labels or LabelMap.load("cardiac")
    times = trigger_times_ms or {"cine_ed": 0.0, "cine_es": 320.0}
    study = generate_uid(entropy_srcs=["study", person.patient_id, person.study_date])
    for number, volume in enumerate(case.volumes, 1):
        place = Path(folder) / person.patient_id / volume.series
        place.mkdir(parents=True, exist_ok=True)
        headers = []
        stored = _stored(volume)
        for index in range(len(volume.image)):
            dataset = _header(case, volume, person, study, number, index)
            if volume.series == "lge":
                dataset.ScanningSequence, dataset.InversionTime = ["GR", "IR"], _ds(inversion_time_ms)
            if volume.series in times:
                dataset.ScanOptions, dataset.TriggerTime = "CG", _ds(times[volume.series])  # cardiac gating
            _add_pixels(dataset, stored[index])
            dataset.save_as(place / f"IM{index + 1:04d}.dcm", enforce_file_format=True)
            headers.append(dataset)
        if volume.mask is not None and volume.mask.any():
            write_seg(volume.mask, headers, place.with_name(f"{volume.series}-mask.dcm"), label_map, algorithm=None)
    _append_endpoints(Path(folder) / "endpoints.csv", person.patient_id, case.endpoints)


def _stored(volume: Volume) -> npt.NDArray[np.uint16] | npt.NDArray[np.int16]:
    """The image as 16-bit integers, exactly."""
    low, high = float(volume.image.min()), float(volume.image.max())
    kind: type[np.uint16] | type[np.int16] = np.int16 if low < 0 or volume.image.dtype == np.int16 else np.uint16
    limits = np.iinfo(kind)
    if not (limits.min <= low and high <= limits.max) or not np.array_equal(np.rint(volume.image), volume.image):
        raise ValueError(
            f"{volume.series} ranges from {low:g} to {high:g}; DICOM holds whole numbers of 16 bits: scale and round first"
        )
    return volume.image.astype(np.int16) if kind is np.int16 else volume.image.astype(np.uint16)


def write_cine(
    case: Case, cine: Cine, folder: Path, *, identity: Identity | None = None, labels: LabelMap | None = None
) -> None:
    """Write a whole cine as one series `cine` of MR Image Storage, slice after slice with all its phases, as scanners do.

    `TriggerTime` counts from the R wave. Masks of end-diastole and end-systole are DICOM SEGs beside it, as a reader leaves
    them, and the case's endpoints go into endpoints.csv; its volumes are not written.
    """
    person = identity or Identity.invent(case.patient)
    label_map = labels or LabelMap.load("cardiac")
    study = generate_uid(entropy_srcs=["study", person.patient_id, person.study_date])
    place = Path(folder) / person.patient_id / "cine"
    place.mkdir(parents=True, exist_ok=True)
    phases, slices = cine.image.shape[:2]
    headers: dict[int, list[Dataset]] = {cine.end_diastole: [], cine.end_systole: []}
    for index, phase in np.ndindex(slices, phases):
        volume = Volume("cine", cine.image[phase], cine.affine)
        instance = index * phases + phase
        dataset = _header(case, volume, person, study, 1, index, instance)
        dataset.ScanOptions, dataset.TriggerTime = "CG", _ds(float(cine.trigger_times_ms[phase]))
        dataset.NominalInterval, dataset.CardiacNumberOfImages = round(cine.cycle_ms), phases
        dataset.HeartRate = round(60000 / cine.cycle_ms)
        _add_pixels(dataset, cine.image[phase, index])
        dataset.save_as(place / f"IM{instance + 1:04d}.dcm", enforce_file_format=True)
        if phase in headers:
            headers[phase].append(dataset)
    for name, phase in (("ed", cine.end_diastole), ("es", cine.end_systole)):
        write_seg(cine.mask[phase], headers[phase], place.with_name(f"cine-{name}-mask.dcm"), label_map, algorithm=None)
    _append_endpoints(Path(folder) / "endpoints.csv", person.patient_id, case.endpoints)


def _header(
    case: Case, volume: Volume, person: Identity, study: str, number: int, index: int, instance: int | None = None
) -> Dataset:
    """Everything but the pixels of slice `index`, after PS3.3 A.3 and A.4 (CT and MR Image IOD); `instance` counts from 0."""
    instance = index if instance is None else instance
    steps = volume.affine[:3, :3]
    spacing = volume.spacing_mm
    normal = np.cross(steps[:, 2] / spacing[2], steps[:, 1] / spacing[1])
    if abs(abs(float(normal @ steps[:, 0])) - spacing[0]) > 1e-4 * spacing[0] or abs(float(steps[:, 1] @ steps[:, 2])) > 1e-4:
        raise ValueError(f"the affine of {volume.series} is sheared; DICOM slices are stacked along their normal")
    uid = [person.patient_id, person.study_date, volume.series]
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.Modality = "CT" if volume.series == "ct" else "MR"
    dataset.BodyPartExamined = BODY_PARTS.get(volume.series, "HEART")
    stored = CTImageStorage if dataset.Modality == "CT" else MRImageStorage
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = stored
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=["instance", *uid, str(instance)])
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.SpecificCharacterSet = "ISO_IR 192"

    dataset.PatientName, dataset.PatientID = person.name, person.patient_id
    dataset.PatientBirthDate, dataset.PatientSex = person.birth_date, person.sex
    dataset.StudyInstanceUID, dataset.StudyID, dataset.AccessionNumber = study, "1", person.accession
    dataset.StudyDate = dataset.SeriesDate = dataset.AcquisitionDate = dataset.ContentDate = person.study_date
    dataset.StudyTime = dataset.SeriesTime = dataset.AcquisitionTime = dataset.ContentTime = person.study_time
    dataset.ReferringPhysicianName, dataset.OperatorsName = person.physician, person.operator
    dataset.InstitutionName, dataset.InstitutionAddress = person.institution, person.address
    what = f"{dataset.Modality} of the {dataset.BodyPartExamined.lower()}"
    dataset.StudyDescription = f"{what} of {person.name.replace('^', ' ')} (invented)"
    dataset.PatientComments = dataset.ImageComments = INVENTED
    dataset.SeriesDescription = volume.series
    request = Dataset()
    request.RequestedProcedureID = person.accession
    request.ScheduledProcedureStepID = "1"
    request.RequestedProcedureDescription = f"{what}, {person.name.replace('^', ' ')}, born {person.birth_date}"
    dataset.RequestAttributesSequence = [request]
    block = dataset.private_block(0x0019, "KONSIL REHEARSAL", create=True)
    block.add_new(0x01, "LO", f"{person.name} {person.patient_id}")

    dataset.SeriesInstanceUID = generate_uid(entropy_srcs=["series", *uid])
    dataset.SeriesNumber, dataset.InstanceNumber, dataset.AcquisitionNumber = number, instance + 1, 1
    dataset.PatientPosition, dataset.PositionReferenceIndicator = "HFS", ""
    dataset.FrameOfReferenceUID = generate_uid(entropy_srcs=["frame", *uid])
    dataset.Manufacturer = str(case.scanner.get("manufacturer", "konsil"))
    dataset.ManufacturerModelName, dataset.DeviceSerialNumber = "rehearsal", person.device_serial
    if dataset.Modality == "CT":
        dataset.ImageType, dataset.KVP = ["ORIGINAL", "PRIMARY", "AXIAL"], "120"
        dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = "0", "1", "HU"
    else:
        _add_sequence(dataset, case)

    dataset.ImagePositionPatient = [_ds(value) for value in volume.affine[:3] @ [index, 0, 0, 1]]
    dataset.ImageOrientationPatient = [_ds(value) for axis in (2, 1) for value in steps[:, axis] / spacing[axis]]
    dataset.PixelSpacing = [_ds(spacing[1]), _ds(spacing[2])]
    dataset.SliceThickness = dataset.SpacingBetweenSlices = _ds(spacing[0])
    return dataset


def _add_sequence(dataset: Dataset, case: Case) -> None:
    """What only an MR image tells of how it was made."""
    if "field_strength_t" in case.scanner:
        dataset.MagneticFieldStrength = _ds(float(case.scanner["field_strength_t"]))
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "OTHER"]
    dataset.ScanningSequence, dataset.SequenceVariant, dataset.ScanOptions = "GR", "SS", ""
    dataset.MRAcquisitionType, dataset.RepetitionTime, dataset.EchoTime, dataset.EchoTrainLength = "2D", "3.2", "1.6", "1"


def _add_pixels(dataset: Dataset, stored: npt.NDArray[np.uint16] | npt.NDArray[np.int16]) -> None:
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = stored.shape
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, int(stored.dtype == np.int16)
    dataset.PixelData = stored.astype(stored.dtype.newbyteorder("<")).tobytes()


def _ds(value: float) -> str:
    """A decimal string with as many digits as 16 characters hold (PS3.5 6.2), which is 10 or more.

    pydicom 3.0's own function writes 17 characters for numbers such as 9.999999999999998.
    """
    texts = (f"{float(value):.{digits}g}" for digits in range(16, 0, -1))
    return next(text for text in texts if len(text) <= 16)


def _append_endpoints(path: Path, patient_id: str, endpoints: Mapping[str, float | int | str | None]) -> None:
    """Add or replace the patient's row; the columns are those of all patients so far."""
    rows: dict[str, dict[str, str]] = {}
    if path.exists():
        with open(path, newline="") as file:
            rows = {row["patient_id"]: row for row in csv.DictReader(file)}
    rows[patient_id] = {
        "patient_id": patient_id,
        **{name: "" if value is None else str(value) for name, value in endpoints.items()},
    }
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    part = path.with_suffix(".part")
    with open(part, "w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows.values())
    part.replace(path)
