"""Computed tomography: parameters of a drawn body whose right values are known, and each artifact moving its own alone."""

from __future__ import annotations

import time

import numpy as np
import pytest

from fl_client.quality.measure import Quality, measure
from tasks.case import Volume

AIR, WATER, MUSCLE, FAT, LUNG, BONE, METAL = -1000, 20, 50, -90, -800, 700, 3071
PADDING = -2000  # what some scanners store outside the disc that they reconstruct
SD = 10.0
ROWS, COLUMNS = np.mgrid[:192, :192] - 95.5


def within(row: float, column: float, height: float, width: float) -> np.ndarray:
    """An ellipse with these half-axes, in pixels from the middle."""
    return np.hypot((ROWS - row) / height, (COLUMNS - column) / width) < 1


def stacked(*regions: tuple[np.ndarray, float], slices: int = 4) -> np.ndarray:
    """Air with these regions in it, later ones over earlier ones: (slices, rows, columns), HU."""
    plane = np.full(ROWS.shape, float(AIR))
    for where, value in regions:
        plane[where] = value
    return np.stack([plane] * slices)


def disc(value: float = WATER) -> np.ndarray:
    return stacked((within(0, 0, 60, 60), value))


def thorax(*more: tuple[np.ndarray, float]) -> np.ndarray:
    lungs = within(0, -38, 35, 25) | within(0, 38, 35, 25)
    body = ((within(0, 0, 62, 80), FAT), (within(0, 0, 55, 73), MUSCLE), (lungs, LUNG), (within(40, 0, 9, 9), BONE))
    return stacked(*body, *more)


def noisy(image: np.ndarray, sd: float = SD, seed: int = 0) -> np.ndarray:
    return image + sd * np.random.default_rng(seed).standard_normal(image.shape)


def of(image: np.ndarray, *, pixel_mm: float = 0.8, **more: float) -> Quality:
    """Of an image in whole numbers, as a scanner stores them."""
    affine = np.diag([5.0, pixel_mm, pixel_mm, 1.0])
    return measure(Volume("ct", np.rint(image).astype(np.int16), affine), "CT", **more)


@pytest.mark.parametrize("sd", [5.0, 10.0, 30.0])
@pytest.mark.parametrize("hu", [10, 20, 40])
@pytest.mark.parametrize("pixel_mm", [0.5, 0.8, 1.5])
def test_noise_in_tissue_and_in_air_is_what_was_put_in_and_air_is_that_of_the_image(sd, hu, pixel_mm):
    found = of(noisy(disc(hu), sd), pixel_mm=pixel_mm)
    assert found.values["noise_tissue_hu"] == pytest.approx(sd, rel=0.1)
    assert found.values["noise_air_hu"] == pytest.approx(sd, rel=0.1)
    assert found.values["air_hu"] == pytest.approx(AIR, abs=0.5)
    assert (found.values["metal_fraction"], found.values["truncation"], dict(found.why)) == (
        0,
        0,
        {"slice_gap_mm": "the slice thickness is not known"},
    )


def test_noise_in_tissue_and_in_air_are_told_apart():
    image = np.where(within(0, 0, 60, 60), noisy(disc(), 25.0), noisy(disc(), 8.0))
    values = of(image).values
    assert values["noise_tissue_hu"] == pytest.approx(25, rel=0.1)
    assert values["noise_air_hu"] == pytest.approx(8, rel=0.1)


@pytest.mark.parametrize("radius", [2, 5, 12])
def test_the_share_of_metal_is_what_was_put_in(radius):
    metal = within(10, -5, radius, radius)
    share = metal.sum() / within(0, 0, 60, 60).sum()
    values = of(noisy(stacked((within(0, 0, 60, 60), WATER), (metal, METAL)))).values
    assert values["metal_fraction"] == pytest.approx(share, rel=0.01)
    assert values["noise_tissue_hu"] == pytest.approx(SD, rel=0.1)


def test_truncation_is_the_share_of_the_rim_in_the_body_and_grows_with_what_is_cut_off():
    found = []
    for edge in (20, 40, 46, 52):  # the disc reaches from the 36th to the 156th pixel
        image = noisy(disc())[:, edge:-edge, edge:-edge]
        half = image.shape[1] / 2
        chord = 2 * np.sqrt(max(60**2 - half**2, 0))  # of the disc, on each of the four sides
        found.append(of(image).values["truncation"])
        assert found[-1] == pytest.approx(chord / (2 * half), abs=0.03)
    assert (found[0], list(np.diff(found) > 0)) == (0, [True] * 3)


@pytest.mark.parametrize(("radius", "share"), [(90, 0.0), (58, 1.0)])
def test_the_rim_of_a_round_field_is_that_of_the_disc(radius, share):
    outside = ~within(0, 0, radius, radius)
    values = of(np.where(outside, PADDING, noisy(disc()))).values
    assert values["truncation"] == pytest.approx(share, abs=0.02)
    assert values["noise_tissue_hu"] == pytest.approx(SD, rel=0.1)


