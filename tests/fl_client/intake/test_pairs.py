from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from fl_client.cohort import Cohort
from fl_client.intake import pairs
from fl_client.intake.door import Intake
from fl_client.intake.labels import LabelMap
from fl_client.intake.pairs import admit_pairs
from fl_client.intake.write_back import sitk_image, write_nifti
from tasks.case import Case

Admit = Callable[..., tuple[Intake, Cohort]]
KEY = b"sixteen bytes at least"


@pytest.fixture
def folder(tmp_path: Path, case: Case) -> Path:
    """`images/one.nii.gz` and `masks/one.nii.gz` on an oblique grid."""
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    volume = case.volumes[0]
    sitk.WriteImage(sitk_image(volume.image, volume.affine), str(tmp_path / "images/one.nii.gz"))
    assert volume.mask is not None
    write_nifti(volume.mask, volume, tmp_path / "masks/one.nii.gz")
    return tmp_path


@pytest.fixture
def let_pairs_in(folder: Path, labels: LabelMap) -> Admit:
    def admit(**settings: object) -> tuple[Intake, Cohort]:
        cohort = Cohort(folder / "cohort")
        arguments: dict[str, object] = {"key": KEY, "labels": labels, "series_name": "t1", **settings}
        return admit_pairs(folder / "images", folder / "masks", cohort, **arguments), cohort  # type: ignore[arg-type]

    return admit


def test_a_pair_comes_in_as_it_was(let_pairs_in: Admit, case: Case) -> None:
    intake, cohort = let_pairs_in()
    volume, expected = cohort.case(intake.admitted[0]).volumes[0], case.volumes[0]
    assert np.array_equal(volume.image, expected.image)
    assert np.array_equal(volume.mask, expected.mask)
    assert volume.image.dtype == expected.image.dtype
    assert np.abs(volume.affine - expected.affine).max() < 1e-4  # a NIfTI header holds float32
    assert let_pairs_in()[0] == intake


def test_nrrd_does_as_well_as_nifti(let_pairs_in: Admit, folder: Path, case: Case) -> None:
    before = let_pairs_in()[1].patients
    for name in ("images", "masks"):
        image = sitk.ReadImage(str(folder / name / "one.nii.gz"))
        (folder / name / "one.nii.gz").unlink()
        sitk.WriteImage(image, str(folder / name / "one.nrrd"))
    intake, _ = let_pairs_in()
    assert intake.admitted == before


def shifted(folder: Path) -> None:
    mask = sitk.ReadImage(str(folder / "masks/one.nii.gz"))
    mask.SetOrigin([value + 0.01 for value in mask.GetOrigin()])
    sitk.WriteImage(mask, str(folder / "masks/one.nii.gz"))


def cropped(folder: Path) -> None:
    sitk.WriteImage(sitk.ReadImage(str(folder / "masks/one.nii.gz"))[:-1], str(folder / "masks/one.nii.gz"))


def stranger(folder: Path) -> None:
    sitk.WriteImage(sitk.ReadImage(str(folder / "masks/one.nii.gz")) * 7, str(folder / "masks/one.nii.gz"))


def not_finite(folder: Path) -> None:
    image = sitk.Cast(sitk.ReadImage(str(folder / "images/one.nii.gz")), sitk.sitkFloat32)
    values = sitk.GetArrayFromImage(image)
    values[0, 0, 0] = np.nan
    spoiled = sitk.GetImageFromArray(values)
    spoiled.CopyInformation(image)
    sitk.WriteImage(spoiled, str(folder / "images/one.nii.gz"))


def flat(folder: Path) -> None:
    sitk.WriteImage(sitk.ReadImage(str(folder / "images/one.nii.gz")) * 0, str(folder / "images/one.nii.gz"))


def not_finite_nrrd(folder: Path) -> None:
    image = sitk.Cast(sitk.ReadImage(str(folder / "images/one.nii.gz")), sitk.sitkFloat32)
    image[0, 0, 0] = float("nan")
    (folder / "images/one.nii.gz").unlink()
    sitk.WriteImage(image, str(folder / "images/one.nrrd"))


