"""One contract for all tasks: what the training loop, the noisy sum, the cohort and the privacy gate rely on.

A new folder of `tasks/` has to stand in EXAMPLES, or the first test fails.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from conf.study import Study
from tasks.case import Case, Volume
from tasks.task import CountingTask, GradientTask, JudgedTask, first_state, load, released, task_names


@dataclass(frozen=True)
class Example:
    """Settings small enough for a test, a change of them that changes the arrays, and a patient."""

    settings: dict[str, Any]
    other: dict[str, Any]
    case: Case
    unusable: Case


def ball(*, drawn: bool) -> Case:
    shape, spacing = (6, 40, 40), (6.0, 2.0, 2.0)
    position = (np.indices(shape).transpose(1, 2, 3, 0) + 0.5 - np.array(shape) / 2) * spacing
    mask = (np.linalg.norm(position, axis=-1) < 15).astype(np.uint8)
    image = (100 * mask + np.random.default_rng(0).normal(0, 10, shape)).astype(np.float32)
    return Case("p1", (Volume("t1", image, np.diag([*spacing, 1.0]), mask if drawn else None),))


def ventricle(*, drawn: bool) -> Case:
    """A tube of muscle around blood, closed at the apex, with a right ventricle beside it; every other segment is positive."""
    shape, (dz, dy, dx) = (10, 56, 56), (8.0, 2.0, 2.0)
    slices, rows, columns = np.indices(shape)
    radius = np.hypot((rows - 28) * dy, (columns - 32) * dx)
    inner = np.where(slices < 8, 22 - 1.5 * slices, 0)
    mask = np.where(radius < inner, 1, np.where(radius < inner + 9, 2, 0)) * (slices < 9)
    beside = (np.hypot((rows - 28) * dy, (columns - 14) * dx) < 20 - slices) & (mask == 0) & (slices < 7)
    mask = np.where(beside, 3, mask).astype(np.uint8)
    image = (100 * (mask == 1) + 40 * (mask == 2) + np.random.default_rng(0).normal(0, 10, shape)).astype(np.float32)
    affine = np.eye(4)  # slices run towards the apex, rows down, columns to the patient's left
    affine[:3, :3] = np.column_stack([dz * np.array([0.0, 0, -1]), dy * np.array([0.0, 1, 0]), dx * np.array([1.0, 0, 0])])
    calls = {f"call_{n:02d}": n % 2 for n in range(1, 18)} | {f"certainty_{n:02d}": 1 + n % 5 for n in range(1, 18)}
    return Case("p1", (Volume("t1", image, affine, mask if drawn else None),), {"age": 50, **calls})


def beating() -> Case:
    """A woman of 50 with a ventricle of two sizes; 1.5 m2."""
    filled, contracted = (replace(ventricle(drawn=True).volumes[0], series=series) for series in ("cine_ed", "cine_es"))
    less = np.where((contracted.mask == 1) & (np.indices(contracted.mask.shape)[0] > 2), 2, contracted.mask).astype(np.uint8)
    body = {"age": 50, "sex": "F", "height_cm": 150, "weight_kg": 54}
    return Case("p1", (filled, replace(contracted, mask=less)), body)


SMALL = {"structures": {"ball": 1}, "locate": [], "series": ["t1"], "channels": [4, 8], "strides": [2]}
FLAT = SMALL | {"voxels": 32, "field_mm": 64, "roi_mm": 40, "working_mm": 2}
DEEP = SMALL | {"spatial_dims": 3, "voxels": [8, 16, 16], "field_mm": [36, 64, 64], "roi_mm": None, "working_mm": [6, 2, 2]}
DRAWN = {
    **{"structures": {"ball": 1}, "locate": [], "series": ["t1"], "voxels": 16, "field_mm": 40},
    **{"channels": [8, 16], "attention": [False, True], "head_channels": 8, "levels": 50, "draw_steps": 2, "tone_knots": 3},
}
SEGMENTS = {
    "image": {
        "series": "t1",
        "intensity": "remote",
        "parameters": {"imageType": {"Original": {}}, "featureClass": {"firstorder": ["Mean", "Variance"]}},
    },
    "radiomic": [
        {"name": "original_firstorder_Mean", "lower": -50, "upper": 100},
        {"name": "original_firstorder_Variance", "lower": 1, "upper": 4000, "scale": "log"},
    ],
    "clinical": [{"name": "age", "lower": 20, "upper": 90}],
    "label": {"endpoint": "call_NN"},
    "certainty": {"endpoint": "certainty_NN", "use": "weight"},
}
OTHER = {"label": {"endpoint": "call_NN", "positive_from": 2}, "radiomic": SEGMENTS["radiomic"][:1]}
COUNT = {"tables": [{"axes": [{"field": "endpoint.age", "edges": [40, 60], "not_known": False}]}]}
SPREAD = {
    "measures": [
        {"name": "edv", "indexed": True, "female": [40, 120], "male": [40, 130]},
        {"name": "ef", "female": [40, 80], "male": [40, 80], "bins": 4},
    ],
    "age_edges": [20, 40, 60, 80],
}
EXAMPLES = {
    "count": [
        Example(
            COUNT, {"tables": [*COUNT["tables"], {"axes": [{"field": "mask.t1"}]}]}, ventricle(drawn=True), ball(drawn=False)
        ),
    ],
    "intensity_scale": [
        Example({"series": ["t1"], "percentiles": [50, 90]}, {"percentiles": [50]}, ball(drawn=False), beating()),
    ],
    "radiomics": [
        Example(
            SEGMENTS | {"learner": {"kind": "perceptron", "hidden": [3]}}, OTHER, ventricle(drawn=True), ventricle(drawn=False)
        ),
        Example(
            SEGMENTS | {"learner": {"kind": "forest", "trees": 4, "depth": 2}},
            OTHER,
            ventricle(drawn=True),
            ventricle(drawn=False),
        ),
    ],
    "reference_values": [
        Example(SPREAD, {"measures": SPREAD["measures"][1:]}, beating(), ventricle(drawn=True)),
    ],
    "synthesis": [
        Example(DRAWN, {"conditions": {"sex": ["F", "M"]}}, ball(drawn=True), ball(drawn=False)),
        Example(
            DRAWN | {"spatial_dims": 3, "voxels": [4, 16, 16], "working_mm": [6, 2, 2], "patch": 2},
            {"working_mm": 3},
            ball(drawn=True),
            ball(drawn=False),
        ),
    ],
    "segmentation": [
        Example(FLAT, {"working_mm": 3}, ball(drawn=True), ball(drawn=False)),
        Example(DEEP, {"field_mm": [36, 60, 60]}, ball(drawn=True), ball(drawn=False)),
    ],
}
ALL = [pytest.param(name, example, id=f"{name}-{i}") for name, found in EXAMPLES.items() for i, example in enumerate(found)]
TABLES = ("count", "intensity_scale", "reference_values")
COUNTING = [
    entry for entry in ALL if entry.values[0] in TABLES or entry.values[1].settings.get("learner", {}).get("kind") == "forest"
]
GRADIENT = [entry for entry in ALL if entry not in COUNTING]


@pytest.fixture
def task(name: str, example: Example) -> GradientTask | CountingTask:
    torch.manual_seed(0)
    return load({"name": name, **example.settings})


def test_every_task_has_an_example_here():
    assert set(task_names()) == set(EXAMPLES)


def test_an_unknown_task_is_refused_by_name():
    with pytest.raises(ValueError, match=r"no task named 'lesion'; tasks/ holds .*segmentation"):
        load({"name": "lesion"})


@pytest.mark.parametrize(("name", "example"), ALL)
class TestContract:
    def test_it_is_of_one_kind(self, task, name, example):
        assert isinstance(task, GradientTask) != isinstance(task, CountingTask)

    def test_an_unknown_setting_is_refused_in_words(self, task, name, example):
        with pytest.raises(ValueError, match="no such setting"):
            load({"name": name, **example.settings, "learning_rte": 0.1})

    def test_the_hash_is_stable_and_follows_the_settings(self, task, name, example):
        assert load({"name": name, **example.settings}).hash == task.hash
        assert load({"name": name, **example.settings, **example.other}).hash != task.hash
        assert task.hash.isalnum()

    def test_prepare_gives_the_same_numpy_arrays_each_time(self, task, name, example):
        first, again = task.prepare(example.case), task.prepare(example.case)
        assert first.keys() == again.keys()
        for key, array in first.items():
            assert isinstance(array, np.ndarray)
            assert array.dtype != object
            assert key.isidentifier()
            assert np.array_equal(array, again[key], equal_nan=True)

    def test_a_case_it_cannot_use_is_refused_in_words(self, task, name, example):
        with pytest.raises(ValueError, match=example.unusable.patient):
            task.prepare(example.unusable)

    def test_round_one_starts_from_finite_arrays_that_hold_all_that_is_sent_back(self, task, name, example):
        state = first_state(task)
        assert all(bool(torch.isfinite(tensor).all()) for tensor in state.values())
        study = Study(konsil_version="0", task={"name": name}, rounds=1, sites=("a",))
        assert set(released(study, task)) <= set(state)
        assert released(study, task)


@pytest.mark.parametrize(("name", "example"), COUNTING)
class TestCountingContract:
    def test_a_patient_adds_a_vector_of_length_one_at_most(self, task, name, example):
        vector = task.contribution(task.prepare(example.case))
        assert vector.shape == (task.length,) == tuple(first_state(task)["total"].shape)
        assert 0 < np.linalg.norm(vector) <= 1

    def test_a_patient_without_rows_adds_nothing(self, task, name, example):
        arrays = {key: array[:0] if key == "rows" else array for key, array in task.prepare(example.case).items()}
        assert not task.contribution(arrays).any()

    def test_what_is_counted_has_a_name_for_the_ledger(self, task, name, example):
        assert task.counted


@pytest.mark.parametrize(("name", "example"), [entry for entry in ALL if entry.values[0] not in TABLES])
class TestJudgedContract:
    @pytest.fixture
    def judged(self, task, example):
        """A model and the vector of the example's patient."""
        arrays = task.prepare(example.case)
        state = first_state(task)
        if isinstance(task, CountingTask):
            state = {"total": torch.from_numpy(task.contribution(arrays)), "noise_variance": torch.zeros(1)}
        return state, task.judgement(state, arrays)

    def test_a_patient_adds_a_judgement_of_length_one_at_most(self, task, judged):
        assert isinstance(task, JudgedTask)
        assert judged[1].shape == (task.judgement_length,)
        assert 0 < np.linalg.norm(judged[1]) <= 1

    def test_cohorts_that_differ_in_one_patient_differ_in_that_vector_alone(self, task, example, judged):
        """Exactly, not nearly: whole steps add up without rounding, in any order."""
        state, one = judged
        other = task.judgement(
            state, {key: array[::2] if key == "rows" else array for key, array in task.prepare(example.case).items()}
        )
        without = np.sum([other] * 50, axis=0)
        assert np.array_equal(np.sum([*[other] * 30, one, *[other] * 20], axis=0) - without, one)

    def test_scores_are_finite_numbers_whose_first_ones_can_choose_and_nothing_is_said_of_nobody(self, task, judged):
        told = task.scores(200 * judged[1], 0.5)
        assert all(isinstance(value, float) and np.isfinite(value) for value in told.values())
        assert next(iter(told)) == task.metrics[0]
        assert all(told[f"noise_sd/{metric}"] >= 0 for metric in task.metrics if metric in told)
        assert task.scores(np.zeros(task.judgement_length), 0.0) == {}
        assert task.scores(judged[1], 100.0) == {}
        with pytest.raises(ValueError, match="finite numbers"):
            task.scores(np.zeros(task.judgement_length + 1), 0.0)


