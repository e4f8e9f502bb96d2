import numpy as np
import pytest

from tasks.radiomics.intensity import standardised


@pytest.fixture
def patient():
    """Muscle 0, 1, ..., 100 and blood 200 (101 voxels of each) in a field of 1000, and its mask."""
    image = np.full((2, 20, 20), 1000.0)
    mask = np.zeros(image.shape, np.uint8)
    image.flat[:101], mask.flat[:101] = np.arange(101), 2
    image.flat[101:202], mask.flat[101:202] = 200, 1
    mask.flat[202:240] = 3
    mask.flat[240:260] = 255
    return image, mask


def test_remote_muscle_is_zero_and_the_ventricles_range_a_hundred(patient):
    image, mask = patient
    values = standardised(image, mask, "remote")
    # the 20th percentile of 0..100 is 20; of the 202 values the 10th is number 20.1 (= 20.1), the 90th is blood
    expected = 100 * (image - 20) / (200 - 20.1)
    assert values.dtype == np.float32
    assert values == pytest.approx(expected, rel=1e-6)


def test_the_myocardium_gets_mean_zero_and_deviation_a_hundred(patient):
    image, mask = patient
    values = standardised(image, mask, "myocardium")
    # the variance of 0, 1, ..., 100 is (101² - 1) / 12
    assert values == pytest.approx(100 * (image - 50) / np.sqrt((101**2 - 1) / 12), rel=1e-6)


@pytest.mark.parametrize("how", ["remote", "myocardium"])
def test_a_scanners_offset_and_scale_do_not_show(patient, how):
    image, mask = patient
    assert standardised(3.7 * image + 412, mask, how) == pytest.approx(standardised(image, mask, how), abs=1e-3)


def test_none_leaves_the_grey_values_as_they_are(patient):
    image, mask = patient
    stored = image.astype(np.uint16)
    assert np.array_equal(standardised(stored, mask, "none"), image.astype(np.float32))


@pytest.mark.parametrize("share", [0.1, 0.41, 0.7])
def test_remote_muscle_stays_near_zero_however_much_is_enhanced(share):
    rng = np.random.default_rng(0)
    image, mask = np.zeros((1, 40, 40)), np.zeros((1, 40, 40), np.uint8)
    mask[0, :20], mask[0, 20:] = 2, 1
    image[0] = rng.normal(100, 4, (40, 40))
    enhanced = np.zeros(mask.shape, bool)
    enhanced.flat[: int(800 * share)] = True
    image[enhanced] += 80
    image[mask == 1] += 60
    values = standardised(image, mask, "remote")
    assert abs(np.median(values[(mask == 2) & ~enhanced])) < 12
    assert np.median(values[enhanced]) > 80


@pytest.mark.parametrize("how", ["remote", "myocardium"])
def test_what_has_no_intensity_scale_is_told_in_words(patient, how):
    image, mask = patient
    with pytest.raises(ValueError, match="no myocardium"):
        standardised(image, np.where(mask == 2, 0, mask).astype(np.uint8), how)
    with pytest.raises(ValueError, match=r"flat in the .* \(spread 0 around 7\)"):
        standardised(np.full(image.shape, 7), mask, how)


def test_the_scale_by_remote_muscle_needs_blood(patient):
    image, mask = patient
    with pytest.raises(ValueError, match="no left-ventricular blood pool"):
        standardised(image, np.where(mask == 1, 0, mask).astype(np.uint8), "remote")


def test_what_can_not_be_read_is_refused(patient):
    image, mask = patient
    with pytest.raises(ValueError, match="no intensity scale named 'iqr'; known are remote"):
        standardised(image, mask, "iqr")
    with pytest.raises(ValueError, match="same three axes"):
        standardised(image[0], mask[0], "remote")
    with pytest.raises(ValueError, match="holds 1 values that are not finite"):
        standardised(np.where(np.arange(image.size).reshape(image.shape) == 3, np.nan, image), mask, "remote")
