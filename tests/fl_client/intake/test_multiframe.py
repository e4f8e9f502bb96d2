from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from enhanced import ENHANCED_CT, enhanced, item
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import RLELossless, generate_uid

from fl_client.cohort import Cohort
from fl_client.intake.clean import deidentify_file
from fl_client.intake.deidentify import Deidentifier
from fl_client.intake.door import Intake
from fl_client.intake.headers import read_header, references, unsuitable
from fl_client.intake.labels import LabelMap
from fl_client.intake.multiframe import Chosen, Unframed, frames_of
from fl_client.intake.series import SeriesRule, SeriesRules
from fl_client.intake.visitors import visitors
from fl_client.intake.volume import Frame, GeometryRefused, to_volume
from fl_client.intake.write_back import write_seg
from simulation.dicom import write_patient
from tasks.case import Case

LetIn = Callable[..., tuple[Intake, Cohort]]
KEY = b"a hospital's key"


def slices_of(archive: Path, series: str) -> list[Dataset]:
    return [pydicom.dcmread(path) for path in sorted(next(archive.rglob(series)).glob("*.dcm"))]


def replace_by(archive: Path, series: str, instance: Dataset, *, mask: bool = False) -> Path:
    """The multi-frame instance in place of the series' slices, and of its mask unless that stays."""
    folder = next(archive.rglob(series))
    for path in folder.glob("*.dcm"):
        path.unlink()
    if not mask:
        folder.with_name(f"{series}-mask.dcm").unlink(missing_ok=True)
    path = folder / "multi-frame.dcm"
    instance.save_as(path, enforce_file_format=True)
    return path


def frames(path: Path) -> list[Frame]:
    header = read_header(path, Deidentifier(KEY, words=frozenset({"cine", "ed"})))
    assert unsuitable(header) is None
    return frames_of(path, header)


