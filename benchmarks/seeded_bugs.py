"""Does the audit find anything? konsil is broken on purpose, one way at a time, and every check looks.

    .venv/bin/python benchmarks/seeded_bugs.py                        # each bug until a check has caught it; some CPU-minutes
    .venv/bin/python benchmarks/seeded_bugs.py --every                # each bug before every check; half an hour
    .venv/bin/python benchmarks/seeded_bugs.py --bugs "per layer"     # those whose name holds this

Each bug is one that published code has had or that a tired person could write, put into konsil's own modules while it runs. On
the code as it is no check may say anything (`false_alarms`). The last line is one JSON object; the exit status is 1 if a bug
was missed or a check was wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")

import numpy as np
import torch
from flwr.app import Error, Message
from torch import nn

from fl_client import app as hospital
from fl_client import chain, release, sent
from fl_client.privacy import dp_sgd, gate, noise
from fl_client.privacy.engine import one_pass, trial
from fl_client.privacy.engine.loop import PatientLoop
from fl_client.privacy.engine.shares import Shares
from fl_client.privacy.engine.trial import Engine
from simulation.audit.attack import one
from simulation.audit.catalogue import CHEAP
from simulation.audit.check import Check, replaced
from simulation.audit.settings import Audit
from tasks.secure import grid, plan, site
from tasks.secure.circle import Moment

QUICK = Audit(effort="quick", releases=6, draws=300, canaries=4000)

Patch = tuple[Any, str, Any]


# -- clipping -------------------------------------------------------------------------------------------------------------


def slices_are_clipped() -> list[Patch]:
    """Each row is clipped alone and the rows are added: a patient counts as often as there are rows."""

    def add(self: PatientLoop, shares: Shares, x: torch.Tensor, y: torch.Tensor) -> None:
        try:
            for i in range(len(x)):
                loss, gradient = self.gradient(x[i : i + 1], y[i : i + 1])
                shares.add(gradient, loss)
        except RuntimeError as error:
            shares.failed.append(str(error))

    return [(PatientLoop, "add", add), *_everywhere(trial.engine_for, lambda *seen: Engine("loop"))]


def layers_are_clipped() -> list[Patch]:
    """Every array has the whole bound for itself."""

    def add(self: Shares, gradient: Sequence[torch.Tensor | None], loss: torch.Tensor) -> None:
        self.note(torch.ones(1, dtype=torch.float64), loss)
        for share, part in zip(self.total, gradient, strict=True):
            if part is not None and bool(part.isfinite().all()):
                share.add_(part.double() * min(1.0, self.bound / max(float(part.double().norm()), 1e-300)))

    def add_each(self: Shares, gradients: Sequence[torch.Tensor | None], norms: torch.Tensor, losses: torch.Tensor) -> None:
        self.note(norms, losses)
        for share, part in zip(self.total, gradients, strict=True):
            for patient in part[norms.isfinite()] if part is not None else ():
                share.add_(patient.double() * min(1.0, self.bound / max(float(patient.double().norm()), 1e-300)))

    return [(Shares, "add", add), (Shares, "add_each", add_each)]


def loss_mixes_rows() -> list[Patch]:
    """Dice over all rows of the pass: who else is there enters a patient's gradient."""
    real = one_pass._losses

    def losses(loss: Any, out: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if out.dim() < 4:
            return real(loss, out, y)
        p = out.flatten(0, 1).softmax(1)[:, 1:]
        classes = torch.arange(1, out.shape[2]).view(1, -1, *[1] * (p.dim() - 2))
        truth = (y.flatten(0, 1).unsqueeze(1) == classes).to(p.dtype)
        axes = (0, *range(2, p.dim()))
        dice = (2 * (p * truth).sum(axes) + 1) / (p.sum(axes) + truth.sum(axes) + 1)
        return (1 - dice).mean().expand(len(out)) + 0 * out.flatten(1).sum(1)

    return [*_everywhere(real, losses), (trial, "_trial", lambda *seen: Engine("one_pass", (), "believed"))]


def broken_patient_poisons() -> list[Patch]:
    """A gradient that isn't finite is scaled like any other: 0 * inf is not a number."""

    def add(self: Shares, gradient: Sequence[torch.Tensor | None], loss: torch.Tensor) -> None:
        parts = [part.double() for part in gradient if part is not None]
        norm = torch.stack([part.norm() for part in parts]).norm()
        self.note(norm, loss)
        for share, part in zip(self.total, gradient, strict=True):
            if part is not None:
                share.add_(part.double() * (self.bound / norm).clamp(max=1))

    return [(Shares, "add", add)]


def failing_patient_stops_the_step() -> list[Patch]:
    """A patient whose gradient can't be computed lets the round fail, which everybody sees."""

    def add(self: PatientLoop, shares: Shares, x: torch.Tensor, y: torch.Tensor) -> None:
        loss, gradient = self.gradient(x, y)
        shares.add(gradient, loss)

    return [(PatientLoop, "add", add)]


def counts_are_not_bounded() -> list[Patch]:
    """The noisy sum trusts that every vector has length 1."""

    def total(vectors: Any, *, length: int, bound: float, noise_multiplier: float, noise: Any) -> Any:
        whole = np.zeros(length)
        for vector in vectors:
            whole += np.where(np.isfinite(vector), vector, 0)
        std = noise_multiplier * (bound if noise_multiplier else 1.0)
        return dp_sgd.noised(torch.from_numpy(whole), std, noise).numpy()

    return _everywhere(noise.noisy_total, total)


# -- noise ----------------------------------------------------------------------------------------------------------------


def noise_is_half() -> list[Patch]:
    """Normal deviates of half the size."""
    real = noise._normal
    return [(noise, "_normal", lambda count: real(count) / 2)]


def noise_is_divided_by_the_batch() -> list[Patch]:
    """The noise is made for the mean over who was drawn, and added to the sum."""
    real_sum, real_noise, drawn = dp_sgd.clipped_sum, dp_sgd.noised, [1]

    def summed(*args: Any, **how: Any) -> Any:
        found = real_sum(*args, **how)
        drawn[0] = max(1, len(found.norms))
        return found

    return [
        (dp_sgd, "clipped_sum", summed),
        (dp_sgd, "noised", lambda total, std, source: real_noise(total, std / drawn[0], source)),
    ]


def empty_steps_have_no_noise() -> list[Patch]:
    """A step that drew nobody is skipped."""
    real = dp_sgd.noised

    def noised(total: torch.Tensor, std: float, source: Any) -> torch.Tensor:
        return real(total, std if bool(total.any()) else 0.0, source)

    return [(dp_sgd, "noised", noised)]


def rehearsal_seed_is_reused() -> list[Patch]:
    """A rehearsal's noise depends on the seed alone: the same in every round."""
    real = hospital.randomness

    def randomness(where: Any, asked: Any) -> Any:
        if where.noise_seed is None:
            return real(where, asked)
        return noise.seeded_noise(where.noise_seed), np.random.default_rng(where.noise_seed)

    return [(hospital, "randomness", randomness)]


def production_noise_has_a_seed() -> list[Patch]:
    """Noise in production comes from a generator whose seed stands in the code."""

    class Seeded:
        source = "os"

        def __init__(self) -> None:
            self.rng = np.random.default_rng(20261122)

        def gaussian(self, like: torch.Tensor, std: float) -> torch.Tensor:
            return torch.from_numpy(self.rng.normal(0, std, tuple(like.shape)))

    return _everywhere(noise.os_noise, Seeded)


def ledger_says_more_noise() -> list[Patch]:
    """The ledger is charged for twice the noise that is added."""

    def pay(where: Any, study: Any, cost: Any) -> float:
        said = cost.model_copy(update={"noise_multiplier": 2 * cost.noise_multiplier}) if cost.mechanism == "gaussian" else cost
        return hospital.ledger_of(where).spend(said)

    return [(hospital, "pay", pay)]


# -- who is drawn, and what it is divided by ----------------------------------------------------------------------------------


def batches_have_a_fixed_size() -> list[Patch]:
    """As many patients in every step, without replacement; the price is that of independent draws."""

    def draw(examples: Any, *, sample_rate: float, views: int, rng: Any, device: Any, failed: Any) -> Iterator[Any]:
        count = round(sample_rate * len(examples.patients))
        for place in sorted(rng.permutation(len(examples.patients))[:count]):
            yield examples.example(examples.patients[place], views, np.random.default_rng(rng.integers(2**63)))

    return [(dp_sgd, "_draw", draw)]


def patients_share_a_generator() -> list[Patch]:
    """One generator for all: a patient more moves everybody else's draw and augmentation."""

    def draw(examples: Any, *, sample_rate: float, views: int, rng: Any, device: Any, failed: Any) -> Iterator[Any]:
        for patient in examples.patients:
            if rng.random() < sample_rate:
                yield examples.example(patient, views, rng)

    return [(dp_sgd, "_draw", draw)]


def sampling_follows_from_the_study() -> list[Patch]:
    """Who is drawn comes from the study's seed, which everybody knows."""
    real = hospital.randomness
    return [(hospital, "randomness", lambda where, asked: (real(where, asked)[0], np.random.default_rng(asked.round)))]


def denominator_is_counted() -> list[Patch]:
    """The sum is divided by how many patients there are."""
    real = hospital.dp_sgd

    def train(model: Any, examples: Any, **how: Any) -> Any:
        return real(model, examples, **{**how, "declared_size": max(1, len(examples.patients))})

    return [(hospital, "dp_sgd", train)]


# -- the gate -----------------------------------------------------------------------------------------------------------------


def gate_lets_batch_norm_in() -> list[Patch]:
    """Only buffers are looked for: batch normalisation that keeps none passes."""
    return [(gate, "_BatchNorm", type("Never", (), {}))]


def gate_looks_at_parameters() -> list[Patch]:
    """Only layers with parameters are looked at, as other validators do."""
    real = gate.require_private

    def require(model: nn.Module) -> None:
        if any(True for module in model.modules() if isinstance(module, gate._BatchNorm) and module.affine):
            real(model)

    return _everywhere(real, require)


# -- the ledger and the door --------------------------------------------------------------------------------------------------


def ledger_after_release() -> list[Patch]:
    """The price is written when the answer is ready."""
    real_pay, real_kept, waiting = hospital.pay, release.kept, list[Any]()

    def pay(where: Any, study: Any, cost: Any) -> float:
        waiting.append((where, study, cost))
        return hospital.ledger_of(where).planned([cost])

    def kept(where: Any, asked: Any, answer: Any) -> Any:
        while waiting:
            real_pay(*waiting.pop())
        return real_kept(where, asked, answer)

    return [(hospital, "pay", pay), (release, "kept", kept)]


def ledger_is_not_flushed() -> list[Patch]:
    """The line is written, and nobody waits until it is on the disk."""
    lazy = SimpleNamespace(**{name: getattr(os, name) for name in dir(os) if not name.startswith("__")})
    lazy.fsync = lambda file: None
    return [(chain, "os", lazy)]


def same_question_is_answered_anew() -> list[Patch]:
    """A lost answer is made again, with new noise."""
    return [(sent, "look", lambda where, asked: None)]


def number_of_patients_leaves() -> list[Patch]:
    """Beside the declared size stands the true one."""
    real = release.reply

    def reply(question: Any, model: Any, **how: Any) -> Any:
        answer = real(question, model, **how)
        answer.content["metrics"]["patients"] = 7
        return answer

    return [(release, "reply", reply)]


def exceptions_leave() -> list[Patch]:
    """A failure is told with the text of its exception."""

    def failure(question: Any, error: BaseException | None = None, *, number: str = "") -> Any:
        words = f"{release.FAILED_WORDS} (reason: {error}, number {number})"
        return Message(Error(release.FAILED, words), reply_to=question)

    return [(release, "failure", failure)]


# -- secure sums --------------------------------------------------------------------------------------------------------------


def noise_share_is_too_small() -> list[Patch]:
    """A hospital adds the noise of a share of all hospitals, where the price counts on fewer."""
    real = grid.discrete_gaussian
    return [(grid, "discrete_gaussian", lambda count, *, std, bits: real(count, std=std * 2**-0.5, bits=bits))]


def masks_are_reused() -> list[Patch]:
    """A hospital keeps its keys for the next round, and nothing in them names the round."""
    own: dict[str, Any] = {}
    real_keys, real_context = site.keys.fresh_keys, Moment.context

    def fresh_of(self: site.SiteRound) -> bytes:
        with self._step("keys"):
            self._fresh = own.setdefault(self.site, real_keys())
            self._own = self._fresh.public(self.moment, self.site, self._key).to_bytes()
            return self._own

    def context(self: Moment, purpose: str, *names: str) -> bytes:
        return real_context(Moment(study=self.study, round=1, attempt=0), purpose, *names)

    return [(site.SiteRound, "keys", fresh_of), (Moment, "context", context)]


def rounding_is_free() -> list[Patch]:
    """The price leaves out that rounding drives neighbours apart."""
    return [(grid.Grid, "sensitivity", property(lambda self: self.bound / self.step))]


BUGS: dict[str, Callable[[], list[Patch]]] = {
    "slices clipped, not patients": slices_are_clipped,
    "clipping per layer": layers_are_clipped,
    "batch Dice mixes patients": loss_mixes_rows,
    "a patient that isn't finite poisons the sum": broken_patient_poisons,
    "a patient that fails stops the step": failing_patient_stops_the_step,
    "counts without a bound": counts_are_not_bounded,
    "noise of half the size": noise_is_half,
    "noise divided by the batch": noise_is_divided_by_the_batch,
    "no noise where nobody was drawn": empty_steps_have_no_noise,
    "one seed for all rounds": rehearsal_seed_is_reused,
    "a seed in production": production_noise_has_a_seed,
    "the ledger says more noise": ledger_says_more_noise,
    "batches of a fixed size": batches_have_a_fixed_size,
    "one generator for all patients": patients_share_a_generator,
    "sampling that everybody knows": sampling_follows_from_the_study,
    "divided by the number of patients": denominator_is_counted,
    "batch norm passes the gate": gate_lets_batch_norm_in,
    "gate looks at parameters alone": gate_looks_at_parameters,
    "ledger after the release": ledger_after_release,
    "ledger without a flush": ledger_is_not_flushed,
    "the same question answered anew": same_question_is_answered_anew,
    "the number of patients leaves": number_of_patients_leaves,
    "words of exceptions leave": exceptions_leave,
    "secure sum: share of noise too small": noise_share_is_too_small,
    "secure sum: masks used twice": masks_are_reused,
    "secure sum: rounding for free": rounding_is_free,
}


def _everywhere(function: Any, instead: Any) -> list[Patch]:
    """Wherever a module of konsil holds `function` under some name."""
    ours = ("fl_client", "fl_server", "tasks", "simulation")
    return [
        (module, name, instead)
        for path, module in list(sys.modules.items())
        if path.startswith(ours) and module is not None
        for name, value in list(vars(module).items())
        if value is function
    ]


@contextmanager
def _broken(bug: Callable[[], list[Patch]]) -> Iterator[None]:
    """While this lasts konsil has the bug. What is remembered from before, or of it, is forgotten."""
    with ExitStack() as stack:
        for owner, name, value in bug():
            stack.enter_context(replaced(owner, name, value))
        _forget()
        yield
    _forget()


def _forget() -> None:
    trial._chosen.clear()
    trial._tried.clear()
    plan._grid.cache_clear()


def main(arguments: Sequence[str] | None = None) -> int:
    """Break, look, repair; the last line is one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bugs", nargs="+", default=[""], help="parts of names of bugs; default: all")
    parser.add_argument("--every", action="store_true", help="show each bug to every check, also after one has caught it")
    options = parser.parse_args(arguments)
    if unknown := [part for part in options.bugs if not any(part in name for name in BUGS)]:
        parser.error(f"no bug's name holds {unknown[0]!r}; there are {', '.join(BUGS)}")
    torch.set_num_threads(1)
    began = time.process_time()
    alarms, cost = list[str](), dict[str, float]()
    for check in CHEAP:
        start = time.process_time()
        if not _held(check):
            alarms.append(check.name)
        cost[check.name] = time.process_time() - start
    quickest = sorted(CHEAP, key=lambda check: cost[check.name])
    print(f"code as it is: {len(CHEAP)} checks, false alarms: {', '.join(alarms) or 'none'}", file=sys.stderr)
    caught: dict[str, list[str]] = {}
    for name, bug in BUGS.items():
        if not any(part in name for part in options.bugs):
            continue
        with _broken(bug):
            caught[name] = []
            for check in quickest:
                if not _held(check):
                    caught[name].append(check.name)
                    if not options.every:
                        break
        print(f"{name}: {', '.join(caught[name]) or 'NOT CAUGHT'}", file=sys.stderr, flush=True)
    figures = {
        "bugs": len(caught),
        "caught": sum(bool(checks) for checks in caught.values()),
        "false_alarms": len(alarms),
        "caught_by": caught,
        "checks": [check.name for check in CHEAP],
        "cpu_s": round(time.process_time() - began),
    }
    print(json.dumps(figures))
    return 0 if figures["caught"] == figures["bugs"] and not alarms else 1


def _held(check: Check) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        result = one(check, QUICK, Path(folder))
        for problem in result.finding.problems[:1]:
            print(f"    {check.name}: {problem[:200]}", file=sys.stderr)
        return result.passed


if __name__ == "__main__":
    sys.exit(main())
