import errno
import resource
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from fl_server import spool as spools
from fl_server.spool import Spool

LIKE = {"a": np.zeros(3, np.float32), "b": np.zeros((2, 2), np.float64), "c": np.zeros((), np.float32), "n": np.zeros(0, int)}
BLOCK = 4 * 4 + 8 * 4


def drawn(seed):
    rng = np.random.default_rng(seed)
    return {name: np.asarray(rng.normal(size=array.shape)).astype(array.dtype) for name, array in LIKE.items()}


@pytest.fixture(params=[10**6, 3 * BLOCK, 0], ids=["in memory", "three in memory", "on the disk"])
def spool(request, tmp_path):
    with Spool(LIKE, folder=tmp_path, in_memory=request.param) as spool:
        yield spool


def test_what_is_read_is_what_was_put(spool):
    for seed in range(6):
        spool.put(f"site {seed}", drawn(seed))
    assert len(spool) == 6
    assert spool.block_bytes == BLOCK
    for seed in range(6):
        found = spool.arrays(f"site {seed}")
        assert list(found) == list(LIKE)
        for name, array in drawn(seed).items():
            np.testing.assert_array_equal(found[name], array)
            assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)


def test_columns_are_the_same_numbers_the_other_way(spool, monkeypatch):
    monkeypatch.setattr(spools, "COLUMNS", 2 * 6 * 4)  # two float32 columns of six sites, one of float64
    for seed in range(6):
        spool.put(f"site {seed}", drawn(seed))
    sites = [f"site {seed}" for seed in (4, 0, 5, 1, 3, 2)]
    for group in range(len(spool.groups)):
        whole = np.stack([spool.flat(site)[group] for site in sites])
        parts = dict(spool.columns(sites, group))
        np.testing.assert_array_equal(np.concatenate([np.empty((6, 0)), *parts.values()], axis=1), whole)
        assert all(part.nbytes <= spools.COLUMNS for part in parts.values())
    assert list(dict(spool.columns(sites, 0))) == [0, 2]


def test_one_answer_can_take_anothers_place_and_be_forgotten(spool):
    for seed in range(6):
        spool.put(f"site {seed}", drawn(seed))
    spool.put("site 5", drawn(50))
    spool.drop("site 4")
    spool.drop("nobody")
    assert "site 4" not in spool
    spool.put("site 6", drawn(6))
    for site, seed in (("site 5", 50), ("site 6", 6), ("site 3", 3)):
        np.testing.assert_array_equal(spool.arrays(site)["b"], drawn(seed)["b"])


def open_files():
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_the_file_has_no_name_and_ends_with_the_spool(tmp_path):
    open_before = open_files()
    with Spool(LIKE, folder=tmp_path, in_memory=0) as spool:
        spool.put("a", drawn(1))
        assert list(tmp_path.iterdir()) == []
        assert open_files() == open_before + 1
    assert open_files() == open_before


def test_a_full_disk_is_told_and_leaves_what_is_there(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Spool(LIKE, folder=tmp_path, in_memory=0) as spool:
        spool.put("a", drawn(1))
        resource.setrlimit(resource.RLIMIT_FSIZE, (BLOCK + 10, before[1]))
        try:
            with pytest.raises(OSError, match="too large") as full:
                spool.put("b", drawn(2))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert full.value.errno == errno.EFBIG
        assert "b" not in spool
        np.testing.assert_array_equal(spool.arrays("a")["b"], drawn(1)["b"])
        spool.put("b", drawn(2))
        np.testing.assert_array_equal(spool.arrays("b")["b"], drawn(2)["b"])


def test_a_hundred_answers_need_the_memory_of_a_few(tmp_path):
    like = {"w": np.zeros(2**18, np.float32)}  # 1 MB
    with Spool(like, folder=tmp_path, in_memory=4 * 2**20) as spool:
        tracemalloc.start()
        for i in range(100):
            spool.put(f"site {i}", {"w": np.full(2**18, i, np.float32)})
        for i in range(100):
            assert spool.flat(f"site {i}")[0][-1] == i
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 9 * 2**20
