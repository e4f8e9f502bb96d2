from __future__ import annotations

import shutil
import struct
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_bytes import CT, MR, element, joined, part10, skeleton
from dicom_peers import image
from pydicom.dataset import Dataset

from fl_client.intake.clean import Cleaned, Quarantined, deidentify_file
from fl_client.intake.codestream import without_comments
from fl_client.intake.deidentify import Deidentifier, discreet

DEIDENTIFY = Deidentifier(b"sixteen bytes at least")
ULTRASOUND, CAPTURE, PDF = "1.2.840.10008.5.1.4.1.1.6.1", "1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.104.1"
REPORT, STATE, RAW = "1.2.840.10008.5.1.4.1.1.88.67", "1.2.840.10008.5.1.4.1.1.11.1", "1.2.840.10008.5.1.4.1.1.66"


def outcome(
    folder: Path, *more: bytes, sop_class: str = MR, syntax: str = "1.2.840.10008.1.2.1", **options: bool
) -> Cleaned | Quarantined:
    elements = skeleton(sop_class)
    for part in more:
        elements[struct.unpack("<HH", part[:4])[0] << 16 | struct.unpack("<HH", part[:4])[1]] = part
    source = folder / "original"
    source.write_bytes(part10(joined(elements), sop_class, syntax=syntax))
    return deidentify_file(source, folder / "clean", deidentify=DEIDENTIFY, **options)


def reason(result: Cleaned | Quarantined) -> str:
    assert isinstance(result, Quarantined), result
    assert result.pseudonym == DEIDENTIFY.pseudonym("4711081500")
    return result.reason


def pixels(result: Cleaned | Quarantined) -> list[int]:
    assert isinstance(result, Cleaned), result
    return list(struct.unpack("<24H", pydicom.dcmread(result.path).PixelData))


@pytest.mark.parametrize(
    ("sop_class", "says"),
    [
        (CAPTURE, "secondary capture"),
        (ULTRASOUND, "ultrasound"),
        (PDF, "encapsulated document"),
        (REPORT, "report"),
        (STATE, "presentation state"),
        (RAW, "raw data"),
        ("1.2.840.10008.5.1.4.1.1.1", "Computed Radiography Image Storage"),
        ("1.3.6.1.4.1.99999.1", "an object of no known class"),
    ],
)
def test_kinds_that_carry_text_are_quarantined(sop_class: str, says: str, tmp_path: Path) -> None:
    assert says in reason(outcome(tmp_path, sop_class=sop_class))


@pytest.mark.parametrize(
    "part",
    [
        element(0x00280301, "CS", b"YES"),
        element(0x00080008, "CS", b"DERIVED\\SECONDARY\\SCREEN SAVE"),
        element(0x00080008, "CS", b"DERIVED\\SECONDARY\\OTHER\\CT_SOM5 PROT"),
        element(0x0008103E, "LO", b"Dose Report"),
        element(0x0008103E, "LO", b"Patient Protocol"),
        element(0x00080064, "CS", b"WSD"),
        element(0x00280002, "US", struct.pack("<H", 3)),
    ],
)
def test_pictures_of_screens_are_quarantined(part: bytes, tmp_path: Path) -> None:
    assert "names may stand in the pixels" in reason(outcome(tmp_path, part, sop_class=CT))


@pytest.mark.parametrize("text", [b"Neuro^Head", b"MPRAGE brain", b"Gehirnschaedel Kopf"])
def test_images_of_the_head_are_quarantined_unless_the_site_accepts_faces(text: bytes, tmp_path: Path) -> None:
    part = element(0x00081030, "LO", text)
    assert "a face can be made from it" in reason(outcome(tmp_path, part))
    result = outcome(tmp_path, part, accept_faces=True)
    assert pixels(result) == list(range(24))
    codes = pydicom.dcmread(result.path).DeidentificationMethodCodeSequence  # type: ignore[union-attr]
    assert {"113101", "113102"}.isdisjoint(code.CodeValue for code in codes)


def refused_as_head(tmp_path: Path, **elements: object) -> bool:
    source = tmp_path / "head"
    image(1, **elements).save_as(source, enforce_file_format=True)
    became = deidentify_file(source, tmp_path / "clean", deidentify=DEIDENTIFY)
    return isinstance(became, Quarantined) and "a face can be made from it" in became.reason


