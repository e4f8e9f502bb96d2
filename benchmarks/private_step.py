"""What patient-level privacy costs in time: one gradient step three ways, side by side in one process.

An ordinary step (one batch, no privacy), konsil's patient loop (clipped per patient, noise from the operating system), and
Opacus' hooks with the rows grouped by patient (the same clipped sum; noise from torch). The three take turns and are timed in
process CPU time, so that a busy machine slows all alike. The last line is one JSON object; keys in README.md of this folder.

    python benchmarks/private_step.py [--patients 8] [--views 4] [--pixels 64] [--repeats 7]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from monai.networks.nets import UNet
from torch import nn
from torch.nn import functional as F

from fl_client.privacy import Event, Ledger, calibrate, clipped_sum, noised, os_noise

BOUND, MULTIPLIER, STEP = 1.0, 1.0, 1e-3


def row_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each row, shape (rows,)."""
    return F.cross_entropy(output, target, reduction="none").flatten(1).mean(1)


def network() -> nn.Module:
    """A U-Net of three levels, the same weights at each call."""
    torch.manual_seed(0)
    norm = ("group", {"num_groups": 4})
    return UNet(
        spatial_dims=2, in_channels=1, out_channels=4, channels=(16, 32, 64), strides=(2, 2), num_res_units=2, norm=norm
    )


def ordinary_step(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
    """The gradient of the mean over all rows (patients, views, ...) and a step along it."""
    gradient = torch.autograd.grad(row_loss(model(x.flatten(0, 1)), y.flatten(0, 1)).mean(), list(model.parameters()))
    _follow(model, list(gradient))
    return list(gradient)


def patient_loop_step(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
    """One step of konsil; returns the clipped sum before the noise."""
    parameters = list(model.parameters())
    total = clipped_sum(model, parameters, zip(x, y, strict=True), row_loss, max_grad_norm=BOUND).gradients
    noise = os_noise()
    _follow(model, [noised(share, MULTIPLIER * BOUND, noise) / len(x) for share in total])
    return total


def hooks_step(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
    """Opacus' per-row gradients, averaged within each patient, clipped and summed; returns that sum."""
    patients, views = x.shape[:2]
    row_loss(model(x.flatten(0, 1)), y.flatten(0, 1)).sum().backward()
    shares = [p.grad_sample.unflatten(0, (patients, views)).mean(1) for p in model.parameters()]
    norms = torch.stack([share.flatten(1).norm(dim=1) for share in shares]).norm(dim=0)  # (patients,)
    scale = (BOUND / norms).clamp(max=1)
    total = [torch.einsum("p,p...->...", scale, share) for share in shares]
    _follow(model, [(share + MULTIPLIER * BOUND * torch.randn_like(share)) / patients for share in total])
    for p in model.parameters():
        p.grad = p.grad_sample = None
    return total


def _follow(model: nn.Module, gradient: list[torch.Tensor]) -> None:
    with torch.no_grad():
        for p, g in zip(model.parameters(), gradient, strict=True):
            p.sub_(g.to(p.dtype), alpha=STEP)


def _timed(what: Callable[[], object]) -> float:
    start = time.process_time()
    what()
    return time.process_time() - start


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("patients", 8), ("views", 4), ("pixels", 64), ("repeats", 7)):
        parser.add_argument(f"--{name}", type=int, default=value)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(1)
    x = torch.randn(chosen.patients, chosen.views, 1, chosen.pixels, chosen.pixels)
    y = torch.randint(0, 4, (chosen.patients, chosen.views, chosen.pixels, chosen.pixels))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Opacus warns about torch's backward hooks at every call
        from opacus import GradSampleModule

        hooked = GradSampleModule(network(), loss_reduction="sum")
        ours = patient_loop_step(network(), x, y)
        theirs = hooks_step(hooked, x, y)  # its first step, from the same weights
        apart = max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True))
        plain, private = network(), network()
        steps: dict[str, Callable[[], object]] = {
            "ordinary": lambda: ordinary_step(plain, x, y),
            "patient_loop": lambda: patient_loop_step(private, x, y),
            "opacus_hooks": lambda: hooks_step(hooked, x, y),
        }
        times: dict[str, list[float]] = {name: [] for name in steps}
        for repeat in range(chosen.repeats + 1):
            for name, step in steps.items():
                seconds = _timed(step)
                if repeat:  # the first turn warms up
                    times[name].append(seconds)
    weights = sum(p.numel() for p in plain.parameters())
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder) / "ledger.jsonl", epsilon=1e9, delta=1e-3)
        start = time.perf_counter()
        for number in range(20):
            ledger.spend(Event(noise_multiplier=10.0, round=number))
        spend_s = (time.perf_counter() - start) / 20
    start = time.perf_counter()
    calibrate(epsilon=8.0, delta=1e-3, sample_rate=0.25, steps=100)
    calibrate_s = time.perf_counter() - start
    print(
        f"{chosen.patients} patients x {chosen.views} rows, {chosen.pixels} x {chosen.pixels}, {weights} parameters, one thread"
    )
    for name, values in times.items():
        print(f"{name:13s} {statistics.median(values):7.3f} s CPU (fastest {min(values):.3f})")

    def ratio(name: str) -> float:
        return round(statistics.median(a / b for a, b in zip(times[name], times["ordinary"], strict=True)), 3)

    result = {f"{name}_s": round(statistics.median(values), 4) for name, values in times.items()}
    result |= {"patient_loop_ratio": ratio("patient_loop"), "opacus_hooks_ratio": ratio("opacus_hooks")}
    result |= {"largest_difference": apart, "ledger_spend_s": round(spend_s, 5), "calibrate_sampled_s": round(calibrate_s, 3)}
    result |= {"patients": chosen.patients, "views": chosen.views, "pixels": chosen.pixels, "parameters": weights}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
