"""De-identification: what of a DICOM header may pass the hospital's door, and in what form.

A positive list: an element that isn't named here does not pass, at any depth of nesting, private or not. Identifiers become
keyed pseudonyms (HMAC-SHA256, RFC 2104), dates move by a number of days that is the patient's own, free text passes only where
it is a word of the study's own settings. The mapping is a function of the hospital's key: no table links pseudonyms to
people, and another hospital's key gives other pseudonyms. After DICOM PS3.15 Annex E in spirit; no conformance is claimed.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Literal

import pydicom.config
from pydicom.datadict import keyword_for_tag
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

Action = Literal["keep", "uid", "date", "text", "token", "vendor", "code", "walk"]

KEEP: dict[str, Action] = {
    # what and which
    "SOPClassUID": "uid",
    "SOPInstanceUID": "uid",
    "StudyInstanceUID": "uid",
    "SeriesInstanceUID": "uid",
    "FrameOfReferenceUID": "uid",
    "StudyDate": "date",
    "AcquisitionDate": "date",
    "Modality": "token",
    "ImageType": "token",
    "BurnedInAnnotation": "token",
    "SeriesDescription": "text",
    "InstanceNumber": "keep",
    # scanner and sequence
    "Manufacturer": "vendor",
    "MagneticFieldStrength": "keep",
    "SliceThickness": "keep",
    "SpacingBetweenSlices": "keep",
    "InversionTime": "keep",
    "TriggerTime": "keep",
    "GantryDetectorTilt": "keep",
    # geometry and pixels
    "ImagePositionPatient": "keep",
    "ImageOrientationPatient": "keep",
    "PixelSpacing": "keep",
    "SamplesPerPixel": "keep",
    "PhotometricInterpretation": "token",
    "NumberOfFrames": "keep",
    "Rows": "keep",
    "Columns": "keep",
    "BitsAllocated": "keep",
    "BitsStored": "keep",
    "HighBit": "keep",
    "PixelRepresentation": "keep",
    "RescaleSlope": "keep",
    "RescaleIntercept": "keep",
    "LossyImageCompression": "token",
    # segmentations
    "SegmentationType": "token",
    "SegmentationFractionalType": "token",
    "MaximumFractionalValue": "keep",
    "SegmentsOverlap": "token",
    "PixelPaddingValue": "keep",
    "SegmentSequence": "walk",
    "SegmentNumber": "keep",
    "SegmentLabel": "text",
    "SegmentAlgorithmType": "token",
    "SegmentedPropertyCategoryCodeSequence": "walk",
    "SegmentedPropertyTypeCodeSequence": "walk",
    "CodeValue": "code",
    "CodingSchemeDesignator": "code",
    "CodeMeaning": "text",
    "ReferencedSeriesSequence": "walk",
    "ReferencedInstanceSequence": "walk",
    "ReferencedSOPClassUID": "uid",
    "ReferencedSOPInstanceUID": "uid",
    "DimensionOrganizationType": "token",
    "DimensionOrganizationSequence": "walk",
    "DimensionOrganizationUID": "uid",
    "DimensionIndexSequence": "walk",
    "DimensionIndexPointer": "keep",
    "FunctionalGroupPointer": "keep",
    "SharedFunctionalGroupsSequence": "walk",
    "PerFrameFunctionalGroupsSequence": "walk",
    "FrameContentSequence": "walk",
    "DimensionIndexValues": "keep",
    "PlanePositionSequence": "walk",
    "PlaneOrientationSequence": "walk",
    "PixelMeasuresSequence": "walk",
    "SegmentIdentificationSequence": "walk",
    "ReferencedSegmentNumber": "keep",
    "DerivationImageSequence": "walk",
    "SourceImageSequence": "walk",
    "PixelData": "keep",  # decoded straight from the file for images; a segmentation's own pixels are the mask
}
NUMBERS = ("DS", "IS", "US", "SS", "UL", "SL", "FD", "FL", "AT", "OB", "OW", "OB or OW", "US or SS")
"""Value representations that "keep" may keep: none of them holds text."""

TOKENS = frozenset(
    {
        *("MR", "CT", "PT", "SEG", "SR", "RTSTRUCT"),
        *("ORIGINAL", "DERIVED", "PRIMARY", "SECONDARY", "LOCALIZER", "AXIAL", "OTHER"),
        *("MONOCHROME1", "MONOCHROME2", "RGB", "PALETTE COLOR", "YES", "NO", "00", "01"),
        *("BINARY", "FRACTIONAL", "LABELMAP", "PROBABILITY", "OCCUPANCY", "UNDEFINED", "3D", "3D_TEMPORAL"),
        *("MANUAL", "SEMIAUTOMATIC", "AUTOMATIC"),
    }
)
"""Words of code-string elements that pass. A word outside becomes OTHER."""

VENDORS = ("Siemens", "GE", "Philips", "Canon", "Toshiba", "Hitachi", "Fujifilm", "United Imaging", "Bruker", "konsil")
"""Manufacturers by name; any other becomes 'other', since the element is free text."""


class Unattributable(ValueError):
    """The file doesn't say which patient it belongs to."""


