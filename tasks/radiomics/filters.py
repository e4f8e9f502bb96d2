"""Filtered images near the regions they are wanted for, bit for bit those that pyradiomics makes of the whole image.

pyradiomics filters the whole image again for every region. Here an image is filtered once for all of its regions, and two
filters that take most of the time only where the regions lie. Both are sums along lines of voxels, so that what lies
beside a line can be left out without a rounding error's difference:

- the Laplacian of Gaussian is a recursion along whole lines, one axis after the other; after an axis is done, only the
  lines through the box are carried on;
- the stationary wavelet transform of one level looks as far as its filter is long.

Other filters are pyradiomics' own. Source of both filters' definitions: radiomics/imageoperations.py of pyradiomics 3.1.4
and itkLaplacianRecursiveGaussianImageFilter.hxx of ITK 5.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pywt
import SimpleITK as sitk
from radiomics import imageoperations

Floats = npt.NDArray[Any]
Box = tuple[slice, ...]
"""Where a region lies in an array (z, y, x)."""

AS_FLOAT32 = (sitk.sitkUInt8, sitk.sitkInt16, sitk.sitkUInt16, sitk.sitkInt32, sitk.sitkFloat32)
"""Pixel types of which ITK's Gaussian filters make float32 at every step."""


def filtered(
    image: sitk.Image, mask: sitk.Image, image_types: Mapping[str, Mapping[str, Any]], settings: Mapping[str, Any], box: Box
) -> Iterator[tuple[str, Floats, dict[str, Any]]]:
    """Name, values inside `box` and settings of every filtered image that the parameters ask for, in pyradiomics' order.

    Parameters
    ----------
    image, mask : sitk.Image
        The whole image and the labelled regions, on the same grid.
    image_types
        pyradiomics' `imageType`: name to what this filter's settings change.
    settings
        pyradiomics' `setting`.
    box
        The part of the image, as slices (z, y, x), that is wanted.
    """
    for kind, changes in image_types.items():
        own = {**settings, **changes}
        if kind == "LoG" and image.GetPixelID() in AS_FLOAT32 and _large_enough(image, own):
            for sigma in own.get("sigma", []):
                yield f"log-sigma-{str(sigma).replace('.', '-')}-mm-3D", _laplacian(image, float(sigma), box), own
        elif kind == "Wavelet" and own.get("level", 1) == 1 and own.get("start_level", 0) == 0:
            yield from ((name, values, own) for name, values in _wavelets(image, own, box))
        else:
            for whole, name, its in getattr(imageoperations, f"get{kind}Image")(image, mask, **own):
                yield name, sitk.GetArrayViewFromImage(whole)[box], its


# -- Laplacian of Gaussian ----------------------------------------------------------------------------------------------


def _large_enough(image: sitk.Image, settings: Mapping[str, Any]) -> bool:
    """Whether pyradiomics would make all of the Laplacians; where it leaves some out, with a warning, it shall do so."""
    size, spacing = np.array(image.GetSize()), np.array(image.GetSpacing())
    sigmas = settings.get("sigma", [])
    return bool(size.min() >= 4 and all(s > 0 and np.all(size >= np.ceil(s / spacing) + 1) for s in sigmas))


def _laplacian(image: sitk.Image, sigma: float, box: Box) -> Floats:
    """ITK's sum over the axes of (second derivative along it, Gaussian along the others) / spacing squared, inside `box`."""
    total: Floats = np.zeros([part.stop - part.start for part in box], np.float32)
    for axis in range(3):
        partial = image
        for along in (axis, *(other for other in range(3) if other != axis)):
            partial = _gaussian(partial, sigma, along, order=2 if along == axis else 0)
            partial = _cropped(partial, along, box[2 - along])
        weight = np.float64(1.0 / image.GetSpacing()[axis] ** 2)
        # in double, and rounded after every axis: ITK's running sum is an image of float32
        total = (total + sitk.GetArrayViewFromImage(partial).astype(np.float64) * weight).astype(np.float32)
    return total


def _gaussian(image: sitk.Image, sigma: float, along: int, *, order: int) -> sitk.Image:
    recursion = sitk.RecursiveGaussianImageFilter()
    recursion.SetSigma(sigma)
    recursion.SetNormalizeAcrossScale(True)
    recursion.SetDirection(along)
    recursion.SetOrder(order)
    return recursion.Execute(image)


def _cropped(image: sitk.Image, along: int, part: slice) -> sitk.Image:
    size, index = list(image.GetSize()), [0, 0, 0]
    size[along], index[along] = part.stop - part.start, part.start
    return sitk.RegionOfInterest(image, size, index)


# -- wavelets -----------------------------------------------------------------------------------------------------------


def _wavelets(image: sitk.Image, settings: Mapping[str, Any], box: Box) -> Iterator[tuple[str, Floats]]:
    """The decompositions of the first level, then the approximation, inside `box`: of a window that holds all they look at."""
    axes = [2, 1, 0]
    if settings.get("force2D", False):
        axes.remove(settings.get("force2Ddimension", 0))
    wavelet = pywt.Wavelet(settings.get("wavelet", "coif1"))
    values = sitk.GetArrayViewFromImage(image)
    window, inside = _window(values.shape, box, axes, reach=wavelet.dec_len)
    parts = pywt.swtn(values[np.ix_(*window)], wavelet, level=1, start_level=0, axes=tuple(axes))[0]
    approximation = "a" * len(axes)
    for name in (*(name for name in parts if name != approximation), approximation):
        yield f"wavelet-{name.replace('a', 'L').replace('d', 'H')}", parts[name][inside]


def _window(
    shape: Sequence[int], box: Box, axes: Sequence[int], *, reach: int
) -> tuple[list[npt.NDArray[np.intp]], tuple[slice, ...]]:
    """Indices of a window that reaches beyond the box, and where the box lies in it.

    Along an axis whose border is within reach it is the whole image, made even as pyradiomics does by repeating the first
    plane behind the last: around the border PyWavelets adds up the same products in another order.
    """
    window, inside = [], []
    for axis, (length, part) in enumerate(zip(shape, box, strict=True)):
        first, last = part.start - reach, part.stop + reach
        last += (last - first) % 2
        if axis not in axes:
            window.append(np.arange(part.start, part.stop))
            inside.append(slice(None))
        elif first < 0 or last > length:
            window.append(np.arange(length + length % 2) % length)
            inside.append(part)
        else:
            window.append(np.arange(first, last))
            inside.append(slice(reach, reach + part.stop - part.start))
    return window, tuple(inside)
