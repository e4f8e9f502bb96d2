from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from fl_client.intake.labels import LabelMap, UnmappedLabel


def test_every_map_of_the_project_can_be_read() -> None:
    for name in ("cardiac", "hippocampus", "sunnybrook"):
        assert LabelMap.load(name).structures


def test_texts_numbers_and_codes_lead_to_the_same_structure(labels: LabelMap) -> None:
    assert labels.of_source("LV Blood Pool ") == labels.of_source(1) == labels.of_code("SCT", "87878005") == 1
    assert labels.of_source("myocardium") == 2
    assert labels.of_code("SCT", "1") is None
    assert labels.role("cavity") == (1,)
    assert labels.name(3) == "right_ventricle"


def test_an_unmapped_label_is_an_error_that_names_what_is_known(labels: LabelMap) -> None:
    with pytest.raises(UnmappedLabel, match=r"label 7 stands nowhere.*LV blood pool"):
        labels.translate(np.array([[[0, 1, 7]]]))
    with pytest.raises(UnmappedLabel, match=r"1\.5 is no whole number"):
        labels.translate(np.array([[[0, 1.5]]]))


def test_a_label_volume_is_translated_value_by_value() -> None:
    source = np.array([[[0.0, 2.0, 3.0, 255.0]]])
    assert LabelMap.load("sunnybrook").translate(source).tolist() == [[[0, 2, 1, 255]]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("sources: [a, 2]", "source may stand for one structure only; a stands for two"),
        ("value: 1", "value may stand for one structure only"),
        ("code: {scheme: SCT, value: '1', meaning: one}", "code may stand for one structure only"),
        ("role: ventricle", "Input should be 'cavity'"),
        ("colour: red", "Extra inputs are not permitted"),
    ],
)
def test_a_map_that_contradicts_itself_is_refused(tmp_path: Path, change: str, message: str) -> None:
    second = {
        "value": "value: 2",
        "role": "role: organ",
        "code": "code: {scheme: SCT, value: '2', meaning: two}",
        "sources": "sources: [b]",
    }
    second[change.split(":")[0]] = change
    first = "  one: {value: 1, code: {scheme: SCT, value: '1', meaning: one}, sources: [a]}\n"
    path = tmp_path / "map.yaml"
    path.write_text("structures:\n" + first + "  two: {" + ", ".join(second.values()) + "}\n")
    with pytest.raises(ValidationError, match=message):
        LabelMap.load(path)


def test_a_missing_map_is_answered_with_those_there_are() -> None:
    with pytest.raises(FileNotFoundError, match="cardiac, hippocampus, nodule, sunnybrook"):
        LabelMap.load("liver")


def test_a_drawn_thing_goes_by_its_name_then_by_its_codes(labels: LabelMap) -> None:
    assert labels.of_segment("segment 1", "LV cavity", [("SCT", "85756007")]) == 1
    assert labels.of_segment("segment 1", "Segment_1", [("SCT", "85756007"), ("SCT", "53085002")]) == 3
    assert labels.of_segment("segment 1", "Unsure", [("SCT", "53085002")]) == 255  # what a reader doubts is nobody's
    with pytest.raises(UnmappedLabel, match="segment 1 is myocardium by its label and blood_pool by its code"):
        labels.of_segment("segment 1", "myocardium", [("SCT", "87878005")])
    with pytest.raises(UnmappedLabel, match="segment 1 has a label and a code that stand nowhere") as error:
        labels.of_segment("segment 1", "Abendroth", [("SCT", "52988006")])
    assert "Abendroth" not in str(error.value)


def test_what_was_looked_for_is_what_is_there_unless_the_map_says_otherwise(labels: LabelMap) -> None:
    assert labels.looked_for("cine_ed", {0, 1, 2, 3, 255}) == (1, 2, 3)
    assert labels.looked_for("cine_ed", {0, 1, 255}) == (1,)
    stated = labels.model_copy(update={"annotated": {"cine_es": ("blood_pool", "right_ventricle")}})
    assert stated.looked_for("cine_es", {0, 1}) == (1, 3)
    assert stated.looked_for("cine_ed", {0, 1}) == (1,)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("priority: [wall]", "priority names wall; the structures are one"),
        ("annotated: {cine_es: [wall]}", "annotated names wall; the structures are one"),
        (
            "structures: {one: {value: 1, code: {scheme: SCT, value: '1', meaning: one}, sources: [], right_of: x}}",
            "right_of names x",
        ),
        (
            "structures: {one: {value: 1, code: {scheme: SCT, value: '1', meaning: one}, sources: [], volume_ml: [9, 3]}}",
            r"volume_ml is the least and the most in millilitres, not \[9.0, 3.0\]",
        ),
    ],
)
def test_a_map_names_its_own_structures_only(tmp_path: Path, more: str, message: str) -> None:
    path = tmp_path / "map.yaml"
    one = "structures: {one: {value: 1, code: {scheme: SCT, value: '1', meaning: one}, sources: []}}\n"
    path.write_text(more if more.startswith("structures") else one + more)
    with pytest.raises(ValidationError, match=message):
        LabelMap.load(path)
