"""T1 crops of drawn brains: a random grey value for every tissue, and what a scanner does to a picture.

After SynthSeg (Billot et al. 2023, doi:10.1016/j.media.2023.102789): the contrast is drawn anew for every patient, within what
T1-weighted images of several scanners show, so that a network learns shapes and neighbours and not one hospital's grey values.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from simulation.brain import Box, Brain, draw_brain, wander
from simulation.brain_tissue import Place, Tissue, locate, tissues
from tasks.case import Case, Volume

Floats = npt.NDArray[np.float32]
ANTERIOR, POSTERIOR = 1, 2
"""Mask values, as in conf/labels/hippocampus.yaml: head, and body with tail."""

OUTWARDS_MM = (0.35, 0.3)
"""Mean and standard deviation over readers of how far outside the tissue border they draw. Chosen on hippocampus_001 and
hippocampus_003 of the Medical Segmentation Decathlon, and on no other real scan."""
MARGIN_MM = (4, 9)
"""How much is left around the hippocampus when a crop is cut, on each side."""
MANUFACTURERS = ("PHILIPS", "SIEMENS", "GE MEDICAL SYSTEMS", "CANON")


@dataclass(frozen=True)
class Contrast:
    """Grey values of one examination, white matter at 1, and how the scanner spoils them."""

    grey: tuple[float, ...]  # by Tissue
    strata: float  # standard deviation inside the hippocampus, as a part
    texture: float  # inside all tissues, as a part
    blur_mm: float  # standard deviation of the point spread
    bias: float
    noise: float
    gamma: float
    scale: float


def draw_contrast(seed: int) -> Contrast:
    """A T1 contrast of no hospital: fluid darker than grey, grey darker than white matter, everything else drawn."""
    rng = np.random.default_rng([seed, 83])
    cortex, fluid = rng.uniform(0.42, 0.72), rng.uniform(0.05, 0.3)

    def between(low: float, high: float) -> float:
        """Part of the way from cortex to white matter."""
        return float(cortex + rng.uniform(low, high) * (1 - cortex))

    grey = {
        Tissue.WHITE: 1.0,
        Tissue.CORTEX: cortex,
        Tissue.FLUID: fluid,
        Tissue.HIPPOCAMPUS: cortex * rng.uniform(0.93, 1.12),
        Tissue.AMYGDALA: cortex * rng.uniform(0.93, 1.15),
        Tissue.THALAMUS: between(0.4, 0.9),
        Tissue.NUCLEI: between(0.1, 0.6),
        Tissue.BRAINSTEM: between(0.6, 1.05),
        Tissue.CEREBELLUM: cortex * rng.uniform(0.85, 1.2),
        Tissue.FOLIA: rng.choice([0.5 * (fluid + cortex), between(0.2, 0.8)]),
        Tissue.FIMBRIA: between(0.5, 1.0),
        Tissue.VESSEL: rng.choice([1.4, 1.0, fluid]),
    }
    return Contrast(
        grey=tuple(float(grey[tissue]) for tissue in Tissue),
        strata=float(rng.uniform(0.02, 0.12)),
        texture=float(rng.uniform(0.02, 0.06)),
        blur_mm=float(rng.uniform(0.3, 0.8)),
        bias=float(rng.uniform(0, 0.12)),
        noise=float(rng.uniform(0.01, 0.07)),
        gamma=float(np.exp(rng.uniform(-0.25, 0.25))),
        scale=float(np.exp(rng.uniform(np.log(90), np.log(2500)))),
    )


def brain_case(seed: int, *, oversampling: int = 2) -> Case:
    """The case of this seed: a crop of 1 mm with series `t1`, mask 1 anterior and 2 posterior; equal seeds, equal bytes.

    The axes are (inferior to superior, posterior to anterior, left to right). Endpoints: age, sex, side, hippocampus_ml,
    anterior_ml, posterior_ml (of the mask). `oversampling` parts of a voxel along each axis make the partial volume.
    """
    brain, contrast = draw_brain(seed), draw_contrast(seed)
    rng = np.random.default_rng([seed, 84])
    outwards = float(np.clip(rng.normal(*OUTWARDS_MM), -0.6, 1.3))
    box = _crop(brain, outwards, rng)
    axes = box.axes(oversampling)
    place = locate(brain, axes)
    image = _image(brain, contrast, place, axes, oversampling, rng)
    mask = _mask(brain, place, box, oversampling, outwards, rng)
    left = brain.side == "left"
    if not left:  # columns run to the right, and a right hippocampus's midline is to its left
        image, mask = image[..., ::-1].copy(), mask[..., ::-1].copy()
    ml = [float((mask == value).sum()) / 1000 for value in (ANTERIOR, POSTERIOR)]
    return Case(
        patient=f"G{seed:08d}",
        volumes=(Volume("t1", image, _affine(image.shape, 25.0 if left else -25.0), mask),),
        endpoints={
            "age": brain.age,
            "sex": brain.sex,
            "side": brain.side,
            "hippocampus_ml": round(sum(ml), 3),
            "anterior_ml": round(ml[0], 3),
            "posterior_ml": round(ml[1], 3),
        },
        scanner={
            "manufacturer": str(rng.choice(MANUFACTURERS)),
            "field_strength_t": float(rng.choice([1.5, 3.0])),
            "modality": "MR",
        },
    )


def _drawn_on(place: Place, outwards: float) -> npt.NDArray[np.bool_]:
    """Where a reader draws: so much outside the border, and not behind the end of the tail."""
    return (place.distance < outwards) & (place.position > -1) & (place.position < 1.05)


def _crop(brain: Brain, outwards: float, rng: np.random.Generator) -> Box:
    """A box around what the reader draws, with a margin of whole millimetres on each side."""
    wide = Box((-26.0, -38.0, -22.0), (56, 64, 48))
    where = np.argwhere(_drawn_on(locate(brain, wide.axes()), outwards))
    low = where.min(axis=0) - rng.integers(MARGIN_MM[0], MARGIN_MM[1] + 1, 3)
    high = where.max(axis=0) + 1 + rng.integers(MARGIN_MM[0], MARGIN_MM[1] + 1, 3)
    corner = tuple(float(start + n) for start, n in zip(wide.low_mm, low, strict=True))
    size = tuple(int(n) for n in high - low)
    return Box((corner[0], corner[1], corner[2]), (size[0], size[1], size[2]))


def _image(
    brain: Brain,
    contrast: Contrast,
    place: Place,
    axes: tuple[Floats, Floats, Floats],
    oversampling: int,
    rng: np.random.Generator,
) -> npt.NDArray[np.uint16]:
    tissue = tissues(brain, place, axes)
    fine = np.array(contrast.grey, np.float32)[tissue]
    strata = np.where(tissue == Tissue.HIPPOCAMPUS, np.float32(contrast.strata), np.float32(contrast.texture))
    fine *= 1 + strata * wander(brain.seed, 110, axes, 4.0) + np.float32(contrast.texture) * wander(brain.seed, 111, axes, 14.0)
    image = _pooled(fine, oversampling)
    image = np.asarray(ndimage.gaussian_filter(image, contrast.blur_mm), np.float32)
    coarse = tuple(axis.reshape(-1, oversampling).mean(axis=1) for axis in axes)
    image *= np.exp(np.float32(contrast.bias) * wander(brain.seed, 112, (coarse[0], coarse[1], coarse[2]), 45.0))
    real, imaginary = rng.normal(0, contrast.noise, (2, *image.shape))
    image = np.sqrt((image + real) ** 2 + imaginary**2) ** contrast.gamma
    return np.asarray(np.clip(np.rint(image * contrast.scale), 0, 65535), np.uint16)


def _mask(
    brain: Brain, place: Place, box: Box, oversampling: int, outwards: float, rng: np.random.Generator
) -> npt.NDArray[np.uint8]:
    """Anterior in front of a coronal plane, posterior behind it; in one piece."""
    drawn = _pooled(_drawn_on(place, outwards).astype(np.float32), oversampling) > 0.5
    pieces, count = ndimage.label(drawn)
    if count > 1:
        drawn = pieces == 1 + np.bincount(pieces.ravel())[1:].argmax()
    along = _pooled(place.along, oversampling)
    apex = np.abs(along[drawn]) < 1  # the reader's plane is the crop's, not the brain's
    rows = np.broadcast_to(np.arange(box.shape[1])[None, :, None], box.shape)
    plane = rows[drawn][apex].mean() + rng.normal(0, 0.7)
    return np.where(drawn, np.where(rows > plane, ANTERIOR, POSTERIOR), 0).astype(np.uint8)


def _pooled(fine: Floats, parts: int) -> Floats:
    s, a, m = (n // parts for n in fine.shape)
    return np.asarray(fine.reshape(s, parts, a, parts, m, parts).mean(axis=(1, 3, 5)), np.float32)


def _affine(shape: tuple[int, ...], lateral_mm: float) -> npt.NDArray[np.float64]:
    """Index to LPS: slices upwards, rows forwards, columns to the right; about where the temporal lobes are."""
    affine = np.array([[0, 0, -1, 0], [0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]], np.float64)
    affine[:3, 3] = lateral_mm + shape[2] / 2, 20 + shape[1] / 2, -14 - shape[0] / 2
    return affine
