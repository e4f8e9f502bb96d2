"""A patient as rows: where numbers come from, what is missing, what is refused in words."""

import math

import numpy as np
import pytest
import torch

from tasks.case import Case, Volume
from tasks.fingerprint import fingerprint
from tasks.radiomics.features import Extractor
from tasks.radiomics.harmonise import Moments, fit
from tasks.task import CountingTask, gradient_task, load, settled

FIRST_ORDER = {"imageType": {"Original": {}}, "featureClass": {"firstorder": ["Mean", "Variance"]}}
MEAN = {"name": "original_firstorder_Mean", "lower": 0, "upper": 200}
BALL = {
    "name": "radiomics",
    "image": {"series": "t1", "regions": "label", "label": 1, "parameters": FIRST_ORDER},
    "radiomic": [MEAN],
    "label": {"endpoint": "ill"},
    "learner": {"kind": "forest", "trees": 2, "depth": 1},
}
TABLE = {"name": "radiomics", "label": {"endpoint": "grade", "positive_from": 2}, "learner": BALL["learner"]}


def clinical(*names):
    return TABLE | {"clinical": [{"name": name, "lower": 0, "upper": 1} for name in names]}


def image(mask=True, value=None, **endpoints):
    """An image of 8 x 20 x 20 voxels with a box of label 1 in it."""
    values = np.random.default_rng(0).normal(100, 10, (8, 20, 20)).astype(np.float32)
    if value is not None:
        values[4, 10, 10] = value
    drawn = np.zeros(values.shape, np.uint8)
    drawn[2:6, 5:15, 5:15] = 1
    volume = Volume("t1", values, np.diag([4.0, 1.0, 1.0, 1.0]), drawn if mask is True else mask)
    return Case("p1", (volume,), {"ill": 1, **endpoints})


def one(settings, case):
    task = load(settings)
    return task.rows(task.prepare(case))


def test_a_label_is_one_region_whose_features_are_pyradiomics(tmp_path):
    rows = one(BALL, image())
    volume = image().volumes[0]
    assert rows.X.shape == (1, 1)
    assert rows.X[0, 0] == pytest.approx(float(volume.image[volume.mask == 1].mean()), rel=1e-6)
    assert (rows.y.tolist(), rows.region.tolist()) == ([1.0], [1])


def test_without_an_image_a_patient_is_one_row_of_clinical_columns():
    case = Case("p1", (), {"age": 0.25, "grade": 3, "kind": "b", "code": 4.0, "empty": None})
    names = ("age", "kind=b", "kind=c", "code=4", "empty", "empty=1", "empty?", "age?", "never?")
    rows = one(clinical(*names), case)
    assert rows.region.tolist() == [0]
    assert rows.y.tolist() == [1.0]
    np.testing.assert_equal(rows.X, [[0.25, 1, 0, 1, math.nan, math.nan, 1, 0, 1]])


@pytest.mark.parametrize(("grade", "y"), [(0, 0.0), (1, 0.0), (2, 1.0), (4.5, 1.0), ("3", 1.0)])
def test_a_label_is_positive_from_its_value_on(grade, y):
    assert one(clinical("age"), Case("p1", (), {"age": 0.5, "grade": grade})).y.tolist() == [y]


@pytest.mark.parametrize("grade", [None, math.nan, "unknown"])
def test_a_patient_without_any_label_is_refused_in_words(grade):
    with pytest.raises(ValueError, match="case p1 has no label: its endpoint grade is missing"):
        one(clinical("age"), Case("p1", (), {"age": 0.5, "grade": grade}))


def lonely():
    mask = np.zeros((8, 20, 20), np.uint8)
    mask[4, 10, 10] = 1
    return mask


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (image(mask=None), "case p1: nobody has drawn a mask on its t1"),
        (image(mask=np.zeros((8, 20, 20), np.uint8)), "case p1: its mask holds no region of more than one voxel"),
        (image(mask=lonely()), "case p1: its mask holds no region of more than one voxel"),
        (image(value=math.nan), "case p1: the image holds 1 values that are not finite"),
        (Case("p1", (), {"ill": 1}), "case p1 has no t1; it has no image"),
    ],
)
def test_what_gives_no_features_is_refused_in_words(case, words):
    with pytest.raises(ValueError, match=words):
        one(BALL, case)


def test_parameters_that_lack_a_column_are_refused_with_what_they_give():
    wrong = BALL | {"radiomic": [MEAN | {"name": "original_glcm_Contrast"}]}
    with pytest.raises(
        ValueError, match="the parameters give no feature original_glcm_Contrast; they give original_firstorder_Mean"
    ):
        one(wrong, image())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"radiomic": []}, "radiomic and clinical are both empty"),
        ({"image": None}, "radiomic columns need an image to come from"),
        ({"clinical": [MEAN]}, "columns stand twice: original_firstorder_Mean"),
        ({"radiomic": [{"name": "a", "lower": 1, "upper": 1}]}, "lower bound 1 is not below upper bound 1"),
        ({"radiomic": [{"name": "a", "lower": 1}]}, "radiomic.0.upper: Field required"),
        ({"learner": {"kind": "svm"}}, "does not match any of the expected tags: 'forest', 'perceptron'"),
        ({"learning_rate": 1}, "no such setting; there are image, radiomic, clinical"),
    ],
)
def test_wrong_settings_are_refused_in_words(changes, words):
    with pytest.raises(ValueError, match=words):
        load(BALL | changes)


