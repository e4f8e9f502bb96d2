import hashlib
import shutil
from pathlib import Path

import pytest
import torch

from simulation import pretraining, sources
from simulation.__main__ import settings_of
from simulation.arms import Arm
from simulation.machine import Immediately
from simulation.settings import Pretraining
from tasks.segmentation import settings as segmentation

TASK = {"name": "segmentation", "voxels": 16, "roi_mm": None, "channels": [4, 8], "strides": [2], "num_res_units": 0}


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A copy of the sources that stands in for them; `change` adds a line to one file, as another version would."""
    for package in ("conf", "tasks", "fl_client", "fl_server", "simulation"):
        shutil.copytree(sources.ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(sources, "ROOT", tmp_path)
    sources.digest.cache_clear()

    def change(name):
        with open(tmp_path / name, "a") as file:
            file.write("# another version\n")
        sources.digest.cache_clear()

    yield change
    sources.digest.cache_clear()


@pytest.fixture
def arm():
    """Makes the same arm again."""
    study = settings_of([]).study(seed=0, private=True, sites=("alster", "isar"), initial="0" * 64)
    return lambda: Arm("federation_private", study, {}, Path("nowhere"))


@pytest.mark.parametrize(
    "name",
    [
        *("tasks/task.py", "tasks/segmentation/loss.py", "tasks/segmentation/augment.py", "fl_client/privacy/clip.py"),
        *("fl_client/app.py", "fl_client/release.py", "fl_server/rounds.py"),
    ],
)
def test_an_arm_trained_by_other_code_is_another_arm(tree, arm, name):
    before = arm()
    assert arm().identity == before.identity
    tree(name)
    assert arm().identity != before.identity
    assert before.identity == before.identity  # what is planned keeps the code that it was planned with


def test_an_arm_does_not_depend_on_the_report_or_on_the_screen(tree, arm):
    before = arm().identity
    tree("simulation/screen.py")
    tree("simulation/report/study.py")
    assert arm().identity == before


def test_another_torch_makes_another_arm(tree, arm, monkeypatch):
    before = arm().identity
    monkeypatch.setattr(torch, "__version__", "0.0.1")
    sources.digest.cache_clear()
    assert arm().identity != before


@pytest.fixture
def trainings(tmp_path, monkeypatch):
    """Calls pre-training on no patients and counts how many trainings there have been."""
    monkeypatch.setattr(pretraining, "THREADS", 1)
    monkeypatch.setattr(pretraining, "_scanned_once", lambda *_, **__: None)
    cache = tmp_path / "cache"

    def call():
        settings = Pretraining(patients=1, steps=0)
        pretraining.pretrain(TASK, settings, ("cine_ed",), cache=cache, pool=Immediately(), advance=lambda *_: None)
        return len(list((cache / "pretrained").glob("*/model.pt")))

    return call


@pytest.mark.parametrize("name", ["tasks/segmentation/network.py", "tasks/segmentation/loss.py", "simulation/reader.py"])
def test_weights_pretrained_by_other_code_are_not_taken(tree, trainings, one_thread, name):
    assert [trainings(), trainings()] == [1, 1]
    tree(name)
    assert trainings() == 2


@pytest.mark.parametrize("name", ["simulation/brain.py", "tasks/radiomics/task.py", "tasks/secure/plan.py"])
def test_code_that_draws_other_families_or_learns_other_tasks_leaves_pretrained_weights(tree, trainings, one_thread, name):
    assert trainings() == 1
    tree(name)
    assert trainings() == 1


@pytest.mark.parametrize(
    ("series", "name"),
    [
        *(("t1", f"simulation/brain{part}.py") for part in ("", "_tissue", "_scan")),
        *(("ct", f"simulation/lung{part}.py") for part in ("", "_tree", "_tissue", "_scan")),
    ],
)
def test_another_family_s_patients_drawn_by_other_code_are_drawn_again(tree, series, name):
    def key():
        return pretraining._key((series,))

    before = key()
    tree("simulation/heart.py")
    assert key() == before
    tree(name)
    assert key() != before


def test_weights_pretrained_with_another_torch_are_not_taken(tree, trainings, one_thread, monkeypatch):
    assert trainings() == 1
    monkeypatch.setattr(torch, "__version__", "0.0.1")
    sources.digest.cache_clear()
    assert trainings() == 2


def test_arrays_prepared_by_other_code_are_prepared_again(tmp_path, monkeypatch):
    before = segmentation.Settings().hash
    for name in segmentation.PREPARED_BY:
        shutil.copy(Path(segmentation.__file__).with_name(name), tmp_path)
    with open(tmp_path / "look.py", "a") as file:
        file.write("# another version\n")
    monkeypatch.setattr(segmentation, "__file__", str(tmp_path / "settings.py"))
    segmentation._preparing.cache_clear()
    changed = segmentation.Settings().hash
    segmentation._preparing.cache_clear()
    monkeypatch.undo()
    assert changed != before
    assert segmentation.Settings().hash == before


def test_the_text_is_that_of_the_files_in_order():
    here = Path(sources.__file__).parent.parent
    folder = sorted((here / "fl_client" / "privacy").rglob("*.py"))
    expected = b"".join(path.read_bytes() for path in [here / "simulation" / "heart.py", *folder])
    assert sources.source_text("simulation/heart.py", "fl_client/privacy") == expected
    wanted = hashlib.sha256(torch.__version__.encode() + expected).hexdigest()
    assert wanted.startswith(sources.digest("simulation/heart.py", "fl_client/privacy"))
