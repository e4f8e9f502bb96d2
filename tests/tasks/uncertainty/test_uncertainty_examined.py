"""Members that look at one volume: views that come back onto its grid, and what is said where they differ."""

import math

import numpy as np
import pytest
import torch

from tasks.case import UNKNOWN, Volume
from tasks.segmentation.infer import segment
from tasks.segmentation.settings import Augment, Settings
from tasks.uncertainty.examine import Examined, dice, examine, judge
from tasks.uncertainty.views import MEMBERS, Seen, View, members_of, views

HEART = Settings(
    structures={"blood_pool": 1, "myocardium": 2}, field_mm=(192, 192), voxels=(96, 96), roi_mm=None, working_mm=(2, 2)
)
ONE = Settings(structures={"thing": 7}, voxels=(16, 16), field_mm=(32, 32), roi_mm=None, working_mm=(2, 2), keep_largest=False)


class Threshold(torch.nn.Module):
    """Above 3/4 of the range is blood, above 1/4 is wall."""

    def forward(self, image):
        return 30 * torch.cat((0.25 - image, image - 0.75, 0.25 - (image - 0.5).abs()), 1)


class Says(torch.nn.Module):
    """The same probability of the one structure everywhere."""

    def __init__(self, probability):
        super().__init__()
        self.p = probability

    def forward(self, image):
        p = torch.full_like(image, self.p)
        return torch.cat((1 - p, p), 1).log()


def heart() -> Volume:
    rows, columns = np.mgrid[:128, :128] - 63.5
    radius = np.hypot(rows - 8, columns + 6) * 1.5
    mask = np.where(radius < 22, 1, np.where(radius < 34, 2, 0)).astype(np.uint8)
    image = np.array([0.0, 1000.0, 500.0], np.float32)[mask]
    return Volume("cine_ed", np.stack([image] * 3), np.diag([8.0, 1.5, 1.5, 1.0]), np.stack([mask] * 3))


def flat() -> Volume:
    image = np.arange(2 * 16 * 16, dtype=np.float32).reshape(2, 16, 16)
    mask = np.full(image.shape, 7, np.uint8)
    return Volume("cine_ed", image, np.diag([10.0, 2.0, 2.0, 1.0]), mask)


# -- views --------------------------------------------------------------------------------------------------------------


def test_a_view_answers_on_the_grid_of_what_it_was_shown():
    turned = View(np.array([[0.0, -1.0], [1.0, 0.0]]), np.array([6.0, -10.0]), gamma=1.0, gain=1.0, offset=0.0)
    image = torch.zeros(1, 1, 64, 64)
    image[0, 0, 20:40, 24:30] = 1.0
    plain, seen = Threshold()(image).softmax(1), Seen(Threshold(), turned, (128.0, 128.0))(image).exp()
    assert (plain.argmax(1) != seen.argmax(1)).float().mean() < 0.002
    assert seen.sum(1).allclose(torch.ones(1, 64, 64), atol=1e-4)


def test_what_a_view_does_not_show_is_background():
    away = View(np.eye(2), np.array([64.0, 0.0]), gamma=1.0, gain=1.0, offset=0.0)
    seen = Seen(Threshold(), away, (128.0, 128.0))(torch.ones(1, 1, 64, 64)).exp()
    assert seen[0, 0, :30].min() > 0.99
    assert seen[0, 1, 40:].min() > 0.9


def test_views_are_the_same_at_every_call_and_stay_in_the_studys_range():
    for first, second in zip(views(HEART, 6), views(HEART, 7), strict=False):
        np.testing.assert_array_equal(first.matrix, second.matrix)
        assert (first.gamma, first.gain, first.offset) == (second.gamma, second.gain, second.offset)
        scale = math.sqrt(np.linalg.det(first.matrix))
        assert abs(scale - 1) <= HEART.augment.scale
        assert abs(math.atan2(first.matrix[1, 0], first.matrix[0, 0])) <= math.radians(HEART.augment.rotation_deg)
        assert np.abs(first.shift_mm).max() <= HEART.augment.roi_shift_mm / 2
        assert abs(math.log(first.gamma)) <= HEART.augment.gamma


def test_a_view_in_three_dimensions_turns_about_every_axis():
    settings = Settings(spatial_dims=3, structures={"a": 1}, voxels=16, field_mm=32, roi_mm=None, working_mm=2)
    for view in views(settings, 3):
        turn = view.matrix / np.cbrt(np.linalg.det(view.matrix))
        np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)
    image = torch.zeros(1, 1, 16, 16, 16)
    image[..., 5:11, 5:11, 5:11] = 1.0
    seen = Seen(Threshold(), views(settings, 1)[0], settings.field_mm)(image)
    assert seen.shape == (1, 3, 16, 16, 16)
    assert seen.argmax(1)[0, 7, 7, 7] == Threshold()(image).argmax(1)[0, 7, 7, 7]


def test_members_are_the_networks_and_then_views_that_they_take_in_turn():
    one, two = Threshold(), Threshold()
    made = members_of([one, two], HEART, 5)
    assert made[:2] == [one, two]
    assert [member.network for member in made[2:]] == [one, two, one]
    assert len(members_of([one], HEART)) == MEMBERS
    with pytest.raises(ValueError, match="2 networks can't be 1 members"):
        members_of([one, two], HEART, 1)


