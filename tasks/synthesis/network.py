"""The network: MONAI's diffusion U-Net with group norm, which is told the mask and the facts as channels of its input."""

from __future__ import annotations

import torch
from torch import nn

from tasks.segmentation.network import norm_parameters
from tasks.synthesis.settings import Settings


class SynthesisNet(nn.Module):
    """Input (rows, channels, *voxels), see `diffusion.composed` -> velocity (rows, *voxels) (Salimans and Ho 2022).

    The last channel of the input is the noise level, 0 to 1, the same everywhere.
    """

    def __init__(self, settings: Settings) -> None:
        from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet  # seconds

        super().__init__()
        self.levels = settings.levels
        self.body = DiffusionModelUNet(
            spatial_dims=settings.spatial_dims,
            in_channels=1 + len(settings.structures) + 1 + settings.facts,
            out_channels=1,
            num_res_blocks=settings.res_blocks,
            channels=settings.channels,
            attention_levels=settings.attention,
            norm_num_groups=settings.groups,
            num_head_channels=settings.head_channels,  # in the middle block there is always attention
        )

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """The velocity at the rows' noise levels."""
        level = rows[:, -1].flatten(1)[:, 0] * self.levels
        velocity: torch.Tensor = self.body(rows[:, :-1], level)
        return velocity[:, 0]


def trainable(model: nn.Module, settings: Settings) -> list[str]:
    """Names of the parameters that `settings.trainable` lets move.

    `all`; `up`: the way up and the last layers; `norm`: group norms and the last layers; `head`: the last norm and convolution.
    """
    names = [name for name, _ in model.named_parameters()]
    head = [name for name in names if name.startswith("body.out.")]
    if settings.trainable == "all":
        return names
    if settings.trainable == "head":
        return head
    if settings.trainable == "up":
        return [name for name in names if name in head or name.startswith("body.up_blocks.")]
    norms = norm_parameters(model)
    return [name for name in names if name in norms or name in head]
