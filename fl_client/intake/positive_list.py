"""What of a DICOM object may pass the hospital's door, by SOP class: attributes that no list names are dropped, at every depth.

A list names attributes; how each passes follows from its kind: a number as it is, a code string as a known term, a UID keyed,
a date shifted, free text as words of a vocabulary. Attributes after DICOM PS3.3 (the modules of each IOD), as far as geometry,
contrast, masks and quality need them. Identifying attributes after PS3.15 Table E.1-1, of which `conf/deidentify/profile.csv`
holds the basic profile.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from pydicom.datadict import dictionary_VM, dictionary_VR, tag_for_keyword

import conf

Kind = Literal[
    "number",  # digits or binary numbers, as many as the standard allows
    "bulk",  # pixel data and look-up tables
    "term",  # a known term of the standard or of a vendor; else OTHER
    "uid",
    "date",
    "time",  # never passes: see Pseudonyms.date
    "sex",  # as age: passes only if the site retains patient characteristics
    "age",
    "words",  # free text: only words of the vocabulary
    "code",  # a code value that its coding scheme can have
    "scheme",  # the name of a coding scheme
    "vendor",
    "device",  # passes only if the site retains device identity
    "kernel",  # name of a reconstruction kernel: letters and few digits
    "label",  # a short label: only its equality matters
    "empty",  # there because the standard wants it, without a value
    "walk",  # a sequence
]

PATIENT = """PatientID PatientName PatientBirthDate PatientSex PatientAge"""
STUDY = """StudyInstanceUID StudyDate StudyTime AccessionNumber ReferringPhysicianName StudyID StudyDescription"""
SERIES = """SeriesInstanceUID SeriesNumber SeriesDate SeriesTime Modality SeriesDescription ProtocolName BodyPartExamined
    PatientPosition Laterality AnatomicalOrientationType SmallestPixelValueInSeries LargestPixelValueInSeries"""
EQUIPMENT = """Manufacturer ManufacturerModelName DeviceSerialNumber StationName SoftwareVersions SpatialResolution
    PixelPaddingValue PixelPaddingRangeLimit"""
INSTANCE = """SOPClassUID SOPInstanceUID InstanceNumber ContentDate ContentTime ImageType FrameOfReferenceUID
    PositionReferenceIndicator"""
CODES = """CodeValue CodingSchemeDesignator CodeMeaning"""
REFERENCES = """ReferencedSOPClassUID ReferencedSOPInstanceUID ReferencedFrameNumber ReferencedSegmentNumber
    PurposeOfReferenceCodeSequence"""

BASE = " ".join((PATIENT, STUDY, SERIES, EQUIPMENT, INSTANCE, CODES, REFERENCES))
"""Every object: whose it is, what it is, and what it refers to."""

PIXELS = """SamplesPerPixel PhotometricInterpretation PlanarConfiguration NumberOfFrames Rows Columns PixelAspectRatio
    BitsAllocated BitsStored HighBit PixelRepresentation SmallestImagePixelValue LargestImagePixelValue PixelData
    ExtendedOffsetTable ExtendedOffsetTableLengths RescaleIntercept RescaleSlope RescaleType WindowCenter WindowWidth
    VOILUTFunction PresentationLUTShape BurnedInAnnotation RecognizableVisualFeatures QualityControlImage ContentQualification
    LossyImageCompression LossyImageCompressionRatio LossyImageCompressionMethod
    ModalityLUTSequence LUTDescriptor LUTData ModalityLUTType
    RealWorldValueMappingSequence LUTLabel LUTExplanation MeasurementUnitsCodeSequence RealWorldValueFirstValueMapped
    RealWorldValueLastValueMapped RealWorldValueIntercept RealWorldValueSlope RealWorldValueLUTData
    DoubleFloatRealWorldValueFirstValueMapped DoubleFloatRealWorldValueLastValueMapped"""

PLANE = """ImagePositionPatient ImageOrientationPatient PixelSpacing SliceThickness SpacingBetweenSlices SliceLocation
    PatientOrientation ImageLaterality AnatomicRegionSequence AnatomicRegionModifierSequence PrimaryAnatomicStructureSequence
    PrimaryAnatomicStructureModifierSequence ViewCodeSequence ViewModifierCodeSequence
    AcquisitionNumber AcquisitionDate AcquisitionTime AcquisitionDateTime AcquisitionDuration ImagesInAcquisition
    AcquisitionUID IrradiationEventUID SynchronizationFrameOfReferenceUID SynchronizationTrigger
    AcquisitionTimeSynchronized SynchronizationChannel
    ReferencedImageSequence SourceImageSequence SpatialLocationsPreserved DerivationCodeSequence
    ContrastBolusAgent ContrastBolusVolume ContrastBolusTotalDose ContrastFlowRate ContrastFlowDuration
    ContrastBolusIngredient ContrastBolusIngredientConcentration"""

HEART = """TriggerTime NominalInterval BeatRejectionFlag LowRRValue HighRRValue IntervalsAcquired IntervalsRejected SkipBeats
    HeartRate CardiacNumberOfImages TriggerWindow NominalCardiacTriggerDelayTime ActualCardiacTriggerDelayTime
    NominalPercentageOfCardiacPhase RRIntervalTimeNominal CardiacSignalSource CardiacSynchronizationTechnique
    CardiacRRIntervalSpecified CardiacBeatRejectionTechnique CardiacCyclePosition RespiratoryCyclePosition
    RespiratoryMotionCompensationTechnique RespiratorySignalSource RespiratoryTriggerType RespiratoryTriggerDelayThreshold
    BulkMotionCompensationTechnique BulkMotionSignalSource TemporalPositionIdentifier NumberOfTemporalPositions
    TemporalResolution TemporalPositionIndex TemporalPositionTimeOffset TemporalPositionSequence"""

MR = """ScanningSequence SequenceVariant ScanOptions MRAcquisitionType SequenceName AngioFlag RepetitionTime EchoTime
    EchoNumbers EchoTrainLength InversionTime NumberOfAverages ImagingFrequency ImagedNucleus MagneticFieldStrength
    NumberOfPhaseEncodingSteps PercentSampling PercentPhaseFieldOfView PixelBandwidth ReconstructionDiameter ReceiveCoilName
    TransmitCoilName AcquisitionMatrix InPlanePhaseEncodingDirection FlipAngle VariableFlipAngleFlag SAR dBdt B1rms
    DiffusionBValue DiffusionGradientOrientation DiffusionDirectionality ComplexImageComponent AcquisitionContrast
    ParallelReductionFactorInPlane ParallelReductionFactorOutOfPlane ParallelAcquisition ParallelAcquisitionTechnique
    PartialFourier PartialFourierDirection SliceProgressionDirection"""

CT = """ScanOptions KVP DataCollectionDiameter ReconstructionDiameter DistanceSourceToDetector DistanceSourceToPatient
    GantryDetectorTilt TableHeight RotationDirection ExposureTime XRayTubeCurrent Exposure ExposureInuAs FilterType
    GeneratorPower FocalSpots ConvolutionKernel FilterMaterial RevolutionTime SingleCollimationWidth TotalCollimationWidth
    TableSpeed TableFeedPerRotation SpiralPitchFactor DataCollectionCenterPatient ReconstructionTargetCenterPatient
    ExposureModulationType CTDIvol CTDIPhantomTypeCodeSequence WaterEquivalentDiameter MultienergyCTAcquisition"""

PET = """SeriesType Units CountsSource CollimatorType CorrectedImage NumberOfSlices NumberOfTimeSlices NumberOfTimeSlots
    NumberOfRRIntervals DecayCorrection DecayFactor ReprojectionMethod SUVType RandomsCorrectionMethod
    AttenuationCorrectionMethod ReconstructionMethod ScatterCorrectionMethod ReconstructionDiameter GantryDetectorTilt
    GantryDetectorSlew FieldOfViewShape FieldOfViewDimensions ConvolutionKernel EnergyWindowRangeSequence
    EnergyWindowLowerLimit EnergyWindowUpperLimit AxialAcceptance CoincidenceWindowWidth
    RadiopharmaceuticalInformationSequence RadionuclideCodeSequence RadiopharmaceuticalCodeSequence RadionuclideTotalDose
    RadionuclideHalfLife RadionuclidePositronFraction FrameTime FrameReferenceTime ActualFrameDuration ImageIndex
    SliceSensitivityFactor DoseCalibrationFactor ScatterFractionFactor DeadTimeFactor
    PatientOrientationCodeSequence PatientOrientationModifierCodeSequence PatientGantryRelationshipCodeSequence"""

FRAMES = """SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence DimensionOrganizationSequence
    DimensionOrganizationUID DimensionOrganizationType DimensionIndexSequence DimensionIndexPointer FunctionalGroupPointer
    FrameContentSequence FrameAcquisitionNumber FrameReferenceDateTime FrameAcquisitionDateTime FrameAcquisitionDuration
    DimensionIndexValues StackID InStackPositionNumber PixelMeasuresSequence PlanePositionSequence PlaneOrientationSequence
    FrameAnatomySequence FrameLaterality PixelValueTransformationSequence FrameVOILUTSequence DerivationImageSequence
    ReferencedImageSequence SourceImageSequence SpatialLocationsPreserved DerivationCodeSequence
    ConversionSourceAttributesSequence UnassignedSharedConvertedAttributesSequence
    UnassignedPerFrameConvertedAttributesSequence ReferencedSeriesSequence ReferencedInstanceSequence
    StudiesContainingOtherReferencedInstancesSequence SourceImageEvidenceSequence ReferencedImageEvidenceSequence
    ReferencedSOPSequence AcquisitionContextSequence ConcatenationUID InConcatenationNumber InConcatenationTotalNumber
    ConcatenationFrameOffsetNumber SOPInstanceUIDOfConcatenationSource RepresentativeFrameNumber StereoPairsPresent
    PixelPresentation VolumetricProperties VolumeBasedCalculationTechnique FrameType"""

ENHANCED_MR = """MRImageFrameTypeSequence MREchoSequence EffectiveEchoTime MRDiffusionSequence
    DiffusionGradientDirectionSequence DiffusionAnisotropyType DiffusionBMatrixSequence DiffusionBValueXX DiffusionBValueXY
    DiffusionBValueXZ DiffusionBValueYY DiffusionBValueYZ DiffusionBValueZZ CardiacSynchronizationSequence
    RespiratorySynchronizationSequence NominalRespiratoryTriggerDelayTime ActualRespiratoryTriggerDelayTime
    NominalPercentageOfRespiratoryPhase StartingRespiratoryAmplitude StartingRespiratoryPhase EndingRespiratoryAmplitude
    EndingRespiratoryPhase RespiratoryIntervalTime MRTimingAndRelatedParametersSequence RFEchoTrainLength
    GradientEchoTrainLength GradientOutputType GradientOutput OperatingModeSequence OperatingModeType OperatingMode
    SpecificAbsorptionRateSequence SpecificAbsorptionRateDefinition SpecificAbsorptionRateValue MRModifierSequence
    InversionRecovery InversionTimes FlowCompensation FlowCompensationDirection Spoiling T2Preparation
    SpectrallySelectedExcitation SpatialPresaturation ParallelReductionFactorSecondInPlane MRImagingModifierSequence
    MagnetizationTransfer BloodSignalNulling Tagging TagAngleFirstAxis TagAngleSecondAxis TagSpacingFirstDimension
    TagSpacingSecondDimension TagThickness TaggingDelay TransmitterFrequency MRFOVGeometrySequence
    MRAcquisitionFrequencyEncodingSteps MRAcquisitionPhaseEncodingStepsInPlane MRAcquisitionPhaseEncodingStepsOutOfPlane
    MRAveragesSequence MRReceiveCoilSequence ReceiveCoilManufacturerName ReceiveCoilType QuadratureReceiveCoil
    MultiCoilDefinitionSequence MultiCoilElementName MultiCoilElementUsed MRTransmitCoilSequence TransmitCoilManufacturerName
    TransmitCoilType MRSpatialSaturationSequence SlabThickness SlabOrientation MidSlabPosition MRVelocityEncodingSequence
    VelocityEncodingDirection VelocityEncodingMinimumValue VelocityEncodingMaximumValue VelocityEncodingAcquisitionSequence
    MRMetaboliteMapSequence ResonantNucleus KSpaceFiltering ApplicableSafetyStandardAgency PulseSequenceName
    EchoPulseSequence MultipleSpinEcho MultiPlanarExcitation PhaseContrast TimeOfFlightContrast SteadyStatePulseSequence
    EchoPlanarPulseSequence SaturationRecovery SpectrallySelectedSuppression OversamplingPhase GeometryOfKSpaceTraversal
    SegmentedKSpaceTraversal RectilinearPhaseEncodeReordering NumberOfKSpaceTrajectories CoverageOfKSpace
    ArterialSpinLabelingContrast FunctionalSettlingPhaseFramesPresent CardiacFramingType"""

ENHANCED_CT = """CTImageFrameTypeSequence CTAcquisitionTypeSequence AcquisitionType TubeAngle ConstantVolumeFlag
    FluoroscopyFlag CTAcquisitionDetailsSequence CTTableDynamicsSequence CTPositionSequence TablePosition CTGeometrySequence
    DistanceSourceToDataCollectionCenter CTReconstructionSequence ReconstructionAlgorithm ConvolutionKernelGroup
    ReconstructionFieldOfView ReconstructionPixelSpacing ReconstructionAngle ImageFilter CTExposureSequence ExposureTimeInms
    XRayTubeCurrentInmA ExposureInmAs CTXRayDetailsSequence CardiacSynchronizationSequence
    IrradiationEventIdentificationSequence CardiacFramingType CalciumScoringMassFactorDevice"""

CONTRAST = """ContrastBolusAgentSequence ContrastBolusAgentNumber ContrastBolusAdministrationRouteSequence
    ContrastBolusIngredientCodeSequence ContrastBolusUsageSequence ContrastBolusAgentAdministered ContrastBolusAgentDetected
    ContrastBolusAgentPhase ContrastBolusIngredientOpaque"""

SEGMENTATION = """SegmentationType SegmentationFractionalType MaximumFractionalValue SegmentsOverlap SegmentSequence
    SegmentNumber SegmentLabel SegmentDescription SegmentAlgorithmType SegmentAlgorithmName TrackingID TrackingUID
    SegmentedPropertyCategoryCodeSequence SegmentedPropertyTypeCodeSequence SegmentedPropertyTypeModifierCodeSequence
    AnatomicRegionSequence AnatomicRegionModifierSequence SegmentIdentificationSequence RecommendedDisplayCIELabValue
    RecommendedDisplayGrayscaleValue ContentLabel ContentDescription ContentCreatorName
    RedPaletteColorLookupTableDescriptor GreenPaletteColorLookupTableDescriptor BluePaletteColorLookupTableDescriptor
    RedPaletteColorLookupTableData GreenPaletteColorLookupTableData BluePaletteColorLookupTableData"""

STRUCTURES = """StructureSetLabel StructureSetDate StructureSetTime ReferencedFrameOfReferenceSequence
    RTReferencedStudySequence RTReferencedSeriesSequence ContourImageSequence StructureSetROISequence ROINumber
    ReferencedFrameOfReferenceUID ROIName ROIVolume ROIGenerationAlgorithm ROIContourSequence ReferencedROINumber
    ROIDisplayColor ContourSequence ContourNumber AttachedContours ContourGeometricType ContourSlabThickness
    ContourOffsetVector NumberOfContourPoints ContourData RTROIObservationsSequence ObservationNumber RTROIInterpretedType
    ROIInterpreter RTROIIdentificationCodeSequence ApprovalStatus OperatorsName"""

LISTS: Mapping[str, tuple[str, ...]] = {
    "1.2.840.10008.5.1.4.1.1.4": (PIXELS, PLANE, HEART, MR),
    "1.2.840.10008.5.1.4.1.1.4.1": (PIXELS, PLANE, HEART, MR, FRAMES, ENHANCED_MR, CONTRAST),
    "1.2.840.10008.5.1.4.1.1.4.4": (PIXELS, PLANE, HEART, MR, FRAMES, "MRImageFrameTypeSequence"),
    "1.2.840.10008.5.1.4.1.1.2": (PIXELS, PLANE, HEART, CT),
    "1.2.840.10008.5.1.4.1.1.2.1": (PIXELS, PLANE, HEART, CT, FRAMES, ENHANCED_CT, CONTRAST),
    "1.2.840.10008.5.1.4.1.1.2.2": (PIXELS, PLANE, HEART, CT, FRAMES, "CTImageFrameTypeSequence"),
    "1.2.840.10008.5.1.4.1.1.128": (PIXELS, PLANE, HEART, PET),
    "1.2.840.10008.5.1.4.1.1.66.4": (PIXELS, PLANE, FRAMES, SEGMENTATION),
    "1.2.840.10008.5.1.4.1.1.66.7": (PIXELS, PLANE, FRAMES, SEGMENTATION),
    "1.2.840.10008.5.1.4.1.1.481.3": (STRUCTURES,),
}
"""SOP classes that may pass: MR and CT (each plain, enhanced, converted to enhanced), PET, SEG and label map SEG, RTSTRUCT."""

KINDS: Mapping[str, Kind] = {
    **dict.fromkeys(("PatientID", "PatientName"), "empty"),  # the pseudonym takes their place
    **dict.fromkeys(("PatientBirthDate", "AccessionNumber", "ReferringPhysicianName", "StudyID"), "empty"),
    **dict.fromkeys(
        ("PositionReferenceIndicator", "ContentDescription", "ContentCreatorName", "ROIInterpreter", "OperatorsName"), "empty"
    ),
    **dict.fromkeys(("ReceiveCoilManufacturerName", "TransmitCoilManufacturerName"), "empty"),
    "AcquisitionContextSequence": "empty",
    "PatientSex": "sex",
    "Manufacturer": "vendor",
    **dict.fromkeys(("ManufacturerModelName", "DeviceSerialNumber", "StationName", "SoftwareVersions"), "device"),
    **dict.fromkeys(("StudyDescription", "SeriesDescription", "ProtocolName", "SequenceName", "PulseSequenceName"), "words"),
    **dict.fromkeys(("ReceiveCoilName", "TransmitCoilName", "MultiCoilElementName", "ContrastBolusAgent"), "words"),
    **dict.fromkeys(("SegmentLabel", "SegmentDescription", "SegmentAlgorithmName", "ROIName", "StructureSetLabel"), "words"),
    **dict.fromkeys(("LUTLabel", "LUTExplanation", "AttenuationCorrectionMethod", "ReconstructionMethod"), "words"),
    **dict.fromkeys(("RandomsCorrectionMethod", "ScatterCorrectionMethod", "CardiacFramingType"), "words"),
    "CodeValue": "code",
    "CodingSchemeDesignator": "scheme",
    "CodeMeaning": "words",
    **dict.fromkeys(("StackID", "TrackingID"), "label"),
    **dict.fromkeys(("ConvolutionKernel", "ImageFilter"), "kernel"),
    **dict.fromkeys(("ImagedNucleus", "RescaleType", "ModalityLUTType", "FilterType"), "term"),
    **dict.fromkeys(("PixelData", "LUTData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths"), "bulk"),
    **{f"{colour}PaletteColorLookupTableData": "bulk" for colour in ("Red", "Green", "Blue")},
}
"""Kinds that the value representation doesn't tell."""

