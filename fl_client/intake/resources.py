"""One FHIR resource: whether it is valid and counts, what it is about, when it was, and its value.

It is checked as R4B by fhir.resources, which has no plain R4. R4B changed the resources of medicinal products, evidence and
subscriptions; those read here are alike in both. Errors name types and elements, never a value.
Sources: hl7.org/fhir/R4, hl7.org/fhir/R4B/diff.html.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from pydantic import ValidationError

TYPES = ("Patient", "Observation", "Condition", "Procedure", "MedicationRequest", "Medication", "Encounter", "ImagingStudy")
CODED = {"MedicationRequest": "medicationCodeableConcept", "Encounter": "type", "ImagingStudy": "modality"}
"""The element that says what a resource is about, where it isn't `code`."""

_NOT_COUNTED = {
    "Observation": {"registered", "preliminary", "cancelled", "entered-in-error", "unknown"},
    "Procedure": {"preparation", "not-done", "entered-in-error", "unknown"},
    "MedicationRequest": {"draft", "cancelled", "entered-in-error", "unknown"},
    "Encounter": {"planned", "cancelled", "entered-in-error", "unknown"},
    "ImagingStudy": {"registered", "cancelled", "entered-in-error", "unknown"},
}
"""Statuses under which a resource says nothing about the patient."""
_UNSURE = {"refuted", "entered-in-error", "unconfirmed", "provisional", "differential"}
_PLANS = {"proposal", "plan", "option"}


@dataclass(frozen=True)
class Quantity:
    """A number with its unit as it was sent."""

    value: float
    system: str | None
    code: str | None
    written: str | None
    exact: bool  # False: "less than" and the like


@dataclass(frozen=True)
class Finding:
    """One resource, as far as a mapping may ask: its codes (`system|code`), its day, its value."""

    resource: str
    codes: frozenset[str]
    day: date | None  # at the place of care; None: no date, or one without a day
    moment: datetime | None = None
    value: Quantity | frozenset[str] | None = None
    components: tuple[tuple[frozenset[str], Quantity | frozenset[str] | None], ...] = ()


def checked(kind: str, raw: dict[str, Any]) -> Any:
    """The resource as fhir.resources understands it. Raises `ValueError` in words that name elements and no values."""
    model = getattr(importlib.import_module(f"fhir.resources.R4B.{kind.lower()}"), kind)
    try:  # without the narrative, which nobody reads here, and what is contained, which may be of any type
        found = model.model_validate({key: value for key, value in raw.items() if key not in ("text", "contained")})
    except ValidationError as error:
        told = dict.fromkeys(_told(item["loc"], item["type"], model) for item in error.errors())
        raise ValueError(f"not valid as FHIR R4: {'; '.join(list(told)[:3])}") from None
    except (TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise ValueError(f"not valid as FHIR R4 ({type(error).__name__})") from None
    if getattr(found, "modifierExtension", None):
        raise ValueError("it carries a modifier extension, which may reverse its meaning; konsil knows none")
    if found.implicitRules:
        raise ValueError("it says that it can be understood by special rules only (implicitRules)")
    return found


def _told(location: tuple[int | str, ...], problem: str, model: Any) -> str:
    """Which element is wrong and how; names that the sender made up are not repeated."""
    if problem == "extra_forbidden" or not location or str(location[0]) not in model.model_fields:
        return "an element that R4 doesn't have" if problem == "extra_forbidden" else "an element is missing or wrong"
    return f"{location[0]} is missing" if "missing" in problem else f"{location[0]} is wrong"


def counts(kind: str, model: Any) -> bool:
    """Whether the resource says something about the patient: no draft, no mistake, no mere suspicion, no order not to."""
    if kind == "Condition":
        status = {coding.code for coding in (model.verificationStatus.coding or [] if model.verificationStatus else [])}
        return not status & _UNSURE
    if kind == "MedicationRequest" and (model.intent in _PLANS or model.doNotPerform):
        return False
    return model.status not in _NOT_COUNTED[kind]


def when_of(kind: str, model: Any) -> date | datetime | str | None:
    """When it was, at the place of care. A string is a date without a day."""
    elements = {
        "Observation": ("effectiveDateTime", "effectiveInstant", "effectivePeriod"),
        "Condition": ("onsetDateTime", "onsetPeriod", "recordedDate"),
        "Procedure": ("performedDateTime", "performedPeriod"),
        "MedicationRequest": ("authoredOn",),
        "Encounter": ("period",),
        "ImagingStudy": ("started",),
    }
    for element in elements[kind]:
        found = getattr(model, element)
        when: date | datetime | str | None = found.start if element.lower().endswith("period") and found else found
        if when:
            return when
    return None


def day_of(when: object) -> date | None:
    """The day as it was written, in the time of the place; None for a date without a day."""
    if isinstance(when, datetime):
        return when.date()
    return when if isinstance(when, date) else None


def codes_of(kind: str, model: Any) -> frozenset[str]:
    """What the resource is about, as `system|code`."""
    if kind == "Encounter":
        return frozenset().union(*(codes(one) for one in model.type or []))
    if kind == "ImagingStudy":
        return frozenset(f"{coding.system}|{coding.code}" for coding in model.modality or [])
    return codes(model.medicationCodeableConcept if kind == "MedicationRequest" else model.code)


def codes(concept: Any) -> frozenset[str]:
    """The codes of a concept that was checked, as `system|code`."""
    return frozenset(f"{coding.system}|{coding.code}" for coding in (concept.coding or [] if concept is not None else []))


def raw_codes(concept: Any) -> frozenset[str]:
    """The codes of a concept, of several, or of codings, before they were checked. Raises `TypeError`, `AttributeError`."""
    found = []
    for one in concept if isinstance(concept, list) else [concept]:
        found += [f"{coding.get('system')}|{coding.get('code')}" for coding in one.get("coding", [one])]
    return frozenset(found)


def contained(raw: dict[str, Any], reference: str | None) -> frozenset[str] | None:
    """The codes of a medication inside the resource itself; None if it stands elsewhere. Raises `ValueError`."""
    if not reference or not reference.startswith("#"):
        return None
    try:
        inside = next(one for one in raw["contained"] if one["id"] == reference[1:] and one["resourceType"] == "Medication")
        return raw_codes(inside["code"])
    except (StopIteration, KeyError, TypeError, AttributeError):
        raise ValueError("the medication that it should contain isn't there") from None


def value_of(part: Any) -> Quantity | frozenset[str] | None:
    """The value of an observation or a component; None if there is none of a kind that mappings ask for."""
    quantity = part.valueQuantity
    if quantity is not None and quantity.value is not None:
        exact = quantity.comparator is None
        return Quantity(float(quantity.value), quantity.system, quantity.code, quantity.unit, exact)
    if part.valueInteger is not None:
        return Quantity(float(part.valueInteger), None, "1", None, True)
    return codes(part.valueCodeableConcept) or None
