"""A study before it runs, its start and its end: `konsil-study show, start, stop, run`."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from conf.study import Study
from fl_server.commands import Commands
from fl_server.commands.composed import settings_of

LONGEST_DAYS = 366


def add(commands: Commands, house: argparse.ArgumentParser) -> None:
    """The commands and their options."""
    shown = commands.add_parser("show", help="the study as it will be identified: hash, price, settings")
    shown.set_defaults(
        run=lambda options: show(_shown(options.file, options.change, options.references), file_alone=options.json)
    )
    shown.add_argument("file", type=Path, help="a study file, or the first KEY=VALUE")
    shown.add_argument("change", nargs="*", help="KEY=VALUE")
    shown.add_argument("--json", action="store_true", help="the study's file and nothing else, to be sent to hospitals")
    shown.add_argument("--references", type=Path, default=None, help="as `start` will be given it: it is part of the study")
    started = commands.add_parser("start", parents=[house], help="start a study on the running coordinator")
    started.set_defaults(run=start)
    started.add_argument("study", nargs="*", help="a study's file and KEY=VALUE, or only KEY=VALUE")
    started.add_argument("--wait", action="store_true", help="stay and show how it goes; the exit code is the verdict")
    started.add_argument(
        "--wait-for",
        type=_count,
        default=0,
        metavar="N",
        help="hospitals that have to take part before round 1, or all of them",
    )
    started.add_argument(
        "--wait-days", type=_days, default=None, metavar="DAYS", help="for so long, as long as there are fewer"
    )
    started.add_argument("--replace", action="store_true", help="in place of the results of an earlier study of this name")
    started.add_argument("--initial", type=Path, default=None, help="weights that the study names as initial_model_sha256")
    started.add_argument(
        "--references", type=Path, default=None, help="free patients that a study with strategy fedwiener filters by"
    )
    started.add_argument("--json", action="store_true", help="for scripts: name, hash and run in one line, and nothing else")
    stopped = commands.add_parser("stop", parents=[house], help="stop a study that runs")
    stopped.set_defaults(run=stop)
    stopped.add_argument("study", help="its name, its run's number, or the beginning of its hash")
    own = commands.add_parser("run", help="start a study with Flower's own command on a SuperLink of yours")
    own.set_defaults(run=lambda o: run(Study.read(o.file), o.superlink, app=o.app, stream=o.stream))
    own.add_argument("file", type=Path, help="a study file")
    own.add_argument("--superlink", default="local", help="its name in Flower's config.toml (default: local)")
    own.add_argument("--app", type=Path, default=Path(), help="folder of konsil's pyproject.toml (default: here)")
    own.add_argument("--stream", action="store_true", help="show the ServerApp's log until the run ends")


def show(study: Study, *, file_alone: bool = False) -> int:
    """Print the hash that the sites approve, the price, and every setting; or only the settings, as a study file."""
    if file_alone:
        print(study.model_dump_json(indent=1))
        return 0
    privacy = study.privacy
    price = f"epsilon {privacy.epsilon:g}, delta {privacy.delta:g}" if privacy.kind == "patient" else "no privacy"
    print(f"{study.hash}  {study.name}: {study.rounds} rounds, {len(study.sites)} sites, {price} for a patient of each site")
    print(study.model_dump_json(indent=1))
    return 0


def _shown(first: Path, changes: Sequence[str], references: Path | None) -> Study:
    """The study as `start` would make it of a file, of what was changed in it, or of what was composed."""
    from fl_server.start import filtering_by, study_of

    settings = filtering_by(references, settings_of([str(first), *changes]))
    if settings.get("sites") is None:
        raise ValueError("name the hospitals: sites=[a,b]; only `start` knows who is registered")
    study = study_of(settings, registered=[], models=None)
    if study.strategy.name == "fedwiener" and study.strategy.references_sha256 is None:
        print(
            "hospitals will be asked for another study than this: `start --references FILE` adds the fingerprint of the free "
            "patients that it filters by; give `show` the same file",
            file=sys.stderr,
        )
    if not changes and "=" not in str(first) and (as_it_stands := Study.read(first)).hash != study.hash:
        print(
            f"{first} as it stands is another study ({as_it_stands.hash[:12]}) than `start` makes of it ({study.hash[:12]}), "
            "with what its task settles by itself; send hospitals what `konsil-study show --json` gives",
            file=sys.stderr,
        )
    return study


ALL = -1
"""`--wait-for all`."""


def _count(text: str) -> int:
    if text == "all":
        return ALL
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of hospitals nor 'all'")
    return int(text)


def _days(text: str) -> float:
    try:
        days = float(text)
    except ValueError:
        days = -1.0
    if not 0 <= days <= LONGEST_DAYS:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of days between 0 and {LONGEST_DAYS}")
    return days


def start(options: argparse.Namespace) -> int:
    """Start a study on the running coordinator; with `--wait` the verdict is the exit code."""
    from fl_server.console import watch
    from fl_server.console.files import Files
    from fl_server.control import control
    from fl_server.house import House
    from fl_server.keeper import begin
    from fl_server.runs import in_hand
    from fl_server.start import filtering_by, put_away, require_references, require_room, require_weights, study_of

    house = House.load(options.folder)
    with control(house) as talk:
        keys = {site.name: site.key for site in talk.sites()}
        registered = list(keys)
        settings = filtering_by(options.references, settings_of(options.study))
        study = study_of(settings, registered=registered, models=house.models, keys=keys)
        if strangers := sorted(set(study.sites) - set(registered)):
            raise ValueError(
                f"no hospital is registered as {', '.join(strangers)}; there are {', '.join(registered) or 'none'}"
            )
        wait_for = len(study.sites) if options.wait_for == ALL else options.wait_for
        if wait_for > len(study.sites):
            raise ValueError(f"--wait-for {wait_for}: the study has {len(study.sites)} hospitals")
        folder = house.runs / study.name
        with in_hand(house.runs, study.name):
            _require_rest(folder)
            require_room(house, study, replace=options.replace)
            require_weights(house, study, options.initial)
            require_references(house, study, options.references)
            aside = put_away(house, study)
            days = options.wait_days
            try:
                run = begin(house, talk, study, wait_for=wait_for, quorum_timeout_s=None if days is None else days * 86400.0)
            except ValueError:
                if aside is not None:  # nobody was asked, and the earlier study's results stay where they were
                    shutil.rmtree(folder, ignore_errors=True)
                    aside.rename(folder)
                raise
    if options.json:
        print(json.dumps({"name": study.name, "study_hash": study.hash, "run": run, "folder": str(folder)}), flush=True)
        return watch.watch(Files(folder), study.name, patient=True, live=False, tell=lambda _: None) if options.wait else 0
    print(f"{study.name} ({study.hash}) has started as run {run}: {study.rounds} rounds, {', '.join(study.sites)}")
    if not options.wait:
        print(f"konsil-study watch {study.name} shows how it goes, konsil-study status {study.name} how it stands")
        return 0
    return watch.watch(Files(folder), study.name, patient=True, live=sys.stdout.isatty())


def _require_rest(folder: Path) -> None:
    """Raise `ValueError` if a study of this name runs, or is about to be taken up again."""
    from fl_server.runs import Standing, record_of

    standing = Standing.read(folder)
    if standing is None or standing.wanted != "running":
        return
    record = record_of(folder)
    if record is None or not record.finished:
        raise ValueError(f"study {folder.name} runs (run {standing.run}); konsil-study stop {folder.name} ends it")


def stop(options: argparse.Namespace) -> int:
    """Stop a study, whether it runs or waits to be taken up again; what it has so far stays."""
    from fl_server.control import Refused, Unreachable, control
    from fl_server.house import House
    from fl_server.record import moment
    from fl_server.runs import Standing, find, in_hand, record_of

    house = House.load(options.folder)
    folder = find(house.runs, options.study)
    with in_hand(house.runs, folder.name):
        record, standing = record_of(folder), Standing.read(folder)
        if record is not None and record.finished:
            raise ValueError(f"study {folder.name} is over ({record.verdict}); there is nothing to stop")
        if standing is None:
            raise ValueError(f"study {folder.name} was not started here; stop the process that runs it")
        said = {"wanted": "stopped", "why": "", "stopped": moment()}
        standing.model_copy(update=said).write(folder)  # first: else it would be taken up again
    rest = f"konsil-study resume {folder.name} goes on with it"
    try:
        with control(house) as talk:
            if standing.run is not None and talk.run_status(standing.run)[0] != "finished":
                talk.stop(standing.run)
                print(f"{folder.name} (run {standing.run}) is being stopped; what its rounds have made stays; {rest}")
                return 0
    except Unreachable as error:
        print(f"{folder.name} will not be taken up again; {error}", file=sys.stderr)
        return 0
    except Refused as error:
        print(error, file=sys.stderr)
    print(f"{folder.name} was not running and will not be taken up again; {rest}")
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
