"""Code strings and short names that pass: defined terms of DICOM PS3.3, and what vendors write beside them.

A code string of sixteen letters can hold a name, so that only those of `conf/deidentify/terms.yaml` pass. Any other becomes
OTHER.
"""

from __future__ import annotations

import re
from pathlib import Path

import conf
from fl_client.yaml_file import read_yaml


def _terms() -> frozenset[str]:
    groups = read_yaml(Path(conf.__file__).parent / "deidentify" / "terms.yaml").values()
    return frozenset(term for group in groups for term in (group.split() if isinstance(group, str) else group))


TERMS = _terms()

VENDORS = ("Siemens", "GE", "Philips", "Canon", "Toshiba", "Hitachi", "Fujifilm", "United Imaging", "Bruker", "konsil")
"""Manufacturers by name; any other becomes 'other', since the element is free text."""

KERNEL = re.compile(
    r"[A-Z][a-z]?\d{1,2}[a-z]{0,2}|FC\d{2}|[0-9]|STANDARD|SOFT|DETAIL|BONE|BONEPLUS|LUNG|EDGE|CHEST|ULTRA|SMOOTH|SHARP|A|B|C|D|E|L"
    r"|STND|YA|YB|XCA|XCB|Standard|Soft|Lung|Bone",
)
"""Names of reconstruction kernels: two letters and two digits at most, or a known word."""

SCHEMES = {
    "SCT": re.compile(r"\d{6,18}"),
    "SRT": re.compile(r"[A-Z]\d?-[0-9A-Z]{4,6}"),
    "SNM3": re.compile(r"[A-Z]\d?-[0-9A-Z]{4,6}"),
    "99SDM": re.compile(r"[A-Z]\d?-[0-9A-Z]{4,6}"),
    "DCM": re.compile(r"\d{6}|[A-Z]{2}"),
    "UCUM": re.compile(
        r"1|%|\[hnsf'U\]|[mcu]?m[23]?|m?s|min|h|[mu]?l|[mk]?g|Hz|deg|rad|T|ppm|\{counts\}|[mcu]?m2?/s|s/mm2|g/m?l|Bq/ml"
        r"|\{counts\}/s|\{SUV(bw|lbm|bsa|ibw)\}(g|cm2)/ml|10-[36]\.?mm2/s"
    ),
    "FMA": re.compile(r"\d{1,6}"),
    "RADLEX": re.compile(r"RID\d{1,6}"),
    "UMLS": re.compile(r"C\d{7}"),
    "NCIt": re.compile(r"C\d{3,6}"),
}
"""Coding schemes that pass, and what a code of each looks like."""

SCHEMES["SNOMED"] = SCHEMES["SRT"]


_TURN = (1, 5, 7, 6, 2, 8, 3, 0, 9, 4)  # Verhoeff's permutation, applied once per place


def is_code(value: str, scheme: str) -> bool:
    """Whether a scheme can have this code. The last digit of a SNOMED identifier checks the others (Verhoeff 1969)."""
    pattern = SCHEMES.get(scheme)
    if pattern is None or pattern.fullmatch(value) is None:
        return False
    return scheme != "SCT" or _verhoeff(value) == 0


def _verhoeff(digits: str) -> int:
    """The check sum in the dihedral group of order 10: 0 for a right number."""
    total = 0
    for place, digit in enumerate(map(int, reversed(digits))):
        for _ in range(place % 8):
            digit = _TURN[digit]
        # 0 to 4 are turns of a pentagon, 5 to 9 turns after a flip
        turn, flip = divmod(total, 5)[1], total >= 5
        other, flipped = digit % 5, digit >= 5
        total = (turn - other if flip else turn + other) % 5 + 5 * (flip != flipped)
    return total


def vendor(manufacturer: str) -> str:
    """The known manufacturer that the text names as a word, else 'other'."""
    for name in VENDORS:
        if re.search(rf"(?<![a-z]){name}(?![a-z])", manufacturer, re.IGNORECASE):
            return name
    return "other"
