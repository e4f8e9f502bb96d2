"""Scores between rounds and across hospitals: what they cost, whom they are of, and what is decided by them."""

import json
import math

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from conf.study import LocalTraining, Study
from fl_client import app as hospital
from fl_client import release
from fl_client.approval import Approvals
from fl_client.cohort import Cohort
from fl_client.contract import contract, leaving
from fl_client.patients import TrainingPatients
from fl_client.privacy import epsilon
from fl_client.site import Budget
from fl_server.enrolment import Enrolment
from fl_server.judging import Score, better, chosen_in_words, judge, matrix, selected, stop_early, waited
from fl_server.promised import noise_variance
from fl_server.record import Evaluation, Record, Round, SiteRound
from fl_server.rounds import run
from fl_server.weights import initial_state
from simulation.grid import InProcessGrid
from tasks.task import load

DELTA = 1e-3
PLAIN = {"kind": "none", "evaluation_share": 0.1, "validation_share": 0.2, "matrix_share": 0.1}
PRIVATE = {**PLAIN, "kind": "patient", "epsilon": 4.0}


@pytest.fixture
def wards(new_hospitals):
    """Three hospitals of 10 patients, of whom some are held back for the end and some for choosing."""
    small = new_hospitals("wards")
    for name in "abc":
        small.add(
            name,
            patients=10,
            declared_size=10,
            test_fraction=0.2,
            validation_fraction=0.3,
            budget=Budget(epsilon=10.0, delta=DELTA),
            accept_no_privacy=True,
        )
    return small


def grid_of(hospitals, study):
    return InProcessGrid("fl_client.app:app", hospitals.nodes, {"study": study.to_json()})


def over(hospitals, study):
    return run(grid_of(hospitals, study), study, initial_state(study), folder=hospitals.folder / "run")


def study_of(hospitals, privacy, *, rounds=5, every=2, patience=None, **settings):
    validation = {"every": every, "patience": patience}
    training = LocalTraining(views=1, steps=1, learning_rate=0.5)
    return hospitals.study(privacy=privacy, rounds=rounds, validation=validation, training=training, **settings)


def side(hospitals, name, which):
    site = hospitals.site(name)
    return Cohort(site.cohort_folder).split(
        which, test_fraction=site.test_fraction, validation_fraction=site.validation_fraction
    )


def exact_sum(hospitals, study, name, which, state):
    task, cohort = load(study.task), Cohort(hospitals.site(name).cohort_folder)
    return sum((task.judgement(state, cohort.prepared(task, p)) for p in side(hospitals, name, which)), np.zeros(6))


def test_without_noise_the_scores_are_the_mean_dice_of_the_validation_patients(wards):
    study = study_of(wards, PLAIN)
    seen = {}
    grid = grid_of(wards, study)
    _, record = run(
        grid, study, initial_state(study), folder=wards.folder / "run", observer=lambda r, s: seen.update({r.round: s})
    )
    assert [r.round for r in record.rounds if r.validation is not None] == [2, 4]
    for entry in (record.rounds[1], record.rounds[3]):
        total = sum(exact_sum(wards, study, name, "validation", seen[entry.round]) for name in "abc")
        assert entry.validation.total == total.tolist()
        assert entry.validation.noise_std == 0
        scores = entry.validation.scores
        assert scores["patients/blood_pool"] == pytest.approx(sum(len(side(wards, n, "validation")) for n in "abc"), abs=1e-6)
        assert next(iter(scores)) == "dice"
        assert scores["dice"] == pytest.approx((scores["dice/blood_pool"] + scores["dice/myocardium"]) / 2, abs=1e-6)
        assert "dice/right_ventricle" not in scores  # nobody drew one
    best = max((2, 4), key=lambda number: record.rounds[number - 1].validation.scores["dice"])
    assert record.selected_round == best
    assert record.evaluation.total == sum(exact_sum(wards, study, n, "test", seen[best]) for n in "abc").tolist()
    assert record.verdict == "complete"


