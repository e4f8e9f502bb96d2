"""A case as the generator learns from it: images and masks as the segmentation task has them, and what is known of each."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tasks.case import Case
from tasks.segmentation.prepare import prepare as prepare_images
from tasks.synthesis.settings import Settings
from tasks.task import Arrays


def prepare(case: Case, settings: Settings) -> Arrays:
    """`tasks.segmentation.prepare.prepare`'s arrays, and `facts` (N, facts) float32: 1 for what holds of each image, else 0.

    Raises `ValueError` for a case without a usable mask.
    """
    arrays = prepare_images(case, settings.looks)
    usable = [v.series for v in case.volumes if v.series in settings.series and v.mask is not None]
    told = np.stack([facts(case, series, settings) for series in usable])
    return {**arrays, "facts": told[arrays["volume"]]}


def facts(case: Case, series: str, settings: Settings) -> npt.NDArray[np.float32]:
    """Which series an image is, and which of the conditions' values hold of the patient, (facts,).

    A condition is looked for among the endpoints, then in what is known of the scanner; a value that isn't listed, or isn't
    known, leaves its places 0. Capitals don't count, nor what follows a listed word: GE MEDICAL SYSTEMS is a GE.
    """
    told = [float(series == one) for one in settings.series]
    for name, values in settings.conditions.items():
        found = case.endpoints.get(name, case.scanner.get(name))
        told += [float(found is not None and _is(str(found), value)) for value in values]
    return np.array(told, np.float32)


def _is(found: str, value: str) -> bool:
    return f"{found.casefold()} ".startswith(f"{value.casefold()} ")
