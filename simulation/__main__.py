"""`konsil-simulate`: Hydra composes the settings, `read` checks them, `rehearse` runs them.

Hydra is seen in this file alone. Wrong keys and wrong values are refused before anything runs, in words.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

import conf
from conf.study import words
from simulation.settings import Simulation, read

CONF = Path(next(iter(conf.__path__)))
GROUPS = ("hospitals", "size", "privacy", "strategy", "task")

HELP = """konsil-simulate: federate hospitals that do not exist, through the code that real ones run.

  konsil-simulate                                   the rehearsal: five generated hospitals, three minutes
  konsil-simulate size=standard                     the study: 40-60 patients per hospital, 3 seeds, all comparisons
  konsil-simulate privacy.epsilon=3 rounds=20 hospitals=five_scanners strategy=fedavg seed=7
  konsil-simulate -m privacy.epsilon=1,3,8          one run per value, each in its own folder
  konsil-simulate --show [overrides]                print the composed settings and stop

Choices (group=option):
{groups}

Settings (key=value; dots go deeper; these are the defaults):
{settings}
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit status: 0 complete, 1 failed, 2 wrong settings, 3 degraded."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if {"-h", "--help"} & set(arguments):
        settings = OmegaConf.to_yaml(_compose([]))
        print(HELP.format(groups=_groups(), settings="".join(f"  {line}\n" for line in settings.splitlines())))
        return 0
    many = bool({"-m", "--multirun"} & set(arguments))
    show = "--show" in arguments
    overrides = [argument for argument in arguments if argument not in ("-m", "--multirun", "--show")]
    try:
        jobs = _sweep(overrides) if many else [overrides]
        simulations = [settings_of(job) for job in jobs]
        if many:
            simulations = [_named(simulation, job) for simulation, job in zip(simulations, jobs, strict=True)]
    except (HydraException, OmegaConfBaseException) as error:
        return _refuse(_hydra_words(error))
    except ValidationError as error:
        return _refuse(words(error))
    except ValueError as error:
        return _refuse(str(error))
    if show:
        for simulation in simulations:
            print(OmegaConf.to_yaml(OmegaConf.create(simulation.model_dump(mode="json"))))
        return 0
    from simulation.rehearsal import rehearse  # torch and Flower are imported when there is something to run

    status = 0
    for simulation in simulations:
        verdict = rehearse(simulation)
        status = max(status, {"complete": 0, "failed": 1, "degraded": 3}[verdict])
    return status


def _compose(overrides: Sequence[str]) -> DictConfig:
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return compose("simulation", overrides=list(overrides))


def settings_of(overrides: Sequence[str]) -> Simulation:
    """The checked settings of `conf/` with these overrides."""
    settings = OmegaConf.to_container(_compose(overrides), resolve=True)
    if not isinstance(settings, dict):
        raise ValueError("conf/simulation.yaml must hold a mapping")
    return read({str(key): value for key, value in settings.items()})


def _sweep(overrides: Sequence[str]) -> list[list[str]]:
    """Hydra's `a=1,2 b=3` as the list of its combinations."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    choices = [
        [f"{item.get_key_element()}={value}" for value in item.sweep_string_iterator()] if item.is_sweep_override() else [text]
        for item, text in zip(parsed, overrides, strict=True)
    ]
    return [list(job) for job in product(*choices)]


def _named(simulation: Simulation, overrides: Sequence[str]) -> Simulation:
    """The same run in a folder of its own, named after what it overrides."""
    label = "_".join(override.replace("=", "-").replace("/", "-") for override in overrides)
    kept = "".join(c for c in label if c.isalnum() or c in "._-")
    return simulation.model_copy(update={"name": f"{simulation.name}_{kept}"[:64]})


def _groups() -> str:
    return "\n".join(f"  {group}={'|'.join(_choices(CONF / group))}" for group in GROUPS)


def _choices(folder: Path) -> list[str]:
    return sorted(file.stem for file in folder.glob("*.yaml"))


def _hydra_words(error: Exception) -> str:
    """What Hydra says, without its advice for programmers, and what is allowed at that place."""
    text = str(error)
    if wrong := re.search(r"Could not override '([^']+)'", text):
        *path, key = wrong[1].split(".")
        place: Any = OmegaConf.to_container(_compose([]))
        for part in path:
            place = place.get(part) if isinstance(place, dict) else None
        allowed = f"{'.'.join(path) or 'the top level'} has {', '.join(sorted(place))}" if isinstance(place, dict) else ""
        return f"{wrong[1]}: no such setting as {key}; {allowed}"
    if wrong := re.search(r"Could not find '(\w+)/([^']+)'", text):
        return f"{wrong[1]}: no such choice as {wrong[2]}; {wrong[1]} is one of {', '.join(_choices(CONF / wrong[1]))}"
    return "\n".join(dict.fromkeys(line for line in text.splitlines() if line.strip()))


def _refuse(text: str) -> int:
    print(f"konsil-simulate: these settings can't be run:\n{text}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    sys.exit(main())