KIND_OF: Mapping[str, Kind] = {
    **dict.fromkeys(("DS", "IS", "US", "SS", "UL", "SL", "FD", "FL", "AT", "UV", "SV", "US or SS"), "number"),
    **{"CS": "term", "UI": "uid", "DA": "date", "DT": "date", "TM": "time", "AS": "age", "SQ": "walk"},
}

CHANGED = frozenset({"uid", "date", "time", "sex", "age", "words", "device", "label", "empty", "walk"})
"""Kinds that change a value, or let it pass only by an option that the site chose."""

NEVER_EMPTY: Mapping[str, str] = {
    "StructureSetLabel": "REMOVED", "ContentLabel": "REMOVED", "SegmentLabel": "REMOVED", "CodeMeaning": "REMOVED",
    "CodeValue": "0", "CodingSchemeDesignator": "99REMOVED", "SegmentAlgorithmName": "REMOVED", "LUTLabel": "REMOVED",
    "LUTExplanation": "REMOVED", "MultiCoilElementName": "REMOVED", "PulseSequenceName": "REMOVED", "FilterType": "OTHER",
    "ConvolutionKernel": "OTHER", "ImageFilter": "OTHER", "CardiacFramingType": "REMOVED",
    "FrameAcquisitionDateTime": "19000101", "FrameReferenceDateTime": "19000101",
}  # fmt: skip
"""Attributes of type 1 in whatever sequence or class they stand: what takes the place of a value that can't pass."""

