"""What happens to memory is seen in processes of their own: the allocator's settings can't be taken back."""

import ctypes
import os
import subprocess
import sys

import pytest

from fl_client import heap

glibc = pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="another C library")

STEPS = """
import resource, sys
import numpy as np
from fl_client.heap import give_back, keep_large_blocks

def held():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

def step():
    parts = [np.ones(2**23), np.ones(2**22)]  # 64 and 32 MiB
    return float(sum(part.sum() for part in parts))

print(keep_large_blocks() if sys.argv[1] == "keep" else None)
before, total = held(), step()
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
assert all(step() == total for _ in range(5))
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults)
print(held() - before)
give_back()
print(held() - before)
"""


def steps(how: str, **environment: str) -> tuple[str, int, int, int]:
    """What `keep_large_blocks` said; pages that five more steps had to get; bytes held afterwards, and given back."""
    clean = {name: value for name, value in os.environ.items() if name not in heap._OWN}
    answer = subprocess.run(
        [sys.executable, "-c", STEPS, how], capture_output=True, text=True, check=True, env={**clean, **environment}
    )
    said, *numbers = answer.stdout.split()
    faults, held, left = map(int, numbers)
    return said, faults, held, left


@glibc
def test_a_step_gets_no_page_that_the_last_one_had_and_all_goes_back_in_the_end() -> None:
    said, faults, held, left = steps("keep")
    assert said == "True"
    assert faults < 100
    assert 90 * 2**20 < held < 110 * 2**20  # one step's, however many there were
    assert left < 10 * 2**20


@glibc
def test_without_it_every_step_gives_its_pages_back_and_gets_them_anew() -> None:
    _, faults, held, _ = steps("leave")
    assert held < 10 * 2**20
    assert faults > 200  # pages of 4 KiB or of 2 MiB, of 96 MiB each time


@glibc
def test_what_the_environment_says_of_memory_is_left_alone() -> None:
    said, _, held, _ = steps("keep", MALLOC_MMAP_THRESHOLD_="131072")
    assert said == "False"
    assert held < 10 * 2**20


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert heap.keep_large_blocks() is False
    heap.give_back()
