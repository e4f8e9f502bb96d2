"""When a mask was drawn and by whom, as far as its original says: what tells a correction of the same day from its predecessor.

No time of day and no reader's name passes into a de-identified object. These stay in the identity zone, beside the way back; of
the reader only a keyed mark is kept, since equality is all that counts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pydicom.dataset import Dataset

from fl_client.intake.pseudonyms import Pseudonyms

SEG, LABELMAP_SEG = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"
RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"
DRAWN = (SEG, LABELMAP_SEG, RTSTRUCT)  # what a reader drew, as DICOM


@dataclass(frozen=True)
class Moment:
    """When and by whom. Times are YYYYMMDDHHMMSS.ffffff as the original says them; empty: it doesn't."""

    drawn: str = ""  # the content's, or the structure set's
    created: str = ""  # the instance's
    creator: str = ""  # a keyed mark; empty: it names nobody
    arrived: int = 0  # when it came here, nanoseconds since 1970; 0: nobody knows


def moment_of(original: Dataset, names: Pseudonyms, *, arrived: int = 0) -> Moment | None:
    """The moment of a mask; None of what is no mask."""
    if original.get("SOPClassUID") not in DRAWN:
        return None
    structures = original.SOPClassUID == RTSTRUCT
    day, time = ("StructureSetDate", "StructureSetTime") if structures else ("ContentDate", "ContentTime")
    creator = str(original.get("OperatorsName" if structures else "ContentCreatorName", "") or "").strip(" ^").lower()
    return Moment(
        _stamp(original, day, time),
        _stamp(original, "InstanceCreationDate", "InstanceCreationTime"),
        names.label(f"creator {creator}") if creator else "",
        arrived,
    )


def is_later(one: Moment, other: Moment) -> bool:
    """Whether one was made after the other: by the first of content, instance and arrival that both know and that differ."""
    pairs = ((one.drawn, other.drawn), (one.created, other.created), (one.arrived, other.arrived))
    for ours, theirs in pairs:
        if ours and theirs and ours != theirs:
            return ours > theirs  # type: ignore[operator]  # both are texts, or both numbers
    return False


def _stamp(original: Dataset, day: str, time: str) -> str:
    """Day and time of day in a form that sorts; empty without either."""
    date = str(original.get(day, "") or "").strip()
    found = re.fullmatch(r"(\d{4,6})(?:\.(\d{1,6}))?", str(original.get(time, "") or "").strip().replace(":", ""))
    if not re.fullmatch(r"\d{8}", date) or found is None:
        return ""
    return f"{date}{found[1]:0<6}.{found[2] or '':0<6}"
