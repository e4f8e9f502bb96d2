from __future__ import annotations

import pytest
from pydicom.datadict import tag_for_keyword

from fl_client.intake.deidentify import capped_age, vocabulary
from fl_client.intake.positive_list import CHANGED, LISTS, profile, rules
from fl_client.intake.terms import KERNEL, TERMS, is_code

MR, ENHANCED_MR, CT, ENHANCED_CT, SEG, RTSTRUCT = (
    f"1.2.840.10008.5.1.4.1.1.{tail}" for tail in ("4", "4.1", "2", "2.1", "66.4", "481.3")
)
GEOMETRY = """Rows Columns PixelSpacing ImagePositionPatient ImageOrientationPatient SliceThickness
    SpacingBetweenSlices InstanceNumber"""
NEEDED = {
    MR: f"""{GEOMETRY} EchoTime EchoNumbers RepetitionTime FlipAngle InversionTime TriggerTime NominalCardiacTriggerDelayTime
        CardiacNumberOfImages TemporalPositionIdentifier TemporalPositionIndex AcquisitionNumber DiffusionBValue
        DiffusionGradientOrientation ImageType ComplexImageComponent RescaleSlope RescaleIntercept WindowCenter
        PixelPaddingValue ParallelReductionFactorInPlane MagneticFieldStrength""",
    CT: f"{GEOMETRY} KVP ConvolutionKernel GantryDetectorTilt TriggerTime RescaleSlope RescaleIntercept PixelPaddingValue",
    ENHANCED_MR: """SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence PixelMeasuresSequence PlanePositionSequence
        PlaneOrientationSequence FrameContentSequence StackID InStackPositionNumber TemporalPositionIndex DimensionIndexValues
        FrameAcquisitionNumber MRImageFrameTypeSequence MREchoSequence EffectiveEchoTime MRDiffusionSequence
        CardiacSynchronizationSequence MRTimingAndRelatedParametersSequence PixelValueTransformationSequence
        FrameVOILUTSequence""",
    ENHANCED_CT: "CTImageFrameTypeSequence CTReconstructionSequence CTAcquisitionDetailsSequence ConvolutionKernel",
    SEG: """SegmentSequence SegmentNumber SegmentLabel SegmentedPropertyTypeCodeSequence CodeValue SegmentIdentificationSequence
        ReferencedSegmentNumber DerivationImageSequence SourceImageSequence ReferencedSOPInstanceUID PixelData""",
    RTSTRUCT: """StructureSetROISequence ROIName ROINumber ROIContourSequence ContourSequence ContourData ContourImageSequence
        ContourGeometricType NumberOfContourPoints ReferencedFrameOfReferenceSequence RTROIObservationsSequence""",
}


@pytest.mark.parametrize("sop_class", NEEDED)
def test_what_volumes_masks_and_quality_need_is_retained(sop_class: str) -> None:
    listed = {rule.keyword for rule in rules(sop_class).values()}
    assert set(NEEDED[sop_class].split()) <= listed


def test_the_profile_is_table_e_1_1() -> None:
    assert len(profile()) > 600
    for keyword, action in {
        "PatientName": "Z", "PatientBirthDate": "Z", "StudyInstanceUID": "U", "FrameOfReferenceUID": "U",
        "InstitutionName": "X/Z/D", "OperatorsName": "X/Z/D", "AccessionNumber": "Z", "PatientAge": "X", "PatientSex": "Z",
        "ReferringPhysicianName": "Z", "OtherPatientIDs": "X", "SeriesDescription": "X",
    }.items():  # fmt: skip
        assert profile()[tag_for_keyword(keyword)] == action, keyword  # type: ignore[index]


@pytest.mark.parametrize("sop_class", [*LISTS, "1.2.3"])
def test_nothing_that_the_profile_names_passes_unchanged(sop_class: str) -> None:
    named = {rule.keyword: rule.kind for tag, rule in rules(sop_class).items() if tag in profile()}
    assert named
    assert {kind for kind in named.values() if kind not in CHANGED} == set()


def test_free_text_is_never_taken_for_something_else() -> None:
    free = {"LO", "SH", "ST", "LT", "UT", "UC", "PN"}
    passing = ("words", "code", "scheme", "vendor", "device", "kernel", "label", "empty", "term")
    for sop_class in LISTS:
        for rule in rules(sop_class).values():
            if rule.vr in free:
                assert rule.kind in passing, rule.keyword


def test_a_class_without_a_list_gets_whose_and_what_it_is_and_no_more() -> None:
    assert "SeriesDescription" in {rule.keyword for rule in rules("1.2.3").values()}
    assert {"Rows", "PixelData", "SegmentSequence"}.isdisjoint(rule.keyword for rule in rules("1.2.3").values())


COMMON_NAMES = """
    smith jones williams brown taylor wilson johnson white martin anderson clark lewis young hall king green baker
    müller schmidt schneider fischer weber meyer wagner becker schulz hoffmann koch richter klein wolf neumann schwarz
    braun lange     garcia lopez perez sanchez rossi ferrari russo bianchi dubois bernard petit durand leroy simon laurent
    anna maria peter paul john james mary robert michael thomas susan linda david emma noah rose grace may mark frank ray art
    black chambers bright wall hand foot herz leber hals ed blood base real rest head kopf brain colon sharp post norm per deep
    bone pool milz mass lung body
    lee kim park chen wang li zhang nguyen singh khan ali ahmed long short bull bell church fox cook"""
"""Names of people; some are words, too."""


def test_no_common_name_is_a_word_that_passes() -> None:
    assert {name for name in COMMON_NAMES.split() if name in vocabulary()} == set()
    terms = "hand foot head brain colon bone lung body rest real ed norm per"  # of bodies and of images
    assert {name for name in COMMON_NAMES.split() if name.upper() in TERMS} <= set(terms.split())


def test_vocabulary_words_are_words_as_descriptions_are_split() -> None:
    assert all(word == word.lower() and word.isalnum() for word in vocabulary())
    assert all(len(term) <= 16 for term in TERMS)  # a code string has no more


@pytest.mark.parametrize(
    ("age", "passes"),
    [
        ("045Y", "045Y"),
        ("089Y", "089Y"),
        ("090Y", "090Y"),
        ("101Y", "090Y"),
        ("006M", "006M"),
        ("999M", "999M"),
        ("45", ""),
        ("ABEY", ""),
    ],
)
def test_ages_over_89_are_one(age: str, passes: str) -> None:
    assert capped_age(age) == passes  # 999 months are 83 years


@pytest.mark.parametrize(
    ("value", "scheme", "known"),
    [
        ("80891009", "SCT", True),  # heart structure
        ("85756007", "SCT", True),  # body tissue structure
        ("80891008", "SCT", False),  # a wrong check digit
        ("19571103", "SCT", False),
        ("T-32000", "SRT", True),
        ("121311", "DCM", True),
        ("mm2/s", "UCUM", True),
        ("Abendro", "UCUM", False),
        ("ABENDROTH", "DCM", False),
        ("80891009", "99CLINIC", False),
    ],
)
def test_codes_pass_by_the_rules_of_their_scheme(value: str, scheme: str, known: bool) -> None:
    assert is_code(value, scheme) is known


@pytest.mark.parametrize(
    ("kernel", "known"),
    [("B30f", True), ("Br40d", True), ("STANDARD", True), ("FC08", True), ("ABENDROTH", False), ("P4711", False)],
)
def test_kernels_pass_by_their_form(kernel: str, known: bool) -> None:
    assert (KERNEL.fullmatch(kernel) is not None) is known
