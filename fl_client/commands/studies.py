"""Decisions about studies: `konsil-site studies, show, approve, decline`."""

from __future__ import annotations

import argparse
from pathlib import Path

from pydantic import ValidationError

from conf.study import Study, words
from fl_client import decision
from fl_client.approval import Approvals
from fl_client.commands import Commands
from fl_client.decision import DAYS, LONGEST, paid, require_possible
from fl_client.site import Site


def add(commands: Commands) -> None:
    """The commands and their options."""
    asked = commands.add_parser("studies", help="what was asked and what was decided")
    asked.set_defaults(run=lambda site, options: studies(site))
    shown = commands.add_parser("show", help="what a study would run, on whom, what leaves, at what price")
    shown.add_argument("--json", action="store_true", help="every setting of the study, as it is hashed")
    yes = commands.add_parser("approve", help="say yes to exactly this study, once")
    yes.add_argument("--days", type=_days, default=DAYS, help=f"how long the yes is good (default {DAYS})")
    no = commands.add_parser("decline", help="say no")
    for command, run in ((shown, _show), (yes, _approve), (no, _decline)):
        command.add_argument("study", help="a study's file, or its hash or as much of the beginning as is unique")
        command.set_defaults(run=run)
    for command in (yes, no):
        command.add_argument("--who", help="who decides (default: the user's name)")


def _days(said: str) -> int:
    if not said.isdecimal() or not 1 <= int(said) <= LONGEST:
        raise argparse.ArgumentTypeError(f"a yes is good for 1 to {LONGEST} days, not {said!r}")
    return int(said)


def _show(site: Site, options: argparse.Namespace) -> int:
    study = study_of(site, options.study)
    if options.json:
        print(study.model_dump_json(indent=1))
    else:
        _tell_contract(site, study, days=DAYS)
    return 0


def _approve(site: Site, options: argparse.Namespace) -> int:
    return approve(site, study_of(site, options.study), who=options.who, days=options.days)


def _decline(site: Site, options: argparse.Namespace) -> int:
    return decline(site, study_of(site, options.study), who=options.who)


def study_of(site: Site, said: str) -> Study:
    """The study in a file that the coordinator sent by other means, or one that was put down when a run asked.

    Looking at a file puts nothing down. Raises `ValueError` for a file that holds no study or is not there, and for a hash that
    fits none or several.
    """
    if Path(said).is_file():
        return study_in(Path(said))
    if said and not set(said) <= set("0123456789abcdef"):
        raise ValueError(
            f"{said} is a folder; name a study's file in it" if Path(said).is_dir() else f"there is no file {said}"
        )
    return Approvals(site.folder).find(said)


def study_in(file: Path) -> Study:
    """The study in a file. Raises `ValueError` for a file that holds none, or leaves open what a task settles by itself.

    The coordinator settles that when it starts the study. Settled by what is installed here it might be another one.
    """
    from tasks.task import settled  # here: tasks import torch

    try:
        study = Study.read(file)
    except ValidationError as error:
        raise ValueError(f"{file} is no study: {words(error)}") from None
    except ValueError as error:  # it names the file
        raise ValueError(f"{error}: it is no study") from None
    try:
        whole = settled(study.task) == study.task
    except Exception:  # no such task here, or settings that it can't have: whoever runs it is told so, by `load_for`
        return study
    if not whole:
        raise ValueError(
            f"{file} leaves open what its task settles when the study is started, so that its hash would be another study's; "
            f"ask the coordinator for what `konsil-study show {file.name} --json` prints"
        )
    return study


def studies(site: Site) -> int:
    """Print every study that was asked for: hash, name, decision, price."""
    from fl_client.contract import price  # here: tasks import torch

    approvals = Approvals(site.folder)
    for key, study in approvals.studies.items():
        line = approvals.decisions.get(key)
        said = f"{line.decision} by {line.who} on {line.when[:10]}" if line else "not decided"
        spent = paid(site, study)
        cost = price(site, study, rounds=max(0, study.rounds - spent.rounds), scores=spent.scores == 0)
        print(f"{key[:12]}  {study.name}: {said}, {spent.rounds} of {study.rounds} rounds paid; {cost}")
    if not approvals.studies:
        print(f"{site.name} has not been asked to join a study yet")
    return 0


def approve(site: Site, study: Study, *, who: str, days: int = DAYS) -> int:
    """Show the contract, count whom the study can use here, and write down the yes.

    Raises `ValueError`, having written nothing, for a study that this site would decline all the same, and where fewer patients
    than `minimum_cohort` can be used.
    """
    from fl_client.suitability import tell  # here: tasks import torch

    require_possible(site, study)
    _tell_contract(site, study, days=days)
    line, cost = decision.approve(site, study, who=who, days=days, told=tell)
    print(f"{line.decision}: study {study.name} ({study.hash}) at {site.name} by {who}, good until {line.until}; {cost}")
    return 0


def decline(site: Site, study: Study, *, who: str) -> int:
    """Write down the no."""
    line = decision.decline(site, study, who=who)
    print(f"{line.decision}: study {study.name} ({study.hash}) at {site.name} by {who}")
    return 0


def _tell_contract(site: Site, study: Study, *, days: int) -> None:
    from fl_client.contract import contract  # here: tasks import torch

    for heading, lines in contract(site, study, days=days):
        for number, line in enumerate(lines):
            print(f"{heading if number == 0 else '':14}  {line}")
