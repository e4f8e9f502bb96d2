"""De-identification: what of a DICOM object may pass the hospital's door, and in what form.

A positive list per SOP class: an element that isn't named there does not pass, at any depth of nesting, private or not.
Identifiers become keyed pseudonyms, dates move by a number of days that is the patient's own, free text passes only as words of
a vocabulary. After DICOM PS3.15 Annex E: the basic profile, with the options that the hospital chose; each object says which of
them it really needed.
"""

from __future__ import annotations

import hashlib
import logging
import math
import re
import struct
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast

import pydicom.config
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag

import conf
from fl_client.intake.positive_list import SAFE_PRIVATE, Rule, rules
from fl_client.intake.pseudonyms import Pseudonyms, patient_number
from fl_client.intake.terms import KERNEL, SCHEMES, TERMS, is_code, vendor
from fl_client.yaml_file import read_yaml

METHOD = "konsil positive lists 2"
"""Stands in each de-identified object, with a mark of options and words; the number grows when what passes changes."""

Option = Literal["dates", "device", "descriptors", "characteristics"]

OPTIONS = {
    "dates": ("113107", "Retain Longitudinal Temporal Information Modified Dates Option"),
    "device": ("113109", "Retain Device Identity Option"),
    "descriptors": ("113105", "Clean Descriptors Option"),
    "characteristics": ("113108", "Retain Patient Characteristics Option"),
    "private": ("113111", "Retain Safe Private Option"),
}
"""PS3.16 CID 7050: code and meaning of what was done beyond the basic profile."""

_PIXELS = 0x7FE00010
_OF_IMAGES = frozenset((_PIXELS, 0x7FE00001, 0x7FE00002, 0x00281201, 0x00281202, 0x00281203))
"""Bulk data of a whole image, which no item of a sequence has: pixels, their offsets, palettes."""

_FRAMES = (0x52009229, 0x52009230)
_DIGITS = {"DS": re.compile(rb"[0-9+\-.eE \\\0]*"), "IS": re.compile(rb"[0-9+\- \\\0]*")}
_SIZES = {"US": 2, "SS": 2, "US or SS": 2, "UL": 4, "SL": 4, "FL": 4, "FD": 8, "AT": 4, "UV": 8, "SV": 8}
_SPELLED = re.compile(rb"[\x20-\x7e]+\0*")
_TEXT = re.compile(r"[\x20-\x7e]{1,64}")
_AGE = re.compile(r"(\d{3})([DWMY])")


class Unattributable(ValueError):
    """The file doesn't say which patient it belongs to."""


@dataclass
class Done:
    """What became of one object's elements."""

    dropped: Counter[str] = field(default_factory=Counter)  # keyword, or 'private', or 'unknown': how often
    options: set[str] = field(default_factory=set)  # those that let something pass
    names: frozenset[str] = frozenset()  # words of the people's names in it, in lower case


