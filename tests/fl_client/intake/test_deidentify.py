from __future__ import annotations

import hashlib

import pydicom
import pytest
from pydicom.dataset import Dataset

from fl_client.intake.deidentify import Deidentifier, Unattributable, vendor

KEY = b"sixteen bytes...and some more"


MR, SEG = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.66.4"


def header(**elements: object) -> Dataset:
    dataset = Dataset()
    dataset.PatientID, dataset.SOPClassUID = "MRN-1", MR
    for name, value in elements.items():
        setattr(dataset, name, value)
    return dataset


def test_a_pseudonym_is_the_hmac_of_rfc_2104() -> None:
    block = KEY.ljust(64, b"\0")
    inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in block) + b"patient\0MRN-1").digest()
    expected = hashlib.sha256(bytes(byte ^ 0x5C for byte in block) + inner).hexdigest()[:16].upper()
    assert Deidentifier(KEY).pseudonym("MRN-1") == f"P{expected}"
    assert Deidentifier(KEY).pseudonym(" MRN-1 ") == f"P{expected}"


def test_another_hospitals_key_gives_other_pseudonyms_uids_and_shifts() -> None:
    ours, theirs = Deidentifier(KEY), Deidentifier(KEY[::-1])
    patients = [f"MRN-{number}" for number in range(200)]
    assert len({ours.pseudonym(patient) for patient in patients} | {theirs.pseudonym(patient) for patient in patients}) == 400
    assert ours.uid("1.2.3") != theirs.uid("1.2.3")
    assert [ours.shift_days(p) for p in patients] != [theirs.shift_days(p) for p in patients]


def test_dates_keep_their_intervals_and_never_their_day() -> None:
    deidentify = Deidentifier(KEY)
    first = deidentify(header(StudyDate="20240115", Modality="MR"))
    second = deidentify(header(StudyDate="20240416", AcquisitionDate="20240416", Modality="CT"))
    days = pydicom.valuerep.DA(second.StudyDate) - pydicom.valuerep.DA(first.StudyDate)
    assert days.days == 92  # 15 January to 16 April 2024, a leap year
    assert second.AcquisitionDate == second.StudyDate
    assert all(-1825 <= deidentify.shift_days(str(number)) <= -1 for number in range(500))


def test_a_broken_date_becomes_empty() -> None:
    assert Deidentifier(KEY).date("20120000", "MRN-1") == ""


def test_only_the_positive_list_passes_at_every_depth() -> None:
    inner = Dataset()
    inner.SegmentNumber, inner.SegmentDescription, inner.SegmentLabel = 1, "Abendroth's heart", "blood_pool of Abendroth"
    inner.TrackingID = "Abendroth 1"  # passes as a keyed label
    creator = Dataset()
    creator.PersonName = "Abendroth^A"
    inner.OperatorIdentificationSequence = [creator]
    dataset = header(
        SOPClassUID=SEG, PatientName="Abendroth^A", PatientBirthDate="19500101", Modality="MR", Rows=4,
        InstitutionName="Abendroth Clinic", StudyTime="101010", SegmentSequence=[inner], StationName="ABENDROTH",
        PatientComments="Abendroth", Manufacturer="Abendroth Imaging",
        ImageType=["ORIGINAL", "ABENDROTH"], SeriesDescription="cine_ed of Mr Abendroth",
    )  # fmt: skip
    dataset.private_block(0x0019, "ABENDROTH", create=True).add_new(1, "LO", "Abendroth")
    result = Deidentifier(KEY, words=frozenset({"cine", "ed", "blood_pool"}))(dataset)
    assert "abendroth" not in str(result).lower()
    assert result.SeriesDescription == "cine ed"
    assert list(result.ImageType) == ["ORIGINAL", "OTHER"]
    assert result.Manufacturer == "other"
    kept = {element.keyword for element in result.iterall()}
    assert kept == {
        "SOPClassUID", "Modality", "Rows", "SegmentSequence", "SegmentNumber", "SegmentLabel", "Manufacturer", "ImageType",
        "TrackingID", "SeriesDescription", "StudyTime", "PatientID", "PatientName", "PatientBirthDate",
        "PatientIdentityRemoved", "DeidentificationMethod", "DeidentificationMethodCodeSequence",
        "CodeValue", "CodingSchemeDesignator", "CodeMeaning",
        "LongitudinalTemporalInformationModified",
    }  # fmt: skip


def test_text_in_an_element_that_should_hold_a_number_does_not_pass() -> None:
    dataset = header()
    dataset.add_new("InstanceNumber", "LO", "Abendroth")
    assert "InstanceNumber" not in Deidentifier(KEY)(dataset)


def test_uids_of_the_standard_stay_and_others_change_the_same_way_everywhere() -> None:
    item = Dataset()
    item.ReferencedSOPInstanceUID, item.ReferencedSOPClassUID = "1.2.276.0.1", "1.2.840.10008.5.1.4.1.1.4"
    series = Dataset()
    series.ReferencedInstanceSequence = [item]
    result = Deidentifier(KEY)(header(SOPClassUID=SEG, SOPInstanceUID="1.2.276.0.1", ReferencedSeriesSequence=[series]))
    inner = result.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0]
    assert inner.ReferencedSOPInstanceUID == result.SOPInstanceUID != "1.2.276.0.1"
    assert result.SOPInstanceUID.startswith("2.25.")
    assert pydicom.uid.UID(result.SOPInstanceUID).is_valid
    assert inner.ReferencedSOPClassUID == "1.2.840.10008.5.1.4.1.1.4"


def test_the_original_is_left_as_it_was() -> None:
    dataset = header(StudyDate="20240115")
    before = str(dataset)
    Deidentifier(KEY)(dataset)
    assert str(dataset) == before


def test_a_file_without_patient_and_a_short_key_are_refused() -> None:
    with pytest.raises(Unattributable, match="no PatientID"):
        Deidentifier(KEY)(header(PatientID="  "))
    with pytest.raises(ValueError, match="5 bytes"):
        Deidentifier(b"short")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("SIEMENS", "Siemens"),
        ("GE MEDICAL SYSTEMS", "GE"),
        ("CANON_MEC", "Canon"),
        ("Philips Healthcare", "Philips"),
        ("George", "other"),
    ],
)
def test_manufacturers_are_known_by_name(text: str, name: str) -> None:
    assert vendor(text) == name


def test_a_shipped_word_that_is_the_name_of_somebody_in_the_file_does_not_pass() -> None:
    request = Dataset()
    request.RequestingPhysician = "Kernel^T"
    dataset = header(
        PatientName="Marker^Stack", OperatorsName="Cube^Vista", RequestAttributesSequence=[request],
        SeriesDescription="Marker cube kernel cine sax, Dr. Vista stack", Modality="MR",
    )  # fmt: skip
    assert Deidentifier(KEY, retain=("descriptors",))(dataset).SeriesDescription == "cine sax"
    dataset.PatientName = "Abendroth^A"
    assert Deidentifier(KEY, retain=("descriptors",))(dataset).SeriesDescription == "marker cine sax stack"


def test_the_sites_own_words_pass_whatever_the_patients_name() -> None:
    dataset = header(PatientName="Smith^Ed", SeriesDescription="cine ED", Modality="MR")
    assert Deidentifier(KEY, words=frozenset({"cine", "ed"}))(dataset).SeriesDescription == "cine ed"
