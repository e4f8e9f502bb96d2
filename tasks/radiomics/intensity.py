"""Grey values that mean the same on every scanner, from one patient alone, before features are taken.

Late enhancement is shown in arbitrary units: phase-sensitive images have an offset, magnitude images have none, and each
vendor scales. What is bright is bright compared with remote muscle and with blood, and both stand in every patient's own image;
no other patient is needed, so it costs no privacy. Which way was chosen, and against which others: docs/signature.md.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.radiomics.segments import BLOOD_POOL, MYOCARDIUM

SCALES = ("remote", "myocardium", "none")
"""`remote`: 0 is the 20th percentile of the myocardium, 100 the distance from the 10th to the 90th of myocardium and
left-ventricular blood. `myocardium`: mean 0 and standard deviation 100 over the patient's myocardium. `none`: unchanged."""

REMOTE_PERCENTILE = 20.0
"""Normal muscle is nulled, so the darkest part of the wall is remote, even where 41 of 100 segments are enhanced."""
RANGE_PERCENTILES = (10.0, 90.0)
"""Dark muscle to bright blood, or to scar: this distance does not come near 0, as that between remote muscle and blood does in
amyloid."""


def standardised(image: npt.NDArray[Any], mask: npt.NDArray[np.uint8], how: str = "remote") -> npt.NDArray[np.float32]:
    """The image (slices, rows, columns) in a patient's own units; the same whatever offset and positive scale it had.

    `mask` of the same shape holds 1 left-ventricular blood pool, 2 myocardium; other values play no part. Raises `ValueError`,
    in words, for an unknown `how`, another shape, values that are not finite, a mask without myocardium (or, for `remote`,
    without blood pool), and an image that is flat there.
    """
    if how not in SCALES:
        raise ValueError(f"no intensity scale named '{how}'; known are {', '.join(SCALES)}")
    if image.ndim != 3 or image.shape != mask.shape:
        raise ValueError(f"image {image.shape} and mask {mask.shape} must have the same three axes (slices, rows, columns)")
    values = np.asarray(image, np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"the image holds {int((~np.isfinite(values)).sum())} values that are not finite")
    if how == "none":
        return values.astype(np.float32)
    muscle = values[mask == MYOCARDIUM]
    if muscle.size == 0:
        raise ValueError("the mask has no myocardium (label 2), so there is nothing to set the intensity scale by")
    if how == "myocardium":
        zero, unit = float(muscle.mean()), float(muscle.std())
        where = "the myocardium"
    else:
        blood = values[mask == BLOOD_POOL]
        if blood.size == 0:
            raise ValueError("the mask has no left-ventricular blood pool (label 1), which the intensity scale 'remote' needs")
        zero = float(np.percentile(muscle, REMOTE_PERCENTILE))
        low, high = np.percentile(np.concatenate([muscle, blood]), RANGE_PERCENTILES)
        unit, where = float(high - low), "the left ventricle"
    if not unit > 1e-6 * max(abs(zero), 1e-30):
        raise ValueError(f"the image is flat in {where} (spread {unit:g} around {zero:g}), so it has no intensity scale")
    return ((values - zero) * (100 / unit)).astype(np.float32)
