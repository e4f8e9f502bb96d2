"""Patients who are made to go wrong: alike in every row, far too bright, empty; and rows of tables of all kinds.

An ordinary patient moves a sum by less than the bound even where clipping is broken. These don't.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from tasks.case import Case, Volume

SEGMENTATION: dict[str, Any] = {
    "name": "segmentation",
    "voxels": 16,
    "field_mm": 80,
    "roi_mm": None,
    "working_mm": 4,
    "channels": [4, 8],
    "strides": [2],
    "groups": 2,
    "head_channels": 4,
}
"""A U-Net that trains in milliseconds."""
COLUMNS = [{"name": "marker", "lower": -4, "upper": 4}, {"name": "age", "lower": 20, "upper": 90}]
FOREST: dict[str, Any] = {
    "name": "radiomics",
    "clinical": COLUMNS,
    "label": {"endpoint": "ill"},
    "learner": {"kind": "forest", "trees": 32, "depth": 4},
    "bins": 4,
}
PERCEPTRON: dict[str, Any] = FOREST | {"learner": {"kind": "perceptron", "hidden": [24, 24]}}
LOGISTIC: dict[str, Any] = FOREST | {"learner": {"kind": "perceptron"}}
COUNT: dict[str, Any] = {
    "name": "count",
    "tables": [
        {"axes": [{"field": "endpoint.age", "edges": list(range(21, 90, 3))}, {"field": "endpoint.ill", "values": [0, 1]}]},
        {"axes": [{"field": "image.cine_ed"}, {"field": "mask.cine_ed"}]},
    ],
}
KINDS = ("ordinary", "alike", "bright", "black")


def case(patient: str, number: int, kind: str = "ordinary", **endpoints: Any) -> Case:
    """A heart of two series, a disc in a ring, and a row of a table. `kind` is one of `KINDS`."""
    rng = np.random.default_rng([number, 0x61756469])
    rows, columns = np.mgrid[:32, :32]
    volumes = []
    for series in ("cine_ed", "cine_es"):
        radius = np.hypot(rows - 16 - rng.normal(), columns - 16 - rng.normal())
        mask = np.stack([np.where(radius < 5, 1, np.where(radius < 8, 2, 0)).astype(np.uint8)] * 3)
        image = 100 + 100.0 * (mask == 1) - 50.0 * (mask == 2)
        if kind == "ordinary":
            image = image + 10 * rng.normal(size=mask.shape)
        elif kind == "bright":
            image = image * 1e6 * (1 + rng.random(mask.shape))
        elif kind == "black":
            image = image * 0
            mask = np.full_like(mask, 3)
        volumes.append(Volume(series, image.astype(np.float32), np.diag([8.0, 3.0, 3.0, 1.0]), mask))
    marker = float(rng.normal())
    facts = {"marker": marker, "age": float(rng.uniform(30, 80)), "ill": int(marker + rng.normal() / 2 > 0)}
    return Case(patient, tuple(volumes), {**facts, **endpoints})


Patient = tuple[Tensor, Tensor]


@dataclass
class Ward:
    """Patients in memory, for `fl_client.privacy.train`; every example is the patient's own rows."""

    rows: dict[str, Patient] = field(default_factory=dict)

    @property
    def patients(self) -> Sequence[str]:
        """Pseudonyms."""
        return list(self.rows)

    def example(self, patient: str, views: int, rng: np.random.Generator) -> Patient:
        """The first `views` rows."""
        x, y = self.rows[patient]
        return x[:views], y[:views]


class Silence:
    """Noise that is none, where a check needs the bare sum. It says that it is seeded, so that it passes for no other."""

    source: Literal["os", "seeded"] = "seeded"

    def gaussian(self, like: Tensor, std: float) -> Tensor:
        """Zeros."""
        return torch.zeros_like(like, dtype=torch.float64)


class Direction(nn.Module):
    """One weight per coordinate; the loss is the product with the input, so a patient's gradient is that patient's input."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.weight = nn.Linear(length, 1, bias=False)
        nn.init.zeros_(self.weight.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(rows, length) to (rows,)."""
        out: Tensor = self.weight(x).squeeze(1)
        return out


def as_it_is(output: Tensor, target: Tensor) -> Tensor:
    """The loss of `Direction`: its output, (rows,)."""
    return output
