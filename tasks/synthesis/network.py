"""The network: MONAI's diffusion U-Net with group norm, which is told the mask and the facts as channels of its input."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from tasks.segmentation.network import norm_parameters
from tasks.synthesis.settings import Settings
from tasks.synthesis.tone import Tone


class SynthesisNet(nn.Module):
    """Input (rows, channels, *voxels), see `diffusion.composed` -> velocity (rows, *voxels) (Salimans and Ho 2022).

    The last channel of the input is the noise level, 0 to 1, the same everywhere. With `settings.patch` above 1 the body
    works on patches of so many voxels a side (Hoogeboom et al. 2023, arXiv 2301.11093).
    """

    def __init__(self, settings: Settings) -> None:
        from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet  # seconds

        super().__init__()
        self.levels, self.dims, self.patch = settings.levels, settings.spatial_dims, settings.patch
        self.varied = 1 + len(settings.structures) + 1  # channels that differ from voxel to voxel
        folded = self.patch**self.dims
        self.body = DiffusionModelUNet(
            spatial_dims=settings.spatial_dims,
            in_channels=self.varied * folded + settings.facts + settings.tone_knots,
            out_channels=folded,
            num_res_blocks=settings.res_blocks,
            channels=settings.channels,
            attention_levels=settings.attention,
            norm_num_groups=settings.groups,
            num_head_channels=settings.head_channels,  # in the middle block there is always attention
        )
        self.tone = Tone(settings.tone_knots) if settings.tone_knots else None

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """The velocity at the rows' noise levels."""
        from monai.networks.utils import pixelshuffle, pixelunshuffle

        level = rows[:, -1].flatten(1)[:, 0] * self.levels
        varied, told = rows[:, : self.varied], rows[:, self.varied : -1].flatten(2)[:, :, 0]
        if self.tone is not None:
            told = self.tone(told)
        folded = varied if self.patch == 1 else pixelunshuffle(varied, self.dims, self.patch)
        everywhere = told.view(*told.shape, *[1] * self.dims).expand(-1, -1, *folded.shape[2:])
        velocity = self.body(torch.cat([folded, everywhere], dim=1), level)
        return cast("torch.Tensor", (velocity if self.patch == 1 else pixelshuffle(velocity, self.dims, self.patch))[:, 0])


def trainable(model: nn.Module, settings: Settings) -> list[str]:
    """Names of the parameters that `settings.trainable` lets move.

    `all`; `up`: the way up and the last layers; `norm`: group norms and the last layers; `head`: the last norm and convolution;
    `tone`: nothing but the tone. Where there is a tone, it moves with each of them.
    """
    names = [name for name, _ in model.named_parameters()]
    tone = [name for name in names if name.startswith("tone.")]
    if settings.trainable == "tone":
        return tone
    head = [name for name in names if name.startswith("body.out.")] + tone
    if settings.trainable == "all":
        return names
    if settings.trainable == "head":
        return head
    if settings.trainable == "up":
        return [name for name in names if name in head or name.startswith("body.up_blocks.")]
    norms = norm_parameters(model)
    return [name for name in names if name in norms or name in head]
