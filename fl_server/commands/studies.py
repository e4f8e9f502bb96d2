"""A study before it runs, its start and its end: `konsil-study show, start, stop, run`."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from conf.study import Study
from fl_server.commands import LEFT, Commands
from fl_server.commands.composed import settings_of


def add(commands: Commands, house: argparse.ArgumentParser) -> None:
    """The commands and their options."""
    shown = commands.add_parser("show", help="the study as it will be identified: hash, price, settings")
    shown.set_defaults(run=lambda options: show(_shown(options.file, options.change)))
    shown.add_argument("file", type=Path, help="a study file, or the first KEY=VALUE")
    shown.add_argument("change", nargs="*", help="KEY=VALUE")
    started = commands.add_parser("start", parents=[house], help="start a study on the running coordinator")
    started.set_defaults(run=start)
    started.add_argument("study", nargs="*", help="a study's file and KEY=VALUE, or only KEY=VALUE")
    started.add_argument("--wait", action="store_true", help="tell of every round; the exit code is the verdict")
    started.add_argument("--replace", action="store_true", help="in place of the results of an earlier study of this name")
    started.add_argument("--initial", type=Path, default=None, help="weights that the study names as initial_model_sha256")
    stopped = commands.add_parser("stop", parents=[house], help="stop a study that runs")
    stopped.set_defaults(run=stop)
    stopped.add_argument("number", type=int, help="of the run, as `start` said it")
    own = commands.add_parser("run", help="start a study with Flower's own command on a SuperLink of yours")
    own.set_defaults(run=lambda o: run(Study.read(o.file), o.superlink, app=o.app, stream=o.stream))
    own.add_argument("file", type=Path, help="a study file")
    own.add_argument("--superlink", default="local", help="its name in Flower's config.toml (default: local)")
    own.add_argument("--app", type=Path, default=Path(), help="folder of konsil's pyproject.toml (default: here)")
    own.add_argument("--stream", action="store_true", help="show the ServerApp's log until the run ends")


def show(study: Study) -> int:
    """Print the hash that the sites approve, the price, and every setting."""
    privacy = study.privacy
    price = f"epsilon {privacy.epsilon:g}, delta {privacy.delta:g}" if privacy.kind == "patient" else "no privacy"
    print(f"{study.hash}  {study.name}: {study.rounds} rounds, {len(study.sites)} sites, {price} for a patient of each site")
    print(study.model_dump_json(indent=1))
    return 0


def _shown(first: Path, changes: Sequence[str]) -> Study:
    """The study of a file as it stands, or as `start` would make it of what was changed or composed."""
    if not changes and "=" not in str(first):
        return Study.read(first)
    from fl_server.start import study_of

    return study_of(settings_of([str(first), *changes]), registered=[], models=Path())


def start(options: argparse.Namespace) -> int:
    """Start a study on the running coordinator; with `--wait` the verdict is the exit code."""
    from fl_server.commands.results import record
    from fl_server.control import control
    from fl_server.house import House
    from fl_server.start import follow, require_room, require_weights, study_of, written

    house = House.load(options.folder)
    with control(house) as talk:
        registered = [site.name for site in talk.sites()]
        study = study_of(settings_of(options.study), registered=registered, models=house.models)
        if strangers := sorted(set(study.sites) - set(registered)):
            raise ValueError(
                f"no hospital is registered as {', '.join(strangers)}; there are {', '.join(registered) or 'none'}"
            )
        require_room(house, study, replace=options.replace)
        require_weights(house, study, options.initial)
        before = written(house.runs / study.name / "record.json")
        run = talk.start(study, enrol_timeout_s=house.enrol_timeout_s)
        print(f"{study.name} ({study.hash}) has started as run {run}: {study.rounds} rounds, {', '.join(study.sites)}")
        path = house.runs / study.name / "record.json"
        if not options.wait:
            print(f"konsil-study record {path} says what comes of it")
            return 0
        try:
            follow(house, talk, study, run, before=before)
        except KeyboardInterrupt:
            print(f"the study goes on; konsil-study record {path}, or konsil-study stop {run}", file=sys.stderr)
            return LEFT
        return record(path)


def stop(options: argparse.Namespace) -> int:
    """Stop a study that runs."""
    from fl_server.control import control
    from fl_server.house import House

    with control(House.load(options.folder)) as talk:
        talk.stop(options.number)
    print(f"run {options.number} is being stopped; what its rounds have made stays in its folder")
    return 0


def run(study: Study, superlink: str, *, app: Path, stream: bool) -> int:
    """Start the study with `flwr run` and return its exit code.

    The study goes into a TOML file: on the command line Flower would cut it at its quotes.
    """
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "run.toml"
        config.write_text(f"study = {json.dumps(study.to_json())}\n")  # a JSON string is a TOML basic string
        command = ["flwr", "run", str(app), superlink, "--run-config", str(config), *(["--stream"] if stream else [])]
        return subprocess.run(command, check=False).returncode
