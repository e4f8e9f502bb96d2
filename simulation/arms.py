"""The arms of a comparison, all through the same federation: what differs is who takes part and what is promised.

    federation_private   all sites, under the privacy that the study promises
    federation_plain     all sites, no clipping, no noise
    pooled               one imaginary hospital that has everybody's patients
    alone/<hospital>     a federation of one
    ensemble             the mean answer of the models trained alone
    pretrained           the start of all of them: no hospital's data

Every arm starts from the same weights and takes the same number of gradient steps per model. An arm that is finished is
not run again (its folder holds a hash of the study, the hospitals and the code); one that was interrupted begins anew, in a
new world with empty ledgers.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path

import torch

from conf.study import Study
from fl_client import personal
from fl_client.site import Budget, Site
from fl_server.record import Record, Round
from fl_server.rounds import run
from fl_server.weights import State
from simulation.engine import run_ray
from simulation.faults.grid import federate as federate_with_faults
from simulation.faults.plan import NO_FAULTS, Plan
from simulation.grid import InProcessGrid
from simulation.hospital import Hospital
from simulation.machine import one_thread
from simulation.sources import LEARNING, digest
from simulation.starting import FREE

Look = Callable[[Round, State], None]


@dataclass(frozen=True)
class Arm:
    """One training of one arm: its study, who takes part, and the folder that it leaves its results in."""

    name: str
    study: Study
    hospitals: Mapping[str, Hospital]
    folder: Path
    faults: Plan = NO_FAULTS
    code: str = field(default_factory=lambda: digest(*LEARNING))  # noted when the work is planned; workers are told

    @property
    def identity(self) -> str:
        """Hash of everything that determines the result: the study, which names no patients, the patients, and the code."""
        parts = [self.study.hash, self.code, *(hospital.identity for hospital in self.hospitals.values())]
        parts += [self.faults.identity, digest("simulation/faults")] if self.faults else []
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    @property
    def finished(self) -> bool:
        """True when this very study has been run here, on these very patients, to its end."""
        mark = self.folder / "finished"
        return mark.exists() and mark.read_text() == self.identity

    def state(self) -> State:
        """The final weights."""
        return dict(torch.load(self.folder / "model.pt", weights_only=True))

    def worn(self, hospital: str) -> State:
        """The final weights as this hospital uses them: with its own parameters (`training.personal`), if it has any."""
        if not self.study.training.personal or hospital not in self.hospitals:
            return self.state()
        return personal.worn(Site.load(self.folder / "sites" / hospital / "site.yaml"), self.study, self.state())

    def record(self) -> Record:
        """What the coordinator wrote down."""
        return Record.read(self.folder / "record.json")


def train(arm: Arm, start: Path, look: Look | None = None, *, pool: Executor | None = None, engine: str = "inprocess") -> str:
    """Run one arm to its end, unless it is finished. `look` sees the model after every round.

    Raises `BrokenProcessPool` if a worker of `pool` dies: the record says so, and the arm can be run again.
    """
    if arm.finished:
        return arm.name
    shutil.rmtree(arm.folder, ignore_errors=True)
    arm.folder.mkdir(parents=True)
    private = arm.study.privacy.kind != "none"
    budget = Budget(epsilon=arm.study.privacy.epsilon, delta=arm.study.privacy.delta)
    sites = {
        name: hospital.settle(
            arm.folder / "sites" / name, budget=budget, private=private, noise_seed=1_000 * arm.study.seed + index
        )
        for index, (name, hospital) in enumerate(arm.hospitals.items())
    }
    initial = torch.load(start, weights_only=True)
    references = torch.load(start.with_name(FREE), weights_only=True) if arm.study.strategy.references_sha256 else None
    federate(arm.study, sites, initial, arm.folder, look, pool=pool, engine=engine, faults=arm.faults, references=references)
    (arm.folder / "finished").write_text(arm.identity)
    return arm.name


def federate(
    study: Study,
    sites: Mapping[str, Path],
    initial: State,
    folder: Path,
    look: Look | None = None,
    *,
    pool: Executor | None = None,
    engine: str = "inprocess",
    faults: Plan = NO_FAULTS,
    references: State | None = None,
) -> tuple[State, Record]:
    """Run a study over hospitals whose settings files are `sites`, which keep their ledgers. Returns model and record.

    `references` are the free patients of a study that filters by such.

    `faults` go wrong on purpose, with the in-process engine. Raises `BrokenProcessPool` if a worker of `pool` dies.
    """
    if faults:
        return federate_with_faults(faults, study, sites, initial, folder, look, pool=pool, references=references)
    if engine == "ray":
        return run_ray(study, sites, initial, folder=folder, observer=look, references=references)
    grid = InProcessGrid(
        "fl_client.app:app", [{"site": str(path)} for path in sites.values()], {"study": study.to_json()}, pool=pool
    )
    result = run(grid, study, initial, folder=folder, observer=look, engine=engine, references=references)
    grid.require_workers()  # a hospital that failed because this machine did has not failed in this comparison
    return result


def train_by_itself(arm: Arm, start: Path) -> str:
    """Run one arm in this worker process, with one thread."""
    one_thread()
    logging.getLogger("flwr").setLevel(logging.WARNING)  # its lines would tear the progress bars
    return train(arm, start)


def write_line(path: Path, entry: Mapping[str, object]) -> None:
    """Append one JSON line."""
    with open(path, "a") as file:
        file.write(json.dumps(entry) + "\n")
