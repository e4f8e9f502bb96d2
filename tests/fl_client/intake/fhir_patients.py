"""FHIR resources for tests, written by hand as R4 has them (hl7.org/fhir/R4)."""

from __future__ import annotations

import json
from typing import Any

MRN = "urn:mrn"
LOINC, SNOMED = "http://loinc.org", "http://snomed.info/sct"
LDL, WEIGHT, PRESSURE, SYSTOLIC, SMOKING = "18262-6", "29463-7", "55284-4", "8480-6", "72166-2"
DIABETES, SCAN = "44054006", "241620005"

MAPPING: dict[str, Any] = {
    "identifier_system": MRN,
    "index": {"resource": "Procedure", "codes": [f"snomed|{SCAN}"], "which": "latest"},
    "variables": [
        {"kind": "age"},
        {"kind": "sex"},
        {"kind": "number", "name": "ldl", "codes": [f"loinc|{LDL}"], "unit": "mg/dL", "factors": {"mmol/L": 38.67}},
        {"kind": "number", "name": "weight", "codes": [f"loinc|{WEIGHT}"], "unit": "kg", "before_index": True},
        {
            **{"kind": "number", "name": "systolic", "codes": [f"loinc|{PRESSURE}"], "component": f"loinc|{SYSTOLIC}"},
            **{"unit": "mm[Hg]", "which": "max"},
        },
        {
            **{"kind": "category", "name": "smoker", "codes": [f"loinc|{SMOKING}"]},
            "values": {"snomed|449868002": "yes", "snomed|266919005": "never"},
        },
        {"kind": "present", "name": "diabetes", "resource": "Condition", "codes": [f"snomed|{DIABETES}"], "if_none": 0},
        {"kind": "present", "name": "statin", "resource": "MedicationRequest", "codes": ["atc|C10AA05"], "if_none": "missing"},
        {"kind": "survival", "last_seen": ["Encounter"]},
    ],
}


def concept(system: str, code: str) -> dict[str, Any]:
    return {"coding": [{"system": system, "code": code}], "text": "Abendroth's words"}


def patient(number: str = "1", **more: Any) -> dict[str, Any]:
    return {
        "resourceType": "Patient",
        "id": f"pat-{number}",
        "identifier": [{"system": "urn:ssn", "value": "999-58-2222"}, {"system": MRN, "value": f"MRN{number}"}],
        "name": [{"family": "Abendroth", "given": ["Käthe"]}],
        "birthDate": "1950-06-15",
        "gender": "female",
        **more,
    }


def of(number: str = "1") -> dict[str, str]:
    return {"reference": f"Patient/pat-{number}"}


def observation(code: str, day: str | None, value: Any = None, unit: str = "mg/dL", **more: Any) -> dict[str, Any]:
    found = {"resourceType": "Observation", "status": "final", "code": concept(LOINC, code), "subject": of(), **more}
    if day is not None:
        found["effectiveDateTime"] = day
    if value is not None:
        quantity = {"value": value, "unit": unit, "system": "http://unitsofmeasure.org", "code": unit}
        found["valueQuantity"] = quantity
    return found


def scan(day: str = "2020-03-01", **more: Any) -> dict[str, Any]:
    code = concept(SNOMED, SCAN)
    return {
        **{"resourceType": "Procedure", "status": "completed", "code": code, "subject": of(), "performedDateTime": day},
        **more,
    }


def condition(code: str = DIABETES, day: str | None = "2010-01-01", **more: Any) -> dict[str, Any]:
    found = {"resourceType": "Condition", "code": concept(SNOMED, code), "subject": of(), **more}
    return found if day is None else {"onsetDateTime": day, **found}


def encounter(day: str, **more: Any) -> dict[str, Any]:
    kind = {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "AMB"}
    return {
        **{"resourceType": "Encounter", "status": "finished", "class": kind, "subject": of(), "period": {"start": day}},
        **more,
    }


def bundle(*resources: dict[str, Any], kind: str = "collection") -> str:
    return json.dumps({"resourceType": "Bundle", "type": kind, "entry": [{"resource": one} for one in resources]})


def ndjson(*resources: dict[str, Any]) -> str:
    return "".join(json.dumps(one) + "\n" for one in resources)
