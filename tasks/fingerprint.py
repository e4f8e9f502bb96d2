"""The fingerprint by which a model's weights are known: in the coordinator's record, and to a hospital that is handed them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch


def fingerprint(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes, in the order of the names: equal for equal models.

    Raises `TypeError` for a dtype that numpy hasn't (bfloat16).
    """
    sha = hashlib.sha256()
    for name in sorted(state):
        array = state[name].detach().cpu().contiguous().numpy()
        sha.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()