def test_what_leaves_with_scores_is_what_the_contract_announces(wards):
    study = study_of(wards, PLAIN, rounds=2)
    announced = leaving(wards.site("a"), study)
    grid, left = grid_of(wards, study), []
    pull = grid.pull_messages
    grid.pull_messages = lambda ids: [left.append(reply) or reply for reply in pull(ids)]
    run(grid, study, initial_state(study), folder=wards.folder / "run")
    answers = [reply.content for reply in left if "metrics" in reply.content]
    found = [
        ({name: (array.numpy().shape, array.dtype) for name, array in answer["arrays"].items()}, set(answer["metrics"]))
        for answer in answers
    ]
    said = {"num-examples", "epsilon"}
    assert all(one in found for one in ((dict(announced[0].arrays), said | {"steps"}), (dict(announced[1].arrays), said)))
    assert all(metrics == said | ({"steps"} if "total" not in arrays else set()) for arrays, metrics in found)
    assert all(arrays in [dict(one.arrays) for one in announced] for arrays, _ in found)
    words = dict(contract(wards.site("a"), study, days=30))["What leaves"]
    assert "with trained parameters how many steps were taken" in words
    enrolled = next(reply.content["enrolment"] for reply in left if "enrolment" in reply.content)
    assert set(enrolled) == {"site", "declared-size", "konsil-version", "takes-part", "reason", "epsilon", "delta"}
    (first,) = [line for line in words if line.startswith("before the first round")]
    for word in ("your name", "size that you declare in public", "konsil's version", "you take part", "why"):
        assert word in first
    assert any("the epsilon that your ledger would come to, and its delta" in line for line in words)


def test_validation_patients_are_neither_trained_on_nor_tested_and_train_in_every_other_study(wards, monkeypatch):
    trained = []
    real = TrainingPatients.example
    monkeypatch.setattr(
        TrainingPatients,
        "example",
        lambda self, patient, views, rng: trained.append(patient) or real(self, patient, views, rng),
    )
    over(wards, study_of(wards, PLAIN))
    sides = [{p for name in "abc" for p in side(wards, name, which)} for which in ("train", "validation", "test")]
    assert all(sides)
    assert set(trained) == sides[0]
    trained.clear()
    over(wards, wards.study(rounds=1, privacy={"kind": "none"}))
    assert set(trained) == sides[0] | sides[1]
    assert sum(map(len, sides)) == len(set().union(*sides)) == 30


def test_rounds_validations_scores_and_matrix_cost_together_what_the_study_promises(wards):
    study = study_of(wards, PRIVATE)
    _, record = over(wards, study)
    for name in "abc":
        events = hospital.ledger_of(wards.site(name)).events
        kinds = [event.kind for event in events]
        assert kinds == [*("gradient",) * 2, "validation", *("gradient",) * 2, "validation", "gradient", "scores"] + [
            "matrix"
        ] * len(record.matrix.scores)
        assert [event.round for event in events if event.kind == "validation"] == [2, 4]
        assert record.sites[name].epsilon == pytest.approx(epsilon(events, delta=DELTA))
        assert 0.99 * 4 < epsilon(events, delta=DELTA) <= 4
    assert record.verdict == "complete"
    assert all("drowns in the noise" in remark for remark in record.remarks)
    squares = {kind: sum(e.steps / e.noise_multiplier**2 for e in events if e.kind == kind) for kind in set(kinds)}
    whole = sum(squares.values())  # of the promise: Gaussian sums compose by these
    assert [squares[kind] / whole for kind in ("scores", "validation", "matrix")] == pytest.approx([0.1, 0.2, 0.1], rel=0.01)


def test_the_matrix_has_a_score_for_every_model_at_every_hospital(wards):
    study = study_of(wards, PLAIN, rounds=2)
    initial = initial_state(study)
    models = {"global": initial, "b": {name: tensor + 0.1 for name, tensor in initial.items()}}
    grid = grid_of(wards, study)
    enrolment = Enrolment(study)
    enrolment.wait(grid, timeout_s=5)
    found = matrix(grid, study, models, enrolment)
    assert found.metric == "dice"
    assert list(found.scores) == ["global", "b"]
    task = load(study.task)
    for name, model in models.items():
        for site in "abc":
            exact = task.scores(exact_sum(wards, study, site, "validation", model), 0.0)
            assert found.scores[name].get(site) == pytest.approx(exact.get("dice"))
            assert found.noise_sd[name].get(site, 0.0) == 0
    assert {site.answer for site in found.sites.values()} == {"used"}
    with pytest.raises(ValueError, match="not stranger"):
        matrix(grid, study, {"stranger": initial}, enrolment)


