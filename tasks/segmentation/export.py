"""The trained network for programs that don't have konsil: TorchScript with a sidecar.

The TorchScript file holds the network alone, from a normalised look to logits; the JSON beside it says in words and
numbers how a look is made and what the outputs are. TorchScript, because it loads with PyTorch alone, in Python or C++.
"""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path

import torch
from torch.jit._trace import TracerWarning

from tasks.segmentation.settings import Settings


def export_torchscript(model: torch.nn.Module, settings: Settings, path: Path | str) -> Path:
    """Write the network to `path` (.pt) and its description to the same name with .json. Returns the sidecar's path.

    The file is checked before this returns: loaded again, it gives the same logits. Raises `RuntimeError` if it doesn't.
    """
    path = Path(path)
    frozen = copy.deepcopy(model).cpu().eval()
    example = torch.rand(2, 1, *settings.voxels, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is frozen but loads everywhere
        warnings.simplefilter("ignore", TracerWarning)  # group norm checks its input's shape while it is traced
        torch.jit.trace(frozen, example, check_trace=False).save(str(path))  # type: ignore[no-untyped-call]
        loaded = torch.jit.load(str(path))  # type: ignore[no-untyped-call]
        expected = frozen(example[:1])
        if not torch.allclose(loaded(example[:1]), expected, atol=1e-4):
            raise RuntimeError(f"{path} doesn't give the model's own logits")
    sidecar = path.with_suffix(".json")
    sidecar.write_text(json.dumps(description(settings), indent=1))
    return sidecar


def description(settings: Settings) -> dict[str, object]:
    """What a program needs to use the network alone."""
    axes = ["rows", "columns"] if settings.spatial_dims == 2 else ["slices", "rows", "columns"]
    looks: dict[str, object] = {
        "wide": {
            "field_mm": settings.field_mm,
            "spacing_mm": [f / n for f, n in zip(settings.field_mm, settings.voxels, strict=True)],
            "centre": "middle of the image",
        }
    }
    if settings.roi_mm is not None:
        looks["close"] = {
            "field_mm": settings.roi_mm,
            "spacing_mm": [f / n for f, n in zip(settings.roi_mm, settings.voxels, strict=True)],
            "centre": f"middle of {', '.join(settings.locate or settings.structures)} as found by the wide look",
        }
    return {
        "schema": "konsil-segmentation/1",
        "input": {"shape": ["rows of any number", 1, *settings.voxels], "axes": ["row", "channel", *axes], "dtype": "float32"},
        "looks": looks,
        "normalisation": "per volume: 1st percentile -> 0, 99th -> 1 (of the voxels in the middle "
        f"{' x '.join(f'{mm:g}' for mm in settings.working_field_mm)} mm), cut to 0..1.5; outside the image 0",
        "output": {"shape": ["rows", settings.classes, *settings.voxels], "meaning": "logits; softmax over axis 1"},
        "classes": ["background", *settings.structures],
        "mask_values": {"background": 0, **settings.structures},
    }