@pytest.mark.parametrize("part", ["HEAD", "HEADNECK", "CIRCLEOFWILLIS", "WHOLEBODY", "ORBIT", "SCALP"])
def test_body_parts_that_show_a_face_are_of_the_head(part: str, tmp_path: Path) -> None:
    assert refused_as_head(tmp_path, BodyPartExamined=part)


DESCRIPTIONS = [
    "Schädel nativ",
    "SCHADEL",
    "cCT nativ",
    "CCT",
    "MRT Hirn",
    "Gehirn",
    "crâne",
    "NeckHead",
    "Hals Kopf",
    "t1_mprage_sag",
]


@pytest.mark.parametrize("text", [*DESCRIPTIONS, "tête", "Cráneo", "MP2RAGE", "Brain1"])
def test_descriptions_of_the_head_in_other_languages_are_understood(text: str, tmp_path: Path) -> None:
    assert refused_as_head(tmp_path, SpecificCharacterSet="ISO_IR 192", SeriesDescription=text)


@pytest.mark.parametrize("text", ["CCT cardiac", "Herz CCT", "RequestedHeart", "3ch cine", "femoral artery", "Hüfte"])
def test_a_cardiac_ct_and_other_parts_are_not_of_the_head(text: str, tmp_path: Path) -> None:
    assert not refused_as_head(tmp_path, SpecificCharacterSet="ISO_IR 192", SeriesDescription=text)


def region(value: str, meaning: str = "a part of the body", scheme: str = "SCT") -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, scheme, meaning
    return code


def test_codes_and_marks_say_head_too(tmp_path: Path) -> None:
    anatomy, frame = Dataset(), Dataset()
    anatomy.AnatomicRegionSequence, frame.FrameAnatomySequence = [region("69536005")], [anatomy]
    assert refused_as_head(tmp_path, AnatomicRegionSequence=[region("12738006")])
    assert refused_as_head(tmp_path, AnatomicRegionSequence=[region("1", "Head and Neck", "99CLINIC")])
    assert refused_as_head(tmp_path, SharedFunctionalGroupsSequence=[frame])
    assert refused_as_head(tmp_path, PerFrameFunctionalGroupsSequence=[Dataset(), frame])
    assert refused_as_head(tmp_path, RecognizableVisualFeatures="YES")
    assert not refused_as_head(tmp_path, AnatomicRegionSequence=[region("80891009", "Heart")], RecognizableVisualFeatures="NO")


@pytest.mark.parametrize("modality", ["OT", "", "SEG"])
def test_a_modality_of_another_name_opens_no_door(modality: str, tmp_path: Path) -> None:
    assert refused_as_head(tmp_path, Modality=modality, BodyPartExamined="HEAD")
    parts = (element(0x00080060, "CS", modality.encode()), element(0x00080008, "CS", b"DERIVED\\SECONDARY\\SCREEN SAVE"))
    assert "names may stand in the pixels" in reason(outcome(tmp_path, *parts))


@pytest.mark.parametrize("text", [b"Cardiac^overhead stress", b"cine sax", b"Protocol 3 heart"])
def test_images_of_the_heart_are_not(text: bytes, tmp_path: Path) -> None:
    assert pixels(outcome(tmp_path, element(0x0008103E, "LO", text))) == list(range(24))


def test_pixels_retained_where_nothing_hides(tmp_path: Path) -> None:
    assert pixels(outcome(tmp_path)) == list(range(24))


def test_an_overlay_in_unused_bits_is_masked_off(tmp_path: Path) -> None:
    values = [number | (0x8000 if number % 3 else 0) for number in range(24)]  # a plane in bit 15 of 12 stored bits
    parts = (
        element(0x7FE00010, "OW", struct.pack("<24H", *values)),
        element(0x60000102, "US", struct.pack("<H", 15)),
        element(0x60000100, "US", struct.pack("<H", 16)),
    )
    result = outcome(tmp_path, *parts)
    assert pixels(result) == list(range(24))
    assert not [tag for tag in pydicom.dcmread(result.path).keys() if tag.group == 0x6000]  # type: ignore[union-attr]  # noqa: SIM118


def test_the_sign_of_twelve_bits_is_no_overlay(tmp_path: Path) -> None:
    values = [-5, 0, 7, -2048] * 6
    parts = (element(0x7FE00010, "OW", struct.pack("<24h", *values)), element(0x00280103, "US", struct.pack("<H", 1)))
    assert [value - 65536 if value > 32767 else value for value in pixels(outcome(tmp_path, *parts))] == values


