"""Quality parameters of an image, as plain numbers: recorded beside the cohort, deciding nothing.

Noise is estimated from the image itself with the difference operator of Immerkaer (Computer Vision and Image Understanding
64, 1996, 300-302), which needs no empty background and so also holds for images whose air a scanner masked out. Parallel
imaging makes noise uneven over the image, and interpolation by the scanner hides part of it: compare like with like.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from uuid import uuid4

import numpy as np
from scipy import ndimage

from tasks.case import UNKNOWN, Case, Volume

# second differences along both axes: blind to constant and linear intensity
_IMMERKAER = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)


def quality(volume: Volume) -> dict[str, float]:
    """Quality of one volume: `noise_sigma`, `dynamic_range`, `snr` and, with a mask, `contrast_to_noise`.

    `noise_sigma` and `dynamic_range` (1st to 99.9th percentile) are in image units; `snr` is the 90th percentile over
    noise; `contrast_to_noise` is the largest difference of two structures' medians over noise. A noiseless image has
    infinite ratios, recorded as 0.
    """
    image = np.asarray(volume.image, np.float32)
    low, bright, high = np.percentile(image, (1, 90, 99.9))
    result = {"noise_sigma": _noise(image), "dynamic_range": float(high - low), "snr": 0.0}
    if result["noise_sigma"] > 0:
        result["snr"] = float(bright) / result["noise_sigma"]
        if volume.mask is not None:
            labels = [value for value in np.unique(volume.mask) if value not in (0, UNKNOWN)]
            medians = [float(np.median(image[volume.mask == value])) for value in labels]
            if len(medians) > 1:
                result["contrast_to_noise"] = (max(medians) - min(medians)) / result["noise_sigma"]
    return {name: round(value, 4) for name, value in result.items()}


def _noise(image: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> float:
    rows, columns = image.shape[1:]
    if rows < 3 or columns < 3:
        return 0.0
    differences = np.stack([ndimage.convolve(plane, _IMMERKAER)[1:-1, 1:-1] for plane in image])
    # median instead of Immerkaer's mean: edges of anatomy are rare and large. 0.6745 = median of |N(0, 1)|; 6 = |mask|_2
    return float(np.median(np.abs(differences)) / (6 * 0.6745))


def record(folder: Path, case: Case, more: Mapping[str, float | bool | str]) -> None:
    """Write `<folder>/quality/<pseudonym>.json`, whole or not at all: the parameters of each volume, and `more`."""
    place = folder / "quality"
    place.mkdir(exist_ok=True)
    text = {"volumes": {volume.series: quality(volume) for volume in case.volumes}, **more}
    part = place / f".{uuid4().hex}.part"
    try:
        part.write_text(json.dumps(text, indent=1, sort_keys=True))
        part.replace(place / f"{case.patient}.json")
    finally:
        part.unlink(missing_ok=True)