class Deidentifier(Pseudonyms):
    """One hospital's keyed de-identification. The same key gives the same pseudonyms and shifts, for ever.

    `key` is at least 16 random bytes that the hospital keeps outside the cohort; `words` are free texts and words, in lower
    case, that may pass (words of series rules, names and codes of the label map); `retain` are options of PS3.15:
    shifted dates, the device as it is, sex and capped age, and with `descriptors` the words of
    `conf/deidentify/descriptors.yaml`.
    """

    def __init__(self, key: bytes, *, words: frozenset[str] = frozenset(), retain: Iterable[Option] = ("dates",)) -> None:
        super().__init__(key)
        self._retain = frozenset(retain)
        if strange := self._retain - OPTIONS.keys():
            raise ValueError(f"'{min(strange)}' is no option of de-identification; there are {', '.join(OPTIONS)}")
        self._own_words = words
        self._words = words | vocabulary() if "descriptors" in self._retain else words
        policy = "\0".join((*sorted(self._retain), "", *sorted(self._words)))
        self.method = f"{METHOD}, policy {hashlib.sha256(policy.encode()).hexdigest()[:8]}"

    def __call__(self, dataset: Dataset) -> Dataset:
        """A new dataset with the elements of the positive list only; PatientID is the pseudonym.

        Raises `Unattributable` if the file names no patient, `ValueError` if an element can't be read.
        """
        return self.clean(dataset)[0]

    def clean(self, dataset: Dataset) -> tuple[Dataset, Done]:
        """As a call, and what was done."""
        patient_id = patient_number(dataset)
        if not patient_id:
            raise Unattributable("no PatientID: this file can't be attributed to a patient")
        done = Done(names=frozenset(_names(dataset)))
        result = self._walk(dataset, rules(str(dataset.get("SOPClassUID", ""))), patient_id, done)
        if hasattr(dataset, "file_meta") and "TransferSyntaxUID" in dataset.file_meta:
            result.file_meta = pydicom.dataset.FileMetaDataset()
            result.file_meta.TransferSyntaxUID = dataset.file_meta.TransferSyntaxUID
        result.PatientID = result.PatientName = self.pseudonym(patient_id)
        if "PatientBirthDate" not in result:
            result.PatientBirthDate = ""
        result.PatientIdentityRemoved = "YES"
        result.DeidentificationMethod = self.method
        result.LongitudinalTemporalInformationModified = "MODIFIED" if "dates" in done.options else "REMOVED"
        codes = [("113100", "Basic Application Confidentiality Profile"), *(OPTIONS[name] for name in sorted(done.options))]
        result.DeidentificationMethodCodeSequence = [_code(value, meaning) for value, meaning in codes]
        return result, done

    def _walk(
        self, dataset: Dataset, allowed: Mapping[int, Rule], patient_id: str, done: Done, *, nested: bool = False
    ) -> Dataset:
        result = Dataset()
        implicit, little = dataset.original_encoding
        if implicit is not None and little is not None:  # numbers pass as the bytes they are
            result.set_original_encoding(implicit, little, "iso8859")
        for tag in dataset.keys():  # noqa: SIM118 - iterating over a Dataset would convert every element
            rule = allowed.get(int(tag))
            if tag.is_private:
                if not tag.is_private_creator and not self._private(dataset, tag, result):
                    done.dropped["private"] += 1
                elif not tag.is_private_creator:
                    done.options.add("private")
                continue
            if rule is None or (nested and int(tag) in _OF_IMAGES):
                done.dropped[pydicom.datadict.keyword_for_tag(tag) or "unknown"] += 1
                continue
            element = self._element(dataset, tag, rule, allowed, patient_id, done)
            if element is None:
                done.dropped[rule.keyword] += 1
                element = _instead(tag, rule)
            if element is not None:
                result[tag] = element
        return result

    def _element(
        self, dataset: Dataset, tag: BaseTag, rule: Rule, allowed: Mapping[int, Rule], patient_id: str, done: Done
    ) -> DataElement | RawDataElement | None:
        """What passes of one element; None if nothing does."""
        raw = cast("DataElement | RawDataElement", dataset.get_item(tag))
        if raw.value in (None, "", b"") and rule.kind != "walk":  # says nothing, and may have to be there
            return raw if not rule.instead else None
        if rule.kind in ("empty", "time"):
            return None
        if rule.kind == "number" and isinstance(raw, RawDataElement):
            if not _is_raw_number(raw if raw.VR != "UN" else raw._replace(VR=rule.vr), rule):
                return None
            if raw.VR != "UN":
                return raw
        if rule.kind == "bulk" and isinstance(raw, RawDataElement) and raw.VR != "UN":
            fits = raw.VR in (None, "OB", "OW", "US", "OV") and (tag == _PIXELS or not _is_spelled(raw.value or b"", "OW"))
            return raw if fits else None
        element = dataset[tag]
        if rule.kind == "walk":
            if element.VR != "SQ":
                return None
            return DataElement(tag, "SQ", [self._walk(item, allowed, patient_id, done, nested=True) for item in element.value])
        if rule.kind == "bulk":
            return element if element.VR in ("OB", "OW", "OB or OW", "US or OW", "US", "OV") else None
        if rule.kind == "number":
            return element if _is_number(element, rule) else None
        if element.VR not in (rule.vr, "LO", "SH", "CS", "UI", "DA", "DT", "AS", "ST", "LT", "UC", "UT"):
            return None
        values = element.value if isinstance(element.value, (MultiValue, list)) else [element.value]
        if rule.kind == "code":
            known = is_code(str(element.value), str(dataset.get("CodingSchemeDesignator", "")))
            return element if known or str(element.value).lower() in self._words else None
        new = [self._text(str(value), rule, patient_id, done) if value not in (None, "") else "" for value in values]
        if (rule.most and len(new) > rule.most) or not any(new):
            return None
        return DataElement(tag, rule.vr, new if len(new) > 1 else new[0])

    def _text(self, value: str, rule: Rule, patient_id: str, done: Done) -> str:
        """What passes of one value; empty if nothing does."""
        value = value.strip(" \0")
        match rule.kind:
            case "uid":
                return self.uid(value) if value else ""
            case "date":
                if "dates" in self._retain and (shifted := self.date(value, patient_id)):
                    done.options.add("dates")
                    return shifted
                return ""
            case "term":
                return value if value in TERMS else "OTHER" if value else ""
            case "vendor":
                return vendor(value)
            case "scheme":
                return value if value in SCHEMES or value.lower() in self._words else ""
            case "kernel":
                return value if KERNEL.fullmatch(value) else ""
            case "label":
                return value if value.isascii() and value.isdigit() and len(value) < 4 else self.label(value)
            case "sex" | "age" if "characteristics" in self._retain:
                passed = capped_age(value) if rule.kind == "age" else value if value in ("M", "F", "O") else ""
                done.options |= {"characteristics"} if passed else set()
                return passed
            case "device" if "device" in self._retain and _TEXT.fullmatch(value):
                done.options.add("device")
                return value
            case "words":
                text = self._of_vocabulary(value, done.names)
                done.options |= {"descriptors"} if text else set()
                return text
        return ""

    def _of_vocabulary(self, value: str, names: frozenset[str]) -> str:
        """The words that pass: the site's own, and shipped ones that aren't the name of anybody in this very object."""
        text = value.lower()
        if text in self._own_words:
            return text
        words = re.split(r"[^0-9a-z]+", text)
        return " ".join(word for word in words if word in self._own_words or (word in self._words and word not in names))

    def _private(self, dataset: Dataset, tag: BaseTag, result: Dataset) -> bool:
        """Let a private element pass if it is a known number of a known vendor."""
        creator = str(dataset.get((tag.group, tag.element >> 8), DataElement(tag, "LO", "")).value).strip()
        known = SAFE_PRIVATE.get((creator, tag.group, tag.element & 0xFF))
        if known is None:
            return False
        vr, most = known
        element = dataset[tag]
        if vr != element.VR or not _is_number(element, Rule("", "number", vr, most, None)):
            return False
        result.private_block(tag.group, creator, create=True).add_new(tag.element & 0xFF, vr, element.value)
        return True


