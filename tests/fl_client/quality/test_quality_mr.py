"""Parameters of drawn images whose right values are known, and images of which some can't be had."""

from __future__ import annotations

import time

import numpy as np
import pytest
from scipy import ndimage

from fl_client.quality.measure import measure, modality
from fl_client.quality.mr import RAYLEIGH
from tasks.case import Case, Volume

AFFINE = np.diag([8.0, 1.5, 1.5, 1.0])


def disc(radius: float = 50, *, edge_px: float = 0.0, size: int = 160, slices: int = 4) -> np.ndarray:
    """A disc of 200 in nothing, with edges blurred by a Gaussian of so many pixels."""
    fine = 4
    rows, columns = np.mgrid[: size * fine, : size * fine] / fine
    plane = 200.0 * (np.hypot(rows - size / 2, columns - size / 2) < radius)
    plane = ndimage.gaussian_filter(plane, edge_px * fine).reshape(size, fine, size, fine).mean(axis=(1, 3))
    return np.stack([plane] * slices)


def magnitude(image: np.ndarray, sd: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.hypot(image + sd * rng.standard_normal(image.shape), sd * rng.standard_normal(image.shape)).astype(np.float32)


def of(image: np.ndarray, **more):
    return measure(Volume("lge", image, AFFINE, more.pop("mask", None)), "MR", **more)


@pytest.mark.parametrize("sd", [2.0, 5.0, 10.0])
def test_noise_and_both_ratios_are_those_that_were_put_in(sd):
    values = of(magnitude(disc(), sd)).values
    assert values["noise_sigma"] == pytest.approx(sd, rel=0.05)
    assert values["snr"] == pytest.approx(200 / sd, rel=0.08)
    assert values["snr_air"] == pytest.approx(200 / sd, rel=0.08)


def test_the_factor_of_noise_in_air_is_that_of_a_rayleigh_distribution():
    assert np.random.default_rng(1).rayleigh(1.0, 1_000_000).std() == pytest.approx(RAYLEIGH, rel=0.002)


def test_contrast_to_noise_is_the_difference_of_two_structures_over_noise():
    image = disc()
    image[:, :80] *= 0.6
    mask = (image > 0).astype(np.uint8) + (image > 150)
    assert of(magnitude(image, 5.0), mask=mask).values["cnr"] == pytest.approx(80 / 5, rel=0.08)
    one = of(magnitude(image, 5.0), mask=(image > 0).astype(np.uint8))
    assert (one.values["cnr"], one.why["cnr"]) == (None, "fewer than two structures are drawn")


@pytest.mark.parametrize("edge_px", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("contrast", [0.5, 2.0])
def test_blur_is_the_width_of_edges_in_millimetres_whatever_the_contrast(edge_px, contrast):
    values = of(magnitude(contrast * disc(30, edge_px=edge_px, size=128), 2.0)).values
    assert values["blur_mm"] == pytest.approx(1.5 * np.hypot(1, edge_px), rel=0.1)


@pytest.mark.parametrize("share", [0.03, 0.06, 0.12])
@pytest.mark.parametrize("shift", [80, 53])
def test_a_ghost_has_the_amplitude_that_was_put_in_wherever_it_is(share, shift):
    image = disc(30)
    values = of(magnitude(image + share * np.roll(image, shift, axis=1), 3.0)).values
    assert values["ghosting"] == pytest.approx(share, rel=0.15)
    assert values["air_artifacts"] > 0.04
    clean = of(magnitude(image, 3.0)).values
    assert clean["ghosting"] < 0.01
    assert clean["air_artifacts"] < 0.03


@pytest.mark.parametrize("fall", [0.1, 0.3, 0.5])
def test_uniformity_is_that_of_the_sensitivity_that_was_put_in(fall):
    field = np.exp(-fall * np.linspace(-1, 1, 160))[:, None]
    inside = disc()[0] > 100
    low, high = np.percentile(np.broadcast_to(field, inside.shape)[inside], (5, 95))
    values = of(magnitude(disc() * field, 3.0)).values
    assert values["uniformity"] == pytest.approx(1 - (high - low) / (high + low), abs=0.03)


def test_truncation_is_the_share_of_the_rim_in_the_body():
    assert of(magnitude(disc(), 3.0)).values["truncation"] == 0
    half = disc()[:, 80:]  # a side of 160 pixels, of which the disc covers 100, and three without it
    assert of(magnitude(half, 3.0)).values["truncation"] == pytest.approx(100 / (2 * 160 + 2 * 78), abs=0.03)


def test_a_disc_of_field_in_black_is_no_body_and_its_black_no_air():
    image = magnitude(disc(40), 5.0)
    rows, columns = np.mgrid[:160, :160]
    image[:, np.hypot(rows - 79.5, columns - 79.5) > 72] = 0
    values = of(image).values
    assert values["truncation"] < 0.01
    assert values["snr_air"] == pytest.approx(40, rel=0.1)


def blanked() -> np.ndarray:
    """Black where the object isn't, which is smaller in every slice."""
    image = np.concatenate([disc(radius, slices=1) for radius in (70, 50, 30, 10)])
    return np.where(ndimage.binary_dilation(image > 0, iterations=2), magnitude(image, 5.0), 0)


@pytest.mark.parametrize(
    ("image", "why"),
    [
        (blanked(), "blanked out the air"),
        (disc() + 600 + np.random.default_rng(0).normal(0, 5, (4, 160, 160)), "a signed image, or a cut-out"),
        (magnitude(disc() - 100, 5.0) - 200, "a signed image, or a cut-out"),
        (magnitude(disc(500), 5.0), "a signed image, or a cut-out"),
        (magnitude(disc(74), 5.0)[:, 30:-30, 30:-30], "a signed image, or a cut-out"),
    ],
    ids=["blanked", "offset", "signed", "nothing dark", "cut-out"],
)
def test_where_there_is_no_air_there_is_no_number_and_a_reason(image, why):
    found = of(image.astype(np.float32))
    for metric in ("snr_air", "ghosting", "air_artifacts"):
        assert found.values[metric] is None
        assert why in found.why[metric]
    assert found.values["noise_sigma"] == pytest.approx(5, rel=0.25)


def test_parallel_imaging_leaves_the_air_alone():
    found = of(magnitude(disc(), 5.0), parallel_imaging=True)
    assert found.values["ghosting"] is found.values["snr_air"] is None
    assert found.why["ghosting"] == "parallel imaging is declared"
    assert found.values["snr"] == pytest.approx(40, rel=0.08)


def test_spacing_and_gaps_are_told():
    values = of(magnitude(disc(), 5.0), thickness_mm=6.0).values
    assert [values[name] for name in ("slices", "pixel_mm", "slice_spacing_mm", "slice_gap_mm")] == [4, 1.5, 8, 2]
    assert values["anisotropy"] == 5.333
    assert of(magnitude(disc(), 5.0)).why["slice_gap_mm"] == "the slice thickness is not known"


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 2, 300), (3, 7, 7), (300, 9, 9), (2, 64, 64)])
@pytest.mark.parametrize("what", ["flat", "zero", "noise", "signed"])
@pytest.mark.parametrize("kind", ["MR", "CT"])
def test_any_image_gives_finite_numbers_or_none(shape, what, kind):
    rng = np.random.default_rng(0)
    images = {
        "flat": np.full(shape, 7, np.int16),
        "zero": np.zeros(shape, np.uint16),
        "noise": rng.integers(0, 9, shape).astype(np.uint16),
        "signed": rng.normal(0, 1000, shape).astype(np.int16),
    }
    found = measure(Volume("x", images[what], AFFINE, np.ones(shape, np.uint8)), kind)
    assert all(value is None or np.isfinite(value) for value in found.values.values())
    assert {name for name, value in found.values.items() if value is None} == set(found.why)


@pytest.mark.parametrize(("shape", "seconds"), [((10, 256, 256), 0.5), ((256, 256, 256), 3.0)])
def test_a_volume_costs_little(shape, seconds):
    image = np.random.default_rng(0).rayleigh(5, shape).astype(np.float32)
    image[:, 60:200, 60:200] += 200
    begun = time.process_time()
    of(image)
    assert time.process_time() - begun < seconds


def test_what_made_the_image_is_told_by_the_scanner_or_seen():
    body = np.full((4, 64, 64), -1000, np.int16)
    body[:, 10:50, 10:50] = 40
    volume = Volume("x", body, AFFINE)
    assert modality(Case("p", (volume,), {}, {"modality": "MR"}), volume) == "MR"
    assert modality(Case("p", (volume,), {}, {"modality": "CT/MR"}), volume) == "CT"
    signed = Volume("x", np.random.default_rng(0).normal(0, 600, (4, 64, 64)).astype(np.int16), AFFINE)
    assert modality(Case("p", (signed,)), signed) == "MR"
