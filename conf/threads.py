"""How threads of torch wait for each other: briefly. Nothing here imports torch, which reads this once, when it is imported."""

from __future__ import annotations

import os

SPINS = "1000"
"""Turns of GNU OpenMP's waiting loop before a thread sleeps. By default it is 300,000, and a thread whose partner has lost its
core to another program keeps its own busy for all that time."""


def wait_briefly() -> None:
    """Let idle threads sleep soon, in this process and those it starts; who chose otherwise is left alone.

    Results don't depend on it. Two trainings of two threads each on two cores took 14 times as long a step without it; one
    alone takes as long as before (docs/running_a_rehearsal.md).
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
