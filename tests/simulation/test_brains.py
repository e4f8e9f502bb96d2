"""Generated brains: what a crop promises, and that pre-training finds the family by its series."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy import ndimage

from simulation import pretraining
from simulation.__main__ import settings_of
from simulation.brain import ALONG, STEP_MM, Box, draw_brain, wander
from simulation.brain_scan import ANTERIOR, POSTERIOR, brain_case, draw_contrast
from simulation.brain_tissue import Tissue, locate, tissues
from simulation.family import BRAINS, FAMILIES, HEARTS, family_of
from simulation.machine import Immediately
from simulation.settings import Pretraining
from tasks.task import load

SEEDS = range(40, 52)
TASK = {
    "name": "segmentation",
    "spatial_dims": 3,
    "structures": {"anterior": 1, "posterior": 2},
    "series": ["t1"],
    "voxels": [16, 24, 16],
    "field_mm": [40, 56, 40],
    "roi_mm": None,
    "locate": [],
    "working_mm": 2.5,
    "channels": [4, 8],
    "strides": [2],
    "num_res_units": 0,
    "head_channels": 4,
}


@pytest.fixture(scope="module")
def cases():
    return [brain_case(seed, oversampling=1) for seed in SEEDS]


def bytes_of(case):
    volume = case.volumes[0]
    return volume.image.tobytes() + volume.mask.tobytes() + volume.affine.tobytes() + repr(dict(case.endpoints)).encode()


def test_equal_seeds_give_equal_bytes_in_another_process_too():
    here = brain_case(7)
    assert bytes_of(brain_case(7)) == bytes_of(here)
    assert bytes_of(brain_case(8)) != bytes_of(here)
    program = (
        "import sys; from simulation.brain_scan import brain_case; v = brain_case(7).volumes[0]\n"
        "sys.stdout.buffer.write(v.image.tobytes() + v.mask.tobytes())"
    )
    threads = os.environ | {"OMP_NUM_THREADS": "3", "OPENBLAS_NUM_THREADS": "3"}
    there = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, env=threads).stdout
    assert there == here.volumes[0].image.tobytes() + here.volumes[0].mask.tobytes()


def test_a_case_is_what_a_cohort_takes(cases):
    for seed, case in zip(SEEDS, cases, strict=True):
        assert case.patient == f"G{seed:08d}"
        (volume,) = case.volumes
        assert (volume.series, volume.image.dtype, volume.mask.dtype) == ("t1", np.uint16, np.uint8)
        assert volume.spacing_mm == (1, 1, 1)
        assert {"age", "sex", "side", "hippocampus_ml", "anterior_ml", "posterior_ml"} == set(case.endpoints)
        assert 18 <= case.endpoints["age"] <= 92


def test_both_parts_are_there_and_the_hippocampus_is_one_piece(cases):
    for case in cases:
        mask = case.volumes[0].mask
        assert set(np.unique(mask)) == {0, ANTERIOR, POSTERIOR}
        assert ndimage.label(mask > 0)[1] == 1
        rows = np.arange(mask.shape[1])[None, :, None] * np.ones(mask.shape)
        assert rows[mask == ANTERIOR].min() > rows[mask == POSTERIOR].max()  # rows run forwards


def test_the_crop_leaves_the_stated_margin(cases):
    for case in cases:
        found = np.argwhere(case.volumes[0].mask)
        for low, high, size in zip(found.min(axis=0), found.max(axis=0), case.volumes[0].mask.shape, strict=True):
            assert 3 <= low <= 10  # 4 to 9, and a voxel for what a finer grid finds
            assert 3 <= size - 1 - high <= 10


def test_volumes_are_a_hippocampus_s():
    """Honeycutt and Smith 1995: 2.78 and 2.90 ml in young adults, 1.73 to 5.68 in the literature."""
    drawn = np.array([draw_brain(seed).volume_ml for seed in range(300)])
    young = np.array([b.volume_ml for b in map(draw_brain, range(600)) if b.age < 50])
    assert young.mean() == pytest.approx(2.84, abs=0.12)
    assert 1.3 < drawn.min() < drawn.max() < 5.68


def test_the_mask_holds_what_was_drawn_and_the_reader_s_habit(cases):
    for seed, case in zip(SEEDS, cases, strict=True):
        tissue_ml, drawn_ml = draw_brain(seed).volume_ml, case.endpoints["hippocampus_ml"]
        assert 0.7 * tissue_ml < drawn_ml < 1.75 * tissue_ml  # 1.3 mm around a body 8 mm high is half as much again
        assert drawn_ml == pytest.approx(case.endpoints["anterior_ml"] + case.endpoints["posterior_ml"], abs=0.002)
        assert 0.2 < case.endpoints["anterior_ml"] / drawn_ml < 0.7


def test_the_section_s_scale_is_solved_for_the_volume():
    brain = draw_brain(5)
    table = brain.tables
    inside = (-brain.tail_mm <= ALONG) & (brain.head_mm >= ALONG)
    area = np.pi * table["width"].astype(float) * table["height"]
    assert area[inside].sum() * STEP_MM == pytest.approx(1000 * brain.volume_ml, rel=0.01)


def test_a_right_hippocampus_is_a_left_one_in_the_mirror(cases):
    sides = {case.endpoints["side"] for case in cases}
    assert sides == {"left", "right"}
    for case in cases:  # the head's tip and the tail's end turn to the midline, which is to the right of a left hippocampus
        volume = case.volumes[0]
        midline = 1 if case.endpoints["side"] == "left" else -1
        centre = volume.affine @ np.array([*(np.array(volume.image.shape) / 2), 1])
        assert centre[0] * midline > 0  # LPS: the patient's left is positive
        assert volume.affine[0, 2] == -1


def test_fluid_is_darkest_and_white_matter_brighter_than_cortex():
    for seed in SEEDS:
        grey = draw_contrast(seed).grey
        assert grey[Tissue.FLUID] < grey[Tissue.CORTEX] < grey[Tissue.WHITE]
        assert grey[Tissue.FLUID] < grey[Tissue.HIPPOCAMPUS] < grey[Tissue.WHITE]


def test_the_hippocampus_lies_among_its_neighbours():
    """Its shell of 4 mm holds fluid, white matter and cortex, and the amygdala touches the head."""
    axes = Box((-26.0, -38.0, -22.0), (52, 64, 48)).axes()
    for seed in SEEDS:
        brain = draw_brain(seed)
        place = locate(brain, axes)
        tissue = tissues(brain, place, axes)
        inside = place.distance < 0
        near = ndimage.binary_dilation(inside, iterations=4) & ~inside
        shares = np.bincount(tissue[near], minlength=len(Tissue)) / near.sum()
        assert shares[Tissue.FLUID] > 0.05
        assert shares[Tissue.WHITE] > 0.1
        assert shares[Tissue.CORTEX] > 0.05
        amygdala = tissue == Tissue.AMYGDALA
        assert place.position[near & amygdala].mean() > 0.2


def test_a_field_is_the_same_on_every_grid():
    box = Box((-3.0, 2.0, 5.0), (6, 8, 4))
    coarse, fine = wander(1, 2, box.axes(), 9.0), wander(1, 2, box.axes(3), 9.0)
    np.testing.assert_allclose(fine[1::3, 1::3, 1::3], coarse, atol=1e-5)
    large = wander(1, 3, Box((-40.0, -40.0, -40.0), (80, 80, 80)).axes(), 6.0)
    assert large.mean() == pytest.approx(0, abs=0.1)
    assert large.std() == pytest.approx(1, abs=0.1)


# -- families and pre-training ------------------------------------------------------------------------------------------


def test_a_series_says_which_family_draws_it():
    assert family_of(("t1",)) is BRAINS
    assert family_of(["lge", "cine_ed"]) is HEARTS
    names = [name for family in FAMILIES for name in family.series]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("series", [("flair",), ("t1", "lge"), ()])
def test_a_series_that_nothing_generates_is_refused_in_words(series):
    with pytest.raises(ValueError, match=r"nothing generates .*hearts \(cine_ed, cine_es, lge\); brains \(t1\)"):
        family_of(series)


def test_settings_refuse_pretraining_for_a_series_of_no_family():
    more = ["hospitals=hippocampus", "hospitals.series=[flair]", "task.series=[flair]"]
    with pytest.raises(ValueError, match=r"pretraining: nothing generates .* flair; .*pretraining=null"):
        settings_of(more)
    assert settings_of([*more, "pretraining=null"]).pretraining is None


def test_pretraining_for_t1_draws_brains_and_the_loss_falls(tmp_path, monkeypatch, one_thread):
    monkeypatch.setattr(pretraining, "THREADS", 1)

    def trained(steps):
        settings = Pretraining(patients=2, steps=steps, batch_patients=2, views=1, learning_rate=0.02, ema_decay=0.9)
        return pretraining.pretrain(TASK, settings, ("t1",), cache=tmp_path, pool=Immediately(), advance=lambda *_: None)

    task = load(TASK)
    arrays = task.prepare(brain_case(50_000_000, oversampling=1))

    def loss(state):
        model = task.model()
        model.load_state_dict(state)
        image, target = task.example(arrays, 8, np.random.default_rng(1))
        with torch.no_grad():
            return task.loss(model(image), target).mean().item()

    assert loss(trained(25)) < 0.8 * loss(trained(0))
    assert len(list(tmp_path.glob("free/*/cases/G5000000?"))) == 2
