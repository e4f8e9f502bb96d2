"""Patient-grouped folds: in each, every hospital trains on some of its patients and the others are held back.

A fold's hospital is a cohort of links, so that nothing is copied and what was extracted once serves every fold. Folds belong to
the researcher, who owns these patients; a real federation has one split, which the pseudonyms decide.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fl_client.cohort import Cohort
from simulation.hospital import Hospital, link_cohort
from tasks.radiomics.folds import grouped_folds


@dataclass(frozen=True)
class Fold:
    """One fold: hospitals that hold their training patients alone, and who is tested, by hospital."""

    number: int
    hospitals: Mapping[str, Hospital]
    tested: Mapping[str, tuple[str, ...]]

    def with_models(self, *models: Path) -> Fold:
        """The same fold, its hospitals having been given these models."""
        given = {name: replace(hospital, models=models) for name, hospital in self.hospitals.items()}
        return replace(self, hospitals=given)


def folds(
    hospitals: Mapping[str, Hospital], usable: Mapping[str, Mapping[str, int]], count: int, folder: Path, *, seed: int = 0
) -> list[Fold]:
    """`count` folds of the usable patients of each hospital (pseudonym -> class, which every fold gets its share of).

    Every patient is tested in exactly one fold and trains in all others. Raises `ValueError`, naming the hospital, where there
    are too few patients for so many folds.
    """
    if short := [f"{name} ({len(usable[name])})" for name in hospitals if len(usable[name]) < count]:
        raise ValueError(f"radiomics.folds is {count}, more than the usable patients of {', '.join(short)}")
    split: list[Fold] = [Fold(number, {}, {}) for number in range(count)]
    for name, hospital in hospitals.items():
        patients = np.array(sorted(usable[name]))
        labels = [usable[name][patient] for patient in patients.tolist()]
        try:
            pairs = grouped_folds(patients, labels, folds=count, seed=seed)
        except ValueError as error:
            raise ValueError(f"radiomics.folds is {count}, too many for {name}: {error}") from None
        for fold, (train, test) in zip(split, pairs, strict=True):
            place = folder / f"fold-{fold.number}" / name
            sites = {**fold.hospitals, name: _holding(hospital, patients[train].tolist(), place)}
            split[fold.number] = Fold(fold.number, sites, {**fold.tested, name: tuple(patients[test].tolist())})
    return split


def _holding(hospital: Hospital, patients: list[str], folder: Path) -> Hospital:
    """The hospital with these patients alone, all of whom train; what tasks prepare is shared with the whole hospital."""
    cohort = Cohort(hospital.cohort_folder)
    link_cohort(folder, [cohort.folder / "cases" / patient for patient in patients])
    prepared = cohort.folder / "prepared"
    prepared.mkdir(exist_ok=True)
    if not (folder / "prepared").exists():
        (folder / "prepared").symlink_to(prepared.resolve())
    return replace(hospital, cohort_folder=folder, test_fraction=0.0, cases_expected=len(patients))
