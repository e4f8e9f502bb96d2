from __future__ import annotations

import base64
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames

from fl_client.intake.decode import Undecodable, decode, transfer_syntax
from tasks.case import Case

# (row * 371 + column² * 53) % 4096, 12 x 10, and the same less 2048; reversible, by OpenJPH 0.26.3
HTJ2K = {
    "unsigned": """
        /0//UQApQAAAAAAKAAAADAAAAAAAAAAAAAAACgAAAAwAAAAAAAAAAAABDwEB/1AACAACAAAACv9SAAwAAgABAAUEBEAB/1wAEyCIkJCQkJCQkJCQ
        kJCQiIiI/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAAQkAAf+TwAAmrfAFB3QAAMAAE0AAE0AAEwCs/AKHdABS+QMHdADr4wQHdADA
        ABPAABPAABMAyALkAot0AGKE7gCiNADS/AMHdADAABXwAAWrAABXALdxKKiACH6iGv4BzOOVAA9eWGbuzz8hODlD6AAwi8yCA365AB/4ol//aZ/4
        zwLMw5UAwAAuygABdFAAC2xpOp2mIQ1ppGw9QBhpOp2mCWVQZpohHOFpkEaUlWZpShlpkAYI1/MUxp1UXQF5IiG7AP9+85//fN9//2Uo/xKj/09c
        /0ib0aUR6IhlH8odMGxhPQD/f/9/4/9+3/93f/2f/3+hwuURYY4bMGyhPAD/2Q==
    """,
    "signed": """
        /0//UQApQAAAAAAKAAAADAAAAAAAAAAAAAAACgAAAAwAAAAAAAAAAAABjwEB/1AACAACAAAACv9SAAwAAgABAAUEBEAB/1wAEyCIkJCQkJCQkJCQ
        kJCQiIiI/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAAQgAAf+TwAAlrQEHdAAAwAATQAATQAATAKz8Aod0AFL5Awd0AOvjBAd0AMAA
        E8AAE8AAEwDIAuQCi3QAYoTuAKI0ANL8Awd0AMAAFfAABasAAFcAt3EoqIAIfqIa/gHM45UAD15YZu7PPyE4OUPoADCLzIIDfrkAH/iiX/9pn/jP
        AszDlQDAAC7KAAF0UAALbGk6naYhDWmkbD1AGGk6naYJZVBmmiEc4WmQRpSVZmlKGWmQBgjX8xTGnVRdAXkiIbsA/37zn/9833//ZSj/EqP/T1z/
        SJvRpRHoiGUfyh0wbGE9AP9//3/j/37f/3d//Z//f6HC5RFhjhswbKE8AP/Z
    """,
}


def first_slice(archive: Path, series: str = "cine_ed") -> Path:
    return next(archive.rglob(f"{series}/IM0001.dcm"))


def dcmtk(*command: str) -> Callable[[Path], None]:
    """Recode a file in place by a tool of DCMTK."""

    def recode(path: Path) -> None:
        if shutil.which(command[0]) is None:
            pytest.skip(f"no {command[0]} (DCMTK)")
        subprocess.run([*command, path, path], check=True)

    return recode


@pytest.mark.parametrize("series", ["cine_ed", "lge"])  # unsigned and signed
@pytest.mark.parametrize(
    ("recode", "transfer_syntax"),
    [
        (dcmtk("dcmconv", "+ti"), "1.2.840.10008.1.2"),
        (dcmtk("dcmconv", "+tb"), "1.2.840.10008.1.2.2"),
        (dcmtk("dcmconv", "+td"), "1.2.840.10008.1.2.1.99"),
        (dcmtk("dcmcjpeg", "+el"), "1.2.840.10008.1.2.4.57"),
        (dcmtk("dcmcjpeg", "+e1"), "1.2.840.10008.1.2.4.70"),
        (dcmtk("dcmcjpls"), "1.2.840.10008.1.2.4.80"),
        (dcmtk("dcmcrle"), "1.2.840.10008.1.2.5"),
    ],
)
def test_what_was_recoded_without_loss_is_what_it_was(
    archive: Path, case: Case, series: str, recode: Callable[[Path], None], transfer_syntax: str
) -> None:
    path = first_slice(archive, series)
    recode(path)
    assert str(pydicom.dcmread(path).file_meta.TransferSyntaxUID) == transfer_syntax
    (stored,) = decode(path, [0])
    volume = case.volume(series)
    assert volume is not None
    assert np.array_equal(stored, volume.image[0])


