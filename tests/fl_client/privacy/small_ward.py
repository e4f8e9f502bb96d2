"""A small network and a few patients in memory, for the privacy tests."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from monai.networks.nets import UNet
from torch.nn import functional as F

Patient = tuple[torch.Tensor, torch.Tensor]


@dataclass
class Ward:
    """Patients in memory; every example is the patient's own rows, whatever the generator says."""

    rows: dict[str, Patient] = field(default_factory=dict)

    @property
    def patients(self) -> Sequence[str]:
        return list(self.rows)

    def example(self, patient: str, views: int, rng: np.random.Generator) -> Patient:
        x, y = self.rows[patient]
        return x[:views], y[:views]


def row_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(output, target, reduction="none").flatten(1).mean(1)


def small_unet(**changes) -> UNet:
    settings = {
        "spatial_dims": 2,
        "in_channels": 1,
        "out_channels": 4,
        "channels": (4, 8),
        "strides": (2,),
        "num_res_units": 2,
        "norm": ("group", {"num_groups": 4}),
    }
    torch.manual_seed(0)
    return UNet(**{**settings, **changes})


def some_patients(count: int, *, rows: int = 3, seed: int = 0) -> list[Patient]:
    rng = np.random.default_rng(seed)
    return [
        (torch.from_numpy(rng.normal(size=(rows, 1, 16, 16))), torch.from_numpy(rng.integers(0, 4, (rows, 16, 16))))
        for _ in range(count)
    ]
