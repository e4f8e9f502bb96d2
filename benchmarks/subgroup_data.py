"""Whom benchmarks/subgroup.py learns from and tests on: a hospital with a disease of our choice, and free patients.

The hospital has the scanner and the reader of `spree` (conf/hospitals/five_scanners.yaml), and its images are darkened
(`generator.darkened`), which no free patient's are. Free patients come from scanners of no hospital, with a reader of no
habits: what `python -m simulation.synthetic made/ --case-mix dcm=1` fills a folder with.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from generator import PATIENTS, darkened, drawing, taught
from intensity_scale import EPSILON, counting, released
from utility_data import people, simulation_of

from fl_client.cohort import Cohort
from simulation.hospital_case import patient_case
from simulation.scoring import restore
from simulation.settings import GeneratedHospital, GeneratedHospitals
from simulation.synthetic import FIRST_SEED, PROTOCOL, free_case
from tasks.case import Case
from tasks.intensity_scale.released import IntensityScale

HOSPITAL = "spree"
FIRST, BETWEEN, TESTED_FROM = 60_000_000, 10_000, 5_000
"""Seeds of the hospital's patients: FIRST and BETWEEN for each disease; test patients begin TESTED_FROM later."""
DISEASES = ("normal", "myocarditis", "infarct", "hcm", "dcm", "amyloid")
COMMON = {"normal": (14, 6), "myocarditis": (10, 4), "infarct": (8, 4)}
"""Training and test patients of each disease of which a hospital has enough."""
RARE = {"hcm": (3, 3), "dcm": (3, 3), "amyloid": (3, 3)}
"""The same of the others, where they are not the subgroup."""
FEW, ADDED, TESTED = 2, 20, 20
"""Of the subgroup: training patients that the hospital has, cases that are added to them, and test patients."""


def train_of(disease: str) -> tuple[list[str], list[str]]:
    """Pseudonyms of the hospital's training patients without the subgroup, and of the subgroup (the few it has come first)."""
    others = [name for one, (count, _) in (COMMON | RARE).items() if one != disease for name in _names(one, count)]
    return others, _names(disease, FEW + ADDED)


def test_of(disease: str) -> tuple[list[str], list[str]]:
    """The same of its test patients."""
    others = [name for one, (_, count) in (COMMON | RARE).items() if one != disease for name in _names(one, count, test=True)]
    return others, _names(disease, TESTED, test=True)


def hospital(cache: Path, disease: str) -> Cohort:
    """The hospital's cohort with all of these patients; who is missing is drawn. Images are as its scanner shows them."""
    cohort = Cohort(cache / "subgroup" / HOSPITAL)
    every, profile = _profile()
    wanted = [name for part in (*train_of(disease), *test_of(disease)) for name in part]
    for name in _missing(cohort, wanted):
        one = DISEASES[(int(name[1:]) - FIRST) // BETWEEN]
        case = patient_case(
            int(name[1:]),
            profile.scanner,
            profile.reader,
            {one: 1.0},
            every.series,
            oversampling=every.oversampling,
            subslices=every.subslices,
        )
        cohort.admit(darkened(case))
    return cohort


def free(cache: Path, mix: Mapping[str, float], count: int) -> list[Case]:
    """So many free patients with this case mix, as they are drawn; kept."""
    cohort = Cohort(cache / "subgroup" / f"free-{'-'.join(mix)}")
    names = [f"G{FIRST_SEED + number:08d}" for number in range(count)]
    for name in _missing(cohort, names):
        cohort.admit(free_case(int(name[1:]) - FIRST_SEED, _profile()[0].series, {}, mix))
    return [cohort.case(name) for name in names]


def matched(cache: Path, mix: Mapping[str, float], count: int, *, at: str = HOSPITAL, first: int = 0) -> list[Case]:
    """Free patients in the hospital's protocol, and in the intensities that six hospitals have released; kept."""
    return _in_protocol(cache, "matched", mix, range(first, first + count), at, lambda case: _scale(cache).worn_by(case))


def redrawn(cache: Path, mix: Mapping[str, float], count: int, *, at: str = HOSPITAL, first: int = 0) -> list[Case]:
    """Free patients in the hospital's protocol, as the generator draws them whose tone six hospitals have taught it; kept."""
    _, task = drawing("tone")
    model = restore(task, [taught(cache, "tone", epsilon=EPSILON, seed=0)])

    def drawn(case: Case) -> Case:
        return task.synthetic(model, case, np.random.default_rng([0, int(case.patient[1:])]))

    return _in_protocol(cache, "redrawn", mix, range(first, first + count), at, drawn)


def _in_protocol(
    cache: Path, kind: str, mix: Mapping[str, float], numbers: Sequence[int], at: str, changed: Callable[[Case], Case]
) -> list[Case]:
    cohort = Cohort(cache / "subgroup" / f"{kind}-{at}-{'-'.join(mix)}")
    names = [f"G{FIRST_SEED + number:08d}" for number in numbers]
    every, profile = _profile(at)
    protocol = profile.scanner.model_dump(include=set(PROTOCOL))
    for name in _missing(cohort, names):
        cohort.admit(changed(free_case(int(name[1:]) - FIRST_SEED, every.series, {}, mix, protocol)))
    return [cohort.case(name) for name in names]


def _scale(cache: Path) -> IntensityScale:
    """Of the six hospitals of benchmarks/utility.py, darkened, under epsilon 1; kept."""
    path = cache / "subgroup" / "scale.json"
    if not path.exists():
        everybody = people(cache, "hearts", drawn=PATIENTS, tested=8)
        training = {site: [darkened(one.cohort.case(name)) for name in one.train] for site, one in everybody.items()}
        path.write_text(released(counting(), training, EPSILON, 0).model_dump_json())
    return IntensityScale.model_validate_json(path.read_text())


def _names(disease: str, count: int, *, test: bool = False) -> list[str]:
    first = FIRST + BETWEEN * DISEASES.index(disease) + (TESTED_FROM if test else 0)
    return [f"G{first + number:08d}" for number in range(count)]


def _missing(cohort: Cohort, names: Sequence[str]) -> Iterator[str]:
    there = set(cohort.patients)
    missing = [name for name in names if name not in there]
    for done, name in enumerate(missing, 1):
        yield name
        print(f"patient {done} of {len(missing)}", file=sys.stderr, end="\r", flush=True)


def _profile(at: str = HOSPITAL) -> tuple[GeneratedHospitals, GeneratedHospital]:
    every = simulation_of("hearts").hospitals
    if not isinstance(every, GeneratedHospitals):
        raise TypeError("size=small has no generated hospitals any more; this benchmark is about those")
    return every, {**every.sites, **every.held_out}[at]