@pytest.mark.parametrize(
    ("option", "transfer_syntax"),
    [
        ("+eb", "1.2.840.10008.1.2.4.50"),  # 8 bits
        ("+ee", "1.2.840.10008.1.2.4.51"),  # 12 bits from here on
        ("+es", "1.2.840.10008.1.2.4.53"),
        ("+ep", "1.2.840.10008.1.2.4.55"),
    ],
)
def test_lossy_jpeg_of_8_and_12_bits_is_decoded_as_by_dcmtk(
    archive: Path, tmp_path: Path, option: str, transfer_syntax: str
) -> None:
    path = first_slice(archive)
    dcmtk("dcmcjpeg", option)(path)
    assert str(pydicom.dcmread(path).file_meta.TransferSyntaxUID) == transfer_syntax
    subprocess.run(["dcmdjpeg", path, tmp_path / "decoded.dcm"], check=True)
    (stored,) = decode(path, [0])
    assert np.array_equal(stored, pydicom.dcmread(tmp_path / "decoded.dcm").pixel_array)


def htj2k(tmp_path: Path, kind: str, transfer_syntax: str = "1.2.840.10008.1.2.4.201") -> Path:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = transfer_syntax
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns, dataset.NumberOfFrames = 12, 10, 2
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.PixelRepresentation = int(kind == "signed")
    stream = base64.b64decode(HTJ2K[kind])
    dataset.PixelData = encapsulate([stream, stream])
    dataset.save_as(tmp_path / "htj2k.dcm", enforce_file_format=True)
    return tmp_path / "htj2k.dcm"


@pytest.mark.parametrize("kind", ["unsigned", "signed"])
@pytest.mark.parametrize("number", [201, 202, 203])  # lossless, in resolution order, either
def test_high_throughput_jpeg_2000_without_loss_is_what_was_written(tmp_path: Path, kind: str, number: int) -> None:
    rows, columns = np.mgrid[:12, :10]
    written = (rows * 371 + columns**2 * 53) % 4096 - (2048 if kind == "signed" else 0)
    frames = decode(htj2k(tmp_path, kind, f"1.2.840.10008.1.2.4.{number}"), [1, 2])
    assert [frame.dtype for frame in frames] == [np.int16 if kind == "signed" else np.uint16] * 2
    assert all(np.array_equal(frame, written) for frame in frames)


@pytest.mark.parametrize(
    "name", ["CTImage.dcm_JPEGProcess2_4Trans*", "CTImage.dcm_JPEGProcess10_12Trans*", "693_J2KR.dcm", "CT2_JLSL", "htj2k"]
)
def test_a_compressed_stream_cut_short_is_refused_and_not_filled_up(shared_data: Path, tmp_path: Path, name: str) -> None:
    path = htj2k(tmp_path, "signed") if name == "htj2k" else next((shared_data / "dicom_files").rglob(name), None)
    if path is None:
        pytest.skip(f"no {name} below {shared_data / 'dicom_files'}")
    dataset = pydicom.dcmread(path)
    whole = next(generate_frames(dataset.PixelData, number_of_frames=int(dataset.get("NumberOfFrames", 1))))
    cut = whole[: 2 * (len(whole) // 3)]
    dataset.NumberOfFrames = 1
    dataset.PixelData = encapsulate([cut + bytes(len(cut) % 2)])
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(tmp_path / "cut.dcm")
    with pytest.raises(Undecodable, match=r"can't be decoded \(.*JPEG"):
        decode(tmp_path / "cut.dcm", [0])


@pytest.mark.parametrize("name", ["CT2_J2KI", "MR1_J2KI", "CT2_JLSN", "MR3_JLSN", "MR4_JLSN", "693_J2KR.dcm"])
def test_other_projects_files_are_decoded_as_by_simpleitk(shared_data: Path, name: str) -> None:
    path = next((shared_data / "dicom_files").rglob(name), None)
    if path is None:
        pytest.skip(f"no {name} below {shared_data / 'dicom_files'}")
    header = pydicom.dcmread(path, stop_before_pixels=True)
    (stored,) = decode(path, [0])
    rescaled = stored * float(header.get("RescaleSlope", 1)) + float(header.get("RescaleIntercept", 0))
    assert np.allclose(rescaled, sitk.GetArrayFromImage(sitk.ReadImage(str(path)))[0])


def test_bits_of_an_old_overlay_beside_the_stored_ones_are_cleared(archive: Path, case: Case) -> None:
    path = first_slice(archive)
    dataset = pydicom.dcmread(path)
    dataset.BitsStored, dataset.HighBit = 12, 11
    dataset.PixelData = (dataset.pixel_array | 0x8000).astype("<u2").tobytes()
    dataset.save_as(path)
    assert np.array_equal(decode(path, [0])[0], case.volumes[0].image[0])


def test_a_private_transfer_syntax_is_not_repeated() -> None:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = "1.2.276.0.7230010.3"
    assert transfer_syntax(dataset) == "a transfer syntax outside the standard"


def test_a_syntax_that_nobody_reads_is_refused_by_name(archive: Path) -> None:
    path = first_slice(archive)
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.102"
    dataset.PixelData = encapsulate([bytes(100)])
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(path)
    with pytest.raises(Undecodable, match=r"can't be decoded \(MPEG-4 AVC/H\.264 High Profile / Level 4\.1; "):
        decode(path, [0])
