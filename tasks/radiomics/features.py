"""Radiomic features of all regions of an image at once: pyradiomics' numbers, without its repetitions.

    extractor = Extractor.of("parameters.yaml")
    table = extractor.features("image.nii.gz", "regions.nii.gz")   # {label: {feature: value}}

The parameter file is pyradiomics' own, and so is every number; the tests compare them. An image is filtered once for all of
its regions (filters.py) and each region's grey levels are shared by the feature classes (engine.py). Where the parameters
make the numbers depend on the region even before filtering (resampling, cropping first, resegmentation), pyradiomics' own
loop over the regions runs: slower, the same numbers.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
import yaml
from radiomics import imageoperations
from radiomics.featureextractor import RadiomicsFeatureExtractor

from tasks.nifti import problem
from tasks.radiomics.engine import Region, grey_features
from tasks.radiomics.filters import filtered

Features = dict[str, float]
ENGINE = "pyradiomics-bhklab"
"""The release of pyradiomics 3.1 that installs on Python 3.11 to 3.13; imports as `radiomics`."""

BY_REGION = ("resampledPixelSpacing", "preCrop", "resegmentRange")
"""Settings under which pyradiomics cuts or changes the image for every region before it filters."""


LARGEST_LABEL = 2**32 - 1
"""pyradiomics makes UInt32 of a mask."""


class RegionRefused(ValueError):
    """A region has no features; the text says why."""


@dataclass(frozen=True)
class Extractor:
    """An extraction as a parameter file defines it. Equal `hash` means equal numbers on equal images."""

    parameters: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, parameters: Path | str | Mapping[str, Any]) -> Extractor:
        """From a pyradiomics parameter file or its contents. Raises `ValueError`, in words, for one it can't run."""
        if not isinstance(parameters, Mapping):
            try:
                parameters = yaml.safe_load(Path(parameters).read_text())
            except yaml.YAMLError as error:
                raise ValueError(f"{parameters} is no YAML file: {error}") from None
        if not isinstance(parameters, Mapping):
            raise ValueError("a parameter file holds imageType, featureClass and setting")
        extractor = cls(dict(parameters))
        _ = extractor._pyradiomics  # read now, so that a mistake is the file's and not the first patient's
        return extractor

    @cached_property
    def hash(self) -> str:
        """SHA-256 of everything that decides a feature's value beside image and mask: parameters, engine, this package."""
        return hashlib.sha256(json.dumps([self.settled, version(), _sources()], sort_keys=True).encode()).hexdigest()

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the features, in order: those of a small made-up image."""
        image = np.random.default_rng(0).normal(100, 30, (16, 16, 16)).astype(np.float32)
        mask = np.zeros(image.shape, np.uint8)
        mask[4:12, 4:12, 4:12] = 1
        return tuple(self.features(to_image(image, (1, 1, 1)), to_image(mask, (1, 1, 1)))[1])

    def features(
        self, image: sitk.Image | Path | str, mask: sitk.Image | Path | str, labels: Sequence[int] | None = None
    ) -> dict[int, Features]:
        """Features by region, for `labels` or for every label of the mask but 0, in pyradiomics' order.

        A value that is undefined for a region is NaN. Raises `RegionRefused`, in words, for an image or mask that can't be
        used, or a label that is absent, one voxel, or of too few dimensions or voxels for the parameters.
        """
        image, mask = to_volume(image, "image"), to_volume(mask, "mask")
        _require_same_grid(image, mask)
        values, regions = sitk.GetArrayViewFromImage(image), sitk.GetArrayFromImage(mask)
        if not np.isfinite(values).all():
            raise RegionRefused(f"the image holds {int((~np.isfinite(values)).sum())} values that are not finite")
        if not np.issubdtype(regions.dtype, np.integer):
            raise RegionRefused(f"a mask of regions holds whole numbers, not {regions.dtype}")
        if regions.min() < 0 or regions.max() > LARGEST_LABEL:
            raise RegionRefused(f"labels of regions lie between 1 and {LARGEST_LABEL}, not {regions.min()} to {regions.max()}")
        mask = to_image(regions, (1, 1, 1))
        mask.CopyInformation(image)  # they are the same grid, to a rounding error that SimpleITK would not take
        found = [int(label) for label in np.unique(regions) if label != 0]
        labels = found if labels is None else [int(label) for label in labels]
        if not labels:
            raise RegionRefused("the mask is empty: no voxel belongs to a region")
        if absent := sorted(set(labels) - set(found)):
            raise RegionRefused(f"region {absent[0]} is empty; the mask holds {', '.join(map(str, found)) or 'none'}")
        if self._by_region:
            return {label: self._alone(image, mask, label) for label in labels}
        boxes = {label: self._box(regions == label, label) for label in labels}
        try:
            return self._together(image, mask, regions, boxes)
        except (ValueError, RuntimeError) as error:  # of a filter, such as a logarithm of nothing but zeros
            raise RegionRefused(f"these parameters can't be applied to this image: {error}") from None

    # -- inside -----------------------------------------------------------------------------------------------------

    @cached_property
    def _pyradiomics(self) -> RadiomicsFeatureExtractor:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # pykwalify loads its extensions the old way
                # a copy: it writes into what it is given
                extractor = RadiomicsFeatureExtractor(json.loads(json.dumps(dict(self.parameters))))
        except Exception as error:  # pykwalify raises many kinds
            raise ValueError(f"pyradiomics can't read these parameters: {str(error).splitlines()[0]}") from None
        extractor.settings["additionalInfo"] = False
        if lacking := sorted({"LBP2D", "LBP3D"} & set(extractor.enabledImagetypes)):
            raise ValueError(f"imageType {lacking[0]} is not offered: pyradiomics leaves it out where scikit-image is missing")
        if not extractor.settings.get("force2D", False) and "shape2D" in extractor.enabledFeatures:
            if "shape2D" in self.parameters.get("featureClass", {}):
                raise ValueError("featureClass shape2D needs the setting force2D: true")
            del extractor.enabledFeatures["shape2D"]  # everything was enabled, because nothing was named
        return extractor

    @property
    def settled(self) -> dict[str, Any]:
        """The parameters with pyradiomics' defaults filled in."""
        settings = {name: value for name, value in self._pyradiomics.settings.items() if name != "label"}
        return {"image": self._pyradiomics.enabledImagetypes, "feature": self._pyradiomics.enabledFeatures, "set": settings}

    @property
    def _by_region(self) -> bool:
        settings = self._pyradiomics.settings
        return any(settings.get(name) for name in BY_REGION)

    def _box(self, region: npt.NDArray[np.bool_], label: int) -> tuple[slice, ...]:
        """The smallest box (z, y, x) around a region that is large enough for the parameters."""
        where = np.argwhere(region)
        low, high = where.min(0), where.max(0) + 1
        dimensions = int(((high - low) > 1).sum())
        least = self._pyradiomics.settings.get("minimumROIDimensions", 2)
        smallest = self._pyradiomics.settings.get("minimumROISize") or 0
        if dimensions == 0:
            raise RegionRefused(f"region {label} is a single voxel: it has no texture and no shape")
        if dimensions < least:
            raise RegionRefused(f"region {label} extends in {dimensions} of 3 directions; the parameters ask for {least}")
        if len(where) <= smallest:
            raise RegionRefused(f"region {label} has {len(where)} voxels; the parameters ask for more than {smallest}")
        return tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))

    def _alone(self, image: sitk.Image, mask: sitk.Image, label: int) -> Features:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            try:
                found = self._pyradiomics.execute(image, mask, label=label)
            except (ValueError, RuntimeError) as error:
                raise RegionRefused(f"region {label}: {error}") from None
        return {name: float(value) for name, value in found.items()}

    def _together(
        self, image: sitk.Image, mask: sitk.Image, regions: npt.NDArray[Any], boxes: Mapping[int, tuple[slice, ...]]
    ) -> dict[int, Features]:
        pyradiomics = self._pyradiomics
        settings = dict(pyradiomics.settings)
        labelled = sitk.Cast(mask, sitk.sitkUInt32)
        with warnings.catch_warnings(), np.errstate(all="ignore"):  # what is undefined comes out as NaN, and is looked at
            warnings.simplefilter("ignore")
            if settings.get("normalize"):
                image = imageoperations.normalizeImage(image, **settings)
            result: dict[int, Features] = {}
            for label, box in boxes.items():
                bounds = np.array([edge for part in reversed(box) for edge in (part.start, part.stop - 1)])
                shape = pyradiomics.computeShape(image, labelled, bounds, **{**settings, "label": label})
                result[label] = {name: float(value) for name, value in shape.items()}
            every = tuple(
                slice(min(box[axis].start for box in boxes.values()), max(box[axis].stop for box in boxes.values()))
                for axis in range(3)
            )
            for name, values, own in filtered(image, labelled, pyradiomics.enabledImagetypes, settings, every):
                for label, box in boxes.items():
                    inner = tuple(slice(b.start - e.start, b.stop - e.start) for b, e in zip(box, every, strict=True))
                    region = Region(np.ascontiguousarray(values[inner]), regions[box] == label, image.GetSpacing())
                    result[label] |= grey_features(region, name, pyradiomics.enabledFeatures, {**own, "label": label})
        return result


