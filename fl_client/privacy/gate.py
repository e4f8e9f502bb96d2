"""Refuses models whose state would leave the hospital without noise, or that mix patients.

Clipping and noise protect the gradient of the parameters and nothing else. A layer that keeps running statistics writes
patients into buffers that travel with the model; a layer that normalises over the batch ties one row to the others.
Opacus' validator looks only at layers with trainable parameters and lets both through (docs/privacy.md, sharp edges).
"""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

_CONSTANT = {("monai.networks.nets.swin_unetr", "WindowAttention", "relative_position_index")}
"""Buffers that follow from the settings of their layer and never change: module, class, name."""
_INSTEAD = 'use group normalisation (MONAI: norm=("group", {"num_groups": 4}))'


def require_private(model: nn.Module) -> None:
    """Refuse `model` if training it with clipped, noisy gradients would not be private.

    The model is left as it is with one exception: `inplace` is turned off in every layer that has it, because per-patient
    gradients read activations that an in-place layer has overwritten. Outputs don't change.

    Raises
    ------
    TypeError
        For batch normalisation, running statistics, spectral normalisation, lazy layers and any buffer, naming the layer
        and what would be right.
    """
    for name, module in model.named_modules():
        where = name or "the model"
        kind = type(module).__name__
        if isinstance(module, LazyModuleMixin):
            raise TypeError(
                f"{where} is a {kind}: its shape comes from the first patient's data; give the shape when it is built"
            )
        if isinstance(module, _BatchNorm):
            raise TypeError(f"{where} is a {kind}: it normalises over rows and keeps their statistics; {_INSTEAD}")
        if getattr(module, "track_running_stats", False):
            raise TypeError(
                f"{where} ({kind}) keeps running statistics, which would leave without noise; set track_running_stats=False"
            )
        hooks = module._forward_pre_hooks.values()
        if isinstance(module, _SpectralNorm) or any(isinstance(hook, SpectralNorm) for hook in hooks):
            raise TypeError(f"{where} has spectral normalisation, whose power iteration is a buffer without noise; remove it")
    buffers = [
        f"{where}.{name}".lstrip(".")
        for where, module in model.named_modules()
        for name in module._buffers
        if module._buffers[name] is not None and (type(module).__module__, type(module).__name__, name) not in _CONSTANT
    ]
    if buffers:
        raise TypeError(
            f"the model has buffers ({', '.join(buffers[:4])}), which would leave without noise; make constants of them"
        )
    for module in model.modules():
        if getattr(module, "inplace", False) is True:
            setattr(module, "inplace", False)  # noqa: B010 - nn.Module's own __setattr__ is typed for tensors only
