"""Tones: curves that pre-training shows drawn patients in, and of which hospitals learn one."""

import dataclasses

import numpy as np
import pytest
import torch
from test_synthesis_task import SMALL, patient

from simulation.pretraining import _shown
from tasks.synthesis import build, diffusion
from tasks.synthesis.tone import any_tone, positions, toned
from tasks.task import VariedTask, load

KNOTS = 3
TONED = SMALL | {"tone_knots": KNOTS, "begin": 0.5}


def power(exponent):
    """The tone that raises grey values to a power."""
    return positions(KNOTS) ** exponent - positions(KNOTS)


def darker(case, exponent):
    """The case with its own range of grey values raised to a power."""

    def raised(volume):
        low, high = np.percentile(volume.image, (1, 99))
        return dataclasses.replace(volume, image=np.clip((volume.image - low) / (high - low), 0, None) ** exponent)

    return dataclasses.replace(case, volumes=tuple(map(raised, case.volumes)))


def test_a_tone_moves_what_lies_between_and_leaves_both_ends_and_what_is_brighter():
    image = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0, 1.3])
    assert torch.allclose(toned(image, np.zeros(KNOTS)), image)
    assert torch.allclose(toned(image, power(2.0)), torch.tensor([0.0, 0.0625, 0.25, 0.5625, 1.0, 1.3]))
    assert toned(torch.tensor([0.125]), power(2.0)).item() == pytest.approx(0.03125)  # halfway to the first knot


def test_a_tone_that_falls_is_held_level_so_that_no_grey_values_change_places():
    shown = toned(torch.linspace(0, 1.5, 100), [0.5, -0.4, 9.0])
    assert (shown.diff() >= 0).all()
    assert shown.max() == 1.5
    assert toned(torch.tensor([0.5]), [0.5, -0.4, 0]).item() == pytest.approx(0.75)


def test_pre_training_sees_rising_curves_of_all_strengths():
    rng = np.random.default_rng(0)
    curves = np.array([any_tone(KNOTS, rng) for _ in range(300)]) + positions(KNOTS)
    assert (np.diff(curves, axis=1) >= 0).all()
    assert curves.min() > 0
    assert curves.max() < 1
    low, high = np.percentile(curves[:, 1], (5, 95))  # of 0.5: 0.125 to 0.79 by the powers alone
    assert low < 0.18
    assert high > 0.75


def test_a_drawn_patient_is_shown_in_a_tone_that_the_network_is_told():
    task = load({"name": "synthesis", **TONED})
    assert isinstance(task, VariedTask)
    arrays = task.prepare(patient())
    plain, _ = task.example(arrays, 4, np.random.default_rng(0))
    told = {**arrays, "tone": power(2.5).astype(np.float32)}
    shown, _ = task.example(told, 4, np.random.default_rng(0))
    assert plain[:, -2 - KNOTS : -1, 0, 0].tolist() == [[1.0] + [0.0] * KNOTS] * 4  # hospitals: in the learned one
    assert np.allclose(shown[:, -2 - KNOTS : -1, 0, 0], [[0.0, *power(2.5)]] * 4)
    assert shown[:, 0].mean() < plain[:, 0].mean() - 0.05
    rng = np.random.default_rng(1)
    rows = [_shown(task, arrays, 2, rng)[0][:, -1 - KNOTS : -1, 0, 0] for _ in range(2)]
    assert not torch.equal(rows[0][0], rows[1][0])  # another tone each time
    assert torch.equal(rows[0][0], rows[0][1])  # one for all views of a patient
    bare = build(SMALL)
    assert "tone" not in bare.varied(arrays, rng)


def test_a_learned_tone_is_to_the_network_as_one_that_is_told():
    torch.manual_seed(0)
    task = build(TONED)
    model = task.model()
    torch.nn.init.normal_(model.body.out[2].conv.weight, std=0.1)  # a new network's last layer is 0
    arrays = task.prepare(patient())
    image, classes = diffusion.look(arrays, np.arange(2), task.settings)
    facts = torch.from_numpy(arrays["facts"][:2])
    level, noise = np.array([0.2, 0.4]), torch.zeros_like(image)
    tone = torch.tensor([-0.2, -0.25, -0.1])

    def answer(told):
        return model(diffusion.noisy(image, classes, told, level, noise, task.settings)[0])

    known = answer(diffusion.told(facts, task.settings, tone=tone.numpy()))
    before = answer(diffusion.told(facts, task.settings))
    with torch.no_grad():
        model.tone.learned.copy_(tone)
    after = answer(diffusion.told(facts, task.settings))
    assert not torch.allclose(before, known, atol=1e-4)
    assert torch.allclose(after, known, atol=1e-5)


def test_a_study_moves_the_tone_alone_and_without_one_is_refused():
    task = build(TONED | {"trainable": "tone"})
    model = task.model()
    assert task.trainable(model) == ["tone.learned"]
    assert sum(p.numel() for name, p in model.named_parameters() if name in task.trainable(model)) == KNOTS
    for which in ("head", "norm", "up", "all"):
        assert "tone.learned" in build(TONED | {"trainable": which}).trainable(model)
    with pytest.raises(ValueError, match="trainable is tone, and without tone_knots there is none"):
        load({"name": "synthesis", **SMALL, "trainable": "tone"})


def test_hospitals_teach_their_tone_and_what_is_drawn_then_has_it():
    """Drawn patients are told apart by tone; of darkened ones three numbers are learned, and nothing else moves."""
    torch.manual_seed(0)
    task = build(TONED | {"voxels": 16, "trainable": "tone"})
    model = task.model()
    drawn, hospital = task.prepare(patient()), task.prepare(darker(patient(), 2.5))

    def learned(moving, arrays, steps, rate):
        optimizer = torch.optim.Adam(moving, lr=rate)
        for step in range(steps):
            rng = np.random.default_rng([steps, step])
            rows, velocity = task.example(arrays(rng), 10, rng)
            optimizer.zero_grad()
            task.loss(model(rows), velocity).mean().backward()
            optimizer.step()

    learned(model.parameters(), lambda rng: task.varied(drawn, rng), 150, 5e-3)
    assert model.tone.learned.tolist() == [0.0] * KNOTS  # nobody has asked for it
    before = task.synthetic(model, patient(), np.random.default_rng(0))
    learned([model.tone.learned], lambda _: hospital, 40, 0.02)
    assert model.tone.learned.mean() < -0.1
    after = task.synthetic(model, patient(), np.random.default_rng(0))
    middle = [float(np.median(case.volumes[0].image[case.volumes[0].mask == 2])) for case in (before, after)]
    assert middle[1] < middle[0] - 0.1
