"""`konsil-simulate`: Hydra composes the settings, `read` checks them, `rehearse` runs them.

Hydra is seen in this file alone. Wrong keys and wrong values are refused before anything runs, in words.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

import conf
from conf.study import words
from simulation.settings import Simulation, read

CONF = Path(next(iter(conf.__path__)))

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
        simulations = [_read(job) for job in jobs]
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


def _compose(overrides: Sequence[str]):  # type: ignore[no-untyped-def]
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return compose("simulation", overrides=list(overrides))


def _read(overrides: Sequence[str]) -> Simulation:
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
    folders = sorted(folder for folder in CONF.iterdir() if folder.is_dir() and folder.name in ("hospitals", "size", "task", "privacy", "strategy"))
    return "\n".join(f"  {folder.name}={'|'.join(sorted(file.stem for file in folder.glob('*.yaml')))}" for folder in folders)


def _hydra_words(error: Exception) -> str:
    """Hydra's message without its advice on `+key`, and the keys or options there are."""
    lines = [line for line in str(error).splitlines() if line.strip() and "To append to your config" not in line and "Set the environment" not in line]
    text = "\n".join(dict.fromkeys(lines))
    if "In 'simulation': Could not find" in text or "Key" in text or "Could not override" in text:
        text += f"\nSettings at the top: {', '.join(sorted(Simulation.model_fields))}\nChoices:\n{_groups()}"
    return text


def _refuse(text: str) -> int:
    print(f"konsil-simulate: these settings can't be run:\n{text}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    sys.exit(main())
