"""Selections as data: what may be asked, in words, and what is refused before anybody compiles it."""

import json

import pytest
from pydantic import ValidationError

from conf.selection import Selection
from conf.study import LARGEST, Study, words

OLD = {"field": "endpoint.age", "op": ">=", "value": 50}
STUDY = {"konsil_version": "0.1.0", "task": {"name": "count"}, "rounds": 1, "sites": ["clinic"]}


def read(where):
    return Selection.model_validate_json(json.dumps({"where": where}), strict=True)


def refusal(where):
    with pytest.raises(ValidationError) as error:
        read(where)
    return words(error.value)


def test_a_selection_is_told_in_words():
    wanted = {
        "all": [
            OLD,
            {"any": [{"field": "mask.lge", "op": "=", "value": True}, {"field": "endpoint.ef", "op": "known", "value": False}]},
            {"none": [{"field": "scanner.manufacturer", "op": "in", "value": ["GE", "Canon"]}]},
        ]
    }
    assert str(read(wanted)) == (
        "endpoint.age >= 50 and (has mask.lge or endpoint.ef is not known) and not (scanner.manufacturer in GE, Canon)"
    )
    assert read(wanted).fields == ("endpoint.age", "endpoint.ef", "mask.lge", "scanner.manufacturer")


def test_a_studys_selection_is_part_of_its_identity():
    study = Study.from_json(json.dumps({**STUDY, "selection": {"where": OLD}}))
    assert Study.from_json(study.to_json()) == study
    other = Study.from_json(json.dumps({**STUDY, "selection": {"where": {**OLD, "value": 51}}}))
    assert len({study.hash, other.hash, Study.from_json(json.dumps(STUDY)).hash}) == 3


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ({"sql": "1 = 1"}, "a part of a selection is {all: [...]}"),
        ({**OLD, "sql": "1"}, "no such setting"),
        ({**OLD, "all": [OLD]}, "no such setting"),
        ({"all": []}, "at least 1 item"),
        ({**OLD, "op": "LIKE"}, "Input should be '=', '!='"),
        ({**OLD, "field": "age"}, "no field 'age'; there are endpoint.<name>"),
        ({**OLD, "field": "endpoint.age' OR '1'='1"}, "no field"),
        ({**OLD, "field": "endpoint.age; DROP TABLE patients"}, "no field"),
        ({**OLD, "field": "patients.state"}, "no field"),
        ({**OLD, "field": f"endpoint.{'a' * 65}"}, "no field"),
        ({**OLD, "value": [50]}, "'in' and 'not in' take a list"),
        ({**OLD, "op": "in"}, "'in' and 'not in' take a list"),
        ({**OLD, "op": "in", "value": []}, "at least 1 item"),
        ({**OLD, "op": "in", "value": list(range(65))}, "at most 64 items"),
        ({**OLD, "op": "in", "value": [1, "a"]}, "numbers or words are compared, not both"),
        ({**OLD, "value": True}, "neither true nor false"),
        ({**OLD, "value": "fifty"}, "words have no order"),
        ({**OLD, "op": "=", "value": "x" * 65}, "at most 64 characters"),
        ({**OLD, "op": "=", "value": None}, "Input should be a valid"),
        ({"field": "image.lge", "op": "=", "value": 1}, "only '=' and 'known' with true or false"),
        ({"field": "mask.lge", "op": "<", "value": True}, "only '=' and 'known' with true or false"),
    ],
)
def test_what_is_no_selection_is_refused_in_words(where, told):
    assert told in refusal(where)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e400"])
def test_only_finite_numbers_are_compared(number):
    text = json.dumps({"where": {**OLD, "value": "X"}}).replace('"X"', number)
    with pytest.raises(ValidationError, match="finite"):
        Selection.model_validate_json(text, strict=True)


def nested(levels):
    part = OLD
    for _ in range(levels):
        part = {"all": [part]}
    return part


def test_a_selection_is_bounded_in_depth_and_size():
    assert read(nested(5))
    assert "at most 6 levels deep, not 7" in refusal(nested(6))
    assert read({"any": [OLD] * 64})
    assert "at most 64 items" in refusal({"any": [OLD] * 65})
    assert "at most 64 conditions, not 128" in refusal({"any": [{"all": [OLD] * 64}, {"all": [OLD] * 64}]})


def test_a_selection_deeper_than_the_parser_goes_is_refused_and_no_crash():
    with pytest.raises(ValidationError, match="recursion limit"):
        Study.from_json(json.dumps({**STUDY, "selection": "X"}).replace('"X"', '{"all":[' * 50_000 + "]}" * 50_000)[:LARGEST])


@pytest.mark.parametrize("text", [" " * (LARGEST + 1), "ä" * (LARGEST // 2 + 1), "[" * 10_000_000])
def test_an_oversized_study_is_refused_unread(text, tmp_path):
    with pytest.raises(ValidationError) as error:
        Study.from_json(text)
    assert words(error.value).endswith("are no study; at most 262144 are read")
    (tmp_path / "study.json").write_text(text)
    with pytest.raises(ValidationError, match="at most 262144 are read"):
        Study.read(tmp_path / "study.json")
