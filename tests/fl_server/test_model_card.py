import json

import numpy as np
import pytest
import torch
from learned_runs import write_run
from small import SMALL_TASK

from fl_server.record import Evaluation, Matrix, Record, SiteRound
from fl_server.registry.card import card_of, page
from fl_server.registry.learned import of_run
from fl_server.report.measured import Measured, Patient
from tasks.task import load

HEADINGS = ["Model Details", "Intended Use", "Factors", "Metrics", "Evaluation Data", "Training Data"]
HEADINGS += ["Quantitative Analyses", "Ethical Considerations", "Caveats and Recommendations"]  # Mitchell et al. 2019


def run(folder, **study):
    torch.manual_seed(0)
    return write_run(folder, SMALL_TASK, dict(load(SMALL_TASK).model().state_dict()), **study)


def card(folder):
    return card_of(of_run(folder), name="pilot", version=1)


def test_the_page_has_the_fields_usual_headings_in_order(tmp_path):
    lines = page(card(run(tmp_path / "pilot"))).splitlines()
    assert [line[3:] for line in lines if line.startswith("## ")] == HEADINGS
    assert "**Research only. This is no medical device, and nothing here is for diagnosis or treatment.**" in lines


def test_what_nobody_measured_is_said_to_be_missing(tmp_path):
    told = card(run(tmp_path / "pilot"))
    assert told.scores == []
    assert "No score of this model stands in the record: how good it is, nobody has measured." in told.missing
    assert "No scores by sex, age, disease." in told.missing


def test_without_privacy_it_says_none_in_capitals(tmp_path):
    told = card(run(tmp_path / "pilot", privacy={"kind": "none"}))
    assert told.privacy[0].startswith("NONE. ")
    assert len(told.privacy) == 1


def test_the_privacy_statement_names_unit_numbers_and_noise(tmp_path):
    said = " ".join(card(run(tmp_path / "pilot", privacy={"epsilon": 3.0, "delta": 1e-3, "max_grad_norm": 0.5})).privacy)
    assert "The unit is one patient with all images" in said
    assert "epsilon 3 at delta 0.001" in said
    assert "cut to a length of 0.5 at most, and Gaussian noise" in said
    assert "clinic: spent epsilon 1.5 at delta 0.001" in said


def test_a_price_that_was_told_before_a_hospital_was_last_asked_is_not_called_its_ledgers(tmp_path):
    folder = run(tmp_path / "pilot")
    record = Record.read(folder / "record.json")
    assert "as the hospital's own ledger says." in " ".join(card(folder).privacy)
    last = record.rounds[-1]
    lost = last.model_copy(deep=True, update={"round": last.round + 1})
    lost.sites["clinic"] = SiteRound(answer="declined", reason="rounds used up", attempts=2)
    record.rounds.append(lost)
    record.write(folder / "record.json")
    said = " ".join(card(folder).privacy)
    assert (
        f"clinic: spent epsilon 1.5 at delta 0.001, as the hospital's own ledger said with its answer for round {last.round};"
        in said
    )
    lost.sites["clinic"] = SiteRound(answer="absent", reason="not asked", attempts=0)
    record.write(folder / "record.json")
    assert "clinic: spent epsilon 1.5 at delta 0.001, as the hospital's own ledger says." in card(folder).privacy


def test_a_rehearsals_scores_have_intervals_over_its_test_patients(tmp_path):
    folder = run(tmp_path / "pilot")
    rng, rows = np.random.default_rng(0), []
    values = rng.normal(0.8, 0.05, 40)
    for number, value in enumerate(values):
        row = {"arm": "federation_private", "seed": 0, "hospital": "clinic", "role": "site", "patient": f"P{number}"}
        rows += [{**row, "scores": {"dice/blood_pool": value}}, {**row, "arm": "pooled", "scores": {"dice/blood_pool": 0.1}}]
    (folder / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    score = next(score for score in card(folder).scores if score.of == "clinic")
    assert score.value == pytest.approx(values.mean())
    half = 1.96 * values.std(ddof=1) / np.sqrt(40)  # what the normal distribution would say
    assert score.low == pytest.approx(values.mean() - half, abs=0.004)
    assert score.high == pytest.approx(values.mean() + half, abs=0.004)
    assert "| dice/blood_pool | clinic |" in page(card(folder))


def test_groups_of_patients_are_told_apart_where_somebody_measured_them(tmp_path):
    folder = run(tmp_path / "pilot")
    patients = [
        Patient(
            hospital="clinic",
            patient=f"P{i}",
            sex="F" if i % 2 else "M",
            age=30 + i,
            dice={"blood_pool": [0.9 - 0.1 * (i % 2), 0.1]},
        )
        for i in range(8)
    ]
    study_hash = Record.read(folder / "record.json").study_hash
    Measured(study_hash=study_hash, structures=["blood_pool"], patients=patients).write(folder / "clinical.json")
    scores = {score.of: score for score in card(folder).scores}
    assert scores["by sex: women"].value == pytest.approx(0.8)  # the first seed's model alone
    assert scores["by sex: men"].patients == 4
    assert "No scores by disease." in card(folder).missing
    assert "by sex" in page(card(folder)).partition("## Factors")[2].partition("## Metrics")[0]


def test_noisy_sums_are_told_with_their_noise(tmp_path):
    folder = run(tmp_path / "pilot")
    record = Record.read(folder / "record.json")
    record.evaluation = Evaluation(sites={}, total=[1.0], noise_std=2.5, seconds=1.0, scores={"dice": 0.7})
    record.matrix = Matrix(metric="dice", scores={"global": {"clinic": 0.6}}, noise_std={"clinic": 1.25}, sites={}, seconds=1.0)
    record.write(folder / "record.json")
    found = {score.of: score for score in card(folder).scores}
    assert found["patients held back by the hospitals"].basis.endswith("noise 2.5 on each of its numbers")
    assert found["clinic, validation patients"].value == 0.6
    assert "No interval stands in the record: how sure these numbers are can't be told." in card(folder).missing


def test_a_degraded_studys_reasons_stand_at_the_top(tmp_path):
    text = page(card(run(tmp_path / "pilot", answer="failed")))
    head = text.partition("## Model Details")[0]
    assert "Verdict of the study: **degraded**." in head
    assert "- round 1: north failed (the disk was full)" in head


def test_weights_that_came_from_elsewhere_are_told_and_not_vouched_for(tmp_path):
    text = page(card(run(tmp_path / "pilot", initial_model_sha256="ab" * 32)))
    assert "Training started from weights abab" in text
    assert "not told: nothing lay beside the weights" in text
    assert "What the weights that training started from tell of anybody is not covered by this." in text