NEVER_EMPTY_IN: Mapping[str, Mapping[str, str]] = {
    module: {
        **{"ManufacturerModelName": "REMOVED", "DeviceSerialNumber": "REMOVED", "SoftwareVersions": "REMOVED"},
        **{"ContentDate": "19000101", "ContentTime": "000000", "AcquisitionDateTime": "19000101"},
        **{"ReceiveCoilName": "REMOVED", "TransmitCoilName": "REMOVED"},
    }
    for module in ("1.2.840.10008.5.1.4.1.1.4.1", "1.2.840.10008.5.1.4.1.1.4.4", "1.2.840.10008.5.1.4.1.1.2.1",
                   "1.2.840.10008.5.1.4.1.1.2.2", "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
} | {"1.2.840.10008.5.1.4.1.1.128": {"SeriesDate": "19000101", "SeriesTime": "000000"}}  # fmt: skip
"""Attributes that are of type 1 in some classes and may be absent in others."""

MAY_BE_EMPTY = """PatientSex StudyDate StudyTime Manufacturer StructureSetDate StructureSetTime ROIName AcquisitionTime
    AcquisitionDate ContrastBolusAgent"""
"""Attributes of type 2: without a value, and present, if they were."""

SAFE_PRIVATE: Mapping[tuple[str, int, int], tuple[str, int]] = {
    ("SIEMENS MR HEADER", 0x0019, 0x0A): ("US", 1),  # images in a mosaic
    ("SIEMENS MR HEADER", 0x0019, 0x0C): ("IS", 1),  # b-value
    ("SIEMENS MR HEADER", 0x0019, 0x0E): ("FD", 3),  # diffusion gradient direction
    ("SIEMENS MR HEADER", 0x0019, 0x27): ("FD", 6),  # b-matrix
    ("GEMS_PARM_01", 0x0043, 0x39): ("IS", 4),  # b-value first
    ("GEMS_PARM_01", 0x0043, 0x2F): ("SS", 1),  # magnitude, phase, real, imaginary
    ("GEMS_ACQU_01", 0x0019, 0xBB): ("DS", 1),  # diffusion gradient direction
    ("GEMS_ACQU_01", 0x0019, 0xBC): ("DS", 1),
    ("GEMS_ACQU_01", 0x0019, 0xBD): ("DS", 1),
    ("Philips Imaging DD 001", 0x2001, 0x03): ("FL", 1),  # b-value
    ("Philips Imaging DD 001", 0x2001, 0x08): ("IS", 1),  # number of the cardiac phase
    ("Philips MR Imaging DD 001", 0x2005, 0xB0): ("FL", 1),  # diffusion gradient direction
    ("Philips MR Imaging DD 001", 0x2005, 0xB1): ("FL", 1),
    ("Philips MR Imaging DD 001", 0x2005, 0xB2): ("FL", 1),
    ("Philips MR Imaging DD 001", 0x2005, 0x0D): ("FL", 1),  # scale intercept
    ("Philips MR Imaging DD 001", 0x2005, 0x0E): ("FL", 1),  # scale slope
    ("Image Private Header", 0x0065, 0x09): ("FD", 1),  # United Imaging: b-value
    ("Image Private Header", 0x0065, 0x37): ("FD", 3),  # and its direction
}
"""Private elements that pass, by creator, group and element: (value representation, at most so many values). Numbers only."""


@dataclass(frozen=True)
class Rule:
    """How one attribute passes."""

    keyword: str
    kind: Kind
    vr: str
    most: int  # values; 0: any number
    instead: str | None  # of a value that can't pass; None: nothing


@cache
def rules(sop_class: str) -> Mapping[int, Rule]:
    """Tag: rule, of the SOP class's positive list. A class without a list gets whose and what it is, and no more."""
    own = NEVER_EMPTY_IN.get(sop_class, {})
    result = {}
    for keyword in " ".join((BASE, *LISTS.get(sop_class, ()))).split():
        tag = tag_for_keyword(keyword)
        if tag is None:
            raise ValueError(f"'{keyword}' of the positive list is no DICOM keyword")
        vr, many = dictionary_VR(tag), dictionary_VM(tag).rpartition("-")[2]
        kind = KINDS.get(keyword) or KIND_OF[vr]
        if tag in profile() and kind not in CHANGED:
            raise ValueError(f"{keyword} stands in PS3.15 Table E.1-1: as '{kind}' it would pass unchanged")
        instead = NEVER_EMPTY.get(keyword, own.get(keyword))
        if instead is None and (kind == "empty" or keyword in MAY_BE_EMPTY.split()):
            instead = ""
        result[tag] = Rule(keyword, kind, vr, int(many) if many.isdigit() else 0, instead)
    return result


@cache
def profile() -> Mapping[int, str]:
    """Tag: action of the basic profile of PS3.15 Table E.1-1, 2026c (X remove, Z empty, D dummy, U new UID, or a choice)."""
    with open(Path(conf.__file__).parent / "deidentify" / "profile.csv", newline="", encoding="ascii") as file:
        return {int(row["tag"], 16): row["action"] for row in csv.DictReader(file)}