def test_the_gap_is_the_distance_of_the_slices_less_their_thickness_however_they_are_turned():
    turn = np.array([[0.0, 1, 0], [0.6, 0, 0.8], [-0.8, 0, 0.6]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([7.5, 0.8, 0.7])  # columns: from slice to slice, from row to row, from column to column
    affine[:3, 3] = 11, -70, 300
    volume = Volume("ct", np.rint(noisy(disc())).astype(np.int16), affine)
    values = measure(volume, "CT", thickness_mm=5.0).values
    assert (values["slice_gap_mm"], values["slice_spacing_mm"], values["pixel_mm"], values["slices"]) == (2.5, 7.5, 0.8, 4)
    assert measure(volume, "CT", thickness_mm=10.0).values["slice_gap_mm"] == -2.5  # overlapping


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("sd", "measured"), [(8.0, True), (30.0, False)])
def test_noise_that_is_cut_off_below_the_smallest_value_that_a_scanner_stores_is_no_number(sd, measured, padded):
    image = np.maximum(noisy(disc(), sd), -1024)
    found = of(np.where(within(0, 0, 94, 94), image, PADDING) if padded else image)
    if measured:
        assert found.values["noise_air_hu"] == pytest.approx(sd, rel=0.1)
    else:
        assert found.values["noise_air_hu"] is None
        assert "cut off at the smallest value" in found.why["noise_air_hu"]
    assert found.values["noise_tissue_hu"] == pytest.approx(sd, rel=0.1)
    assert found.values["air_hu"] == pytest.approx(AIR, abs=1)


def test_a_lung_that_the_field_of_view_cuts_is_no_air():
    found = of(noisy(thorax())[:, 44:-44, 44:-44])
    assert found.values["truncation"] > 0.5
    assert found.values["air_hu"] is found.values["noise_air_hu"] is None
    assert found.why["air_hu"] == "too little air around the body"


def test_a_volume_costs_little():
    image = np.tile(np.rint(noisy(np.kron(disc(), np.ones((1, 2, 2))))).astype(np.int16), (16, 1, 1))
    begun = time.process_time()
    measure(Volume("ct", image, np.diag([5.0, 0.8, 0.8, 1.0])), "CT")
    assert time.process_time() - begun < 3


# -- each artifact moves its own parameters ------------------------------------------------------------------------------

OWN = {
    "noise": ("noise_tissue_hu", "noise_air_hu"),
    "blur": (),  # nothing that is measured of CT is about it
    "crop": ("truncation",),
    "offset": ("air_hu",),
    "metal": ("metal_fraction",),
}
LEAST = {"noise_tissue_hu": 15, "noise_air_hu": 15, "truncation": 0.1, "air_hu": 25, "metal_fraction": 0.01}
"""What the artifact at full strength moves its own parameter by, at least."""

TOLERANCE = 0.05
"""Another artifact at full strength moves a parameter by at most this share of that."""


@pytest.fixture(scope="module")
def drawn() -> dict[str, list[dict[str, float | None]]]:
    """Parameters by artifact, from no strength to the full one. Artifacts are put on before the noise, as in a scanner."""
    tio, torch = pytest.importorskip("torchio"), pytest.importorskip("torch")

    def put(transform: object, image: np.ndarray) -> np.ndarray:
        return transform(torch.tensor(image, dtype=torch.float32)[None]).numpy()[0].astype(float)

    made = {
        "noise": lambda k: put(tio.Noise(mean=0, std=(10, 20, 30)[k], seed=1), thorax()),
        "blur": lambda k: put(tio.Blur(std=(0, *2 * ((0.8, 1.6, 2.4)[k],))), thorax()),
        "crop": lambda k: thorax()[:, (edge := (18, 21, 24)[k]) : -edge, edge:-edge],
        "offset": lambda k: thorax() + (10, 20, 30)[k],
        "metal": lambda k: thorax((within(10, -5, radius := (3, 5, 7)[k], radius), METAL)),
    }
    none = of(noisy(thorax())).values
    return {name: [none, *(of(noisy(make(k))).values for k in range(3))] for name, make in made.items()}


@pytest.mark.parametrize("metric", LEAST)
def test_a_parameter_moves_with_its_artifact_and_not_with_the_others(drawn, metric):
    for artifact, rows in drawn.items():
        values = np.array([row[metric] for row in rows], float)
        if metric in OWN[artifact]:
            assert (np.diff(values) > 0).all(), (artifact, values)
            assert values[-1] - values[0] > LEAST[metric]
        else:
            assert np.abs(values - values[0]).max() <= TOLERANCE * LEAST[metric], (artifact, values)