def _names(dataset: Dataset) -> Iterator[str]:
    """Words of all person names, also of those in sequences; only the frames' many groups, which have none, aren't searched."""
    for tag in dataset.keys():  # noqa: SIM118 - iterating over a Dataset would convert every element
        raw = dataset.get_item(tag)
        vr = getattr(raw, "VR", None)
        if vr in (None, "UN") and pydicom.datadict.dictionary_has_tag(tag):
            vr = pydicom.datadict.dictionary_VR(tag)
        if vr == "PN":
            yield from re.split(r"[^0-9a-z]+", str(dataset[tag].value).lower())
        elif vr == "SQ" and tag not in _FRAMES and not tag.is_private:
            element = dataset[tag]
            for item in element.value if element.VR == "SQ" else ():
                yield from _names(item)


def capped_age(age: str) -> str:
    """`nnnY` and the like; over 89 years it is 090Y, as few people are so old (45 CFR 164.514)."""
    found = _AGE.fullmatch(age)
    if found is None:
        return ""
    years = int(found[1]) / {"D": 365.25, "W": 52.18, "M": 12, "Y": 1}[found[2]]
    return "090Y" if years >= 90 else age


@cache
def vocabulary() -> frozenset[str]:
    """The shipped words that a cleaned description may hold."""
    groups = read_yaml(Path(conf.__file__).parent / "deidentify" / "descriptors.yaml")
    return frozenset(str(word) for words in groups.values() for word in words)


def _is_raw_number(raw: RawDataElement, rule: Rule) -> bool:
    """Whether the bytes of an unconverted element are numbers, and as many as the standard has."""
    vr, value = raw.VR or rule.vr, raw.value or b""
    if vr in ("DS", "IS"):
        numbers = _DIGITS[vr].fullmatch(value) is not None and (b"e" not in value.lower() or _is_decimal(value))
        return numbers and (not rule.most or value.count(b"\\") < rule.most)
    size = _SIZES.get(vr)
    if size is None or len(value) % size or (rule.most and len(value) > size * rule.most):
        return False
    return not _is_spelled(value, vr, raw.is_little_endian)


def _is_spelled(value: bytes, vr: str, little: bool = True) -> bool:
    """Whether binary numbers spell a text instead: letters, digits and signs give integers that no index reaches, and doubles
    that no measurement gives.
    """
    if vr == "FD":
        doubles = struct.unpack(f"{'<' if little else '>'}{len(value) // 8}d", value)
        return any(number != 0 and not 1e-30 < abs(number) < 1e9 for number in doubles)
    return len(value) >= (12 if vr in ("FL", "OB", "OW", "OV") else 4) and _SPELLED.fullmatch(value) is not None


def _is_decimal(value: bytes) -> bool:
    try:
        return all(math.isfinite(float(number)) for number in value.strip(b"\0").split(b"\\") if number.strip())
    except ValueError:
        return False


def _is_number(element: DataElement, rule: Rule) -> bool:
    if element.VR not in (*_SIZES, "DS", "IS"):
        return False
    values: Sequence[Any] = element.value if isinstance(element.value, (MultiValue, list)) else [element.value]
    if rule.most and len(values) > rule.most:
        return False
    if element.VR == "FD" and _is_spelled(struct.pack(f"<{len(values)}d", *values), "FD"):
        return False
    return element.VR not in ("DS", "IS") or all(
        _DIGITS[element.VR].fullmatch(str(value).encode()) for value in values if value is not None
    )


def _instead(tag: BaseTag, rule: Rule) -> DataElement | None:
    """What takes the place of a value that can't pass, where the standard wants the attribute."""
    if rule.instead is None:
        return None
    return DataElement(tag, rule.vr, [] if rule.vr == "SQ" else rule.instead)


def _code(value: str, meaning: str) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, "DCM", meaning[:64]
    return code


@contextmanager
def discreet() -> Iterator[None]:
    """Keep pydicom and highdicom from repeating header values on the screen or in a log while the original is open."""
    settings, loggers = pydicom.config.settings, [logging.getLogger(name) for name in ("pydicom", "highdicom")]
    mode, levels = settings.reading_validation_mode, [logger.level for logger in loggers]
    settings.reading_validation_mode = pydicom.config.IGNORE
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        settings.reading_validation_mode = mode
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
