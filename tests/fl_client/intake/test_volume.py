from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import Dataset
from pydicom.uid import RLELossless

from fl_client.intake.deidentify import Deidentifier
from fl_client.intake.headers import DRAWN, read_header, unsuitable
from fl_client.intake.multiframe import ENHANCED, Unframed, frames_of
from fl_client.intake.volume import Frame, GeometryRefused, read_pixels, same_grid, stack, to_volume
from tasks.case import Case


def slices(count: int = 6, *, spacing: float = 8.0) -> list[Dataset]:
    headers = []
    for index in range(count):
        header = Dataset()
        header.Rows, header.Columns, header.PixelSpacing = 4, 5, [1.5, 1.25]
        header.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        header.ImagePositionPatient = [-10, 20, 3 + spacing * index]
        header.SOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
        header.InstanceNumber, header.FrameOfReferenceUID = index + 1, "1.2.3"
        headers.append(header)
    return headers


def gate(headers: list[Dataset]) -> tuple[list[Dataset], np.ndarray]:
    frames, affine = stack([Frame(Path(), header) for header in headers])
    return [frame.header for frame in frames], affine


def test_the_affine_of_an_axial_stack_is_the_one_written_by_hand() -> None:
    ordered, affine = gate(slices()[::-1])
    assert [header.InstanceNumber for header in ordered] == [1, 2, 3, 4, 5, 6]
    assert affine.tolist() == [[0, 0, 1.25, -10], [0, 1.5, 0, 20], [8, 0, 0, 3], [0, 0, 0, 1]]


def test_slices_stand_in_the_order_in_which_they_are_numbered() -> None:
    headers = slices()
    for header in headers:
        header.InstanceNumber = 7 - header.InstanceNumber
    ordered, affine = gate(headers)
    assert [header.InstanceNumber for header in ordered] == [1, 2, 3, 4, 5, 6]
    assert affine[:3, 0].tolist() == [0, 0, -8]
    assert affine[2, 3] == 43


def test_numbers_that_jump_about_leave_the_order_along_the_normal() -> None:
    headers = slices()
    for header, number in zip(headers, (4, 1, 6, 2, 3, 5), strict=True):
        header.InstanceNumber = number
    assert gate(headers)[1][2, 3] == 3


def tilt(headers: list[Dataset]) -> None:
    for index, header in enumerate(headers):
        header.ImagePositionPatient = [-10, 20 + index * 8.0 * np.tan(np.radians(15)), header.ImagePositionPatient[2]]


def nudge(headers: list[Dataset]) -> None:
    headers[2].ImagePositionPatient = [-10, 20, 21.5]


def turn(headers: list[Dataset]) -> None:
    headers[0].ImageOrientationPatient = [0, 1, 0, 0, 0, -1]


def lean(headers: list[Dataset]) -> None:
    for header in headers:
        header.ImageOrientationPatient = [1, 0, 0, 0.5, 0.9, 0]


def every_other(headers: list[Dataset]) -> None:
    for header in headers:
        header.SpacingBetweenSlices = 4


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda headers: headers.pop(2), r"slices are missing: gaps of 8.000 to 16.000 mm, so about 1 of 6"),
        (lambda headers: headers.append(headers[3]), "7 images at 6 positions: 1 slices stand twice"),
        (tilt, r"stacked 15.0 degrees off their normal"),
        (lambda headers: setattr(headers[0], "GantryDetectorTilt", 12), "gantry tilt of 12 degrees"),
        (nudge, "unevenly spaced: gaps of 5.500 to 10.500 mm"),
        (turn, "2 orientations in one series, such as a localizer"),
        (every_other, "8.000 mm apart, 2 times the stated 4 mm"),
        (lambda headers: setattr(headers[1], "Rows", 8), "different size in one series: 4 x 5, 8 x 5"),
        (lambda headers: setattr(headers[1], "PixelSpacing", [1.4, 1.25]), "not one positive pair: from 1.25 to 1.5 mm"),
        (lambda headers: setattr(headers[1], "PixelSpacing", [0, 0]), "pixel spacing is not one positive pair"),
        (lambda headers: headers[1].__delattr__("ImagePositionPatient"), "1 of 6 images lack ImagePositionPatient"),
        (lambda headers: setattr(headers[1], "ImagePositionPatient", [0, 0, float("nan")]), "not a finite number"),
        (lambda headers: setattr(headers[1], "FrameOfReferenceUID", "1.2.4"), "2 frames of reference"),
        (lean, "not perpendicular"),
        (lambda headers: headers.__delitem__(slice(1, None)), "without SliceThickness"),
    ],
)  # fmt: skip
def test_what_forms_no_volume_is_refused_with_the_reason(spoil: Callable[[list[Dataset]], object], reason: str) -> None:
    headers = slices()
    spoil(headers)
    with pytest.raises(GeometryRefused, match=reason):
        gate(headers)


