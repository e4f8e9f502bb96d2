"""One DICOM file out of an answer of WADO-RS: the only part of a multipart/related message (RFC 2046 5.1, PS3.18 8.6.1).

What is not exactly one whole file is refused, so that nothing half-sent is taken for an image.
"""

from __future__ import annotations

from email.message import Message

DICOM = "application/dicom"
LONGEST_PREAMBLE, LONGEST_HEAD = 1024, 8192
"""Bytes before the first delimiter, and of a part's own headers."""


class BadAnswer(ValueError):
    """What the archive answered is not what was asked for; the text says how, and repeats nothing of it."""


def only_file(content_type: str, body: bytes) -> memoryview:
    """The file's bytes, of which no copy is made. Raises `BadAnswer`.

    >>> head = b"--edge\\r\\nContent-Type: application/dicom\\r\\n\\r\\n"
    >>> bytes(only_file("multipart/related; boundary=edge", head + b"the file" + b"\\r\\n--edge--"))
    b'the file'
    """
    kind = Message()
    kind["content-type"] = content_type
    if kind.get_content_type() == DICOM:  # archives that know that one instance is one file
        return memoryview(body)
    if kind.get_content_type() != "multipart/related":
        raise BadAnswer("it is no multipart/related message of DICOM files")
    boundary = str(kind.get_boundary() or "")
    if not (0 < len(boundary) <= 70 and boundary.isascii()):
        raise BadAnswer("its parts have no boundary")
    edge = b"--" + boundary.encode()
    begins = 0 if body.startswith(edge) else body.find(b"\r\n" + edge, 0, LONGEST_PREAMBLE) + 2
    if begins == 1:  # not found
        raise BadAnswer("it holds no part")
    head = begins + len(edge)
    start = body.find(b"\r\n\r\n", head, head + LONGEST_HEAD)
    if start < 0:
        raise BadAnswer("its part has no head, or was cut short")
    if not _is_dicom(body[head:start]):
        raise BadAnswer(f"its part is no {DICOM}")
    start += 4
    end = body.find(b"\r\n" + edge, start)
    if end < 0:
        raise BadAnswer("it was cut short: its end is missing")
    after = end + 2 + len(edge)
    if body[after : after + 2] != b"--":
        raise BadAnswer("it holds more than the one file that was asked for")
    return memoryview(body)[start:end]


def _is_dicom(head: bytes) -> bool:
    """Whether these headers of a part say that it is a DICOM file."""
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-type":
            return value.partition(b";")[0].strip().lower() == DICOM.encode()
    return False
