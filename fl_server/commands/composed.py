"""A study's settings as a person gives them: a file, or the choices in conf/federation/, and KEY=VALUE to change either."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from conf.command_line import unreadable
from conf.study import settings_in


def settings_of(arguments: Sequence[str]) -> dict[str, Any]:
    """A study's settings: of a file that comes first, or composed from conf/federation/; then KEY=VALUE.

    Raises `ValueError` for what is no KEY=VALUE, for a choice that there isn't, and for a file that holds no settings.
    """
    import conf

    if arguments and "=" not in arguments[0]:
        settings = settings_in(Path(arguments[0]))
        for key, value in _changes(arguments[1:]).items():
            *path, last = key.split(".")
            place = settings
            for name in path:
                place = place.setdefault(name, {})
                if not isinstance(place, dict):
                    raise ValueError(f"{key}: {name} is a value and holds no settings")
            place[last] = value
        return settings
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException, OverrideParseException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    home = Path(next(iter(conf.__path__)))
    groups = {folder.name for root in (home, home / "federation") for folder in root.iterdir() if folder.is_dir()}
    studies = sorted(file.stem for file in (home / "federation" / "study").glob("*.yaml"))
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals:
            raise ValueError(f"{argument!r} is no KEY=VALUE; a study's file comes first")
        if key == "study" and value not in studies:
            raise ValueError(f"study: no such choice as {value}; study is one of {', '.join(studies)}")
    # keys that conf/ leaves at their defaults are taken, too; the Study knows which there are
    offered = [text if text.partition("=")[0] in groups or text[0] in "+~" else f"++{text}" for text in arguments]
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(home / "federation")):
            composed = OmegaConf.to_container(compose("start", overrides=offered), resolve=True)
    except OverrideParseException as error:
        raise ValueError(unreadable(error.override.removeprefix("++"), error.message)) from None
    except (HydraException, OmegaConfBaseException) as error:
        text = str(error).partition("Config search path:")[0]  # where Hydra looked helps nobody here
        lines = [line for line in text.splitlines() if line.strip() and not line.startswith("See https")]
        raise ValueError("\n".join(lines)) from None
    return {str(key): value for key, value in composed.items()} if isinstance(composed, dict) else {}


def _changes(arguments: Sequence[str]) -> dict[str, Any]:
    """KEY=VALUE, the values read as YAML. Raises `ValueError` for what is none."""
    import yaml

    changes = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or not key:
            raise ValueError(f"{argument!r} is no KEY=VALUE")
        try:
            changes[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(unreadable(argument, str(error))) from None
    return changes
