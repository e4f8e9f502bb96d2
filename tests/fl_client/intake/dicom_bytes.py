"""DICOM files made byte by byte (PS3.5 7.1, PS3.10 7.1), so that a test can write what no library would: text in numbers, lies
about the value representation, things behind the end. Explicit VR, little endian."""

from __future__ import annotations

import struct

LONG = ("OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV")
ENHANCED_MR, MR, CT, SEG, RTSTRUCT = (f"1.2.840.10008.5.1.4.1.1.{tail}" for tail in ("4.1", "4", "2", "66.4", "481.3"))


def element(tag: int, vr: str, value: bytes) -> bytes:
    value += b"\0" * (len(value) % 2) if vr in ("UI", "OB", "UN") else b" " * (len(value) % 2)
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + vr.encode()
    if vr in LONG:
        return head + b"\0\0" + struct.pack("<I", len(value)) + value
    return head + struct.pack("<H", len(value)) + value


def sequence(tag: int, items: list[bytes], vr: str = "SQ") -> bytes:
    return element(tag, vr, b"".join(struct.pack("<HHI", 0xFFFE, 0xE000, len(item)) + item for item in items))


def joined(elements: dict[int, bytes]) -> bytes:
    return b"".join(elements[tag] for tag in sorted(elements))


def part10(
    dataset: bytes, sop_class: str, *, meta: bytes = b"", preamble: bytes = b"\0" * 128, syntax: str = "1.2.840.10008.1.2.1"
) -> bytes:
    group = element(0x00020001, "OB", b"\0\1") + element(0x00020002, "UI", sop_class.encode())
    group += element(0x00020003, "UI", b"1.2.276.0.7") + element(0x00020010, "UI", syntax.encode())
    group += element(0x00020012, "UI", b"1.2.276.0.8") + meta
    return preamble + b"DICM" + element(0x00020000, "UL", struct.pack("<I", len(group))) + group + dataset


def skeleton(sop_class: str) -> dict[int, bytes]:
    """The few elements that an object needs to be told apart from others; 4 x 6 pixels."""
    modality = {SEG: b"SEG", RTSTRUCT: b"RTSTRUCT", CT: b"CT"}.get(sop_class, b"MR")
    elements = {
        0x00080016: element(0x00080016, "UI", sop_class.encode()),
        0x00080018: element(0x00080018, "UI", b"1.2.276.0.7"),
        0x00080060: element(0x00080060, "CS", modality),
        0x00100020: element(0x00100020, "LO", b"4711081500"),
        0x0020000D: element(0x0020000D, "UI", b"1.2.276.0.7.1"),
        0x0020000E: element(0x0020000E, "UI", b"1.2.276.0.7.2"),
    }
    if sop_class != RTSTRUCT:
        numbers = {0x00280002: 1, 0x00280010: 4, 0x00280011: 6, 0x00280100: 16, 0x00280101: 12, 0x00280102: 11, 0x00280103: 0}
        elements |= {tag: element(tag, "US", struct.pack("<H", number)) for tag, number in numbers.items()}
        elements[0x00280008] = element(0x00280008, "IS", b"1")
        elements[0x7FE00010] = element(0x7FE00010, "OW", struct.pack("<24H", *range(24)))
    return elements
