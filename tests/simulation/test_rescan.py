"""Scans by torch are those of numpy: what is compared with is `scanner.scan`, which averages signals and not shares."""

import numpy as np
import pytest
import torch

from simulation import reception
from simulation.phantom import draw_patient
from simulation.rescan import Exposure, expose, noise_from, take
from simulation.scanner import Scanner, random_scanner, scan, scan_rng
from simulation.scene import Scene, scene

CPU = torch.device("cpu")
PATIENTS = {"infarct": 4, "amyloid": 5, "myocarditis": 6}
SMALL = {"matrix": 96, "pixel_mm": 3.0, "slice_thickness_mm": 9.0, "slice_gap_mm": 3.0}
SCANNERS = [
    Scanner(**SMALL),
    random_scanner(2).model_copy(update={**SMALL, "banding": 0.6, "circular_view": True}),
    random_scanner(9).model_copy(update={**SMALL, "psir": False, "field_strength_t": 3.0, "apex_first": True, "banding": 0.0}),
]


def drawn(
    series: str, number: int, *, disease: str = "infarct", **fineness: int
) -> tuple[Scene, Exposure, np.ndarray, torch.Tensor]:
    """A scene, its scan drawn with numpy's chances, the image by numpy, and the noise that numpy then draws."""
    patient, scanner = draw_patient(PATIENTS[disease], {disease: 1.0}), SCANNERS[number]
    image = scan(patient, scanner, series, seed=number, **fineness).image  # type: ignore[arg-type]
    here = scene(patient, scanner, series, seed=number, **fineness)  # type: ignore[arg-type]
    rng = scan_rng(patient, scanner, series, seed=number)
    exposure = expose(here, scanner, rng)
    return here, exposure, image, torch.from_numpy(reception.draw_noise(image.shape, rng))


@pytest.mark.parametrize("series", ["cine_ed", "cine_es", "lge"])
@pytest.mark.parametrize("number", range(len(SCANNERS)))
@pytest.mark.parametrize("disease", PATIENTS)
def test_with_equal_chances_torch_and_numpy_make_the_same_image(series, number, disease):
    _, exposure, image, noise = drawn(series, number, disease=disease, oversampling=2, subslices=3)
    found = take([exposure], lambda shape: noise, CPU)[0].numpy()
    assert image.std() > 20
    assert np.abs(found - image).max() <= 1  # grey values: rounding may fall either way
    assert (found != image).mean() < 0.02


def test_a_batch_is_what_each_scan_is_alone():
    several = [drawn(series, n, oversampling=1, subslices=2) for series in ("cine_ed", "lge") for n in range(3)]
    several += [drawn("cine_es", 0, disease=disease, oversampling=1, subslices=2) for disease in PATIENTS]
    silent = [exposure for _, exposure, _, _ in several]

    def no_noise(shape: tuple[int, ...]) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.complex64)

    assert len({exposure.kind for exposure in silent}) < len(silent)
    for together, exposure in zip(take(silent, no_noise, CPU), silent, strict=True):
        alone = take([exposure], no_noise, CPU)[0]
        assert together.shape == alone.shape
        assert (together - alone).abs().max() <= 1


def test_shares_of_a_pixel_add_up_to_one_and_every_lesion_has_its_own():
    here, *_ = drawn("lge", 0, disease="myocarditis", oversampling=2, subslices=3)
    assert here.shares.sum(axis=1) == pytest.approx(np.ones(len(here.shares)))
    assert here.code.max() == len(here.shares) - 1
    assert len(here.ecv) >= 1
    assert (here.shares[np.unique(here.code)][:, 16:].max(axis=0) > 0).all()


def test_the_noise_has_the_scanners_deviation():
    quiet = SCANNERS[0].model_copy(update={"texture": 0.0, "flow_mottle": 0.0, "ghosting": 0.0, "coil_bias": 0.0, "snr": 20.0})
    here = scene(draw_patient(3, {"dcm": 1.0}), quiet, "cine_ed", seed=0, oversampling=1, subslices=1)
    exposure = expose(here, quiet, np.random.default_rng(0))
    noise = noise_from(torch.Generator().manual_seed(5))
    first, second = (take([exposure], noise, CPU)[0].numpy() for _ in range(2))
    deviation = (first - second)[here.mask == 1].std() / np.sqrt(2)
    assert quiet.intensity_scale / deviation == pytest.approx(20, rel=0.1)


def test_every_other_slice_shows_the_same_pixels():
    here, *_ = drawn("cine_ed", 0, oversampling=1, subslices=1)
    part = here.every(2, 1)
    assert np.array_equal(part.mask, here.mask[1::2])
    assert part.code.shape[0] == len(part.grid.levels_mm) == len(part.coils)
    assert part.affine[:3, 0] == pytest.approx(2 * here.affine[:3, 0], rel=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_makes_the_same_image():
    _, exposure, image, noise = drawn("cine_ed", 1, oversampling=1, subslices=2)
    found = take([exposure], lambda shape: noise.cuda(), torch.device("cuda"))[0]
    assert found.is_cuda
    assert np.abs(found.cpu().numpy() - image).max() <= 1
