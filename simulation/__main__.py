"""`konsil-simulate`: Hydra composes the settings, `read` checks them, `rehearse` runs them.

Hydra is seen in this file alone. Wrong keys and wrong values are refused before anything runs, in words.
"""

from __future__ import annotations

import hashlib
import os
import re
import signal
import sys
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from itertools import product
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

import conf
from conf.command_line import unreadable
from conf.imports import import_monai_alone
from fl_client.heap import keep_large_blocks
from simulation.run_folder import FolderInUse
from simulation.settings import Simulation, read, require_checks, require_data, sentences

CONF = Path(next(iter(conf.__path__)))
GROUPS = ("study", "hospitals", "size", "privacy", "strategy", "task", "faults", "audit")
REFUSALS = (HydraException, OmegaConfBaseException, ValueError)
"""What wrong settings raise; a `ValidationError` is a `ValueError`."""

WORKER_DIED = """a worker process died, perhaps for lack of memory, and this run can't go on.
Running the same command again resumes it: what is finished is not done again. With workers=1 it needs less memory."""

DISK = "If runs_folder can't be written or its disk is full: mend that, or choose another runs_folder=..., and run it again."

HELP = """konsil-simulate: federate hospitals that do not exist, through the code that real ones run.

  konsil-simulate                                   the rehearsal: five generated hospitals, three minutes
  konsil-simulate size=standard                     the study: 40-60 patients per hospital, 3 seeds, all comparisons
  konsil-simulate privacy.epsilon=3 rounds=20 hospitals=five_scanners strategy=fedavg seed=7
  konsil-simulate study=radiomics                   features of segments to a classifier (also myocarditis, heart_disease)
  konsil-simulate audit=quick                       attack konsil instead: no claim may be refuted (also audit=full)
  konsil-simulate -m privacy.epsilon=1,3,8          one run per value, each in its own folder
  konsil-simulate --show [overrides]                print the composed settings and stop

Choices (group=option):
{groups}

Settings (key=value; dots go deeper; these are the defaults):
{settings}
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit status: 0 complete, 1 failed, 2 refused, 3 degraded."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    import_monai_alone()
    if {"-h", "--help"} & set(arguments):
        settings = OmegaConf.to_yaml(_compose([]))
        _say(HELP.format(groups=_groups(), settings="".join(f"  {line}\n" for line in settings.splitlines())))
        return 0
    many = bool({"-m", "--multirun"} & set(arguments))
    show = "--show" in arguments
    overrides = [argument for argument in arguments if argument not in ("-m", "--multirun", "--show")]
    try:
        jobs = _sweep(overrides) if many else {"": overrides}
        simulations = [_named(settings_of(job), label) for label, job in jobs.items()]
        if not show:
            for simulation in simulations:
                if simulation.audit:
                    require_checks(simulation)
                else:
                    require_data(simulation)
    except REFUSALS as error:
        return _refuse(in_words(error))
    if show:
        _say("\n".join(OmegaConf.to_yaml(OmegaConf.create(one.model_dump(mode="json"))) for one in simulations))
        return 0
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")  # before Flower is imported; else it reports its use
    status = _attack([simulation for simulation in simulations if simulation.audit])
    if status or all(simulation.audit for simulation in simulations):
        return status
    from simulation.rehearsal import (  # torch and Flower are imported when there is something to run
        NoPatients,
        NotTaken,
        rehearse,
    )

    keep_large_blocks()  # pre-training happens in this process
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # end the workers too, as Ctrl-C does
    try:
        verdicts = {rehearse(simulation) for simulation in simulations if not simulation.audit}
    except BrokenProcessPool:
        print(f"konsil-simulate: {WORKER_DIED}", file=sys.stderr)
        return 1
    except (FolderInUse, NotTaken) as error:
        print(f"konsil-simulate: {error}", file=sys.stderr)
        return 2
    except NoPatients as error:
        print(f"konsil-simulate: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        print(f"konsil-simulate: this run can't go on: {error.strerror or error}{where}\n{DISK}", file=sys.stderr)
        return 1
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)  # None: a handler that Python can't put back
    return 1 if "failed" in verdicts else 3 if "degraded" in verdicts else 0


def _say(text: str) -> None:
    """Print it; whoever reads along may have enough before its end, as `| head` does."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _attack(simulations: Sequence[Simulation]) -> int:
    """Attack konsil, once for each of the settings; 1 if any check failed."""
    if not simulations:
        return 0
    from simulation.audit.attack import audit
    from simulation.run_folder import to_itself

    status = 0
    for simulation in simulations:
        folder = Path(simulation.runs_folder) / simulation.name
        try:
            with to_itself(folder):
                status |= audit(simulation.audit, folder, seed=simulation.seed)
        except (FolderInUse, OSError) as error:
            print(f"konsil-simulate: {error}", file=sys.stderr)
            return 2 if isinstance(error, FolderInUse) else 1
    return status


