"""A study that is in its folder into MLflow or TensorBoard, once, now: `konsil-study track`."""

from __future__ import annotations

import argparse
from pathlib import Path

from fl_server.commands import Commands


def add(commands: Commands, house: argparse.ArgumentParser) -> None:
    """The command and its options."""
    command = commands.add_parser("track", parents=[house], help="write a study into MLflow or TensorBoard, as it is now")
    command.set_defaults(run=track)
    command.add_argument("study", help="its name, its run's number, or the beginning of its hash")
    command.add_argument("--runs", type=Path, default=None, help="a folder of runs, in place of the coordinator's")
    command.add_argument("--mlflow", metavar="URI", default=None, help="a tracking server (default: as in coordinator.yaml)")
    command.add_argument("--tensorboard", action="store_true", help="into its folder, too")


def track(options: argparse.Namespace) -> int:
    """Write it down and wait until that is done; 1 if it failed, with the reasons on standard error."""
    import sys

    from fl_server.commands.looking import study_of
    from fl_server.house import House
    from fl_server.tracking import LOCAL, LOG, Tracking, start

    folder, name = study_of(options)
    settings = Tracking() if options.runs is not None else House.load(options.folder).tracking
    changes = {"mlflow": options.mlflow or settings.mlflow, "tensorboard": options.tensorboard or settings.tensorboard}
    settings = Tracking.model_validate({**settings.model_dump(), **changes})
    if lacking := settings.missing():
        raise ValueError("; ".join(lacking))
    if settings.mlflow is None and not settings.tensorboard:
        raise ValueError("there is nowhere to write it: --mlflow URI, or --tensorboard")
    store = options.runs if options.runs is not None else folder.parent
    log = folder / LOG
    before = log.stat().st_size if log.exists() else 0
    process = start(folder, settings, store.resolve())
    process.communicate()
    said = log.read_bytes()[before:].decode(errors="replace").strip()
    if process.returncode:
        print(said or f"the process ended with {process.returncode}", file=sys.stderr)
        return 1
    if settings.mlflow is not None:
        where = f"sqlite:///{store.resolve() / 'mlflow.db'}" if settings.mlflow == LOCAL else settings.mlflow
        print(f"{name} is in MLflow, experiment {settings.experiment}: {where}")
    if settings.tensorboard:
        print(f"{name} is in TensorBoard: tensorboard --logdir {folder / 'tensorboard'}")
    return 0
