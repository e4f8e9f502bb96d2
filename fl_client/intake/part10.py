"""The outside of a DICOM file: preamble, file meta information, and the few identifiers that say where it belongs.

Nothing is converted or understood here: originals are kept as the bytes that they are. After PS3.10 7.1 (the file format) and
PS3.5 7.1 (data elements).
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

Bytes = bytes | bytearray | memoryview

DEFLATED, BIG_ENDIAN, IMPLICIT = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2"
INSTANCE, PATIENT, STUDY = 0x00080018, 0x00100020, 0x0020000D
ITEM, ITEM_END, ITEMS_END, UNDEFINED = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD, 0xFFFFFFFF
PIECE = 2**20  # bytes of a large file that are looked at together
PREAMBLE = 132  # bytes before the file meta information
HEAD = 64 * 1024  # bytes in which the identifiers nearly always stand
LONG = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")  # PS3.5 table 7.1-1
IMPLEMENTATION = "2.25.300107014186142215520799056950851349038"  # ours, made from a random UUID (PS3.5 B.2)
RELEASE = f"KONSIL_{version('konsil')}"[:16]


class NotPart10(ValueError):
    """The bytes are no DICOM file."""


@dataclass(frozen=True)
class Seen:
    """Identifiers as the bytes that they are, without padding; empty where there is none or where it can't be read."""

    instance: bytes = b""
    patient: bytes = b""
    study: bytes = b""


def look(dataset: Bytes, transfer_syntax: str) -> Seen:
    """The identifiers at the top level of an encoded dataset, which is read no further than to them. Never raises."""
    found: dict[int, bytes] = {}
    for size in (HEAD, len(dataset)):
        with contextlib.suppress(Exception):  # whatever strange bytes raise: what was found before them counts
            if transfer_syntax == DEFLATED:
                head = zlib.decompressobj(-zlib.MAX_WBITS).decompress(dataset, 16 * size)
            else:
                head = bytes(dataset[:size])
            _identify(head, found, implicit=transfer_syntax == IMPLICIT, little=transfer_syntax != BIG_ENDIAN)
        if STUDY in found or size >= len(dataset):
            break
    return Seen(found.get(INSTANCE, b""), found.get(PATIENT, b""), found.get(STUDY, b""))


def _identify(head: bytes, found: dict[int, bytes], *, implicit: bool, little: bool) -> None:
    """Note the wanted top-level elements up to the Study Instance UID. Raises many kinds of exception."""
    at, order = 0, "<" if little else ">"
    while at < len(head):
        tag, vr, start, length = _element(head, at, order=order, implicit=implicit)
        if tag > STUDY:
            break
        if length == UNDEFINED:
            at = _after_items(head, start, order=order, implicit=implicit or vr == b"UN")
            continue
        at = start + length
        if tag in (INSTANCE, PATIENT, STUDY) and at <= len(head):
            found[tag] = head[start:at].strip(b" \0")


def _element(data: bytes, at: int, *, order: str, implicit: bool) -> tuple[int, bytes, int, int]:
    """Tag, value representation, where the value begins, and how long it is (PS3.5 7.1). Raises `struct.error`."""
    group, number, vr, short = struct.unpack_from(f"{order}HH2sH", data, at)
    tag = group << 16 | number
    if implicit or tag in (ITEM, ITEM_END, ITEMS_END):
        return tag, b"", at + 8, struct.unpack_from(f"{order}I", data, at + 4)[0]
    if vr in LONG:
        return tag, vr, at + 12, struct.unpack_from(f"{order}I", data, at + 8)[0]
    return tag, vr, at + 8, short


def _after_items(data: bytes, at: int, *, order: str, implicit: bool) -> int:
    """Where a sequence of undefined length that begins at `at` ends (PS3.5 7.5)."""
    while True:
        tag, _, at, length = _element(data, at, order=order, implicit=implicit)
        if tag == ITEMS_END:
            return at
        if length != UNDEFINED:
            at += length
            continue
        while tag != ITEM_END:
            tag, vr, at, length = _element(data, at, order=order, implicit=implicit)
            if length == UNDEFINED:
                at = _after_items(data, at, order=order, implicit=implicit or vr == b"UN")
            else:
                at += length


def header(*, sop_class: str, instance: str, transfer_syntax: str, sender: str) -> bytes:
    """The preamble and file meta information of a dataset that came over the network (PS3.10 table 7.1-1)."""
    meta = b"".join(
        (
            struct.pack("<HH2sHI2s", 2, 0x0001, b"OB", 0, 2, b"\0\1"),
            _short(0x0002, b"UI", sop_class),
            _short(0x0003, b"UI", instance),
            _short(0x0010, b"UI", transfer_syntax),
            _short(0x0012, b"UI", IMPLEMENTATION),
            _short(0x0013, b"SH", RELEASE),
            _short(0x0016, b"AE", sender),
        )
    )
    return bytes(128) + b"DICM" + struct.pack("<HH2sHI", 2, 0, b"UL", 4, len(meta)) + meta


def _short(element: int, vr: bytes, text: str) -> bytes:
    value = text.encode("ascii", "replace")
    value += (b"\0" if vr == b"UI" else b" ") * (len(value) % 2)
    return struct.pack("<HH2sH", 2, element, vr, len(value)) + value


@contextmanager
def mapped(path: Path) -> Iterator[memoryview]:
    """A file's bytes, of which no copy is made; slices must not outlive them. Raises `NotPart10` if it is empty, `OSError`."""
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            raise NotPart10("no DICOM file: it is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole, memoryview(whole) as view:
            yield view


def ends_with(path: Path, end: Bytes) -> bool:
    """Whether the file's last bytes are these; read piece by piece, since files can be large. Raises `OSError`."""
    with open(path, "rb") as file, memoryview(end) as view:
        if os.fstat(file.fileno()).st_size < len(view):
            return False
        file.seek(-len(view), os.SEEK_END)
        return all(file.read(PIECE) == view[at : at + PIECE] for at in range(0, len(view), PIECE))


def holds(path: Path, parts: Sequence[Bytes]) -> bool:
    """Whether the file is these bytes, one after the other, and no more. Raises `OSError`."""
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size != sum(len(part) for part in parts):
            return False
        for part in parts:
            with memoryview(part) as view:
                for at in range(0, len(view), PIECE):
                    piece = view[at : at + PIECE]
                    if file.read(len(piece)) != piece:
                        return False
        return True


def split(file: Bytes) -> tuple[int, str]:
    """Where the dataset of a DICOM file begins, and its transfer syntax (empty: not said). Raises `NotPart10`."""
    if bytes(file[128:132]) != b"DICM":
        raise NotPart10("no DICOM file: DICM does not stand at byte 128")
    at, syntax = PREAMBLE, ""
    while at + 8 <= len(file) and bytes(file[at : at + 2]) == b"\2\0":
        element, vr, length = struct.unpack_from("<H2sH", file, at + 2)
        start = at + 8
        if vr in LONG:
            if at + 12 > len(file):
                break
            (length,) = struct.unpack_from("<I", file, at + 8)
            start = at + 12
        if start + length > len(file):
            raise NotPart10("a DICOM file whose file meta information is cut short")
        if element == 0x0010:
            syntax = bytes(file[start : start + length]).rstrip(b" \0").decode("ascii", "replace")
        at = start + length
    return at, syntax
