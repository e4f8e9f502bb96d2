"""FHIR deliveries: values by the mapping against hand-made resources and real bundles, and what is refused in words."""

import json
import os
import random
from collections import defaultdict
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import yaml
from fhir_patients import (
    DIABETES,
    LDL,
    LOINC,
    MAPPING,
    MRN,
    PRESSURE,
    SMOKING,
    SNOMED,
    SYSTOLIC,
    WEIGHT,
    bundle,
    concept,
    condition,
    encounter,
    ndjson,
    observation,
    of,
    patient,
    scan,
)
from pydantic import ValidationError

from fl_client.__main__ import main
from fl_client.cohort import Cohort
from fl_client.intake.clinical import admit_fhir
from fl_client.intake.deidentify import Deidentifier
from fl_client.intake.door import Door
from fl_client.intake.fhir import DeliveryUnreadable
from fl_client.intake.mapping import ClinicalMapping
from fl_client.intake.units import converted, unit_of
from fl_client.site import Site
from tasks.case import Case, Volume

DATA = Path(os.environ.get("KONSIL_DATA", Path(__file__).parents[4] / "shared" / "data")) / "fhir"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is not here; KONSIL_DATA says where it is")
KEY = b"sixteen bytes at least"
ONE = Deidentifier(KEY).pseudonym("MRN1")


@pytest.fixture
def let_in(tmp_path):
    """Let resources in as one bundle: `let_in(*resources)` gives the intake's outcome and the cohort."""

    def enter(*resources, mapping=MAPPING, text=None, name="Abendroth.json"):
        (tmp_path / name).write_text(bundle(*resources) if text is None else text)
        cohort = Cohort(tmp_path / "cohort")
        wanted = ClinicalMapping.model_validate(mapping)
        return admit_fhir(tmp_path / name, cohort, key=KEY, mapping=wanted), cohort

    return enter


@pytest.fixture
def values(let_in):
    """The endpoints of patient MRN1 after these resources, with the patient and the scan of 1 March 2020."""

    def found(*resources, **more):
        intake, cohort = let_in(patient(), scan(), *resources, **more)
        assert not intake.refused, intake.refused
        return dict(cohort.case(ONE).endpoints)

    return found


@pytest.fixture
def refusal(let_in):
    """Why MRN1 is refused with these resources."""

    def why(*resources, person=None, **more):
        intake, cohort = let_in(person or patient(), scan(), *resources, **more)
        assert cohort.patients == ()
        return intake.refused[ONE]

    return why


def variables(*some, **more):
    return {**MAPPING, "variables": list(some), **more}


# -- what a mapping finds ------------------------------------------------------------------------------------------------


def test_a_patients_resources_become_endpoints_of_a_case_under_the_pseudonym_of_the_images(values):
    smokes = observation(SMOKING, "2019-01-01", valueCodeableConcept=concept(SNOMED, "449868002"))
    systolic = {
        "code": concept(LOINC, SYSTOLIC),
        "valueQuantity": {"value": 141, "unit": "mmHg", "system": "http://unitsofmeasure.org", "code": "mm[Hg]"},
    }
    diastolic = {**systolic, "code": concept(LOINC, "8462-4"), "valueQuantity": {**systolic["valueQuantity"], "value": 200}}
    drug = concept("http://www.whocc.no/atc", "C10AA05")
    statin = {
        **{"resourceType": "MedicationRequest", "status": "active", "intent": "order", "subject": of()},
        "medicationCodeableConcept": drug,
    }
    assert values(
        observation(LDL, "2019-02-01", 130),
        observation(WEIGHT, "2020-02-01", 81.5, "kg"),
        observation(PRESSURE, "2019-01-01", component=[diastolic, systolic]),
        smokes,
        condition(),
        statin,
        encounter("2021-03-01"),
    ) == {
        **{"age": 69, "sex": "F", "ldl": 130.0, "weight": 81.5, "systolic": 141.0, "smoker": "yes", "diabetes": 1},
        **{"statin": 1, "time_days": 365, "event": 0},
    }


def test_what_is_not_known_is_not_written_and_zero_is_a_value(values):
    found = values(observation(LDL, "2019-02-01", 0), condition("1234"))
    assert found == {"age": 69, "sex": "F", "ldl": 0.0, "diabetes": 0}


def test_without_a_single_condition_nobody_is_without_diabetes(let_in):
    intake, cohort = let_in(patient(), scan())
    assert "diabetes" not in cohort.case(ONE).endpoints
    assert list(intake.left_out.values()) == ["no Condition came at all, so that nobody's diabetes is taken for 0"]


