"""Comments in compressed pixels: JPEG and JPEG 2000 streams have room for text, where some devices write whose picture it is.

The text is overwritten by zeros in its place, so that lengths, offsets and every decoded pixel stay what they are. Markers
after ISO/IEC 10918-1 B.1 (JPEG), 14495-1 (JPEG-LS), 15444-1 A.2 and I (JPEG 2000 and its boxes); fragments after PS3.5 A.4.
"""

from __future__ import annotations

JPEG, JPEG_2000, JP2 = b"\xff\xd8", b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  "
SCAN, END = 0xDA, 0xD9
PLAIN = {0xE0: (b"JFIF\0", 14), 0xE8: (b"mrfx", 5), 0xEE: (b"Adobe", 12)}
"""Application segments that say how to decode, and how many of their bytes do; others are a vendor's own."""

DECODES = frozenset((*range(0xC0, 0xD0), *range(0xDA, 0xE0), 0xF7, 0xF8))
"""Segments of JPEG and JPEG-LS without which nothing can be decoded: frames, tables, scans."""

COMMENT_2000, TILE, DATA, END_2000 = 0x64, 0x90, 0x93, 0xD9
BOXES = frozenset((b"jP  ", b"ftyp", b"ihdr", b"bpcc", b"colr", b"pclr", b"cmap", b"cdef", b"jp2h"))
"""Boxes that say how to decode; others hold XML or a vendor's own."""


def without_comments(encapsulated: bytes) -> bytes:
    """The encapsulated pixel data with comments, application texts and what stands behind each picture zeroed.

    An offset table that doesn't point to fragments is emptied, and what follows the last fragment goes.
    """
    data = bytearray(encapsulated)
    fragments = []  # (start, end) of each fragment's bytes
    at = 0
    while data[at : at + 4] == b"\xfe\xff\x00\xe0":
        start = at + 8
        at = min(start + int.from_bytes(data[at + 4 : start], "little"), len(data))
        fragments.append((start, at))
    del data[at:]
    pictures: list[list[tuple[int, int]]] = []
    for start, end in fragments[1:]:  # the first is the offset table
        if not pictures or data.startswith((JPEG, JPEG_2000, JP2), start):
            pictures.append([])
        pictures[-1].append((start, end))
    for pieces in pictures:
        if not _head(data, pieces).startswith((JPEG, JPEG_2000, JP2)):  # RLE, of which all frames are one picture here
            continue
        stream = bytearray().join(data[start:end] for start, end in pieces)
        _blank(stream)
        at = 0
        for start, end in pieces:
            data[start:end] = stream[at : at + end - start]
            at += end - start
    result = _with_true_offsets(data, fragments) if fragments else data
    return encapsulated if result == encapsulated else bytes(result)  # an image can be large: no copy for nothing


def _head(data: bytearray, pieces: list[tuple[int, int]]) -> bytes:
    """The first bytes of a picture, by which its kind is known; a fragment can be shorter."""
    head = b""
    for start, end in pieces:
        head += data[start : min(end, start + len(JP2) - len(head))]
        if len(head) >= len(JP2):
            break
    return head


def _with_true_offsets(data: bytearray, fragments: list[tuple[int, int]]) -> bytearray:
    start, end = fragments[0]
    offsets = [int.from_bytes(data[at : at + 4], "little") for at in range(start, end, 4)]
    known = {fragment - 8 - end for fragment, _ in fragments[1:]}
    if (end - start) % 4 == 0 and offsets == sorted(set(offsets)) and known.issuperset(offsets):
        return data
    return data[: start - 4] + bytes(4) + data[end:]


def _blank(stream: bytearray) -> None:
    """One picture's bytes. What isn't JPEG or JPEG 2000 stays as it is."""
    if stream.startswith(JPEG):
        _blank_jpeg(stream)
    elif stream.startswith(JPEG_2000):
        _blank_2000(stream, 0, len(stream))
    elif stream.startswith(JP2):
        _blank_boxes(stream, 0, len(stream))


def _blank_jpeg(data: bytearray) -> None:
    at, in_scan = 2, False
    while at < len(data):
        found = data.find(b"\xff", at)
        next_one = len(data) if found < 0 else found
        if not in_scan:  # decoders skip what stands between two segments
            data[at:next_one] = bytes(next_one - at)
        if next_one + 1 >= len(data):
            return
        at, marker = next_one, data[next_one + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
        elif (in_scan and marker < 0x80) or 0xD0 <= marker <= 0xD8:  # stuffed, or a restart
            at += 2
        elif marker == END:
            data[at + 2 :] = bytes(len(data) - at - 2)
            return
        else:
            stop = min(at + 2 + max(int.from_bytes(data[at + 2 : at + 4], "big"), 2), len(data))
            if marker not in DECODES:
                signature, size = PLAIN.get(marker, (b"", 0))
                kept = min(at + 4 + (size if data.startswith(signature, at + 4) else 0), stop)
                data[kept:stop] = bytes(stop - kept)
            in_scan = marker == SCAN
            at = stop


def _blank_2000(data: bytearray, start: int, end: int) -> None:
    at, tile_end = start + 2, 0
    while at + 2 <= end and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        stop = min(at + 2 + length, end)
        if marker == END_2000:
            data[at + 2 : end] = bytes(end - at - 2)
            return
        if marker == TILE:
            size = int.from_bytes(data[at + 6 : at + 10], "big")
            tile_end = at + size if size else 0  # 0: all that is left
        if marker == DATA:
            last = data.rfind(b"\xff\xd9", at, end)
            at = tile_end if at < tile_end <= end else last if last >= 0 else end
            continue
        if length < 2:
            break
        if marker == COMMENT_2000:
            data[at + 6 : stop] = bytes(max(stop - at - 6, 0))  # two bytes say whether it is text
        at = stop
    last = data.rfind(b"\xff\xd9", at, end)  # no marker where one should be: what stands behind the end goes all the same
    if last >= 0:
        data[last + 2 : end] = bytes(end - last - 2)


def _blank_boxes(data: bytearray, at: int, end: int) -> None:
    while at + 8 <= end:
        size, kind, head = int.from_bytes(data[at : at + 4], "big"), bytes(data[at + 4 : at + 8]), 8
        if size == 1:
            size, head = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        stop = end if size == 0 else min(at + max(size, head), end)
        if kind == b"jp2c":
            _blank_2000(data, at + head, stop)
        elif kind == b"jp2h":
            _blank_boxes(data, at + head, stop)
        elif kind not in BOXES:
            data[at + head : stop] = bytes(max(stop - at - head, 0))
        at = stop
    data[at:end] = bytes(max(end - at, 0))