def version() -> str:
    """The engine and the libraries under it that decide the numbers."""
    packages = (ENGINE, "SimpleITK", "PyWavelets", "numpy")
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)


@cache
def _sources() -> str:
    files = [Path(__file__).with_name(name) for name in ("features.py", "filters.py", "engine.py")]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def to_image(values: npt.NDArray[Any], spacing_mm: Sequence[float]) -> sitk.Image:
    """An array (slices, rows, columns) and its spacing along the same axes as an image that pyradiomics takes."""
    image = sitk.GetImageFromArray(values)
    image.SetSpacing(tuple(float(mm) for mm in reversed(spacing_mm)))
    return image


def to_volume(image: sitk.Image | Path | str, what: str) -> sitk.Image:
    """An image or a file of one. Raises `RegionRefused`, in words, unless it is one volume of three axes."""
    if isinstance(image, sitk.Image):
        found = image
    else:
        if not Path(image).is_file():
            raise RegionRefused(f"there is no {what} {image}")
        if Path(image).name.endswith((".nii", ".nii.gz")) and (wrong := problem(Path(image))):
            raise RegionRefused(f"the {what} {image} {wrong}")  # SimpleITK would read a NaN as 0
        try:
            found = sitk.ReadImage(str(image))
        except RuntimeError:
            raise RegionRefused(f"the {what} {image} can't be read: NIfTI, NRRD or MetaImage is expected") from None
    if found.GetDimension() != 3 or found.GetNumberOfComponentsPerPixel() != 1:
        size, channels = found.GetSize(), found.GetNumberOfComponentsPerPixel()
        raise RegionRefused(f"the {what} must be one volume of three axes, not {size} with {channels} components")
    return found


def _require_same_grid(image: sitk.Image, mask: sitk.Image) -> None:
    """Masks are never resampled here: that is decided at the door in, where a person sees it."""
    if image.GetSize() != mask.GetSize():
        raise RegionRefused(f"image {image.GetSize()} and mask {mask.GetSize()} (x, y, z) differ in size")
    for what, tolerance in (("Spacing", 1e-4), ("Origin", 1e-3), ("Direction", 1e-4)):
        one, other = getattr(image, f"Get{what}")(), getattr(mask, f"Get{what}")()
        if not np.allclose(one, other, rtol=0, atol=tolerance):
            raise RegionRefused(f"the mask is off the image's grid: {what.lower()} {_short(other)} instead of {_short(one)}")


def _short(numbers: Sequence[float]) -> str:
    return "(" + ", ".join(f"{number:.4g}" for number in numbers) + ")"