@pytest.mark.parametrize(
    ("birth", "day", "age"),
    [
        ("1950-06-15", "2020-06-14", 69),
        ("1950-06-15", "2020-06-15", 70),
        ("1920-01-01", "2020-01-01", 89),
        ("1950-06", "2020-06-15", None),
        ("1950", "2020-06-15", None),
        ("1950-06-15", "2020", None),
    ],
)
def test_age_is_in_whole_years_at_the_index_day_capped_and_never_guessed_from_part_of_a_date(let_in, birth, day, age):
    _, cohort = let_in(patient(birthDate=birth), scan(day))
    assert cohort.case(ONE).endpoints.get("age") == age


@pytest.mark.parametrize(("which", "expected"), [("latest", 3.0), ("earliest", 2.0), ("max", 9.0), ("min", 2.0)])
def test_which_of_several_is_said_by_the_mapping(values, which, expected):
    mapping = variables({"kind": "number", "name": "ldl", "codes": [f"loinc|{LDL}"], "unit": "mg/dL", "which": which})
    days = ("2018-01-01", "2019-05-05T10:00:00+02:00", "2019-05-05T12:00:00+02:00")
    several = [observation(LDL, day, value) for day, value in zip(days, (2, 9, 3), strict=True)]
    assert values(*several, mapping=mapping) == {"ldl": expected}
    assert values(*reversed(several), mapping=mapping) == {"ldl": expected}


def test_what_came_after_the_index_day_does_not_count_where_the_mapping_says_so(values):
    assert values(observation(WEIGHT, "2020-03-01", 80, "kg"), observation(WEIGHT, "2020-03-02", 70, "kg"))["weight"] == 80


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [(5, "mmol/L", 193.35), (1.3, "g/L", 130.0), (130, "mg/dl", 130.0), (1300, "mg/L", 130.0)],
)
def test_units_are_converted_by_table_or_by_the_sites_factor(values, value, unit, expected):
    assert values(observation(LDL, "2019-01-01", value, unit))["ldl"] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("unit", ["mm[Hg]", "kg", "mg", "furlong", "Abendroth"])
def test_another_unit_refuses_the_patient_by_variable_and_repeats_nothing(refusal, unit):
    assert refusal(observation(LDL, "2019-01-01", 130, unit)) == ("ldl: a value has no unit that can be converted into mg/dL")


def test_unit_conversions_agree_with_published_ones():
    assert converted(98.6, "[degF]", "Cel") == pytest.approx(37)
    assert converted(1, "[lb_av]", "kg") == 0.45359237
    assert converted(120, "mm[Hg]", "kPa") == pytest.approx(15.9987, rel=1e-5)  # 1 mmHg = 133.322 Pa
    assert converted(4.5, "10*3/uL", "10*9/L") == 4.5
    assert converted(1, "kg", "cm") is None
    assert unit_of(system=None, code=None, written="mmHg") == "mm[Hg]"
    assert unit_of(system="urn:local", code="X1", written="mg/dL") is None
    assert unit_of(system=None, code=None, written=None) is None


@pytest.mark.parametrize(
    ("resource", "told"),
    [
        (observation(LDL, "2019-01-01", valueString="high"), None),
        (observation(LDL, "2019-01-01", valueCodeableConcept=concept(SNOMED, "1")), "ldl: the value is no quantity"),
        (
            observation(LDL, "2019-01-01", valueQuantity={"value": 5, "comparator": "<", "unit": "mg/dL"}),
            "ldl: a value is a bound (less or more than) and no number",
        ),
        (
            observation(SMOKING, "2019-01-01", valueCodeableConcept=concept(SNOMED, "77176002")),
            "smoker: an answer has a code that the mapping doesn't name",
        ),
        (encounter("2021-01-01", status="entered-in-error"), None),
        (observation(LDL, "2019-01-01", 5, "cm", status="entered-in-error"), None),
        (observation(LDL, "2019-01-01", 5, "cm", status="preliminary"), None),
        (
            observation(LDL, "2019-01-01", 130, modifierExtension=[{"url": "urn:not", "valueBoolean": True}]),
            "entry 3, Observation: it carries a modifier extension, which may reverse its meaning; konsil knows none",
        ),
        (
            observation(LDL, "2019-01-01", 130, implicitRules="urn:rules"),
            "entry 3, Observation: it says that it can be understood by special rules only (implicitRules)",
        ),
        (observation(LDL, "2019-02-30", 130), "entry 3, Observation: not valid as FHIR R4: effectiveDateTime is wrong"),
        (
            {key: value for key, value in observation(LDL, None, 1).items() if key != "status"},
            "entry 3, Observation: not valid as FHIR R4: status is missing",
        ),
        (
            observation(LDL, "2019-01-01", 1, Abendroth=1),
            "entry 3, Observation: not valid as FHIR R4: an element that R4 doesn't have",
        ),
        ({**condition(), "code": "Abendroth"}, "not valid as FHIR R4: code is wrong"),
    ],
)
def test_what_cannot_be_right_refuses_the_patient_and_what_does_not_count_does_not(let_in, resource, told):
    intake, cohort = let_in(patient(), scan(), resource)
    if told is None:
        assert dict(cohort.case(ONE).endpoints) == {"age": 69, "sex": "F"}
    else:
        assert intake.refused[ONE].endswith(told)
        assert "Abendroth" not in intake.refused[ONE]


