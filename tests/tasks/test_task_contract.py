"""One contract for all gradient tasks: what the training loop, the cohort and the privacy gate rely on.

A new folder of `tasks/` has to stand in EXAMPLES, or the first test fails.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from tasks.case import Case, Volume
from tasks.task import GradientTask, load, task_names


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


SMALL = {"structures": {"ball": 1}, "locate": [], "series": ["t1"], "channels": [4, 8], "strides": [2]}
FLAT = SMALL | {"voxels": 32, "field_mm": 64, "roi_mm": 40, "working_mm": 2}
DEEP = SMALL | {"spatial_dims": 3, "voxels": [8, 16, 16], "field_mm": [36, 64, 64], "roi_mm": None, "working_mm": [6, 2, 2]}
EXAMPLES = {
    "segmentation": [
        Example(FLAT, {"working_mm": 3}, ball(drawn=True), ball(drawn=False)),
        Example(DEEP, {"field_mm": [36, 60, 60]}, ball(drawn=True), ball(drawn=False)),
    ],
}
ALL = [pytest.param(name, example, id=f"{name}-{i}") for name, found in EXAMPLES.items() for i, example in enumerate(found)]


@pytest.fixture
def task(name: str, example: Example) -> GradientTask:
    torch.manual_seed(0)
    return load({"name": name, **example.settings})


def test_every_task_has_an_example_here():
    assert set(task_names()) == set(EXAMPLES)


def test_an_unknown_task_is_refused_by_name():
    with pytest.raises(ValueError, match=r"no task named 'lesion'; tasks/ holds .*segmentation"):
        load({"name": "lesion"})


@pytest.mark.parametrize(("name", "example"), ALL)
class TestContract:
    def test_it_is_a_gradient_task(self, task, name, example):
        assert isinstance(task, GradientTask)

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
