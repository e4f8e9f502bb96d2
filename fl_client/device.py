"""Where a hospital computes, in training and when a trained model is applied."""

from __future__ import annotations

import torch

from fl_client.site import Site


def device_of(site: Site) -> torch.device:
    """Its own choice, or the first GPU if there is one. Raises `RuntimeError` for a choice that names no device."""
    if site.device != "auto":
        return torch.device(site.device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
