"""Small hospitals for tests: a few patients of 3 slices with a disc and a ring in them, in real cohorts on disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import SMALL_TASK

from conf.study import LocalTraining, Study
from fl_client.cohort import Cohort
from fl_client.site import Budget, Site
from tasks.case import Case, Volume

# Tests run side by side, and processes that they start beside each other: threads that share a core wait for one another most
# of the time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def _flushed(file: int) -> None:
    """In place of `os.fsync`: what it refuses is refused, and the disk is not waited for.

    No test pulls the plug. Those that ask when something is flushed put their own in this place; programs that tests start
    flush for real.
    """
    os.fstat(file)


os.fsync = _flushed  # type: ignore[assignment]  # a round of three small hospitals flushes a hundred times


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """First what shares the one rehearsal that costs most, so that one process has all of it; and what takes longest alone."""
    items.sort(key=lambda item: "tiny" not in getattr(item, "fixturenames", ()) and item.path.name != "test_end_to_end.py")


def small_case(patient: str, seed: int) -> Case:
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:32, :32]
    volumes = []
    for series in ("cine_ed", "cine_es"):
        radius = np.hypot(rows - 16 - rng.normal(), columns - 16 - rng.normal())
        mask = np.stack([np.where(radius < 5, 1, np.where(radius < 8, 2, 0)).astype(np.uint8)] * 3)
        image = 100 + 100.0 * (mask == 1) - 50.0 * (mask == 2) + 10 * rng.normal(size=mask.shape)
        volumes.append(Volume(series, image.astype(np.float32), np.diag([8.0, 3.0, 3.0, 1.0]), mask))
    return Case(patient, tuple(volumes))


class SmallHospitals:
    """Hospitals in a folder, each with its own `site.yaml`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sites: dict[str, Path] = {}

    def add(self, name: str, *, patients: int = 4, **settings: Any) -> Site:
        folder = self.folder / name
        number = len(self.sites)
        cohort = Cohort(folder / "cohort")
        for i in range(patients):
            cohort.admit(small_case(f"p{number}-{i}", 100 * number + i))
        fields = {"declared_size": 5, "approve_all": True, "noise_seed": number, "test_fraction": 0.0, "minimum_cohort": 1}
        site = Site(name=name, folder=folder, **{**fields, **settings})
        self.save(site)
        return site

    def save(self, site: Site) -> None:
        self.sites[site.name] = site.folder / "site.yaml"
        site.save(self.sites[site.name])

    def site(self, name: str) -> Site:
        return Site.load(self.sites[name])

    @property
    def nodes(self) -> list[dict[str, str]]:
        return [{"site": str(path)} for path in self.sites.values()]

    def study(self, **settings: Any) -> Study:
        fields = {
            "konsil_version": version("konsil"),
            "task": SMALL_TASK,
            "rounds": 2,
            "sites": tuple(self.sites),
            "training": LocalTraining(views=2),
        }
        return Study.model_validate({**fields, **settings})


@pytest.fixture
def hospitals(tmp_path: Path) -> SmallHospitals:
    """Three hospitals `a`, `b`, `c` of different declared sizes, willing and with a budget of epsilon 10."""
    small = SmallHospitals(tmp_path / "hospitals")
    for name, size in (("a", 5), ("b", 10), ("c", 25)):
        small.add(name, declared_size=size, budget=Budget(epsilon=10.0, delta=1e-3))
    return small


@pytest.fixture
def new_hospitals(tmp_path: Path) -> Callable[[str], SmallHospitals]:
    """Makes further sets of hospitals, each in a folder of its own."""
    return lambda name: SmallHospitals(tmp_path / name)


@pytest.fixture(scope="session")
def hospitals_in() -> Callable[[Path], SmallHospitals]:
    """Makes hospitals in a folder of one's own choice, for as long as it is there."""
    return SmallHospitals


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