def question(study, **config):
    records = {"arrays": ArrayRecord(initial_state(study)), "config": ConfigRecord({"study-hash": study.hash, **config})}
    return Message(RecordDict(records), 2, "evaluate")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"purpose": "validation", "server-round": 3}, "is validated after every 2. round, and not after round 3"),
        ({"purpose": "validation", "server-round": 6}, "has rounds 1 to 5, not 6"),
        ({"purpose": "matrix", "model": "nobody"}, "has the models 'global' and those of its sites, not 'nobody'"),
        ({"purpose": "curiosity"}, "scores are asked for as 'scores', 'validation' or 'matrix', not as 'curiosity'"),
    ],
)
def test_what_the_study_does_not_say_is_declined_before_the_ledger(wards, config, words):
    study = study_of(wards, PLAIN)
    (reply,) = grid_of(wards, study).send_and_receive([question(study, **config)])
    assert words in reply.error.reason
    assert not hospital.ledger_of(wards.site("a")).events


@pytest.mark.parametrize(
    ("purpose", "words"),
    [
        ("scores", "evaluation_share is 0"),
        ("validation", "asks for no scores between rounds"),
        ("matrix", "matrix_share is 0"),
    ],
)
def test_scores_that_nothing_was_set_aside_for_are_declined(wards, purpose, words):
    study = wards.study(privacy={"kind": "patient"})
    config = {"purpose": purpose, "server-round": 2, "model": "global"}
    (reply,) = grid_of(wards, study).send_and_receive([question(study, **config)])
    assert words in reply.error.reason


def test_a_yes_is_good_for_the_studys_validations_and_models_once_and_a_repetition_is_the_same_bytes(wards):
    study = study_of(wards, PRIVATE)
    site = wards.site("a").model_copy(update={"approve_all": False})
    wards.save(site)
    Approvals(site.folder).decide(study, "approved", who="Dr. Alpha", epsilon=4.0)
    grid = grid_of(wards, study)

    def ask(step, **config):
        asked = question(study, **config)
        state = {name: tensor + step for name, tensor in initial_state(study).items()}
        asked.content["arrays"] = ArrayRecord(state)
        (reply,) = grid.send_and_receive([asked])
        return reply

    first = ask(0.0, purpose="validation", **{"server-round": 2})
    again = ask(0.0, purpose="validation", **{"server-round": 2})
    assert again.content["arrays"]["total"].data == first.content["arrays"]["total"].data
    assert ask(0.1, purpose="validation", **{"server-round": 2}).has_content()
    refused = ask(0.2, purpose="validation", **{"server-round": 4})
    assert "of the 2 scores between rounds" in refused.error.reason
    for model in ("global", "a", "b", "c"):
        assert ask(0.0, purpose="matrix", model=model).has_content()
    assert "of the 4 models of the matrix" in ask(0.1, purpose="matrix", model="a").error.reason
    assert [event.kind for event in hospital.ledger_of(site).events] == ["validation"] * 2 + ["matrix"] * 4


def test_a_hospital_that_keeps_its_budget_from_a_validation_is_told_and_the_study_goes_on(wards):
    study = study_of(wards, PRIVATE)
    grid = grid_of(wards, study)
    enrolment = Enrolment(study)
    enrolment.wait(grid, timeout_s=5)
    wards.save(wards.site("b").model_copy(update={"budget": Budget(epsilon=0.1, delta=DELTA)}))
    found = judge(grid, study, initial_state(study), enrolment, purpose="validation", number=2)
    assert [found.sites[name].answer for name in "abc"] == ["used", "declined", "used"]
    assert found.noise_std == pytest.approx(math.sqrt(2) * hospital.ledger_of(wards.site("a")).events[0].noise_multiplier)


def lying(monkeypatch, change):
    """Hospital `a` says `change(total)` where it is asked for scores."""
    real = release.total

    def lies(asked, total, *, noise_std, **said):
        reply = real(asked, total, noise_std=noise_std, **said)
        if reply.metadata.src_node_id == 2:  # nodes are numbered from 2
            reply.content["arrays"]["total"] = Array(change(total))
        return reply

    monkeypatch.setattr(release, "total", lies)


