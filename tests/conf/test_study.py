import json

import pytest
from pydantic import ValidationError

from conf.study import Strategy, Study, words
from fl_client.site import Site

STUDY = {
    "konsil_version": "0.1.0",
    "task": {"name": "segmentation", "channels": [8, 16], "roi_mm": None, "network": {"dropout": 0.5}},
    "rounds": 5,
    "sites": ["clinic", "north"],
    "privacy": {"epsilon": 4},
}


def read(**settings) -> Study:
    return Study.from_json(json.dumps({**STUDY, **settings}))


def test_what_json_can_say_is_read_arrays_as_tuples_and_whole_numbers_as_floats():
    study = read()
    assert study.sites == ("clinic", "north")
    assert (study.privacy.epsilon, type(study.privacy.epsilon)) == (4.0, float)
    assert study.task == STUDY["task"]
    assert Study.from_json(study.to_json()) == study


@pytest.mark.parametrize(
    ("settings", "refusal"),
    [
        ({"rounds": "5"}, "rounds: Input should be a valid integer (got '5')"),
        ({"rounds": 5.0}, "rounds: Input should be a valid integer (got 5.0)"),
        ({"rounds": True}, "rounds: Input should be a valid integer (got True)"),
        ({"privacy": {"epsilon": "8"}}, "privacy.epsilon: Input should be a valid number (got '8')"),
        ({"name": 7}, "name: Input should be a valid string (got 7)"),
        ({"privacy": {"epsilon": float("nan")}}, "privacy.epsilon: Input should be a finite number (got nan)"),
        ({"epsilon": 3}, "epsilon: no such setting"),
        ({"sites": ["a", "a"]}, "study: sites must name at least one hospital, each once, not ['a', 'a']"),
        (
            {"name": "my study"},
            "name: may hold only letters, digits, '_', '.' and '-', beginning with a letter or digit, 1 to 64 characters "
            "(got 'my study')",
        ),
        (
            {"initial_model_sha256": "F00"},
            "initial_model_sha256: may hold only digits and letters from a to f, 64 characters (got 'F00')",
        ),
        (
            {"training": {"personal": ["a b"]}},
            "training.personal.0: may hold only letters, digits, '_', '.', '*', '?', '[', ']' and '-', 1 to 200 characters "
            "(got 'a b')",
        ),
    ],
)
def test_wrong_types_nan_and_unknown_keys_are_refused_in_words(settings, refusal):
    with pytest.raises(ValidationError) as error:
        read(**settings)
    assert words(error.value) == refusal


@pytest.mark.parametrize(
    ("task", "refusal"),
    [
        ('{"name": "segmentation", "field_mm": NaN}', "field_mm is nan"),
        ('{"name": "segmentation", "channels": [8, -Infinity]}', "channels.1 is -inf"),
        ('{"name": "segmentation", "network": {"dropout": 1e400}}', "network.dropout is inf"),
    ],
)
def test_a_task_setting_that_is_not_finite_is_refused_with_its_path(task, refusal):
    text = json.dumps({**STUDY, "task": "TASK"}).replace('"TASK"', task)
    with pytest.raises(ValidationError) as error:
        Study.from_json(text)
    assert f"{refusal}; task settings must be finite numbers" in words(error.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nor_can_a_study_be_made_with_one(value):
    with pytest.raises(ValidationError, match="finite"):
        Study.model_validate({**STUDY, "task": {"name": "segmentation", "network": {"dropout": value}}})


@pytest.mark.parametrize(
    "change",
    [
        {"sites": ["clinic", "b\nPrice   price epsilon 0.01"]},
        {"sites": ["\x1b[8m"]},
        {"name": "pilot\n"},
        {"task": {"name": "segmentation", "note": "\x1b[1A"}},
        {"task": {"name": "segmentation", "a\u202eb": 1}},
        {"selection": {"where": {"field": "endpoint.sex", "op": "=", "value": "F\r"}}},
    ],
)
def test_nothing_that_could_hide_or_imitate_a_line_of_the_contract_is_a_study(change):
    with pytest.raises(ValidationError) as error:
        Study.from_json(json.dumps({**STUDY, **change}))
    assert words(error.value)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("global", "no hospital can be called 'global': that is the study's own model"),
        ("clinic.part", "'clinic.part' can't be a hospital's name: files that end in .part are only half written"),
    ],
)
def test_a_hospital_has_no_name_that_means_something_else_where_it_is_used(name, reason, tmp_path):
    with pytest.raises(ValidationError) as error:
        Study.from_json(json.dumps({**STUDY, "sites": ["north", name]}))
    assert words(error.value).startswith("sites.1: ")
    assert reason in words(error.value)
    with pytest.raises(ValidationError) as error:
        Site(name=name, folder=tmp_path, declared_size=10)
    assert reason in words(error.value)
    assert Study.from_json(json.dumps({**STUDY, "sites": ["globalis", "part"]})).sites == ("globalis", "part")


@pytest.mark.parametrize(
    "change",
    [{"rounds": 10**6}, {"training": {"steps": 10**6}}, {"task": {"name": "count", "edge": 10**400}}, {"sites": ["a"] * 2000}],
)
def test_a_study_that_would_keep_a_hospital_reckoning_for_ever_is_none(change):
    with pytest.raises(ValidationError):
        Study.from_json(json.dumps({**STUDY, **change}))


def test_a_deadline_of_its_own_is_for_a_hospital_of_the_study():
    settings = {"konsil_version": "1", "task": {"name": "count"}, "rounds": 1, "sites": ("north", "south")}
    study = Study(**settings, strategy=Strategy(round_timeout_s=60.0, site_timeouts_s={"south": 90.0}))
    assert (study.strategy.timeout_s("north"), study.strategy.timeout_s("south")) == (60.0, 90.0)
    assert Study.from_json(study.to_json()) == study
    with pytest.raises(ValidationError, match="site_timeouts_s names sout; the sites are north, south"):
        Study(**settings, strategy=Strategy(site_timeouts_s={"sout": 90.0}))


def test_no_hospital_works_for_longer_than_its_answer_counts():
    read(training={"work_s": 120, "steps": 9}, strategy={"round_timeout_s": 120})
    with pytest.raises(ValidationError) as error:
        read(training={"work_s": 500}, strategy={"round_timeout_s": 120})
    assert words(error.value).startswith("study: training.work_s is 500 s, but clinic's answer counts for 120 s")
    with pytest.raises(ValidationError) as error:
        read(training={"work_s": 60}, strategy={"round_timeout_s": 120, "site_timeouts_s": {"north": 30}})
    assert "north's answer counts for 30 s" in words(error.value)