def test_two_values_of_one_time_refuse_and_the_same_value_twice_does_not(let_in, refusal):
    twice = [observation(LDL, "2019-01-01T08:00:00Z", value) for value in (130, 131)]
    assert refusal(*twice) == "ldl: there are two different values of one time"
    _, cohort = let_in(patient(), scan(), twice[0], twice[0])
    assert cohort.case(ONE).endpoints["ldl"] == 130


@pytest.mark.parametrize(
    ("status", "expected"), [("confirmed", 1), ("refuted", 0), ("entered-in-error", 0), ("provisional", 0), (None, 1)]
)
def test_a_diagnosis_that_was_refuted_or_is_a_suspicion_is_none(values, status, expected):
    system = "http://terminology.hl7.org/CodeSystem/condition-ver-status"
    more = {} if status is None else {"verificationStatus": concept(system, status)}
    assert values(condition(**more))["diabetes"] == expected


def test_a_diagnosis_without_a_date_leaves_before_the_index_open(values):
    early = {"kind": "present", "name": "d", "resource": "Condition", "codes": [f"snomed|{DIABETES}"], "if_none": 0}
    mapping = variables({**early, "before_index": True}, {"kind": "sex"})
    assert values(condition(day=None), mapping=mapping) == {"sex": "F"}
    assert values(condition(day="2021-01-01"), mapping=mapping) == {"sex": "F", "d": 0}
    assert values(condition(day="2020-03-01"), mapping=mapping) == {"sex": "F", "d": 1}


def order(**more):
    return {"resourceType": "MedicationRequest", "status": "active", "intent": "order", "subject": of(), **more}


ATC = concept("http://www.whocc.no/atc", "C10AA05")
DRUG = {"resourceType": "Medication", "id": "m1", "code": ATC}


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        ([order(medicationCodeableConcept=ATC)], 1),
        ([order(medicationReference={"reference": "Medication/m1"}), DRUG], 1),
        ([order(medicationReference={"reference": "#m1"}, contained=[DRUG])], 1),
        ([order(medicationCodeableConcept=ATC, doNotPerform=True)], None),
        ([order(medicationCodeableConcept=ATC, intent="plan")], None),
        ([order(medicationCodeableConcept=ATC, status="cancelled")], None),
    ],
)
def test_prescriptions_name_their_drug_in_three_ways_and_orders_not_to_are_none(values, resources, expected):
    assert values(*resources).get("statin") == expected


@pytest.mark.parametrize("reference", ["Medication/m2", "#m2", "urn:uuid:nowhere"])
def test_a_prescription_whose_drug_is_nowhere_refuses_rather_than_to_count_as_none(refusal, reference):
    assert "medication" in refusal(order(medicationReference={"reference": reference}))


# -- times ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("person", "visits", "expected"),
    [
        ({}, ["2020-03-31"], (30, 0)),
        ({}, ["2020-03-31", "2022-03-01", "2019-01-01"], (730, 0)),
        ({"deceasedDateTime": "2020-03-11T23:59:00+01:00"}, ["2020-03-05"], (10, 1)),
        ({"deceasedDateTime": "2020-03-01"}, [], (0, 1)),
        ({"deceasedBoolean": True}, ["2020-03-31"], None),
        ({"deceasedDateTime": "2020-03"}, ["2020-03-31"], None),
        ({"deceasedBoolean": False}, ["2020-03-31"], (30, 0)),
        ({}, [], None),
        ({}, ["2019-03-31"], None),
    ],
)
def test_survival_is_days_from_the_index_day_and_an_event(let_in, person, visits, expected):
    _, cohort = let_in(patient(**person), scan(), *map(encounter, visits))
    endpoints = cohort.case(ONE).endpoints
    found = (endpoints["time_days"], endpoints["event"]) if "event" in endpoints else None
    assert found == expected


