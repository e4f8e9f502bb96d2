"""pyradiomics' feature classes on one region of one filtered image, with what they have in common computed once.

Every feature is computed by pyradiomics' own lines. The classes here only replace what stands under them: where each of its
six classes converts the image, lists its features and discretises the grey levels for itself, these share the arrays.
They rest on the inheritance of pyradiomics' classes; the tests compare every value with pyradiomics' own run.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from radiomics import base, firstorder, glcm, gldm, glrlm, glszm, imageoperations, ngtdm

logging.getLogger("radiomics").setLevel(logging.ERROR)  # it tells of every feature class of every region otherwise


@dataclass(frozen=True, eq=False)
class Region:
    """One region of one filtered image, cut out: `image` and `mask` (z, y, x), `spacing` (x, y, z) in mm."""

    image: npt.NDArray[Any]
    mask: npt.NDArray[np.bool_]
    spacing: tuple[float, ...]

    def GetSpacing(self) -> tuple[float, ...]:
        """The one thing that the feature classes ask of a SimpleITK image."""
        return self.spacing


class _Shared(base.RadiomicsFeaturesBase):  # type: ignore[misc]
    """Stands between a feature class and pyradiomics' base class, and takes its arrays from a `Region`."""

    def __init__(self, region: Region, binned: dict[str, Any], **settings: Any) -> None:  # where an image and a mask stood
        self.logger = logging.getLogger("radiomics")
        self.settings = settings
        self.label = settings.get("label", 1)
        self.voxelBased = False
        self.coefficients: dict[str, Any] = {}
        self.enabledFeatures: dict[str, bool] = {}
        self.featureValues: dict[str, Any] = {}
        self.featureNames = self.getFeatureNames()
        self.inputImage = region
        self.imageArray = region.image
        self.maskArray = region.mask.copy()  # the zone matrix is made by crossing voxels off
        self._binned = binned

    def _applyBinning(self, matrix: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if not self._binned:
            binned, _ = imageoperations.binImage(matrix, self.maskArray, **self.settings)
            present = np.unique(binned[self.maskArray])
            self._binned |= {"levels": binned, "grayLevels": present, "Ng": int(present.max())}
        self.coefficients["grayLevels"] = self._binned["grayLevels"]
        self.coefficients["Ng"] = self._binned["Ng"]
        levels: npt.NDArray[Any] = self._binned["levels"]
        return levels

    @classmethod
    @cache
    def getFeatureNames(cls) -> dict[str, bool]:
        return dict(super().getFeatureNames())


class _FirstOrder(firstorder.RadiomicsFirstOrder, _Shared):  # type: ignore[misc]
    pass


class _GLCM(glcm.RadiomicsGLCM, _Shared):  # type: ignore[misc]
    pass


class _GLRLM(glrlm.RadiomicsGLRLM, _Shared):  # type: ignore[misc]
    pass


class _GLSZM(glszm.RadiomicsGLSZM, _Shared):  # type: ignore[misc]
    pass


class _GLDM(gldm.RadiomicsGLDM, _Shared):  # type: ignore[misc]
    pass


class _NGTDM(ngtdm.RadiomicsNGTDM, _Shared):  # type: ignore[misc]
    pass


CLASSES: dict[str, type[_Shared]] = {
    "firstorder": _FirstOrder,
    "glcm": _GLCM,
    "glrlm": _GLRLM,
    "glszm": _GLSZM,
    "gldm": _GLDM,
    "ngtdm": _NGTDM,
}


def grey_features(
    region: Region, image_type: str, feature_classes: dict[str, list[str] | None], settings: dict[str, Any]
) -> dict[str, float]:
    """The enabled features of one region of one filtered image, by pyradiomics' names; not shape, which has no grey levels.

    An empty list or None enables a whole class, as in a parameter file. A feature that can't be computed is NaN.
    """
    binned: dict[str, Any] = {}
    found: dict[str, float] = {}
    for name, wanted in feature_classes.items():
        if name.startswith("shape"):
            continue
        features = CLASSES[name](region, binned, **settings)
        for feature in wanted or []:
            features.enableFeatureByName(feature)
        found |= {f"{image_type}_{name}_{feature}": float(value) for feature, value in features.execute().items()}
    return found
