"""What a reader's silence says: a voxel without a label is none of the structures that were looked for."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tasks.case import UNKNOWN, Case
from tasks.segmentation import build
from tasks.segmentation.judge import dices
from tasks.segmentation.partial import ANY_OF, code, may_be, seen_for

MARGINAL = {"structures": {"blood_pool": 1, "myocardium": 2, "right_ventricle": 3}}
IGNORING = MARGINAL | {"partial_labels": "ignore"}


def test_a_code_names_what_a_voxel_may_be_and_255_says_nothing():
    assert code([2, 3], 4) == ANY_OF + 0b110
    assert code([1, 2, 3], 4) == UNKNOWN  # anything
    assert code([1], 8) == UNKNOWN  # too many structures for one number
    assert code([6], 7) == ANY_OF + 32 < UNKNOWN
    several, possible = may_be(torch.tensor([[0, 2, UNKNOWN, ANY_OF + 0b110]]), 4)
    assert several.tolist() == [[False, False, False, True]]
    assert possible[0, :, 3].tolist() == [True, False, True, True]
    assert possible[0, :, :3].all()
    mask = np.array([0, 3, ANY_OF + 0b010, UNKNOWN], np.uint8)
    assert seen_for(mask, 2).tolist() == [0, 3, UNKNOWN, UNKNOWN]
    assert seen_for(mask, 1).tolist() == [0, 3, 0, UNKNOWN]


def test_the_loss_is_that_of_the_classes_which_are_left():
    task = build(MARGINAL | {"class_weights": [0.5, 1, 1, 1]})
    p = torch.tensor([0.4, 0.3, 0.2, 0.1]).log().view(1, 4, 1, 1)
    target = torch.tensor([[[ANY_OF + 0b110]]])  # background, myocardium or right ventricle
    dice = 1 - ((2 * 0 + 1) / (0.3 + 0 + 1) + 1 + 1) / 3  # only the blood pool's is known: none is there
    assert task.loss(p, target).item() == pytest.approx(-0.5 * math.log(0.7) + dice, rel=1e-5)


def test_nothing_pulls_among_the_classes_that_are_left():
    task = build(MARGINAL)
    output = torch.zeros(1, 4, 4, 4, requires_grad=True)
    task.loss(output, torch.full((1, 4, 4), ANY_OF + 0b010)).sum().backward()
    gradient = output.grad[0, :, 0, 0].tolist()
    assert gradient[0] == pytest.approx(gradient[2], abs=1e-7)  # background and myocardium: either will do
    assert gradient[0] < 0 < gradient[1]
    assert gradient[3] > 0


def test_labels_that_are_whole_have_the_same_loss_and_gradient_to_the_bit():
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 4, (3, 12, 12), generator=generator)
    target[0, :3] = UNKNOWN
    found = []
    for settings in (IGNORING, MARGINAL):
        output = torch.randn(3, 4, 12, 12, generator=torch.Generator().manual_seed(1)).requires_grad_()
        loss = build(settings).loss(output, target)
        loss.sum().backward()
        found.append((loss.detach(), output.grad))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_one_rows_partial_labels_move_no_other_row():
    task, generator = build(MARGINAL), torch.Generator().manual_seed(0)
    target = torch.randint(0, 4, (2, 8, 8), generator=generator)
    output = torch.randn(2, 4, 8, 8, generator=generator)
    alone = task.loss(output, target)[0]
    target[1] = ANY_OF + 0b001
    assert task.loss(output, target)[0] == alone


def test_from_a_case_to_the_view(toy_heart):
    whole = toy_heart()
    cavity = np.where(whole.mask == 1, 1, 0).astype(np.uint8)
    partly = Case("p", (replace(whole, mask=cavity, annotated=(1,)),))
    ignoring, using = build(IGNORING), build(MARGINAL)
    assert ignoring.hash != using.hash
    before, arrays = ignoring.prepare(partly), using.prepare(partly)
    silent = ANY_OF + 0b110
    assert set(np.unique(before["mask"])) == {0, 1, UNKNOWN}
    assert set(np.unique(arrays["mask"])) == {0, 1, silent}
    assert len(arrays["mask"]) > len(before["mask"])  # slices without a cavity say where none is
    assert arrays["labelled"].sum() == before["labelled"].sum()
    _, y = using.example(arrays, 4, np.random.default_rng(0))
    assert set(y.unique().tolist()) == {0, 1, silent}
    entire, same = (task.prepare(Case("p", (whole,))) for task in (ignoring, using))
    assert all(np.array_equal(entire[key], same[key], equal_nan=True) for key in entire)


def test_a_structure_is_judged_where_its_border_was_looked_at(toy_heart):
    whole = toy_heart()
    cavity = np.where(whole.mask == 1, 1, 0).astype(np.uint8)
    partly = replace(whole, mask=cavity, annotated=(1,))
    found = []
    for settings, volume in ((IGNORING, partly), (MARGINAL, partly), (IGNORING, whole)):
        task = build(settings)
        torch.manual_seed(0)
        found.append(dices(task.model(), task.settings, task.prepare(Case("p", (volume,)))))
    assert found[0] == {}  # what surrounds the cavity is unknown
    assert found[1] == {"blood_pool": pytest.approx(found[2]["blood_pool"])}
