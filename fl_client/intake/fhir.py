"""Clinical data as FHIR R4: bundles and bulk exports (NDJSON) become one short record per patient, of what a mapping names.

Only resources that the mapping asks for are looked at; everything else in a delivery stays outside, unread. A resource finds
its patient whatever file it stands in. Reasons name types, elements and entries, never a value.
Sources: hl7.org/fhir/R4, hl7.org/fhir/uv/bulkdata.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from pathlib import Path
from typing import Any

from fl_client.intake.mapping import ClinicalMapping
from fl_client.intake.resources import (
    CODED,
    TYPES,
    Finding,
    checked,
    codes,
    codes_of,
    contained,
    counts,
    day_of,
    raw_codes,
    value_of,
    when_of,
)

BUNDLES = ("transaction", "collection", "searchset", "batch", "document")
_REFERENCE = re.compile(r"(?:^|/)(Patient|Medication)/([A-Za-z0-9.-]{1,64})(?:/_history/[A-Za-z0-9.-]{1,64})?$")


class DeliveryUnreadable(ValueError):
    """A file of the delivery can't be read, so that the delivery is not whole."""


class NoResource(ValueError):
    """A file of the delivery is sound JSON, and nothing of FHIR."""


@dataclass
class Person:
    """One patient of the delivery."""

    identifier: str
    birth: date | None
    gender: str | None
    died: bool
    death: date | None
    findings: list[Finding] = field(default_factory=list)
    problem: str | None = None


@dataclass
class Delivery:
    """What was found: people by identifier, what belongs to nobody, and which types of resources came at all."""

    people: dict[str, Person] = field(default_factory=dict)
    left_out: list[tuple[Path, str]] = field(default_factory=list)
    types: set[str] = field(default_factory=set)


def read_delivery(path: Path, mapping: ClinicalMapping) -> Delivery:
    """Read a bundle (JSON), an NDJSON file, or a folder of both; resources find their patient whatever file they stand in.

    Raises `DeliveryUnreadable`, in words without contents, if a file of it is damaged: what is missing then is not known, and
    "no such diagnosis" could be wrong for anybody. Raises `FileNotFoundError`.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} isn't there; a FHIR bundle (JSON), an NDJSON file or a folder of them is needed")
    files = (
        [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix.lower() in (".json", ".ndjson", ".jsonl"))
    )
    reader = _Reader(mapping)
    for file in files:
        try:
            for place, resource, url in _resources(file):
                reader.take(file, place, resource, url)
        except NoResource as reason:
            reader.found.left_out.append((file, str(reason)))
        except DeliveryUnreadable as reason:
            raise DeliveryUnreadable(f"{file.name}: {reason}; nobody is let in from an incomplete delivery") from None
    if not reader.found.types:
        raise DeliveryUnreadable("no FHIR resource was found; a bundle (JSON) or lines of resources (NDJSON) are read")
    return reader.delivery()


def _resources(file: Path) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Every resource with where it stands and its fullUrl."""
    lines = file.suffix.lower() in (".ndjson", ".jsonl")
    try:
        with open(file, encoding="utf-8-sig") as text:
            for number, part in enumerate(text if lines else [text.read()], 1):
                if not part.strip():
                    continue
                try:
                    yield from _of_json(part, f"line {number}" if lines else "")
                except NoResource as reason:
                    if lines:  # the lines after it would be lost in silence
                        raise DeliveryUnreadable(str(reason)) from None
                    raise
    except UnicodeDecodeError:
        raise DeliveryUnreadable("it is not UTF-8 text") from None
    except OSError as error:
        raise DeliveryUnreadable(f"it can't be opened ({error.strerror})") from None


def _of_json(text: str, line: str) -> Iterator[tuple[str, dict[str, Any], str]]:
    where = line or "it"
    try:
        content = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise DeliveryUnreadable(f"{where} is cut short, or isn't JSON") from None
    if not isinstance(content, dict) or not isinstance(content.get("resourceType"), str):
        raise NoResource(f"{where} is no FHIR resource: there is no resourceType")
    if content["resourceType"] != "Bundle":
        yield line or "the file", content, ""
        return
    if content.get("type") not in BUNDLES:
        raise DeliveryUnreadable(f"{where} is a bundle of another type than {', '.join(BUNDLES)}")
    entries = content.get("entry", [])
    if not isinstance(entries, list):
        raise DeliveryUnreadable(f"{where} is a bundle whose entries are no list")
    for number, entry in enumerate(entries, 1):
        place = f"{line and line + ', '}entry {number}"
        inner = entry.get("resource", {"resourceType": ""}) if isinstance(entry, dict) else None
        if not isinstance(inner, dict) or not isinstance(inner.get("resourceType"), str):
            raise DeliveryUnreadable(f"{place} holds no resource")
        url = entry.get("fullUrl")
        yield place, inner, url if isinstance(url, str) else ""


def _refuse_constant(word: str) -> None:
    raise ValueError(word)


