"""The network: MONAI's residual U-Net with group norm, and a 1 x 1 convolution that reads its full-resolution features.

Group norm, because batch norm mixes patients. The U-Net alone would have to normalise as many channels as there are
classes, so that the number of groups would have to divide the number of structures plus one; with a separate head it
needn't, and the last layers see more than four channels. Kerfoot et al. 2019, doi:10.1007/978-3-030-12029-0_40.
"""

from __future__ import annotations

import re

import torch
from torch import nn

from tasks.segmentation.settings import Settings

_UPWARD = re.compile(r"body\.model\.(1\.submodule\.)*2\.")
"""MONAI nests each level as (0: down, 1.submodule: the levels below, 2: up)."""


class SegmentationNet(nn.Module):
    """One-channel image (rows, 1, *voxels) -> logits (rows, classes, *voxels); class 0 is background."""

    def __init__(self, settings: Settings) -> None:
        from monai.networks.nets import UNet  # seconds, which a command that only checks a study needn't wait

        super().__init__()
        self.body = UNet(
            spatial_dims=settings.spatial_dims,
            in_channels=1,
            out_channels=settings.head_channels,
            channels=settings.channels,
            strides=settings.strides,
            num_res_units=settings.num_res_units,
            norm=("group", {"num_groups": settings.groups}),
        )
        convolution = nn.Conv2d if settings.spatial_dims == 2 else nn.Conv3d
        self.activation = nn.PReLU()
        self.head = convolution(settings.head_channels, settings.classes, kernel_size=1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits on the image's own grid."""
        logits: torch.Tensor = self.head(self.activation(self.body(image)))
        return logits


def norm_parameters(model: nn.Module) -> set[str]:
    """Names of the parameters of all group norms."""
    return {
        f"{path}.{name}"
        for path, module in model.named_modules()
        if isinstance(module, nn.GroupNorm)
        for name, _ in module.named_parameters()
    }


def trainable(model: nn.Module, settings: Settings) -> list[str]:
    """Names of the parameters that `settings.trainable` lets move.

    `all`; `decoder`: the way up and the head; `norm`: group norms and the head; `head`: the last convolution and the
    activation before it. Fewer parameters take less noise, but learn less.
    """
    names = [name for name, _ in model.named_parameters()]
    head = [name for name in names if name.startswith(("head.", "activation."))]
    if settings.trainable == "all":
        return names
    if settings.trainable == "head":
        return head
    if settings.trainable == "decoder":
        return [name for name in names if name in head or _UPWARD.match(name)]
    norms = norm_parameters(model)
    return [name for name in names if name in norms or name in head]
