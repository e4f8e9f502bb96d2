"""Headers of the clean store under the names that the archive knows: the last step before something goes back to it.

Patient, study and UIDs come from the way back. What the clean store knows of them (pseudonym, moved dates, new UIDs, that an
identity was removed) would make another patient in the archive, and must not be in what is sent.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

from pydicom.dataset import Dataset
from pydicom.uid import UID

from fl_client.intake.multiframe import Chosen
from fl_client.intake.way_back import WayBack

REPLACED_GROUPS = (0x0010, 0x0012, 0x0032, 0x0040)  # patient, clinical trial, request
DROPPED = (
    *("StudyDescription", "ReferringPhysicianName", "SeriesDate", "SeriesTime", "AcquisitionDate", "AcquisitionTime"),
    *("ContentDate", "ContentTime", "AcquisitionDateTime", "AdmittingDiagnosesDescription", "ReferencedStudySequence"),
    *("LongitudinalTemporalInformationModified", "InstanceCreationDate", "InstanceCreationTime", "ProcedureCodeSequence"),
)


class NoWayBack(ValueError):
    """The way back does not know a patient, study, series or image; the text names nobody."""


def under_original_names(headers: Sequence[Dataset] | Chosen, way_back: WayBack) -> list[Dataset] | Chosen:
    """Copies of headers of the clean store, as of the archive's own images; pixel data and what refers elsewhere left out.

    Raises `NoWayBack` if the way back lacks something, `OSError` if it can't be read.
    """
    if isinstance(headers, Chosen):
        return Chosen(_original(headers.image, way_back), headers.numbers)
    return [_original(header, way_back) for header in headers]


def _original(header: Dataset, way_back: WayBack) -> Dataset:
    study = way_back.study(str(header.StudyInstanceUID), str(header.PatientID))
    person = way_back.person(str(header.PatientID))
    if study is None or person is None:
        raise NoWayBack("the way back does not know this patient or this study")
    series, instance = (way_back.original_uid(str(header[name].value)) for name in ("SeriesInstanceUID", "SOPInstanceUID"))
    frame = way_back.frame_of_reference(str(header.SeriesInstanceUID))
    if series is None or instance is None:
        raise NoWayBack("the way back does not know one of its images")
    result = Dataset()
    for element in header:
        if element.tag.group not in REPLACED_GROUPS and element.keyword not in DROPPED and not element.tag.is_private:
            result.add(copy.deepcopy(element))
    result.file_meta = copy.deepcopy(header.file_meta)
    result.file_meta.MediaStorageSOPInstanceUID = UID(instance)
    result.SpecificCharacterSet = "ISO_IR 192"
    result.PatientID, result.PatientName = person.patient_id, person.name
    result.PatientBirthDate, result.PatientSex = person.birth_date, person.sex
    if person.issuer:
        result.IssuerOfPatientID = person.issuer
    result.StudyInstanceUID, result.StudyDate, result.StudyTime = study.uid, study.date, study.time
    result.StudyID, result.AccessionNumber = study.study_id, study.accession
    result.ReferringPhysicianName = ""  # type 2, and not known here
    result.SeriesInstanceUID, result.SOPInstanceUID = series, instance
    if frame:
        result.FrameOfReferenceUID = frame
    return result
