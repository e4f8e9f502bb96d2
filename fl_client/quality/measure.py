"""The quality parameters of one volume, by modality, and why those that can't be had are missing.

What depends on air is not computed where a scanner blanked the air out, where the image is signed, or where parallel imaging is
declared, which makes noise uneven and leaves aliasing of its own (Dietrich et al. 2007): no number rather than a wrong one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fl_client.quality import ct, mr
from fl_client.quality.scene import look_at, touching
from tasks.case import UNKNOWN, Case, Volume

Modality = Literal["MR", "CT"]

DEFINITIONS = 3
"""Number of the definitions: records with another are measured again. 1 was noise, dynamic range, SNR and contrast alone; 2
took noise in the air of computed tomography that was cut off at -1024 HU for whole."""


@dataclass(frozen=True)
class Quality:
    """Parameters of one volume by name (`conf.quality.METRICS`): None where not measurable, and `why`."""

    values: Mapping[str, float | None]
    why: Mapping[str, str]


def modality(case: Case, volume: Volume) -> Modality:
    """What made the volume: as its scanner says, else as its values do.

    Computed tomography alone has air near -1000 and much of the rest between -200 and 300.
    """
    told = case.scanner.get("modality")
    if told == "MR":
        return "MR"
    if told == "CT":
        return "CT"
    values = volume.image[:: max(1, len(volume.image) // 8), ::4, ::4]
    air, soft = ((values > -1100) & (values < -800)).mean(), ((values > -200) & (values < 300)).mean()
    return "CT" if values.min() < -800 and air > 0.02 and air + soft > 0.6 else "MR"


def measure(volume: Volume, kind: Modality, *, thickness_mm: float | None = None, parallel_imaging: bool = False) -> Quality:
    """The parameters of one volume. `thickness_mm` as its headers say, None if unknown.

    >>> import numpy as np
    >>> noise = np.random.default_rng(0).rayleigh(5, (2, 64, 64)).astype(np.float32)
    >>> noise[:, 16:48, 16:48] += 200
    >>> measure(Volume("lge", noise, np.diag([8.0, 1.5, 1.5, 1.0])), "MR").values["anisotropy"]
    5.333
    """
    down, rows, columns = volume.spacing_mm
    pixel = max(rows, columns)
    values: dict[str, float | None] = {
        "slices": float(len(volume.image)),
        "pixel_mm": pixel,
        "slice_spacing_mm": down,
        "anisotropy": down / pixel,
        "slice_gap_mm": None if thickness_mm is None else down - thickness_mm,
    }
    why = {"slice_gap_mm": "the slice thickness is not known"} if thickness_mm is None else {}
    if kind == "CT":
        found, missing = ct.measure(volume.image, pixel)
    else:
        found, missing = _mr(volume, pixel, parallel_imaging)
    rounded = {name: None if value is None else float(f"{value:.4g}") for name, value in (values | found).items()}
    return Quality(rounded, why | missing)


def _mr(volume: Volume, pixel_mm: float, parallel_imaging: bool) -> tuple[dict[str, float | None], dict[str, str]]:
    scene = look_at(volume.image)
    sigma = mr.noise_sigma(scene)
    blur = mr.blur_px(scene, sigma or 0.0)
    cnr = _contrast(volume) if sigma else None
    values: dict[str, float | None] = {
        **dict.fromkeys(("snr", "snr_air", "uniformity", "ghosting", "air_artifacts", "truncation")),
        "noise_sigma": sigma,
        "cnr": cnr / sigma if cnr is not None and sigma else None,
        "blur_mm": None if blur is None else blur * pixel_mm,
    }
    why: dict[str, str] = {}
    if not scene.darkest_is_zero:  # where zero is unknown, so are air and ratios to it
        why |= dict.fromkeys(("snr", "snr_air", "uniformity", "ghosting", "air_artifacts", "truncation"), NOT_ZERO)
    else:
        values["truncation"] = touching(scene.field[0], scene.body)
        values["uniformity"] = mr.uniformity(scene)
        values["snr"] = scene.level / sigma if sigma else None
        if no_air := "parallel imaging is declared" if parallel_imaging else scene.why_no_air:
            why |= dict.fromkeys(("snr_air", "ghosting", "air_artifacts"), no_air)
        else:
            values["snr_air"] = mr.snr_air(scene)
            values["ghosting"], values["air_artifacts"] = mr.ghosting(scene), mr.air_artifacts(scene)
    reasons = {
        "noise_sigma": "too little tissue",
        "snr": "no noise to compare with",
        "cnr": "no noise to compare with" if not sigma else "fewer than two structures are drawn",
        "uniformity": "too little tissue",
        "blur_mm": "hardly any edges",
    }
    return values, {name: reasons[name] for name in reasons if values[name] is None} | why


NOT_ZERO = "zero is not dark: a signed image, or a cut-out"


def _contrast(volume: Volume) -> float | None:
    """Largest difference of two structures' medians; None for fewer than two."""
    if volume.mask is None:
        return None
    drawn = [value for value in np.unique(volume.mask) if value not in (0, UNKNOWN)]
    medians = [float(np.median(volume.image[volume.mask == value])) for value in drawn]
    return max(medians) - min(medians) if len(medians) > 1 else None
