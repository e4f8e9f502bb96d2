"""Generated lung nodules: what a crop promises, and that pre-training finds the family by its series."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from simulation import lung_sheet, pretraining
from simulation.__main__ import settings_of
from simulation.contact_sheet import COLOURS
from simulation.family import LUNGS, family_of
from simulation.lung import CROP_MM, KINDS, Grid, draw_lung
from simulation.lung_scan import HIGHEST, LOWEST, NODULE, Protocol, diameter_mm, draw_protocol, nodule_case, reconstructed
from simulation.lung_tissue import FAR_MM, density, wander
from simulation.lung_tree import END_MM, Tubes, airways, arteries_and_veins, draw
from simulation.machine import Immediately
from simulation.settings import Pretraining
from tasks.task import load

SEEDS = range(40, 46)
TASK = {
    "name": "segmentation",
    "spatial_dims": 3,
    "structures": {"nodule": 1},
    "series": ["ct"],
    "voxels": 24,
    "field_mm": 48,
    "roi_mm": None,
    "locate": [],
    "working_mm": 2,
    "channels": [4, 8],
    "strides": [2],
    "num_res_units": 0,
    "head_channels": 4,
}
PROTOCOL = Protocol("CANON", pixel_mm=0.7, slice_mm=1.0, kernel="soft", blur_mm=0.5, overshoot=0.0, noise_hu=20.0)


@pytest.fixture(scope="module")
def cases():
    return [nodule_case(seed) for seed in SEEDS]


def bytes_of(case):
    volume = case.volumes[0]
    return volume.image.tobytes() + volume.mask.tobytes() + volume.affine.tobytes() + repr(dict(case.endpoints)).encode()


@pytest.mark.parametrize("threads", ["1", "3"])
def test_equal_seeds_give_equal_bytes_in_another_process_and_with_other_threads(threads):
    here = nodule_case(7)
    assert bytes_of(nodule_case(8)) != bytes_of(here)
    program = (
        "import sys; from simulation.lung_scan import nodule_case; v = nodule_case(7).volumes[0]\n"
        "sys.stdout.buffer.write(v.image.tobytes() + v.mask.tobytes())"
    )
    environment = os.environ | {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
    there = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, env=environment).stdout
    assert there == here.volumes[0].image.tobytes() + here.volumes[0].mask.tobytes()


def test_a_case_is_what_a_cohort_takes(cases):
    for seed, case in zip(SEEDS, cases, strict=True):
        assert case.patient == f"G{seed:08d}"
        (volume,) = case.volumes
        assert (volume.series, volume.image.dtype, volume.mask.dtype) == ("ct", np.int16, np.uint8)
        assert volume.image.min() >= LOWEST
        assert volume.image.max() <= HIGHEST
        slice_mm, row_mm, column_mm = volume.spacing_mm
        assert 1 <= slice_mm <= 3
        assert 0.6 <= row_mm == column_mm <= 0.86
        for n, step in zip(volume.image.shape, volume.spacing_mm, strict=True):
            assert n * step == pytest.approx(CROP_MM, abs=0.51 * step)
        assert set(case.endpoints) == {"age", "sex", "nodule_type", "attachment", "diameter_mm", "volume_mm3"}
        assert case.scanner["modality"] == "CT"


def test_slices_run_upwards_rows_backwards_and_columns_to_the_left(cases):
    for seed, case in zip(SEEDS, cases, strict=True):
        steps = case.volumes[0].affine[:3, :3]
        assert (np.sign(steps).T == [[0, 0, 1], [0, 1, 0], [1, 0, 0]]).all()
        centre = case.volumes[0].affine @ [*(np.array(case.volumes[0].image.shape) / 2), 1]
        assert (centre[0] > 0) == (draw_lung(seed).side == "left")


def test_the_nodule_is_one_piece_near_the_middle(cases):
    for case in cases:
        volume = case.volumes[0]
        assert set(np.unique(volume.mask)) == {0, NODULE}
        assert ndimage.label(volume.mask)[1] == 1
        off = (np.argwhere(volume.mask).mean(axis=0) - (np.array(volume.mask.shape) - 1) / 2) * volume.spacing_mm
        assert np.abs(off).max() < 11  # 6, and what lobes or the chest wall shift


def test_volume_and_diameter_are_those_of_the_mask(cases):
    for case in cases:
        volume = case.volumes[0]
        assert case.endpoints["volume_mm3"] == pytest.approx(volume.mask.sum() * np.prod(volume.spacing_mm), abs=0.1)
        assert 2 < case.endpoints["diameter_mm"] < 45
    rows, columns = np.mgrid[-20:21, -20:21]
    ellipse = ((rows / 12) ** 2 + (columns / 6) ** 2 <= 1).astype(np.uint8)
    assert diameter_mm(np.stack([0 * ellipse, ellipse]), 0.5) == pytest.approx((12 + 6) / 2, rel=0.02)  # axes of 12 and 6 mm
    assert diameter_mm(0 * ellipse[None], 0.5) == 0
    one = 0 * ellipse[None]
    one[0, 3, 3] = 1
    assert 0.4 < diameter_mm(one, 0.5) < 0.7


def plain(seed, **changes):
    """A lung whose nodule is a smooth ball without anything on it, and a fine grid around it."""
    lung = draw_lung(seed)
    upright = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    ball = replace(
        lung.nodule,
        turn=upright,
        lobes=(),
        spicules=(),
        roughness=0.0,
        stretch=(1.0, 1.0, 1.0),
        radius_mm=6.0,
        attachment="none",
    )
    far = replace(lung.borders[0], distance_mm=100.0)
    changed = replace(lung, **{"nodule": ball, "borders": (far,), "vessels": (20, 20), "offset_mm": (0.0, 0.0, 0.0)} | changes)
    return changed, Grid((40, 40, 40), (0.6, 0.6, 0.6), (0.0, 0.0, 0.0))


def test_a_nodule_without_lobes_has_the_volume_of_its_ball():
    lung, grid = plain(3)
    found = density(lung, grid)
    assert (found.depth_mm > 0).sum() * 0.6**3 == pytest.approx(4 / 3 * np.pi * 6**3, rel=0.02)
    assert found.depth_mm.max() == pytest.approx(6, abs=0.6)
    assert found.depth_mm.min() >= -FAR_MM


def test_lobes_make_it_larger_and_less_round():
    lung, grid = plain(3)
    smooth = density(lung, grid).depth_mm > 0
    lobed = replace(lung, nodule=replace(lung.nodule, lobes=(((0.9, 0.0, 0.0), 0.5),)))
    bumpy = density(lobed, grid).depth_mm > 0
    assert bumpy[smooth].all()
    top = 0.6 * (np.argwhere(bumpy)[:, 0].max() - np.argwhere(smooth)[:, 0].max())
    assert top == pytest.approx(0.4 * 6, abs=0.7)  # 0.9 + 0.5 radii instead of 1


def test_each_kind_has_its_density():
    """Solid like muscle; ground glass between lung and -400; the solid part of a part-solid one above -160."""
    for seed in range(60):
        lung, grid = plain(seed)
        found = density(lung, grid)
        inside = found.hu[found.depth_mm > 2]
        if lung.nodule.kind == "ground-glass":
            assert -800 < np.median(inside) < -400
        elif lung.nodule.kind == "solid" and lung.nodule.calcium is None and lung.nodule.cavity is None:
            assert -30 < np.median(inside) < 100
        elif lung.nodule.core is not None:
            assert np.percentile(inside, 99.5) > -160
    kinds = [draw_lung(seed).nodule.kind for seed in range(300)]
    assert set(kinds) == set(KINDS)
    assert kinds.count("solid") / 300 == pytest.approx(0.6, abs=0.09)


def test_the_lung_around_is_as_dense_as_inspired_lung_is(cases):
    """-850 to -910 in the textbook; crops of hilum, wall and mediastinum are left to their tissues."""
    for seed in SEEDS:
        lung, grid = plain(seed, emphysema=(9.0, 8.0), band=None, fissure=None, dependent_hu=0.0)
        assert -945 < np.median(density(lung, grid).hu) < -790
    assert -985 < np.mean([np.percentile(case.volumes[0].image, 10) for case in cases]) < -850


def test_the_chest_wall_holds_ribs_fat_and_air_behind_it_and_cuts_the_nodule_off():
    lung, _ = plain(3)
    wall = replace(lung.wall, rib_spacing_mm=25.0, muscle_mm=5.0, fat_mm=6.0, pleural_fat_mm=1.0)
    border = replace(lung.borders[0], normal=(0.0, 0.0, 1.0), distance_mm=2.0, bend=(0.0, 0.0), waviness_mm=0.0)
    lung = replace(lung, wall=wall, borders=(border,))
    found = density(lung, Grid((60, 60, 60), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)))
    x = np.arange(60) - 29.5
    assert found.depth_mm[:, :, x > 3].max() < 0  # the lung bulges by 0.7 mm between the ribs
    assert np.median(found.hu[:, :, x < -10]) < -780
    assert (found.hu[:, :, (x > 3) & (x < 11)] > 500).mean() > 0.05
    outer = np.median(found.hu, axis=(0, 1))
    assert (outer[x > 27.5] == -1000).all()
    assert -115 < outer[(x > 20) & (x < 21)].item() < -85


def test_noise_has_the_protocols_strength_and_hangs_together_in_the_plane_alone():
    hu = np.full((24, 64, 64), -500, np.float32)
    image = reconstructed(hu, PROTOCOL, np.random.default_rng(1)).astype(float) + 500
    assert image.mean() == pytest.approx(0, abs=1)
    assert image.std() == pytest.approx(20, rel=0.02)

    def alike(one, other):
        return np.corrcoef(one.ravel(), other.ravel())[0, 1]

    assert alike(image[:, 1:], image[:, :-1]) > 0.4
    assert abs(alike(image[1:], image[:-1])) < 0.05


def test_a_sharp_kernel_overshoots_and_a_soft_one_does_not():
    step = np.full((3, 40, 40), -800, np.float32)
    step[..., 20:] = 0
    quiet = replace(PROTOCOL, noise_hu=0.0)
    soft = reconstructed(step, quiet, np.random.default_rng(0))
    sharp = reconstructed(step, replace(quiet, kernel="sharp", overshoot=0.8, blur_mm=0.35), np.random.default_rng(0))
    assert (soft.min(), soft.max()) == (-800, 0)
    assert sharp.max() > 40
    assert sharp.min() < -840


def test_protocols_vary():
    protocols = [draw_protocol(seed) for seed in range(60)]
    assert {protocol.kernel for protocol in protocols} == {"soft", "sharp"}
    assert {protocol.slice_mm for protocol in protocols} == {1.0, 1.25, 1.5, 2.0, 2.5, 3.0}
    assert min(p.noise_hu for p in protocols) < 10 < 50 < max(p.noise_hu for p in protocols)


@pytest.mark.parametrize("radius", [0.15, 0.3, 1.0, 2.5])
def test_a_tube_fills_its_volume(radius):
    grid = Grid((40, 40, 40), (1.0, 0.7, 0.7), (0.0, 0.0, 0.0))
    way = np.linspace(-9, 9, 5)[:, None] * np.array([0.6, 0.64, 0.48])
    share = np.zeros(grid.shape, np.float32)
    draw(Tubes(way[:-1], way[1:], np.full((4, 2), radius)), grid, share)
    ends = 4 / 3 * np.pi * radius**3 if radius > 0.5 else 0  # tubes that are wider than a voxel are rounded off
    length = 18 * np.sqrt(0.6**2 + 0.64**2 + 0.48**2)
    assert share.sum() * 0.49 == pytest.approx(np.pi * radius**2 * length + ends, rel=0.06)
    assert share.max() <= 1


def test_vessels_taper_away_from_the_hilum_and_bronchi_go_beside_thick_ones():
    rng = np.random.default_rng(0)
    lung = replace(draw_lung(5), hilum=(0.0, 0.0, -60.0), vessels=(150, 100))
    ends = rng.uniform(-30, 30, (250, 3))
    arteries, veins = arteries_and_veins(lung, ends, ends[:, 0] > 100)
    for tree in (arteries, veins):
        assert tree.radii.min() >= END_MM[0] - 1e-9
        assert (tree.radii[:, 1] <= tree.radii[:, 0] + 1e-9).all()
        near = tree.start[:, 2] < -30
        assert tree.radii[near].max() > 3 * np.median(tree.radii[~near])
        thickest = np.sort(tree.radii.max(axis=1))[-3:]
        assert thickest.max() < (150 ** (1 / 3)) * END_MM[1]  # Murray: the trunk's cube is the sum of the ends' cubes
    whole, lumen = airways(lung, arteries)
    assert np.allclose(lumen.radii / whole.radii, 0.6)  # walls of a fifth of the whole on both sides
    assert 0 < len(whole.radii) < len(arteries.radii)


def test_a_field_has_mean_0_and_variance_1_and_is_the_same_on_every_grid():
    fine, coarse = Grid((60, 60, 60), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)), Grid((20, 20, 20), (3.0, 3.0, 3.0), (0.0, 0.0, 0.0))
    field = wander(1, 2, fine.axes, 6.0)
    assert field.mean() == pytest.approx(0, abs=0.1)
    assert field.std() == pytest.approx(1, abs=0.1)
    np.testing.assert_allclose(field[1::3, 1::3, 1::3], wander(1, 2, coarse.axes, 6.0), atol=1e-5)


# -- families, pre-training, the page ------------------------------------------------------------------------------------


def test_ct_is_the_series_of_lungs():
    assert family_of(("ct",)) is LUNGS
    with pytest.raises(ValueError, match=r"nothing generates .*; lungs \(ct\)"):
        family_of(("ct", "t1"))


def test_the_study_of_nodules_composes():
    settings = settings_of(["hospitals=nodules"])
    assert settings.hospitals.series == ("ct",)
    assert load(settings.task).settings.structures == {"nodule": NODULE}
    assert settings.pretraining.patients == 200


def test_pretraining_for_ct_draws_nodules_and_the_loss_falls(tmp_path, monkeypatch, one_thread):
    monkeypatch.setattr(pretraining, "THREADS", 1)

    def trained(steps):
        settings = Pretraining(patients=2, steps=steps, batch_patients=2, views=1, learning_rate=0.02, ema_decay=0.9)
        return pretraining.pretrain(TASK, settings, ("ct",), cache=tmp_path, pool=Immediately(), advance=lambda *_: None)

    task = load(TASK)
    arrays = task.prepare(nodule_case(50_000_000, oversampling=1))

    def loss(state):
        model = task.model()
        model.load_state_dict(state)
        image, target = task.example(arrays, 8, np.random.default_rng(1))
        with torch.no_grad():
            return task.loss(model(image), target).mean().item()

    assert loss(trained(25)) < 0.8 * loss(trained(0))
    assert len(list(tmp_path.glob("free/*/cases/G5000000?"))) == 2


def test_the_page_of_nodules_has_a_row_for_each_and_contours(tmp_path, monkeypatch):
    from PIL import Image

    monkeypatch.setattr(lung_sheet, "SEEDS", (3, 5))
    page = lung_sheet.write_lung_sheet(tmp_path / "new" / "page.png")
    with Image.open(page) as image:
        assert COLOURS[0] in {colour for _, colour in image.convert("RGB").getcolors(1 << 20) or []}
        height = image.height
    monkeypatch.setattr(lung_sheet, "SEEDS", (3,))
    with Image.open(lung_sheet.write_lung_sheet(page)) as image:
        assert 2 * image.height == height
