"""The forest of public trees: what one patient can move, that sites sum to the pooled forest, and that scikit-learn agrees."""

from __future__ import annotations

import math
import pickle
from itertools import pairwise

import numpy as np
import pytest
from pydantic import ValidationError
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split

from tasks.radiomics.forest import Feature, Settings, Structure

# scikit-learn says so whenever a model that knows its columns by name is given a bare array
pytestmark = pytest.mark.filterwarnings("ignore:X does not have valid feature names:UserWarning")

FEATURES = (
    Feature(name="mean", lower=-100, upper=300),
    Feature(name="volume", lower=0.1, upper=1000, scale="log"),
    Feature(name="entropy", lower=0, upper=8),
)


def settings(**others: object) -> Settings:
    return Settings.model_validate({"features": FEATURES, "classes": (0, 1), "trees": 20, "depth": 3} | others)


def patient(rng: np.random.Generator, rows: int, classes: int = 2) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    table = rng.normal([100, 30, 4], [100, 30, 2], (rows, 3))
    strange = np.array([np.nan, np.inf, -np.inf, 1e300, -1e300, 0.0, -0.0, 5e-324])
    where = rng.random(table.shape) < 0.2
    table[where] = rng.choice(strange, where.sum())
    return table, rng.integers(classes, size=rows), rng.random(rows)


@pytest.fixture(scope="module")
def cohort() -> tuple[Structure, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    table, labels, _ = patient(rng, 400)
    table[:, 0] += 150 * labels  # NaN and infinity stay what they are
    return Structure.draw(settings()), table, labels, rng.integers(60, size=400)


@pytest.mark.parametrize("classes", [(0, 1), ("both", "healthy", "oedema", "scar")])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.75, 0.99])
def test_no_patient_moves_the_total_by_more_than_one(classes: tuple[object, ...], share: float) -> None:
    structure = Structure.draw(settings(classes=classes, class_share=share))
    rng = np.random.default_rng(1)
    for rows in (1, 2, 3, 16, 17, 300, *rng.integers(1, 40, 40).tolist()):
        table, labels, weights = patient(rng, rows, len(classes))
        names = np.array(classes)[labels]
        for given in (None, weights, np.zeros(rows), rng.integers(2, size=rows)):
            steps = [int(entry * 2**30) for entry in structure.contribution(table, names, given)]
            assert sum(step * step for step in steps) <= 2**60  # in whole numbers: no rounding hides an excess


def test_neighbouring_data_sets_differ_by_at_most_one(
    cohort: tuple[Structure, np.ndarray, np.ndarray, np.ndarray],
) -> None:
    structure, table, labels, owner = cohort
    everybody = structure.total(table, labels, owner)
    for left_out in range(60):
        others = owner != left_out
        difference = everybody - structure.total(table[others], labels[others], owner[others])
        assert np.array_equal(difference, structure.contribution(table[~others], labels[~others]))
        assert np.linalg.norm(difference) <= 1


def test_one_certain_row_and_many_rows_use_the_whole_length() -> None:
    structure = Structure.draw(settings(trees=64))
    rng = np.random.default_rng(2)
    for rows in (1, 16, 1000):
        table, labels, _ = patient(rng, rows)
        assert np.linalg.norm(structure.contribution(table, labels)) == pytest.approx(1, abs=1e-3)
    assert np.linalg.norm(structure.contribution(table[:1], labels[:1], [0.25])) == pytest.approx(0.25, abs=1e-3)
    assert not structure.contribution(table[:0], labels[:0]).any()


def test_plain_counts_come_back_without_noise() -> None:
    structure = Structure.draw(settings(trees=1, depth=1, class_share=0.5, shrinkage=0))
    table = np.array([[-100, 0.1, 0.0]] * 4 + [[300, 1000, 8.0]] * 6)  # opposite corners of the box: parted by any split
    labels = [0, 0, 0, 1, 1, 1, 1, 1, 1, 0]
    found = structure.probabilities(structure.total(table, labels, range(10)), noise_std=0)
    # by hand, lambda 1, parent (4, 6) / 10: (3 + 0.4) / 5 and (1 + 0.4) / 7 of class 0
    assert found == pytest.approx(np.array([[[0.68, 0.32], [0.2, 0.8]]]), abs=1e-8)


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_the_class_share_changes_nothing_without_noise(share: float) -> None:
    rng = np.random.default_rng(3)
    table, labels, _ = patient(rng, 200, 3)
    found = []
    for value in (share, 0.75):
        structure = Structure.draw(settings(classes=("a", "b", "c"), class_share=value))
        total = structure.total(table, np.array(["a", "b", "c"])[labels], range(200))
        found.append(structure.probabilities(total, noise_std=0))
    assert found[0] == pytest.approx(found[1], abs=1e-6)


