import json
import warnings

import numpy as np
import pytest
import SimpleITK as sitk
from radiomics.featureextractor import RadiomicsFeatureExtractor

from tasks.radiomics import features
from tasks.radiomics.features import Extractor, RegionRefused, to_image

ALL = {name: [] for name in ("shape", "firstorder", "glcm", "glrlm", "glszm", "gldm", "ngtdm")}
FEW = {"firstorder": [], "ngtdm": []}
"""Enough to see that a filtered image is the same everywhere; that all else is, `defaults` and `every filter` show."""

FILTERS = {"Original": {}, "LoG": {"sigma": [1.5, 3.0]}, "Wavelet": {}}


def drawn(shape=(13, 30, 27), spacing=(4.0, 1.5, 1.25), dtype=np.float32, seed=0):
    """A smooth random image, and four regions of which two touch the image's border and two each other."""
    rng = np.random.default_rng(seed)
    image = rng.normal(300, 80, shape)
    image += 0.5 * (np.roll(image, 1, 2) + np.roll(image, 1, 1))
    mask = np.zeros(shape, np.uint8)
    mask[0:5, 0:9, 0:8], mask[4:10, 12:22, 6:13] = 1, 2
    mask[4:10, 12:22, 13:20], mask[8:, 20:, 18:] = 3, 7
    mask[rng.random(shape) < 0.1] = 0
    return to_image(image.astype(dtype), spacing), to_image(mask, spacing)