class _Reader:
    """Collects what the mapping asks for, and joins it with its patients once everything was seen."""

    def __init__(self, mapping: ClinicalMapping) -> None:
        self.mapping = mapping
        self.found = Delivery()
        self._wanted: dict[str, frozenset[str] | None] = {}
        for resource, asked in mapping.sources():
            known = self._wanted.get(resource, frozenset())
            self._wanted[resource] = None if asked is None or known is None else known | asked
        self._people: dict[str, str] = {}  # reference: identifier
        self._findings: dict[str, list[Finding]] = {}  # reference of the patient: findings
        self._by_drug: list[tuple[str, str, Finding]] = []  # patient, medication: prescriptions whose drug stands elsewhere
        self._drugs: dict[str, frozenset[str]] = {}
        self._problems: dict[str, str] = {}  # reference of the patient: what is wrong
        self._seen: dict[tuple[str, str], bytes] = {}

    def take(self, file: Path, place: str, raw: dict[str, Any], url: str) -> None:
        kind = raw["resourceType"]
        self.found.types.add(kind if kind in TYPES else "other")
        if not self._asked(kind, raw):
            return
        patient = _target(raw.get("subject"))
        try:
            if kind == "Patient":
                patient = ""
                self._take_patient(checked(kind, raw), url)
                return
            if self._is_repeated(kind, raw):
                return
            model = checked(kind, raw)
            if kind == "Medication":
                for name in filter(None, (url, f"Medication/{raw.get('id', '')}")):
                    self._drugs[name] = codes(model.code)
                return
            if not patient:
                self.found.left_out.append((file, f"{place}: this {kind} names no patient"))
            elif counts(kind, model):
                self._take_finding(kind, model, raw, patient)
        except ValueError as problem:
            if patient:
                self._problems.setdefault(patient, f"{place}, {kind}: {problem}")
            else:
                self.found.left_out.append((file, f"{place}, {kind}: {problem}"))

    def _asked(self, kind: str, raw: dict[str, Any]) -> bool:
        """Whether the resource is worth checking. Where its code can't be read, it is: it might be one that is asked for."""
        if kind == "Patient" or (kind == "Medication" and "MedicationRequest" in self._wanted):
            return True
        if kind not in self._wanted:
            return False
        asked, coded = self._wanted[kind], CODED.get(kind, "code")
        if asked is None or coded not in raw:
            return True
        try:
            return bool(raw_codes(raw[coded]) & asked)
        except (AttributeError, TypeError):
            return True

    def _is_repeated(self, kind: str, raw: dict[str, Any]) -> bool:
        """Whether this very resource came before. Raises `ValueError` if it came with other contents."""
        name = raw.get("id")
        if not isinstance(name, str):
            return False
        digest = hashlib.sha256(json.dumps(raw, sort_keys=True).encode()).digest()
        before = self._seen.get((kind, name))
        self._seen.setdefault((kind, name), digest)
        if before not in (None, digest):
            raise ValueError("it came twice with different contents; which one holds can't be known")
        return before is not None

    def _take_patient(self, patient: Any, url: str) -> None:
        identifiers = {
            (one.value or "").strip()
            for one in patient.identifier or []
            if one.system == self.mapping.identifier_system and one.use != "old"
        } - {""}
        if len(identifiers) != 1:
            how = "several identifiers" if identifiers else "no identifier"
            raise ValueError(f"this patient has {how} of the system that the mapping names")
        (identifier,) = identifiers
        person = Person(
            identifier,
            birth=day_of(patient.birthDate),
            gender=patient.gender,
            died=bool(patient.deceasedBoolean) or patient.deceasedDateTime is not None,
            death=day_of(patient.deceasedDateTime),
        )
        if any(link.type == "replaced-by" for link in patient.link or []):
            person.problem = "the patient's record was replaced by another one"
        before = self.found.people.setdefault(identifier, person)
        if before is not person and before != person:
            before.problem = "the delivery holds two patients of this identifier that differ"
        names = {url, f"Patient/{patient.id}" if patient.id else "", f"{self.mapping.identifier_system}|{identifier}"} - {""}
        for name in names:
            if self._people.setdefault(name, identifier) != identifier:
                for each in (identifier, self._people[name]):
                    self.found.people[each].problem = "two patients of the delivery have one id"

    def _take_finding(self, kind: str, model: Any, raw: dict[str, Any], patient: str) -> None:
        when = when_of(kind, model)
        finding = Finding(kind, codes_of(kind, model), day_of(when), when if isinstance(when, datetime) else None)
        if kind == "Observation":
            parts = tuple((codes(part.code), value_of(part)) for part in model.component or [])
            finding = replace(finding, value=value_of(model), components=parts)
        if kind == "MedicationRequest" and model.medicationReference is not None:
            inside = contained(raw, model.medicationReference.reference)
            if inside is None:  # the medication may stand in another file
                self._by_drug.append((patient, _target(raw["medicationReference"]), finding))
                return
            finding = replace(finding, codes=inside)
        self._findings.setdefault(patient, []).append(finding)

    def delivery(self) -> Delivery:
        """Everything joined. Findings and problems of patients who are not in the delivery belong to nobody."""
        for patient, drug, finding in self._by_drug:
            if drug in self._drugs:
                self._findings.setdefault(patient, []).append(replace(finding, codes=self._drugs[drug]))
            else:
                self._problems.setdefault(patient, "a MedicationRequest names a medication that is not in the delivery")
        strangers = 0
        for reference, findings in self._findings.items():
            identifier = self._people.get(reference)
            if identifier is None:
                strangers += len(findings)
            else:
                self.found.people[identifier].findings += findings
        for reference, problem in self._problems.items():
            identifier = self._people.get(reference)
            if identifier is None:
                strangers += 1
            else:
                self.found.people[identifier].problem = self.found.people[identifier].problem or problem
        if strangers:
            self.found.left_out.append((Path(), f"{strangers} resources are of patients who are not in the delivery"))
        return self.found


def _target(reference: Any) -> str:
    """What a reference points to, as people and medications are kept here; empty if it can't be followed."""
    if not isinstance(reference, dict):
        return ""
    to = reference.get("reference")
    if isinstance(to, str):
        if to.startswith("urn:"):
            return to
        if match := _REFERENCE.search(to):
            return f"{match[1]}/{match[2]}"
        return to.partition("Patient?identifier=")[2]
    logical = reference.get("identifier")
    return f"{logical.get('system')}|{logical.get('value')}" if isinstance(logical, dict) else ""
