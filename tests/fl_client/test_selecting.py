"""Whom a study selects: SQL against the same question asked in Python, missing values, and attempts to be more than data."""

import itertools
import json
import math

import numpy as np
import pytest
from sqlalchemy.dialects import sqlite

from conf.selection import Selection
from fl_client.catalog import Catalog, patients
from fl_client.cohort import Cohort
from fl_client.patients import chosen, usable_patients
from fl_client.quality.records import record
from fl_client.selection import compiled, unselected
from fl_client.suitability import tell_usable
from tasks.case import Case, Volume
from tasks.task import load

AGES = (None, 30, 50, 50.5, 71)
SEXES = (None, "F", "M")
MASKS = (None, False, True)  # no image, an image, an image with a mask


def cases():
    for number, (age, sex, mask) in enumerate(itertools.product(AGES, SEXES, MASKS)):
        shape = (2, 3, 3)
        drawn = np.ones(shape, np.uint8) if mask else None
        lge = () if mask is None else (Volume("lge", np.full(shape, 7, np.int16), np.eye(4), drawn),)
        yield Case(f"p{number:02d}", lge, {"age": age, "sex": sex}, {"manufacturer": "GE", "field_strength_t": 1.5})


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    cohort = Cohort(folder / "cohort")
    for case in cases():
        cohort.admit(case)
        record(cohort.folder, case, {})
    made = Catalog(folder / "catalog.sqlite")
    made.refresh(cohort, test_fraction=0.0)
    return made


def age(op, value):
    return {"field": "endpoint.age", "op": op, "value": value}


FEMALE = {"field": "endpoint.sex", "op": "=", "value": "F"}
DRAWN = {"field": "mask.lge", "op": "=", "value": True}
SEEN = {"field": "image.lge", "op": "=", "value": True}
OTHER_SEX = {"field": "endpoint.sex", "op": "not in", "value": ["M", "O"]}


def truth(where, case):
    """Kleene's three values, the slow obvious way."""
    if "all" in where:
        found = [truth(part, case) for part in where["all"]]
        return False if False in found else None if None in found else True
    if "any" in where or "none" in where:
        found = [truth(part, case) for part in where.get("any", where.get("none"))]
        either = True if True in found else None if None in found else False
        return either if "any" in where else None if either is None else not either
    kind, _, name = where["field"].partition(".")
    if kind in ("image", "mask"):
        volume = case.volume(name)
        there = volume is not None and (kind == "image" or volume.mask is not None)
        return there == where["value"]
    value = {"endpoint": case.endpoints, "scanner": case.scanner}[kind].get(name)
    if where["op"] == "known":
        return (value is not None) == where["value"]
    asked = where["value"] if isinstance(where["value"], list) else [where["value"]]
    if value is None or isinstance(value, str) != isinstance(asked[0], str):
        return None
    return {
        "=": lambda: value == asked[0],
        "!=": lambda: value != asked[0],
        "<": lambda: value < asked[0],
        "<=": lambda: value <= asked[0],
        ">": lambda: value > asked[0],
        ">=": lambda: value >= asked[0],
        "in": lambda: value in asked,
        "not in": lambda: value not in asked,
    }[where["op"]]()


@pytest.mark.parametrize(
    "where",
    [
        *(age(op, 50) for op in ("=", "!=", "<", "<=", ">", ">=")),
        age("in", [30, 71]),
        age("not in", [30, 71]),
        age("known", True),
        age("known", False),
        age("=", "50"),
        {"none": [age(">", 40)]},
        {"none": [age(">", 40), DRAWN]},
        {"all": [age(">", 40), FEMALE, DRAWN]},
        {"any": [age(">", 60), FEMALE]},
        {"any": [{"none": [SEEN]}, {"all": [OTHER_SEX, {"none": [age("<", 50)]}]}]},
        {"none": [{"none": [FEMALE]}]},
        {"all": [{**DRAWN, "value": False}, SEEN]},
        {"field": "scanner.field_strength_t", "op": "<", "value": 3},
        {"field": "scanner.manufacturer", "op": "in", "value": ["GE", "Philips"]},
        {"field": "scanner.model", "op": "!=", "value": "x"},
    ],
    ids=json.dumps,
)
def test_sql_selects_whom_three_valued_logic_selects(catalog, where):
    expected = {case.patient for case in cases() if truth(where, case) is True}
    everybody = [case.patient for case in cases()]
    left_out = unselected(catalog, Selection.model_validate({"where": where}), everybody)
    assert set(everybody) - set(left_out) == expected
    for case in cases():
        if truth(where, case) is False:
            assert left_out[case.patient] == "not selected: it is not one of those whom the study is about"
        elif truth(where, case) is None:
            assert "which is not known of this patient" in left_out[case.patient]


