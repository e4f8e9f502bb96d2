"""Runs the checks one by one and writes what they found: `audit.json` and `audit.html` in the run's folder."""

from __future__ import annotations

import json
import platform
import shutil
import tempfile
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from simulation.audit.catalogue import chosen
from simulation.audit.check import Check, Result, Setting, carried_out, told
from simulation.audit.page import page
from simulation.audit.settings import Audit


def audit(settings: Audit, folder: Path, *, seed: int = 0, console: Console | None = None) -> int:
    """Attack konsil as hard as `settings` say. Returns the exit status: 0 if nothing was found, 1 if any check failed.

    Writes `audit.json` and `audit.html` into `folder`, with pictures beside them. What the checks' small hospitals leave on the
    disk is removed.
    """
    console = console or Console(highlight=False)
    checks = chosen(settings)
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # what is compared to the bit is added in one order
    console.print(f"konsil is attacked: {len(checks)} checks, effort {settings.effort}", markup=False)
    columns = (TextColumn("{task.description:<34}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn())
    results: list[Result] = []
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        for number, check in enumerate(checks, start=1):
            line = bars.add_task(check.name, total=1)

            def advance(done: int, total: int, line: Any = line) -> None:
                bars.update(line, completed=done, total=total)

            results.append(one(check, settings, folder, seed=seed, advance=advance))
            bars.remove_task(line)
            _say(console, results[-1], number, len(checks))
    facts = {
        "konsil_version": version("konsil"),
        "effort": settings.effort,
        "settings": settings.model_dump(mode="json"),
        "seed": seed,
        "machine": f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}",
        "passed": all(result.passed for result in results),
        "cpu_s": round(sum(result.seconds for result in results), 1),
        "checks": [result.facts() for result in results],
    }
    (folder / "audit.json").write_text(json.dumps(facts, indent=1) + "\n")
    (folder / "audit.html").write_text(page(results, facts))
    failed = [result.check.name for result in results if not result.passed]
    console.print(f"{folder / 'audit.html'} says what was tried and seen", markup=False, soft_wrap=True)
    console.print(f"REFUTED: {', '.join(failed)}" if failed else "nothing was found", markup=False, soft_wrap=True)
    return 1 if failed else 0


def one(
    check: Check,
    settings: Audit,
    folder: Path,
    *,
    seed: int = 0,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> Result:
    """Run one check in a folder that is removed afterwards; its pictures are kept in `folder`."""
    with tempfile.TemporaryDirectory(prefix="konsil-audit-") as own:
        result = carried_out(check, Setting(settings, Path(own), seed, advance))
        kept = []
        for picture in result.finding.pictures:
            shutil.copy(picture, folder / picture.name)
            kept.append(folder / picture.name)
        result.finding.pictures = kept
    return result


def failed_of(results: Sequence[Result]) -> list[str]:
    """Names of the checks that found something."""
    return [result.check.name for result in results if not result.passed]


def _say(console: Console, result: Result, number: int, count: int) -> None:
    verdict = "held" if result.passed else "REFUTED"
    line = f"{number:>2}/{count} {verdict:<8}{result.check.name:<28}{told(result.finding.figures)}  ({result.seconds:.0f} s)"
    console.print(line, markup=False, soft_wrap=True)
    for problem in result.finding.problems[:10]:
        console.print(f"      {problem}", markup=False, soft_wrap=True)
