"""The gate against networks: those that we say we support pass and mix nobody; those that would leak are refused.

What the gate believes is tried, too: in a network that passed, no row may move another's output, and nothing but parameters may
change or be there to leave. The refused ones are those that other tools let through (docs/privacy.md, sharp edges), and each is
also handed to the training loop, which has to refuse it before it looks at a patient.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from fl_client import privacy
from fl_client.privacy import require_private
from simulation.audit.check import Check, Finding, Setting
from simulation.audit.drawn import Silence
from tasks.radiomics.perceptron import Perceptron
from tasks.segmentation.network import SegmentationNet
from tasks.segmentation.settings import Settings

GROUP = ("group", {"num_groups": 4})
_HEART = {
    "spatial_dims": 2, "structures": {"blood_pool": 1, "myocardium": 2, "right_ventricle": 3}, "series": ["cine_ed"],
    "voxels": 16, "field_mm": 192, "roi_mm": 120, "locate": ["blood_pool"], "working_mm": 1.5, "channels": [4, 8],
    "strides": [2], "num_res_units": 2, "head_channels": 4, "groups": 4, "class_weights": [0.5, 1.0, 1.5, 1.0],
    "trainable": "all",
}  # fmt: skip

Built = Callable[[], nn.Module]


def supported() -> dict[str, tuple[Built, tuple[int, ...]]]:
    """Networks that we say we support, and the shape of one row for each."""
    from monai.networks.nets import UNETR, BasicUNet, DynUNet, SegResNet, SwinUNETR, UNet

    def unet(dims: int, norm: object, **more: object) -> Built:
        return lambda: UNet(
            spatial_dims=dims, in_channels=1, out_channels=4, channels=(4, 8), strides=(2,), num_res_units=1, norm=norm, **more
        )

    features = (4, 4, 8, 8, 8, 4)
    flat, deep = (1, 16, 16), (1, 8, 8, 8)
    swin: Built = lambda: SwinUNETR(  # noqa: E731 - one entry of a table like the others
        in_channels=1, out_channels=4, patch_size=2, depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 2), window_size=4,
        feature_size=12, spatial_dims=2, norm_name="instance",
    )  # fmt: skip
    unetr: Built = lambda: UNETR(  # noqa: E731
        1, 4, (32, 32), feature_size=4, hidden_size=24, mlp_dim=16, num_heads=2, norm_name="instance", spatial_dims=2
    )
    return {
        "UNet 2D, group": (unet(2, GROUP), flat),
        "UNet 3D, group": (unet(3, GROUP), deep),
        "UNet 2D, instance": (unet(2, "instance"), flat),
        "UNet 3D, instance with weights": (unet(3, ("instance", {"affine": True})), deep),
        "UNet 2D, group, dropout": (unet(2, GROUP, dropout=0.2), flat),
        "BasicUNet 2D": (lambda: BasicUNet(2, 1, 4, features=features, norm=GROUP), (1, 32, 32)),
        "BasicUNet 3D": (lambda: BasicUNet(3, 1, 4, features=features, norm=GROUP, upsample="nontrainable"), (1, 16, 16, 16)),
        "SegResNet 2D": (
            lambda: SegResNet(2, init_filters=8, out_channels=4, norm=GROUP, blocks_down=(1, 2), blocks_up=(1,)), flat),
        "SegResNet 3D": (
            lambda: SegResNet(3, init_filters=8, out_channels=4, norm=GROUP, blocks_down=(1, 1), blocks_up=(1,)), deep),
        "DynUNet 2D": (lambda: DynUNet(2, 1, 4, [3] * 3, [1, 2, 2], [2, 2], filters=[4, 8, 8], norm_name=GROUP), flat),
        "DynUNet 3D, residual": (
            lambda: DynUNet(3, 1, 4, [3] * 3, [1, 2, 2], [2, 2], filters=[4, 8, 8], norm_name="instance", res_block=True),
            deep),
        "SwinUNETR 2D": (swin, (1, 64, 32)),
        "UNETR 2D": (unetr, (1, 32, 32)),
        "konsil's heart": (lambda: SegmentationNet(Settings.model_validate(_HEART)), flat),
        "perceptron": (lambda: Perceptron(7, [5, 3]), (7,)),
        "logistic regression": (lambda: Perceptron(7, []), (7,)),
    }  # fmt: skip


def refused() -> dict[str, Built]:
    """Networks that must not pass."""
    from monai.networks.nets import AttentionUnet, UNet, VNet

    def unet(norm: object) -> Built:
        return lambda: UNet(
            spatial_dims=2, in_channels=1, out_channels=4, channels=(4, 8), strides=(2,), num_res_units=1, norm=norm
        )

    def buffered() -> nn.Module:
        model = nn.Sequential(nn.Conv2d(1, 4, 3))
        model.register_buffer("seen", torch.zeros(1))
        return model

    return {
        "batch norm": unet("batch"),
        "batch norm without parameters": unet(("batch", {"affine": False})),
        "batch norm without statistics": unet(("batch", {"track_running_stats": False})),
        "batch norm without either": unet(("batch", {"affine": False, "track_running_stats": False})),
        "instance norm with statistics": unet(("instance", {"track_running_stats": True})),
        "instance norm with statistics and weights": unet(("instance", {"track_running_stats": True, "affine": True})),
        "batch norm across processes": lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.SyncBatchNorm(4)),
        "AttentionUnet": lambda: AttentionUnet(2, 1, 4, channels=(4, 8), strides=(2,)),
        "VNet": lambda: VNet(spatial_dims=2),
        "spectral norm": lambda: nn.Sequential(nn.utils.spectral_norm(nn.Conv2d(1, 4, 3))),
        "spectral norm, parametrised": lambda: nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Conv2d(1, 4, 3))),
        "lazy layer": lambda: nn.Sequential(nn.LazyConv2d(4, 3)),
        "lazy batch norm": lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.LazyBatchNorm2d()),
        "any buffer": buffered,
    }


def attack(setting: Setting) -> Finding:
    """Every network, once."""
    found, worst = Finding(), 0.0
    good, bad = supported(), refused()
    for done, (name, (build, shape)) in enumerate(good.items()):
        torch.manual_seed(setting.seed)
        with _quiet():
            model = build()
        try:
            require_private(model)
        except TypeError as error:
            found.problems.append(f"{name} is said to be supported and was refused: {error}")
            continue
        moved = _moved(model, shape, found, name)
        worst = max(worst, moved)
        found.require(moved <= 1e-5, f"{name}: another row moves a row's output by {moved:.2g} of it")
        setting.advance(done + 1, len(good) + len(bad))
    for done, (name, build) in enumerate(bad.items()):
        with _quiet():
            one, other = build(), build()
        found.require(_refuses(require_private, one), f"{name} passed the gate")
        touched: list[str] = []
        found.require(_refuses(_train, other, touched), f"{name} was trained")
        found.require(not touched, f"{name} was shown a patient before it was refused")
        setting.advance(len(good) + done + 1, len(good) + len(bad))
    found.figures = {"passed": len(good), "refused": len(bad), "largest_influence_of_another_row": worst}
    return found


def _moved(model: nn.Module, shape: tuple[int, ...], found: Finding, name: str) -> float:
    """How far the other rows move a row's output, over its length. Also notes whatever is changed by a pass forth and back."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0  # else chance moves it
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)  # some networks begin with zeros
    rows = torch.randn(3, *shape)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    constant = [key for key, tensor in model.named_buffers()]
    whole = model(rows)
    whole.square().mean().backward()
    out = whole.detach()
    with torch.no_grad():
        other = model(torch.cat([rows[:1], 100 * torch.randn(2, *shape) + 7]))
    after = model.state_dict()
    changed = [key for key, tensor in before.items() if not torch.equal(tensor, after[key])]
    found.require(
        not changed and set(before) == set(after), f"{name}: a pass forth and back changes {', '.join(changed) or 'names'}"
    )
    learned = {key for key, _ in model.named_parameters(remove_duplicate=False)}  # MONAI's DynUNet has each under two names
    left = sorted(set(before) - learned - set(constant))
    found.require(not left, f"{name}: beside parameters there would leave {', '.join(left)}")
    return float((out[0] - other[0]).norm() / out[0].norm())


def _train(model: nn.Module, touched: list[str]) -> None:
    class Watched:
        patients = ("one", "two")

        def example(self, patient: str, views: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
            touched.append(patient)
            return torch.randn(2, 1, 16, 16), torch.zeros(2)

    privacy.train(
        model, Watched(), parameters=[p for p in model.parameters() if not isinstance(p, nn.UninitializedParameter)],
        loss=lambda out, y: out.flatten(1).mean(1), steps=1, sample_rate=1.0, views=2, declared_size=2, max_grad_norm=1.0,
        noise_multiplier=1.0, optimizer="sgd", learning_rate=0.1, noise=Silence(), sampling_rng=np.random.default_rng(0),
    )  # fmt: skip


def _refuses(attempt: Callable[..., None], *given: object) -> bool:
    try:
        attempt(*given)
    except TypeError:
        return True
    except Exception:  # it got further than the gate
        return False
    return False


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's warnings about layers that are built here in order to be refused."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


CHECKS = (
    Check(
        "gate",
        "Networks that we support pass and mix no rows; those that keep or mix patients are refused before one is looked at.",
        "certain",
        attack,
    ),
)
