import math

import numpy as np
import pytest
import torch

from tasks.case import UNKNOWN
from tasks.segmentation import build

SETTINGS = {"class_weights": [0.5, 1, 2, 1.5], "dice_weight": 0.7, "ce_weight": 1.3, "dice_smooth": 2.0}


def some_rows(rows=3, *space, seed=0):
    rng = np.random.default_rng(seed)
    output = torch.from_numpy(rng.normal(size=(rows, 4, *space)))
    target = torch.from_numpy(rng.choice([0, 1, 2, 3, UNKNOWN], size=(rows, *space)))
    return output, target


def the_slow_obvious_way(output, target, weights, dice_weight, ce_weight, smooth):
    result = []
    for logits, truth in zip(output.tolist(), target.tolist(), strict=True):
        voxels = [(r, c) for r in range(len(truth)) for c in range(len(truth[0]))]
        overlap, predicted, drawn, ce = [0.0] * 4, [0.0] * 4, [0.0] * 4, 0.0
        for r, c in voxels:
            if truth[r][c] == UNKNOWN:
                continue
            exps = [math.exp(logits[k][r][c]) for k in range(4)]
            p = [e / sum(exps) for e in exps]
            ce -= weights[truth[r][c]] * math.log(p[truth[r][c]])
            drawn[truth[r][c]] += 1
            overlap[truth[r][c]] += p[truth[r][c]]
            predicted = [a + b for a, b in zip(predicted, p, strict=True)]
        dice = [(2 * overlap[k] + smooth) / (predicted[k] + drawn[k] + smooth) for k in (1, 2, 3)]
        result.append(dice_weight * sum(1 - d for d in dice) / 3 + ce_weight * ce / len(voxels))
    return result


def test_the_loss_is_what_the_formula_says():
    output, target = some_rows(3, 5, 6)
    loss = build(SETTINGS).loss(output, target)
    assert loss.shape == (3,)
    assert loss.tolist() == pytest.approx(the_slow_obvious_way(output, target, [0.5, 1, 2, 1.5], 0.7, 1.3, 2.0), rel=1e-9)


def test_a_row_depends_on_itself_alone():
    task, (output, target) = build(SETTINGS), some_rows(3, 5, 6)
    other_output, other_target = some_rows(3, 5, 6, seed=1)
    other_output[1], other_target[1] = output[1], target[1]
    other_target[0] = UNKNOWN
    results = []
    for o, t in ((output, target), (other_output, other_target), (output[1:2], target[1:2])):
        o = o.clone().requires_grad_()
        loss = task.loss(o, t)
        row = 1 if len(o) > 1 else 0
        (gradient,) = torch.autograd.grad(loss[row], o)
        assert not gradient[[i for i in range(len(o)) if i != row]].any()
        results.append((loss[row].item(), gradient[row]))
    for value, gradient in results[1:]:
        assert value == pytest.approx(results[0][0], rel=1e-12)
        assert torch.allclose(gradient, results[0][1], rtol=1e-12)


def test_unknown_voxels_do_not_matter():
    task, (output, target) = build(SETTINGS), some_rows(2, 8, 8)
    changed = torch.where((target == UNKNOWN)[:, None], output + 10 * torch.randn_like(output), output).requires_grad_()
    assert torch.allclose(task.loss(changed, target), task.loss(output, target))
    (gradient,) = torch.autograd.grad(task.loss(changed, target).sum(), changed)
    assert not gradient.transpose(0, 1)[:, target == UNKNOWN].any()


def test_rows_of_which_nothing_is_known_have_no_gradient():
    output = torch.randn(2, 4, 8, 8, requires_grad=True)
    loss = build({}).loss(output, torch.full((2, 8, 8), UNKNOWN))
    (gradient,) = torch.autograd.grad(loss.sum(), output)
    assert torch.isfinite(loss).all()
    assert not gradient.any()


def test_a_perfect_answer_costs_nothing_in_two_and_three_dimensions():
    for space in ((6, 6), (4, 6, 6)):
        target = torch.randint(0, 4, (2, *space), generator=torch.Generator().manual_seed(0))
        output = 50 * torch.nn.functional.one_hot(target, 4).movedim(-1, 1).double()
        assert build({}).loss(output, target).max() < 1e-6


def test_an_absent_structure_asks_only_for_silence():
    target = torch.zeros(1, 8, 8, dtype=torch.long)
    quiet = torch.zeros(1, 4, 8, 8)
    quiet[:, 0] = 30
    loud = torch.zeros(1, 4, 8, 8)
    task = build({"ce_weight": 0})
    assert task.loss(quiet, target).item() == pytest.approx(0, abs=1e-6)
    assert task.loss(loud, target).item() == pytest.approx(1 - 1 / (16 + 1), rel=1e-5)  # 64 voxels at 1/4 each, smooth 1


def test_the_loss_works_under_per_sample_transforms():
    task, (output, target) = build(SETTINGS), some_rows(3, 5, 6)
    each = torch.func.vmap(lambda o, t: task.loss(o[None], t[None])[0])(output, target)
    assert torch.allclose(each, task.loss(output, target))
