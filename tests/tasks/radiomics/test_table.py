import csv
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import SimpleITK as sitk

from tasks.radiomics.features import Extractor, RegionRefused, to_image
from tasks.radiomics.table import Kept, extract, write_csv

SPACING = (4.0, 1.5, 1.25)
MEAN = Extractor.of({"featureClass": {"firstorder": ["Mean", "Maximum"], "shape": ["VoxelVolume"]}})


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    regions = np.zeros((8, 16, 16), np.uint8)
    regions[2:5, 3:8, 3:8], regions[2:6, 9:14, 9:14] = 1, 4
    return to_image(rng.normal(100, 20, regions.shape).astype(np.float32), SPACING), to_image(regions, SPACING)


@pytest.fixture
def computed(monkeypatch):
    """How often features were computed."""
    calls = []
    features = Extractor.features

    def counted(self, *args):
        calls.append(args)
        return features(self, *args)

    monkeypatch.setattr(Extractor, "features", counted)
    return calls


def test_the_same_voxels_are_described_once_from_memory_or_from_files_of_any_kind(pair, computed, tmp_path):
    first = Kept(MEAN, tmp_path / "kept").features(*pair)
    for ending in ("mha", "nrrd"):
        files = tmp_path / f"image.{ending}", tmp_path / f"mask.{ending}"
        for image, file in zip(pair, files, strict=True):
            sitk.WriteImage(image, file)
        assert Kept(MEAN, tmp_path / "kept").features(*files) == first
    assert len(computed) == 1
    assert list(first) == [1, 4]
    assert list(first[1]) == ["original_shape_VoxelVolume", "original_firstorder_Mean", "original_firstorder_Maximum"]


def other_image(image, mask):
    values = sitk.GetArrayFromImage(image)
    values[0, 0, 0] += 1
    return to_image(values, SPACING), mask


def other_spacing(image, mask):
    return tuple(to_image(sitk.GetArrayFromImage(each), (4.0, 1.5, 1.3)) for each in (image, mask))


def other_regions(image, mask):
    regions = sitk.GetArrayFromImage(mask)
    regions[2, 3, 3] = 0
    return image, to_image(regions, SPACING)


@pytest.mark.parametrize("change", [other_image, other_spacing, other_regions])
def test_whatever_may_change_a_number_is_computed_again(pair, computed, tmp_path, change):
    kept = Kept(MEAN, tmp_path)
    kept.features(*pair)
    kept.features(*change(*pair))
    assert len(computed) == 2
    kept.features(*pair)
    assert len(computed) == 2


def test_other_parameters_and_other_regions_asked_for_are_other_results(pair, computed, tmp_path):
    Kept(MEAN, tmp_path).features(*pair)
    assert list(Kept(MEAN, tmp_path).features(*pair, labels=[4])) == [4]
    other = Extractor.of(
        {"featureClass": {"firstorder": ["Mean", "Maximum"], "shape": ["VoxelVolume"]}, "setting": {"binWidth": 5}}
    )
    Kept(other, tmp_path).features(*pair)
    assert len(computed) == 3


def test_a_damaged_result_is_computed_again(pair, computed, tmp_path):
    first = Kept(MEAN, tmp_path).features(*pair)
    (file,) = tmp_path.glob("*.json")
    file.write_text(file.read_text()[:-20])
    assert Kept(MEAN, tmp_path).features(*pair) == first
    assert len(computed) == 2
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_numbers_that_are_undefined_come_back_undefined(pair, monkeypatch, tmp_path):
    monkeypatch.setattr(Extractor, "features", lambda self, *args: {1: {"a": float("nan"), "b": 0.1 + 0.2}})
    for _ in range(2):
        found = Kept(MEAN, tmp_path).features(*pair)[1]
        assert np.isnan(found["a"])
        assert found["b"] == 0.1 + 0.2


def test_many_images_are_described_and_one_that_can_not_be_says_why(pair, tmp_path):
    image, mask = pair
    for name, each in {"a": image, "b": image, "mask": mask, "empty": mask * 0}.items():
        sitk.WriteImage(each, tmp_path / f"{name}.nrrd")
    pairs = {name: (tmp_path / f"{name}.nrrd", tmp_path / "mask.nrrd") for name in ("a", "b", "c")}
    pairs["d"] = tmp_path / "a.nrrd", tmp_path / "empty.nrrd"
    seen = []
    with ThreadPoolExecutor(2) as pool:
        found = dict(extract(pairs, MEAN, kept=tmp_path / "kept", pool=pool, advance=lambda *done: seen.append(done)))
    assert found["a"] == found["b"] == MEAN.features(image, mask)
    assert "there is no image" in found["c"]
    assert found["d"] == "the mask is empty: no voxel belongs to a region"
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_table_opens_anywhere_and_says_what_made_it(pair, tmp_path):
    features = MEAN.features(*pair)
    features[4]["original_firstorder_Mean"] = float("nan")
    write_csv([("case-1", label, values) for label, values in features.items()], tmp_path / "features.csv", about=MEAN)
    with open(tmp_path / "features.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["case"], row["region"]) for row in rows] == [("case-1", "1"), ("case-1", "4")]
    assert float(rows[0]["original_firstorder_Mean"]) == features[1]["original_firstorder_Mean"]
    assert rows[1]["original_firstorder_Mean"] == ""
    about = json.loads((tmp_path / "features.json").read_text())
    assert about["extraction"] == MEAN.hash
    assert "pyradiomics-bhklab 3.1.4" in about["engine"]
    assert about["parameters"]["feature"]["shape"] == ["VoxelVolume"]
    rows = [("a", 1, {"x": 1.0, "y": 2.0}), ("b", 1, {"y": 3.0}), ("c", 1, {"z": 4.0, "x": 5.0})]
    write_csv(rows, tmp_path / "uneven.csv", about=MEAN)  # by name, whatever order and number
    text = (tmp_path / "uneven.csv").read_text().split()
    assert text == ["case,region,x,y,z", "a,1,1.0,2.0,", "b,1,,3.0,", "c,1,5.0,,4.0"]
    write_csv([], tmp_path / "nobody.csv", about=MEAN)
    assert (tmp_path / "nobody.csv").read_text().startswith("case,region,original_shape_VoxelVolume,")


def test_a_refusal_is_not_kept(pair, tmp_path):
    with pytest.raises(RegionRefused):
        Kept(MEAN, tmp_path).features(*pair, labels=[9])
    assert not list(tmp_path.iterdir())