def test_a_death_before_the_index_day_refuses(refusal):
    assert refusal(person=patient(deceasedDateTime="2020-02-29")) == "time_days: the event lies before the index day"


@pytest.mark.parametrize(
    ("day", "died", "expected"),
    [("2020-03-11", None, (10, 1)), (None, "2020-03-21", (20, 0)), ("2020-03-11", "2020-03-21", (10, 1))],
)
def test_an_event_other_than_death_is_censored_by_death(let_in, day, died, expected):
    of_heart = {"resource": "Condition", "codes": ["snomed|22298006"]}
    mapping = variables({"kind": "survival", "of": of_heart}, {"kind": "sex"})
    resources = [condition("22298006", day)] if day else [condition("1")]
    person = patient(**({"deceasedDateTime": died} if died else {}))
    _, cohort = let_in(person, scan(), *resources, encounter("2020-03-15"), mapping=mapping)
    assert (cohort.case(ONE).endpoints["time_days"], cohort.case(ONE).endpoints["event"]) == expected


def test_who_had_the_event_before_is_not_at_risk_and_has_no_time(values):
    mapping = variables({"kind": "survival", "of": {"resource": "Condition", "codes": ["snomed|22298006"]}}, {"kind": "sex"})
    found = values(
        condition("22298006", "2015-01-01"), condition("22298006", "2020-05-01"), encounter("2021-01-01"), mapping=mapping
    )
    assert found == {"sex": "F"}


INFARCT = variables({"kind": "survival", "of": {"resource": "Condition", "codes": ["snomed|22298006"]}}, {"kind": "sex"})


@pytest.mark.parametrize("events", [["2020-05"], ["2020"], [None], ["2020-06-01", "2020-05"]])
def test_an_event_on_a_day_that_nobody_knows_is_missing_and_never_no_event(let_in, events):
    intake, cohort = let_in(
        patient(), scan(), *(condition("22298006", day) for day in events), encounter("2021-01-01"), mapping=INFARCT
    )
    assert dict(cohort.case(ONE).endpoints) == {"sex": "F"}
    assert intake.left_out == {f"{ONE}-event": "event happened on a day that isn't known, so that time_days is missing"}


def test_without_a_single_resource_of_the_events_type_nobody_is_without_the_event(let_in):
    intake, cohort = let_in(patient(), scan(), encounter("2021-01-01"), mapping=INFARCT)
    assert dict(cohort.case(ONE).endpoints) == {"sex": "F"}
    assert list(intake.left_out.values()) == ["no Condition came at all, so that nobody's event is taken for 0"]


def test_no_date_reaches_the_cohort(let_in, tmp_path):
    days = {"kind": "days", "name": "to_visit", "resource": "Encounter", "codes": ["urn:kind|checkup"]}
    mapping = variables(*MAPPING["variables"], days)
    visit = encounter("2021-07-14", type=[concept("urn:kind", "checkup")])
    person = patient(deceasedDateTime="2023-08-17", birthDate="1951-09-19")
    _, cohort = let_in(person, scan("2020-10-23"), visit, observation(LDL, "2019-11-29", 130), mapping=mapping)
    assert cohort.case(ONE).endpoints["to_visit"] == 264
    stored = b"".join(path.read_bytes() for path in (tmp_path / "cohort").rglob("*") if path.is_file())
    for day in ("2021-07-14", "2023-08-17", "1951", "2020-10", "2019-11", "20210714", "20230817"):
        assert day.encode() not in stored


# -- whose it is ---------------------------------------------------------------------------------------------------------


def test_several_patients_in_one_bundle_keep_their_own(let_in):
    two = patient("2", gender="male")
    _, cohort = let_in(
        observation(LDL, "2019-01-01", 100),
        patient(),
        two,
        observation(LDL, "2019-01-01", 200, subject=of("2")),
        condition(subject=of("2")),
    )
    other = Deidentifier(KEY).pseudonym("MRN2")
    assert cohort.case(ONE).endpoints == {"sex": "F", "ldl": 100.0, "diabetes": 0}
    assert cohort.case(other).endpoints == {"sex": "M", "ldl": 200.0, "diabetes": 1}


