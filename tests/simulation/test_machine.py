import contextlib
import json
import os
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import psutil
import pytest
import torch

from simulation.machine import Immediately, Meter, executor, unordered


def where():
    return os.getpid(), torch.get_num_threads()


def half(number):
    if number % 2:
        raise ValueError(f"{number} is odd")
    return number // 2


def busy_for(seconds):
    time.sleep(seconds)
    return os.getpid()


def interrupted():
    time.sleep(0.1)
    raise KeyboardInterrupt


def die():
    os._exit(1)


# -- seconds and memory -----------------------------------------------------------------------------------------------


def test_seconds_are_counted_by_phase_and_added_up(tmp_path):
    with Meter(tmp_path / "notes.json") as meter:
        with meter.phase("long"):
            time.sleep(0.2)
        for _ in range(2):
            with meter.phase("short"):
                time.sleep(0.05)
    assert meter.timings["long"] == pytest.approx(0.2, abs=0.15)
    assert 0.1 <= meter.timings["short"] < meter.timings["long"] + 0.15
    assert meter.total_s == pytest.approx(meter.timings["long"] + meter.timings["short"])


def test_a_run_that_was_interrupted_adds_to_its_seconds_and_a_finished_one_begins_at_nought(tmp_path):
    notes = tmp_path / "notes.json"
    first = Meter(notes)
    with pytest.raises(KeyboardInterrupt), first, first.phase("work"):
        interrupted()
    written = json.loads(notes.read_text())
    assert written["work"] == pytest.approx(first.timings["work"])
    with Meter(notes) as second, second.phase("work"):
        pass
    assert second.timings["work"] >= first.timings["work"] >= 0.1
    assert second.peak_memory_mb >= written["peak_memory_mb"]
    second.finish()
    assert not notes.exists()
    with Meter(notes) as third:
        pass
    assert (third.timings, third.total_s) == ({}, 0)


def test_the_memory_of_child_processes_counts(tmp_path):
    child = "import sys; kept = bytearray(b'x') * (200 << 20); print('ready', flush=True); sys.stdin.read()"
    with Meter(tmp_path / "notes.json", interval_s=0.02) as alone:
        time.sleep(0.1)
    with (
        Meter(tmp_path / "notes.json", interval_s=0.02) as both,
        subprocess.Popen([sys.executable, "-c", child], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process,
    ):
        process.stdout.readline()
        time.sleep(0.3)
        process.communicate()
    assert both.peak_memory_mb > alone.peak_memory_mb + 150


def test_the_peak_of_memory_is_known_by_phase_and_kept_over_an_interruption(tmp_path):
    notes = tmp_path / "notes.json"
    with Meter(notes, interval_s=0.02) as first:
        with first.phase("small"):
            pass  # shorter than the interval
        with first.phase("large"):
            kept = bytearray(b"x") * (200 << 20)
            time.sleep(0.2)
        del kept
        with first.phase("small again"):
            pass
    assert first.memory_mb["large"] > first.memory_mb["small"] + 150
    assert first.memory_mb["small again"] < first.memory_mb["large"] - 150
    assert first.peak_memory_mb == pytest.approx(max(first.memory_mb.values()), rel=0.05)
    with Meter(notes) as second, second.phase("small"):
        pass
    assert second.memory_mb["large"] == first.memory_mb["large"]
    assert set(second.timings) == {"small", "large", "small again"}


def test_a_process_that_keeps_what_it_frees_gives_it_back_between_phases(tmp_path):
    code = f"""
import pathlib
from fl_client.heap import keep_large_blocks
from simulation.machine import Meter
assert keep_large_blocks()
with Meter(pathlib.Path({str(tmp_path / "notes.json")!r})) as meter:
    with meter.phase("large"):
        kept = bytearray(b"x") * (200 << 20)
        meter._look()
        del kept
    with meter.phase("after"):
        pass
print(meter.memory_mb["large"] - meter.memory_mb["after"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) > 150


# -- who does the work ------------------------------------------------------------------------------------------------


def test_without_workers_everything_happens_here_and_errors_come_with_the_result():
    with executor(0) as pool:
        assert isinstance(pool, Immediately)
        assert pool.submit(os.getpid).result() == os.getpid()
        with pytest.raises(ValueError, match="3 is odd"):
            pool.submit(half, 3).result()
    with pytest.raises(KeyboardInterrupt):  # a person who wants to stop is not a result
        Immediately().submit(interrupted)


def test_workers_are_other_processes_with_one_thread_each():
    with executor(2) as pool:
        found = {pool.submit(where).result() for _ in range(4)}
        assert os.getpid() not in {process for process, _ in found}
        assert {threads for _, threads in found} == {1}
        assert sorted(unordered(pool, half, [(n,) for n in (0, 2, 4, 6)])) == [0, 1, 2, 3]
        with pytest.raises(ValueError, match="5 is odd"):
            list(unordered(pool, half, [(2,), (5,), (4,)]))
        with pytest.raises(BrokenProcessPool):
            list(unordered(pool, die, [()]))


KILLED = """
import time
from test_machine import busy_for
from simulation.machine import executor
if __name__ == "__main__":
    pool = executor(2)
    started = [pool.submit(busy_for, 0.5) for _ in range(2)]
    workers = {one.result() for one in started}
    at_work = pool.submit(busy_for, 600)
    print(*workers, flush=True)
    time.sleep(600)
"""


def test_no_worker_outlives_a_main_process_that_is_killed_be_it_at_work_or_idle(tmp_path):
    (tmp_path / "killed.py").write_text(KILLED)
    paths = os.pathsep.join([*sys.path, str(Path(__file__).parent)])
    main = subprocess.Popen(
        [sys.executable, str(tmp_path / "killed.py")],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    workers = {int(pid) for pid in main.stdout.readline().split()}
    others = psutil.Process(main.pid).children(recursive=True)  # the server, its tracker, the workers
    main.kill()
    main.communicate()
    try:
        assert workers
        assert workers < {one.pid for one in others}
        _, alive = psutil.wait_procs(others, timeout=20)
        assert not [one.cmdline() for one in alive if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    finally:
        for one in others:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()


def test_results_come_as_they_are_ready_each_once():
    assert sorted(unordered(Immediately(), half, ((n,) for n in range(0, 10, 2)))) == [0, 1, 2, 3, 4]
    assert list(unordered(Immediately(), half, [])) == []
