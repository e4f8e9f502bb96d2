"""konsil's inference as a MONAI inferer: from a whole image to class probabilities on the image's own grid.

This file is copied into bundles beside konsil's own `look.py`, `prepare.py`, `infer.py` and `case.py`, so that what a bundle
computes is what the study computed. Axes: MONAI reads (x, y, z), konsil's volumes are (slices, rows, columns) = (z, y, x).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.inferers import Inferer

from fl_server.registry.looks import Looks
from tasks.case import Volume
from tasks.segmentation.infer import largest, probabilities


class TwoLooks(Inferer):  # type: ignore[misc]  # MONAI is not typed
    """Normalise, look at the whole field and then closer, bring the probabilities back, and keep the largest piece.

    Pieces besides the largest get the background's probability 1.

    The arguments are the fields of `Looks`; lists are taken for tuples, as JSON has them.
    """

    def __init__(self, **settings: Any) -> None:
        tuples: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in settings.items()}
        self.looks = Looks(**tuples)

    def __call__(self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Probabilities (images, classes, x, y, z) of images (images, 1, x, y, z) that carry an affine, in RAS or LPS mm.

        Raises `ValueError` for more than one channel, and for an image without contrast.
        """
        if inputs.ndim != 5 or inputs.shape[1] != 1:
            raise ValueError(f"images of shape (images, 1, x, y, z) are needed, not {tuple(inputs.shape)}")
        affines = torch.as_tensor(inputs.affine).reshape(-1, 4, 4)  # type: ignore[attr-defined]
        found = [self._one(torch.as_tensor(image[0]), affine, network) for image, affine in zip(inputs, affines, strict=True)]
        result: torch.Tensor = MetaTensor(torch.stack(found)).copy_meta_from(inputs, copy_attr=False)  # whose mask it is
        return result

    def _one(self, image: torch.Tensor, affine: torch.Tensor, network: Any) -> torch.Tensor:
        spacing = np.linalg.norm(np.asarray(affine, np.float64)[:3, :3], axis=0)[::-1]
        array = np.ascontiguousarray(np.asarray(image.detach().cpu(), np.float32).transpose(2, 1, 0))
        with torch.inference_mode():
            p, _ = probabilities(network, self.looks, Volume("image", array, np.diag([*spacing, 1.0])))  # type: ignore[arg-type]
        if self.looks.keep_largest:
            found = (p.max(1).indices > 0).cpu().numpy()
            stray = torch.from_numpy(found & ~largest(found.reshape(array.shape)).reshape(found.shape))[:, None].to(p.device)
            p = torch.where(stray, torch.eye(p.shape[1])[0].reshape(1, -1, *[1] * (p.ndim - 2)).to(p), p)
        by_slice = p if self.looks.spatial_dims == 2 else p[0].transpose(0, 1)  # (slices, classes, rows, columns)
        return by_slice.permute(1, 3, 2, 0).clone()
