import numpy as np
import pytest
import torch

from tasks.case import UNKNOWN, Case, Volume
from tasks.segmentation import build
from tasks.segmentation.augment import draw

TWO = {"structures": {"blood_pool": 1, "myocardium": 2}}
STILL = dict.fromkeys(("rotation_deg", "scale", "shift_mm", "roi_shift_mm", "gamma", "contrast", "bias", "blur", "noise"), 0)


@pytest.fixture
def arrays(toy_heart):
    return build(TWO).prepare(Case("p", (toy_heart(),)))


def test_the_same_generator_draws_the_same_views(arrays):
    task = build(TWO)
    first, again, other = (task.example(arrays, 4, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


def test_views_do_not_touch_global_generators(arrays):
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - the legacy generator is the one that must not move
    build(TWO).example(arrays, 4, np.random.default_rng(0))
    after = torch.rand(1), np.random.random()  # noqa: NPY002
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    assert (torch.rand(1), np.random.random()) == after  # noqa: NPY002


def test_half_of_the_views_are_close_and_the_ventricle_stands_in_their_middle(arrays):
    task = build(TWO | {"augment": STILL, "empty_share": 0})
    _, y = task.example(arrays, 8, np.random.default_rng(0))
    blood = (y == 1).flatten(1).sum(1).numpy()
    pixel_mm2 = np.where(blood > 600, (120 / 80) ** 2, (192 / 80) ** 2)
    assert sorted(pixel_mm2) == [2.25] * 4 + [(192 / 80) ** 2] * 4
    assert blood * pixel_mm2 == pytest.approx(np.full(8, np.pi * 25**2), rel=0.04)
    for mask in y[blood > 600]:
        assert np.argwhere(mask.numpy() == 1).mean(axis=0) == pytest.approx((39.5, 39.5), abs=0.5)


def test_one_view_is_as_often_close_as_wide(arrays):
    task = build(TWO)
    sizes = [np.abs(np.linalg.det(draw(arrays, 1, np.random.default_rng(i), task.settings).matrix[0])) for i in range(400)]
    middle = np.sqrt((120 / 2) ** 2 * (192 / 2) ** 2)
    assert 0.4 < np.mean(np.array(sizes) > middle) < 0.6


def test_each_labelled_slice_comes_once_before_any_comes_twice(arrays):
    drawn = draw(arrays, 10, np.random.default_rng(0), build(TWO | {"empty_share": 0}).settings)
    assert sorted(drawn.item) == sorted([1, 2, 3, 4, 5] * 2)


def test_slices_beyond_base_and_apex_come_as_often_as_asked(arrays):
    settings = build(TWO | {"empty_share": 0.15}).settings
    items = np.concatenate([draw(arrays, 4, np.random.default_rng(i), settings).item for i in range(300)])
    assert np.mean(items == 0) == pytest.approx(0.15, abs=0.03)


def test_turned_views_keep_areas_and_classes(arrays):
    task = build(TWO | {"augment": STILL | {"rotation_deg": 180}, "empty_share": 0, "roi_mm": None})
    _, y = task.example(arrays, 16, np.random.default_rng(0))
    assert set(np.unique(y)) == {0, 1, 2}
    assert (y == 1).flatten(1).sum(1).numpy() * 2.4**2 == pytest.approx(np.full(16, np.pi * 25**2), rel=0.05)
    where = [tuple(np.argwhere(m.numpy() == 1).mean(0).round()) for m in y]
    assert len(set(where)) > 8  # the ventricle isn't in the middle, so it moves with the turn


def test_a_patient_without_the_located_structures_is_looked_at_widely(toy_heart):
    volume = toy_heart()
    arrays = build(TWO).prepare(Case("p", (Volume("cine_ed", volume.image, volume.affine, np.zeros_like(volume.mask)),)))
    drawn = draw(arrays, 4, np.random.default_rng(0), build(TWO | {"augment": STILL}).settings)
    assert np.allclose(drawn.matrix, np.eye(2) * 96)
    assert np.isfinite(drawn.centre_mm).all()


def test_unknown_voxels_stay_unknown_in_every_view(toy_heart):
    volume = toy_heart()
    mask = np.where(volume.mask == 0, UNKNOWN, volume.mask).astype(np.uint8)
    task = build(TWO | {"empty_share": 0})
    arrays = task.prepare(Case("p", (Volume("cine_ed", volume.image, volume.affine, mask),)))
    _, y = task.example(arrays, 8, np.random.default_rng(0))
    ring = torch.nn.functional.max_pool2d((y == 2).float()[:, None], 3, 1, 1)[:, 0].bool() & (y != 1) & (y != 2)
    assert set(np.unique(y[ring])) == {UNKNOWN}


def test_views_are_finite_for_every_draw(arrays):
    strong = {
        "gamma": 1,
        "contrast": 0.9,
        "bias": 1,
        "blur": 1,
        "noise": 0.5,
        "rotation_deg": 180,
        "scale": 0.5,
        "shift_mm": 80,
    }
    x, _ = build(TWO | {"augment": strong}).example(arrays, 64, np.random.default_rng(0))
    assert torch.isfinite(x).all()
    assert x.dtype == torch.float32
