"""A patient made by hand: three small volumes on one oblique grid, with masks that a check must pass."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from fl_client.cohort import Cohort
from fl_client.intake.admit import admit_folder
from fl_client.intake.door import Intake
from fl_client.intake.labels import LabelMap
from simulation.dicom import write_patient
from tasks.case import Case, Volume

KEY = b"a key of the hospital, 32 bytes."
DATA = Path(os.environ.get("KONSIL_DATA", Path(__file__).parents[3] / "../shared/data"))


def oblique_affine() -> np.ndarray:
    """Index (slice, row, column) → LPS mm, with 8.3 x 1.37 x 1.41 mm voxels, turned about all three axes."""
    a, b, c = 0.3, 0.5, -0.8
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    about_z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    across, down = (about_z @ about_y @ about_x)[:, :2].T
    affine = np.eye(4)
    affine[:3, :3] = np.stack([8.3 * np.cross(across, down), 1.37 * down, 1.41 * across], axis=1)
    affine[:3, 3] = -101.23456789, 33.1, 7.77
    return affine


def ring_mask(shape: tuple[int, int, int]) -> np.ndarray:
    """A cavity in its wall on all slices but the first and last, and a right ventricle on the patient's right of it."""
    rows, columns = np.mgrid[: shape[1], : shape[2]]
    radius = np.hypot(rows - 20, columns - 21)
    mask = np.zeros(shape, np.uint8)
    mask[1:-1] = np.where(radius < 8, 1, np.where(radius < 12, 2, 0))
    mask[1:-1, 18:22, 4:9] = 3
    return mask


def a_case(patient: str = "patient-1", *, seed: int = 0) -> Case:
    rng = np.random.default_rng(seed)
    shape = (6, 40, 44)
    mask = ring_mask(shape)
    volumes = (
        Volume("cine_ed", rng.integers(0, 3000, shape).astype(np.uint16), oblique_affine(), mask),
        Volume(
            "cine_es",
            rng.integers(0, 3000, shape).astype(np.uint16),
            oblique_affine(),
            np.where(mask == 3, 255, mask).astype(np.uint8),
        ),
        Volume("lge", rng.integers(-500, 500, shape).astype(np.int16), oblique_affine()),
    )
    endpoints = {"event": 1, "ef": 0.4321, "disease": "dcm", "sex": "F", "esv_ml": None}
    return Case(patient, volumes, endpoints, {"manufacturer": "Siemens", "field_strength_t": 1.5, "modality": "MR"})


@pytest.fixture
def case() -> Case:
    return a_case()


@pytest.fixture
def labels() -> LabelMap:
    return LabelMap.load("cardiac")


@pytest.fixture(scope="session")
def written_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    write_patient(a_case(), folder)
    return folder


@pytest.fixture
def archive(tmp_path: Path, written_once: Path) -> Path:
    """The patient as DICOM, in a copy that a test may spoil."""
    return Path(shutil.copytree(written_once, tmp_path / "archive"))


@pytest.fixture
def let_in(tmp_path: Path, labels: LabelMap) -> Callable[..., tuple[Intake, Cohort]]:
    """Admit a folder into a cohort (always the same) with the hospital's key."""

    def admit(folder: Path, **settings: Any) -> tuple[Intake, Cohort]:
        cohort = Cohort(tmp_path / "cohort")
        return admit_folder(folder, cohort, **{"key": KEY, "labels": labels, **settings}), cohort

    return admit


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """The folder of a disk of 2 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]).returncode:
        pytest.skip("a disk of 2 MB needs the right to mount one")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def edit() -> Callable[[Path, Callable[[pydicom.Dataset], object]], None]:
    """Change one DICOM file in place."""

    def change(path: Path, how: Callable[[pydicom.Dataset], object]) -> None:
        dataset = pydicom.dcmread(path)
        how(dataset)
        dataset.save_as(path)

    return change


@pytest.fixture
def snapshot() -> Callable[[Cohort], dict[str, bytes]]:
    """Every file of a cohort: its bytes by its path."""

    def read(cohort: Cohort) -> dict[str, bytes]:
        return {
            path.relative_to(cohort.folder).as_posix(): path.read_bytes()
            for path in sorted(cohort.folder.rglob("*"))
            if path.is_file()
        }

    return read


@pytest.fixture
def shared_data() -> Path:
    if not DATA.is_dir():
        pytest.skip(f"the shared data are not at {DATA}; set KONSIL_DATA")
    return DATA