class Deidentifier:
    """One hospital's keyed de-identification. The same key gives the same pseudonyms and shifts, for ever.

    `key` is at least 16 random bytes that the hospital keeps outside the cohort; `words` are the free texts and codes,
    in lower case, that may pass (words of series rules, names and codes of the label map).
    """

    def __init__(self, key: bytes, *, words: frozenset[str] = frozenset()) -> None:
        if len(key) < 16:
            raise ValueError(f"the pseudonym key has {len(key)} bytes; at least 16 random ones keep it from being guessed")
        self._key = key
        self._words = words

    def pseudonym(self, patient_id: str) -> str:
        """`P` and 16 hexadecimal digits. White space around the identifier doesn't count, as in DICOM."""
        return "P" + self._digest("patient", patient_id.strip())[:8].hex().upper()

    def handle(self, what: str) -> str:
        """A name for something that may itself name a person, such as a path: `F` and 16 hexadecimal digits."""
        return "F" + self._digest("file", what)[:8].hex().upper()

    def uid(self, uid: str) -> str:
        """UIDs of the standard stay; all others become 2.25.<128 keyed bits> (PS3.5 B.2)."""
        if uid.startswith("1.2.840.10008."):
            return uid
        return f"2.25.{int.from_bytes(self._digest('uid', uid)[:16], 'big')}"

    def shift_days(self, patient_id: str) -> int:
        """Days, between -1825 and -1, by which all dates of this patient move: intervals stay what they were."""
        return -1 - int.from_bytes(self._digest("date", patient_id.strip())[:4], "big") % 1825

    def date(self, date: str, patient_id: str) -> str:
        """A date `YYYYMMDD` moved by the patient's shift; empty if it is no date."""
        try:
            return (datetime.strptime(date[:8], "%Y%m%d") + timedelta(days=self.shift_days(patient_id))).strftime("%Y%m%d")
        except (ValueError, OverflowError):
            return ""

    def __call__(self, dataset: Dataset) -> Dataset:
        """A new dataset with the elements of the positive list only; PatientID is the pseudonym.

        Raises `Unattributable` if the file names no patient, `ValueError` if an element can't be read.
        """
        patient_id = str(dataset.get("PatientID", "") or "").strip()
        if not patient_id:
            raise Unattributable("no PatientID: this file can't be attributed to a patient")
        result = self._walk(dataset, patient_id)
        result.PatientID = self.pseudonym(patient_id)
        result.PatientIdentityRemoved = "YES"
        if hasattr(dataset, "file_meta") and "TransferSyntaxUID" in dataset.file_meta:
            result.file_meta = pydicom.dataset.FileMetaDataset()
            result.file_meta.TransferSyntaxUID = dataset.file_meta.TransferSyntaxUID
        return result

    def _walk(self, dataset: Dataset, patient_id: str) -> Dataset:
        result = Dataset()
        for tag in dataset.keys():  # noqa: SIM118 - iterating over a Dataset would convert every element
            action = KEEP.get(keyword_for_tag(tag))
            if action is None:
                continue
            element = dataset[tag]
            if action == "walk":
                if element.VR == "SQ":
                    items = [self._walk(item, patient_id) for item in element.value]
                    result.add(DataElement(tag, "SQ", items))
            elif action == "keep":
                if element.VR in NUMBERS:
                    result.add(element)
            elif element.value not in (None, ""):
                values = element.value if isinstance(element.value, (MultiValue, list)) else [element.value]
                new = [self._text(str(value), action, patient_id) for value in values]
                result.add(DataElement(tag, element.VR, new if len(new) > 1 else new[0]))
        return result

    def _text(self, value: str, action: Action, patient_id: str) -> str:
        if action == "uid":
            return self.uid(value)
        if action == "date":
            return self.date(value, patient_id)
        if action == "token":
            return value if value in TOKENS else "OTHER"
        if action == "vendor":
            return vendor(value)
        if action == "code":
            return value if value.lower() in self._words else "OTHER"
        text = value.strip().lower()
        if text in self._words:
            return text
        return " ".join(word for word in re.split(r"[^0-9a-z]+", text) if word in self._words)

    def _digest(self, kind: str, value: str) -> bytes:
        return hmac.new(self._key, f"{kind}\0{value}".encode(), hashlib.sha256).digest()


def vendor(manufacturer: str) -> str:
    """The known manufacturer that the text names as a word, else 'other'."""
    for name in VENDORS:
        if re.search(rf"(?<![a-z]){name}(?![a-z])", manufacturer, re.IGNORECASE):
            return name
    return "other"


@contextmanager
def discreet() -> Iterator[None]:
    """Keep pydicom and highdicom from repeating header values on the screen or in a log while the original is open."""
    settings, loggers = pydicom.config.settings, [logging.getLogger(name) for name in ("pydicom", "highdicom")]
    mode, levels = settings.reading_validation_mode, [logger.level for logger in loggers]
    settings.reading_validation_mode = pydicom.config.IGNORE
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        settings.reading_validation_mode = mode
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
