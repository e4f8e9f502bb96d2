"""The METRICS checklist of a radiomics study: filled with the study's own numbers, and open where only a person can know."""

import json
from collections import Counter
from functools import cache

import pytest
from drawn_radiomics import build

from fl_server.record import Record
from simulation.__main__ import settings_of
from simulation.radiomics.checklist import checklist
from simulation.radiomics.folds import Fold
from simulation.radiomics.report_facts import World
from simulation.settings import FolderHospitals

CATEGORIES = {  # and how many items of each: Kocak et al. 2024, table 1
    "Study design": 3,
    "Imaging data": 4,
    "Segmentation": 3,
    "Image processing and feature extraction": 3,
    "Feature processing": 4,
    "Preparation for modeling": 2,
    "Metrics and comparison": 6,
    "Testing": 2,
    "Open science": 3,
}
FOR_PEOPLE = {"1", "2", "3", "5", "19", "24", "27", "29", "30"}
HOSPITALS = {
    "alster": {"scanner": "SIEMENS 1.5 T", "patients": 8, "rows": 130, "positive": 50, "left_out": {"p1": "no mask"}},
    "isar": {"scanner": "GE 3 T", "patients": 12, "rows": 190, "positive": 30, "left_out": {}},
}


@cache
def composed(study):
    return settings_of([f"study={study}"])


def world_of(study, **changes):
    settings = composed(study).model_copy(update=changes)
    split = [Fold(number, {}, {}) for number in range(5)]
    return World(settings, settings.radiomics, {}, split, {}, None, {})


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """A record, and everything that the report of a study would hold: numbers were drawn, not learned."""
    folder = tmp_path_factory.mktemp("run")
    facts = build(folder)
    facts.pop("checklist")
    return Record.read(folder / "record.json"), {**facts, "hospitals": HOSPITALS}


@pytest.fixture(scope="module")
def radiomics(told):
    return by_number(checklist(world_of("radiomics"), *told))


def by_number(items):
    return {item["number"]: item for item in items}


def real(series="lge"):
    """Hospitals whose patients are real."""
    hospitals = {"source": "folders", "images": "a", "masks": "b", "labels": "cardiac", "series": [series], "sites": ["a", "b"]}
    return FolderHospitals.model_validate(hospitals)


def test_it_has_the_thirty_items_of_metrics_in_nine_categories(radiomics):
    assert list(radiomics) == [str(number) for number in range(1, 31)]
    assert Counter(item["section"] for item in radiomics.values()) == CATEGORIES
    assert list(dict.fromkeys(item["section"] for item in radiomics.values())) == list(CATEGORIES)
    assert all(set(item) == {"number", "section", "item", "filled", "text"} for item in radiomics.values())  # and no score
    assert json.loads(json.dumps(radiomics, allow_nan=False)) == radiomics


@pytest.mark.parametrize("study", ["radiomics", "myocarditis", "heart_disease"])
def test_an_open_item_says_what_a_person_has_to_write_and_a_filled_one_asks_for_nothing(told, study):
    for item in checklist(world_of(study), *told):
        assert item["text"].endswith(".")
        assert ("To be written: " in item["text"]) != item["filled"], item
        assert "None " not in item["text"]
        assert "nan" not in item["text"].split()


@pytest.mark.parametrize("study", ["radiomics", "myocarditis", "heart_disease"])
def test_what_only_people_know_stays_open(told, study):
    items = by_number(checklist(world_of(study), *told))
    stays = FOR_PEOPLE - ({"5", "24"} if study == "heart_disease" else set())  # it has no images
    assert [number for number in stays if items[number]["filled"]] == []
    assert "items are paraphrased" in items["1"]["text"]


def test_of_real_patients_the_software_knows_less(told):
    items = by_number(checklist(world_of("radiomics", hospitals=real()), *told))
    assert [n for n in FOR_PEOPLE | {"6", "7", "8", "10", "28"} if items[n]["filled"]] == []
    assert "Scanners: alster: SIEMENS 1.5 T, isar: GE 3 T." in items["6"]["text"]
    assert not any("enerated patients" in item["text"] for n, item in items.items() if n in ("2", "3", "4", "28"))


def test_the_sentences_carry_the_studys_numbers(radiomics, told):
    record, facts = told
    arm = facts["arms"]["forest_private"]  # what the report is about
    value, low, high = (f"{arm['auc'][key]:.3f}" for key in ("value", "low", "high"))
    said = {number: item["text"] for number, item in radiomics.items()}
    assert "20 patients of 2 hospitals; 1 more could not be used" in said["2"]
    assert "Yes: 2 hospitals (generated), scanners SIEMENS 1.5 T, GE 3 T" in said["4"]
    assert "pyradiomics-bhklab 3.1.4" in said["12"]
    assert "99 of 102 features" in said["12"]
    columns = len(world_of("radiomics").classifier.task["radiomic"])
    assert f"{columns} columns; 80 of 320 labelled segments positive, in 20 patients" in said["16"]
    assert f"{80 / columns:.1f} segments of the rarer class, and {20 / columns:.1f} patients" in said["16"]
    assert "5 folds by patient" in said["18"]
    assert "holds back 20% of the patients" in said["18"]
    before = sum(facts["harmonisation"]["scanner_share_before"].values()) / 4
    after = sum(facts["harmonisation"]["scanner_share_after"].values()) / 4
    assert f"explains {before:.0%} of a column's variance on average, {after:.0%} after harmonisation" in said["19"]
    assert f"{arm['label']}: AUC {value} (95 % interval {low} to {high})" in said["20"]
    assert f"sensitivity {arm['youden']['sensitivity']:.2f}, specificity {arm['youden']['specificity']:.2f}" in said["20"]
    assert "80 positive and 240 negative segments" in said["20"]
    assert (
        f"{facts['federated']['forest_private']['auc']:.3f}, on which the noise has a standard deviation of 0.009" in said["21"]
    )
    assert f"Brier score {arm['brier']:.3f}" in said["22"]
    logistic = facts["arms"]["logistic_private"]["auc"]["value"]
    assert f"AUC {logistic:.3f}" in said["25"]
    assert "was not tested" in said["25"]
    assert "epsilon 2.99 at delta 0.001" in said["28"]
    assert record.study_hash[:16] in said["29"]
    assert record.rounds[-1].arrays_sha256[:16] in said["30"]


