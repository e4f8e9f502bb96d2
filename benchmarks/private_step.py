"""What patient-level privacy costs in time and memory: one gradient step many ways, side by side in one process.

An ordinary step (one batch, no privacy), konsil's, Opacus' (hooks, functorch, ghost) and plain vmap take turns on the same
rows. They are timed in process CPU time, so that a busy machine slows all alike; on a GPU by the clock, after it has finished.
Peak memory is that of a process of its own. The last line is one JSON object; keys in README.md of this folder.

    python benchmarks/private_step.py [--cases heart_8,heart_32,...] [--repeats 5] [--device cpu]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from monai.networks.nets import DynUNet, SegResNet, SwinUNETR
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from fl_client.heap import give_back
from fl_client.privacy import Event, Ledger, calibrate, clipped_sum, noised, os_noise, require_private
from fl_client.privacy.clip import places_for
from fl_client.privacy.engine.trial import engine_for
from tasks.radiomics.perceptron import Perceptron
from tasks.segmentation.network import SegmentationNet
from tasks.segmentation.settings import Settings

BOUND, MULTIPLIER, STEP = 1.0, 1.0, 1e-3
Tensors = list[torch.Tensor]
Step = Callable[[], Tensors]


@dataclass(frozen=True)
class Case:
    """A network and the rows of a step."""

    network: Callable[[], nn.Module]
    patients: int
    rows: int
    space: tuple[int, ...]  # empty: a table of `columns`
    columns: int = 25


def of_task(name: str) -> Callable[[], nn.Module]:
    """The network of a task in conf/task, all of it trained."""
    chosen = yaml.safe_load((Path(__file__).parents[1] / "conf/task" / f"{name}.yaml").read_text())
    settings = Settings(**{k: v for k, v in chosen.items() if k != "name"})
    return lambda: SegmentationNet(settings)


def swin() -> nn.Module:
    """Two blocks at each level, windows of 4 x 4."""
    network: nn.Module = SwinUNETR(
        in_channels=1, out_channels=4, patch_size=2, depths=(2, 2, 2, 2), num_heads=(3, 6, 12, 24), window_size=4,
        feature_size=12, spatial_dims=2, norm_name="instance",
    )  # fmt: skip
    return network


CASES = {
    "heart_8": Case(of_task("heart"), 8, 4, (80, 80)),
    "heart_32": Case(of_task("heart"), 32, 4, (80, 80)),
    "unet_3d": Case(of_task("hippocampus"), 8, 2, (40, 56, 40)),
    "segresnet": Case(lambda: SegResNet(2, init_filters=16, out_channels=4), 8, 4, (80, 80)),
    "dynunet": Case(
        lambda: DynUNet(2, 1, 4, [3] * 4, [1, 2, 2, 2], [2, 2, 2], filters=[16, 32, 64, 128], norm_name="instance"),
        8,
        4,
        (80, 80),
    ),
    "swin_unetr": Case(swin, 8, 4, (64, 64)),
    "perceptron": Case(lambda: Perceptron(25, [16]), 200, 1, ()),
}


def row_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each row, shape (rows,)."""
    if output.dim() == 1:
        return F.binary_cross_entropy_with_logits(output, target, reduction="none")
    return F.cross_entropy(output, target, reduction="none").flatten(1).mean(1)


