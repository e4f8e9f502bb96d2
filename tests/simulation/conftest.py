"""A rehearsal small enough for a test, run once for all of them: two hospitals of four patients, one held out, every arm."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from drawn_run import build

from fl_server.record import Record
from simulation.__main__ import main
from simulation.report import write_report

HOSPITALS = ("sites.donau", "sites.rhein", "held_out.limmat")
TINY = [
    *(f"~hospitals.sites.{name}" for name in ("alster", "isar", "spree")),
    *(f"hospitals.{name}.relative_size=1" for name in HOSPITALS),
    *(f"hospitals.{name}.scanner.{key}" for name in HOSPITALS for key in ("matrix=64", "pixel_mm=4")),
    *("hospitals.patients=4", "hospitals.oversampling=1", "hospitals.subslices=1", "real=null"),
    *("task.voxels=32", "task.working_mm=6", "task.channels=[4,8]", "task.strides=[2]", "task.num_res_units=0"),
    *("pretraining={patients:4,steps:100,batch_patients:3,views:2,learning_rate:0.02,subslices:1}",),
    *("rounds=2", "evaluate_every=2", "workers=0", "full_scores=federation", "plain_training.sample_rate=1"),
    *("training.steps=1", "training.views=2", "training.sample_rate=1", "plain_strategy.server_learning_rate=0.001"),
    "arms=[federation_private,federation_plain,pooled,alone,ensemble]",
]
"""What makes the five scanners' rehearsal tiny. What the tests count on stands here, whatever the size `small` becomes."""


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@dataclass(frozen=True)
class Finished:
    """A run that came to its end."""

    folder: Path
    overrides: list[str]
    status: int

    @property
    def record(self) -> Record:
        return Record.read(self.folder / "record.json")

    @property
    def scores(self) -> list[dict[str, Any]]:
        return lines(self.folder / "scores.jsonl")

    @property
    def metrics(self) -> list[dict[str, Any]]:
        return lines(self.folder / "metrics.jsonl")

    def again(self, *more: str) -> int:
        return main([*self.overrides, *more])


@pytest.fixture(scope="session")
def threads() -> Iterator[None]:
    """Runs in this process set torch's threads; give them back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, threads: None) -> Finished:
    """`konsil-simulate` on the tiny rehearsal with two seeds. Tests may run it again, but not change its folder."""
    runs = tmp_path_factory.mktemp("runs")
    overrides = [*TINY, f"runs_folder={runs}", "name=tiny", "repeats=2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("simulation.pretraining.THREADS", 1)  # two threads on a busy core wait for each other most of the time
        status = main(overrides)
    return Finished(runs / "tiny", overrides, status)


@pytest.fixture(scope="session")
def full_report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]], str]:
    """The folder of a run with drawn scores and everything in it, its scores, and the text of its report."""
    folder = tmp_path_factory.mktemp("full")
    rows = build(folder)
    return folder, rows, write_report(folder).read_text()
