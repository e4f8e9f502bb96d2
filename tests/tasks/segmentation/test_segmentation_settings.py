import pytest

from tasks.segmentation import build


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"field": 3}, "field: no such setting"),
        ({"voxels": 81}, "multiples of 8"),
        ({"voxels": [80, 80, 80]}, "voxels needs 2 numbers"),
        ({"structures": {"a": 1, "b": 1}, "locate": []}, "different mask values"),
        ({"structures": {"a": 255}, "locate": []}, "from 1 to 254"),
        ({"structures": {"anterior": 1}}, r"locate names \['blood_pool', 'myocardium'\]"),
        ({"groups": 3}, "groups is 3, which doesn't divide 16 channels"),
        ({"class_weights": [1, 2]}, "class_weights needs 4 numbers"),
        ({"strides": [2, 2]}, "strides needs one number fewer"),
        ({"test_time_rotations": 4, "field_mm": [192, 160]}, "as many rows as columns"),
        ({"test_time_rotations": 3}, "test_time_rotations"),
        ({"dice_weight": 0, "ce_weight": 0}, "nothing to learn"),
        ({"spatial_dims": 4}, "spatial_dims"),
        ({"field_mm": -1}, "field_mm"),
        ({"augment": {"gama": 1}}, "augment.gama: no such setting"),
        ({"series": []}, "series"),
    ],
)
def test_a_wrong_setting_is_refused_in_words(wrong, says):
    with pytest.raises(ValueError, match=says):
        build(wrong)


def test_one_number_stands_for_every_axis():
    settings = build({"spatial_dims": 3, "voxels": 32, "field_mm": 64, "working_mm": 2, "roi_mm": 48}).settings
    assert settings.voxels == (32, 32, 32)
    assert settings.roi_mm == (48, 48, 48)


def test_arrays_are_shared_between_studies_that_differ_in_network_or_loss_only():
    plain = build({})
    assert build({"channels": [8, 16], "strides": [2], "dice_weight": 2, "roi_mm": None, "voxels": 64}).hash == plain.hash


@pytest.mark.parametrize(
    "change",
    [
        {"working_mm": 2},
        {"field_mm": 180},
        {"margin": 1.4},
        {"series": ["lge"]},
        {"locate": []},
        {"structures": {"myocardium": 2, "blood_pool": 1, "right_ventricle": 3}},
    ],
)
def test_what_changes_the_arrays_changes_the_hash(change):
    assert build(change).hash != build({}).hash
