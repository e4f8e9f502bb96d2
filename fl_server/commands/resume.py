"""An interrupted study goes on: `konsil-study resume`."""

from __future__ import annotations

import argparse

from fl_server.commands import Commands


def add(commands: Commands, house: argparse.ArgumentParser) -> None:
    """The command and its options."""
    command = commands.add_parser("resume", parents=[house], help="go on with a study that was interrupted or stopped")
    command.set_defaults(run=resume)
    command.add_argument("study", help="its name, its run's number, or the beginning of its hash")


def resume(options: argparse.Namespace) -> int:
    """Start a study again from its last checkpoint.

    Raises `ValueError` for one that is over, or that runs, and `NoCheckpoint` if none can be believed: nothing is begun then.
    """
    from fl_server.checkpoint import Progress
    from fl_server.control import control
    from fl_server.house import House
    from fl_server.keeper import begin, study_in
    from fl_server.live import Now
    from fl_server.run_lock import in_use
    from fl_server.runs import Standing, find, in_hand, record_of

    house = House.load(options.folder)
    folder = find(house.runs, options.study)
    with in_hand(house.runs, folder.name), control(house) as talk:
        record, standing, study = record_of(folder), Standing.read(folder), study_in(folder)
        if record is not None and record.finished:
            raise ValueError(f"study {study.name} is over ({record.verdict}); there is nothing to go on with")
        if in_use(folder):
            raise ValueError(f"study {study.name} runs; konsil-study status {study.name}")
        if standing is not None and standing.run is not None and talk.run_status(standing.run)[0] != "finished":
            now = Now.read(folder)
            if now is None or now.run != standing.run:
                raise ValueError(f"study {study.name} is just starting (run {standing.run})")
            talk.stop(standing.run)  # its process is gone
        progress = None if record is None else Progress.to_go_on_from(folder, study, record)
        rounds = 0 if progress is None else len(progress.record.rounds)
        run = begin(house, talk, study, resume=True, rounds_then=rounds)
    if progress is not None and progress.instead:
        print(f"{progress.instead}; the checkpoint before it is used")
    print(f"{study.name} goes on as run {run}, after round {rounds} of {study.rounds}")
    return 0
