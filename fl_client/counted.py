"""What a counting study left in its folder: a noisy sum (`model.pt`) and the record that tells where it comes from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fl_client.trained import read_weights
from tasks.fingerprint import fingerprint
from tasks.provenance import Provenance


@dataclass(frozen=True)
class CountedSum:
    """A released sum, and what the record says of it."""

    state: Mapping[str, torch.Tensor]  # total, noise_variance
    task: dict[str, Any]
    provenance: Provenance


def counted_sum(folder: Path, *, task: str, called: str) -> CountedSum:
    """The sum of a run of this task; `called` names in words what is read from it.

    Raises `ValueError` and `FileNotFoundError` in words, for a run of another kind and for a sum that isn't the record's.
    """
    for name in ("model.pt", "record.json"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is missing: {called} are read from both files of a run's folder")
    state = read_weights(folder / "model.pt")
    try:
        record: dict[str, Any] = json.loads((folder / "record.json").read_text())
        study, rounds = record["study"], record["rounds"]
        settings, privacy = dict(study["task"]), dict(study["privacy"])
        wanted, answers = rounds[-1]["arrays_sha256"], rounds[-1]["sites"]
        private = privacy.get("kind") != "none"
        found = CountedSum(
            state=state,
            task=settings,
            provenance=Provenance(
                study=str(study["name"]),
                study_hash=str(record["study_hash"]),
                hospitals=tuple(site for site, answer in answers.items() if answer["answer"] == "used"),
                epsilon=float(privacy["epsilon"]) if private else None,
                delta=float(privacy["delta"]) if private else None,
                one_noise=privacy.get("secure") is not None,
            ),
        )
    except (KeyError, IndexError, TypeError, ValueError):
        raise ValueError(f"{folder / 'record.json'} is no record of a run that came to its end") from None
    if settings.get("name") != task:
        raise ValueError(f"study {found.provenance.study} learns the task {settings.get('name')}; {called} come from {task}")
    if fingerprint(state) != wanted:
        raise ValueError(f"{folder / 'model.pt'} holds another sum than the record tells of: one of the two was exchanged")
    return found
