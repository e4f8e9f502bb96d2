"""How many patients would fit: from hospitals' cohorts to the table that a coordinator reads."""

import math
import re

import numpy as np
import pytest
from table_hospitals import fill

from fl_client import app as hospital
from fl_client.cohort import Cohort
from fl_client.site import Budget
from fl_server.__main__ import main
from fl_server.counts import counts_of, lines
from fl_server.record import Record
from fl_server.rounds import run
from fl_server.weights import initial_state
from simulation.grid import InProcessGrid

AGE = {"field": "endpoint.age", "edges": [45, 60]}
ILL = {"field": "endpoint.ill", "values": [0, 1]}
TASK = {"name": "count", "tables": [{"axes": [AGE, ILL]}, {"axes": []}]}
OLD = {"where": {"field": "endpoint.age", "op": ">=", "value": 45}}


@pytest.fixture
def tables(new_hospitals):
    small = new_hospitals("tables")
    for name, patients in (("a", 12), ("b", 20), ("c", 30)):
        budget = Budget(epsilon=10.0, delta=1e-3)
        fill(small.add(name, patients=0, declared_size=20, budget=budget, accept_no_privacy=True), patients)
    return small


def study(hospitals, **settings):
    fields = {"task": TASK, "rounds": 1, "strategy": {"name": "sum"}, "training": {}, "privacy": {"kind": "none"}}
    return hospitals.study(**{**fields, **settings})


def over(hospitals, asked):
    grid = InProcessGrid("fl_client.app:app", hospitals.nodes, {"study": asked.to_json()})
    return run(grid, asked, initial_state(asked), folder=hospitals.folder / "run")


def everybody(hospitals):
    return [case.endpoints for name in hospitals.sites for case in Cohort(hospitals.site(name).cohort_folder)]


def test_without_noise_the_record_holds_the_exact_counts_of_all_hospitals_and_hides_the_small_ones(tables):
    _, record = over(tables, study(tables))
    by_kind, all_of_them = record.counts
    people = everybody(tables)
    for cell, count in zip(by_kind.cells, by_kind.counts, strict=True):
        low, high = {"below 45": (0, 45), "45 to below 60": (45, 60), "60 or more": (60, 200)}.get(cell[0], (1, 0))
        exact = sum(low <= one["age"] < high and str(one["ill"]) == cell[1] for one in people)
        assert count == (exact if exact >= 10 else None)
    assert any(count is not None for count in by_kind.counts)
    assert (all_of_them.cells, all_of_them.counts) == ([[]], [62])
    assert record == Record.read(tables.folder / "run" / "record.json")


def test_only_patients_whom_the_study_selects_are_counted(tables):
    _, record = over(tables, study(tables, selection=OLD))
    assert record.counts[1].counts == [sum(one["age"] >= 45 for one in everybody(tables))]


def test_one_patient_more_moves_a_hospitals_answer_by_1_at_most(tables):
    asked = study(tables, sites=("a",), selection=OLD)
    before = over(tables, asked)[0]["total"].numpy()
    fill(tables.site("a"), 1, first=90)
    after = over(tables, asked)[0]["total"].numpy()
    assert np.linalg.norm(after - before) <= 1


def test_the_noise_that_is_told_is_the_noise_that_was_paid_for(tables):
    _, record = over(tables, study(tables, privacy={"epsilon": 1.0}))
    (event,) = hospital.ledger_of(tables.site("a")).events
    assert (event.kind, event.sample_rate, event.steps) == ("patients in the cells of a table", 1.0, 1)
    # three hospitals, each cell divided by the weight 1/sqrt(2) of two tables
    assert record.counts[0].noise_sd == pytest.approx(event.noise_multiplier * math.sqrt(3) * math.sqrt(2), rel=1e-6)
    assert abs(record.counts[1].counts[0] - 62) < 6 * record.counts[1].noise_sd
    assert all(site.epsilon <= 1 for site in record.sites.values())


def test_noise_cannot_make_a_count_negative_and_a_limit_of_0_hides_nothing(tables):
    task = {**TASK, "suppress_below": 0}
    _, record = over(tables, study(tables, task=task, privacy={"epsilon": 0.1}))
    assert all(count is not None and count >= 0 for table in record.counts for count in table.counts)


def test_a_coordinator_reads_the_table(tables, capsys):
    over(tables, study(tables, privacy={"epsilon": 2.0}))
    assert main(["record", str(tables.folder / "run" / "record.json")]) == 0
    said = capsys.readouterr().out
    assert "training patients by endpoint.age and endpoint.ill, give or take" in said
    assert re.search(r"^    not known, not known +fewer than 10$", said, re.MULTILINE)
    assert "training patients by nothing: all of them" in said


def test_a_study_that_nobody_answers_tells_no_counts(tables):
    for name in tables.sites:
        tables.save(tables.site(name).model_copy(update={"approve_all": False}))
    _, record = over(tables, study(tables))
    assert (record.verdict, record.counts, list(lines(record))) == ("failed", [], [])


def test_other_studies_have_no_counts(hospitals):
    asked = hospitals.study()
    assert counts_of(asked, {}) == []
