import hashlib
import io
import os

import pytest
import torch
from small import SMALL_TASK

from conf.study import Study
from fl_server.checkpoint import FILE, MAGIC, PREVIOUS, NoCheckpoint, Progress
from fl_server.record import Record

STUDY = Study(konsil_version="0", name="pilot", task=SMALL_TASK, rounds=3, sites=("a", "b"))


def progress(value: float) -> Progress:
    state = {"w": torch.full((3, 2), value), "n": torch.tensor(7)}
    return Progress(
        Record.begin(STUDY),
        state,
        {name: tensor * 2 for name, tensor in state.items()},
        weight=value,
        strategy={"m_t/w": torch.full((3, 2), value, dtype=torch.float64)},
        best={"w": torch.zeros(3, 2)},
    )


def same(one: Progress, other: Progress) -> bool:
    parts = ((one.state, other.state), (one.mean, other.mean), (one.strategy, other.strategy), (one.best, other.best))
    equal = all(a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a) for a, b in parts)
    return equal and one.weight == other.weight and one.record == other.record


def test_what_was_written_is_read(tmp_path):
    progress(1.5).save(tmp_path)
    written = Progress.load(tmp_path, STUDY)
    assert same(written, progress(1.5).__class__(**{**vars(progress(1.5)), "record": written.record}))
    assert written.record.study_hash == STUDY.hash


def test_without_a_mean_of_rounds_it_is_not_written_twice(tmp_path):
    plain = progress(1.0)
    plain.mean = plain.state
    plain.save(tmp_path)
    found = Progress.load(tmp_path, STUDY)
    assert found.mean is found.state


def test_the_one_before_is_kept(tmp_path):
    for value in (1.0, 2.0, 3.0):
        progress(value).save(tmp_path)
    assert Progress.load(tmp_path, STUDY).weight == 3.0
    (tmp_path / FILE).unlink()
    assert Progress.load(tmp_path, STUDY).weight == 2.0
    assert sorted(path.name for path in tmp_path.iterdir()) == [PREVIOUS]


@pytest.mark.parametrize("keep", [0, 1, 50, 84, 85, 86, 1000, -1])
def test_a_torn_one_is_not_believed_and_the_one_before_is_read(tmp_path, keep):
    progress(1.0).save(tmp_path)
    progress(2.0).save(tmp_path)
    whole = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(whole[:keep])
    assert Progress.load(tmp_path, STUDY).weight == 1.0


def test_a_changed_byte_is_noticed(tmp_path):
    progress(1.0).save(tmp_path)
    data = bytearray((tmp_path / FILE).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / FILE).write_bytes(data)
    with pytest.raises(NoCheckpoint, match="torn or changed"):
        Progress.load(tmp_path, STUDY)


def test_another_studys_is_refused_by_name(tmp_path):
    progress(1.0).save(tmp_path)
    other = STUDY.model_copy(update={"rounds": 4})
    with pytest.raises(NoCheckpoint, match=f"is of the study {STUDY.hash[:12]}, not of pilot"):
        Progress.load(tmp_path, other)


def test_where_there_is_none_it_says_so(tmp_path):
    with pytest.raises(NoCheckpoint, match="holds no checkpoint"):
        Progress.load(tmp_path, STUDY)


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_disk_that_fails_leaves_the_last_one(tmp_path, monkeypatch, broken):
    progress(1.0).save(tmp_path)
    progress(2.0).save(tmp_path)

    def fails(*given, **named):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        if broken == "replace":
            patch.setattr("pathlib.Path.replace", fails)
        else:
            patch.setattr(os, broken, fails)
        with pytest.raises(OSError, match="No space"):
            progress(3.0).save(tmp_path)
    assert Progress.load(tmp_path, STUDY).weight == 2.0


def test_where_there_are_no_hard_links_the_one_before_is_kept_all_the_same(tmp_path, monkeypatch):
    def none(*given, **named):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", none)
    for value in (1.0, 2.0):
        progress(value).save(tmp_path)
    (tmp_path / FILE).unlink()
    assert Progress.load(tmp_path, STUDY).weight == 1.0


def test_one_that_is_whole_and_of_another_kind_is_not_believed(tmp_path):
    progress(1.0).save(tmp_path)
    progress(2.0).save(tmp_path)
    inside = io.BytesIO()
    torch.save({"something": torch.zeros(1)}, inside)
    data = inside.getvalue()
    (tmp_path / FILE).write_bytes(MAGIC + hashlib.sha256(data).hexdigest().encode() + b"\n" + data)
    assert Progress.load(tmp_path, STUDY).weight == 1.0
