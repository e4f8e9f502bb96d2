"""Hospitals whose patients are rows of a made-up table: two columns, one of which tells the label apart."""

from __future__ import annotations

from typing import Any

import numpy as np

from conf.study import Study
from fl_client.cohort import Cohort
from fl_client.site import Site
from tasks.case import Case

COLUMNS = [{"name": "marker", "lower": -4, "upper": 4}, {"name": "age", "lower": 20, "upper": 90}]
FOREST = {
    "name": "radiomics",
    "clinical": COLUMNS,
    "label": {"endpoint": "ill"},
    "learner": {"kind": "forest", "trees": 8, "depth": 2},
    "bins": 4,
}
PERCEPTRON = FOREST | {"learner": {"kind": "perceptron"}}


def row(patient: str, seed: int, **endpoints: Any) -> Case:
    """A patient of this seed: ill with odds that follow the marker."""
    rng = np.random.default_rng(seed)
    marker = float(rng.normal())
    facts = {"marker": marker, "age": float(rng.uniform(30, 80)), "ill": int(marker + rng.normal() / 2 > 0)}
    return Case(patient, (), {**facts, **endpoints})


def fill(site: Site, patients: int, *, first: int = 0) -> None:
    """Put patients into the site's cohort, beside those that are there."""
    cohort = Cohort(site.cohort_folder)
    for number in range(first, first + patients):
        cohort.admit(row(f"{site.name}-{number:03d}", 1000 * ord(site.name[0]) + number))


def counting_study(hospitals: Any, **settings: Any) -> Study:
    """A forest's study over these hospitals."""
    fields = {"task": FOREST, "rounds": 1, "strategy": {"name": "sum"}, "training": {}}
    return hospitals.study(**{**fields, **settings})
