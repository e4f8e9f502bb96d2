"""The pixel policy: what may hold a name or a face in its pixels goes to quarantine; what hides beside them is removed.

Nothing here reads letters in a picture: no cleaning of burned-in text is done, and none is claimed (PS3.15 113101). Kinds of
objects that are known to carry text in their pixels, or to be documents, do not pass at all.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.uid import UID

from fl_client.intake.codestream import without_comments
from fl_client.intake.positive_list import LISTS

DOCUMENTS = (
    ("Secondary Capture", "a secondary capture: a photographed screen, on which names stand"),
    ("Ultrasound", "an ultrasound image: the name stands in the picture"),
    ("Encapsulated", "an encapsulated document, which is full of free text"),
    (" SR", "a structured report, which is full of free text"),
    ("Report", "a report, which is full of free text"),
    ("Key Object", "a note on images, which is free text"),
    ("Presentation State", "a presentation state, whose annotations are free text"),
    ("Raw Data", "raw data, of which nobody but the vendor knows what it holds"),
    ("Video", "a video: faces and names may be seen"),
    ("Photographic", "a photograph: faces and names may be seen"),
)
"""By a part of the SOP class's name: why it can't pass."""

SCREENS = re.compile(r"SCREEN|CAPTURE|SNAPSHOT|DOSE|REPORT|PATIENT[ _]PROT|\bPROT\b|POSDISP|OVERLAY|EVIDENCE|RESULT[ _]TABLE")
"""In an image type or a series description: a picture of a screen or a page."""

HEAD = re.compile(
    r"\b(HEAD\w*|NECKHEAD|BRAIN\w*|SKULL\w*|FACE|FACIAL|ORBITS?|ORBITA\w*|EYES?|CEREB\w*|CEREV\w*|CRAN[IE]\w*|KRANI\w*|NEURO\w*"
    r"|ENCEPHAL\w*|ENCEFAL\w*|(HALS)?KOPF\w*|SCHAE?DEL\w*|(GE)?HIRN\w*|GESICHT\w*|FELSENBEIN\w*|NNH|NASENNEBEN\w*|KIEFER\w*"
    r"|TETE|CERVEAU|VISAGE|CABEZA|CARA|TESTA|SINUS(ES)?|MAXILL\w*|MANDIB\w*|JAW|IAC|TMJ|PITUITAR\w*|HYPOPHYS\w*|SELLA|SCALP"
    r"|SCLERA|ZYGOMA|TONGUE|MOUTH|NOSE|PAROTID\w*|PHARYNX|NASOPHARYN\w*|WILLIS|CIRCLEOFWILLIS|MP ?RAGE|BRAVO"
    r"|WHOLE ?BODY|ENTIRE BODY)\b"
)
"""In what a header calls the part of the body: the head, in five languages without accents, or all of the body."""

SKULL_CT = re.compile(r"\bCCT\b")
HEART = re.compile(r"CARDIA|HEART|HERZ|CORONAR|KORONAR")
"""CCT is a cranial CT in German, and in English a cardiac one, which then says so."""

_CODES = """
    69536005 774007 12738006 113305005 83678007 88556005 60819002 11279006 128320002 117590005 38266002 81745001 371398005
    80243003 89545001 23074001 91397008 361078006 661005 91609006 70925003 123851003 74386004 45206002 363654007 45289007
    54066008 312535008 41695006 42575006 89546000 53620006 21974007 13881006 2095001 110517009 1101003
    T-D1100 T-D1000 T-A0100 T-A6000 T-D1200 T-11100 T-11170 T-D1213 T-D14AE T-AA000 T-22000 T-D1460 T-45520 T-D0010"""
HEAD_CODES = frozenset(_CODES.split())
"""Of PS3.16 CID 4 (SNOMED CT, and of SNOMED RT the commonest): the head, its parts, and the entire body."""

REGIONS = ("AnatomicRegionSequence", "PrimaryAnatomicStructureSequence")
PART = (
    *("BodyPartExamined", "StudyDescription", "SeriesDescription", "ProtocolName"),
    *("RequestedProcedureDescription", "PerformedProcedureStepDescription"),
)
"""Attributes that say which part of the body is shown: as codes, and as words."""

DRAWN = frozenset(("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7", "1.2.840.10008.5.1.4.1.1.481.3"))
"""SEG and RTSTRUCT, whose pixels and contours somebody drew: no picture of anybody."""

PIECE = 2**20  # values that are looked at together
OVERLAYS = range(0x6000, 0x6020, 2)


def problem(dataset: Dataset, *, accept_faces: bool = False) -> str | None:
    """Why an object may not pass, in words that repeat nothing of it; None if it may."""
    sop_class = str(dataset.get("SOPClassUID", "") or "")
    if sop_class not in LISTS:
        return _of_class(sop_class)
    if dataset.get("BurnedInAnnotation") == "YES":
        return "BurnedInAnnotation is YES: names may stand in the pixels"
    if sop_class not in DRAWN:  # by the class: Modality is what a device writes, and may say anything
        says = " ".join(_texts(dataset, ("ImageType", "SeriesDescription", "ProtocolName"))).upper()
        if SCREENS.search(says) or "ConversionType" in dataset:
            return "a picture of a screen, a dose page or a protocol: names may stand in the pixels"
        if int(dataset.get("SamplesPerPixel") or 1) != 1:
            return "a picture in colour, as rendered screens are: names may stand in the pixels"
        if not accept_faces and _shows_a_head(dataset):
            return (
                "an image of the head: a face can be made from it (accept_faces in the site's settings lets such images pass)"
            )
    return None


def _shows_a_head(dataset: Dataset) -> bool:
    """By what the header says of faces, of the part of the body in words, and in codes, of the image or of its frames."""
    if dataset.get("RecognizableVisualFeatures") == "YES":
        return True
    frames = [*(dataset.get("SharedFunctionalGroupsSequence") or []), *(dataset.get("PerFrameFunctionalGroupsSequence") or [])]
    anatomy = [item for frame in frames for item in frame.get("FrameAnatomySequence") or []]
    regions = [code for holder in (dataset, *anatomy) for name in REGIONS for code in holder.get(name) or []]
    if any(str(code.get("CodeValue", "")) in HEAD_CODES for code in regions):
        return True
    texts = [*_texts(dataset, PART), *(text for code in regions for text in _texts(code, ("CodeMeaning",)))]
    words = _words(" ".join(texts))
    return HEAD.search(words) is not None or (SKULL_CT.search(words) is not None and HEART.search(words) is None)


def _words(text: str) -> str:
    """Capital letters and single blanks; `NeckHead` is two words, beside being one."""
    split = f"{text} {re.sub(r'(?<=[a-z])(?=[A-Z])', ' ', text)}"
    plain = unicodedata.normalize("NFKD", split).upper()  # letters lose their accents with the next line
    return re.sub(r"[^A-Z]+", " ", "".join(letter for letter in plain if not unicodedata.combining(letter)))


def clean_pixels(original: Dataset, result: Dataset) -> str | None:
    """Remove what hides in the pixel data of `result` beside the pixels; or why that can't be done.

    Hidden are overlay planes in unused bits (retired; PS3.5 8.1.2), bytes after the last pixel, and comments in compressed
    streams. Everything else comes out as it went in, to the bit; compressed pixel data stay compressed.
    """
    if "PixelData" not in result or result.get("SOPClassUID") not in LISTS:
        return None
    syntax = UID(str(original.file_meta.get("TransferSyntaxUID", "")))
    embedded = any(int(original.get((group, 0x0102)).value or 0) > 0 for group in OVERLAYS if (group, 0x0102) in original)
    if syntax.is_transfer_syntax and syntax.is_encapsulated:
        if embedded:
            return "an overlay stands in the bits of compressed pixels"
        result["PixelData"].value = without_comments(result["PixelData"].value)
        return None
    allocated, stored, high = (int(result.get(name) or 0) for name in ("BitsAllocated", "BitsStored", "HighBit"))
    if result.get("Rows") is None or result.get("Columns") is None or not allocated:
        return "pixel data without Rows, Columns and BitsAllocated"
    values = (
        int(result.Rows)
        * int(result.Columns)
        * int(result.get("SamplesPerPixel") or 1)
        * int(result.get("NumberOfFrames") or 1)
    )
    length = (values * allocated + 7) // 8
    pixels: Any = result["PixelData"].value
    if len(pixels) > length + length % 2:
        pixels = pixels[:length] + b"\0" * (length % 2)
        result["PixelData"].value = pixels
    if allocated in (8, 16, 32) and 0 < stored < allocated:
        if high != stored - 1:
            return "pixels that don't start at bit 0: what stands in the other bits is unknown"
        size, order = allocated // 8, ">" if syntax == "1.2.840.10008.1.2.2" else "<"
        array = np.frombuffer(pixels, f"{order}u{size}", count=len(pixels) // size)
        padding = result.get("PixelPaddingValue")
        wide = None if padding is None else int(padding) % (1 << allocated)  # may lie outside of what the stored bits can say
        signed = result.get("PixelRepresentation") == 1
        cleaned: bytearray | None = None
        for at in range(0, len(array), PIECE):  # piece by piece: an image can be large, and is held more than once already
            piece = array[at : at + PIECE]
            kept = _without_unused_bits(piece, stored, allocated, signed=signed, wide=wide)
            if not np.array_equal(kept, piece):
                cleaned = bytearray(pixels) if cleaned is None else cleaned
                cleaned[at * size : (at + len(piece)) * size] = kept.tobytes()
        if cleaned is not None:
            result["PixelData"].value = bytes(cleaned)
    return None


def _without_unused_bits(
    values: npt.NDArray[Any], stored: int, allocated: int, *, signed: bool, wide: int | None
) -> npt.NDArray[Any]:
    """The values with zeros in the bits above the stored ones, or with the sign there; those that equal `wide` as they are."""
    kept: npt.NDArray[Any] = values & ((1 << stored) - 1)
    if signed and not np.array_equal(kept, values):  # the unused bits repeat the sign
        unused = ((1 << allocated) - 1) ^ ((1 << stored) - 1)
        kept = np.where(kept >> (stored - 1) & 1, kept | unused, kept).astype(values.dtype)
    return kept if wide is None else np.where(values == wide, values, kept).astype(values.dtype)


def _of_class(sop_class: str) -> str:
    # a private UID may carry a hospital's own root, so only the standard's names are repeated
    name = UID(sop_class).name if sop_class.startswith("1.2.840.10008.") else ""
    for part, reason in DOCUMENTS:
        if part in name:
            return reason
    called = name if name and not name[0].isdigit() else "an object of no known class"
    return f"{called}: there is no list of what of it may pass"


def _texts(dataset: Dataset, keywords: tuple[str, ...]) -> list[str]:
    values = [dataset.get(keyword) or "" for keyword in keywords]
    return [text if isinstance(text, str) else " ".join(map(str, text)) for text in values]