@pytest.mark.parametrize("number", [1.7e308, -1.7e308, 1e30, 60.0])  # six of 60: as long as 147 patients
def test_one_hospitals_impossible_sum_decides_nothing(wards, monkeypatch, number):
    lying(monkeypatch, lambda total: np.full_like(total, number))
    study = study_of(wards, {**PLAIN, "matrix_share": 0.0}, rounds=2, every=1, patience=1)
    _, record = over(wards, study)
    told = record.rounds[0].validation
    assert [told.sites[name].answer for name in "abc"] == ["quarantined", "used", "used"]
    assert told.sites["a"].reason.startswith(f"the sum is {math.hypot(*[number] * 6):.4g} long, more than ")
    assert len(told.total) == 6
    assert 0 <= told.scores["dice"] <= 1
    assert max(told.total) < 10  # patients of the others
    assert record.verdict == "degraded"
    json.loads((wards.folder / "run" / "record.json").read_text(), parse_constant=pytest.fail)  # no NaN


def test_a_hospital_may_have_some_more_patients_than_it_declares_and_not_any_number(wards, monkeypatch):
    study = study_of(wards, PRIVATE)
    grid = grid_of(wards, study)
    enrolment = Enrolment(study)
    enrolment.wait(grid, timeout_s=5)
    std = noise_variance(study, "validation") ** 0.5
    said = {}
    for number, patients in ((2, 95), (4, 105)):
        length = patients + std * (6**0.5 + 10)
        lying(monkeypatch, lambda total, length=length: np.array([length, 0, 0, 0, 0, 0]))
        found = judge(grid, study, initial_state(study), enrolment, purpose="validation", number=number)
        said[patients] = found.sites["a"]
        monkeypatch.undo()
    assert said[95].answer == "used"
    assert said[105].answer == "quarantined"
    assert "more than 100 patients and their noise can make it; the hospital declares 10, near to how many" in said[105].reason


@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_scores_that_are_not_finite_are_left_out(wards, monkeypatch, odd):
    def scores(self, total, noise_std):
        return {"dice": 0.7, "noise_sd/dice": 0.1, "dice/a": odd, "noise_sd/dice/a": 0.1, "dice/b": 0.5, "noise_sd/dice/b": odd}

    monkeypatch.setattr("tasks.segmentation.task.SegmentationTask.scores", scores)
    study = study_of(wards, PLAIN)
    grid = grid_of(wards, study)
    enrolment = Enrolment(study)
    enrolment.wait(grid, timeout_s=5)
    found = judge(grid, study, initial_state(study), enrolment, purpose="validation", number=2)
    assert found.scores == {"dice": 0.7, "noise_sd/dice": 0.1}

    def refuses(self, total, noise_std):
        raise OverflowError("math range error")

    monkeypatch.setattr("tasks.segmentation.task.SegmentationTask.scores", refuses)
    assert judge(grid, study, initial_state(study), enrolment, purpose="validation", number=4).scores == {}


# -- deciding ---------------------------------------------------------------------------------------------------------------


def plain(*values):
    return [None if value is None else Score(value) for value in values]


def noisy(*values, sd=0.02):
    return [None if value is None else Score(value, sd) for value in values]


@pytest.mark.parametrize(
    ("history", "chosen", "since"),
    [
        ([], None, 0),
        (plain(None, None), None, 0),
        (plain(0.5, 0.7, 0.6), 1, 1),
        (plain(0.5, 0.5), 0, 1),  # no better is not better
        (noisy(0.5, 0.5), 1, 0),  # can't be told apart: the later one
        (noisy(0.70, 0.66, 0.64), 1, 1),  # 2 deviations of a difference are 0.057
        (noisy(0.70, 0.66, 0.62, 0.58), 1, 2),  # each step is within the noise, the decline is not
        (noisy(0.4, 0.8, None, 0.5, 0.5), 1, 2),
        (noisy(0.4, 0.8, 0.5, sd=1.0), 2, 0),  # nothing but noise
    ],
)
def test_the_best_score_chooses_and_what_noise_may_explain_is_no_reason_to_go_back(history, chosen, since):
    assert selected(history) == chosen
    assert waited(history) == since