def test_sites_sum_to_the_pooled_forest_to_the_bit(cohort: tuple[Structure, np.ndarray, np.ndarray, np.ndarray]) -> None:
    structure, table, labels, owner = cohort
    pooled = structure.total(table, labels, owner)
    sites = [
        structure.total(table[owner % 5 == site], labels[owner % 5 == site], owner[owner % 5 == site]) for site in range(5)
    ]
    for order in ([0, 1, 2, 3, 4], [3, 1, 4, 0, 2]):
        total = np.sum([sites[site] for site in order], axis=0)
        assert total.tobytes() == pooled.tobytes()
    one, other = (structure.probabilities(counts, noise_std=0) for counts in (total, pooled))
    assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("noise_std", [0.0, 3.0])
def test_scikit_learn_predicts_the_same(cohort: tuple[Structure, np.ndarray, np.ndarray, np.ndarray], noise_std: float) -> None:
    structure, table, labels, owner = cohort
    total = (
        structure.total(table, labels, owner) + np.random.default_rng(0).normal(0, 1, math.prod(structure.shape)) * noise_std
    )
    forest = pickle.loads(pickle.dumps(structure.to_sklearn(total, noise_std=noise_std)))
    new = np.vstack([table, np.full((1, 3), np.nan), [[-1e30, 1e30, 4]], structure.threshold.ravel()[:60].reshape(-1, 3)])
    new = new[~(np.abs(new) > 1e38).any(axis=1)]  # scikit-learn refuses what is infinite in float32
    assert np.isnan(new).any()
    ours = structure.predict_proba(structure.probabilities(total, noise_std=noise_std), new)
    assert np.abs(forest.predict_proba(new) - ours).max() <= 1e-12
    assert np.abs(ours.sum(axis=1) - 1).max() <= 1e-12
    assert np.array_equal(forest.predict(new), ours.argmax(axis=1))
    assert np.array_equal([tree.apply(new.astype(np.float32)) for tree in forest.estimators_], forest.apply(new).T)
    assert forest.classes_.tolist() == [0, 1]
    assert forest.n_features_in_ == 3
    assert forest.feature_names_in_.tolist() == ["mean", "volume", "entropy"]
    assert forest.feature_importances_.sum() == pytest.approx(1)
    assert (forest.feature_importances_ >= 0).all()


def test_the_feature_that_tells_the_class_is_the_important_one() -> None:
    rng = np.random.default_rng(4)
    structure = Structure.draw(settings(classes=("ill", "well")))
    table = rng.uniform([-100, 0.1, 0], [300, 1000, 8], (500, 3))
    labels = np.where(table[:, 2] > 4, "ill", "well")
    forest = structure.to_sklearn(structure.total(table, labels, range(500)), noise_std=0)
    assert forest.feature_importances_.argmax() == 2
    assert forest.predict([[100, 10, 7.5], [100, 10, 0.5]]).tolist() == ["ill", "well"]


def test_more_noise_pulls_leaves_closer_to_the_root(cohort: tuple[Structure, np.ndarray, np.ndarray, np.ndarray]) -> None:
    structure, table, labels, owner = cohort
    total = structure.total(table, labels, owner)
    spread = [np.ptp(structure.probabilities(total, noise_std=level)[..., 1]) for level in (0, 0.1, 1, 10)]
    assert all(more > less for more, less in pairwise(spread))


def test_trees_are_the_same_wherever_they_are_drawn() -> None:
    # written down on Linux x86-64, numpy 2.4: a site where this differs can't be summed with the others
    assert Structure.draw(settings()).digest == "a804226d56349dce88ab4876d760905ace30c9ba6f18a499a02903e155f2dbfa"
    assert Structure.draw(settings()).digest == Structure.draw(settings()).digest
    assert Structure.draw(settings(seed=1)).digest != Structure.draw(settings()).digest
    assert Settings.model_validate_json(settings().model_dump_json()) == settings()


