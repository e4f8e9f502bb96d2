from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fl_client.intake.labels import LabelMap
from fl_client.intake.mask import Drawing, MaskRefused, onto_grid
from fl_client.intake.plausibility import check_volume
from fl_client.intake.volume_file import read_grid
from simulation.hospital_case import patient_case
from simulation.reader import Reader
from simulation.scanner import random_scanner
from tasks.case import Case, Volume


@pytest.fixture(scope="module")
def generated() -> list[Volume]:
    """Both phases and the late enhancement of three patients, each in another scanner and drawn by another hand."""
    return [
        volume
        for seed in (3, 7, 11)
        for volume in patient_case(
            seed,
            random_scanner(seed),
            Reader(contour_bias_mm=(seed - 7) / 3),
            {"infarct": 0.5, "dcm": 0.5},
            oversampling=1,
            subslices=1,
        ).volumes
    ]


def test_no_sound_mask_of_a_generated_patient_is_refused(generated: list[Volume], labels: LabelMap) -> None:
    for volume in generated:
        check_volume(volume, labels)


def test_a_heart_mirrored_from_left_to_right_is_refused(generated: list[Volume], labels: LabelMap) -> None:
    for volume in generated:
        assert volume.mask is not None
        mirrored = np.eye(4)
        mirrored[0, 0] = -1  # the mask and the image both: the pictures agree, and the patient is the wrong way round
        with pytest.raises(MaskRefused, match=r"right_ventricle lies \d+ mm on the patient's left of blood_pool"):
            check_volume(replace(volume, affine=mirrored @ volume.affine), labels)


def test_a_mask_with_its_slices_in_the_wrong_order_is_refused(generated: list[Volume], labels: LabelMap) -> None:
    for volume in generated:
        assert volume.mask is not None
        with pytest.raises(MaskRefused, match=r"blood_pool tapers to the patient's right, from .* in the wrong order"):
            check_volume(replace(volume, mask=volume.mask[::-1]), labels)


def test_a_mask_reversed_against_its_image_is_refused_where_the_image_can_tell(
    generated: list[Volume], labels: LabelMap
) -> None:
    labels = labels.model_copy(
        update={"structures": {name: item.model_copy(update={"right_of": None}) for name, item in labels.structures.items()}}
    )
    refused = 0
    for volume in generated:
        assert volume.mask is not None
        try:
            check_volume(replace(volume, mask=volume.mask[:, ::-1, ::-1]), labels)
        except MaskRefused as reason:
            refused += "the mask is mirrored: with its " in str(reason)
    assert refused >= len(generated) // 2  # the nearer to the image's middle a heart lies, the less its reversal differs


def test_sunnybrook_masks_pass_and_most_with_slices_in_the_wrong_order_do_not(shared_data: Path) -> None:
    source = shared_data / "scd"
    if not source.is_dir():
        pytest.skip(f"no label volumes at {source}")
    labels = LabelMap.load("sunnybrook")
    refused = 0
    paths = [
        path for path in sorted(source.glob("*_gt.nii.gz")) if "SCD0000501_ED" not in path.name
    ]  # whose contours are displaced
    for path in paths:
        values, affine = read_grid(path, "mask")
        image, _ = read_grid(path.with_name(path.name.replace("_gt", "")), "image")
        volume = Volume("cine_ed", image.astype(np.float32), affine, labels.translate(values))
        check_volume(volume, labels)
        assert volume.mask is not None
        try:
            check_volume(replace(volume, mask=volume.mask[::-1]), labels)
        except MaskRefused as reason:
            refused += "tapers to the patient's right" in str(reason)
    assert len(paths) == 9
    assert refused >= 6  # at end-systole some taper too little


def test_a_mask_in_the_middle_of_an_image_that_says_nothing_passes(case: Case, labels: LabelMap) -> None:
    check_volume(case.volumes[0], labels)  # pixels of noise


def sized(labels: LabelMap, least: float, most: float) -> LabelMap:
    pool = labels.structures["blood_pool"].model_copy(update={"volume_ml": (least, most)})
    return labels.model_copy(update={"structures": {**labels.structures, "blood_pool": pool}})


def test_a_volume_that_no_structure_has_is_refused_in_millilitres(case: Case, labels: LabelMap) -> None:
    volume = case.volumes[0]
    ml = 772 * 8.3 * 1.37 * 1.41 / 1000  # 4 slices of 193 pixels
    check_volume(volume, sized(labels, 10, 500))
    with pytest.raises(MaskRefused, match=rf"blood_pool has {ml:.1f} ml; the label map expects 30 to 500 ml"):
        check_volume(volume, sized(labels, 30, 500))


def test_a_mask_written_with_wrong_directions_is_refused_as_such(case: Case) -> None:
    volume = case.volumes[0]
    assert volume.mask is not None
    left_for_right = np.diag([-1.0, 1, 1, 1]) @ volume.affine  # a program that took LPS for RAS along one axis
    for affine in (left_for_right, volume.affine @ np.diag([1.0, -1, 1, 1])):
        with pytest.raises(MaskRefused, match=r"mirrored against it|inside the image"):
            onto_grid(Drawing(volume.mask, affine), volume)
    square = Volume("x", np.zeros((6, 40, 40), np.uint16), np.diag([8.0, 1.4, 1.4, 1.0]))
    flipped = square.affine @ np.diag([1.0, -1, 1, 1])
    flipped[:3, 3] = [0, 39 * 1.4 + 0.5, 0]
    with pytest.raises(MaskRefused, match="is mirrored against it: its axes run another way"):
        onto_grid(Drawing(volume.mask[:, :, :40], flipped), square)
