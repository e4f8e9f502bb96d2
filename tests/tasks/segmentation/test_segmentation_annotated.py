"""What a reader didn't look for teaches nothing: from the door through the cohort to the loss."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fl_client.cohort import Cohort
from fl_client.intake.labels import LabelMap
from fl_client.intake.mask import Drawing, MaskRefused
from fl_client.intake.placement import place
from tasks.case import UNKNOWN, Case
from tasks.segmentation import build

THREE = {"structures": {"blood_pool": 1, "myocardium": 2, "right_ventricle": 3}, "partial_labels": "ignore"}
TWO = {"structures": {"blood_pool": 1, "myocardium": 2}, "partial_labels": "ignore"}
LABELS = LabelMap.load("cardiac")


def placed(volume, mask, labels=LABELS):
    return place(replace(volume, mask=None), Drawing(mask, volume.affine), labels)


def test_a_mask_without_the_right_ventricle_teaches_a_study_of_three_structures_nothing_beside_what_was_drawn(toy_heart):
    volume, notes = placed(toy_heart(noise=0.05), toy_heart().mask)
    assert volume.annotated == (1, 2)
    assert notes["mask_annotated/cine_ed"] == "blood_pool, myocardium"
    task = build(THREE)
    arrays = task.prepare(Case("p", (volume,)))
    assert set(np.unique(arrays["mask"])) == {0, 1, 2, UNKNOWN}  # 0: outside the image
    assert len(arrays["mask"]) == 5  # of the slice without a heart nothing is known
    _, y = task.example(arrays, 4, np.random.default_rng(0))
    nobody_looked = y == UNKNOWN
    assert nobody_looked.float().mean() > 0.3
    output = torch.randn(4, 4, *y.shape[1:], requires_grad=True)
    task.loss(output, y).sum().backward()
    assert not output.grad.transpose(0, 1)[:, nobody_looked].any()
    moved = torch.where(nobody_looked[:, None], output.detach() + 10 * torch.randn_like(output), output.detach())
    assert torch.equal(task.loss(output, y), task.loss(moved, y))


def test_a_study_that_asks_only_for_what_was_drawn_has_its_background(toy_heart):
    volume, _ = placed(toy_heart(), toy_heart().mask)
    with_statement, without = (build(TWO).prepare(Case("p", (v,))) for v in (volume, replace(volume, annotated=None)))
    assert set(np.unique(with_statement["mask"])) == {0, 1, 2}
    assert all(np.array_equal(with_statement[name], without[name], equal_nan=True) for name in without)


def test_at_end_systole_a_cavity_alone_is_a_cavity_and_an_unknown_wall(toy_heart):
    mask = np.where(toy_heart().mask == 1, 1, 0).astype(np.uint8)
    volume, _ = placed(toy_heart("cine_es"), mask)
    arrays = build(TWO).prepare(Case("p", (volume,)))
    assert volume.annotated == (1,)
    assert set(np.unique(arrays["mask"])) == {0, 1, UNKNOWN}
    middle = arrays["mask"][2, 20:140, 20:120]
    assert 0 not in middle


def test_what_the_label_map_says_of_a_series_counts_and_binds_its_readers(toy_heart):
    labels = LABELS.model_copy(update={"annotated": {"cine_es": ("blood_pool",), "cine_ed": tuple(THREE["structures"])}})
    cavity = np.where(toy_heart().mask == 1, 1, 0).astype(np.uint8)
    assert placed(toy_heart("cine_es"), cavity, labels)[0].annotated == (1,)
    assert placed(toy_heart("cine_ed"), toy_heart().mask, labels)[0].annotated == (1, 2, 3)  # looked for and not there
    with pytest.raises(MaskRefused, match="it holds myocardium, and the label map says that cine_es has blood_pool alone"):
        placed(toy_heart("cine_es"), toy_heart().mask, labels)


def test_a_structure_that_may_be_absent_was_looked_for(toy_heart):
    right = LABELS.structures["right_ventricle"].model_copy(update={"may_be_absent": True})
    labels = LABELS.model_copy(update={"structures": {**LABELS.structures, "right_ventricle": right}})
    assert placed(toy_heart(), toy_heart().mask, labels)[0].annotated == (1, 2, 3)


def test_the_cohort_keeps_what_was_looked_for(toy_heart, tmp_path):
    volume, _ = placed(toy_heart(), toy_heart().mask)
    Cohort(tmp_path).admit(Case("p", (volume, replace(volume, series="lge", annotated=None))))
    assert [v.annotated for v in Cohort(tmp_path).case("p").volumes] == [(1, 2), None]
