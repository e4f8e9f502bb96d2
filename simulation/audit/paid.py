"""The price is on the disk before a patient is looked at and before there is an answer; the kill at that instant included.

Watched from outside: every flush that reaches the disk, every patient whose arrays are opened, every answer that is built, in
their order. Then the hospital's process is killed (SIGKILL) at the moment when its answer is there, and the ledger has to
hold the price; and a ledger that can't be written has to keep everything inside.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from conf.study import LocalTraining, Privacy, SecureAggregation, Study
from fl_client import cohort, release
from fl_client.cohort import side_of
from simulation.audit.check import Check, Finding, Setting, replaced
from simulation.audit.drawn import FOREST, PERCEPTRON, SEGMENTATION, case
from simulation.audit.houses import Houses
from simulation.audit.neighbours import without_masks

_BUILT = ("reply", "total", "masked")


def attack(setting: Setting) -> Finding:
    """Every kind of release."""
    found = Finding()
    kinds = _kinds()
    for done, (name, (fields, kind)) in enumerate(kinds.items()):
        folder = setting.folder / name.replace(",", "").replace(" ", "_")
        _order(found, name, *_house(folder / "order", fields, kind))
        _killed(found, name, *_house(folder / "killed", fields, kind))
        _unwritable(found, name, *_house(folder / "full", fields, kind))
        setting.advance(done + 1, len(kinds))
    found.figures = {"kinds_of_release": len(kinds), "kills": len(kinds)}
    return found


def _kinds() -> dict[str, tuple[dict[str, Any], str]]:
    step: dict[str, Any] = {"training": LocalTraining(views=1)}
    return {
        "gradients": (step | {"task": SEGMENTATION}, "train"),
        "leaf counts": ({"task": FOREST, "strategy": {"name": "sum"}}, "train"),
        "scores": (step | {"task": PERCEPTRON, "privacy": Privacy(evaluation_share=0.3)}, "evaluate"),
        "gradients, under masks": (step | {"task": PERCEPTRON}, "masked"),
    }


def _house(folder: Path, fields: dict[str, Any], kind: str) -> tuple[Houses, Study, str]:
    houses = Houses(folder)
    share = 0.5 if kind == "evaluate" else 0.0
    wanted = "test" if share else "train"
    names = [f"p{n}" for n in range(30) if side_of(f"p{n}", share) == wanted][:3]
    houses.add("a", [case(patient, n) for n, patient in enumerate(names)], noise_seed=None, test_fraction=share)
    if kind == "masked":
        for other in ("b", "c"):
            houses.add(other)
        secured = Privacy(secure=SecureAggregation(keys=houses.keys(), patients=20))
        return houses, houses.study(**{**fields, "privacy": secured, "strategy": {"quorum": 3}}), kind
    return houses, houses.study(**fields), kind


def _ask(houses: Houses, study: Study, kind: str) -> Any:
    with without_masks():
        if kind == "masked":
            return houses.ask(study, "a", attempt=0)["a"]
        return houses.ask(study, "a", kind=kind)["a"]


def _order(found: Finding, name: str, houses: Houses, study: Study, kind: str) -> None:
    with _watched(houses) as (happened, priced):
        answer = _ask(houses, study, kind)
    found.require(answer.code is None, f"{name}: the answer was {answer.code} {answer.words}")
    for what in ("a patient is opened", "the answer is built"):
        if what not in happened:
            found.problems.append(f"{name}: no moment was seen at which {what}")
            continue
        before = happened[: happened.index(what)]
        for flushed in ("ledger.jsonl is flushed", "ledger.jsonl.head is flushed"):
            found.require(flushed in before, f"{name}: {what} before {flushed} to the disk")
        found.require(priced[what] == 1, f"{name}: when {what} the ledger holds {priced[what]} prices, not 1")


@contextmanager
def _watched(houses: Houses) -> Iterator[tuple[list[str], dict[str, int]]]:
    """What happens, in order, while this lasts; and how many prices the ledger held when it first did."""
    ledger = houses.site("a").ledger_path
    happened: list[str] = []
    priced: dict[str, int] = {}
    flush, prepared = os.fsync, cohort.Cohort.prepared

    def fsync(file: Any) -> None:
        flush(file)
        try:
            where = _file_of(file)
        except OSError:
            return
        if where.parent == ledger.parent and where.name.startswith(ledger.name) and where.stat().st_size:
            happened.append(f"{ledger.name}{'.head' if where.name != ledger.name else ''} is flushed")

    def note(what: str) -> None:
        happened.append(what)
        priced.setdefault(what, len(houses.events("a")))

    def opened(*args: Any) -> Any:
        note("a patient is opened")
        return prepared(*args)

    def built(real: Any) -> Any:
        def inside(*args: Any, **how: Any) -> Any:
            note("the answer is built")
            return real(*args, **how)

        return inside

    with ExitStack() as stack:
        stack.enter_context(replaced(os, "fsync", fsync))
        stack.enter_context(replaced(cohort.Cohort, "prepared", opened))
        for function in _BUILT:
            stack.enter_context(replaced(release, function, built(getattr(release, function))))
        yield happened, priced


def _killed(found: Finding, name: str, houses: Houses, study: Study, kind: str) -> None:
    """A process of its own answers, and is killed when its answer is built."""
    child = os.fork()
    if child == 0:
        try:
            with ExitStack() as stack:
                for function in _BUILT:
                    stack.enter_context(replaced(release, function, lambda *a, **h: os.kill(os.getpid(), signal.SIGKILL)))
                _ask(houses, study, kind)
        finally:
            os._exit(1)  # it should not have come so far
    _, status = os.waitpid(child, 0)
    found.require(
        os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, f"{name}: no answer was built in the other process"
    )
    paid = len(houses.events("a"))
    found.require(paid == 1, f"{name}: killed when its answer was there, the hospital's ledger holds {paid} prices, not 1")


def _unwritable(found: Finding, name: str, houses: Houses, study: Study, kind: str) -> None:
    """Where the ledger's line can't reach the disk, nothing leaves."""
    path, flush = houses.site("a").ledger_path, os.fsync

    def fsync(file: Any) -> None:
        if _file_of(file).name.startswith(path.name):
            raise OSError(28, "No space left on device")
        flush(file)

    with replaced(os, "fsync", fsync):
        answer = _ask(houses, study, kind)
    found.require(answer.code is not None, f"{name}: an answer left although its price could not be written")


def _file_of(file: Any) -> Path:
    """The path of an open file, by the kernel."""
    return Path(f"/proc/self/fd/{file if isinstance(file, int) else file.fileno()}").readlink()


CHECKS = (
    Check(
        "ledger before release",
        "The price is on the disk before a patient is opened or an answer built, whenever the process is killed.",
        "certain",
        attack,
    ),
)