def test_quality_parameters_select(catalog):
    thin = {"field": "quality.lge.slices", "op": "=", "value": 2}
    everybody = [case.patient for case in cases()]
    left_out = unselected(catalog, Selection.model_validate({"where": thin}), everybody)
    assert set(everybody) - set(left_out) == {case.patient for case in cases() if case.volume("lge")}


WORDS = ["'; DROP TABLE patients; --", "' OR '1'='1", "F' UNION SELECT state FROM patients --", 'x" OR 1=1', "%", "\x00"]


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("op", ["=", "!=", "in"])
def test_words_are_values_and_never_sql(catalog, op, word):
    """Nobody's sex is such a word: `=` and `in` select nobody, `!=` all whose sex is known."""
    value = [word] if op == "in" else word
    selection = Selection.model_validate({"where": {"field": "endpoint.sex", "op": op, "value": value}})
    everybody = [case.patient for case in cases()]
    chosen_ones = set(everybody) - set(unselected(catalog, selection, everybody))
    assert chosen_ones == ({c.patient for c in cases() if c.endpoints["sex"]} if op == "!=" else set())
    statement = str(compiled(selection.where).compile(dialect=sqlite.dialect()))
    assert word not in statement or word == "%"
    with catalog.reading() as open_:
        assert len(open_.execute(patients.select()).all()) == len(everybody)


def test_names_of_fields_are_parameters_too():
    selection = Selection.model_validate({"where": {"field": "endpoint.age=1", "op": "=", "value": 1}})
    assert "age=1" not in str(compiled(selection.where).compile(dialect=sqlite.dialect()))


OLDER = {"where": {"field": "endpoint.age", "op": ">", "value": 50}}


@pytest.fixture
def site(hospitals):
    """Four patients with images; three have an age."""
    found = hospitals.site("a")
    cohort = Cohort(found.cohort_folder)
    for patient, years in zip(cohort.patients, (40, 60, None, 70), strict=True):
        case = cohort.case(patient)
        cohort.admit(Case(patient, case.volumes, {} if years is None else {"age": years}))
    return found


def test_a_round_takes_the_selected_patients_and_names_the_others_in_the_sites_log_alone(hospitals, site):
    study = hospitals.study(selection=OLDER)
    _, used = usable_patients(site, study, load(study.task), "train")
    assert list(used) == ["p0-1", "p0-3"]
    log = [json.loads(line) for line in (site.folder / "log" / "training.jsonl").read_text().splitlines()]
    assert {line["patient"]: line["left_out"] for line in log} == {
        "p0-0": "not selected: it is not one of those whom the study is about",
        "p0-2": "not selected: the study asks for endpoint.age, which is not known of this patient",
    }


def test_nobodys_presence_moves_anothers_selection(hospitals, site):
    study = hospitals.study(selection=OLDER)
    task = load(study.task)
    before = set(chosen(site, study, task, "train")[1])
    cohort = Cohort(site.cohort_folder)
    cohort.admit(Case("broken", (), {"age": 80}))
    (cohort.folder / "cases" / "broken" / "case.json").write_text("{")
    assert set(chosen(site, study, task, "train")[1]) == before
    cohort.admit(Case("another", cohort.case("p0-0").volumes, {"age": 90}))
    assert set(chosen(site, study, task, "train")[1]) == before | {"another"}


def test_the_person_who_approves_reads_whom_the_study_selects(hospitals, site, capsys):
    tell_usable(site, hospitals.study(selection=OLDER))
    said = capsys.readouterr().out
    assert "study rehearsal asks for patients with endpoint.age > 50" in said
    assert "2 of 4 training patients at a can be used" in said


def test_truth_itself_knows_three_values():
    assert next(truth(age(">", 40), case) for case in cases()) is None
    assert math.prod((len(AGES), len(SEXES), len(MASKS))) == len(list(cases()))