def test_two_models_are_told_apart_by_two_deviations_of_their_difference():
    best = Score(0.8, 0.03)
    assert better(Score(0.71, 0.04), best)
    assert not better(Score(0.69, 0.04), best)
    assert not better(Score(0.8), Score(0.8))


def by(*said):
    """Scores, each with its hospitals: (0.7, "abc")."""
    return [Score(value, of=frozenset(hospitals)) for value, hospitals in said]


@pytest.mark.parametrize(
    ("history", "chosen", "since"),
    [
        (by((0.70, "abc"), (0.90, "a"), (0.75, "abc"), (0.78, "abc")), 3, 0),  # the easy hospital alone says nothing
        (by((0.80, "abc"), (0.90, "a"), (0.75, "abc"), (0.70, "abc")), 0, 2),
        (by((0.70, "abc"), (0.60, "ab"), (0.65, "ab"), (0.62, "ab")), 2, 1),  # c is gone: what is left is compared
        (by((0.70, "abc"), (0.60, "ab"), (0.55, "ab")), 0, 1),
        (by((0.70, "abc"), (0.90, "a"), (0.75, "abc"), (0.95, "a"), (0.72, "abc"), (0.99, "a")), 2, 1),
        (by((0.90, "a"), (0.70, "abc"), (0.65, "abc")), 1, 1),  # the others came later
        (by((0.70, "ab"), (0.60, "bc"), (0.50, "ac")), 2, 0),  # nothing to compare with: the last
        (by((0.70, "ab"), (0.60, "bc"), (0.65, "ab"), (0.55, "bc")), 1, 2),
        ([*by((0.7, "abc"), (0.9, "a")), None, *by((0.95, "a"))], 3, 0),  # nothing was heard between: still the same
    ],
)
def test_only_scores_of_the_same_hospitals_are_compared(history, chosen, since):
    assert selected(history) == chosen
    assert waited(history) == since
    for end in range(1, len(history)):  # a choice is made when a score comes: no later one brings an earlier model back
        if (now := selected(history[: end + 1])) != end:
            assert now == selected(history[:end])


def told(study, *values, sd=0.0, hospitals=None):
    record = Record.begin(study)
    for number, value in enumerate(values, start=1):
        scores = {} if value is None else {"dice": value, "noise_sd/dice": sd}
        used = hospitals[number - 1] if hospitals else ""
        sites = {name: SiteRound(answer="used" if name in used else "absent") for name in "abc"}
        validation = Evaluation(sites=sites, total=[], noise_std=0, seconds=0, scores=scores)
        record.rounds.append(Round(round=number, sites={}, seconds=0, arrays_sha256="", validation=validation))
    return record


def test_a_study_ends_after_its_patience_and_says_why(hospitals):
    study = study_of(hospitals, PLAIN, rounds=9, every=1, patience=2)
    assert stop_early(study, told(study, 0.5, 0.6, 0.55)) == ""
    assert stop_early(study, told(study, 0.5, 0.6, 0.55, None)) == ""
    assert stop_early(study, told(study, 0.5, 0.6, 0.55, 0.5)) == (
        "after round 4: 2 scores in a row were no better than that after round 2 (dice 0.600)"
    )
    assert stop_early(study, told(study, 0.5, 0.6, 0.55, 0.5, sd=0.1)) == ""
    endless = study_of(hospitals, PLAIN, rounds=9, every=1)
    assert stop_early(endless, told(endless, 0.5, 0.4, 0.3, 0.2)) == ""
    short = study_of(hospitals, PLAIN, rounds=4, every=1, patience=2)
    assert stop_early(short, told(short, 0.5, 0.6, 0.55, 0.5)) == ""  # it is over anyway


