"""The coordinator's side of counting studies: sums over hospitals, the forest that comes of them, and their scores."""

import numpy as np
import pandas as pd
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from table_hospitals import counting_study, fill

from fl_client.cohort import Cohort
from fl_client.site import Budget
from fl_server.record import NOT_ASKED_YET, Record
from fl_server.rounds import run
from fl_server.strategy import Rounds, Sum
from fl_server.weights import initial_state
from simulation.grid import InProcessGrid
from tasks.task import load

DROWNED = "no auc can be read from the answers: what so few patients say drowns in the noise"
PLAIN = {"kind": "none", "evaluation_share": 0.3}


@pytest.fixture
def tables(new_hospitals):
    small = new_hospitals("tables")
    for name, patients in (("a", 12), ("b", 20), ("c", 30)):
        budget = Budget(epsilon=10.0, delta=1e-3)
        fill(small.add(name, patients=0, declared_size=20, test_fraction=0.2, budget=budget, accept_no_privacy=True), patients)
    return small


def over(hospitals, study):
    grid = InProcessGrid("fl_client.app:app", hospitals.nodes, {"study": study.to_json()})
    return run(grid, study, initial_state(study), folder=hospitals.folder / "run")


def rows(hospitals, study, which):
    """Everybody's rows of one side of the split, pooled, as no federation sees them."""
    task, found = load(study.task), []
    for name in hospitals.sites:
        site = hospitals.site(name)
        cohort = Cohort(site.cohort_folder)
        found += [task.rows(cohort.prepared(task, p)) for p in cohort.split(which, test_fraction=site.test_fraction)]
    return np.concatenate([r.X for r in found]), np.concatenate([r.y for r in found]).astype(int)


def test_without_noise_the_federations_forest_is_the_forest_of_the_pooled_patients(tables):
    study = counting_study(tables, privacy={"kind": "none"})
    state, record = over(tables, study)
    assert record.verdict == "complete"
    structure = load(study.task).structure
    X, y = rows(tables, study, "train")
    pooled = structure.total(X, y, np.arange(len(y)))
    assert np.array_equal(state["total"].numpy(), pooled)
    table = pd.DataFrame(X, columns=["marker", "age"])
    ours = structure.to_sklearn(state["total"].numpy(), noise_std=0.0).predict_proba(table)
    np.testing.assert_array_equal(ours, structure.to_sklearn(pooled, noise_std=0.0).predict_proba(table))
    assert ((ours[:, 1] > 0.5) == y).mean() > 0.7


def test_the_variances_of_all_hospitals_noise_add_up(tables):
    state, record = over(tables, counting_study(tables, privacy={"epsilon": 3.0}))
    alone = 1.0386  # noise multiplier of epsilon 3 at delta 1e-3 (Balle and Wang 2018), to three digits
    assert float(state["noise_variance"][0]) == pytest.approx(3 * alone**2, rel=0.01)
    assert all(site.epsilon <= 3 for site in record.sites.values())


def test_scores_stand_in_the_record_as_one_sum_over_the_patients_held_back(tables):
    study = counting_study(tables, privacy=PLAIN)
    state, record = over(tables, study)
    X, y = rows(tables, study, "test")
    probability = load(study.task).predict(state, X)
    bins = np.minimum((probability * 4).astype(int), 3)
    expected = [*np.bincount(bins[y == 0], minlength=4), *np.bincount(bins[y == 1], minlength=4)]
    assert record.evaluation.total == expected
    assert record.evaluation.noise_std == 0
    assert {site.answer for site in record.evaluation.sites.values()} == {"used"}
    assert record == Record.read(tables.folder / "run" / "record.json")


def test_scores_are_part_of_the_epsilon_in_the_record(tables):
    _, record = over(tables, counting_study(tables, privacy={"epsilon": 3.0, "evaluation_share": 0.5}))
    assert record.rounds[0].sites["a"].epsilon < 2.2
    assert 2.9 < record.sites["a"].epsilon <= 3
    assert record.evaluation.noise_std == pytest.approx(1.0386 * 2**0.5 * 3**0.5, rel=0.01)
    assert len(record.evaluation.total) == 8


def test_a_hospital_that_gives_no_scores_is_named_and_the_study_is_degraded(tables):
    site = tables.site("b")
    study = counting_study(tables, privacy={"epsilon": 3.0, "evaluation_share": 0.3})
    grid = InProcessGrid("fl_client.app:app", tables.nodes, {"study": study.to_json()})

    def spend_it_all(entry, state):  # between the round and the scores
        tables.save(site.model_copy(update={"budget": Budget(epsilon=2.6, delta=1e-3)}))

    _, record = run(grid, study, initial_state(study), folder=tables.folder / "run", observer=spend_it_all)
    assert record.verdict == "degraded"
    assert record.evaluation.sites["b"].answer == "declined"
    assert [reason.split(" (")[0] for reason in record.reasons] == ["scores: b declined"]
    assert record.remarks == [f"scores: {DROWNED}"]
    assert "(study rehearsal scores would bring epsilon" in record.reasons[0]
    assert record.evaluation.noise_std == pytest.approx(1.0386 / 0.3**0.5 * 2**0.5, rel=0.01)