def test_a_good_series_lies_where_simpleitk_puts_it(archive: Path) -> None:
    folder = next(archive.rglob("cine_ed"))
    files = sorted(folder.glob("*.dcm"))
    volume, _ = to_volume("x", [Frame(path, pydicom.dcmread(path, stop_before_pixels=True)) for path in files])
    other = sitk.ReadImage([str(path) for path in files])
    for index in ((0, 0, 0), (5, 39, 43), (2, 7, 30)):
        point = other.TransformIndexToPhysicalPoint(index[::-1])
        assert volume.affine @ [*index, 1] == pytest.approx([*point, 1], abs=1e-6)
        assert volume.image[index] == other[index[::-1]]


def test_rescaled_values_are_those_of_simpleitk(archive: Path, edit: Callable[..., None]) -> None:
    files = sorted(next(archive.rglob("cine_ed")).glob("*.dcm"))
    for path in files:
        edit(path, lambda dataset: dataset.update({"RescaleSlope": "1", "RescaleIntercept": "-1024"}))
    volume, _ = to_volume("x", [Frame(path, pydicom.dcmread(path, stop_before_pixels=True)) for path in files])
    assert volume.image.dtype == np.int16
    assert np.array_equal(volume.image, sitk.GetArrayFromImage(sitk.ReadImage([str(path) for path in files])))
    for path in files:
        edit(path, lambda dataset: dataset.update({"RescaleSlope": "0.5", "RescaleIntercept": "3"}))
    volume, _ = to_volume("x", [Frame(path, pydicom.dcmread(path, stop_before_pixels=True)) for path in files])
    assert volume.image.dtype == np.float32
    assert np.allclose(volume.image, sitk.GetArrayFromImage(sitk.ReadImage([str(path) for path in files])))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda dataset: dataset.__delattr__("PixelData"), "the pixel data of image 3 of 6 is missing"),
        (lambda dataset: setattr(dataset, "PixelData", dataset.PixelData[:100]), "pixel data of image 3 of 6 can't be decoded"),
        (lambda dataset: dataset.update({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0,
                                         "PixelData": dataset.PixelData * 3}), "3 of 6 has PhotometricInterpretation RGB"),
        (lambda dataset: setattr(dataset, "PhotometricInterpretation", "MONOCHROME1"), "Interpretation MONOCHROME1"),
        (lambda dataset: dataset.__delattr__("PhotometricInterpretation"), "PhotometricInterpretation absent"),
        (lambda dataset: setattr(dataset, "ModalityLUTSequence", [Dataset()]), "image 3 of 6 has a look-up table"),
        (lambda dataset: dataset.update({"NumberOfFrames": 2, "PixelData": dataset.PixelData * 2}), "no single grey-scale"),
    ],
)  # fmt: skip
def test_pixels_that_are_absent_short_or_coloured_are_refused(
    archive: Path, edit: Callable[..., None], spoil: Callable[[Dataset], object], reason: str
) -> None:
    files = sorted(next(archive.rglob("cine_ed")).glob("*.dcm"))
    edit(files[2], spoil)
    with pytest.raises(GeometryRefused, match=reason):
        to_volume("x", [Frame(path, pydicom.dcmread(path, stop_before_pixels=True)) for path in files])


def jpeg_lossless(path: Path) -> None:
    """By DCMTK, an encoder of its own: process 14, first-order prediction, as archives keep it."""
    if shutil.which("dcmcjpeg") is None:
        pytest.skip("no dcmcjpeg (DCMTK) to write JPEG Lossless with")
    subprocess.run(["dcmcjpeg", path, path], check=True)


