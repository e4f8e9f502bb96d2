"""What goes back to the archive about one examination, for research use only: a DICOM SEG per series and one encapsulated PDF,
and where a person asks for it a heat map per series.

Each is a series of its own in the original study. UIDs follow from the model, the images and, except for masks, the
calibration, so that a repeat is known for what it is; other images, another model or another calibration give other objects.
Source: PS3.3 A.51 (Segmentation), A.45.1 (Encapsulated PDF), C.12.1 (content qualification, contributing equipment), 10.16
(algorithm identification).
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, EncapsulatedPDFStorage, ExplicitVRLittleEndian, generate_uid

from fl_client.intake.deidentify import discreet
from fl_client.intake.heat_map import STORAGE, make_heat_map
from fl_client.intake.labels import LabelMap
from fl_client.intake.multiframe import Chosen
from fl_client.intake.write_back import COPIED, NOTE, filled, make_seg

Originals = Sequence[Dataset] | Chosen
SERIES_NUMBER = 9000  # of the report: behind all that a scanner numbers


@dataclass(frozen=True)
class Author:
    """The model that drew: its study's name and hash, and the fingerprint of its weights."""

    study_name: str
    study_hash: str
    fingerprint: str

    @property
    def words(self) -> str:
        """For people, in one line."""
        return f"study {self.study_name} {self.study_hash}, model {self.fingerprint}".replace("  ", " ")


@dataclass(frozen=True)
class Names:
    """UIDs of one object and of its series."""

    series: str
    instance: str

    @classmethod
    def of(cls, kind: str, author: Author, *sources: str) -> Names:
        """The same for the same model and the same sources, whatever their order."""
        entropy = ["konsil returns", kind, author.fingerprint, *sorted(sources)]
        series, instance = (generate_uid(entropy_srcs=[what, *entropy]) for what in ("series", "instance"))
        return cls(str(series), str(instance))


def research_seg(
    mask: npt.NDArray[np.uint8], originals: Originals, labels: LabelMap, *, series: str, author: Author, names: Names
) -> bytes:
    """The mask as a DICOM SEG file that refers to the originals. Raises what `make_seg` raises."""
    with discreet():
        seg = make_seg(mask, originals, labels, algorithm=f"konsil {author.study_name}"[:64])
        seg.SeriesInstanceUID = names.series
        seg.SOPInstanceUID = seg.file_meta.MediaStorageSOPInstanceUID = names.instance
        seg.SeriesDescription = _described(author, series)
        for segment in seg.SegmentSequence:
            (algorithm,) = segment.SegmentationAlgorithmIdentificationSequence
            algorithm.AlgorithmVersion = author.fingerprint  # 64 characters, as many as fit
            algorithm.AlgorithmSource = f"konsil {version('konsil')}"
            algorithm.AlgorithmParameters = author.words
        _mark(seg, author)
        return _as_bytes(seg)


def research_heat_map(
    entropy: npt.NDArray[np.float32], originals: Originals, *, series: str, author: Author, names: Names
) -> bytes:
    """Where the model is unsure as a DICOM Parametric Map that refers to the originals. Raises what `make_heat_map` raises."""
    with discreet():
        made = make_heat_map(entropy, originals, algorithm=f"konsil {author.study_name}")
        made.SeriesInstanceUID = names.series
        made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = names.instance
        made.SeriesDescription = _described(author, f"unsure {series}")
        _mark(made, author)
        return _as_bytes(made)


def research_pdf(
    page: bytes,
    originals: Sequence[Originals],
    segs: Sequence[Names],
    *,
    author: Author,
    names: Names,
    heat_maps: Sequence[Names] = (),
) -> bytes:
    """The page as an encapsulated PDF file that names the images, masks and heat maps it was made of."""
    with discreet():
        images = [image for some in originals for image in ([some.image] if isinstance(some, Chosen) else some)]
        first, now = filled(images[0]), datetime.now()
        document = Dataset()
        document.file_meta = FileMetaDataset()
        document.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        document.SOPClassUID = document.file_meta.MediaStorageSOPClassUID = EncapsulatedPDFStorage
        document.SOPInstanceUID = document.file_meta.MediaStorageSOPInstanceUID = UID(names.instance)
        document.SpecificCharacterSet = first.SpecificCharacterSet
        for name in ("PatientID", "IssuerOfPatientID", "StudyInstanceUID", *COPIED):
            if name in first:
                setattr(document, name, first[name].value)
        document.Modality, document.SeriesInstanceUID, document.SeriesNumber = "DOC", names.series, SERIES_NUMBER
        document.SeriesDescription = _described(author, "report")
        document.Manufacturer = document.ManufacturerModelName = "konsil"
        document.SoftwareVersions, document.DeviceSerialNumber = version("konsil"), "none"
        document.ConversionType, document.InstanceNumber, document.AcquisitionDateTime = "WSD", 1, ""
        document.ContentDate, document.ContentTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
        document.BurnedInAnnotation = "YES"  # the patient's number stands on the page
        document.ConceptNameCodeSequence = []
        document.DocumentTitle = "RESEARCH USE ONLY, not for diagnosis: outlines by a model"
        document.MIMETypeOfEncapsulatedDocument = "application/pdf"
        document.EncapsulatedDocumentLength = len(page)
        document.EncapsulatedDocument = page + b"\0" * (len(page) % 2)
        made_of = {str(image.SOPInstanceUID): str(image.SOPClassUID) for image in images}
        made_of |= {seg.instance: "1.2.840.10008.5.1.4.1.1.66.4" for seg in segs}
        made_of |= {one.instance: STORAGE for one in heat_maps}
        document.SourceInstanceSequence = [_reference(*pair) for pair in made_of.items()]
        _mark(document, author)
        return _as_bytes(document)


def _described(author: Author, what: str) -> str:
    """What viewers list, in 64 characters."""
    begin = "RESEARCH USE ONLY konsil "
    return f"{begin}{author.study_name[: max(1, 63 - len(begin) - len(what))]} {what}"[:64]


def _mark(dataset: Dataset, author: Author) -> None:
    """For research, and by whom."""
    dataset.ContentQualification = "RESEARCH"
    purpose = Dataset()
    purpose.CodeValue, purpose.CodingSchemeDesignator, purpose.CodeMeaning = "109102", "DCM", "Processing Equipment"
    equipment = Dataset()
    equipment.PurposeOfReferenceCodeSequence = [purpose]
    equipment.Manufacturer = equipment.ManufacturerModelName = "konsil"
    equipment.SoftwareVersions = version("konsil")
    equipment.ContributionDateTime = datetime.now().strftime("%Y%m%d%H%M%S")
    equipment.ContributionDescription = f"{NOTE}: {author.words}"
    dataset.ContributingEquipmentSequence = [*(dataset.get("ContributingEquipmentSequence") or []), equipment]


def _reference(instance: str, sop_class: str) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, instance
    return item


def _as_bytes(dataset: Dataset) -> bytes:
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()