def _compose(overrides: Sequence[str]) -> DictConfig:
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return compose("simulation", overrides=list(overrides))


def settings_of(overrides: Sequence[str]) -> Simulation:
    """The checked settings of `conf/` with these overrides."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    composed = _compose([_offered(item, text) for item, text in zip(parsed, overrides, strict=True)])
    settings = OmegaConf.to_container(composed, resolve=True)
    if not isinstance(settings, dict):
        raise ValueError("conf/simulation.yaml must hold a mapping")
    return read({str(key): value for key, value in settings.items()})


def _offered(override: Override, text: str) -> str:
    """A plain `key=value` so that Hydra takes keys which conf/ leaves at their default; `read` knows which there are."""
    key = override.get_key_element()
    plain = override.is_add() or override.is_force_add() or override.is_delete() or (CONF / key.partition("@")[0]).is_dir()
    return text if plain or key.startswith("hydra") else f"++{text}"


def _sweep(overrides: Sequence[str]) -> dict[str, list[str]]:
    """Hydra's `a=1,2 b=3` as its combinations, each under a label that tells it from the others."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    choices = [
        [f"{item.get_key_element()}={value}" for value in item.sweep_string_iterator()] if item.is_sweep_override() else [text]
        for item, text in zip(parsed, overrides, strict=True)
    ]
    jobs = {}
    for job in product(*choices):
        swept = [override for override, item in zip(job, parsed, strict=True) if item.is_sweep_override()]
        jobs["_".join(swept)] = list(job)
    return jobs


def _named(simulation: Simulation, label: str) -> Simulation:
    """The same run in a folder of its own, named after what distinguishes it in the sweep."""
    kept = re.sub(r"[^A-Za-z0-9._-]", "", label.replace("=", "-").replace("/", "-"))
    name = f"{simulation.name}_{kept}" if kept else simulation.name
    if len(name) > 64 or kept != label.replace("=", "-"):  # something was left out that may have been the difference
        name = f"{name[:55]}-{hashlib.sha256(label.encode()).hexdigest()[:8]}"
    return simulation.model_copy(update={"name": name})


def _groups() -> str:
    return "\n".join(f"  {group}={'|'.join(_choices(CONF / group))}" for group in GROUPS)


def _choices(folder: Path) -> list[str]:
    return sorted(file.stem for file in folder.glob("*.yaml"))


def in_words(error: Exception) -> str:
    """What is wrong with the settings, after one of `REFUSALS`."""
    if isinstance(error, HydraException | OmegaConfBaseException):
        return _hydra_words(error)
    return sentences(error) if isinstance(error, ValidationError) else str(error)


def _hydra_words(error: Exception) -> str:
    """What Hydra says, without its advice for programmers, and what is allowed at that place."""
    if isinstance(error, OverrideParseException):
        return unreadable(error.override.removeprefix("++"), error.message)
    text = str(error)
    if wrong := re.search(r"Could not find '(\w+)/([^']+)'", text):
        return f"{wrong[1]}: no such choice as {wrong[2]}; {wrong[1]} is one of {', '.join(_choices(CONF / wrong[1]))}"
    if wrong := re.search(r"Ambiguous value for argument '([^']+)'", text):
        return f"{wrong[1].lstrip('+')}: several values; -m before it makes one run of each, [brackets] make it a list"
    lines = dict.fromkeys(line for line in text.splitlines() if line.strip() and not line.startswith("See https"))
    return "\n".join(lines)


def _refuse(text: str) -> int:
    print(f"konsil-simulate: these settings can't be run:\n{text}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