def test_masks_of_a_model_are_told_and_their_missing_evaluation_is_open(told):
    record, facts = told
    items = by_number(checklist(world_of("myocarditis"), record, facts))
    assert "A U-Net of " in items["8"]["text"]
    assert not items["9"]["filled"]
    assert f"AUC with the U-Net's masks {facts['arms']['forest_unet_private']['auc']['value']:.3f}" in items["9"]["text"]
    assert "one tool" in items["10"]["text"]
    assert "the network only draws masks" in items["17"]["text"]
    measured = record.model_copy(deep=True)
    for number, site in enumerate(measured.sites.values()):
        site.dice = {"myocardium": 0.7 + 0.02 * number}
    item = by_number(checklist(world_of("myocarditis"), measured, facts))["9"]
    assert item["filled"]
    assert "mean over 6 hospitals: myocardium 0.750" in item["text"]  # of 0.70, 0.72, ... 0.80


def test_robustness_counts_once_it_is_known_of_every_column(radiomics, told):
    record, facts = told
    assert not radiomics["14"]["filled"]  # the drawn run knows other columns
    names = [feature["name"] for feature in world_of("radiomics").classifier.task["radiomic"]]
    table = [{"column": name, "icc_rescan": 0.9, "icc_mask": 0.8} for name in names]
    table[1] |= {"icc_mask": 0.6}
    item = by_number(checklist(world_of("radiomics"), record, {**facts, "robustness": table}))["14"]
    assert item["filled"]
    assert f"{len(names) - 1} of {len(names)} radiomic columns keep" in item["text"]
    assert f"the least is 0.60 ({names[1]})" in item["text"]
    table[0] |= {"icc_rescan": None}
    item = by_number(checklist(world_of("radiomics"), record, {**facts, "robustness": table}))["14"]
    assert f"known of {len(names) - 1} of {len(names)} radiomic columns" in item["text"]


def test_the_two_columns_most_alike_are_named(told):
    record, facts = told
    values = [[1.0, -1.0, 3.0], [2.0, -2.1, None], [3.0, -2.9, -1.0], [4.0, -4.0, 2.0]]
    shown = {**facts, "feature_map": {"columns": ["a", "b", "c"], "values": values}}
    text = by_number(checklist(world_of("radiomics"), record, shown))["15"]["text"]
    assert "most alike in these patients are a and b (correlation -1.00)" in text


def test_columns_of_somebody_elses_choice_leave_their_reason_open(told):
    world = world_of("radiomics")
    task = {**world.classifier.task, "radiomic": world.classifier.task["radiomic"][:2]}
    classifier = world.classifier.model_copy(update={"task": task})
    other = World(world.simulation, classifier, {}, world.split, {}, None, {})
    assert by_number(checklist(world, *told))["15"]["filled"]
    item = by_number(checklist(other, *told))["15"]
    assert not item["filled"]
    assert item["text"].startswith("2 columns of the ")


def test_whatever_is_missing_makes_items_open_and_never_an_error(told):
    record, facts = told
    unscored = {"2", "16", "20", "21", "22", "25", "26"}
    for study in ("radiomics", "myocarditis", "heart_disease"):
        for key in facts:
            checklist(world_of(study), record, {k: v for k, v in facts.items() if k != key})
        bare = by_number(checklist(world_of(study), Record(name="x", study={}, study_hash="ab" * 32), {}))
        assert [number for number in unscored if bare[number]["filled"]] == []
    empty = {"value": None, "low": None, "high": None}
    none = {"arms": {"forest_private": {"auc": empty, "auc_certain": None, "youden": None, "calibration": [], "brier": None}}}
    items = by_number(checklist(world_of("radiomics"), record, {**none, "harmonisation": None, "federated": {}}))
    assert [number for number in unscored if items[number]["filled"]] == []


def test_the_model_that_others_can_have_is_that_of_the_round_that_was_chosen(told):
    record, facts = told
    first, last = record.rounds[0], record.rounds[0].model_copy(update={"round": 2, "arrays_sha256": "cd" * 32})
    changes = {"rounds": [first, last]}
    for chosen, sha in ((None, "cd" * 8), (1, "ab" * 8), (2, "cd" * 8)):
        one = record.model_copy(update={**changes, "selected_round": chosen})
        assert f"fingerprint {sha};" in by_number(checklist(world_of("radiomics"), one, facts))["30"]["text"]


def test_a_study_without_images_says_so_of_every_item_about_images(told):
    items = by_number(checklist(world_of("heart_disease"), *told))
    for number in ("5", "6", "8", "9", "10", "11", "12", "13", "14", "15", "17", "23"):
        assert items[number]["text"].startswith("Does not apply"), items[number]
    assert "the study uses no images" in items["4"]["text"]
    assert "labelled rows positive" in items["16"]["text"]