@pytest.mark.parametrize(
    "subject",
    [
        {"reference": "Patient/pat-1"},
        {"reference": "https://clinic.example/fhir/Patient/pat-1"},
        {"reference": "Patient/pat-1/_history/3"},
        {"reference": f"Patient?identifier={MRN}|MRN1"},
        {"identifier": {"system": MRN, "value": "MRN1"}},
    ],
)
def test_references_of_every_form_lead_to_the_patient(values, subject):
    assert values(observation(LDL, "2019-01-01", 100, subject=subject))["ldl"] == 100


def test_a_transaction_refers_by_its_entries_urls(let_in):
    entries = [
        {"fullUrl": "urn:uuid:1", "resource": {key: value for key, value in patient().items() if key != "id"}},
        {"fullUrl": "urn:uuid:2", "resource": observation(LDL, "2019-01-01", 100, subject={"reference": "urn:uuid:1"})},
    ]
    _, cohort = let_in(text=json.dumps({"resourceType": "Bundle", "type": "transaction", "entry": entries}))
    assert cohort.case(ONE).endpoints["ldl"] == 100


def test_strangers_and_the_unattributable_are_left_out_and_told(let_in):
    lonely = {key: value for key, value in observation(LDL, "2019-01-01", 1).items() if key != "subject"}
    intake, cohort = let_in(patient(), observation(LDL, "2019-01-01", 100, subject=of("9")), lonely, condition("1"))
    assert "ldl" not in cohort.case(ONE).endpoints
    assert sorted(intake.left_out.values()) == [
        "1 resources are of patients who are not in the delivery",
        "entry 3: this Observation names no patient",
    ]


OTHER_ID = [{"system": MRN, "value": "MRN1"}, {"system": MRN, "value": "MRN7"}]


@pytest.mark.parametrize(
    ("identifiers", "told"),
    [
        ([], "no identifier"),
        ([{"system": "urn:ssn", "value": "1"}], "no identifier"),
        ([{"system": MRN, "value": " "}], "no identifier"),
        ([{"system": MRN, "value": "MRN1", "use": "old"}], "no identifier"),
        (OTHER_ID, "several identifiers"),
    ],
)
def test_a_patient_without_exactly_one_identifier_of_the_system_is_left_out(let_in, identifiers, told):
    intake, cohort = let_in(patient(identifier=identifiers), condition())
    assert cohort.patients == ()
    assert f"entry 1, Patient: this patient has {told} of the system that the mapping names" in intake.left_out.values()


def test_duplicates_count_once_and_contradictions_refuse(let_in, refusal):
    ldl = observation(LDL, "2019-01-01", 100, id="o1")
    _, cohort = let_in(patient(), patient(), ldl, ldl, condition("1"))
    assert cohort.case(ONE).endpoints["ldl"] == 100


@pytest.mark.parametrize(
    ("resources", "told"),
    [
        ([patient(birthDate="1950-06-16")], "two patients of this identifier that differ"),
        ([observation(LDL, "2019-01-01", v, id="o1") for v in (1, 2)], "it came twice with different contents"),
        ([patient(identifier=[{"system": MRN, "value": "MRN8"}])], "two patients of the delivery have one id"),
    ],
)
def test_contradictions_refuse_the_patients_that_they_are_about(let_in, resources, told):
    intake, cohort = let_in(patient(), scan(), *resources)
    assert cohort.patients == ()
    assert all(told in reason for reason in intake.refused.values())
    assert ONE in intake.refused


def test_a_record_that_was_replaced_by_another_is_refused(refusal):
    link = [{"other": {"reference": "Patient/new"}, "type": "replaced-by"}]
    assert refusal(person=patient(link=link)) == "the patient's record was replaced by another one"


def test_images_and_clinical_values_meet_whichever_comes_first(tmp_path):
    lge = Volume("lge", np.ones((2, 3, 3), np.int16), np.eye(4))
    (tmp_path / "a.json").write_text(bundle(patient(), scan(), observation(LDL, "2019-01-01", 100)))
    mapping = ClinicalMapping.model_validate(MAPPING)
    pseudonym = Deidentifier(KEY).pseudonym(" MRN1 ")  # as DICOM pads it

    def images(cohort):
        Door(cohort, Deidentifier(KEY)).admit(Case(pseudonym, (lge,), {"age": 1}))

    def values(cohort):
        admit_fhir(tmp_path / "a.json", cohort, key=KEY, mapping=mapping)

    found = []
    for name, steps in (("images first", (images, values)), ("values first", (values, images))):
        cohort = Cohort(tmp_path / name)
        for step in steps:
            step(cohort)
        found.append(cohort.case(ONE))
        assert len(cohort) == 1
    assert [[volume.series for volume in case.volumes] for case in found] == [["lge"], ["lge"]]
    assert found[0].endpoints == {"age": 69, "sex": "F", "ldl": 100.0}
    assert found[1].endpoints == {"age": 1, "sex": "F", "ldl": 100.0}  # the later word on a value counts