class Prepared:
    """Network, rows and every way to take a step, for one case and device."""

    def __init__(self, case: Case, device: str) -> None:
        self.case, self.device = case, device
        self.model = self.fresh()
        self.parameters = list(self.model.parameters())
        generator = torch.Generator().manual_seed(1)
        lead = (case.patients, case.rows)
        if case.space:
            self.x = torch.randn((*lead, 1, *case.space), generator=generator).to(device)
            classes = self.model(self.x[0, :2]).shape[1]
            self.y = torch.randint(0, classes, (*lead, *case.space), generator=generator).to(device)
        else:
            self.x = torch.rand((*lead, case.columns), generator=generator).to(device)
            self.y = torch.randint(0, 2, lead, generator=generator).float().to(device)

    def fresh(self) -> nn.Module:
        """The network, the same weights at each call."""
        torch.manual_seed(0)
        model = self.case.network()
        require_private(model)  # also turns in-place layers off, without which Opacus and vmap fail on most of these
        return model.to(self.device).train()

    def way(self, name: str) -> Step:
        """A step; it returns the clipped sum before the noise (the gradient, for the ordinary step)."""
        make: dict[str, Callable[[], Step]] = {
            "ordinary": lambda: self.ordinary,
            "ours": lambda: lambda: self.ours("auto"),
            "loop": lambda: lambda: self.ours("loop"),
            "one_pass": lambda: lambda: self.ours("one_pass"),
            "vmap": lambda: self.vmapped,
            "opacus_hooks": lambda: self.opacus(force_functorch=False),
            "opacus_functorch": lambda: self.opacus(force_functorch=True),
            "opacus_ghost": self.ghost,
        }
        return make[name]()

    def ordinary(self) -> Tensors:
        """The gradient of the mean over all rows, and a step along it."""
        output = self.model(self.x.flatten(0, 1))
        gradient = torch.autograd.grad(row_loss(output, self.y.flatten(0, 1)).mean(), self.parameters, allow_unused=True)
        found = [torch.zeros_like(p) if g is None else g for g, p in zip(gradient, self.parameters, strict=True)]
        self.follow(self.parameters, found)
        return found

    def ours(self, engine: str) -> Tensors:
        """Clipped by patient, noise from the operating system."""
        patients = zip(self.x, self.y, strict=True)
        total = clipped_sum(self.model, self.parameters, patients, row_loss, max_grad_norm=BOUND, engine=engine).gradients  # type: ignore[arg-type]
        noise = os_noise()
        self.follow(self.parameters, [noised(share, MULTIPLIER * BOUND, noise) / len(self.x) for share in total])
        return total

    def vmapped(self) -> Tensors:
        """torch.func: the gradient of one patient, mapped over the patients."""
        names = [name for name, _ in self.model.named_parameters()]

        def mean(values: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return row_loss(functional_call(self.model, values, (x,)), y).mean()

        values = {name: p.detach() for name, p in self.model.named_parameters()}
        found = vmap(grad(mean), in_dims=(None, 0, 0))(values, self.x, self.y)
        return self.private(self.parameters, [found[name] for name in names])

    def opacus(self, *, force_functorch: bool) -> Step:
        """Per-row gradients by hooks, averaged within each patient."""
        from opacus import GradSampleModule

        hooked = GradSampleModule(self.fresh(), loss_reduction="sum", force_functorch=force_functorch)
        lead = self.x.shape[:2]

        def step() -> Tensors:
            torch.autograd.backward(row_loss(hooked(self.x.flatten(0, 1)), self.y.flatten(0, 1)).sum())
            each = [p.grad_sample.unflatten(0, lead).mean(1) for p in hooked.parameters()]
            for p in hooked.parameters():
                p.grad = p.grad_sample = None
            return self.private(list(hooked.parameters()), each)

        return step

    def ghost(self) -> Step:
        """Opacus' ghost clipping. It clips rows: there is no way to ask it about patients."""
        from opacus.grad_sample import GradSampleModuleFastGradientClipping

        hooked = GradSampleModuleFastGradientClipping(
            self.fresh(), loss_reduction="sum", max_grad_norm=BOUND, use_ghost_clipping=True
        )

        def step() -> Tensors:
            losses = row_loss(hooked(self.x.flatten(0, 1)), self.y.flatten(0, 1))
            torch.autograd.backward(losses.sum(), retain_graph=True)
            for p in hooked.parameters():
                p.grad = None
            scale = hooked.get_clipping_coef()
            hooked.disable_hooks()
            torch.autograd.backward((scale * losses).sum())
            hooked.enable_hooks()
            total = [p.grad for p in hooked.parameters()]
            self.follow(list(hooked.parameters()), [g + MULTIPLIER * BOUND * torch.randn_like(g) for g in total])
            for p in hooked.parameters():
                p.grad = None
            return total

        return step

    def private(self, parameters: list[nn.Parameter], each: Tensors) -> Tensors:
        """Clip (patients, ...) gradients, sum, noise from torch, step."""
        norms = torch.stack([share.flatten(1).norm(dim=1) for share in each]).norm(dim=0)  # (patients,)
        scale = (BOUND / norms).clamp(max=1)
        total = [torch.einsum("p,p...->...", scale, share) for share in each]
        self.follow(parameters, [(share + MULTIPLIER * BOUND * torch.randn_like(share)) / len(norms) for share in total])
        return total

    def follow(self, parameters: list[nn.Parameter], gradient: Tensors) -> None:
        """A plain step."""
        with torch.no_grad():
            for p, g in zip(parameters, gradient, strict=True):
                p.sub_(g.to(p.dtype), alpha=STEP)

    def slow(self) -> Tensors:
        """The clipped sum the slow way: double precision, a backward pass per patient, nothing of konsil's."""
        model = self.fresh().double()
        total = [torch.zeros_like(p) for p in model.parameters()]
        for x, y in zip(self.x, self.y, strict=True):
            model.zero_grad()
            torch.autograd.backward(row_loss(model(x.double()), y.double() if y.is_floating_point() else y).mean())
            gradient = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
            norm = torch.cat([g.flatten() for g in gradient]).norm()
            total = [t + g * min(1.0, float(BOUND / norm)) for t, g in zip(total, gradient, strict=True)]
        return total

    def timed(self, step: Step) -> float:
        """Seconds of one step: CPU time of this process, or the clock's on a GPU."""
        if self.device == "cpu":
            start = time.process_time()
            step()
            return time.process_time() - start
        torch.cuda.synchronize()
        start = time.perf_counter()
        step()
        torch.cuda.synchronize()
        return time.perf_counter() - start


WAYS = ("ordinary", "ours", "loop", "one_pass", "vmap", "opacus_hooks", "opacus_functorch", "opacus_ghost")


def measured(name: str, device: str, repeats: int, *, memory: bool, ways: tuple[str, ...]) -> dict[str, object]:
    """All ways of one case."""
    here = Prepared(CASES[name], device)
    start = time.process_time()
    engine = engine_for(here.model, here.parameters, here.x[0], here.y[0], row_loss, places_for(here.parameters, here.x[0]))
    choice_s = time.process_time() - start
    slow = torch.cat([t.flatten() for t in here.slow()]).double()
    steps: dict[str, Step] = {}
    fails: dict[str, str] = {}
    errors: dict[str, float] = {}
    for way in ways:
        if way == engine.name:
            continue  # it is "ours"
        try:
            alone = Prepared(CASES[name], device)  # the first step of each starts from the same weights
            step = alone.way(way)
            found = torch.cat([t.detach().flatten() for t in step()]).double()
            steps[way] = step
            if way not in ("ordinary", "opacus_ghost"):
                errors[way] = float((found - slow).norm() / slow.norm())
        except Exception as error:
            fails[way] = re.sub(r"\s+", " ", f"{type(error).__name__}: {error}")[:160]
    times: dict[str, list[float]] = {way: [] for way in steps}
    for _ in range(repeats):
        for way, step in steps.items():
            times[way].append(here.timed(step))
    peak = {way: peak_mb(name, way, device) for way in ("ordinary", "ours", "vmap", "opacus_hooks") if way in steps and memory}

    def ratio(one: str, other: str) -> float | str:
        if one not in times or other not in times:
            return "fails"
        return round(statistics.median(a / b for a, b in zip(times[one], times[other], strict=True)), 3)

    case = CASES[name]
    result: dict[str, object] = {
        "ratio_to_plain": ratio("ours", "ordinary"),
        "ratio_opacus_hooks_to_ours": ratio("opacus_hooks", "ours"),
        "peak_memory_ratio": round(peak["ours"] / peak["ordinary"], 2) if peak.get("ordinary", 0) >= 1 else None,
        "relative_error": errors["ours"],
        "engine": engine.name,
        "engine_why": engine.why,
        "choice_s": round(choice_s, 2),
        "patients": case.patients,
        "rows": case.rows,
        "space": list(case.space),
        "parameters": sum(p.numel() for p in here.parameters),
        "seconds": {way: round(statistics.median(values), 4) for way, values in times.items()},
        "ratios_to_plain": {way: ratio(way, "ordinary") for way in WAYS if way in times and way != "ordinary"},
        "relative_errors": {way: float(f"{error:.2g}") for way, error in errors.items()},
        "peak_mb": peak,
        "fails": fails,
        "load": round(os.getloadavg()[0], 1),
    }
    print(
        f"\n{name}: {case.patients} patients x {case.rows} rows of {case.space}, {result['parameters']} weights; {engine.name}"
    )
    for way in WAYS:
        if way in times:
            more = f"  {peak[way]:8.0f} MiB" if way in peak else ""
            took = statistics.median(times[way])
            print(f"  {way:17s} {took:8.4f} s  x {ratio(way, 'ordinary'):<6}{more}  {errors.get(way, '')}")
        elif way in fails:
            print(f"  {way:17s} fails: {fails[way]}")
    return result


def peak_mb(name: str, way: str, device: str) -> float:
    """What steps need beyond the built network, MiB: a process of its own on a CPU, torch's own count on a GPU."""
    if device != "cpu":
        step = Prepared(CASES[name], device).way(way)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        step()
        return round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)
    command = [sys.executable, __file__, "--peak", name, way]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(answer.stdout.splitlines()[-1])