def cut(folder: Path) -> None:
    path = folder / "images/one.nii.gz"
    path.write_bytes(path.read_bytes()[:2000])


def cut_uncompressed(folder: Path) -> None:
    image = sitk.ReadImage(str(folder / "images/one.nii.gz"))
    (folder / "images/one.nii.gz").unlink()
    sitk.WriteImage(image, str(folder / "images/one.nii"))
    content = (folder / "images/one.nii").read_bytes()
    (folder / "images/one.nii").write_bytes(content[:-120])


def other_format(folder: Path) -> None:
    (folder / "images/one.nii.gz").unlink()
    (folder / "images/one.nrrd").write_bytes(b"no NRRD at all")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda folder: (folder / "masks/one.nii.gz").unlink(), "an image without a mask"),
        (lambda folder: (folder / "images/one.nii.gz").unlink(), "a mask without an image"),
        (stranger, "label 7 stands nowhere in the label map"),
        (not_finite, "the image holds values that are not finite numbers"),
        (flat, "every voxel has the same value, 0"),
        (not_finite_nrrd, "the image holds values that are not finite numbers"),
        (cut, "the image can't be read: its compression is damaged or cut short"),
        (cut_uncompressed, "the image is cut short: 120 of 21120 bytes of voxels are missing"),
        (other_format, "the image can't be read: corrupt, cut short"),
    ],
)
def test_a_pair_that_does_not_fit_is_refused_with_the_reason(
    let_pairs_in: Admit, folder: Path, spoil: Callable[[Path], None], reason: str
) -> None:
    spoil(folder)
    intake, cohort = let_pairs_in()
    assert [text for text in intake.refused.values() if text.startswith(reason)]
    assert len(cohort) == 0


# fields of the 348-byte header, nifti1.h: dim (8 short) at 40, datatype and bitpix at 70 and 72, vox_offset (float) at 108
CONTRADICTS = "the image has a header that contradicts itself: "


@pytest.mark.parametrize(
    ("at", "field", "value", "reason"),
    [
        (108, "<f", float("nan"), CONTRADICTS + "voxels start at byte nan"),
        (108, "<f", float("inf"), CONTRADICTS + "voxels start at byte inf"),
        (108, "<f", float("-inf"), CONTRADICTS + "voxels start at byte -inf"),
        (108, "<f", 352.5, CONTRADICTS + "voxels start at byte 352.5"),
        (108, "<f", 0.0, CONTRADICTS + "voxels start at byte 0 of a file whose header has 348"),
        (108, "<f", 1e30, "the image is cut short"),
        (70, "<h", 64, CONTRADICTS + "datatype 64 has 64 bits per voxel, not 16"),  # double, stored as 16-bit numbers
        (70, "<h", 16, CONTRADICTS + "datatype 16 has 32 bits per voxel, not 16"),
        (72, "<h", 8, CONTRADICTS + "datatype 512 has 16 bits per voxel, not 8"),
        (72, "<h", -16, CONTRADICTS),
        (70, "<h", 128, "the image has datatype 128: not one number per voxel"),  # RGB
        (70, "<h", 999, "the image has datatype 999"),
        (40, "<h", -1, CONTRADICTS + "-1 axes"),
        (40, "<h", 9, CONTRADICTS + "9 axes"),
        (42, "<2h", (-44, -40), CONTRADICTS + "3 axes of [-44, -40, 6] voxels"),  # their product is right
    ],
)
def test_a_header_that_lies_refuses_one_patient_and_not_the_folder(
    let_pairs_in: Admit, folder: Path, at: int, field: str, value: float | tuple[int, int], reason: str
) -> None:
    for name in ("images", "masks"):
        (folder / name / "two.nii.gz").write_bytes((folder / name / "one.nii.gz").read_bytes())
    header = bytearray(gzip.decompress((folder / "images/one.nii.gz").read_bytes()))
    struct.pack_into(field, header, at, *(value if isinstance(value, tuple) else (value,)))
    (folder / "images/one.nii.gz").write_bytes(gzip.compress(bytes(header)))
    intake, _ = let_pairs_in()
    assert [text for text in intake.refused.values() if text.startswith(reason)], intake.refused
    assert len(intake.admitted) == 1