def test_a_later_delivery_adds_and_takes_nothing_away(let_in):
    let_in(patient(), scan(), observation(LDL, "2019-01-01", 100), condition())
    _, cohort = let_in(patient(), scan("2021-03-01"), encounter("2021-03-02"), name="later.json")
    assert cohort.case(ONE).endpoints == {**{"age": 70, "sex": "F", "ldl": 100.0, "diabetes": 1}, "time_days": 1, "event": 0}


def test_the_same_delivery_twice_gives_the_same_cohort(let_in):
    resources = patient(), scan(), observation(LDL, "2019-01-01", 5, "cm"), patient("2"), condition(subject=of("2"))
    _, cohort = let_in(*resources)
    before = cohort.refused, [case.endpoints for case in cohort]
    let_in(*resources)
    assert (cohort.refused, [case.endpoints for case in cohort]) == before


def test_a_patient_of_whom_nothing_is_known_is_refused(refusal):
    assert refusal(mapping=variables({"kind": "number", "name": "x", "codes": ["loinc|1"], "unit": "1"})) == (
        "nothing that the mapping asks for is known of this patient"
    )


# -- deliveries ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no FHIR resource was found"),
        ("{", "it is cut short, or isn't JSON"),
        (bundle(patient())[:-5], "it is cut short, or isn't JSON"),
        ("[" * 100_000, "it is cut short, or isn't JSON"),
        (bundle(patient()).replace('"female"', "NaN"), "it is cut short, or isn't JSON"),
        ("[1]", "no FHIR resource was found"),
        ('{"name": "Abendroth"}', "no FHIR resource was found"),
        (bundle(patient(), kind="history"), "a bundle of another type than"),
        ('{"resourceType": "Bundle", "type": "batch", "entry": {}}', "entries are no list"),
        ('{"resourceType": "Bundle", "type": "batch", "entry": [{"resource": 7}]}', "entry 1 holds no resource"),
    ],
)
def test_a_delivery_that_is_not_whole_lets_nobody_in(let_in, tmp_path, text, told):
    with pytest.raises(DeliveryUnreadable, match=told):
        let_in(text=text, name="delivery.json")
    assert Cohort(tmp_path / "cohort").patients == ()


def test_a_damaged_line_of_a_bulk_export_stops_the_whole_export(tmp_path):
    """Else "no diabetes" would be said of patients whose diagnosis stood on a line that is lost."""
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "Patient.ndjson").write_text(ndjson(patient()))
    (tmp_path / "x" / "Condition.ndjson").write_text(ndjson(condition("1"), condition())[:-20])
    with pytest.raises(DeliveryUnreadable, match=r"Condition\.ndjson: line 2 is cut short.*incomplete delivery"):
        admit_fhir(tmp_path / "x", Cohort(tmp_path / "cohort"), key=KEY, mapping=ClinicalMapping.model_validate(MAPPING))


@pytest.mark.parametrize("odd", ['{"note": "end of page 1"}', "[]", "7"])
def test_a_line_of_a_bulk_export_that_is_no_resource_stops_the_export_instead_of_losing_the_lines_after_it(let_in, odd):
    text = ndjson(patient(), scan(), condition("38341003")) + odd + "\n" + ndjson(condition())
    with pytest.raises(DeliveryUnreadable, match=r"Abendroth\.ndjson: line 4 is no FHIR resource.*nobody is let in"):
        let_in(text=text, name="Abendroth.ndjson")


