"""The catalog equals the cohort whatever happened in between, and forgets whom it is told to forget."""

import json
import sqlite3
import subprocess
import sys

import numpy as np
import pytest

from fl_client.catalog import Catalog, endpoints, patients, quality, refusals, volumes
from fl_client.cohort import Cohort, is_test
from fl_client.quality.records import record
from tasks.case import Case, Volume

NOISE = np.random.default_rng(0).normal(100, 10, (3, 32, 32)).astype(np.float32)
DRAWN = tuple(
    Volume(series, NOISE, np.diag([8.0, 3.0, 3.0, 1.0]), (NOISE > 100).astype(np.uint8)) for series in ("cine_ed", "cine_es")
)
LGE = Volume("lge", np.zeros((2, 4, 5), np.int16), np.diag([8.0, 1.5, 1.25, 1.0]))


@pytest.fixture
def cohort(tmp_path):
    inside = Cohort(tmp_path / "cohort")
    inside.admit(Case("p1", (LGE,), {"age": 61, "sex": "F", "ef": None}, {"manufacturer": "GE", "field_strength_t": 1.5}))
    inside.admit(Case("p2", DRAWN))
    inside.admit(Case("p3", (), {"age": 40.5}))
    inside.refuse("p9", "its slices are uneven")
    return inside


@pytest.fixture
def catalog(tmp_path, cohort):
    made = Catalog(tmp_path / "catalog.sqlite")
    made.refresh(cohort, test_fraction=0.5)
    return made


def lines(catalog, table):
    with catalog.reading() as open_:
        return {tuple(line) for line in open_.execute(table.select())}


def content(catalog):
    return {table.name: lines(catalog, table) for table in (patients, volumes, endpoints, quality, refusals)}


def test_it_holds_what_the_cohort_holds(catalog, cohort):
    assert {(line[0], line[2]) for line in lines(catalog, patients)} == {
        (name, "test" if is_test(name, 0.5) else "train") for name in ("p1", "p2", "p3")
    }
    assert ("p1", "lge", 2, 4, 5, 8.0, 1.5, 1.25, False) in lines(catalog, volumes)
    assert {line[:2] for line in lines(catalog, volumes) if line[-1]} == {("p2", "cine_ed"), ("p2", "cine_es")}
    assert lines(catalog, endpoints) == {("p1", "age", 61.0, None), ("p1", "sex", None, "F"), ("p3", "age", 40.5, None)}
    assert lines(catalog, refusals) == {(1, "p9", "its slices are uneven")}
    assert catalog.path.stat().st_mode & 0o777 == 0o600


def test_only_what_has_changed_is_read_again(catalog, cohort):
    assert catalog.refresh(cohort, test_fraction=0.5).read == 0
    cohort.admit(Case("p3", (), {"age": 41}))
    record(cohort.folder, cohort.case("p2"), {})
    assert catalog.refresh(cohort, test_fraction=0.5).read == 2
    assert ("p3", "age", 41.0, None) in lines(catalog, endpoints)
    assert {line[:2] for line in lines(catalog, quality)} == {("p2", "cine_ed"), ("p2", "cine_es")}
    catalog.refresh(cohort, test_fraction=0.0)
    assert {line[2] for line in lines(catalog, patients)} == {"train"}


def test_a_catalog_made_anew_equals_one_that_followed(catalog, cohort, tmp_path):
    cohort.admit(Case("p4", (LGE,), {"age": 30}))
    catalog.refresh(cohort, test_fraction=0.5)
    fresh = Catalog(tmp_path / "other.sqlite")
    fresh.refresh(cohort, test_fraction=0.5)
    assert content(fresh) == content(catalog)


@pytest.mark.parametrize("damage", [b"", b"this is no database, whatever its name says" * 50, None])
def test_a_damaged_catalog_is_made_anew_from_the_cohort(catalog, cohort, damage):
    before = content(catalog)
    if damage is None:
        with sqlite3.connect(catalog.path) as raw:
            raw.execute("PRAGMA user_version = 99")
        raw.close()
    else:
        catalog.path.write_bytes(damage)
    catalog.refresh(cohort, test_fraction=0.5)
    assert content(catalog) == before


def test_one_patients_damage_hides_nobody_else(catalog, cohort):
    (cohort.folder / "cases" / "p2" / "case.json").write_text("{")
    text = (cohort.folder / "cases" / "p3" / "case.json").read_text()
    (cohort.folder / "cases" / "p3" / "case.json").write_text(text.replace("40.5", "1" + "0" * 400))
    cohort.admit(Case("p5", (), {"note": "\ud800"}))
    done = catalog.refresh(cohort, test_fraction=0.5)
    assert done.unreadable == {
        "p2": "case.json is cut short, or isn't JSON",
        "p3": "its values can't be put into a table (OverflowError)",
        "p5": "its values can't be put into a table (UnicodeEncodeError)",
    }
    assert {line[0] for line in lines(catalog, patients)} == {"p1"}


def test_who_is_forgotten_stands_in_no_byte_of_it(tmp_path):
    cohort = Cohort(tmp_path / "cohort")
    names = [f"P{number:016X}" for number in range(40)]
    for name in names:
        cohort.admit(Case(name, (LGE,), {"word": f"secret-of-{name}"}))
        cohort.refuse(name, "an older study")
        cohort.refuse(f"{name}-lge-mask", "no longer applies")
    catalog = Catalog(tmp_path / "catalog.sqlite")
    catalog.refresh(cohort, test_fraction=0.0)
    assert b"secret-of-" + names[7].encode() in catalog.path.read_bytes() + wal(catalog)
    catalog.forget(names[7])
    stored = catalog.path.read_bytes() + wal(catalog)
    assert names[7].encode() not in stored
    assert names[8].encode() in stored
    Catalog(tmp_path / "none.sqlite").forget(names[7])
    assert not (tmp_path / "none.sqlite").exists()


def wal(catalog):
    path = catalog.path.with_name(catalog.path.name + "-wal")
    return path.read_bytes() if path.exists() else b""


def test_whoever_left_the_cohort_leaves_the_catalog(catalog, cohort):
    import shutil

    shutil.rmtree(cohort.folder / "cases" / "p1")
    assert catalog.refresh(cohort, test_fraction=0.5).gone == 1
    assert {line[0] for line in lines(catalog, patients)} == {"p2", "p3"}
    assert not any(line[0] == "p1" for line in lines(catalog, endpoints) | lines(catalog, volumes))


READ = """
import sys
from pathlib import Path
from fl_client.catalog import Catalog, patients
with Catalog(Path(sys.argv[1])).reading() as open_:
    print(len(open_.execute(patients.select()).all()), flush=True)
    sys.stdin.readline()
    print(len(open_.execute(patients.select()).all()), flush=True)
"""


def test_another_process_reads_one_state_while_this_one_writes(catalog, cohort):
    reader = subprocess.Popen(
        [sys.executable, "-c", READ, str(catalog.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert reader.stdout.readline() == "3\n"
    cohort.admit(Case("p4", (), {}))
    catalog.refresh(cohort, test_fraction=0.5)
    assert len(lines(catalog, patients)) == 4
    out, _ = reader.communicate("\n", timeout=60)
    assert (out, reader.returncode) == ("3\n", 0)


def test_quality_that_is_no_json_is_no_quality(catalog, cohort):
    record(cohort.folder, cohort.case("p2"), {})
    (cohort.folder / "quality" / "p2.json").write_text(json.dumps({"volumes": ["x"]}))
    catalog.refresh(cohort, test_fraction=0.5)
    assert not lines(catalog, quality)
