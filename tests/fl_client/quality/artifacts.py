"""Images with one artifact each, made by TorchIO, for tests of quality parameters.

An artifact is put on before the noise, as in a scanner: the generated images come without noise, and every image gets the noise
of a magnitude image at the end. A real image has its noise already, so nothing is added there.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fl_client.cohort import Cohort
from fl_client.intake.labels import LabelMap
from fl_client.intake.sunnybrook import admit_sunnybrook
from fl_client.quality.measure import measure
from simulation.phantom import draw_patient
from simulation.scanner import Scanner, scan
from tasks.case import Volume

tio = pytest.importorskip("torchio")
torch = pytest.importorskip("torch")

STRENGTHS = 3
TISSUE = 200.0  # grey value of tissue in the images here, about
SEEDS = (3, 5)
REAL = 256  # rows of the real image; the generated ones have 192
AXIS = 1  # rows: of TorchIO's three axes, the phase direction of ghosts


def generated(seed: int) -> np.ndarray:
    """A patient on a perfect scanner: no noise, no ghosts, an even coil. (slices, rows, columns), float32."""
    scanner = Scanner(matrix=192, pixel_mm=1.6, snr=1e5, coil_bias=0, ghosting=0)
    return scan(draw_patient(seed, {"normal": 1.0}), scanner, "cine_ed", seed=seed, oversampling=1, subslices=2).image.astype(
        np.float32
    )


def sunnybrook(folder: Path) -> np.ndarray:
    """The real end-diastole whose air is there and not blanked out."""
    cohort = Cohort(folder)
    data = Path(__file__).parents[2] / "data" / "sunnybrook"
    admit_sunnybrook(data, cohort, key=b"sixteen bytes or more", labels=LabelMap.load("sunnybrook"))
    volumes = [case.volume("cine_ed") for case in cohort]
    (image,) = [v.image for v in volumes if v is not None and v.image.max() == 1461]
    return np.asarray(image, np.float32)


def _put(transform: Callable[..., object], image: np.ndarray) -> np.ndarray:
    return np.abs(transform(torch.tensor(np.ascontiguousarray(image))[None]).numpy()[0])


def _noise(image: np.ndarray, strength: int) -> np.ndarray:
    return _put(tio.Noise(mean=0, std=(0.03, 0.06, 0.12)[strength] * TISSUE, seed=1), image)


def _bias(image: np.ndarray, strength: int) -> np.ndarray:
    size = (0.15, 0.3, 0.5)[strength]
    if image.shape[1] == REAL:
        size = -size  # along with the coil that is there already, not against it
    return _put(tio.BiasField(coefficients=[0, size, -0.3 * size, 0, 0.7 * size, 0, 0, 0, 0, 0], order=2), image)


def _ghosting(image: np.ndarray, strength: int) -> np.ndarray:
    return _put(tio.Ghosting(num_ghosts=2, axis=AXIS + 1, intensity=(0.1, 0.2, 0.3)[strength], restore=0.02), image)


def _blur(image: np.ndarray, strength: int) -> np.ndarray:
    width = (0.8, 1.6, 2.4)[strength]
    return _put(tio.Blur(std=(0, width, width)), image)


def _motion(image: np.ndarray, strength: int) -> np.ndarray:
    size = (2.0, 5.0, 10.0)[strength]
    return _put(
        tio.Motion(
            degrees=np.array([[0.7 * size, 0, 0], [0, 0, 0]]),
            translation=np.array([[0, size, 0], [0, -size, size]]),
            times=np.array([0.3, 0.7]),
            image_interpolation="linear",
        ),
        image,
    )


def _crop(image: np.ndarray, strength: int) -> np.ndarray:
    edge = (35, 45, 55)[strength] if image.shape[1] == REAL else (5, 10, 16)[strength]  # the real field is a disc in black
    return image[:, edge:-edge, edge:-edge]


ARTIFACTS = {"noise": _noise, "bias": _bias, "ghosting": _ghosting, "blur": _blur, "motion": _motion, "crop": _crop}


def measured(image: np.ndarray, field: np.ndarray, *, noisy: bool) -> dict[str, float | None]:
    """Quality of the image, with noise of a fortieth of its tissue if it has none of its own."""
    if not noisy:
        rng = np.random.default_rng(0)
        sd = TISSUE / 40
        image = np.hypot(image + sd * rng.standard_normal(image.shape), sd * rng.standard_normal(image.shape))
    elif image.shape[1:] == field.shape:
        image = image * field  # the scanner leaves black what lies outside, whatever the artifact
    mask = np.zeros(image.shape, np.uint8)
    middle = [n // 2 for n in image.shape]
    mask[:, middle[1] - 30 : middle[1] + 30, middle[2] - 30 : middle[2] + 30] = 1
    mask[mask > 0] += (image[mask > 0] > np.median(image[mask > 0])).astype(np.uint8)
    volume = Volume("cine_ed", image.astype(np.float32), np.diag([8.0, 1.6, 1.6, 1.0]), mask)
    return dict(measure(volume, "MR").values)


def matrix(image: np.ndarray, *, noisy: bool) -> dict[str, list[dict[str, float | None]]]:
    """What is measured under every artifact, from no strength to the full one."""
    field = (image != 0).any(axis=0)
    none = measured(image, field, noisy=noisy)
    return {
        name: [none, *(measured(put(image, strength), field, noisy=noisy) for strength in range(STRENGTHS))]
        for name, put in ARTIFACTS.items()
    }
