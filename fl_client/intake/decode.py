"""Stored pixel values of DICOM slices, whatever transfer syntax a scanner or archive wrapped them in.

pydicom decodes what it has a plugin for; JPEG of 12 bits and High-Throughput JPEG 2000 go to GDCM frame by frame, which gives
the bits that DCMTK and OpenJPH give (the tests compare). What nobody here reads is refused by the syntax's name.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import gdcm
import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels.utils import pixel_array
from pydicom.uid import JPEGExtended12Bit, JPEGLSLossless, JPEGLSNearLossless

STRAIGHT_TO_GDCM = frozenset(
    {
        "1.2.840.10008.1.2.4.53",  # JPEG processes 6 and 8, retired
        "1.2.840.10008.1.2.4.55",  # JPEG processes 10 and 12, retired
        *("1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.202", "1.2.840.10008.1.2.4.203"),  # High-Throughput JPEG 2000
    }
)
"""Transfer syntaxes that GDCM reads and pydicom doesn't ask it for."""


class Undecodable(ValueError):
    """The pixel data can't be had; the text says why, to be read behind 'the pixel data', and repeats nothing of the file."""


def decode(path: Path, numbers: Sequence[int]) -> list[npt.NDArray[np.generic]]:
    """Stored values of the frames with these numbers (from 1; 0 for a file that is one slice), usually (rows, columns) each.

    Values are as stored, before any rescaling; bits outside BitsStored are cleared. The file is read once, and of a multi-frame
    file only the frames asked for are decoded. Raises `Undecodable`.
    """
    syntax = "an unknown transfer syntax"
    try:
        dataset = pydicom.dcmread(path)
        syntax = transfer_syntax(dataset)
        if "PixelData" not in dataset:
            raise Undecodable("is missing")
        uid = str(dataset.file_meta.get("TransferSyntaxUID", ""))
        if uid in STRAIGHT_TO_GDCM or (uid == JPEGExtended12Bit and int(dataset.BitsStored) > 8):
            return [_by_gdcm(dataset, max(number - 1, 0)) for number in numbers]
        if uid in (JPEGLSLossless, JPEGLSNearLossless) and not all(_has_an_end(dataset, max(n - 1, 0)) for n in numbers):
            raise Undecodable(f"can't be decoded ({syntax}; cut short)")  # GDCM would look for the end for many seconds
        if not any(numbers):
            return [dataset.pixel_array for _ in numbers]
        return [pixel_array(dataset, index=number - 1) for number in numbers]
    except Undecodable:
        raise
    except Exception as error:  # decoders raise whatever they like; their texts may repeat the header
        raise Undecodable(f"can't be decoded ({syntax}; {type(error).__name__})") from None


def transfer_syntax(dataset: Dataset) -> str:
    """How a file's pixels are encoded, by the standard's name; a private UID may carry a hospital's own root."""
    uid = pydicom.uid.UID(str(dataset.file_meta.get("TransferSyntaxUID", "")))
    return uid.name if uid.startswith("1.2.840.10008.") else "a transfer syntax outside the standard"


def _has_an_end(dataset: Dataset, index: int) -> bool:
    """Whether the stream of one frame has an end: the marker EOI, whose bytes no scan can hold (ISO/IEC 14495-1 A.1, C.1)."""
    return b"\xff\xd9" in get_frame(dataset.PixelData, index, number_of_frames=int(dataset.get("NumberOfFrames") or 1))


def _by_gdcm(dataset: Dataset, index: int) -> npt.NDArray[np.generic]:
    """One frame through GDCM's decoders. Raises `Undecodable` for several samples per pixel and for a stream cut short."""
    if int(dataset.get("SamplesPerPixel", 1)) != 1 or int(dataset.BitsAllocated) not in (8, 16):
        raise Undecodable(f"has {dataset.BitsAllocated} bits or more than one sample per pixel ({transfer_syntax(dataset)})")
    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(get_frame(dataset.PixelData, index, number_of_frames=int(dataset.get("NumberOfFrames") or 1)))
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((int(dataset.Columns), int(dataset.Rows), 1))
    image.SetDataElement(element)
    photometric = gdcm.PhotometricInterpretation.GetPIType(str(dataset.PhotometricInterpretation))
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(photometric))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(str(dataset.file_meta.TransferSyntaxUID))))
    bits, allocated, signed = int(dataset.BitsStored), int(dataset.BitsAllocated), int(dataset.PixelRepresentation)
    image.SetPixelFormat(gdcm.PixelFormat(1, allocated, bits, bits - 1, signed))
    buffer = image.GetBuffer()
    if buffer is None:
        raise Undecodable(f"can't be decoded ({transfer_syntax(dataset)}; cut short or damaged)")
    kind = np.dtype(f"{'i' if signed else 'u'}{allocated // 8}")
    # the binding gives bytes as a text
    return np.frombuffer(buffer.encode("utf-8", "surrogateescape"), kind).reshape(int(dataset.Rows), int(dataset.Columns))
