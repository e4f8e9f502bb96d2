import numpy as np
import pytest
import torch

from tasks.case import Case
from tasks.segmentation import build

TWO = {"structures": {"blood_pool": 1, "myocardium": 2}}
SMALL = {"channels": [16, 32, 64], "strides": [2, 2], "num_res_units": 2, "voxels": 48, "field_mm": 160, "roi_mm": 100}


def test_sixty_steps_on_one_patient_are_enough_to_know_it(toy_heart):
    torch.manual_seed(0)
    task = build(TWO | SMALL | {"augment": {"rotation_deg": 10, "scale": 0.1, "shift_mm": 8, "roi_shift_mm": 6}})
    case = Case("p", (toy_heart(noise=0.05), toy_heart("cine_es", radius_mm=18, noise=0.05, seed=1)))
    arrays, model, rng = task.prepare(case), task.model(), np.random.default_rng(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, 60)
    for _ in range(60):
        image, target = task.example(arrays, 8, rng)
        loss = task.loss(model(image), target).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    scores = task.score(model, case, full=False)
    assert min(scores.values()) > 0.9, scores


def test_scoring_leaves_the_model_as_it_was(toy_heart):
    task = build(TWO | SMALL)
    model = task.model().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    task.score(model, Case("p", (toy_heart(),)), full=False)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("settings", [{}, {"num_res_units": 0}, {"strides": [1, 2, 2]}, {"groups": 8}])
def test_logits_have_the_shape_of_the_look(settings):
    task = build(settings)
    assert task.model()(torch.zeros(2, 1, 80, 80)).shape == (2, 4, 80, 80)


def test_fewer_parameters_move_when_the_settings_say_so():
    def names(which):
        task = build({"trainable": which})
        return set(task.trainable(task.model()))

    everything, decoder, norm, head = (names(which) for which in ("all", "decoder", "norm", "head"))
    assert head == {"head.weight", "head.bias", "activation.weight"}
    assert head < decoder < everything
    assert head < norm < everything
    model = build({}).model()
    sizes = dict(model.named_parameters())
    assert all(sizes[name].ndim <= 1 for name in norm - head)
    encoder = everything - decoder
    assert any(name.startswith("body.model.0.") for name in encoder)
    assert any(name.startswith("body.model.1.submodule.0.") for name in encoder)
    assert not any(name.startswith("body.model.2.") for name in encoder)


def test_a_row_of_the_networks_output_does_not_depend_on_the_other_rows():
    torch.manual_seed(0)
    model = build({}).model()
    rows = torch.randn(3, 1, 80, 80)
    changed = rows.clone()
    changed[1:] += 5
    assert torch.allclose(model(rows)[0], model(changed)[0], atol=1e-5)
