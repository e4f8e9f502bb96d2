"""Which cell a patient is in, and that no patient moves the sum by more than 1."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import yaml

from tasks.case import Case, Volume
from tasks.task import CountingTask, load, task_names

IMAGE = np.zeros((2, 3, 3), np.int16)
DRAWN = Volume("lge", IMAGE, np.eye(4), np.ones((2, 3, 3), np.uint8))
PLAIN = Volume("lge", IMAGE, np.eye(4))
AGE = {"field": "endpoint.age", "edges": [40, 60]}
SEX = {"field": "endpoint.sex", "values": ["F", "M"]}


def count(*tables, **more):
    return load({"name": "count", "tables": [{"axes": list(axes)} for axes in tables], **more})


def cell(task, case):
    """The names of the cells that the patient adds to, found in the vector itself."""
    vector = task.contribution(task.prepare(case))
    names = [n for table in task.settings.tables for n in itertools.product(*(axis.cells for axis in table.axes))]
    assert len(names) == len(vector) == task.length
    return [names[index] for index in np.flatnonzero(vector)]


@pytest.mark.parametrize(
    ("age", "expected"),
    [
        (39.9, "below 40"),
        (40, "40 to below 60"),
        (59, "40 to below 60"),
        (60, "60 or more"),
        (10**400, "60 or more"),
        (None, "not known"),
        (float("nan"), "not known"),
        ("sixty", "not known"),
    ],
)
def test_numbers_fall_between_edges(age, expected):
    assert cell(count([AGE]), Case("p", (), {"age": age})) == [(expected,)]


def test_zero_is_a_value_and_missing_is_none():
    task = count([AGE])
    assert cell(task, Case("p", (), {"age": 0})) == [("below 40",)]
    assert cell(task, Case("p", (), {})) == [("not known",)]


@pytest.mark.parametrize(("sex", "expected"), [("F", "F"), ("O", "other"), (None, "not known"), ("", "not known")])
def test_words_fall_into_the_declared_values(sex, expected):
    assert cell(count([SEX]), Case("p", (), {"sex": sex})) == [(expected,)]


def test_numbers_can_be_values_too():
    task = count([{"field": "endpoint.target", "values": [0, 1]}])
    found = [cell(task, Case("p", (), {"target": value}))[0][0] for value in (0, 1.0, 2, "1")]
    assert found == ["0", "1", "other", "other"]


def test_images_and_masks_are_there_or_not():
    task = count([{"field": "image.lge"}, {"field": "mask.lge"}])
    cells = [cell(task, Case("p", volumes)) for volumes in ((), (PLAIN,), (DRAWN,))]
    assert cells == [[("no", "no")], [("yes", "no")], [("yes", "yes")]]


def test_scanners_are_counted():
    task = count([{"field": "scanner.field_strength_t", "edges": [2]}])
    assert cell(task, Case("p", (), {}, {"field_strength_t": 3.0})) == [("2 or more",)]


def test_a_table_without_an_axis_counts_everybody():
    task = count([])
    assert task.length == 1
    assert task.contribution(task.prepare(Case("p", ()))).tolist() == [1.0]


def test_axes_of_a_table_are_crossed_in_c_order():
    task = count([AGE, SEX])
    assert task.length == 4 * 4
    assert np.flatnonzero(task.contribution(task.prepare(Case("p", (), {"age": 50, "sex": "M"})))).tolist() == [1 * 4 + 1]


def test_a_patient_in_no_cell_is_left_out_in_words_and_one_in_some_is_counted_there():
    strict = {**AGE, "not_known": False}
    with pytest.raises(ValueError, match=r"case p is in no cell of the study's tables: endpoint\.age not known"):
        count([strict]).prepare(Case("p", ()))
    assert cell(count([strict], [SEX]), Case("p", (), {"sex": "F"})) == [("F",)]


@pytest.mark.parametrize("tables", range(1, 9))
def test_all_tables_together_are_a_vector_of_length_1_at_most_and_hardly_less(tables):
    task = count(*([[]] * tables))
    vector = task.contribution(task.prepare(Case("p", ())))
    whole = [round(entry * 2**30) for entry in vector]
    assert [entry / 2**30 for entry in whole] == vector.tolist()  # multiples of 2^-30, so sums are exact
    assert 0.999999 * 2**60 < sum(entry * entry for entry in whole) <= 2**60
    assert task.weight == pytest.approx(1 / math.sqrt(tables))


def test_whoever_comes_or_goes_moves_the_sum_by_that_patients_vector_alone():
    task = count([AGE, SEX], [{"field": "mask.lge"}])
    everybody = [
        Case(f"p{n}", (DRAWN,) if n % 2 else (), {"age": age, "sex": sex})
        for n, (age, sex) in enumerate(itertools.product((None, 20, 50, 80), (None, "F", "M", "O")))
    ]
    vectors = [task.contribution(task.prepare(case)) for case in everybody]
    total = np.sum(vectors, axis=0)
    for left in range(len(everybody)):
        without = np.sum(vectors[:left] + vectors[left + 1 :], axis=0)
        assert np.array_equal(total - without, vectors[left])
        assert np.linalg.norm(total - without) <= 1


@pytest.mark.parametrize(
    ("tables", "told"),
    [
        ([], "at least 1 item"),
        ([[]] * 9, "at most 8 items"),
        ([[AGE] * 4], "at most 3 items"),
        ([[{"field": "endpoint.age"}]], "endpoint.age needs edges or values"),
        ([[{**AGE, "values": [1]}]], "endpoint.age needs edges or values"),
        ([[{"field": "mask.lge", "edges": [1]}]], "mask.lge needs neither edges nor values"),
        ([[{**AGE, "edges": [60, 40]}]], "the edges of endpoint.age must rise, not [60, 40]"),
        ([[{**SEX, "values": ["F", "F"]}]], "the values of endpoint.sex must differ"),
        ([[{**AGE, "field": "age"}]], "no field 'age'"),
        ([[{**AGE, "field": "quality.lge.snr"}]], "quality parameters select patients and are not counted"),
        ([[{**AGE, "edges": list(range(22))}, {**AGE, "edges": list(range(22))}]], "576 cells; at most 512 are counted"),
    ],
)
def test_tables_that_cannot_be_counted_are_refused_in_words(tables, told):
    with pytest.raises(ValueError, match=r"^task count: ") as error:
        count(*tables)
    assert told in str(error.value)


def test_the_tables_that_come_along_can_be_counted():
    settings = yaml.safe_load((Path(__file__).parents[3] / "conf" / "task" / "count.yaml").read_text())
    task = load(settings)
    assert isinstance(task, CountingTask)
    assert task.length == 6 * 4 + 2 * 3
    assert "count" in task_names()
