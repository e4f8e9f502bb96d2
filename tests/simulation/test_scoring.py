from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from fl_client.cohort import Cohort
from simulation import scoring
from tasks.task import load

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture
def hospital(hospitals):
    """A cohort of four patients, the settings of a task, and the weights of two models."""
    task = hospitals.study().task
    torch.manual_seed(1)
    states = [load(task).model().state_dict() for _ in range(2)]
    return hospitals.site("a").folder / "cohort", task, states


@pytest.mark.parametrize(("there", "expected"), [(True, "cuda"), (False, "cpu")])
def test_a_model_is_scored_where_there_is_a_gpu(hospital, monkeypatch, there, expected):
    cohort, task, states = hospital
    patient = Cohort(cohort).patients[0]
    asked = []

    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, device: asked.append(torch.device(device)) or self)
    for models in (states[:1], states):  # an ensemble too
        name, scores = scoring.score_patient(task, models, cohort, patient, False)
        assert name == patient
        assert "dice/blood_pool" in scores
    assert asked == [torch.device(expected)] * 2


def test_a_restored_model_stays_where_exports_and_pictures_use_it(hospital, monkeypatch):
    _, task, states = hospital
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    model = scoring.restore(load(task), states)
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}


def test_hospitals_are_scored_together_and_their_patients_are_not_mixed_up(hospital, monkeypatch):
    cohort, task, states = hospital
    first, second, *_ = Cohort(cohort).patients

    def score(settings, states, folder, patient, full):
        return patient, {"dice/blood_pool": float(len(folder.name)) + (patient == first)}

    monkeypatch.setattr(scoring, "score_patient", score)
    tested = {"a": (Path("four"), [second, first]), "b": (Path("eleven"), [first]), "c": (Path("nobody"), [])}
    with ThreadPoolExecutor(3) as pool:
        found = scoring.score_hospitals(pool, task, states, tested, full=True)
    assert found == {
        "a": {second: {"dice/blood_pool": 4}, first: {"dice/blood_pool": 5}},
        "b": {first: {"dice/blood_pool": 7}},
        "c": {},
    }
    assert [list(found), list(found["a"])] == [["a", "b", "c"], [second, first]]


@pytest.mark.gpu
@gpu
def test_scores_from_a_gpu_are_those_of_the_cpu(hospital, monkeypatch):
    cohort, task, states = hospital
    for patient in Cohort(cohort).patients:
        torch.cuda.reset_peak_memory_stats()
        _, fast = scoring.score_patient(task, states, cohort, patient, False)
        assert torch.cuda.max_memory_allocated() > 0
        with monkeypatch.context() as patch:
            patch.setattr(torch.cuda, "is_available", lambda: False)
            _, slow = scoring.score_patient(task, states, cohort, patient, False)
        assert fast == pytest.approx(slow, abs=0.01, nan_ok=True)