def test_a_study_is_not_ended_by_scores_of_other_hospitals(hospitals):
    study = study_of(hospitals, PLAIN, rounds=9, every=1, patience=2)
    away = told(study, 0.5, 0.9, 0.6, 0.62, hospitals=("abc", "a", "abc", "abc"))
    assert stop_early(study, away) == ""
    assert chosen_in_words(study, away).startswith(
        "the model is that after round 4, chosen among 3 by dice (1 more were of fewer hospitals and not compared). That score"
    )
    worse = told(study, 0.7, 0.9, 0.6, 0.62, hospitals=("abc", "a", "abc", "abc"))
    assert "2 scores in a row were no better than that after round 1 (dice 0.700)" in stop_early(study, worse)


def test_the_choice_is_told_with_a_warning_about_its_score(hospitals):
    study = study_of(hospitals, PLAIN, rounds=9, every=1)
    said = chosen_in_words(study, told(study, 0.5, 0.6, None))
    assert said.startswith("the model is that after round 2, chosen among 2 by dice")
    assert "too good" in said
    assert "can be told from noise" not in said
    assert "last round" in chosen_in_words(study, told(study, None, None))


def test_a_study_that_gets_no_better_ends_early_with_its_best_round(wards, monkeypatch):
    """The hospitals' scores are replaced by ones that fall from the second validation on."""
    falling = iter((0.5, 0.6, 0.55, 0.4, 0.3))
    monkeypatch.setattr(
        "tasks.segmentation.task.SegmentationTask.scores", lambda self, total, noise_std: {"dice": next(falling)}
    )
    study = study_of(wards, {**PLAIN, "evaluation_share": 0.0, "matrix_share": 0.0}, rounds=8, every=1, patience=2)
    seen = {}
    grid = grid_of(wards, study)
    model, record = run(
        grid, study, initial_state(study), folder=wards.folder / "run", observer=lambda r, s: seen.update({r.round: s})
    )
    assert (len(record.rounds), record.selected_round) == (4, 2)
    assert record.stopped_early.startswith("after round 4: 2 scores in a row were no better than that after round 2")
    assert all(torch.equal(model[name], seen[2][name]) for name in model)
    assert [event.kind for event in hospital.ledger_of(wards.site("a")).events] == ["gradient", "validation"] * 4


def test_a_study_can_not_ask_for_scores_that_there_can_not_be(hospitals):
    def problem(**settings):
        with pytest.raises(ValueError, match=r"study|task|validation") as found:
            load_study(hospitals.study(**settings))
        return str(found.value)

    from tasks.task import load_for as load_study

    privacy = {"validation_share": 0.1}
    assert "3 rounds: none would be validated" in problem(privacy=privacy, rounds=3, validation={"every": 4})
    assert "can choose by dice, dice/blood_pool" in problem(privacy=privacy, validation={"metric": "luck"})
    count = {"task": {"name": "count", "tables": [{"axes": [{"field": "endpoint.age", "edges": [1], "not_known": False}]}]}}
    one = {"rounds": 1, "strategy": {"name": "sum"}, "training": {}}
    assert "privacy.matrix_share must be 0" in problem(**count, **one, privacy={"matrix_share": 0.1})
    assert isinstance(hospitals.study(privacy=privacy, validation={"metric": "dice/myocardium"}), Study)


def test_an_answer_that_the_noise_drowns_is_remarked_in_the_record(wards):
    study = study_of(wards, {**PRIVATE, "epsilon": 1.0}, rounds=6, every=2)
    _, record = over(wards, study)
    assert {answer.answer for entry in record.rounds for answer in entry.sites.values()} == {"used"}
    why = "no dice can be read from the answers: what so few patients say drowns in the noise"
    assert (record.verdict, record.reasons) == ("complete", [])
    assert record.remarks == [f"validations after rounds 2 to 6: {why}", f"scores: {why}", f"matrix: {why}"]
    assert record.selected_round is None
    assert Record.read(wards.folder / "run" / "record.json") == record


def test_without_noise_it_is_nobodys_labels(wards, monkeypatch):
    monkeypatch.setattr("tasks.segmentation.task.SegmentationTask.scores", lambda self, total, noise_std: {})
    _, record = over(wards, study_of(wards, {**PLAIN, "evaluation_share": 0.0, "matrix_share": 0.0}, rounds=2))
    assert record.remarks == ["validation after round 2: no dice can be read from the answers: nobody's labels decide it"]
    assert (record.verdict, record.selected_round) == ("complete", None)