def test_an_unforeseen_error_refuses_one_pair_and_repeats_no_text(
    let_pairs_in: Admit, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("images", "masks"):
        (folder / name / "two.nii.gz").write_bytes((folder / name / "one.nii.gz").read_bytes())
    real = pairs.read_grid

    def fail(path: Path, what: str) -> object:
        if path.name == "one.nii.gz":
            raise OverflowError("Abendroth")
        return real(path, what)

    monkeypatch.setattr(pairs, "read_grid", fail)
    intake, _ = let_pairs_in()
    assert list(intake.refused.values()) == ["its files can't be understood (OverflowError)"]
    assert len(intake.admitted) == 1


def test_two_images_of_one_patient_and_foreign_files_are_refused(let_pairs_in: Admit, folder: Path) -> None:
    (folder / "images/one_again.nii.gz").write_bytes((folder / "images/one.nii.gz").read_bytes())
    (folder / "images/readme.txt").write_text("x")
    intake, _ = let_pairs_in(patient_of=lambda stem: stem.split("_")[0])
    assert list(intake.refused.values()) == ["2 images of one patient; this intake reads one per patient"]
    assert "neither NIfTI nor NRRD" in next(iter(intake.left_out.values()))


def test_a_mask_on_another_grid_is_resampled_and_a_cropped_one_moved_and_the_cohort_says_so(
    let_pairs_in: Admit, folder: Path, case: Case
) -> None:
    for spoil, resampled in ((shifted, True), (cropped, True)):
        spoil(folder)
        intake, cohort = let_pairs_in()
        assert np.array_equal(cohort.case(intake.admitted[0]).volumes[0].mask, case.volumes[0].mask)
        text = json.loads((cohort.folder / "quality" / f"{intake.admitted[0]}.json").read_text())
        assert text["mask_resampled/t1"] is resampled
    assert case.volumes[0].mask is not None
    write_nifti(case.volumes[0].mask, case.volumes[0], folder / "masks/one.nii.gz")
    cropped(folder)
    intake, cohort = let_pairs_in()
    assert json.loads((cohort.folder / "quality" / f"{intake.admitted[0]}.json").read_text())["mask_resampled/t1"] is False


def test_file_names_do_not_reach_the_cohort(let_pairs_in: Admit, folder: Path) -> None:
    for name in ("images", "masks"):
        (folder / name / "one.nii.gz").rename(folder / name / "Abendroth.nii.gz")
    (folder / "images/Brunnthaler.nii.gz").write_bytes(b"x")
    let_pairs_in()
    for path in (folder / "cohort").rglob("*"):
        assert b"abendroth" not in path.name.lower().encode()
        assert not path.is_file() or not any(name in path.read_bytes().lower() for name in (b"abendroth", b"brunnthaler"))


def test_the_hippocampus_collection_as_found(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "hippocampus"
    if not source.is_dir():
        pytest.skip(f"no hippocampus data at {source}")
    names = {folder: {path.name for path in (source / folder).glob("*.nii.gz")} for folder in ("images", "labels")}
    chosen = set(sorted(names["images"] & names["labels"])[::4]) | (names["images"] ^ names["labels"])
    for folder, there in names.items():
        (tmp_path / folder).mkdir()
        for name in there & chosen:
            (tmp_path / folder / name).symlink_to(source / folder / name)
    cohort = Cohort(tmp_path / "cohort")
    labels = LabelMap.load("hippocampus")
    intake = admit_pairs(tmp_path / "images", tmp_path / "labels", cohort, key=KEY, labels=labels, series_name="t1")
    assert sorted(intake.refused.values()) == ["a mask without an image", "a mask without an image", "an image without a mask"]
    assert len(intake.admitted) == len(cohort) == intake.expected - 3 > 60
    volume = cohort.case(intake.admitted[0]).volumes[0]
    assert volume.spacing_mm == pytest.approx((1, 1, 1))
    assert volume.mask is not None
    assert np.unique(volume.mask).tolist() == [0, 1, 2]
