"""CPU seconds per generated volume, beside the generator this one replaced.

    .venv/bin/python benchmarks/phantom.py [path to the earlier generator's phantom.py]        # a minute

Both make the same kind of volume (late enhancement with anatomy, image and reader's mask; 128 x 128 pixels of 1.4 mm, 8 mm
slices with a 2 mm gap, oversampling 2, 3 sub-slices) in turn in one process, so that a busy machine slows both alike. Without
the path the ratio is left out. Figures are of one core. `rescan_s` is a scan anew in torch of a volume whose anatomy is there,
`rescan_batch_s` the same in batches of six; with a CUDA device its name and the seconds there are printed, too. Last line: one
JSON object.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from simulation.phantom import DISEASES, draw_patient
from simulation.reader import Reader, endpoint, read
from simulation.rescan import expose, noise_from, take
from simulation.scanner import Scanner, scan
from simulation.scene import Scene, scene

SAME = Scanner(matrix=128, pixel_mm=1.4, slice_thickness_mm=8.0, slice_gap_mm=2.0)
LARGE = Scanner(matrix=256, pixel_mm=1.37, slice_thickness_mm=8.0, slice_gap_mm=2.0)
ROUNDS = 12
BATCH = 6


def volume(seed: int, scanner: Scanner, *, oversampling: int, subslices: int) -> int:
    """Generate and read one volume; the number of its slices."""
    patient = draw_patient(seed, dict.fromkeys(DISEASES, 1.0))
    image = scan(patient, scanner, "lge", seed=0, oversampling=oversampling, subslices=subslices)
    read(image, patient, Reader(), seed=0)
    endpoint(patient, image, seed=0)
    return len(image.image)


def rescan(scenes: list[Scene], device: torch.device, *, seed: int) -> int:
    """Scan these scenes anew in one batch; the slices of one of them."""
    rng = np.random.default_rng(seed)
    noise = noise_from(torch.Generator(device).manual_seed(seed))
    images = take([expose(one, SAME, rng) for one in scenes], noise, device)
    images[-1].sum().item()  # waits for the device
    return len(images[0])


def on_gpu(scenes: list[Scene]) -> dict[str, float | str]:
    """Seconds on the clock per volume in batches, and the device's name; nothing without one."""
    if not torch.cuda.is_available():
        return {}
    device = torch.device("cuda")
    rescan(scenes, device, seed=0)
    start = time.perf_counter()
    for seed in range(ROUNDS):
        rescan(scenes, device, seed=seed)
    seconds = (time.perf_counter() - start) / ROUNDS / len(scenes)
    return {"device": torch.cuda.get_device_name(device), "rescan_batch_gpu_wall_s": round(seconds, 5)}


def earlier(path: Path) -> ModuleType:
    """The generator in this file, as a module."""
    spec = importlib.util.spec_from_file_location("earlier_phantom", path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(f"{path} is no Python module")
    module = importlib.util.module_from_spec(spec)
    sys.modules["earlier_phantom"] = module
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Time every kind of volume in turn and print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("earlier", nargs="?", type=Path, help="another generator's phantom.py, to compare with")
    options = parser.parse_args()
    if options.earlier is not None and not options.earlier.is_file():
        parser.error(f"{options.earlier} is no file")
    kinds: dict[str, Callable[[int], int]] = {
        "volume_s": lambda seed: volume(seed, SAME, oversampling=2, subslices=3),
        "fast_volume_s": lambda seed: volume(seed, SAME, oversampling=1, subslices=2),
        "volume_256_s": lambda seed: volume(seed, LARGE, oversampling=2, subslices=3),
        "fast_volume_256_s": lambda seed: volume(seed, LARGE, oversampling=1, subslices=2),
    }
    scenes = [scene(draw_patient(seed, dict.fromkeys(DISEASES, 1.0)), SAME, "lge", seed=0) for seed in range(BATCH)]
    cpu = torch.device("cpu")
    kinds["rescan_s"] = lambda seed: rescan(scenes[seed % BATCH : seed % BATCH + 1], cpu, seed=seed)
    kinds["rescan_batch_s"] = lambda seed: rescan(scenes, cpu, seed=seed)
    if options.earlier is not None:
        before = earlier(options.earlier)
        kinds["earlier_volume_s"] = lambda seed: len(before.make(seed, site="A", kind="lge")["image"])
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    slices: dict[str, list[int]] = {name: [] for name in kinds}
    for seed in range(-1, ROUNDS):  # the first round warms caches and is not counted
        for name, make in kinds.items():
            start = time.process_time()
            count = make(max(seed, 0))
            if seed >= 0:
                volumes = BATCH if name == "rescan_batch_s" else 1
                seconds[name].append((time.process_time() - start) / volumes)
                slices[name].append(count)
    figures: dict[str, float] = {name: round(float(np.mean(values)), 4) for name, values in seconds.items()}
    for name, value in figures.items():
        print(f"{name:20s} {value:.3f} CPU-s per volume, {np.mean(slices[name]):.1f} slices on average")
    if "earlier_volume_s" in figures:
        figures["speed_up"] = round(figures["earlier_volume_s"] / figures["volume_s"], 2)
        per_slice = figures["earlier_volume_s"] / np.mean(slices["earlier_volume_s"])
        figures["speed_up_per_slice"] = round(float(per_slice / (figures["volume_s"] / np.mean(slices["volume_s"]))), 2)
    print(json.dumps(figures | on_gpu(scenes)))


if __name__ == "__main__":
    main()
