"""How studies go: `konsil-study status, list, log, watch`, at a coordinator or in any folder of runs (`--runs`)."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fl_server.commands import Commands


def add(commands: Commands, house: argparse.ArgumentParser) -> None:
    """The commands and their options."""
    place = argparse.ArgumentParser(add_help=False, parents=[house])
    place.add_argument("--runs", type=Path, default=None, help="a folder of runs, in place of the coordinator's")
    run = "the study's name, its run's number, or the beginning of its hash"
    stands = commands.add_parser(
        "status", parents=[place], help="how studies stand: phase, round, who is awaited, verdict so far"
    )
    stands.set_defaults(run=status)
    stands.add_argument("study", nargs="?", help=f"{run}; the exit code is the verdict (default: all that are not over)")
    all_of_them = commands.add_parser("list", parents=[place], help="all studies: hash, verdict, rounds, sites, start")
    all_of_them.set_defaults(run=listing)
    happened = commands.add_parser("log", parents=[place], help="what has happened in a study, one line for each thing")
    happened.set_defaults(run=log)
    happened.add_argument("study", help=run)
    happened.add_argument("--follow", action="store_true", help="go on until it is over; the exit code is the verdict")
    seen = commands.add_parser("watch", parents=[place], help="the live view of a study; Ctrl-C ends the looking only")
    seen.set_defaults(run=watch)
    seen.add_argument("study", help=run)
    for command in (stands, all_of_them, happened):
        command.add_argument("--json", action="store_true", help="for scripts")


def status(options: argparse.Namespace) -> int:
    """Tell how one study stands, or every one that is not over."""
    from fl_server.console import watch
    from fl_server.console.files import Files
    from fl_server.console.picture import picture
    from fl_server.console.words import listed, told

    if options.study is None:
        pictures = [picture(Files(folder), name) for name, folder in _studies(options).items()]
        if options.json:
            print(f"[{','.join(one.model_dump_json() for one in pictures)}]")
            return 0
        for one in pictures:
            print(listed(one) if one.state == "over" else "\n".join(told(one)))
        if not pictures:
            print("no study has been started yet")
        return 0
    folder, name = study_of(options)
    found = picture(Files(folder), name)
    print(found.model_dump_json(indent=1) if options.json else "\n".join(told(found)))
    return watch.status(found)


def listing(options: argparse.Namespace) -> int:
    """List all studies, the latest last."""
    import json

    from fl_server.console.files import Files
    from fl_server.console.picture import picture
    from fl_server.console.words import listed

    pictures = [picture(Files(folder), name) for name, folder in _studies(options).items()]
    if options.json:
        kept = ("name", "study_hash", "state", "run", "ended_rounds", "rounds", "started", "ended", "verdict")
        print(
            json.dumps([{**{key: getattr(one, key) for key in kept}, "sites": list(one.sites)} for one in pictures], indent=1)
        )
        return 0
    for one in pictures:
        print(listed(one) if one.state != "unreadable" else f"{one.name}  {one.said}")
    if not pictures:
        print("no study has been started yet")
    return 0


def log(options: argparse.Namespace) -> int:
    """Tell what has happened."""
    from fl_server.console import watch
    from fl_server.console.events import Event, events
    from fl_server.console.files import Files
    from fl_server.console.picture import drawn

    def tell(event: Event) -> None:
        if options.json:
            print(event.json_line, flush=True)
        else:
            print(event.line, flush=True)

    folder, name = study_of(options)
    files = Files(folder)
    if options.follow:
        return watch.watch(files, name, patient=options.runs is None, live=False, tell=tell)
    read = files.read()
    for event in events(read):
        tell(event)
    return watch.status(drawn(name, read))


def watch(options: argparse.Namespace) -> int:
    """Show a study as it goes on."""
    from fl_server.console import watch
    from fl_server.console.files import Files

    folder, name = study_of(options)
    return watch.watch(Files(folder), name, patient=options.runs is None, live=sys.stdout.isatty())


def _studies(options: argparse.Namespace) -> dict[str, Path]:
    from fl_server.console.files import studies
    from fl_server.runs import folders

    if options.runs is not None:
        return studies(options.runs)
    return {folder.name: folder for folder in folders(_house_runs(options))}


def study_of(options: argparse.Namespace) -> tuple[Path, str]:
    """Folder and name of the study that `--runs` or `--folder` and `study` mean. Raises `ValueError` if there is none."""
    from fl_server.console.files import study
    from fl_server.runs import find

    if options.runs is not None:
        return study(options.runs, options.study), options.study
    folder = find(_house_runs(options), options.study)
    return folder, folder.name


def _house_runs(options: argparse.Namespace) -> Path:
    from fl_server.house import House

    return House.load(options.folder).runs