def test_a_plane_in_the_sign_bits_is_masked_off_where_nobody_tells_of_an_overlay(tmp_path: Path) -> None:
    hidden = [number | (0x8000 if number % 2 else 0) for number in range(24)]
    parts = (element(0x7FE00010, "OW", struct.pack("<24H", *hidden)), element(0x00280103, "US", struct.pack("<H", 1)))
    assert pixels(outcome(tmp_path, *parts)) == list(range(24))


def test_signed_pixels_without_their_sign_in_the_unused_bits_and_the_padding_value_stay(tmp_path: Path) -> None:
    padding = element(0x00280120, "SS", struct.pack("<h", -32768))
    values = [5, 0x0FFB, 7, 0x0800] * 6  # 12 bits; 0x0FFB is -5
    parts = (element(0x7FE00010, "OW", struct.pack("<24H", *values)), element(0x00280103, "US", struct.pack("<H", 1)))
    assert pixels(outcome(tmp_path, *parts)) == values
    shutil.rmtree(tmp_path / "clean")
    values = [-5, -32768, 7, -2048] * 6
    parts = (element(0x7FE00010, "OW", struct.pack("<24h", *values)), parts[1], padding)
    assert [value - 65536 if value > 32767 else value for value in pixels(outcome(tmp_path, *parts))] == values


def test_pixels_in_an_item_of_a_sequence_do_not_pass(tmp_path: Path) -> None:
    nested = Dataset()
    nested.ReferencedSOPClassUID, nested.ReferencedSOPInstanceUID = MR, "1.2.3"
    nested.add_new(0x7FE00010, "OW", b"ABENDROTH^ANNELORE born 1931 ")
    image(1, ReferencedImageSequence=[nested]).save_as(tmp_path / "original", enforce_file_format=True)
    result = deidentify_file(tmp_path / "original", tmp_path / "clean", deidentify=DEIDENTIFY)
    assert isinstance(result, Cleaned)
    assert b"ABENDROTH" not in result.path.read_bytes()
    assert "PixelData" in pydicom.dcmread(result.path)


SECRET = b"ABENDROTH 4711081500"
JPEG_COMMENT = b"\xff\xfe" + struct.pack(">H", 22) + SECRET


def fragments(*parts: bytes, offsets: bytes = b"") -> bytes:
    items = [offsets, *(part + b"\0" * (len(part) % 2) for part in parts)]
    return b"".join(b"\xfe\xff\x00\xe0" + struct.pack("<I", len(item)) + item for item in items)


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content) + 8) + kind + content


FRAME, SCAN = b"\xff\xc0\0\x0b\x08\0\x01\0\x01\x01\x01\x11\0", b"\xff\xda\0\x08\x01\x01\0\0\x3f\0"
CODED = b"\x12\xff\x00\x34\xff\xd0\x56"  # with a stuffed byte and a restart
SIZE_2000 = b"\xff\x4f\xff\x51\0\x06\0\0\0\0"
END = b"\xff\xd9"
COMMENT_2000 = b"\xff\x64" + struct.pack(">HH", 24, 1) + SECRET
TILE = (
    b"\xff\x90\0\x0a\0\0"
    + struct.pack(">I", 14 + len(COMMENT_2000) + 4)
    + b"\0\x01"
    + COMMENT_2000
    + b"\xff\x93"
    + b"\x01\x02\x03\x04"
)


@pytest.mark.parametrize(
    "stream",
    [
        b"\xff\xd8\xff" + JPEG_COMMENT + FRAME + SCAN + CODED + b"\xff\xd9",  # a fill byte before the marker
        b"\xff\xd8" + FRAME + SCAN + CODED + JPEG_COMMENT + SCAN + CODED + b"\xff\xd9",  # between two scans
        b"\xff\xd8" + FRAME + SCAN + CODED + b"\xff\xd9" + SECRET + b"\xff\xd9",  # behind the end, and an end again
        b"\xff\xd8" + SECRET + FRAME + SCAN + CODED + b"\xff\xd9",  # between two segments
        b"\xff\xd8\xff\xee\0\x22Adobe\0\x64\0\0\0\0\0" + SECRET + FRAME + SCAN + CODED + b"\xff\xd9",
        SIZE_2000 + TILE + b"\xff\xd9",  # in the header of a tile
        SIZE_2000 + TILE + b"\xff\xd9" + SECRET + b"\xff\xd9",
        box(b"jP  ", b"\r\n\x87\n") + box(b"xml ", SECRET) + box(b"jp2c", SIZE_2000 + COMMENT_2000 + b"\xff\xd9"),
        box(b"jP  ", b"\r\n\x87\n") + box(b"jp2h", box(b"ihdr", b"\0" * 14) + box(b"lbl ", SECRET)) + box(b"jp2c", SIZE_2000),
    ],
)
def test_text_in_odd_places_of_a_stream_is_zeroed_and_nothing_else(stream: bytes) -> None:
    expected = stream.replace(SECRET, bytes(20)).replace(END + bytes(20) + END, END + bytes(22))
    assert without_comments(fragments(stream)) == fragments(expected)
    half = len(stream) // 4 * 2  # one picture in two fragments
    assert without_comments(fragments(stream[:half], stream[half:])) == fragments(expected[:half], expected[half:])


