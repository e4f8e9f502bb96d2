"""Small hospitals on a disk, and a coordinator that asks them: konsil's own ClientApp behind the grid without a network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.serde import message_to_proto

from conf.study import Study
from fl_client import app as hospital
from fl_client.cohort import Cohort
from fl_client.keys import make_key, public_key
from fl_client.privacy import Event
from fl_client.site import Budget, Site
from fl_server.rounds import run
from fl_server.weights import initial_state
from simulation.grid import InProcessGrid
from tasks.case import Case

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Answer:
    """What came back, in plain values; `wire` are the bytes of the whole message."""

    records: Mapping[str, Mapping[str, Any]]  # name of the record -> its entries; arrays as arrays
    code: int | None
    words: str
    wire: bytes
    metadata: Mapping[str, Any]

    @property
    def arrays(self) -> Arrays:
        """The arrays of its record of arrays. Raises `ValueError` for an answer without any."""
        if self.code is not None or "arrays" not in self.records:
            raise ValueError(f"an answer with arrays was expected, not {self.code} {self.words or list(self.records)}")
        return dict(self.records["arrays"])

    @property
    def flat(self) -> npt.NDArray[np.float64]:
        """All arrays but the variance of their noise, as one vector."""
        parts = [value.astype(np.float64).ravel() for name, value in self.arrays.items() if name != "noise_variance"]
        return np.concatenate(parts)


@dataclass
class Houses:
    """Hospitals in a folder."""

    folder: Path
    paths: dict[str, Path] = field(default_factory=dict)

    def add(self, name: str, cases: Iterable[Case] = (), **settings: Any) -> Site:
        """A hospital that is willing, rich, and has these patients."""
        folder = self.folder / name
        cohort = Cohort(folder / "cohort")
        for one in cases:
            cohort.admit(one)
        fields: dict[str, Any] = {
            "declared_size": 5,
            "approve_all": True,
            "noise_seed": 7,
            "test_fraction": 0.0,
            "minimum_cohort": 1,
            "budget": Budget(epsilon=10.0, delta=1e-3),
            "device": "cpu",
        }
        site = Site(name=name, folder=folder, **{**fields, **settings})
        self.paths[name] = folder / "site.yaml"
        site.save(self.paths[name])
        if not (folder / "node.key").exists():
            make_key(folder / "node.key", comment=name)
        return site

    def site(self, name: str) -> Site:
        """Its settings."""
        return Site.load(self.paths[name])

    def events(self, name: str) -> tuple[Event, ...]:
        """Its ledger, as it stands on the disk."""
        return hospital.ledger_of(self.site(name)).events

    def keys(self) -> dict[str, str]:
        """Public keys by name."""
        return {name: public_key(path.parent / "node.key") for name, path in self.paths.items()}

    def study(self, **settings: Any) -> Study:
        """A study over these hospitals."""
        fields: dict[str, Any] = {"konsil_version": version("konsil"), "rounds": 1, "sites": tuple(self.paths)}
        return Study.model_validate({**fields, **settings})

    def grid(self, study: Study, *names: str) -> InProcessGrid:
        """What the coordinator reaches the hospitals by."""
        chosen = names or tuple(self.paths)
        return InProcessGrid(
            "fl_client.app:app", [{"site": str(self.paths[name])} for name in chosen], {"study": study.to_json()}
        )

    def ask(
        self, study: Study, *names: str, kind: str = "train", number: int = 1, weights: Arrays | None = None, **config: Any
    ) -> dict[str, Answer]:
        """One question to each hospital, or to those named; their answers."""
        chosen = names or tuple(self.paths)
        grid = self.grid(study, *chosen)
        said = ConfigRecord({"study-hash": study.hash, "server-round": number, **config})
        content: dict[str, Any] = {"config": said}
        if kind in ("train", "evaluate"):
            content["arrays"] = _record(start_of(study) if weights is None else weights)
        if kind == "train" and study.privacy.secure is not None:
            content["shares"] = ConfigRecord({})
        asked = [Message(RecordDict(dict(content)), node, kind) for node in grid.get_node_ids()]
        return dict(zip(chosen, map(_plain, grid.send_and_receive(asked)), strict=True))

    def run(self, study: Study, folder: Path) -> tuple[Arrays, str]:
        """The whole study by the coordinator's own loop; what was learned, and the verdict."""
        state, record = run(self.grid(study), study, initial_state(study), folder=folder)
        return {name: tensor.numpy() for name, tensor in state.items()}, record.verdict


def start_of(study: Study) -> Arrays:
    """The weights that round 1 starts from."""
    return {name: tensor.numpy() for name, tensor in initial_state(study).items()}


def moved_by(study: Study, answer: Answer, *, declared: int) -> npt.NDArray[np.float64]:
    """The noisy sum of clipped gradients that a round of one step of plain SGD must have been made of."""
    start = start_of(study)
    moved = np.concatenate([(v.astype(np.float64) - start[k]).ravel() for k, v in answer.arrays.items()])
    return -moved * study.training.sample_rate * declared / study.training.learning_rate


def _record(arrays: Arrays) -> ArrayRecord:
    return ArrayRecord({name: Array(np.ascontiguousarray(value)) for name, value in arrays.items()})


def _plain(message: Message) -> Answer:
    records: dict[str, dict[str, Any]] = {}
    code, words = None, ""
    if message.has_error():
        code, words = message.error.code, str(message.error.reason)
    else:
        for name, arrays in message.content.array_records.items():
            records[name] = {key: array.numpy() for key, array in arrays.items()}
        for kind in (message.content.metric_records, message.content.config_records):
            for name, record in kind.items():
                records[name] = dict(record.items())
    metadata = {key.lstrip("_"): value for key, value in vars(message.metadata).items()}
    return Answer(records, code, words, message_to_proto(message).SerializeToString(), metadata)