def by_gdcm(transfer_syntax: str) -> Callable[[Path], None]:
    def recode(path: Path) -> None:
        gdcm = pytest.importorskip("gdcm")
        reader = gdcm.ImageReader()
        reader.SetFileName(str(path))
        assert reader.Read()
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, transfer_syntax)))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer = gdcm.ImageWriter()
        writer.SetFileName(str(path))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()

    return recode


def rle(path: Path) -> None:
    dataset = pydicom.dcmread(path)
    dataset.compress(RLELossless)
    dataset.save_as(path)


@pytest.mark.parametrize("series", ["cine_ed", "lge"])  # unsigned and signed
@pytest.mark.parametrize(
    ("compress", "transfer_syntax"),
    [
        (jpeg_lossless, "1.2.840.10008.1.2.4.70"),
        (by_gdcm("JPEG2000Lossless"), "1.2.840.10008.1.2.4.90"),
        (rle, "1.2.840.10008.1.2.5"),
    ],
)
def test_compressed_images_are_those_that_were_compressed(
    archive: Path, case: Case, series: str, compress: Callable[[Path], None], transfer_syntax: str
) -> None:
    files = sorted(next(archive.rglob(series)).glob("*.dcm"))
    for path in files:
        compress(path)
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in files]
    assert {str(header.file_meta.TransferSyntaxUID) for header in headers} == {transfer_syntax}
    volume, _ = to_volume(series, [Frame(path, header) for path, header in zip(files, headers, strict=True)])
    expected = case.volume(series)
    assert expected is not None
    assert volume.image.dtype == expected.image.dtype
    assert np.array_equal(volume.image, expected.image)


def test_every_image_of_other_projects_is_what_simpleitk_reads_or_is_refused(shared_data: Path) -> None:
    refusals = []
    read: list[Path] = []
    for path in sorted(path for path in (shared_data / "dicom_files").rglob("*") if path.is_file()):
        try:
            header = read_header(path, Deidentifier(b"a hospital's key"))
        except Exception:
            continue  # no DICOM, or nobody's: the door's own tests
        if unsuitable(header) or header.SOPClassUID in DRAWN:
            continue
        try:
            frames = frames_of(path, header) if header.SOPClassUID in ENHANCED else [Frame(path, header)]
            volume, _ = to_volume("x", frames)
        except (GeometryRefused, Unframed) as reason:
            refusals.append(str(reason))
            continue
        other = sitk.ReadImage(str(path))
        assert np.allclose(volume.image, sitk.GetArrayFromImage(other)), path.name
        for index in ((0, 0, 0), tuple(length - 1 for length in volume.image.shape)):
            point = other.TransformIndexToPhysicalPoint(index[::-1])
            assert volume.affine[:3] @ [*index, 1] == pytest.approx(point, abs=1e-3), path.name
        read.append(path)
    if not read:
        pytest.skip(f"no images below {shared_data / 'dicom_files'}")
    assert refusals == ["every pixel has the same value, 0"] * 2
    assert len(read) == 27


def test_one_image_in_several_transfer_syntaxes_is_one_image(shared_data: Path) -> None:
    names = ("CTImage.dcm_JPEGProcess14Trans*", "CTImage.dcm_RLELossless*", "CTImage.dcm_JPEGLSLossless*")
    files = [next((shared_data / "dicom_files").rglob(name), None) for name in names]
    if None in files:
        pytest.skip(f"no CTImage in several transfer syntaxes below {shared_data / 'dicom_files'}")
    first, *others = [read_pixels([Frame(path, pydicom.dcmread(path))]) for path in files if path is not None]
    assert len(others) == 2
    assert all(np.array_equal(first, other) for other in others)


def test_the_same_grid_is_the_same_to_the_tolerance_and_no_further() -> None:
    affine = gate(slices())[1]
    for place, within, beyond in (((0, 3), 0.9e-3, 2e-3), ((0, 2), 0.9e-3, 2e-3), ((1, 2), 0.9e-4, 2e-4)):
        near, far = affine.copy(), affine.copy()
        near[place] += within
        far[place] += beyond
        assert same_grid(affine, near)
        assert not same_grid(affine, far)
