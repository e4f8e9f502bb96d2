"""CT crops of drawn lungs: a kernel, a slice thickness and a dose of no hospital, in Hounsfield units.

Partial volume is the mean over the slice's thickness; the kernel blurs in the plane and, if it is sharp, overshoots at edges.
Quantum noise has little power at low and at high frequencies (a ramp times the kernel: Riederer et al. 1978, Phys Med Biol
23:446), so that it is mottled in the plane, and it is independent between slices that don't overlap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from simulation.lung import CROP_MM, Grid, Lung, draw_lung
from simulation.lung_tissue import density
from tasks.case import Case, Volume

Floats = npt.NDArray[np.float32]
NODULE = 1
"""Mask value, as in conf/labels/nodule.yaml."""
OUTWARDS_MM = (0.2, 0.3)
"""Mean and standard deviation over readers of how far outside the surface they draw: assumed, chosen on no real scan."""
MANUFACTURERS = ("GE MEDICAL SYSTEMS", "SIEMENS", "PHILIPS", "CANON")
LOWEST, HIGHEST = -1024, 3071
"""Hounsfield units that 12 bits hold."""


@dataclass(frozen=True)
class Protocol:
    """How one crop is scanned and reconstructed."""

    manufacturer: str
    pixel_mm: float
    slice_mm: float  # thickness and distance of the slices
    kernel: Literal["soft", "sharp"]
    blur_mm: float  # standard deviation of the point spread in the plane
    overshoot: float  # of the kernel at edges
    noise_hu: float  # standard deviation


def draw_protocol(seed: int) -> Protocol:
    """The protocol of this seed: 1 to 3 mm, soft or sharp, screening or full dose."""
    rng = np.random.default_rng([seed, 126])
    thick = float(rng.choice([1.0, 1.25, 1.5, 2.0, 2.5, 3.0]))
    sharp = rng.random() < 0.45
    dose = np.exp(rng.uniform(np.log(9), np.log(32)))  # noise at 1 mm with a soft kernel, HU
    return Protocol(
        manufacturer=str(rng.choice(MANUFACTURERS)),
        pixel_mm=float(rng.uniform(0.6, 0.86)),
        slice_mm=thick,
        kernel="sharp" if sharp else "soft",
        blur_mm=float(rng.uniform(0.28, 0.4) if sharp else rng.uniform(0.45, 0.65)),
        overshoot=float(rng.uniform(0.5, 1.2) if sharp else rng.uniform(0, 0.15)),
        noise_hu=float(dose / np.sqrt(thick) * (rng.uniform(1.6, 2.6) if sharp else 1)),
    )


def nodule_case(seed: int, *, oversampling: int = 2) -> Case:
    """The case of this seed: a crop of 64 mm with series `ct` (int16, HU), mask 1 nodule; equal seeds, equal bytes.

    The axes are (inferior to superior, anterior to posterior, right to left). Endpoints: age, sex, nodule_type, attachment;
    diameter_mm, the mean of long and short axis where the drawn nodule is largest in an axial slice (Bankier et al. 2017,
    Radiology 285:584), and volume_mm3, both of the mask. Slices are averages of points about 2 mm / `oversampling` apart.
    """
    lung, protocol = draw_lung(seed), draw_protocol(seed)
    rng = np.random.default_rng([seed, 127])
    outwards = float(np.clip(rng.normal(*OUTWARDS_MM), -0.5, 1.0))
    parts = max(1, round(protocol.slice_mm * oversampling / 2))
    grid = _grid(lung, protocol, parts)
    found = density(lung, grid)
    image = reconstructed(_slices(found.hu, parts), protocol, rng)
    width = float(np.mean(grid.step_mm))
    mask = _mask(_slices(np.clip((found.depth_mm + outwards) / width + 0.5, 0, 1), parts))
    affine = _affine(lung, protocol, image.shape)
    return Case(
        patient=f"G{seed:08d}",
        volumes=(Volume("ct", image, affine, mask),),
        endpoints={
            "age": lung.age,
            "sex": lung.sex,
            "nodule_type": lung.nodule.kind,
            "attachment": lung.nodule.attachment,
            "diameter_mm": round(diameter_mm(mask, protocol.pixel_mm), 2),
            "volume_mm3": round(float(mask.sum()) * protocol.pixel_mm**2 * protocol.slice_mm, 1),
        },
        scanner={"manufacturer": protocol.manufacturer, "modality": "CT"},
    )


def diameter_mm(mask: npt.NDArray[np.uint8], pixel_mm: float) -> float:
    """Mean of the axes of the ellipse with the second moments of the largest axial section; 0 without one."""
    section = mask[int(mask.sum(axis=(1, 2)).argmax())]
    where = np.argwhere(section) * pixel_mm
    if not len(where):
        return 0.0
    spread = (
        np.cov(where.T, ddof=0).reshape(2, 2) + np.eye(2) * pixel_mm**2 / 12 if len(where) > 1 else np.eye(2) * pixel_mm**2 / 12
    )
    return float(4 * np.sqrt(np.linalg.eigvalsh(spread)).mean())


def _grid(lung: Lung, protocol: Protocol, parts: int) -> Grid:
    rows, slices = round(CROP_MM / protocol.pixel_mm), round(CROP_MM / protocol.slice_mm)
    step = protocol.slice_mm / parts, protocol.pixel_mm, protocol.pixel_mm
    return Grid((slices * parts, rows, rows), step, lung.offset_mm)


def _slices(fine: Floats, parts: int) -> Floats:
    return np.asarray(fine.reshape(-1, parts, *fine.shape[1:]).mean(axis=1), np.float32)


def reconstructed(hu: Floats, protocol: Protocol, rng: np.random.Generator) -> npt.NDArray[np.int16]:
    """The kernel's blur and overshoot, and noise with the kernel's texture."""
    noise = rng.standard_normal(hu.shape, np.float32)
    blur = protocol.blur_mm / protocol.pixel_mm

    def smoothed(image: Floats, sigma: float) -> Floats:
        return np.asarray(ndimage.gaussian_filter(image, (0, sigma, sigma), truncate=3), np.float32)

    image, wide = smoothed(hu, blur), smoothed(hu, 2.2 * blur)
    image += np.float32(protocol.overshoot) * (image - wide)
    mottle = smoothed(noise, blur) - smoothed(noise, 2.4 * blur)
    image += np.float32(protocol.noise_hu) * mottle / mottle.std()
    return np.clip(np.rint(image), LOWEST, HIGHEST).astype(np.int16)


def _mask(share: Floats) -> npt.NDArray[np.uint8]:
    """Voxels that are more than half nodule, in one piece; of one that is too small for that the fullest voxel."""
    drawn = share > min(0.5, 0.999 * float(share.max()))
    pieces, count = ndimage.label(drawn)
    if count > 1:
        drawn = pieces == 1 + np.bincount(pieces.ravel())[1:].argmax()
    return np.asarray(drawn, np.uint8) * np.uint8(NODULE)


def _affine(lung: Lung, protocol: Protocol, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """Index to LPS: slices upwards, rows backwards, columns to the left; about where that lung is."""
    pixel = protocol.pixel_mm
    affine = np.array([[0, 0, pixel, 0], [0, pixel, 0, 0], [protocol.slice_mm, 0, 0, 0], [0, 0, 0, 1]], np.float64)
    middle = np.array([80.0 if lung.side == "left" else -80.0, 0.0, 0.0])
    affine[:3, 3] = middle - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine
