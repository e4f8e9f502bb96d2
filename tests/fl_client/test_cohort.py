"""What the cohort promises when a case arrives again and the process may die at any moment."""

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cohort_crash import NEW, OLD

from fl_client.cohort import CaseUnreadable, Cohort

SCRIPT = Path(__file__).with_name("cohort_crash.py")
ROOT = Path(__file__).parents[2]


class Doubling:
    """A task whose prepared array says which case it was made of."""

    hash = "doubling"

    def prepare(self, case):
        return {"twice": 2 * np.stack([volume.image for volume in case.volumes])}


def says(cohort):
    """Series and values of the one patient, after looking at every array."""
    (patient,) = cohort.patients
    case = cohort.case(patient)
    values = {int(value) for volume in case.volumes for value in np.unique(volume.image)}
    assert all((volume.mask == 1).all() for volume in case.volumes)
    return tuple(volume.series for volume in case.volumes), values, dict(case.endpoints)


BEFORE, AFTER = (("cine_ed", "lge"), {1}, {"event": 1}), (("cine_ed", "cine_es"), {2}, {"event": 2})


def test_wherever_a_replacement_is_killed_the_patient_is_there_whole_and_prepared_arrays_are_the_patients(tmp_path):
    before = Cohort(tmp_path / "before")
    before.admit(OLD)
    before.prepared(Doubling(), "P1")
    subprocess.run([sys.executable, SCRIPT, tmp_path], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    found = []
    for n in range(1, len(list(tmp_path.iterdir()))):
        cohort = Cohort(tmp_path / str(n))
        found.append(says(cohort))
        twice = cohort.prepared(Doubling(), "P1")["twice"]
        assert set(np.unique(twice)) == {2 * value for value in found[-1][1]}
        cohort.admit(NEW)
        assert says(cohort) == AFTER
        assert sorted(path.name for path in (cohort.folder / "cases").iterdir()) == ["P1"]  # nothing is left beside it
    assert len(found) > 15
    assert found == sorted(found, key=(BEFORE, AFTER).index)  # old until some step, new from then on
    assert (found[0], found[-1]) == (BEFORE, AFTER)


def test_prepared_arrays_of_an_earlier_state_are_never_served(tmp_path):
    cohort = Cohort(tmp_path)
    cohort.admit(OLD)
    assert set(np.unique(cohort.prepared(Doubling(), "P1")["twice"])) == {2}
    shutil.copytree(tmp_path / "prepared", tmp_path / "kept")
    cohort.admit(NEW)
    shutil.copytree(tmp_path / "kept", tmp_path / "prepared", dirs_exist_ok=True)
    assert set(np.unique(cohort.prepared(Doubling(), "P1")["twice"])) == {4}
    cohort.admit(OLD)
    assert not list((tmp_path / "prepared").rglob("*.npy"))


def test_a_replacement_that_fails_leaves_the_old_case(tmp_path, monkeypatch):
    cohort = Cohort(tmp_path)
    cohort.admit(OLD)
    real = os.rename

    def fail(source, target, **settings):
        if str(source).endswith(".part") and "cases" in str(target):
            raise OSError(28, "No space left on device")
        real(source, target, **settings)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(OSError, match="No space"):
        cohort.admit(NEW)
    assert says(cohort) == BEFORE


def test_arrays_that_cannot_be_prepared_are_an_error_and_leave_nothing(tmp_path, monkeypatch):
    cohort = Cohort(tmp_path)
    cohort.admit(OLD)
    monkeypatch.setattr(os, "rename", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        cohort.prepared(Doubling(), "P1")
    assert not list((tmp_path / "prepared").rglob("*.npy"))


def test_a_folder_that_cannot_be_read_hides_no_other_patient_and_its_pseudonym_can_be_admitted_again(tmp_path):
    cohort = Cohort(tmp_path)
    cohort.admit(OLD)
    shutil.copytree(tmp_path / "cases" / "P1", tmp_path / "cases" / "P0")
    (tmp_path / "cases" / "P0" / "case.json").unlink()
    damaged, sound = cohort.look()
    assert isinstance(damaged, CaseUnreadable)
    assert str(damaged) == f"{tmp_path / 'cases' / 'P0'} can't be read: case.json is missing"
    assert str(pickle.loads(pickle.dumps(damaged))) == str(damaged)  # it may come out of a worker process
    assert sound.patient == "P1"
    with pytest.raises(KeyError, match="no patient 'P2'"):
        cohort.case("P2")

    (tmp_path / "cases" / "P1" / "case.json").write_text("{")
    kept = {path.name: path.read_bytes() for path in (tmp_path / "cases" / "P1").iterdir()}
    assert cohort.put_aside == ()
    cohort.admit(NEW)
    assert set(np.unique(cohort.case("P1").volume("cine_es").image)) == {2}
    (aside,) = (tmp_path / "damaged").iterdir()
    assert aside.name.startswith("P1.")
    assert {path.name: path.read_bytes() for path in aside.iterdir()} == kept  # nothing of what was there is lost
    assert cohort.put_aside == (aside.name,)
