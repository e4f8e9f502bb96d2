"""A study that starts from another model's weights: `konsil-study start-from`."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path

from fl_server.commands import Commands


def add(commands: Commands, house: argparse.ArgumentParser) -> None:
    """The command and its options."""
    begun = commands.add_parser(
        "start-from", parents=[house], help="make the weights that a study starts from, and the study that names them"
    )
    begun.set_defaults(run=start_from)
    begun.add_argument("source", help="NAME[:VERSION] of the registry, a run's folder, a MONAI bundle, or a file of weights")
    begun.add_argument("study", nargs="+", help="a study's file and KEY=VALUE, or only KEY=VALUE")
    begun.add_argument("--to", type=Path, required=True, help="the new study's file, for hospitals to approve and to start")
    begun.add_argument("--map", action="append", default=[], metavar="OLD=NEW", help="rename arrays: model.*=body.model.*")
    begun.add_argument("--fresh", action="append", default=[], metavar="PATTERN", help="draw these anew: 'head.*'")
    begun.add_argument("--torchscript", action="store_true", help="read TorchScript too, a program of somebody you trust")
    begun.add_argument("--json", action="store_true", help="for scripts")


def start_from(options: argparse.Namespace) -> int:
    """Make weights and study."""
    from fl_server.commands.composed import settings_of
    from fl_server.house import House
    from fl_server.start import study_of
    from fl_server.transfer import prepare, read_source, renaming

    house = House.load(options.folder)
    if options.to.exists():
        raise ValueError(f"{options.to} exists already; --to takes a new file")
    settings = settings_of(options.study)
    settings.pop("initial_model_sha256", None)
    study = study_of(settings, registered=["everybody"], models=house.models)
    source = read_source(options.source, folder=house.folder, programs=options.torchscript)
    name, made = prepare(study, source, models=house.models, renamed=renaming(options.map), fresh=options.fresh)
    settings = {key: value for key, value in settings.items() if key != "plain_strategy" and value is not None}
    options.to.write_text(json.dumps({**settings, "initial_model_sha256": name}, indent=1))
    if options.json:
        counts = {"matched": made.matched, "fresh": list(made.fresh), "unused": list(made.unused)}
        print(json.dumps({"initial_model_sha256": name, "study": str(options.to), **counts}, indent=1))
        return 0
    print(f"{len(made.matched)} arrays are those of {source.facts['source']}")
    print(f"drawn anew: {', '.join(made.fresh) or 'none'}")
    if made.unused:
        print(f"not used: {', '.join(made.unused)}")
    print(f"weights {name}\nnext: konsil-study start {shlex.quote(str(options.to))}")
    return 0
