"""ComBat: the published numbers, from sums that hospitals add up; what one patient can move; and that disease stays."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from conf.study import Study
from tasks.radiomics.forest import Feature
from tasks.radiomics.harmonise import Harmonisation, Moments, contribution, fit, moments_of, scanner_name, scanner_share

REFERENCE = Path(__file__).with_name("combat_reference.csv")
COLUMNS = tuple(Feature(name=f"x{i}", lower=-200, upper=250) for i in range(1, 7))
AGE = Feature(name="age", lower=0, upper=120)
SCANNERS = ("GE 1.5 T", "PHILIPS 3 T", "SIEMENS 1.5 T", "SIEMENS 3 T")


class Published:
    def __init__(self) -> None:
        with open(REFERENCE, newline="") as file:
            rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
        self.scanner = np.array([row["scanner"] for row in rows])
        self.age = np.array([[float(row["age"])] for row in rows])
        self.X = np.array([[float(row[column.name]) for column in COLUMNS] for row in rows])
        self._rows = rows

    def harmonised(self, kind: str) -> np.ndarray:
        return np.array([[float(row[f"{kind}_{column.name}"]) for column in COLUMNS] for row in self._rows])


@pytest.fixture(scope="module")
def published() -> Published:
    return Published()


def by_scanner(X: np.ndarray, scanner: np.ndarray, features: tuple[Feature, ...] = COLUMNS) -> dict[str, Moments]:
    return {name: Moments.of(X[scanner == name], features) for name in np.unique(scanner).tolist()}


def applied(found: Harmonisation, X: np.ndarray, scanner: np.ndarray, Z: np.ndarray | None = None) -> np.ndarray:
    result = np.empty(X.shape)
    for name in np.unique(scanner).tolist():
        here = scanner == name
        result[here] = found.apply(X[here], name, Z=None if Z is None else Z[here])
    return result


def test_the_numbers_are_the_published_ones(published: Published) -> None:
    found = applied(fit(by_scanner(published.X, published.scanner)), published.X, published.scanner)
    assert found == pytest.approx(published.harmonised("plain_settled"), abs=1e-6)
    assert found == pytest.approx(published.harmonised("plain_published"), abs=1e-4)  # which stops before it is settled


def test_the_numbers_with_a_covariate_are_the_published_ones(published: Published) -> None:
    moments = {
        name: Moments.of(published.X[here], COLUMNS, Z=published.age[here], covariates=(AGE,))
        for name in SCANNERS
        for here in [published.scanner == name]
    }
    found = applied(fit(moments), published.X, published.scanner, published.age)
    assert found == pytest.approx(published.harmonised("age_settled"), abs=1e-6)
    assert found == pytest.approx(published.harmonised("age_published"), abs=1e-4)


def test_without_empirical_bayes_each_column_stands_for_itself(published: Published) -> None:
    moments = by_scanner(published.X, published.scanner)
    found = applied(fit(moments, empirical_bayes=False), published.X, published.scanner)
    assert found == pytest.approx(published.harmonised("plain_own"), abs=1e-6)
    alone = {name: Moments.of(published.X[published.scanner == name][:, :1], COLUMNS[:1]) for name in SCANNERS}
    only = applied(fit(alone), published.X[:, :1], published.scanner)  # one column has no others to draw it
    assert only == pytest.approx(published.harmonised("plain_own")[:, :1], abs=1e-6)


def test_hospitals_that_add_up_find_what_pooled_rows_find(published: Published) -> None:
    X = published.X.copy()
    X[::7, 2] = np.nan
    hospital = np.arange(len(X)) % 3
    pooled = fit(by_scanner(X, published.scanner))
    summed = {}
    for name in SCANNERS:
        parts = [Moments.of(X[(published.scanner == name) & (hospital == which)], COLUMNS) for which in (2, 0, 1)]
        summed[name] = parts[0] + parts[1] + parts[2]
    federated = fit(summed)
    for name in SCANNERS:
        for column, (shift, scale) in pooled.scanners[name].items():
            assert federated.scanners[name][column] == pytest.approx((shift, scale), abs=1e-12)
    assert applied(federated, X, published.scanner) == pytest.approx(
        applied(pooled, X, published.scanner), abs=1e-9, nan_ok=True
    )


def test_a_missing_value_stays_missing_and_tells_nothing_of_its_column(published: Published) -> None:
    X = published.X.copy()
    X[3, 1] = np.nan
    found = fit(by_scanner(X, published.scanner), empirical_bayes=False)
    others = np.arange(len(X)) != 3
    without = fit(by_scanner(X[others], published.scanner[others]), empirical_bayes=False)
    assert {name: columns["x2"] for name, columns in found.scanners.items()} == {
        name: columns["x2"] for name, columns in without.scanners.items()
    }
    after = applied(found, X, published.scanner)
    assert np.array_equal(np.isnan(after), np.isnan(X))


def test_it_travels_in_a_study_and_comes_back_the_same(published: Published) -> None:
    found = fit(by_scanner(published.X, published.scanner))
    task = {"name": "radiomics", "harmonisation": found.model_dump(mode="json")}
    study = Study.from_json(Study(konsil_version="0.1.0", task=task, rounds=1, sites=("north",)).to_json())
    assert Harmonisation.model_validate_json(found.model_dump_json(), strict=True) == found
    assert Harmonisation.model_validate(study.task["harmonisation"]) == found


def test_a_scanner_that_nobody_calibrated_is_refused_or_left_as_it_is(published: Published) -> None:
    found = fit(by_scanner(published.X, published.scanner))
    with pytest.raises(ValueError, match=r"nobody calibrated the scanner 'CANON 3 T'; there are shifts for GE 1.5 T, PHILIPS"):
        found.apply(published.X, "CANON 3 T")
    assert np.array_equal(found.apply(published.X, "CANON 3 T", unknown="keep"), published.X)


def test_columns_that_cannot_be_harmonised_stay_as_they_are(published: Published) -> None:
    X = published.X.copy()
    X[:, 0] = 7.3  # constant
    X[published.scanner != "GE 1.5 T", 1] = np.nan  # on one scanner only
    X[np.flatnonzero(published.scanner == "GE 1.5 T")[1:], 2] = np.nan  # once on this scanner
    found = fit(by_scanner(X, published.scanner))
    assert set(found.references) == {"x3", "x4", "x5", "x6"}
    assert "x3" not in found.scanners["GE 1.5 T"]
    assert "x3" in found.scanners["PHILIPS 3 T"]
    after = applied(found, X, published.scanner)
    assert np.array_equal(after[:, :2], X[:, :2], equal_nan=True)


def test_a_log_column_is_harmonised_on_its_scale() -> None:
    rng = np.random.default_rng(4)
    scanner = np.repeat(["a", "b"], 60)
    linear = rng.normal(2, 0.4, (120, 2)) + np.where(scanner == "b", 0.8, 0)[:, None]
    as_log = (Feature(name="u", lower=1, upper=1000, scale="log"), Feature(name="v", lower=1, upper=1000, scale="log"))
    as_linear = tuple(Feature(name=feature.name, lower=0, upper=float(np.log(1000))) for feature in as_log)
    after = applied(fit(by_scanner(np.exp(linear), scanner, as_log)), np.exp(linear), scanner)
    expected = applied(fit(by_scanner(linear, scanner, as_linear)), linear, scanner)
    assert np.log(after) == pytest.approx(expected, abs=1e-6)  # bounds are not the same to the last bit


def test_what_cannot_be_fitted_is_refused_in_words(published: Published) -> None:
    moments = by_scanner(published.X, published.scanner)
    with pytest.raises(ValueError, match="two or more are needed"):
        fit({"GE 1.5 T": moments["GE 1.5 T"]})
    wider = Moments.of(published.X, tuple(Feature(name=f"x{i}", lower=-500, upper=500) for i in range(1, 7)))
    with pytest.raises(ValueError, match="of PHILIPS 3 T are of other columns"):
        fit({**moments, "PHILIPS 3 T": wider})
    with pytest.raises(ValueError, match="can't be added"):
        moments["GE 1.5 T"] + wider
    disease = np.isin(published.scanner, SCANNERS[:2]).astype(float)[:, None]  # all ill on two scanners, none on others
    sick = Feature(name="disease", lower=0, upper=1)
    parts = {
        name: Moments.of(published.X[here], COLUMNS, Z=disease[here], covariates=(sick,))
        for name in SCANNERS
        for here in [published.scanner == name]
    }
    with pytest.raises(ValueError, match="what disease does to x1 can't be told from the scanners"):
        fit(parts)
    with pytest.raises(ValueError, match="a table of 6 columns"):
        Moments.of(published.X[:, :5], COLUMNS)
    with pytest.raises(ValidationError, match="without bounds or a reference for it"):
        Harmonisation(features=COLUMNS, references={}, scanners={"a": {"x1": (0.0, 1.0)}})


def simulated(rng: np.random.Generator, patients: int, sick_share: dict[str, float]) -> tuple[np.ndarray, ...]:
    """Columns with scanner effects; the first three also rise by one standard deviation with disease."""
    effect = np.random.default_rng(77)  # the scanners' own, whatever the patients
    shift, spread = effect.normal(0, 1.2, (4, 8)), np.exp(effect.normal(0, 0.3, (4, 8)))
    scanner, sick, X = [], [], []
    for index, name in enumerate(SCANNERS):
        ill = rng.random(patients) < sick_share[name]
        truth = rng.standard_normal((patients, 8)) + ill[:, None] * np.array([1.0] * 3 + [0.0] * 5)
        X.append(20 * (truth * spread[index] + shift[index]))
        scanner += [name] * patients
        sick.append(ill)
    return np.concatenate(X), np.array(scanner), np.concatenate(sick)


WIDE = tuple(Feature(name=f"f{i}", lower=-160, upper=160) for i in range(8))
EQUAL = dict.fromkeys(SCANNERS, 0.4)


def effect_of_disease(X: np.ndarray, sick: np.ndarray) -> np.ndarray:
    return (X[sick].mean(axis=0) - X[~sick].mean(axis=0)) / X[~sick].std(axis=0)


def test_scanners_explain_little_afterwards_and_disease_stays() -> None:
    X, scanner, sick = simulated(np.random.default_rng(1), 80, EQUAL)
    after = applied(fit(by_scanner(X, scanner, WIDE)), X, scanner)
    assert scanner_share(X, scanner).mean() > 0.3
    assert scanner_share(after, scanner).max() < 0.05
    found = effect_of_disease(after, sick)
    assert found[:3] == pytest.approx([1, 1, 1], abs=0.3)
    assert found[3:] == pytest.approx(np.zeros(5), abs=0.3)
    assert (np.abs(effect_of_disease(X, sick)[:3]) < 0.8).any()  # hidden before


def test_calibration_scans_keep_a_disease_that_hospitals_do_not_share_evenly() -> None:
    rng = np.random.default_rng(2)
    truth = rng.standard_normal((60, 8))  # the same sixty generated people on each scanner
    effect = np.random.default_rng(77)
    shift, spread = effect.normal(0, 1.2, (4, 8)), np.exp(effect.normal(0, 0.3, (4, 8)))
    phantom = {name: Moments.of(20 * (truth * spread[i] + shift[i]), WIDE) for i, name in enumerate(SCANNERS)}
    uneven = dict(zip(SCANNERS, (0.05, 0.2, 0.8, 0.95), strict=True))
    X, scanner, sick = simulated(rng, 80, uneven)
    calibrated = effect_of_disease(applied(fit(phantom), X, scanner), sick)
    own = effect_of_disease(applied(fit(by_scanner(X, scanner, WIDE)), X, scanner), sick)
    assert calibrated[:3] == pytest.approx([1, 1, 1], abs=0.3)
    assert (own[:3] < 0.7).all()  # shifts from the patients themselves take the disease for the scanner


def test_share_of_scanners_is_one_when_they_tell_all_and_not_a_number_for_a_constant() -> None:
    X = np.array([[1.0, 1.0, 5.0], [1.0, 3.0, 5.0], [4.0, 2.0, 5.0], [4.0, np.nan, 5.0]])
    # by hand for the middle one: mean 2, between (2 * 0 + 1 * 0) = 0
    assert scanner_share(X, ["a", "a", "b", "b"]) == pytest.approx([1, 0, np.nan], nan_ok=True)
    with pytest.raises(ValueError, match="one scanner per row"):
        scanner_share(X, ["a", "b"])


def strange_rows(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    table = rng.normal(0, 200, (rows, columns))
    strange = np.array([np.nan, np.inf, -np.inf, 1e300, -1e300, 0.0, -0.0, 5e-324, 160, -160])
    where = rng.random(table.shape) < rng.choice([0, 0.3, 1])
    table[where] = rng.choice(strange, where.sum())
    return table


@pytest.mark.parametrize("columns", [1, 2, 8, 100])
def test_no_patient_moves_the_sums_by_more_than_one(columns: int) -> None:
    rng = np.random.default_rng(columns)
    features = tuple(
        Feature(name=f"f{i}", lower=1e-3 if i % 2 else -160, upper=160, scale="log" if i % 2 else "linear")
        for i in range(columns)
    )
    worst = np.full((16, columns), 1e9)  # every value at its bound
    for table in (worst, -worst, *(strange_rows(rng, rows, columns) for rows in (0, 1, 2, 16, 17, 300) * 4)):
        steps = [entry * 2**30 for entry in contribution(table, features)]
        assert all(step == int(step) for step in steps)
        assert sum(int(step) ** 2 for step in steps) <= 2**60  # in whole numbers: no rounding hides an excess


def test_a_site_with_one_patient_less_has_sums_at_most_one_away() -> None:
    rng = np.random.default_rng(8)
    patients = [strange_rows(rng, int(rows), 8) for rows in rng.integers(0, 20, 30)]
    scanner = rng.integers(2, size=30)  # the site has two; what it releases is both their sums

    def release(leave_out: int | None) -> np.ndarray:
        sums = np.zeros((2, 24))
        for index, rows in enumerate(patients):
            if index != leave_out:
                sums[scanner[index]] += contribution(rows, WIDE)
        return sums.ravel()

    everybody = release(None)
    assert all(np.linalg.norm(everybody - release(index)) <= 1 for index in range(30))


def test_many_rows_weigh_no_more_than_one() -> None:
    row = np.array([[10.0, -40, 0, 3, 80, 5, np.nan, 7]])
    assert contribution(np.repeat(row, 17, axis=0), WIDE) == pytest.approx(contribution(row, WIDE), abs=1e-8)


def test_without_noise_the_bounded_sums_say_what_the_rows_say() -> None:
    X, scanner, _ = simulated(np.random.default_rng(3), 60, EQUAL)
    X = np.clip(X, -70, 70)  # inside half of the bounds nobody is shortened
    X[::11, 4] = np.nan
    exact = by_scanner(X, scanner, WIDE)
    for name, moments in exact.items():
        total = np.sum([contribution(row[None], WIDE) for row in X[scanner == name]], axis=0)
        assert moments_of(total, WIDE, noise_std=0).gram == pytest.approx(moments.gram, abs=1e-3)


def totals_of(X: np.ndarray, scanner: np.ndarray) -> dict[str, np.ndarray]:
    return {name: np.sum([contribution(row[None], WIDE) for row in X[scanner == name]], axis=0) for name in SCANNERS}


def noisy_moments(rng: np.random.Generator, totals: dict[str, np.ndarray], noise_std: float) -> dict[str, Moments]:
    return {
        name: moments_of(total + rng.normal(0, noise_std, total.shape), WIDE, noise_std=noise_std)
        for name, total in totals.items()
    }


def test_noise_takes_something_and_not_everything() -> None:
    rng = np.random.default_rng(6)
    X, scanner, sick = simulated(rng, 150, EQUAL)
    totals, before, shares, blind, effects = totals_of(X, scanner), scanner_share(X, scanner).mean(), [], [], []
    for _ in range(10):
        noisy = noisy_moments(rng, totals, 3)
        after = applied(fit(noisy), X, scanner)
        shares.append(scanner_share(after, scanner).mean())
        effects.append(effect_of_disease(after, sick))
        unaware = fit({name: replace(moments, noise_std=0) for name, moments in noisy.items()})
        blind.append(scanner_share(applied(unaware, X, scanner), scanner).mean())
    assert np.mean(shares) < before / 4
    assert np.mean(shares) < 0.9 * np.mean(blind)  # it helps to know how much noise there is
    assert np.mean(effects, axis=0)[:3] == pytest.approx([1, 1, 1], abs=0.35)


def test_where_scanners_are_alike_noise_makes_little_difference_between_them() -> None:
    rng = np.random.default_rng(10)
    X, scanner = rng.normal(0, 30, (600, 8)), np.repeat(SCANNERS, 150)
    totals, moved, blind = totals_of(X, scanner), [], []
    for _ in range(10):
        noisy = noisy_moments(rng, totals, 3)
        moved.append(np.abs(applied(fit(noisy), X, scanner) - X).mean())
        unaware = fit({name: replace(moments, noise_std=0) for name, moments in noisy.items()})
        blind.append(np.abs(applied(unaware, X, scanner) - X).mean())
    assert np.mean(moved) < 0.6 * np.mean(blind)


def test_nothing_but_noise_changes_nothing() -> None:
    rng = np.random.default_rng(9)
    X, scanner, _ = simulated(rng, 40, EQUAL)
    noisy = {name: moments_of(rng.normal(0, 50, 24), WIDE, noise_std=50) for name in SCANNERS}
    found = fit(noisy)
    after = applied(found, X, scanner)
    assert np.abs(after - X).max() < 0.5 * X.std()


def test_a_noisy_total_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="24 finite numbers"):
        moments_of(np.zeros(23), WIDE, noise_std=1)
    with pytest.raises(ValueError, match="noise_std must be 0 or a positive number"):
        moments_of(np.zeros(24), WIDE, noise_std=-1)


def test_a_scanner_is_named_by_maker_and_field() -> None:
    assert scanner_name({"manufacturer": "SIEMENS", "field_strength_t": 1.5, "model": "Avanto"}) == "SIEMENS 1.5 T"
    assert scanner_name({"manufacturer": "PHILIPS", "field_strength_t": 3.0}) == "PHILIPS 3 T"