def test_a_folder_of_ndjson_is_joined_whatever_the_order_of_its_files_and_other_json_is_left_out(tmp_path):
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "a.ndjson").write_text(ndjson(condition(), observation(LDL, "2019-01-01", 100)) + "\n")
    (folder / "b.NDJSON").write_text("\ufeff" + ndjson(patient(), scan()), encoding="utf-8")
    (folder / "manifest.json").write_text('{"transactionTime": "2020"}')
    (folder / "readme.txt").write_text("Abendroth")
    cohort = Cohort(tmp_path / "cohort")
    intake = admit_fhir(folder, cohort, key=KEY, mapping=ClinicalMapping.model_validate(MAPPING))
    assert cohort.case(ONE).endpoints == {"age": 69, "sex": "F", "ldl": 100.0, "diabetes": 1}
    assert list(intake.left_out.values()) == ["it is no FHIR resource: there is no resourceType"]


def test_nothing_that_is_stored_names_a_person_or_repeats_a_value(let_in, tmp_path):
    let_in(
        patient(),
        scan(),
        observation(LDL, "2019-01-01", 7777, "cm"),
        patient("2", identifier=[]),
        patient("3"),
        observation(SMOKING, "2019-01-01", valueCodeableConcept=concept("urn:secret", "Abendroth"), subject=of("3")),
        {**condition(subject=of("3")), "code": {"coding": "Abendroth"}},
    )
    stored = b"".join(
        path.read_bytes() + str(path.relative_to(tmp_path / "cohort")).encode()
        for path in (tmp_path / "cohort").rglob("*")
        if path.is_file()
    )
    assert b"ldl" in stored
    for word in ("Abendroth", "Käthe", "999-58-2222", "MRN", "pat-1", "7777", "1950", "urn:secret"):
        assert word.encode() not in stored


def test_any_damage_ends_as_a_case_or_a_reason(let_in, tmp_path):
    """A hundred and fifty random changes of one value each, of every kind that JSON has."""
    resources = [patient(), scan(), observation(LDL, "2019-01-01", 100, id="o"), condition(id="c"), encounter("2021-01-01")]
    resources.append(order(medicationReference={"reference": "#m1"}, contained=[DRUG]))
    random_ = random.Random(0)
    wanted = ClinicalMapping.model_validate(MAPPING)
    odd = (None, 7, -1e300, True, "", "Abendroth", [], {}, [None], {"a": []}, "\ud800", "2020-13-45", 10**400)
    cohort = Cohort(tmp_path / "cohort")
    ends = set()
    for number in range(150):
        changed = json.loads(json.dumps(resources))
        place, key = random_.choice(list(leaves(changed)))
        place[key] = random_.choice(odd)
        (tmp_path / "x.json").write_text(bundle(*changed))
        try:
            intake = admit_fhir(tmp_path / "x.json", cohort, key=KEY, mapping=wanted)
        except DeliveryUnreadable:
            ends.add("unreadable")
            continue
        ends |= {"case"} if intake.admitted else set()
        ends |= {"refused"} if intake.refused else set()
        assert intake.admitted or intake.refused or intake.left_out, number
    assert ends == {"case", "refused", "unreadable"}


def leaves(part):
    for key, value in part.items() if isinstance(part, dict) else enumerate(part):
        yield part, key
        if isinstance(value, (dict, list)):
            yield from leaves(value)


# -- mappings ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mapping", "told"),
    [
        (variables(), "at least 1 item"),
        (variables({"kind": "sex"}, {"kind": "sex"}), "sex is given twice"),
        (variables({"kind": "age"}, index=None), "age needs an index day, and the mapping names none"),
        (variables({"kind": "number", "name": "x", "codes": ["2093-3"], "unit": "1"}), "a code is written system|code"),
        (variables({"kind": "number", "name": "x", "codes": ["loinc|1"], "unit": "mmHg"}), "no UCUM code that konsil knows"),
        (variables({"kind": "present", "name": "x", "resource": "Condition", "codes": ["loinc|1"]}), "if_none"),
        (variables({"kind": "fhirpath", "name": "x", "path": "Patient.name"}), "kind"),
        (variables({"kind": "sex", "name": "a.b"}), "pattern"),
        (variables({"kind": "present", "name": "x", "resource": "Patient", "codes": ["a|b"], "if_none": 0}), "Condition"),
    ],
)
def test_mappings_that_do_not_fit_together_are_refused(mapping, told):
    with pytest.raises(ValidationError, match=told):
        ClinicalMapping.model_validate(mapping)