@pytest.mark.parametrize(("use", "expected"), [("all", [1, 1, 1, 0]), ("exclude", [0, 1, 0, 0]), ("weight", [0.4, 1, 0, 0])])
def test_unsure_labels_count_as_the_study_says_and_missing_ones_never(use, expected):
    task = load(BALL | {"certainty": {"endpoint": "sure", "use": use, "least": 3, "most": 5}})
    rows = task.rows({"rows": np.array([[1, 2, 1, 50], [0, 5, 2, 50], [1, np.nan, 3, 50], [np.nan, 5, 4, 50]]), "scanner": b""})
    np.testing.assert_allclose(task.weights(rows), expected)


def test_classes_weigh_as_the_study_says_and_never_more_than_one():
    task = load(BALL | {"class_weights": [1.0, 4.0]})
    rows = task.rows({"rows": np.array([[1.0, 5, 1, 50], [0, 5, 2, 50]]), "scanner": b""})
    assert task.weights(rows).tolist() == [1.0, 0.25]


def test_the_study_names_the_hash_of_its_extraction_and_another_one_is_refused_in_words():
    study = settled(BALL)
    assert len(study["image"]["extraction"]) == 64
    assert settled(study) == study
    assert isinstance(load(study), CountingTask)
    finer = {**FIRST_ORDER, "setting": {"binWidth": 5}}
    assert settled({**BALL, "image": {**BALL["image"], "parameters": finer}}) != study
    with pytest.raises(ValueError, match=r"this installation \(pyradiomics-bhklab 3.1.4.*\) would compute those of"):
        load({**study, "image": {**study["image"], "parameters": finer}})


def test_the_order_in_which_parameters_are_written_changes_no_hash():
    turned = {"featureClass": FIRST_ORDER["featureClass"], "imageType": FIRST_ORDER["imageType"]}
    assert (
        settled({**BALL, "image": {**BALL["image"], "parameters": turned}})["image"]["extraction"]
        == (settled(BALL)["image"]["extraction"])
    )
    assert Extractor.of(turned).hash == Extractor.of(FIRST_ORDER).hash


def test_rows_are_harmonised_by_scanner_when_they_are_read_and_kept_as_they_were():
    features = load(BALL).settings.radiomic
    rng = np.random.default_rng(0)
    moments = {
        "A 1.5 T": Moments.of(rng.normal(90, 5, (50, 1)), features),
        "B 3 T": Moments.of(rng.normal(110, 5, (50, 1)), features),
    }
    harmonised = load(BALL | {"harmonisation": fit(moments).model_dump(mode="json")})
    plain = load(BALL)
    assert harmonised.hash == plain.hash
    arrays = plain.prepare(Case("p1", image().volumes, {"ill": 1}, {"manufacturer": "B", "field_strength_t": 3.0}))
    assert bytes(arrays["scanner"]).decode() == "B 3 T"
    raw, brought = plain.rows(arrays).X[0, 0], harmonised.rows(arrays).X[0, 0]
    assert raw == pytest.approx(100, abs=1)
    assert brought == pytest.approx(90, abs=2)  # B measures 10 more than the mean of both
    assert plain.rows(arrays).X[0, 0] == raw


SEGMENTER = {
    "name": "segmentation",
    "structures": {"ball": 1},
    "locate": [],
    "series": ["t1"],
    "channels": [4, 8],
    "strides": [2],
    "voxels": 32,
    "field_mm": 64,
    "roi_mm": None,
    "working_mm": 2,
}


def test_predicted_masks_come_from_the_model_that_the_study_names_by_its_fingerprint(tmp_path):
    torch.manual_seed(0)
    segmentation = gradient_task(SEGMENTER)
    model = segmentation.model().eval()
    state = model.state_dict()
    sha = fingerprint(state)
    settings = BALL | {"image": {**BALL["image"], "masks": {"task": SEGMENTER, "sha256": sha}}}
    with pytest.raises(ValueError, match=f"drawn by the model {sha[:12]}, which this site hasn't got yet"):
        load(settings, models=tmp_path)
    torch.save(state, tmp_path / f"{sha}.pt")
    task = load(settings, models=tmp_path)
    case = image(mask=None)
    mask = segmentation.segment(model, case)["t1"].mask
    assert (mask == 1).sum() > 1
    found = task.rows(task.prepare(case))
    assert found.X[0, 0] == pytest.approx(float(case.volumes[0].image[mask == 1].mean()), rel=1e-6)
    assert task.hash != load(BALL).hash
    torch.save({**state, next(iter(state)): torch.zeros(1)}, tmp_path / f"{sha}.pt")
    with pytest.raises(ValueError, match="holds other weights than its name says"):
        load(settings, models=tmp_path).prepare(case)
