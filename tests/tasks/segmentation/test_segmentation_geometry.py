import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from tasks.case import UNKNOWN, Case, Volume
from tasks.segmentation import build
from tasks.segmentation.infer import segment
from tasks.segmentation.look import box, inside, sample

TWO = {"structures": {"blood_pool": 1, "myocardium": 2}}


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_sample_agrees_with_scipy_on_a_rotated_box():
    rng = np.random.default_rng(0)
    source = rng.normal(size=(40, 30)).astype(np.float32)
    size_mm = (60.0, 60.0)  # voxels of 1.5 x 2 mm
    angle, centre = 0.4, np.array([3.0, -5.0])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    ours = sample(
        torch.from_numpy(source)[None, None],
        source_mm=size_mm,
        centre_mm=centre,
        matrix=turn @ box((20.0, 16.0)),
        shape=(10, 8),
    )
    u = np.stack(np.meshgrid((np.arange(10) + 0.5) / 5 - 1, (np.arange(8) + 0.5) / 4 - 1, indexing="ij"))
    mm = np.einsum("ij,jrc->irc", turn, u * np.array([10.0, 8.0])[:, None, None]) + centre[:, None, None]
    index = (mm + 30) / np.array([1.5, 2.0])[:, None, None] - 0.5
    assert np.allclose(ours[0, 0].numpy(), map_coordinates(source, index, order=1), atol=1e-4)


def test_inside_counts_voxels_by_their_centres():
    # five voxels of 2 mm, centres at -4, -2, 0, 2, 4; a box of 5 mm around 1 holds -1.5 .. 3.5
    assert inside((5,), size_mm=(10,), centre_mm=np.array([1.0]), box_mm=(5.0,)).tolist() == [False, False, True, True, False]


@pytest.mark.parametrize("spacing_mm", [(8.0, 1.3, 1.6), (10.0, 0.9, 0.9), (6.0, 2.1, 1.7)])
@pytest.mark.parametrize("settings", [{}, {"roi_mm": None}, {"test_time_rotations": 4}], ids=["two looks", "wide", "rotations"])
def test_a_perfect_network_gives_the_masks_back_on_the_original_grid(toy_heart, threshold, spacing_mm, settings):
    shape = (round(200 / spacing_mm[1]), round(230 / spacing_mm[2]))
    volume = toy_heart(spacing_mm=spacing_mm, shape=shape)
    found = segment(threshold, build(TWO | settings).settings, volume)
    assert found.mask.shape == volume.image.shape
    for label, least in ((1, 0.97), (2, 0.93)):
        assert dice(found.mask == label, volume.mask == label) > least


def test_the_close_look_is_sharper_than_the_wide_one(toy_heart, threshold):
    volume = toy_heart(spacing_mm=(8.0, 1.0, 1.0), shape=(200, 200))
    wide, both = (segment(threshold, build(TWO | {"roi_mm": roi}).settings, volume) for roi in (None, 120))
    assert dice(both.mask == 2, volume.mask == 2) > dice(wide.mask == 2, volume.mask == 2)


def test_the_close_look_finds_the_ventricle_wherever_it_lies(toy_heart, threshold):
    for centre in [(0.0, 0.0), (30.0, 20.0), (-25.0, 35.0)]:
        found = segment(threshold, build(TWO).settings, toy_heart(centre_mm=centre))
        assert np.allclose(found.centre_mm, centre, atol=1.0)


def test_an_image_without_a_ventricle_is_looked_at_in_the_middle(threshold):
    image = np.zeros((3, 100, 100), np.float32)
    image[:, :50] = 0.1 * np.random.default_rng(0).random((3, 50, 100))
    blind = torch.nn.Conv2d(1, 3, 1)
    with torch.no_grad():
        blind.weight.zero_()
        blind.bias.copy_(torch.tensor([5.0, 0.0, 0.0]))
    found = segment(blind, build(TWO).settings, Volume("cine_ed", image, np.diag([8, 1.5, 1.5, 1])))
    assert found.centre_mm == (0.0, 0.0)
    assert not found.mask.any()


def test_parts_beyond_the_close_look_come_from_the_wide_one(toy_heart, threshold):
    volume = toy_heart(radius_mm=25, wall_mm=20)  # 90 mm across
    found = segment(threshold, build(TWO | {"roi_mm": 60}).settings, volume)
    assert dice(found.mask > 0, volume.mask > 0) > 0.97


def test_small_pieces_far_away_are_dropped(toy_heart, threshold):
    volume = toy_heart()
    image = volume.image.copy()
    image[2, 5:12, 5:12] = 1000
    blob = Volume("cine_ed", image, volume.affine)
    kept, all_of_it = (segment(threshold, build(TWO | {"keep_largest": keep}).settings, blob) for keep in (True, False))
    assert all_of_it.mask[2, 6:11, 6:11].any()
    assert not kept.mask[2, 5:12, 5:12].any()