def test_an_offset_table_that_holds_text_is_emptied_and_a_true_one_stays() -> None:
    one, other = b"\xff\xd8" + FRAME + SCAN + CODED + b"\xff\xd9", b"\xff\xd8" + FRAME + SCAN + b"\x11\xff\xd9"
    true = fragments(one, other, offsets=struct.pack("<2I", 0, 8 + len(one) + len(one) % 2))
    assert without_comments(true) == true
    assert without_comments(fragments(one, other, offsets=SECRET)) == fragments(one, other)
    assert without_comments(true + SECRET) == true


def test_pixels_that_do_not_start_at_bit_0_are_quarantined(tmp_path: Path) -> None:
    assert "bit 0" in reason(outcome(tmp_path, element(0x00280102, "US", struct.pack("<H", 15))))


def with_comment(stream: bytes) -> bytes:
    if stream.startswith(b"\xff\xd8"):
        return stream[:2] + b"\xff\xfe" + struct.pack(">H", 22) + b"ABENDROTH 4711081500" + stream[2:]
    size = 4 + struct.unpack(">H", stream[4:6])[0]  # after SIZ, which comes first
    return stream[:size] + b"\xff\x64" + struct.pack(">HH", 24, 1) + b"ABENDROTH 4711081500" + stream[size:]


@pytest.mark.parametrize("name", ["*CT2_J2KR", "MR1_J2KI", "CT2_JLSL", "CTImage.dcm_JPEGProcess14Transfer*"])
def test_text_removed_from_compressed_streams_and_pixels_retained(name: str, shared_data: Path, tmp_path: Path) -> None:
    source = next((shared_data / "dicom_files").rglob(name))
    with discreet():
        dataset = pydicom.dcmread(source)
        before = dataset.pixel_array.copy()
        stream = next(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=1))
        dataset.PixelData = pydicom.encaps.encapsulate([with_comment(stream) + b"ABENDROTH "])
        dataset.save_as(tmp_path / "original")
        result = deidentify_file(tmp_path / "original", tmp_path / "clean", deidentify=DEIDENTIFY)
        assert isinstance(result, Cleaned)
        after = pydicom.dcmread(result.path)
    assert b"ABENDROTH" in (tmp_path / "original").read_bytes()
    assert b"ABENDROTH" not in result.path.read_bytes()
    assert np.array_equal(after.pixel_array, before)
    assert after.file_meta.TransferSyntaxUID == dataset.file_meta.TransferSyntaxUID


def test_a_stream_without_comments_stays_to_the_bit(shared_data: Path) -> None:
    for name in ("CTImage.dcm_JPEGProcess14Transfer*", "CT2_JLSL"):
        data = pydicom.dcmread(next((shared_data / "dicom_files").rglob(name))).PixelData
        assert without_comments(data) == data


def test_compressed_pixels_without_anything_to_remove_are_not_copied() -> None:
    plain = b"\xfe\xff\x00\xe0\0\0\0\0" + b"\xfe\xff\x00\xe0" + struct.pack("<I", 4) + b"\x01\x02\x03\x04"
    assert without_comments(plain) is plain
    assert without_comments(plain + b"behind the end") == plain


def test_a_comment_is_found_however_short_the_first_fragments_are() -> None:
    stream = b"\xff\xd8" + b"\xff\xfe\x00\x06Anna" + b"\xff\xd9"
    pieces = [stream[:1], stream[1:4], stream[4:]]
    item = [b"\xfe\xff\x00\xe0" + struct.pack("<I", len(piece)) + piece for piece in pieces]
    cleaned = without_comments(b"\xfe\xff\x00\xe0\0\0\0\0" + b"".join(item))
    assert len(cleaned) == 8 + sum(map(len, item))
    assert b"Anna" not in cleaned