def converted(slices: list[Dataset]) -> Dataset:
    """By highdicom, after PS3.3 A.70."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        instance = hd.legacy.LegacyConvertedEnhancedMRImage(
            slices,
            series_instance_uid=generate_uid(),
            series_number=9,
            sop_instance_uid=generate_uid(),
            instance_number=1,
        )
    instance.SeriesDescription = slices[0].SeriesDescription
    return instance


@pytest.mark.parametrize("series", ["cine_ed", "lge"])  # unsigned and signed
def test_converted_images_give_the_very_volume_of_the_classic_ones(
    archive: Path, case: Case, let_in: LetIn, series: str
) -> None:
    replace_by(archive, series, converted(slices_of(archive, series)))
    intake, cohort = let_in(archive)
    assert not intake.refused
    volume, expected = cohort.case(intake.admitted[0]).volume(series), case.volume(series)
    assert volume is not None
    assert expected is not None
    assert volume.image.dtype == expected.image.dtype
    assert np.array_equal(volume.image, expected.image)
    assert np.abs(volume.affine - expected.affine).max() < 1e-8


def test_a_mask_drawn_on_the_classic_slices_belongs_to_the_converted_image(archive: Path, case: Case, let_in: LetIn) -> None:
    replace_by(archive, "cine_ed", converted(slices_of(archive, "cine_ed")), mask=True)
    intake, cohort = let_in(archive)
    assert not intake.refused
    volume = cohort.case(intake.admitted[0]).volume("cine_ed")
    assert volume is not None
    assert np.array_equal(volume.mask, case.volumes[0].mask)


def drawn_on(image: Dataset, mask: np.ndarray, numbers: list[int]) -> hd.seg.Segmentation:
    """A mask of these frames (from 1), by highdicom, that refers to them and to no other."""
    groups = [image.PerFrameFunctionalGroupsSequence[number - 1] for number in numbers]
    positions = [hd.PlanePositionSequence("PATIENT", group.PlanePositionSequence[0].ImagePositionPatient) for group in groups]
    segments = [
        hd.seg.SegmentDescription(number, label, codes.SCT.Tissue, codes.SCT.Tissue, "MANUAL")
        for number, label in ((1, "blood_pool"), (2, "myocardium"), (3, "right_ventricle"))
    ]
    seg = hd.seg.Segmentation(
        [image], mask, "BINARY", segments, generate_uid(), 20, generate_uid(), 1, "konsil", "konsil", "1", "1",
        plane_positions=positions,
    )  # fmt: skip
    by_position = {tuple(g.PlanePositionSequence[0].ImagePositionPatient): n for g, n in zip(groups, numbers, strict=True)}
    for frame in seg.PerFrameFunctionalGroupsSequence:  # highdicom names all frames at this position
        sources = frame.DerivationImageSequence[0].SourceImageSequence
        sources[0].ReferencedFrameNumber = by_position[tuple(frame.PlanePositionSequence[0].ImagePositionPatient)]
        frame.DerivationImageSequence[0].SourceImageSequence = sources[:1]
    return seg


def test_a_cine_in_one_instance_gives_the_phases_on_whose_frames_somebody_drew(
    case: Case, let_in: LetIn, tmp_path: Path
) -> None:
    archive = tmp_path / "cine"
    write_patient(dataclasses.replace(case, volumes=case.volumes[:2]), archive)
    ed, es = slices_of(archive, "cine_ed"), slices_of(archive, "cine_es")
    middle = slices_of(archive, "cine_ed")
    for one in middle:
        one.PixelData = bytes(len(one.PixelData))
    # slice by slice, of each the late, the early and the middle phase
    shuffled = [one for several in zip(es, ed, middle, strict=True) for one in several]
    times = [320.0, 0.0, 160.0] * 6

    def further(index: int) -> dict[str, Dataset]:
        # as a scanner does, slices differ a little in the heart rate
        time = times[index] * (1 + 0.02 * (index // 3))
        return {"CardiacSynchronizationSequence": item(NominalCardiacTriggerDelayTime=time, RRIntervalTimeNominal=480.0)}

    image = enhanced(shuffled, further)
    image.SeriesDescription = "cine"
    path = replace_by(archive, "cine_ed", image)
    for name in ("cine_es", "cine_es-mask.dcm"):
        for file in [*archive.rglob(f"{name}/*.dcm"), *archive.rglob(name)]:
            if file.is_file():
                file.unlink()
    for number, (volume, numbers) in enumerate(((case.volumes[0], range(2, 19, 3)), (case.volumes[1], range(1, 19, 3))), 1):
        assert volume.mask is not None
        drawn_on(image, np.where(volume.mask == 255, 0, volume.mask), list(numbers)).save_as(
            path.with_name(f"mask-{number}.dcm")
        )
    intake, cohort = let_in(archive)
    assert not intake.refused
    read = cohort.case(intake.admitted[0])
    assert [volume.series for volume in read.volumes] == ["cine_ed", "cine_es"]
    for expected, volume in zip(case.volumes[:2], read.volumes, strict=True):
        assert np.array_equal(volume.image, expected.image)
        assert expected.mask is not None
        assert np.array_equal(volume.mask, np.where(expected.mask == 255, 0, expected.mask))


def test_the_clean_store_keeps_what_tells_the_parts_of_a_series_apart(archive: Path, let_in: LetIn, tmp_path: Path) -> None:
    image = enhanced(
        slices_of(archive, "cine_ed") + slices_of(archive, "cine_es"),
        lambda index: {
            "MREchoSequence": item(EffectiveEchoTime=2.3 if index < 6 else 4.6),
            "MRDiffusionSequence": item(DiffusionBValue=50.0, DiffusionDirectionality="ISOTROPIC"),
            "CardiacSynchronizationSequence": item(NominalCardiacTriggerDelayTime=40.0),
            "PixelValueTransformationSequence": item(RescaleSlope="2", RescaleIntercept="-5", RescaleType="US"),
        },
    )
    image.SeriesDescription = "cine ed"
    replace_by(archive, "cine_ed", image)
    for path in archive.rglob("lge/*.dcm"):
        dataset = pydicom.dcmread(path)
        dataset.private_block(0x0019, "SIEMENS MR HEADER", create=True).add_new(0x0C, "IS", 500)
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "R_IR", "R", "IR"]
        dataset.save_as(path)
    rules = SeriesRules(
        rules=(
            SeriesRule(name="echo_2", words=("cine", "ed"), echo=2, b_value=50),
            SeriesRule(name="lge", words=("lge",), b_value=500, image_type=("R_IR",)),
        )
    )
    deidentify = Deidentifier(KEY, words=rules.words)
    for path in sorted(archive.rglob("*.dcm")):
        deidentify_file(path, tmp_path / "clean", deidentify=deidentify)
    (patient,) = (tmp_path / "clean").iterdir()
    from_original, cohort = let_in(archive, series=rules)
    expected = cohort.case(from_original.admitted[0])
    from_clean, cohort = let_in(patient, series=rules, key=None)
    assert not from_clean.refused
    read = cohort.case(from_clean.admitted[0])
    assert [volume.series for volume in read.volumes] == ["echo_2", "lge"]
    for volume, same in zip(read.volumes, expected.volumes, strict=True):
        assert np.array_equal(volume.image, same.image)
        assert np.array_equal(volume.affine, same.affine)


def test_echoes_of_one_instance_are_split_and_each_rule_gets_its_own(archive: Path, case: Case, let_in: LetIn) -> None:
    first, second = slices_of(archive, "cine_ed"), slices_of(archive, "cine_es")
    image = enhanced(first + second, lambda index: {"MREchoSequence": item(EffectiveEchoTime=2.3 if index < 6 else 4.6)})
    image.SeriesDescription = "cine ed"
    replace_by(archive, "cine_ed", image)
    intake, _ = let_in(archive)
    assert list(intake.refused.values()) == ["cine_ed: 2 echoes: 2.3 ms, 4.6 ms; say echo in the series rule"]
    rules = SeriesRules(rules=tuple(SeriesRule(name=f"echo_{number}", words=("cine", "ed"), echo=number) for number in (1, 2)))
    intake, cohort = let_in(archive, series=rules)
    assert not intake.refused
    read = cohort.case(intake.admitted[0])
    for name, expected in (("echo_1", case.volumes[0]), ("echo_2", case.volumes[1])):
        volume = read.volume(name)
        assert volume is not None
        assert np.array_equal(volume.image, expected.image)


def test_each_frame_is_rescaled_by_its_own_slope_and_intercept(archive: Path, case: Case) -> None:
    slopes = [1.0, 2.0, 0.5, 1.0, 3.0, 1.0]
    image = enhanced(
        slices_of(archive, "cine_ed"),
        lambda index: {
            "PixelValueTransformationSequence": item(
                RescaleSlope=str(slopes[index]), RescaleIntercept=str(-index), RescaleType="US"
            )
        },
    )
    volume, _ = to_volume("x", frames(replace_by(archive, "cine_ed", image)))
    by_hand = case.volumes[0].image * np.array(slopes)[:, None, None] - np.arange(6)[:, None, None]
    assert volume.image.dtype == np.float32
    assert np.array_equal(volume.image, by_hand)


@pytest.mark.parametrize("compress", [False, True])
def test_an_enhanced_image_lies_where_simpleitk_puts_it(archive: Path, compress: bool) -> None:
    image = enhanced(slices_of(archive, "cine_ed"))
    path = replace_by(archive, "cine_ed", image)
    if compress:
        image.compress(RLELossless)
        image.save_as(path)
    volume, _ = to_volume("x", frames(path))
    other = sitk.ReadImage(str(path))
    assert np.array_equal(volume.image, sitk.GetArrayFromImage(other))
    for index in ((0, 0, 0), (5, 39, 43), (2, 7, 30)):
        assert volume.affine @ [*index, 1] == pytest.approx([*other.TransformIndexToPhysicalPoint(index[::-1]), 1], abs=1e-5)


def test_a_ct_of_many_frames_is_read_like_one_of_many_files(archive: Path, case: Case) -> None:
    image = enhanced(slices_of(archive, "lge")[::-1], sop_class=ENHANCED_CT)
    volume, ordered = to_volume("x", frames(replace_by(archive, "lge", image)))
    assert [frame.number for frame in ordered] == [1, 2, 3, 4, 5, 6]
    assert np.array_equal(volume.image, case.volumes[2].image[::-1])


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda image: image.PerFrameFunctionalGroupsSequence.pop(), "6 frames that describes 5 of them"),
        (lambda image: image.__delattr__("PerFrameFunctionalGroupsSequence"), "6 frames that describes 0 of them"),
        (lambda image: image.__delattr__("NumberOfFrames"), "0 frames that describes 6 of them"),
    ],
)
def test_an_enhanced_image_that_does_not_describe_its_frames_is_refused(
    archive: Path, spoil: Callable[[Dataset], object], reason: str
) -> None:
    image = enhanced(slices_of(archive, "cine_ed"))
    spoil(image)
    path = replace_by(archive, "cine_ed", image)
    with pytest.raises(Unframed, match=reason):
        frames(path)


def test_frames_without_pixels_are_refused(archive: Path) -> None:
    image = enhanced(slices_of(archive, "cine_ed"))
    image.PixelData = image.PixelData[: len(image.PixelData) // 2]
    with pytest.raises(GeometryRefused, match="the pixel data of image 1 of 6 can't be decoded"):
        to_volume("x", frames(replace_by(archive, "cine_ed", image)))


def test_a_frame_is_missing_like_a_slice_is_missing(archive: Path) -> None:
    image = enhanced([one for number, one in enumerate(slices_of(archive, "cine_ed")) if number != 2])
    with pytest.raises(GeometryRefused, match=r"slices are missing: gaps of 8.300 to 16.600 mm, so about 1 of 6"):
        to_volume("x", frames(replace_by(archive, "cine_ed", image)))


def test_what_a_model_finds_on_a_cine_in_one_instance_goes_back_to_the_frames_that_it_saw(
    archive: Path, case: Case, let_in: LetIn, labels: LabelMap
) -> None:
    early, late = slices_of(archive, "cine_ed"), slices_of(archive, "cine_es")
    both = [one for several in zip(late, early, strict=True) for one in several]
    times = {0: 320.0, 1: 0.0}
    group = "CardiacSynchronizationSequence"
    image = enhanced(both, lambda index: {group: item(NominalCardiacTriggerDelayTime=times[index % 2])})
    image.SeriesDescription = "cine"
    path = replace_by(archive, "cine_ed", image)
    for other in [*archive.rglob("cine_es/*.dcm"), *archive.rglob("cine_es-mask.dcm")]:
        other.unlink()
    (visitor,), _ = visitors(archive, key=KEY, rules=SeriesRules(), wanted=("cine_ed",))
    volume, originals = visitor.read("cine_ed")
    assert np.array_equal(volume.image, case.volumes[0].image)
    assert isinstance(originals, Chosen)
    assert originals.numbers == (2, 4, 6, 8, 10, 12)
    mask = case.volumes[0].mask
    assert mask is not None
    write_seg(mask, originals, path.with_name("found.dcm"), labels, algorithm=None)
    written = pydicom.dcmread(path.with_name("found.dcm"))
    assert {key.partition("#")[2] for key in references(written)} == {"4", "6", "8", "10"}  # the ends are empty
    intake, cohort = let_in(archive)
    read = cohort.case(intake.admitted[0]).volume("cine_ed")
    assert read is not None
    assert np.array_equal(read.mask, mask)


def test_a_scanner_s_enhanced_images_are_two_instants_of_which_the_rule_names_one(shared_data: Path, let_in: LetIn) -> None:
    folder = shared_data / "dicom_files" / "dcm_qa_enh"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    intake, _ = let_in(folder, accept_faces=True, series=SeriesRules(rules=(SeriesRule(name="mr"),)))
    (reason,) = intake.refused.values()
    assert "2 images at each of 6 positions, which differ in temporal position; say time_point" in reason
    intake, cohort = let_in(folder, accept_faces=True, series=SeriesRules(rules=(SeriesRule(name="mr", time_point=2),)))
    (volume,) = cohort.case(intake.admitted[0]).volumes
    other = sitk.ReadImage(str(next(folder.rglob("6_3.dcm"))))
    assert np.array_equal(volume.image, sitk.GetArrayFromImage(other))
    assert volume.spacing_mm == pytest.approx(other.GetSpacing()[::-1], abs=1e-4)
    for index in ((0, 0, 0), (5, 63, 10)):
        assert volume.affine @ [*index, 1] == pytest.approx([*other.TransformIndexToPhysicalPoint(index[::-1]), 1], abs=1e-3)
