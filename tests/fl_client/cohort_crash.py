"""A hospital's process that is killed while a case replaces another: run by test_cohort.py in a process of its own.

    python cohort_crash.py <folder>    for each call that changes the disk, a copy of <folder>/before and a child killed at it

A second child then opens the cohort and is killed at the first thing it mends.
"""

import os
import shutil
import sys
from itertools import count
from pathlib import Path

import numpy as np

from fl_client.cohort import Cohort
from tasks.case import Case, Volume

CHANGES = ("mkdir", "rename", "replace", "unlink", "rmdir", "fsync")


def a_case(value: int, *series: str) -> Case:
    images = (np.full((2, 3, 4), value, np.int16) for _ in series)
    volumes = tuple(Volume(name, image, np.eye(4), (image > 0).astype(np.uint8)) for name, image in zip(series, images))  # noqa: B905
    return Case("P1", volumes, {"event": value})


OLD, NEW = a_case(1, "cine_ed", "lge"), a_case(2, "cine_ed", "cine_es")


def killed_at(n: int, act) -> bool:
    """Whether a child died at its n-th change of the disk."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1] != 0
    left = count(n, -1)

    def dying(real):
        def call(*arguments, **settings):
            if next(left) == 1:
                os._exit(1)
            return real(*arguments, **settings)

        return call

    for name in CHANGES:
        setattr(os, name, dying(getattr(os, name)))
    act()
    os._exit(0)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for n in range(1, 200):
        place = Path(shutil.copytree(folder / "before", folder / str(n)))
        if not killed_at(n, lambda place=place: Cohort(place).admit(NEW)):
            break
        killed_at(1, lambda place=place: Cohort(place))
