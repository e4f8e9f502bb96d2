"""Cases scanned anew for every step of a training: a patient's scene with a scanner and a reader that nobody has had before.

Few slices are scanned, from base to apex at even distances: about as many as the step has views. The task prepares them as it
prepares any case, so that grey values are normalised, and the heart located, over these slices and not over the whole stack.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from simulation.hospital_case import facts_of, made_by
from simulation.reader import Reader, read
from simulation.rescan import Exposure, expose, noise_from, take
from simulation.scanner import PHASE, Scan, random_scanner
from simulation.scene import Scene
from tasks.case import Case, Volume

Scenes = Mapping[str, Scene]
"""One patient, by series."""


def fresh_cases(
    patients: Sequence[Scenes],
    reader_of: Callable[[int], Reader],
    *,
    slices: int,
    rng: np.random.Generator,
    device: torch.device,
) -> list[Case]:
    """One case for each of these patients: one series, at least `slices` of its slices (if it has them), and the reader's mask.

    Scanner, series, slices, reader and noise all come from `rng`: equal states give equal cases on one device.
    """
    exposures = [_exposure(scenes, slices, rng) for scenes in patients]
    readers = [reader_of(int(rng.integers(2**31))) for _ in patients]
    generator = torch.Generator(device).manual_seed(int(rng.integers(2**63)))
    images = [image.cpu().numpy().astype(np.uint16) for image in take(exposures, noise_from(generator), device)]
    return [
        _case(exposure, image, reader, int(rng.integers(2**31)))
        for exposure, image, reader in zip(exposures, images, readers, strict=True)
    ]


def _exposure(scenes: Scenes, slices: int, rng: np.random.Generator) -> Exposure:
    whole = scenes[sorted(scenes)[int(rng.integers(len(scenes)))]]
    step = max(1, len(whole.code) // slices)
    return expose(whole.every(step, int(rng.integers(step))), random_scanner(int(rng.integers(2**31))), rng)


def _case(exposure: Exposure, image: npt.NDArray[np.uint16], reader: Reader, seed: int) -> Case:
    scene, patient = exposure.scene, exposure.scene.patient
    nothing = np.zeros_like(scene.mask)  # segments: the reader's calls of them are not asked for
    seen = Scan(scene.series, image, scene.mask, nothing, nothing, scene.affine, None, 0.0, scene.grid, PHASE[scene.series])
    reading = read(seen, patient, reader, seed=seed)
    return Case(
        patient=f"G{patient.seed:08d}",
        volumes=(Volume(scene.series, image, scene.affine, reading.mask),),
        endpoints=facts_of(patient),
        scanner=made_by(exposure.scanner),
    )
