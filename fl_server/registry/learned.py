"""What a run has learned, read from its folder: weights, the task they belong to, the record, and scores of single patients.

A coordinator's run and a rehearsal's leave the same `record.json` and `model.pt`; a rehearsal also leaves `scores.jsonl`. A
registered version holds the first two, so it is read in the same way.
"""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fl_server.record import Record
from tasks.fingerprint import fingerprint
from tasks.task import CountingTask, GradientTask, load

State = dict[str, torch.Tensor]
PRIVATE = "federation_private"
"""The arm of a rehearsal whose model and record are those of the run, where it was asked for."""


@dataclass(frozen=True, eq=False)
class Learned:
    """A model and everything that is known of it."""

    folder: Path
    record: Record
    state: State
    start: Mapping[str, Any] | None = None  # of the weights that it started from: source, what was matched, what drawn anew
    scores: tuple[Mapping[str, Any], ...] = field(default=())  # of a rehearsal's test patients, by this model

    @property
    def settings(self) -> dict[str, Any]:
        """The task's, as they stand in the study."""
        return dict(self.record.study["task"])

    @property
    def task(self) -> GradientTask | CountingTask:
        """The task. Raises `ValueError` if this konsil can't make it."""
        return load(self.settings)

    @property
    def sha256(self) -> str:
        """The weights' fingerprint."""
        return fingerprint(self.state)

    def network(self) -> torch.nn.Module:
        """The network with its weights, in eval mode. Raises `ValueError` where they don't fit, or there is no network."""
        task = self.task
        if not isinstance(task, GradientTask):
            raise ValueError(f"task {self.settings['name']} has no network: what it learns is a sum")
        model = task.model()
        try:
            model.load_state_dict(self.state)
        except RuntimeError as error:
            raise ValueError(f"{self.folder}: the weights don't fit the study's task: {error}") from None
        return model.eval()


def read_weights(path: Path) -> Any:
    """Whatever tensors a .pt file holds, loaded without running anything in it. Raises `ValueError` in words."""
    with open(path, "rb") as file:
        begin = file.read(2)
    if begin != b"PK" and begin[:1] != b"\x80":  # the zip file that torch.save writes, or the pickle that it once wrote
        raise ValueError(f"{path} holds no weights: torch.save wrote no such file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of pickles that it then refuses
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError(
            f"{path} is a pickle of more than tensors, and reading it could run code of whoever wrote it; "
            "save the state dict alone: torch.save(model.state_dict(), ...)"
        ) from None
    except Exception as error:  # a damaged file breaks the reader in many ways
        raise ValueError(f"{path} can't be read as weights ({type(error).__name__}): damaged, or cut short") from None


def of_run(folder: Path, *, models: Path | None = None) -> Learned:
    """What the run in this folder has learned; `models` holds what is known of the weights that studies start from.

    Raises `ValueError` where there is no record or no model, and where the model is that of no round in the record.
    """
    if not (folder / "record.json").exists():
        raise ValueError(f"{folder} holds no record.json: it is no run's folder")
    record = Record.read(folder / "record.json")
    if not (folder / "model.pt").exists():
        raise ValueError(f"{folder} holds no model.pt: no hospital's answer was ever used in {record.name}")
    state = dict(read_weights(folder / "model.pt"))
    if fingerprint(state) not in {entry.arrays_sha256 for entry in record.rounds}:
        raise ValueError(f"{folder / 'model.pt'} is the model of no round in its record.json: one of the two is another run's")
    return Learned(folder, record, state, _start(record, folder, models), _scores(record, folder))


def _start(record: Record, folder: Path, models: Path | None) -> Mapping[str, Any] | None:
    name = record.study.get("initial_model_sha256")
    for path in (folder / "start.json", *([models / f"{name}.json"] if models and name else [])):
        if path.exists():
            found: dict[str, Any] = json.loads(path.read_text())
            return found
    if (folder / "start.pt").exists():
        return {"source": "start.pt of the rehearsal, which generated patients alone have made"}
    return None


def _scores(record: Record, folder: Path) -> tuple[Mapping[str, Any], ...]:
    path = folder / "scores.jsonl"
    if not path.exists():
        return ()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return tuple(row for row in rows if row["arm"] == PRIVATE and row["seed"] == record.seed)