def test_uncertainty_is_high_where_the_network_cannot_decide(toy_heart, threshold):
    volume = toy_heart()
    found = segment(threshold, build(TWO).settings, volume)
    assert found.uncertainty.min() >= 0
    assert found.uncertainty.max() <= 1
    edge = found.uncertainty[2][np.abs(np.gradient((volume.mask[2] == 1).astype(float))[0]) > 0].mean()
    assert edge > 5 * found.uncertainty[0].mean()


def test_three_dimensions_run_through_the_same_code(threshold):
    shape, spacing = np.array([24, 50, 60]), np.array([3.0, 1.2, 1.0])
    position = (np.indices(shape).transpose(1, 2, 3, 0) + 0.5 - shape / 2) * spacing - np.array([4.0, -6.0, 5.0])
    distance = np.linalg.norm(position, axis=-1)
    mask = np.select([distance < 12, distance < 20], [1, 2], 0).astype(np.uint8)
    volume = Volume("t1", np.array([0.0, 100, 50], np.float32)[mask], np.diag([*spacing, 1.0]), mask)
    settings = TWO | {"spatial_dims": 3, "series": ["t1"], "voxels": 40, "field_mm": 70, "roi_mm": 50, "working_mm": 1.2}
    task = build(settings)
    found = segment(threshold, task.settings, volume)
    assert dice(found.mask == 1, mask == 1) > 0.93
    assert dice(found.mask == 2, mask == 2) > 0.88
    arrays = task.prepare(Case("p", (volume,)))
    assert np.allclose(arrays["centre_mm"][0], (4, -6, 5), atol=0.3)
    x, y = task.example(arrays, 3, np.random.default_rng(0))
    assert x.shape == (3, 1, 40, 40, 40)
    assert set(np.unique(y)) == {0, 1, 2}


def test_prepared_arrays_hold_all_series_of_the_patient(toy_heart):
    task = build(TWO)
    arrays = task.prepare(Case("p", (toy_heart(), toy_heart("cine_es", radius_mm=16), toy_heart("lge"))))
    assert arrays["image"].shape == arrays["mask"].shape == (12, 160, 160)  # 1.25 x 192 mm at 1.5 mm
    assert arrays["labelled"].tolist() == [False, *[True] * 5] * 2
    assert np.allclose(arrays["centre_mm"], (14, -18), atol=0.5)
    area = [(arrays["mask"][i] == 1).sum() * 1.5**2 for i in (1, 7)]
    assert area == pytest.approx([np.pi * 25**2, np.pi * 16**2], rel=0.03)


def test_intensities_do_not_depend_on_the_scanner_scale(toy_heart):
    task, volume = build(TWO), toy_heart(noise=0.05)
    scaled = Volume("cine_ed", volume.image * 7 + 300, volume.affine, volume.mask)
    a, b = (task.prepare(Case("p", (v,)))["image"].astype(float) for v in (volume, scaled))
    inner = (slice(None), slice(30, 130), slice(30, 130))  # outside the image is 0 in both
    assert np.abs(a - b)[inner].max() < 2e-3


def test_slices_nobody_labelled_are_not_learned_from(toy_heart):
    volume = toy_heart()
    mask = volume.mask.copy()
    mask[[0, 5]] = UNKNOWN
    arrays = build(TWO).prepare(Case("p", (Volume("cine_ed", volume.image, volume.affine, mask),)))
    assert len(arrays["image"]) == 4


def test_labels_of_no_structure_are_background_and_unknown_stays_unknown(toy_heart):
    volume = toy_heart()
    mask = volume.mask.copy()
    mask[1, :20] = UNKNOWN
    arrays = build({"structures": {"blood_pool": 1}, "locate": []}).prepare(
        Case("p", (Volume("cine_ed", volume.image, volume.affine, mask),))
    )
    assert set(np.unique(arrays["mask"])) == {0, 1, UNKNOWN}


def test_a_case_that_cannot_be_used_is_refused_in_words(toy_heart):
    volume = toy_heart()
    with pytest.raises(ValueError, match="no mask for any of cine_ed, cine_es; it has lge with mask, cine_ed without mask"):
        build(TWO).prepare(Case("p", (toy_heart("lge"), Volume("cine_ed", volume.image, volume.affine))))
    with pytest.raises(ValueError, match="no usable contrast"):
        build(TWO).prepare(Case("p", (Volume("cine_ed", np.ones_like(volume.image), volume.affine, volume.mask),)))
    with pytest.raises(ValueError, match=r"every voxel .* unknown"):
        build(TWO).prepare(Case("p", (Volume("cine_ed", volume.image, volume.affine, np.full_like(volume.mask, UNKNOWN)),)))