def test_a_hospital_admits_a_bundle_and_counts_by_command_line(tmp_path, capsys):
    path = tmp_path / "clinic" / "site.yaml"
    assert main(["--site", str(path), "init", "--name", "clinic", "--declared-size", "5"]) == 0
    (tmp_path / "delivery.json").write_text(
        bundle(patient(), scan(), patient("2"), observation(LDL, "2019", 1, "cm", subject=of("2")))
    )
    (tmp_path / "mapping.yaml").write_text(yaml.safe_dump(MAPPING))
    (tmp_path / "old.json").write_text('{"field": "endpoint.age", "op": ">", "value": 60}')
    command = ["--site", str(path), "admit", str(tmp_path / "delivery.json"), "--mapping", str(tmp_path / "mapping.yaml")]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "2 patients: 1 admitted, 1 refused" in said
    assert "refused: ldl: a value has no unit that can be converted into mg/dL" in said
    assert main(["--site", str(path), "count", "--where", str(tmp_path / "old.json")]) == 0
    said = capsys.readouterr().out
    assert "patients at clinic with endpoint.age > 60:" in said
    assert "1 of 1" in said
    assert len(Cohort(Site.load(path).cohort_folder)) == 1
    (tmp_path / "mapping.yaml").write_text("variables: []")
    assert main(command) == 1
    assert "identifier_system: Field required" in capsys.readouterr().err


# -- real deliveries -----------------------------------------------------------------------------------------------------

REAL = {
    "identifier_system": "http://hospital.smarthealthit.org",
    "index": {"resource": "Observation", "codes": [f"loinc|{WEIGHT}"], "which": "latest"},
    "variables": [
        {"kind": "age"},
        {"kind": "sex"},
        {"kind": "number", "name": "weight", "codes": [f"loinc|{WEIGHT}"], "unit": "kg"},
        {"kind": "present", "name": "sinusitis", "resource": "Condition", "codes": ["snomed|40055000"], "if_none": 0},
        {"kind": "survival", "last_seen": ["Encounter"]},
    ],
}


def plainly(resources):
    """The same questions asked of the raw JSON, by subject, without any of our code."""
    people = {r["id"]: r for r in resources if r["resourceType"] == "Patient"}
    mine = defaultdict(list)
    for resource in resources:
        subject = resource.get("subject", {}).get("reference", "").replace("urn:uuid:", "").replace("Patient/", "")
        mine[subject].append(resource)
    for name, person in people.items():
        mrn = next(i["value"] for i in person["identifier"] if i["system"] == REAL["identifier_system"])
        expected = {"sex": {"male": "M", "female": "F"}[person["gender"]]}
        weights = [r for r in mine[name] if r["resourceType"] == "Observation" and r["code"]["coding"][0]["code"] == WEIGHT]
        weights.sort(key=lambda r: r["effectiveDateTime"])
        ill = [r for r in mine[name] if r["resourceType"] == "Condition" and r["code"]["coding"][0]["code"] == "40055000"]
        expected["sinusitis"] = int(bool(ill))
        if weights:
            index = date.fromisoformat(weights[-1]["effectiveDateTime"][:10])
            expected["weight"] = weights[-1]["valueQuantity"]["value"]
            born = date.fromisoformat(person["birthDate"])
            expected["age"] = int((index - born).days / 365.2425)
            visits = [date.fromisoformat(r["period"]["start"][:10]) for r in mine[name] if r["resourceType"] == "Encounter"]
            if "deceasedDateTime" in person:
                expected |= {"time_days": (date.fromisoformat(person["deceasedDateTime"][:10]) - index).days, "event": 1}
            elif max(visits) >= index:
                expected |= {"time_days": (max(visits) - index).days, "event": 0}
        yield Deidentifier(KEY).pseudonym(mrn), expected


@needs_data
@pytest.mark.parametrize("folder", ["synthea_r4_bundles", "bulk_ndjson_10patients"])
def test_generated_patients_of_others_give_what_their_json_says(tmp_path, folder):
    resources = []
    for path in sorted((DATA / folder).iterdir()):
        if path.suffix == ".ndjson":
            resources += [json.loads(line) for line in path.read_text().splitlines()]
        else:
            resources += [entry["resource"] for entry in json.loads(path.read_text())["entry"]]
    cohort = Cohort(tmp_path / "cohort")
    intake = admit_fhir(DATA / folder, cohort, key=KEY, mapping=ClinicalMapping.model_validate(REAL))
    expected = dict(plainly(resources))
    assert not intake.refused
    assert {case.patient: dict(case.endpoints) for case in cohort} == expected
    stored = b"".join(path.read_bytes() for path in (tmp_path / "cohort").rglob("*") if path.is_file())
    for resource in resources:
        if resource["resourceType"] == "Patient":
            for name in resource["name"]:
                assert name["family"].encode() not in stored