def answer(question, **arrays):
    content = {"arrays": ArrayRecord({n: Array(a) for n, a in arrays.items()}), "metrics": MetricRecord({"num-examples": 5})}
    return Message(RecordDict(content), reply_to=question)


@pytest.mark.parametrize(
    ("total", "reason"),
    [
        (np.array([1.0, np.nan]), "array 'total' holds values that are not finite"),
        (np.array([1.0, 2.0, 3.0]), r"array 'total' is float64[3], expected float64[2]"),
    ],
)
def test_a_sum_that_does_not_fit_is_quarantined_and_the_others_are_added_up(total, reason):
    expected = {"total": np.zeros(2), "noise_variance": np.zeros(1)}
    strategy = Rounds(Sum(), nodes={1: "a", 2: "b", 3: "c"}, expected=expected)
    sent = ArrayRecord({"other": Array(np.ones(7))})
    questions = strategy.configure_train(1, sent, ConfigRecord({}), InProcessGrid(ClientApp(), [{}, {}, {}]))
    for question, node in zip(questions, (1, 2, 3), strict=True):
        question.metadata.__dict__["_message_id"] = f"question {node}"
    good = np.array([1.5, -2.0])
    replies = [answer(q, total=t, noise_variance=np.array([4.0])) for q, t in zip(questions, (good, total, good), strict=True)]
    sums, _ = strategy.aggregate_train(1, replies)
    assert strategy.answers[1]["b"].reason == reason
    assert sums["total"].numpy().tolist() == [3.0, -4.0]
    assert sums["noise_variance"].numpy().tolist() == [8.0]
    assert set(sums) == set(expected)


@pytest.mark.parametrize("variance", [-5.0, 0.0, 1e-300, 1.0, 1e12, 1e308])
def test_a_hospital_that_says_its_noise_is_another_than_the_studys_is_quarantined(tables, monkeypatch, variance):
    from fl_client import release

    real = release.total

    def lies(question, total, *, noise_std, **said):
        reply = real(question, total, noise_std=noise_std, **said)
        if reply.metadata.src_node_id == 3:  # nodes are numbered from 2
            arrays = {"total": Array(total), "noise_variance": Array(np.array([variance]))}
            reply.content["arrays"] = ArrayRecord(arrays)
        return reply

    monkeypatch.setattr(release, "total", lies)
    study = counting_study(tables, privacy={"epsilon": 3.0, "evaluation_share": 0.3})
    state, record = over(tables, study)
    assert record.rounds[0].sites["b"].answer == record.evaluation.sites["b"].answer == "quarantined"
    said = record.rounds[0].sites["b"].reason
    assert said.startswith(f"noise of variance {variance:.4g} is said to lie on each number; by the study it is ")
    alone = 1.0386  # as above
    assert float(said.split()[-1]) == pytest.approx(alone**2 / 0.7, rel=0.01)
    assert float(state["noise_variance"][0]) == pytest.approx(2 * alone**2 / 0.7, rel=0.01)  # of the two others
    assert record.evaluation.noise_std == pytest.approx(alone * (2 / 0.3) ** 0.5, rel=0.01)
    assert record.verdict == "degraded"


@pytest.mark.parametrize("number", [1.7e308, -1e30, 1e8])
def test_a_count_that_no_hospital_can_have_is_quarantined(tables, monkeypatch, number):
    from fl_client import release

    real = release.total

    def lies(question, total, **said):
        reply = real(question, total, **said)
        if reply.metadata.src_node_id == 3:  # nodes are numbered from 2
            reply.content["arrays"]["total"] = Array(np.full_like(total, number))
        return reply

    monkeypatch.setattr(release, "total", lies)
    state, record = over(tables, counting_study(tables, privacy={"kind": "none"}))
    assert record.rounds[0].sites["b"].answer == "quarantined"
    assert "more than 10000000 patients can make it; no hospital has more" in record.rounds[0].sites["b"].reason
    assert record.rounds[0].sites["a"].answer == "used"
    assert float(state["total"].abs().max()) < 1000


def test_until_scores_are_given_the_record_says_that_they_are_missing(tables):
    study = counting_study(tables, privacy={"epsilon": 3.0, "evaluation_share": 0.3})
    grid = InProcessGrid("fl_client.app:app", tables.nodes, {"study": study.to_json()})
    seen = []

    def look(entry, state):
        seen.append(Record.read(tables.folder / "run" / "record.json"))

    _, record = run(grid, study, initial_state(study), folder=tables.folder / "run", observer=look)
    assert (seen[0].verdict, seen[0].reasons) == ("degraded", [f"no scores: {NOT_ASKED_YET}"])
    assert (record.verdict, record.remarks) == ("complete", [f"scores: {DROWNED}"])
