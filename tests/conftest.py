"""Small hospitals for tests: a few patients of 3 slices with a disc and a ring in them, in real cohorts on disk."""

from __future__ import annotations

import gc
import os
import re
import signal
from collections.abc import Callable, Iterator
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import SMALL_TASK
from xdist.scheduler import LoadFileScheduling

from conf.imports import import_monai_alone
from conf.study import LocalTraining, Study
from fl_client.cohort import Cohort
from fl_client.site import Budget, Site
from tasks.case import Case, Volume

# Tests run side by side, and processes that they start beside each other: threads that share a core wait for one another most
# of the time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
import_monai_alone()  # as in the programs: every process of the tests saves seconds and memory
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # so are background jobs of a shell, and all that they start
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests press Ctrl-C


def _flushed(file: int) -> None:
    """In place of `os.fsync`: what it refuses is refused, and the disk is not waited for.

    No test pulls the plug. Those that ask when something is flushed put their own in this place; programs that tests start
    flush for real.
    """
    os.fstat(file)


os.fsync = _flushed  # type: ignore[assignment]  # a round of three small hospitals flushes a hundred times


class OneProcessPerFile(LoadFileScheduling):
    """All tests of a file run in one process, which sets up once what they share; so do all that share the tiny rehearsal."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return "tiny" if file in self._sharing else file

    @cached_property
    def _sharing(self) -> set[str]:
        root: Path = self.config.rootpath
        files = (root / "tests" / "simulation").glob("test_*.py")
        return {str(path.relative_to(root)) for path in files if re.search(r"^def \w+\(.*\btiny\b", path.read_text(), re.M)}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> OneProcessPerFile | None:
    return OneProcessPerFile(config, log) if config.getvalue("dist") == "loadfile" else None


LONG = (
    *("test_federation.py", "test_end_to_end.py", "test_refused_over_the_network.py", "test_serve.py", "test_faults.py"),
    *("test_returning.py", "test_secure_rounds.py", "test_arrivals.py", "test_engines.py", "test_resuming.py"),
    *("test_pretraining.py", "test_judging.py", "test_page.py", "test_exports.py", "test_reference_study.py"),
)
"""Files of half a minute and more, the longest first: one that begins late leaves the other processes without work."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """First what takes longest: the files that share the tiny rehearsal, and those that are `LONG`."""
    tiny = {item.path for item in items if "tiny" in getattr(item, "fixturenames", ())}

    def place(item: pytest.Item) -> int:
        name = item.path.name
        return -1 if item.path in tiny else LONG.index(name) if name in LONG else len(LONG)

    items.sort(key=place)


gc.disable()  # what is imported by the end of the collection stays: a million objects that need not be looked through


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


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
