"""Comments in compressed pixels: JPEG and JPEG 2000 streams have room for text, where some devices write whose picture it is.

The text is overwritten by zeros in its place, so that lengths, offsets and every decoded pixel stay what they are. Markers
after ISO/IEC 10918-1 B.1 (JPEG, also JPEG-LS) and 15444-1 A.2 (JPEG 2000); fragments after DICOM PS3.5 A.4.
"""

from __future__ import annotations

JPEG, JPEG_2000 = b"\xff\xd8", b"\xff\x4f"
COMMENT, COMMENT_2000, SCAN, TILE, END = 0xFE, 0x64, 0xDA, 0x90, b"\xff\xd9"
PLAIN = {0xE0: b"JFIF\0", 0xE8: b"mrfx", 0xEE: b"Adobe"}
"""Application segments that say how to decode; others are a vendor's own."""


def without_comments(encapsulated: bytes) -> bytes:
    """The encapsulated pixel data with comments, application texts and what stands behind each picture zeroed."""
    data = bytearray(encapsulated)
    at = 0
    while data[at : at + 4] == b"\xfe\xff\x00\xe0":
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        start, end = at + 8, min(at + 8 + length, len(data))
        head = bytes(data[start : start + 2])
        if head in (JPEG, JPEG_2000):
            _blank_header(data, start, end, head == JPEG_2000)
        if head in (JPEG, JPEG_2000) and (last := data.rfind(END, start, end)) >= 0:
            data[last + 2 : end] = bytes(end - last - 2)
        at = end
    return bytes(data)


def _blank_header(data: bytearray, start: int, end: int, is_2000: bool) -> None:
    at = start + 2
    while at + 4 <= end and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        stop = min(at + 2 + length, end)
        if marker == (TILE if is_2000 else SCAN) or length < 2:
            return
        if is_2000 and marker == COMMENT_2000:
            data[at + 6 : stop] = bytes(max(stop - at - 6, 0))  # two bytes say whether it is text
        elif not is_2000 and (marker == COMMENT or 0xE0 <= marker <= 0xEF):
            plain = PLAIN.get(marker)
            if plain is None or not data.startswith(plain, at + 4):
                data[at + 4 : stop] = bytes(max(stop - at - 4, 0))
            elif marker == 0xE0:
                data[at + 18 : stop] = bytes(max(stop - at - 18, 0))  # a thumbnail of the picture
        at = stop
