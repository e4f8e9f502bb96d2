import json
import multiprocessing
from pathlib import Path

import pytest

from fl_client.audit import AuditBroken, AuditLog


@pytest.fixture
def log(tmp_path):
    log = AuditLog(tmp_path / "audit.jsonl")
    for number in range(3):
        log.append("told", number=number)
    return log


@pytest.fixture
def path(tmp_path):
    return tmp_path / "audit.jsonl"


def test_what_was_told_is_read_back_in_order_with_its_time(log):
    assert [(line["line"], line["happening"], line["number"]) for line in log.lines] == [
        (1, "told", 0),
        (2, "told", 1),
        (3, "told", 2),
    ]
    assert all(line["time"].endswith("+00:00") for line in log.lines)


def test_a_changed_line_is_found_even_if_it_lies_far_before_the_end(log, path):
    path.write_text(path.read_text().replace('"number":1', '"number":7'))
    log.append("told", number=3)  # the end alone is read, and it is sound
    with pytest.raises(AuditBroken, match="line 2 was changed after it was written"):
        _ = log.lines


def test_a_log_that_was_cut_short_takes_no_further_line(log, path):
    path.write_text("".join(line + "\n" for line in path.read_text().splitlines()[:2]))
    for ask in (lambda: log.lines, lambda: log.append("told", number=3)):
        with pytest.raises(AuditBroken, match="has 2 whole lines, but 3 were written: the end is missing"):
            ask()


def test_what_a_crash_left_half_written_is_cut_off(log, path):
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"happening":"to')
    log.append("told", number=3)
    assert path.read_bytes().startswith(whole)
    assert [line["number"] for line in log.lines] == [0, 1, 2, 3]


def test_a_whole_line_whose_head_a_crash_prevented_is_kept_and_followed(log, path):
    head = Path(f"{path}.head")
    before = head.read_bytes()
    log.append("told", number=3)
    head.write_bytes(before)
    log.append("told", number=4)
    assert [line["number"] for line in log.lines] == [0, 1, 2, 3, 4]
    assert json.loads(head.read_text()) == {
        "lines": 5,
        "hash": json.loads(path.read_text().splitlines()[-1])["hash"],
        "bytes": path.stat().st_size,
    }


def _tell(path, who):
    for number in range(20):
        AuditLog(path).append("told", who=who, number=number)


def test_several_processes_append_to_one_chain(path):
    processes = [multiprocessing.get_context("spawn").Process(target=_tell, args=(path, who)) for who in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    lines = AuditLog(path).lines
    assert len(lines) == 40
    assert [line["number"] for line in lines if line["who"] == 1] == list(range(20))


def test_a_lost_head_is_not_healed_by_the_next_line(log, path):
    Path(f"{path}.head").unlink()
    path.write_text("".join(line + "\n" for line in path.read_text().splitlines()[:1]))
    with pytest.raises(AuditBroken, match="head is missing, so nobody can say whether audit"):
        log.append("told", number=3)
