"""Keyed names for people, studies and days: the same key gives the same names for ever, another hospital's key gives others.

HMAC-SHA256 (RFC 2104) of what a file says, so that no table is needed to give a patient of today and one of next year the same
pseudonym, and masks stay linked to their images. Whoever holds the key can test whether a known identifier is in the cohort:
pseudonymous is not anonymous.
"""

from __future__ import annotations

import hmac
import re
from datetime import datetime, timedelta

from pydicom._uid_dict import UID_dictionary
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

STANDARD = frozenset(UID_dictionary) | {"1.2.840.10008.5.1.4.1.1.66.7", "1.2.840.10008.1.2.8.1"}
"""UIDs that the standard gives away: they name classes and encodings, never a patient's things."""


def patient_number(dataset: Dataset) -> str:
    """PatientID as the hospital writes it: a backslash in it, which DICOM reads as several values, is a part of the number."""
    value = dataset.get("PatientID", "") or ""
    return ("\\".join(map(str, value)) if isinstance(value, MultiValue | list) else str(value)).strip()


class Pseudonyms:
    """One hospital's keyed names. `key` is at least 16 random bytes that the hospital keeps outside the cohort."""

    def __init__(self, key: bytes) -> None:
        if len(key) < 16:
            raise ValueError(f"the pseudonym key has {len(key)} bytes; at least 16 random ones keep it from being guessed")
        self._key = key

    def pseudonym(self, patient_id: str) -> str:
        """`P` and 16 hexadecimal digits. White space around the identifier doesn't count, as in DICOM."""
        return "P" + self._digest("patient", patient_id.strip())[:8].hex().upper()

    def handle(self, what: str) -> str:
        """A name for something that may itself name a person, such as a path: `F` and 16 hexadecimal digits."""
        return "F" + self._digest("file", what)[:8].hex().upper()

    def label(self, what: str) -> str:
        """A name for a short free label of which only equality matters, such as a stack's: `L` and 8 hexadecimal digits."""
        return "L" + self._digest("label", what.strip())[:4].hex().upper()

    def uid(self, uid: str) -> str:
        """UIDs of the standard stay; all others become 2.25.<128 keyed bits> (PS3.5 B.2)."""
        if uid in STANDARD:
            return uid
        return f"2.25.{int.from_bytes(self._digest('uid', uid)[:16], 'big')}"

    def shift_days(self, patient_id: str) -> int:
        """Days, between -1825 and -1, by which all dates of this patient move: intervals stay what they were."""
        return -1 - int.from_bytes(self._digest("date", patient_id.strip())[:4], "big") % 1825

    def date(self, date: str, patient_id: str) -> str:
        """A date `YYYYMMDD`, or the day of a date-time, moved by the patient's shift; empty if it isn't eight digits of a date.

        The time of day does not pass: a scan's second is in every log of the hospital, and leads to its patient.
        """
        if not re.fullmatch("[0-9]{8}", date[:8]):  # strptime takes 2020111 for 1 November
            return ""
        try:
            return (datetime.strptime(date[:8], "%Y%m%d") + timedelta(days=self.shift_days(patient_id))).strftime("%Y%m%d")
        except (ValueError, OverflowError):
            return ""

    def _digest(self, kind: str, value: str) -> bytes:
        return hmac.digest(self._key, f"{kind}\0{value}".encode(), "sha256")