def own_loop(parameters, image, mask, labels):
    """pyradiomics, region by region."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        extractor = RadiomicsFeatureExtractor(json.loads(json.dumps(parameters)), additionalInfo=False)
        return {label: {k: float(v) for k, v in extractor.execute(image, mask, label=label).items()} for label in labels}


def assert_same(found, wanted):
    assert list(found) == list(wanted)
    for label in wanted:
        assert list(found[label]) == list(wanted[label])
        np.testing.assert_array_equal(list(found[label].values()), list(wanted[label].values()))  # bit for bit; NaN is NaN


VARIANTS = {
    "defaults": ({}, {}),
    "every filter": (
        {"imageType": {**FILTERS, "Square": {}, "SquareRoot": {}, "Logarithm": {}, "Exponential": {}, "Gradient": {}}},
        {},
    ),
    "whole numbers": ({"imageType": FILTERS, "featureClass": FEW}, {"dtype": np.int16}),
    "unsigned": ({"imageType": FILTERS, "featureClass": FEW}, {"dtype": np.uint16}),
    "double": ({"imageType": FILTERS, "featureClass": FEW}, {"dtype": np.float64}),
    "even sizes": ({"imageType": FILTERS, "featureClass": FEW}, {"shape": (12, 30, 28)}),
    "a small image, smaller than a wavelet's window": ({"imageType": FILTERS, "featureClass": FEW}, {"shape": (11, 24, 22)}),
    "long wavelets": ({"imageType": {"Wavelet": {"wavelet": "db8"}}, "featureClass": FEW}, {}),
    "two levels of wavelets": ({"imageType": {"Wavelet": {"level": 2}}, "featureClass": FEW}, {"shape": (12, 28, 28)}),
    "wavelets in the plane": ({"imageType": {"Wavelet": {}}, "setting": {"force2D": True}}, {}),
    "a sigma too large for the image": ({"imageType": {"LoG": {"sigma": [1.0, 60.0]}}}, {}),
    "normalised": (
        {"imageType": FILTERS, "featureClass": FEW, "setting": {"normalize": True, "normalizeScale": 100, "removeOutliers": 3}},
        {},
    ),
    "bins by number": ({"setting": {"binCount": 16}}, {}),
    "weighted by distance": ({"setting": {"weightingNorm": "euclidean", "distances": [1, 2]}}, {}),
    "asymmetrical": ({"setting": {"symmetricalGLCM": False, "voxelArrayShift": 300, "gldm_a": 1}}, {}),
    "some features": ({"featureClass": {"shape": ["MeshVolume"], "firstorder": ["Mean", "90Percentile"], "glcm": None}}, {}),
    "no shape": ({"featureClass": {"ngtdm": None}}, {}),
    "resampled": ({"setting": {"resampledPixelSpacing": [2, 2, 4], "interpolator": "sitkBSpline"}}, {}),
    "cropped first": ({"imageType": {"LoG": {"sigma": [2.0]}}, "setting": {"preCrop": True, "padDistance": 3}}, {}),
    "resegmented": ({"setting": {"resegmentRange": [200, 700]}}, {}),
}


@pytest.mark.parametrize(("parameters", "image"), VARIANTS.values(), ids=VARIANTS)
def test_every_number_is_pyradiomics_own(parameters, image):
    parameters = {"featureClass": ALL, **parameters}
    parameters["setting"] = {"binWidth": 25, **parameters.get("setting", {})}
    image, mask = drawn(**image)
    assert_same(Extractor.of(parameters).features(image, mask), own_loop(parameters, image, mask, (1, 2, 3, 7)))


def test_regions_are_described_alike_alone_and_together():
    image, mask = drawn()
    extractor = Extractor.of({"imageType": FILTERS, "featureClass": ALL})
    together = extractor.features(image, mask)
    for label in (1, 2, 3, 7):  # other boxes, and so other parts of the image that are filtered
        assert_same(extractor.features(image, mask, [label]), {label: together[label]})
    larger, regions = drawn((30, 64, 70))
    within = sitk.GetArrayFromImage(regions) * 0
    within[10:16, 20:30, 24:36] = 1  # far from every border
    within = to_image(within, (4.0, 1.5, 1.25))
    parameters = {"imageType": FILTERS, "featureClass": {"firstorder": None}}
    assert_same(Extractor.of(parameters).features(larger, within), own_loop(parameters, larger, within, (1,)))


def test_parameter_files_and_image_files_are_read(tmp_path):
    image, mask = drawn()
    sitk.WriteImage(image, tmp_path / "image.nii.gz")
    sitk.WriteImage(mask, tmp_path / "mask.nrrd")
    (tmp_path / "parameters.yaml").write_text("imageType: {Original: {}}\nfeatureClass: {firstorder: [Mean]}\n")
    extractor = Extractor.of(tmp_path / "parameters.yaml")
    found = extractor.features(tmp_path / "image.nii.gz", tmp_path / "mask.nrrd")
    values, regions = sitk.GetArrayFromImage(image), sitk.GetArrayFromImage(mask)
    for label in (1, 2, 3, 7):
        assert found[label] == {"original_firstorder_Mean": pytest.approx(values[regions == label].mean(), rel=1e-6)}
    assert extractor.names == ("original_firstorder_Mean",)


def test_the_hash_is_that_of_what_decides_the_numbers(monkeypatch):
    plain = Extractor.of({"featureClass": {"glcm": None}})
    assert plain.hash == Extractor.of({"featureClass": {"glcm": None}, "setting": {"force2D": False}}).hash  # a default
    both = {"Original": {}, "LoG": {"sigma": [2.0]}}
    sorted_ = dict(sorted(both.items()))  # as a study travels
    assert Extractor.of({"imageType": both}).hash == Extractor.of({"imageType": sorted_}).hash
    others = [
        {"featureClass": {"glcm": ["Idm"]}},
        {"featureClass": {"glcm": None}, "setting": {"binWidth": 20}},
        {"featureClass": {"glcm": None}, "imageType": {"Wavelet": {}}},
    ]
    assert len({plain.hash, *(Extractor.of(other).hash for other in others)}) == 4
    monkeypatch.setattr(features, "version", lambda: "another engine")
    assert Extractor.of({"featureClass": {"glcm": None}}).hash != plain.hash


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"featureClass": {"glcm": ["Beauty"]}}, "can't read these parameters"),
        ({"imageType": {"Sharpened": {}}}, "can't read these parameters"),
        ({"featureClass": {"shape2D": None}}, "shape2D needs the setting force2D: true"),
        ({"filters": {}}, "can't read these parameters"),
        ({"imageType": {"LBP2D": {}}}, "LBP2D is not offered"),
        (["shape"], "holds imageType, featureClass and setting"),
    ],
)
def test_parameters_that_can_not_be_run_are_refused(tmp_path, parameters, words):
    (tmp_path / "parameters.yaml").write_text(json.dumps(parameters))
    with pytest.raises(ValueError, match=words):
        Extractor.of(tmp_path / "parameters.yaml")


def test_a_file_that_is_no_yaml_is_refused(tmp_path):
    (tmp_path / "parameters.yaml").write_text("setting: {binWidth: 25")
    with pytest.raises(ValueError, match=r"parameters\.yaml is no YAML file"):
        Extractor.of(tmp_path / "parameters.yaml")


def spoilt(how, image, mask):
    values, regions = sitk.GetArrayFromImage(image), sitk.GetArrayFromImage(mask)
    if how == "nan":
        values[3, 4, 5] = np.nan
    elif how == "empty":
        regions[:] = 0
    elif how == "voxel":
        regions[regions == 7] = 0
        regions[6, 2, 2] = 7
    elif how == "line":
        regions[regions == 7] = 0
        regions[6, 2, 2:9] = 7
    spoiled, off = to_image(values, (4.0, 1.5, 1.25)), to_image(regions, (4.0, 1.5, 1.25))
    if how == "spacing":
        off.SetSpacing((1.25, 1.5, 4.1))
    elif how == "origin":
        off.SetOrigin((0, 0, 2))
    elif how == "size":
        off = off[:-1]
    elif how == "negative":
        off = to_image(np.where(regions == 7, np.int16(-1), regions.astype(np.int16)), (4.0, 1.5, 1.25))
    elif how == "fractions":
        off = sitk.Cast(off, sitk.sitkFloat32)
    elif how == "colours":
        spoiled = sitk.Compose(spoiled, spoiled)
    return spoiled, off


@pytest.mark.parametrize(
    ("how", "words"),
    {
        "nan": "the image holds 1 values that are not finite",
        "empty": "the mask is empty",
        "voxel": "region 7 is a single voxel",
        "line": "region 7 extends in 1 of 3 directions; the parameters ask for 2",
        "spacing": r"off the image's grid: spacing \(1.25, 1.5, 4.1\) instead of \(1.25, 1.5, 4\)",
        "origin": r"off the image's grid: origin",
        "size": r"image \(27, 30, 13\) and mask \(26, 30, 13\) \(x, y, z\) differ in size",
        "fractions": "a mask of regions holds whole numbers, not float32",
        "negative": "labels of regions lie between 1 and 4294967295, not -1 to 3",
        "colours": r"the image must be one volume of three axes, not \(27, 30, 13\) with 2 components",
    }.items(),
)
def test_what_can_not_be_described_is_refused_in_words(how, words):
    with pytest.raises(RegionRefused, match=words):
        Extractor.of({"featureClass": {"firstorder": None}}).features(*spoilt(how, *drawn()))


def test_a_region_that_is_asked_for_and_absent_or_too_small_is_refused():
    image, mask = drawn()
    with pytest.raises(RegionRefused, match="region 5 is empty; the mask holds 1, 2, 3, 7"):
        Extractor.of({}).features(image, mask, [2, 5])
    with pytest.raises(RegionRefused, match=r"region 1 has \d+ voxels; the parameters ask for more than 5000"):
        Extractor.of({"setting": {"minimumROISize": 5000}}).features(image, mask)


def test_files_that_are_missing_or_no_images_are_refused(tmp_path):
    (tmp_path / "image.nii.gz").write_text("no image")
    _, mask = drawn()
    with pytest.raises(RegionRefused, match="there is no image"):
        Extractor.of({}).features(tmp_path / "nothing.nii.gz", mask)
    with pytest.raises(RegionRefused, match=r"image\.nii\.gz can't be read: its compression is damaged or cut short"):
        Extractor.of({}).features(tmp_path / "image.nii.gz", mask)
    (tmp_path / "image.nrrd").write_text("no image")
    with pytest.raises(RegionRefused, match=r"image\.nrrd can't be read: NIfTI, NRRD or MetaImage is expected"):
        Extractor.of({}).features(tmp_path / "image.nrrd", mask)


@pytest.mark.parametrize("name", ["image.nii", "image.nii.gz", "image.nrrd"])
def test_a_file_with_a_voxel_that_is_no_number_is_refused(tmp_path, name):
    """SimpleITK reads a NaN in NIfTI as 0."""
    image, mask = drawn()
    values = sitk.GetArrayFromImage(image).astype(np.float32)
    values[6, 15, 13] = np.nan
    sitk.WriteImage(to_image(values, image.GetSpacing()[::-1]), tmp_path / name)
    with pytest.raises(RegionRefused, match="values that are not finite"):
        Extractor.of({"featureClass": {"firstorder": None}}).features(tmp_path / name, mask)


def test_a_filter_that_can_not_be_applied_is_told_in_words():
    _, mask = drawn()
    flat = to_image(np.zeros((13, 30, 27), np.float32), (4.0, 1.5, 1.25))
    with pytest.raises(RegionRefused, match="these parameters can't be applied to this image: "):
        Extractor.of({"imageType": {"Square": {}}, "featureClass": {"glcm": None}}).features(flat, mask)


def test_a_hair_between_the_grids_of_image_and_mask_changes_nothing():
    image, mask = drawn()
    extractor = Extractor.of({"featureClass": {"firstorder": None}, "setting": {"resegmentRange": [200, 700]}})
    wanted = extractor.features(image, mask)
    mask.SetOrigin((5e-4, 0, 0))  # single precision in a NIfTI header
    assert_same(extractor.features(image, mask), wanted)


def test_pyradiomics_judges_the_size_of_a_region_after_resampling():
    image, mask = drawn()
    parameters = {
        "featureClass": {"firstorder": ["Mean"]},
        "setting": {"resampledPixelSpacing": [0.6, 0.7, 1], "minimumROISize": 3000},
    }
    assert_same(Extractor.of(parameters).features(image, mask, [1]), own_loop(parameters, image, mask, (1,)))


def test_a_flat_region_has_pyradiomics_conventions_and_no_error():
    _, mask = drawn()
    flat = to_image(np.full((13, 30, 27), 100, np.float32), (4.0, 1.5, 1.25))
    found = Extractor.of({"featureClass": ALL}).features(flat, mask, [2])
    assert_same(found, own_loop({"featureClass": ALL}, flat, mask, (2,)))
    assert found[2]["original_firstorder_Variance"] == 0
    assert found[2]["original_glcm_Correlation"] == 1  # 0 / 0, set to 1


def test_a_feature_that_can_not_be_computed_is_not_a_number(monkeypatch):
    def fail(self):
        raise ZeroDivisionError

    monkeypatch.setattr("radiomics.ngtdm.RadiomicsNGTDM.getBusynessFeatureValue", fail)
    found = Extractor.of({"featureClass": {"ngtdm": None}}).features(*drawn())
    assert {name for name, value in found[1].items() if np.isnan(value)} == {"original_ngtdm_Busyness"}