@pytest.mark.parametrize(("name", "example"), GRADIENT)
class TestGradientContract:
    def test_examples_come_from_memory_mapped_read_only_arrays(self, task, name, example, tmp_path):
        for key, array in task.prepare(example.case).items():
            np.save(tmp_path / f"{key}.npy", array)
        mapped = {path.stem: np.load(path, mmap_mode="r") for path in tmp_path.glob("*.npy")}
        for views in (1, 2, 5):
            x, y = task.example(mapped, views, np.random.default_rng(0))
            assert x.shape[0] == y.shape[0] == views
            assert x.dtype == torch.float32
            assert torch.isfinite(x).all()

    def test_views_depend_on_the_generator_alone(self, task, name, example):
        arrays = task.prepare(example.case)
        a, b, c = (task.example(arrays, 3, np.random.default_rng(seed)) for seed in (1, 1, 2))
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])
        assert not torch.equal(a[0], c[0])

    def test_the_loss_is_one_number_per_row(self, task, name, example):
        x, y = task.example(task.prepare(example.case), 4, np.random.default_rng(0))
        loss = task.loss(task.model()(x), y)
        assert loss.shape == (4,)
        assert torch.isfinite(loss).all()

    def test_a_rows_loss_and_gradient_do_not_move_when_another_row_does(self, task, name, example):
        arrays, model = task.prepare(example.case), task.model()
        x, y = task.example(arrays, 3, np.random.default_rng(0))
        other_x, other_y = task.example(arrays, 3, np.random.default_rng(1))
        other_x[0], other_y[0] = x[0], y[0]
        parameters = list(model.parameters())
        results = []
        for image, target in ((x, y), (other_x, other_y), (x[:1], y[:1])):
            loss = task.loss(model(image), target)[0]
            results.append([loss.detach(), *torch.autograd.grad(loss, parameters)])
        for result in results[1:]:
            assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(result, results[0], strict=True))

    def test_drawn_arrays_are_like_prepared_ones_and_hold_nobody(self, task, name, example):
        prepared, drawn, again = task.prepare(example.case), *(task.drawn(np.random.default_rng(0)) for _ in range(2))
        assert {key: (array.ndim, array.dtype) for key, array in drawn.items()} == {
            key: (array.ndim, array.dtype) for key, array in prepared.items()
        }
        assert all(np.array_equal(array, again[key]) for key, array in drawn.items())
        (x, y), (real_x, real_y) = (task.example(arrays, 3, np.random.default_rng(0)) for arrays in (drawn, prepared))
        assert (x.shape, x.dtype, y.shape, y.dtype) == (real_x.shape, real_x.dtype, real_y.shape, real_y.dtype)
        assert bool(torch.isfinite(task.loss(task.model()(x), y)).all())

    def test_every_parameter_learns_something(self, task, name, example):
        model = task.model()
        x, y = task.example(task.prepare(example.case), 4, np.random.default_rng(0))
        gradients = torch.autograd.grad(task.loss(model(x), y).mean(), list(model.parameters()))
        assert all(torch.isfinite(gradient).all() for gradient in gradients)

    def test_the_model_keeps_nothing_but_parameters(self, task, name, example):
        model = task.model()
        assert not list(model.buffers())
        assert not any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in model.modules())
        assert not any(getattr(m, "track_running_stats", False) for m in model.modules())

    def test_models_are_drawn_from_torchs_generator(self, task, name, example):
        torch.manual_seed(3)
        first = task.model().state_dict()
        second = task.model().state_dict()
        torch.manual_seed(3)
        again = task.model().state_dict()
        assert all(torch.equal(first[key], again[key]) for key in first)
        assert not all(torch.equal(first[key], second[key]) for key in first)

    def test_trainable_names_exist(self, task, name, example):
        model = task.model()
        names = task.trainable(model)
        assert names
        assert set(names) <= {key for key, _ in model.named_parameters()}
        assert len(set(names)) == len(names)

    def test_scores_are_named_floats_and_the_quick_ones_are_among_the_full_ones(self, task, name, example):
        model = task.model()
        full, quick = task.score(model, example.case), task.score(model, example.case, full=False)
        assert all(isinstance(value, float) for value in full.values())
        assert quick.items() <= full.items()
        assert quick