def own_peak_mb(name: str, way: str) -> float:
    """In the process of its own."""
    step = Prepared(CASES[name], "cpu").way(way)
    step()  # chooses the engine, and whatever else happens once
    give_back()  # what the C library kept of it would hide that the next steps need it
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = _status("VmRSS")
    step()
    step()
    return round((_status("VmHWM") - before) / 1024, 1)


def _status(key: str) -> int:
    return int(re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])  # type: ignore[index]


def ledger_s() -> float:
    """One entry in the ledger, with its fsyncs."""
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder) / "ledger.jsonl", epsilon=1e9, delta=1e-3)
        start = time.perf_counter()
        for number in range(20):
            ledger.spend(Event(noise_multiplier=10.0, round=number))
        return round((time.perf_counter() - start) / 20, 5)


def calibrate_s() -> float:
    """Finding the noise of 100 steps with a quarter of the patients each."""
    start = time.perf_counter()
    calibrate(epsilon=8.0, delta=1e-3, sample_rate=0.25, steps=100)
    return round(time.perf_counter() - start, 3)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(CASES), help="networks and batches; default: %(default)s")
    parser.add_argument("--repeats", type=int, default=5, help="turns that each way is timed (5)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--ways", default=",".join(WAYS), help="default: %(default)s; ordinary and ours are always among them")
    parser.add_argument("--no-memory", action="store_true", help="leave out peak memory, which takes a process for each way")
    parser.add_argument("--peak", nargs=2, metavar=("CASE", "WAY"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    cases, asked = chosen.cases.split(","), chosen.ways.split(",")
    for what, known, names in (("case", tuple(CASES), cases), ("way", WAYS, asked)):
        if unknown := [name for name in names if name not in known]:
            parser.error(f"no {what} named {unknown[0]!r}; there are {', '.join(known)}")
    if chosen.repeats < 1:
        parser.error(f"--repeats {chosen.repeats} times nothing")
    if chosen.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no GPU here")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # Opacus warns about torch's backward hooks at every call
    if chosen.peak:
        print(own_peak_mb(*chosen.peak))
        return
    load = os.getloadavg()[0]
    ways = tuple(way for way in WAYS if way in asked or way in ("ordinary", "ours"))
    networks = {name: measured(name, chosen.device, chosen.repeats, memory=not chosen.no_memory, ways=ways) for name in cases}
    result = {
        "device": torch.cuda.get_device_name() if chosen.device == "cuda" else "cpu, one thread",
        "torch": torch.__version__,
        "repeats": chosen.repeats,
        "load_before": round(load, 1),
        "load_after": round(os.getloadavg()[0], 1),
        "ledger_spend_s": ledger_s(),
        "calibrate_sampled_s": calibrate_s(),
        "networks": networks,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
