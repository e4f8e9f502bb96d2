"""Identifiers planted in every attribute of the standard, at several depths, in every value representation, are in no byte of
what comes out."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest
from dicom_bytes import CT, ENHANCED_MR, MR, RTSTRUCT, SEG, element, joined, part10, sequence, skeleton
from pydicom._dicom_dict import DicomDictionary

from fl_client.intake.clean import Cleaned, deidentify_file
from fl_client.intake.deidentify import Deidentifier
from fl_client.intake.positive_list import LISTS, SAFE_PRIVATE, rules

KEY = b"sixteen bytes...and some more"
NAME, NUMBER, BORN, CLOCK = b"ABENDROTH", b"4711081500", b"19571103", b"101112.345678"
MARKS = (NAME, NUMBER, BORN, CLOCK)
PLANTED = {
    **dict.fromkeys(("AE", "CS", "SH", "LO", "ST", "LT", "UC", "UT", "UR", "OB", "OW", "UN"), NAME + b" " + NUMBER),
    **dict.fromkeys(("DS", "IS", "AS", "OD", "OF", "OL", "OV"), NAME + b"\\" + NAME),
    **{"CS": NAME, "AE": NAME, "SH": NAME, "PN": NAME + b"^ANNA=" + NAME + b"=" + NAME, "UI": b"1.2.276.0.99." + NUMBER},
    **{"DA": BORN, "DT": BORN + CLOCK, "TM": CLOCK},
    **dict.fromkeys(("US", "SS", "UL", "SL", "FL", "FD", "AT", "SV", "UV"), (NAME + NUMBER).ljust(48)),
}
BULK = {0x7FE00010, 0x00283006, 0x7FE00001, 0x7FE00002, 0x00281201, 0x00281202, 0x00281203}
"""Pixels and look-up tables: numbers by nature, of which nobody can tell what else they mean."""

UNTOUCHED = BULK | {0x00080064, 0x00280301, 0x00200062}  # ConversionType and such would send the file to quarantine


def vr_of(tag: int) -> str:
    return {"US or SS": "US", "OB or OW": "OW", "US or OW": "OW", "US or SS or OW": "OW", "NONE": "UN"}.get(
        DicomDictionary[tag][0], DicomDictionary[tag][0]
    )


def every_attribute(*, unknown: bool = False) -> dict[int, bytes]:
    """All attributes of the data dictionary but sequences, each holding an identifier; `unknown`: written as VR UN."""
    return {
        tag: element(tag, "UN" if unknown else vr_of(tag), PLANTED[vr_of(tag)])
        for tag in DicomDictionary
        if tag >> 16 > 4 and tag >> 16 < 0xFFFC and vr_of(tag) != "SQ" and tag not in UNTOUCHED
    }


def private_elements() -> dict[int, bytes]:
    """Private blocks of creators that are known and of one that is not, all elements holding a name."""
    result = {}
    for group in range(0x0009, 0x7F00, 0x0202):
        creators = sorted({creator for creator, of, _ in SAFE_PRIVATE if of == group}) or ["SIEMENS MR HEADER", NAME.decode()]
        for block, creator in enumerate(creators, 0x10):
            result[group << 16 | block] = element(group << 16 | block, "LO", creator.encode())
            for low, vr in enumerate(("LO", "PN", "UN", "OB", "DS", "IS", "FD", "US", "DT", "UI", "ST", "FL")):
                tag = group << 16 | block << 8 | low
                result[tag] = element(tag, vr, PLANTED[vr])
            for creator_of, of, low in SAFE_PRIVATE:
                if creator_of == creator and of == group:
                    tag = group << 16 | block << 8 | low
                    result[tag] = element(tag, "LO", NAME)
    return result


def marks_in(data: bytes) -> list[bytes]:
    return [mark for mark in MARKS if mark.lower() in data.lower()]


def cleaned(data: bytes, folder: Path, **options: object) -> bytes:
    source = folder / "original"
    source.write_bytes(data)
    result = deidentify_file(
        source, folder / "clean", deidentify=Deidentifier(KEY, retain=("dates", "descriptors", "characteristics"))
    )
    assert isinstance(result, Cleaned), result
    return result.path.read_bytes()


@pytest.mark.parametrize("sop_class", LISTS)
def test_text_removed_from_every_attribute_at_every_depth(sop_class: str, tmp_path: Path) -> None:
    everything = every_attribute()
    deep = joined(everything | private_elements())
    walked = [tag for tag, rule in rules(sop_class).items() if rule.kind == "walk"]
    listed = {tag: planted for tag, planted in everything.items() if tag in rules(sop_class)}
    for _ in range(3):  # a chain of sequences that pass, the deepest item holding everything
        deep = joined({0x00080100: element(0x00080100, "SH", NAME), walked[0]: sequence(walked[0], [deep])}) if walked else deep
    # in every other sequence that passes all that may pass, and between them all that may not
    nested = {
        tag: sequence(tag, [listed[0x00100020], joined(dict(list(everything.items())[place :: len(walked)]) | listed)])
        for place, tag in enumerate(walked[1:])
    }
    others = {
        tag: sequence(tag, [joined(listed)])
        for tag in DicomDictionary
        if vr_of(tag) == "SQ" and tag not in nested and tag % 11 == 0
    }
    if walked:
        nested[walked[0]] = sequence(walked[0], [deep])
    top = joined(everything | others | nested | private_elements() | skeleton(sop_class))
    meta = element(0x00020016, "AE", NAME) + element(0x00020100, "UI", b"1.2.3") + element(0x00020102, "OB", NAME)
    original = part10(top, sop_class, meta=meta, preamble=NAME.ljust(128))
    assert marks_in(original) == list(MARKS)
    assert marks_in(cleaned(original, tmp_path)) == []


@pytest.mark.parametrize("sop_class", [MR, ENHANCED_MR, SEG, RTSTRUCT])
def test_text_removed_from_elements_of_unknown_representation(sop_class: str, tmp_path: Path) -> None:
    elements = every_attribute(unknown=True)
    walked = [tag for tag, rule in rules(sop_class).items() if rule.kind == "walk"]
    # a sequence written as UN is in implicit VR inside (PS3.5 6.2.2)
    name = struct.pack("<HHI", 0x0010, 0x0010, len(NAME) + 1) + NAME + b" "
    meaning = struct.pack("<HHI", 0x0008, 0x0104, len(NAME) + 1) + NAME + b" "
    sequences = {tag: sequence(tag, [meaning + name], vr="UN") for tag in walked}
    original = part10(joined(elements | sequences | skeleton(sop_class)), sop_class)
    assert marks_in(original) == list(MARKS)
    assert all(sequences[tag] in original for tag in walked)
    assert marks_in(cleaned(original, tmp_path)) == []


@pytest.mark.parametrize("seed", range(12))
def test_text_removed_from_random_trees(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    sop_class = rng.choice([MR, ENHANCED_MR, CT, SEG, RTSTRUCT])
    listed = rules(sop_class)
    simple = [tag for tag in listed if listed[tag].kind not in ("walk", "bulk") and tag not in UNTOUCHED]
    walked = [tag for tag, rule in listed.items() if rule.kind == "walk"]
    representations = [
        vr for vr in PLANTED if vr not in ("US", "SS", "UL", "SL", "FL", "FD", "AT", "SV", "UV", "UN", "OB", "OW")
    ]

    def tree(depth: int) -> dict[int, bytes]:
        elements = {}
        for _ in range(rng.randrange(3, 30)):
            tag, vr = rng.choice(simple), rng.choice(representations)
            # digits in an attribute that holds numbers are numbers: nobody can tell
            text = PLANTED[vr] if vr_of(tag) not in ("DS", "IS") else NAME
            elements[tag] = element(tag, vr if rng.random() < 0.5 else vr_of(tag), text)
        for _ in range(rng.randrange(2 if depth == 6 else 0, 4) if depth else 0):
            tag = rng.choice(walked)
            elements[tag] = sequence(tag, [joined(tree(depth - 1)) for _ in range(rng.randrange(1, 3))])
        return elements

    trunk = tree(6)
    free = [tag for tag in simple if tag not in skeleton(sop_class) and vr_of(tag) not in ("DS", "IS")]
    for vr, tag in zip(("PN", "UI", "DA", "TM"), rng.sample(free, 4), strict=True):  # each mark at least once
        trunk[tag] = element(tag, vr, PLANTED[vr])
    original = part10(joined(trunk | skeleton(sop_class)), sop_class)
    assert marks_in(original) == list(MARKS)
    assert marks_in(cleaned(original, tmp_path)) == []


@pytest.mark.parametrize(
    ("charset", "name"),
    [
        (b"ISO_IR 192", "Ångström^Zoë=山田^太郎=やまだ^たろう".encode()),
        (b"\\ISO 2022 IR 87", b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B^\x1b$B$?$m$&\x1b(B"),
        (b"ISO_IR 144", "Люкceмбypг".encode("iso8859_5")),
        (b"NO SUCH SET", "Buc^Jérôme".encode("latin-1")),
    ],
)
def test_names_in_other_alphabets_removed(charset: bytes, name: bytes, tmp_path: Path) -> None:
    elements = skeleton(SEG) | {0x00080005: element(0x00080005, "CS", charset)}
    for tag, vr in ((0x00100010, "PN"), (0x0008103E, "LO"), (0x00700084, "PN"), (0x00081090, "LO"), (0x00204000, "LT")):
        elements[tag] = element(tag, vr, name)
    elements[0x00620002] = sequence(0x00620002, [element(0x00620005, "LO", name) + element(0x00700084, "PN", name)])
    out = cleaned(part10(joined(elements), SEG), tmp_path)
    parts = [part for group in name.split(b"=") for part in group.split(b"^")]
    assert [part for part in parts if part in out] == []


def test_what_stands_behind_the_pixels_and_behind_the_end_is_removed(tmp_path: Path) -> None:
    elements = skeleton(MR)
    elements[0x7FE00010] = element(0x7FE00010, "OW", struct.pack("<24H", *range(24)) + NAME * 20)
    elements[0xFFFCFFFC] = element(0xFFFCFFFC, "OB", NAME * 5)
    elements[0x00880200] = sequence(0x00880200, [joined({0x7FE00010: element(0x7FE00010, "OW", NAME * 30)})])
    elements[0x60003000] = element(0x60003000, "OW", NAME * 30)
    elements[0x60000022] = element(0x60000022, "LO", NAME)
    out = cleaned(part10(joined(elements), MR), tmp_path)
    assert marks_in(out) == []
    assert struct.pack("<24H", *range(24)) in out
