"""Monte Carlo dropout: several passes of one network, each with other feature channels left out.

Where the passes disagree, the answer hangs on few features. Gal and Ghahramani 2016 (arXiv:1506.02142) read such passes as
draws from a posterior, for a network that was trained with dropout. konsil's isn't: dropout in training would be one more noise
beside privacy's. Putting it in afterwards still ranks patients by doubt (Ledda et al. 2023, arXiv:2302.02924), but its scale
means nothing, and the report says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

NORMS = (nn.GroupNorm, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm)


@contextmanager
def dropout(model: nn.Module, *, probability: float, seed: int) -> Iterator[None]:
    """Within, every pass of `model` leaves out each channel after each norm with this probability, anew for every row.

    Kept channels are scaled up by 1 / (1 - probability). Equal seeds give equal passes; the process's random numbers are left
    as they were. Raises `ValueError` for a model without a norm, which would answer the same every time.
    """
    places = [module for module in model.modules() if isinstance(module, NORMS)]
    if not places:
        raise ValueError("the model has no norm layer after which channels could be left out")

    def leave_out(_: nn.Module, __: object, output: torch.Tensor) -> torch.Tensor:
        keep = torch.rand(output.shape[:2], generator=generator).to(output) >= probability
        return output * (keep / (1 - probability)).reshape(*keep.shape, *[1] * (output.dim() - 2))

    generator = torch.Generator().manual_seed(seed)
    hooks = [module.register_forward_hook(leave_out) for module in places]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def has_dropout(model: nn.Module) -> bool:
    """Whether the network was trained with dropout."""
    kinds = (nn.Dropout, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
    return any(isinstance(module, kinds) and module.p > 0 for module in model.modules())