def test_every_feature_is_dealt_before_any_comes_twice() -> None:
    used = Structure.draw(settings()).feature.ravel()
    assert all(sorted(hand) == [0, 1, 2] for hand in used[: len(used) // 3 * 3].reshape(-1, 3).tolist())


def test_split_points_are_uniform_on_the_scale_and_within_the_middle() -> None:
    structure = Structure.draw(settings(trees=2000, depth=1, central=0.5))
    for number, (low, high) in enumerate([(0, 200), (0.1 * 10, 100), (2, 6)]):  # the middle half: 4 decades are 0.1 to 1000
        values = structure.threshold[structure.feature == number]
        place = np.log10(values) / 2 if number == 1 else (values - low) / (high - low)
        assert place.min() >= -1e-6
        assert place.max() <= 1 + 1e-6
        assert np.quantile(place, [0.25, 0.5, 0.75]) == pytest.approx([0.25, 0.5, 0.75], abs=0.06)


def test_values_beyond_the_bounds_fall_where_the_bound_falls() -> None:
    structure = Structure.draw(settings())
    bounds = np.array([[-100, 0.1, 0], [300, 1000, 8], [100, 10, 4]])
    beyond = np.array([[-np.inf, -5, -1e300], [np.inf, 1e300, 9], [np.nan] * 3])  # missing: the middle, 10 on the log scale
    assert np.array_equal(structure.leaves(bounds), structure.leaves(beyond))


def test_errors_say_what_would_be_right() -> None:
    structure = Structure.draw(settings())
    row, full = [[1.0, 2.0, 3.0]], np.zeros(math.prod(structure.shape))
    with pytest.raises(ValueError, match=r"no public bounds for kurtosis; there are bounds for mean, volume, entropy"):
        Settings.for_columns(["mean", "kurtosis"], FEATURES, classes=(0, 1))
    with pytest.raises(ValidationError, match="feature 'mean': lower bound 3 is not below upper bound 3"):
        Feature(name="mean", lower=3, upper=3)
    with pytest.raises(ValidationError, match="feature 'mean': a log scale needs a lower bound above 0, not 0"):
        Feature(name="mean", lower=0, upper=3, scale="log")
    with pytest.raises(ValidationError, match="bounds given twice for mean"):
        settings(features=(FEATURES[0], FEATURES[0]))
    with pytest.raises(ValidationError, match="two or more, different and in ascending order, not \\[1, 0\\]"):
        settings(classes=(1, 0))
    with pytest.raises(ValueError, match=r"a table of 3 columns is needed .* not one of shape \(1, 2\)"):
        structure.leaves([[1.0, 2.0]])
    with pytest.raises(ValueError, match="no class 2; the classes are 0, 1"):
        structure.contribution(row, [2])
    with pytest.raises(ValueError, match="one label per row"):
        structure.contribution(row, [0, 1])
    with pytest.raises(ValueError, match="one patient per row"):
        structure.total(row, [0], [1, 2])
    for weight in (-0.1, 1.1, np.nan):
        with pytest.raises(ValueError, match="weights must be one number from 0 to 1 per row"):
            structure.contribution(row, [0], [weight])
    with pytest.raises(ValueError, match="no patient of any site is of class 1"):
        structure.probabilities(structure.contribution(row, [0]), noise_std=0)
    with pytest.raises(ValueError, match=r"320 finite numbers, not an array of shape \(3,\)"):
        structure.probabilities([1, 2, 3], noise_std=1)
    with pytest.raises(ValueError, match="noise_std must be 0 or a positive number, not -1"):
        structure.probabilities(full, noise_std=-1)


def test_a_class_that_noise_hides_still_gives_probabilities() -> None:
    structure = Structure.draw(settings())
    total = np.random.default_rng(0).normal(0, 5, math.prod(structure.shape))
    found = structure.probabilities(total, noise_std=5)
    assert np.isfinite(found).all()
    assert (found >= 0).all()


def test_breast_cancer_is_ranked_without_noise_as_well_as_by_trees_that_look_at_the_data() -> None:
    data = load_breast_cancer()
    # one wide range for every column, two decades about a power of ten that its unit suggests
    powers = [
        1,
        1,
        2,
        3,
        -1,
        -1,
        -1,
        -1.5,
        -1,
        -1,
        -0.5,
        0,
        0.5,
        1.5,
        -2,
        -1.5,
        -1.5,
        -2,
        -1.5,
        -2.5,
        1,
        1,
        2,
        3,
        -1,
        -0.5,
        -0.5,
        -1,
        -0.5,
        -1,
    ]
    bounds = tuple(
        Feature(name=str(name), lower=10 ** (power - 1), upper=10 ** (power + 1), scale="log")
        for name, power in zip(data.feature_names, powers, strict=True)
    )
    structure = Structure.draw(Settings(features=bounds, classes=(0, 1)))
    train, test, labels, truth = train_test_split(data.data, data.target, random_state=0, stratify=data.target)
    forest = structure.to_sklearn(structure.total(train, labels, range(len(train))), noise_std=0)
    assert roc_auc_score(truth, forest.predict_proba(test)[:, 1]) > 0.97
