"""A hospital's one noisy sum: what is in it, what it costs, and the scores of patients held back."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from scipy import stats
from table_hospitals import FOREST, counting_study, fill, row

from fl_client import app as hospital
from fl_client.approval import Approvals
from fl_client.cohort import Cohort, is_test
from fl_client.price import planned
from fl_client.privacy import epsilon
from fl_client.release import DECLINED
from fl_client.site import Budget
from fl_server.weights import initial_state
from simulation.grid import InProcessGrid
from tasks.task import load, settled

PLAIN = {"kind": "none"}
DELTA = 1e-3


@pytest.fixture
def tables(new_hospitals):
    """Three hospitals of 12, 20 and 30 rows, a fifth of them held back, who let releases without noise pass."""
    small = new_hospitals("tables")
    for name, patients in (("a", 12), ("b", 20), ("c", 30)):
        budget = Budget(epsilon=10.0, delta=DELTA)
        site = small.add(name, patients=0, declared_size=20, test_fraction=0.2, budget=budget, accept_no_privacy=True)
        fill(site, patients)
    return small


def ask(hospitals, study, kind="train", *, only=None, state=None):
    """One message to each hospital, or to one, and its answer."""
    names = [only] if only else list(hospitals.sites)
    nodes = [{"site": str(hospitals.sites[name])} for name in names]
    grid = InProcessGrid("fl_client.app:app", nodes, {"study": study.to_json()})
    config = ConfigRecord({"study-hash": study.hash, "server-round": 1})
    arrays = ArrayRecord(dict(state or initial_state(study)))
    content = RecordDict({"arrays": arrays, "config": config} if kind != "query.enroll" else {"config": config})
    return dict(zip(names, grid.send_and_receive([Message(content, n, kind) for n in grid.get_node_ids()]), strict=True))


def total(reply):
    return reply.content["arrays"]["total"].numpy()


def another(study):
    """Arrays that make another question of one that a counting task does not read: the same one gets the same bytes again."""
    return {name: tensor + 1 for name, tensor in initial_state(study).items()}


def contributions(hospitals, study, name, which="train"):
    site = hospitals.site(name)
    cohort, task = Cohort(site.cohort_folder), load(study.task)
    return [task.contribution(cohort.prepared(task, p)) for p in cohort.split(which, test_fraction=site.test_fraction)]


def test_without_noise_the_sum_is_that_of_the_training_patients_to_the_bit(tables):
    study = counting_study(tables, privacy=PLAIN)
    for name, reply in ask(tables, study).items():
        assert np.array_equal(total(reply), np.sum(contributions(tables, study, name), axis=0))
        assert reply.content["arrays"]["noise_variance"].numpy().tolist() == [0.0]


def test_one_patient_more_or_less_moves_the_sum_by_one_at_most_and_by_no_less_than_that_patient(tables):
    study = counting_study(tables, privacy=PLAIN)
    before = total(ask(tables, study, only="b")["b"])
    site = tables.site("b")
    cohort = Cohort(site.cohort_folder)
    first = 20
    trained = len(cohort.split("train", test_fraction=0.2))
    while len(cohort.split("train", test_fraction=0.2)) == trained:  # whom the pseudonym puts among the training patients
        fill(site, 1, first=first)
        first += 1
    after = total(ask(tables, study, only="b", state=another(study))["b"])
    assert 0.99 < np.linalg.norm(after - before) <= 1


def test_the_ledger_is_charged_for_leaf_counts_and_the_noise_that_leaves_is_the_noise_that_was_paid_for(tables):
    study = counting_study(tables, task={**FOREST, "learner": {"kind": "forest", "trees": 64, "depth": 4}})
    for name, reply in ask(tables, study).items():
        (event,) = hospital.ledger_of(tables.site(name)).events
        assert (event.kind, event.steps, event.sample_rate, event.round) == ("leaf counts", 1, 1.0, 1)
        assert 7.9 < epsilon([event], delta=DELTA) <= 8
        assert reply.content["arrays"]["noise_variance"].numpy() == pytest.approx([event.noise_multiplier**2])
        noise = (total(reply) - np.sum(contributions(tables, study, name), axis=0)) / event.noise_multiplier
        low, high = stats.chi2.ppf([1e-6, 1 - 1e-6], noise.size)
        assert low < float(np.sum(noise**2)) < high


def test_two_studies_of_different_kinds_compose_in_one_ledger_and_the_budget_ends_them(hospitals):
    """The U-Net's gradient and the forest's counts of the same patients."""
    site = hospitals.site("a").model_copy(update={"budget": Budget(epsilon=5.0, delta=DELTA)})
    hospitals.save(site)
    fill(site, 12)
    masks = hospitals.study(rounds=1, privacy={"epsilon": 3.0}, sites=("a",))
    forest = counting_study(hospitals, privacy={"epsilon": 3.0}, sites=("a",))
    assert ask(hospitals, masks, only="a")["a"].has_content()
    assert ask(hospitals, forest, only="a")["a"].has_content()
    ledger = hospital.ledger_of(site)
    assert [event.kind for event in ledger.events] == ["gradient", "leaf counts"]
    alone = [epsilon([event], delta=DELTA) for event in ledger.events]
    assert max(alone) < ledger.epsilon < sum(alone) - 1
    assert ledger.epsilon < 5
    refused = ask(hospitals, counting_study(hospitals, privacy={"epsilon": 3.0}, sites=("a",), seed=1), only="a")["a"]
    assert (refused.error.code, len(ledger.events)) == (DECLINED, 2)
    assert "over this hospital's 5 (delta 0.001)" in refused.error.reason


def test_scores_come_from_the_patients_held_back_and_are_paid_from_the_studys_own_promise(tables):
    study = counting_study(tables, privacy={"epsilon": 3.0, "evaluation_share": 0.3})
    task = load(study.task)
    state = learned(tables, study)
    for name, reply in ask(tables, study, "evaluate", state=state).items():
        site = tables.site(name)
        trained, scored = hospital.ledger_of(site).events
        assert (trained.kind, scored.kind) == ("leaf counts", "scores")
        assert epsilon([trained, scored], delta=DELTA) == pytest.approx(3.0, abs=0.01)
        assert 1 / scored.noise_multiplier**2 == pytest.approx(
            0.3 * (1 / scored.noise_multiplier**2 + 1 / trained.noise_multiplier**2), rel=0.01
        )
        assert reply.content["arrays"]["total"].numpy().shape == (8,)
        assert reply.content["metrics"]["epsilon"] <= 3
        cohort = Cohort(site.cohort_folder)
        held_back = cohort.split("test", test_fraction=0.2)
        exact = sum(task.judgement(state, cohort.prepared(task, patient)) for patient in held_back)
        assert np.abs(total(reply) - exact).max() < 6 * scored.noise_multiplier


def learned(hospitals, study):
    replies = ask(hospitals, study)
    sums = {key: sum(reply.content["arrays"][key].numpy() for reply in replies.values()) for key in ("total", "noise_variance")}
    return {key: torch.from_numpy(value) for key, value in sums.items()}


def test_without_noise_scores_are_the_histogram_of_the_patients_held_back(tables):
    study = counting_study(tables, privacy={**PLAIN, "evaluation_share": 0.3})
    state, task = learned(tables, study), load(study.task)
    for name, reply in ask(tables, study, "evaluate", state=state).items():
        cohort = Cohort(tables.site(name).cohort_folder)
        held_back = cohort.split("test", test_fraction=0.2)
        exact = sum((task.judgement(state, cohort.prepared(task, p)) for p in held_back), np.zeros(8))
        assert np.array_equal(total(reply), exact)
        assert total(reply).sum() == len(held_back)


def test_one_yes_is_good_for_one_release_of_scores(tables):
    tables.save(tables.site("a").model_copy(update={"approve_all": False}))
    study = counting_study(tables, privacy={"epsilon": 3.0, "evaluation_share": 0.3})
    approvals = Approvals(tables.site("a").folder)
    approvals.decide(study, "approved", who="Dr. Alpha", epsilon=3.0)
    state = learned(tables, study)
    first = ask(tables, study, "evaluate", only="a", state=state)["a"]
    again = ask(tables, study, "evaluate", only="a", state=state)["a"]
    assert np.array_equal(total(again), total(first))
    state["total"] += 1
    refused = ask(tables, study, "evaluate", only="a", state=state)["a"]
    assert refused.error.code == DECLINED
    assert "has given the scores" in refused.error.reason
    approvals.decide(study, "approved", who="Dr. Alpha", epsilon=3.0, paid=1, scored=1)
    assert ask(tables, study, "evaluate", only="a", state=state)["a"].has_content()


def test_a_study_that_sets_nothing_aside_gets_no_scores(tables):
    study = counting_study(tables)
    reply = ask(tables, study, "evaluate", only="a")["a"]
    assert reply.error.code == DECLINED
    assert "evaluation_share is 0" in reply.error.reason
    assert not hospital.ledger_of(tables.site("a")).events


def test_enrolment_names_the_price_of_counts_and_scores_together(tables):
    study = counting_study(tables, privacy={"epsilon": 3.0, "evaluation_share": 0.5})
    answer = ask(tables, study, "query.enroll", only="a")["a"].content["enrolment"]
    assert answer["takes-part"] is True
    assert 2.9 < answer["epsilon"] <= 3
    assert [event.kind for event in planned(tables.site("a"), study, load(study.task))] == ["leaf counts", "scores"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rounds": 2}, "is counted once, over all patients: rounds, training.steps and training.sample_rate must be 1, not 2"),
        ({"training": {"sample_rate": 0.5}}, "must be 1, not 1, 1 and 0.5"),
        ({"strategy": {"name": "fedavg"}}, "is counted and needs strategy.name 'sum'; study rehearsal has 'fedavg'"),
    ],
)
def test_a_counting_study_of_another_shape_is_declined_in_words(tables, changes, words):
    reply = ask(tables, counting_study(tables, **changes), "query.enroll", only="a")["a"]
    assert words in reply.content["enrolment"]["reason"]


def test_a_gradient_task_can_not_be_summed(hospitals):
    answer = ask(hospitals, hospitals.study(strategy={"name": "sum"}), "query.enroll", only="a")["a"].content["enrolment"]
    assert "is learned by gradients, which can't be summed" in answer["reason"]


def test_a_patient_whom_the_forest_can_not_use_is_left_out_and_named_at_the_site_alone(tables):
    site = tables.site("a")
    study = counting_study(tables, privacy=PLAIN)
    before = total(ask(tables, study, only="a")["a"])
    name = next(f"unlabelled-{n}" for n in range(99) if not is_test(f"unlabelled-{n}", site.test_fraction))
    Cohort(site.cohort_folder).admit(row(name, 5, ill=None))
    assert np.array_equal(total(ask(tables, study, only="a", state=another(study))["a"]), before)
    assert f"case {name} has no label: its endpoint ill is missing" in (site.folder / "log" / "training.jsonl").read_text()


def test_a_hospital_without_any_patient_pays_and_sends_noise_alone(tables, new_hospitals):
    empty = new_hospitals("empty")
    site = empty.add("a", patients=0, budget=Budget(epsilon=10.0, delta=DELTA))
    study = counting_study(empty, sites=("a",))
    reply = ask(empty, study)["a"]
    (event,) = hospital.ledger_of(site).events
    noise = total(reply) / event.noise_multiplier
    assert 0.5 < float(np.std(noise)) < 1.5
    assert math.isfinite(float(noise.sum()))


def crafted(task, leaf):
    """A sum that is finite, and gives 0 / 0 in one leaf of the first tree alone."""
    total = np.zeros(task.structure.shape)
    total[:, :, :] = 1.0
    total[0, leaf] = 1e250
    return {"total": torch.from_numpy(total.ravel()), "noise_variance": torch.zeros(1, dtype=torch.float64)}


@pytest.mark.parametrize("state", ["crafted", "empty", "negative variance"])
def test_a_model_made_to_break_on_somebody_does_not_tell_whether_there_is_somebody(tables, new_hospitals, state):
    study = counting_study(tables, privacy={"epsilon": 3.0, "evaluation_share": 0.5})
    task = load(study.task)
    sent = crafted(task, 3) if state == "crafted" else initial_state(study)
    if state == "negative variance":
        sent["noise_variance"] = -torch.ones(1, dtype=torch.float64)
    alone = new_hospitals("nobody")
    alone.add("a", patients=0, declared_size=20, test_fraction=0.2)
    for hospitals in (tables, alone):
        study = counting_study(hospitals, privacy={"epsilon": 3.0, "evaluation_share": 0.5})
        reply = ask(hospitals, study, "evaluate", only="a", state=sent)["a"]
        assert reply.has_content()
        assert np.isfinite(total(reply)).all()
        assert [event.kind for event in hospital.ledger_of(hospitals.site("a")).events] == ["scores"]


def test_who_breaks_adds_nothing_and_is_named_at_the_site_alone(tables, monkeypatch):
    study = counting_study(tables, privacy=PLAIN)
    kind = type(load(study.task))
    site = tables.site("a")
    broken = Cohort(site.cohort_folder).split("train", test_fraction=site.test_fraction)[0]
    marker = Cohort(site.cohort_folder).case(broken).endpoints["marker"]
    expected = np.sum(contributions(tables, study, "a")[1:], axis=0)
    real = kind.contribution

    def breaks(self, arrays):
        if self.rows(arrays).X[0, 0] == marker:
            raise ZeroDivisionError("somebody")
        return real(self, arrays)

    monkeypatch.setattr(kind, "contribution", breaks)
    assert np.array_equal(total(ask(tables, study, only="a")["a"]), expected)
    log = (site.folder / "log" / "training.jsonl").read_text()
    assert f'{{"patient": "{broken}", "left_out": "ZeroDivisionError: somebody"}}' in log


@pytest.mark.parametrize("learner", [FOREST["learner"], {"kind": "perceptron"}])
def test_a_patient_on_a_scanner_that_nobody_harmonised_is_left_out_of_the_round(hospitals, learner):
    settings = {
        "name": "radiomics",
        "image": {
            "series": "cine_ed",
            "regions": "label",
            "parameters": {"imageType": {"Original": {}}, "featureClass": {"firstorder": ["Mean"]}},
        },
        "radiomic": [{"name": "original_firstorder_Mean", "lower": 0, "upper": 400}],
        "label": {"endpoint": "ill"},
        "learner": learner,
        "harmonisation": {
            "features": [{"name": "original_firstorder_Mean", "lower": 0, "upper": 400}],
            "references": {},
            "scanners": {"A 1.5 T": {}},
        },
    }
    known = {"manufacturer": "A", "field_strength_t": 1.5}
    cohort = Cohort(hospitals.site("a").cohort_folder)
    for number, patient in enumerate(cohort.patients):
        scanner = known if number else {"manufacturer": "ACME", "field_strength_t": 7.0}
        cohort.admit(dataclasses.replace(cohort.case(patient), endpoints={"ill": number % 2}, scanner=scanner))
    kind = {"strategy": {"name": "sum"}, "rounds": 1} if learner["kind"] == "forest" else {}
    study = hospitals.study(task=settled(settings), sites=("a",), **kind)
    assert ask(hospitals, study, only="a")["a"].has_content()
    log = (hospitals.site("a").folder / "log" / "training.jsonl").read_text()
    assert "nobody calibrated the scanner 'ACME 7 T'" in log
    with pytest.raises(ValueError, match="harmonisation must be of the radiomic columns"):
        load({**settings, "radiomic": [{"name": "original_firstorder_Mean", "lower": 0, "upper": 300}]})
