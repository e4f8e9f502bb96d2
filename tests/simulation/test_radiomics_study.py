"""A whole radiomics rehearsal over hospitals of table rows: real federations, real ledgers, the report in the end."""

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from fl_client.cohort import Cohort
from fl_client.privacy import Event, Ledger, calibrate, epsilon
from fl_server.record import Record
from simulation.__main__ import main, settings_of
from simulation.radiomics.studies import Promise
from tasks.task import load

DELTA = 1e-3
OVERRIDES = [
    "study=heart_disease",
    "name=small",
    "workers=0",
    "radiomics.folds=2",
    "radiomics.logistic.rounds=2",
    "radiomics.task.learner={kind: forest, trees: 16, depth: 3}",
    "+radiomics.task.bins=4",
    "radiomics.evaluation_share=0.5",
]


def tables(folder):
    """Two hospitals of 40 rows each, in the columns of the heart-disease tables; the kind of chest pain tells who is ill."""
    rng = np.random.default_rng(0)
    names = [
        "age",
        "sex",
        "cp",
        "trestbps",
        "chol",
        "fbs",
        "restecg",
        "thalach",
        "exang",
        "oldpeak",
        "slope",
        "ca",
        "thal",
        "target",
    ]
    found = {}
    for name in ("north", "south"):
        ill = rng.random(40) < 0.5
        columns = {key: rng.integers(0, 2, 40) for key in names}
        columns |= {"age": rng.integers(30, 80, 40), "cp": np.where(ill, 4, 2), "target": ill.astype(int)}
        columns |= {
            "trestbps": rng.integers(100, 180, 40),
            "chol": rng.integers(150, 300, 40),
            "thalach": rng.integers(90, 190, 40),
        }
        path = folder / f"{name}.csv"
        lines = [",".join(str(columns[key][i]) if rng.random() > 0.02 else "?" for key in names) for i in range(40)]
        path.write_text("\n".join([",".join(names), *lines]) + "\n")
        found[name] = str(path)
    return found


@pytest.fixture(scope="module", autouse=True)
def few_trees():
    """Scikit-learn's forests, which are there to compare with, have 30 trees instead of 300."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("simulation.radiomics.baselines.TREES", 30)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory, few_trees):
    """The run's folder, and the command line that made it."""
    folder = tmp_path_factory.mktemp("radiomics")
    removed = [f"~hospitals.sites.{name}" for name in ("cleveland", "hungary", "switzerland", "long_beach")]
    added = [f"+hospitals.sites.{name}={path}" for name, path in tables(folder).items()]
    arguments = [*OVERRIDES, f"runs_folder={folder}", *removed, *added]
    assert main(arguments) == 0
    return folder / "small", arguments


def facts(folder):
    return json.loads((folder / "radiomics.json").read_text())


def test_it_ends_with_a_record_a_model_ledgers_and_a_report(finished):
    folder, _ = finished
    record = Record.read(folder / "record.json")
    why = "no auc can be read from the answers: what so few patients say drowns in the noise"
    assert (record.verdict, record.remarks) == ("complete", [f"scores: {why}"])
    assert all(35 <= site.cases_used <= site.cases_expected == 40 for site in record.sites.values())  # some lack the label
    assert "AUC" in (folder / "report.html").read_text()
    for name in ("north", "south"):
        ledger = Ledger(folder / "ledgers" / f"{name}.jsonl", epsilon=3.0, delta=DELTA)
        assert [event.kind for event in ledger.events] == ["leaf counts", "scores"]
        assert 2.9 < ledger.epsilon <= 3
        assert ledger.epsilon == pytest.approx(record.sites[name].epsilon)


def test_arms_are_judged_on_patients_they_have_not_seen_and_the_easy_label_is_found(finished):
    arms = facts(finished[0])["arms"]
    assert {"forest_private", "forest_plain", "logistic_private", "logistic_plain", "alone_random_forest"} <= set(arms)
    assert arms["forest_plain"]["auc"]["value"] > 0.9
    assert arms["pooled_random_forest"]["auc"]["value"] > 0.9
    assert arms["forest_private"]["epsilon"] == pytest.approx(3, abs=0.05)
    assert arms["forest_plain"]["epsilon"] is None
    assert set(arms["forest_plain"]["by_hospital"]) == {"north", "south"}
    assert len(arms["forest_plain"]["folds"]) == 2


def test_a_folds_model_gives_the_answers_that_were_judged(finished):
    folder, _ = finished
    areas = []
    for fold in (0, 1):
        place = folder / "arms" / "forest_plain" / "0" / str(fold)
        study = json.loads((place / "record.json").read_text())["study"]
        task, state = load(study["task"]), torch.load(place / "model.pt", weights_only=True)
        y, p = [], []
        trained = {path.name for site in (place / "sites").iterdir() for path in (site / "cohort" / "cases").iterdir()}
        for cases in (folder.parent / "cache" / "hospitals").glob("*/cohort"):
            cohort = Cohort(cases)
            held_back = cohort.usable(task, [patient for patient in cohort.patients if patient not in trained])[0]
            for patient in held_back:
                rows = task.rows(cohort.prepared(task, patient))
                y += rows.y.tolist()
                p += task.predict(state, rows.X).tolist()
        areas.append(roc_auc_score(y, p))
    told = [fold["auc"] for fold in facts(folder)["arms"]["forest_plain"]["folds"]]
    assert told == pytest.approx(areas)


def test_the_federation_tells_its_own_score_with_the_error_of_the_noise_or_that_it_can_not(finished):
    (entry,) = facts(finished[0])["federated"].values()
    assert entry["auc_exact"] > 0.8
    assert entry["noise_std"] > 1
    assert entry["words"] or entry["auc_noise_sd"] > 0


def test_columns_importance_and_shapley_values_are_told(finished):
    found = facts(finished[0])
    names = [column["name"] for column in found["columns"]]
    assert "cp=4" in names
    (ranked,) = found["importance"].values()
    assert {entry["column"] for entry in ranked} == set(names)
    for one in found["shapley"]:
        added = one["base"] + sum(entry["shapley"] for entry in one["values"])
        assert added == pytest.approx(one["prediction"], abs=1e-6)
    assert found["harmonisation"] is None
    assert found["bullseye"] == []


def test_running_it_again_trains_nothing_again(finished, monkeypatch):
    folder, arguments = finished
    before = (folder / "radiomics.json").read_text()
    monkeypatch.setattr("simulation.arms.run", lambda *_, **__: pytest.fail("trained again"))
    assert main(arguments) == 0
    assert (folder / "radiomics.json").read_text() == before


def test_the_promise_is_divided_so_that_both_studies_keep_it_together():
    simulation = settings_of(["study=myocarditis"])
    promise = Promise.of(simulation.privacy, simulation.radiomics)
    multipliers = [
        calibrate(epsilon=part, delta=DELTA, sample_rate=1.0, steps=1) for part in (promise.masks, promise.classifier)
    ]
    together = epsilon([Event(noise_multiplier=m) for m in multipliers], delta=DELTA)
    assert 2.97 < together <= 3
    assert promise.masks < promise.classifier < 3
    assert promise.masks + promise.classifier > 3.5  # epsilons don't add up


def test_a_study_of_reader_masks_has_the_whole_promise():
    simulation = settings_of(["study=radiomics"])
    assert Promise.of(simulation.privacy, simulation.radiomics) == Promise(3.0, 0.0, 3.0)
