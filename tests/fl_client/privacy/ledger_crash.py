"""A hospital process that is killed: run by test_ledger.py in a process of its own, because it kills what it forks.

    python ledger_crash.py points <folder>           one child per system call of a spend, killed before or half-way through it
    python ledger_crash.py race <folder> <children>  children that spend at the same time until the budget is spent
    python ledger_crash.py endless <folder>          spends and releases until somebody kills it

"Released" is one byte in a file, written after `spend` returned: what would have left the hospital.
"""

import os
import signal
import sys
from pathlib import Path

from fl_client import chain as module
from fl_client.privacy import BudgetSpent, Event, Ledger

EVENT = Event(noise_multiplier=10.0, study_name="crash")


class KillAt:
    """Stands where `os` stands in the ledger; dies at the n-th call that changes the disk, a write after half its bytes."""

    def __init__(self, n):
        self.left = n

    def __getattr__(self, name):
        real = getattr(os, name)
        if name not in ("write", "fsync", "ftruncate", "open"):
            return real

        def call(*args, **kwargs):
            self.left -= 1
            if self.left == 0:
                if name == "write":
                    real(args[0], args[1][: len(args[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        return call


def release(folder):
    with open(folder / "released", "ab", buffering=0) as file:
        file.write(b".")


def points(folder):
    for n in range(1, 100):
        place = folder / str(n)
        place.mkdir()
        ledger = Ledger(place / "ledger.jsonl", epsilon=100, delta=1e-5)
        for _ in range(n % 3):  # a first line, a second, a third
            ledger.spend(EVENT)
            release(place)
        child = os.fork()
        if child == 0:
            module.os = KillAt(n)
            ledger.spend(EVENT)
            release(place)
            os._exit(0)
        if os.waitpid(child, 0)[1] == 0:  # ran through: every point was visited
            return


def race(folder, children):
    ledger = Ledger(folder / "ledger.jsonl", epsilon=3, delta=1e-5)
    pids = []
    for _ in range(children):
        child = os.fork()
        if child == 0:
            while True:
                try:
                    ledger.spend(EVENT)
                except BudgetSpent:
                    os._exit(0)
                release(folder)
        pids.append(child)
    sys.exit(max(os.waitpid(pid, 0)[1] for pid in pids))


def endless(folder):
    ledger = Ledger(folder / "ledger.jsonl", epsilon=1e9, delta=1e-5)
    _ = ledger.epsilon  # the accountant is imported before the first spend
    print("ready", flush=True)
    while True:
        ledger.spend(EVENT)
        release(folder)


if __name__ == "__main__":
    what, where, *more = sys.argv[1:]
    {"points": points, "race": race, "endless": endless}[what](Path(where), *map(int, more))
