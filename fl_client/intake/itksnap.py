"""Label descriptions of ITK-SNAP: a text file that says which number of a label volume has which name.

ITK-SNAP writes one line per label, `index red green blue opacity visible mesh "name"`, with `#` before comments (Segmentation,
Export Label Descriptions). Without it a number stands for itself and is looked up in the label map.
"""

from __future__ import annotations

import re
from pathlib import Path

from fl_client.intake.labels import LabelMap
from fl_client.intake.mask import MaskRefused

SUFFIXES = (".txt", ".label")
_LINE = re.compile(r'\s*(\d+)\s+\d+\s+\d+\s+\d+\s+\S+\s+[01]\s+[01]\s+"([^"]*)"\s*')
_UNNAMED = re.compile(r"label \d+", re.IGNORECASE)  # ITK-SNAP's own name for what nobody named


def read_descriptions(path: Path) -> dict[int, str]:
    """Name by number, without the background. Raises `MaskRefused` naming the line that can't be read."""
    names: dict[int, str] = {}
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):
        raise MaskRefused("the label descriptions can't be read as text in UTF-8") from None
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if not match or int(match[1]) in names:
            why = "names a number again" if match else 'isn\'t index, three colours, opacity, two switches and a "name"'
            raise MaskRefused(f"line {number} of the label descriptions {why}")
        names[int(match[1])] = match[2]
    names.pop(0, None)
    return names


def meanings(names: dict[int, str], labels: LabelMap, held: set[int]) -> dict[int, int]:
    """Canonical value of each number that a volume holds. Raises `UnmappedLabel`, `MaskRefused` for a number without a name.

    A label that was never named ("Label 3") stands for its number.
    """
    result: dict[int, int] = {}
    for number in sorted(held):
        if number not in names:
            raise MaskRefused(f"the volume holds the label {number}, which its label descriptions don't name")
        if _UNNAMED.fullmatch(names[number].strip()):
            result[number] = labels.of_source(number)
        else:
            result[number] = labels.of_segment(f"label {number}", names[number], ())
    return result