def test_a_study_without_augmentation_has_no_views():
    still = HEART.model_copy(update={"augment": Augment(rotation_deg=0, scale=0, roi_shift_mm=0, gamma=0, contrast=0)})
    assert len(members_of([Threshold()], still, 8)) == 1


# -- one volume ---------------------------------------------------------------------------------------------------------


def test_the_mask_is_the_models_own_and_clear_borders_are_drawn_alike():
    volume, members = heart(), members_of([Threshold()], HEART, 6)
    found = examine(members, HEART, volume)
    np.testing.assert_array_equal(found.mask, segment(Threshold(), HEART, volume).mask)
    assert found.members == 6
    assert found.agreement["blood_pool"] > 0.9
    assert set(found.spread_ml) == set(HEART.structures)
    border, inside = found.entropy()[1, 63 + 8, :], found.entropy()[1, 63 + 8, 55]
    assert border.max() > 0.3
    assert inside < 0.05


def test_entropy_and_disagreement_by_hand():
    found = examine([Says(0.9), Says(0.1)], ONE, flat())
    inside = (slice(None), slice(4, 12), slice(4, 12))
    alone = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1)) / math.log(2)  # of either member, in bits
    assert found.entropy()[inside] == pytest.approx(1.0, abs=1e-4)  # together they are at one half
    assert found.disagreement[inside] == pytest.approx(1 - alone, abs=1e-4)
    assert found.mask[inside].min() == 7  # the first member's
    assert found.agreement == {"thing": 0.0}
    voxel_ml = 10 * 2 * 2 / 1000
    assert found.spread_ml["thing"] == pytest.approx(np.std([2 * 16 * 16 * voxel_ml, 0], ddof=1))


def test_a_higher_temperature_is_less_sure():
    found = examine([Says(0.9), Says(0.8)], ONE, flat())
    cold, plain, hot = (found.entropy(t)[0, 8, 8] for t in (0.5, 1.0, 4.0))
    assert cold < plain < hot
    p = 0.85**2 / (0.85**2 + 0.15**2)
    assert cold == pytest.approx(-(p * math.log2(p) + (1 - p) * math.log2(1 - p)), abs=1e-4)


def test_members_that_agree_are_sure_however_undecided_they_are():
    found = examine([Says(0.5001)] * 3, ONE, flat())
    assert found.entropy()[0, 8, 8] == pytest.approx(1.0, abs=1e-3)
    assert found.disagreement.max() == pytest.approx(0.0, abs=1e-5)
    assert found.agreement == {"thing": 1.0}


def test_one_member_alone_tells_no_disagreement():
    found = examine([Says(0.9)], ONE, flat())
    assert found.disagreement is None
    assert (found.agreement, found.spread_ml, found.members) == ({}, {}, 1)


def test_where_nobody_found_anything_somebody_should_look():
    found = examine([Says(0.1), Says(0.2)], ONE, flat())
    assert not found.mask.any()
    assert found.agreement == {"thing": 0.0}
    assert dice(np.zeros(3, bool), np.zeros(3, bool)) == 0


def test_numbers_that_are_not_finite_are_refused_in_words():
    class Broken(torch.nn.Module):
        def forward(self, image):
            return torch.cat((image, image / 0), 1)

    with pytest.raises(ValueError, match=r"answers to cine_ed with numbers that are not finite"):
        examine([Says(0.9), Broken()], ONE, flat())


def test_members_are_left_in_the_mode_that_they_were_found_in():
    members = [Says(0.9).train(), Says(0.8).eval()]
    examine(members, ONE, flat())
    assert [member.training for member in members] == [True, False]


# -- beside a reader ----------------------------------------------------------------------------------------------------


def test_only_labelled_voxels_near_the_outlines_are_judged():
    volume = flat()
    mask = np.zeros(volume.image.shape, np.uint8)
    mask[0, 2:4, 2:4], mask[0, 4, 4] = 7, UNKNOWN
    drawn = np.zeros_like(mask)
    drawn[0, 2:4, 2] = 7
    log_p = np.log(np.stack([np.full(mask.shape, 0.4), np.full(mask.shape, 0.6)])).astype(np.float32)
    found = Examined(drawn, log_p, None, {"thing": 0.8}, {}, 2)
    judged = judge(found, "p", Volume("cine_ed", volume.image, volume.affine, mask), ONE)
    assert judged.dice == {"thing": pytest.approx(2 * 2 / (2 + 4))}
    assert sorted(set(judged.truth.tolist())) == [0, 1]
    near = sum(
        math.hypot(2 * max(2 - r, r - 3, 0), 2 * max(2 - c, c - 3, 0)) <= 10 for r in range(16) for c in range(16)
    )  # of the square that was drawn, 2 mm a voxel
    above = 4  # the next slice is 10 mm away: the voxels right beneath
    assert judged.truth.size == near - 1 + above
    np.testing.assert_allclose(judged.log_p[1], math.log(0.6), rtol=1e-5)


def test_an_empty_volume_has_no_voxel_to_judge():
    volume = flat()
    empty = np.zeros(volume.image.shape, np.uint8)
    found = Examined(empty, np.zeros((2, *empty.shape), np.float32), None, {"thing": 0.0}, {}, 2)
    judged = judge(found, "p", Volume("cine_ed", volume.image, volume.affine, empty), ONE)
    assert judged.dice == {}
    assert judged.truth.size == 0
