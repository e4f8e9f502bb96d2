"""Decisions about studies, and the ledger: `konsil-site studies, show, approve, decline, ledger`."""

from __future__ import annotations

import argparse
import getpass
from pathlib import Path

from pydantic import ValidationError

from conf.study import Study, words
from fl_client.approval import Approval, Approvals, Decision
from fl_client.commands import Commands
from fl_client.privacy import Event, Ledger
from fl_client.site import Site

DAYS = 180
"""How long a yes is good unless the person who gives it says otherwise."""


def add(commands: Commands) -> None:
    """The commands and their options."""
    asked = commands.add_parser("studies", help="what was asked and what was decided")
    asked.set_defaults(run=lambda site, options: studies(site))
    spent = commands.add_parser("ledger", help="check and print the privacy ledger")
    spent.set_defaults(run=lambda site, options: ledger(site))
    shown = commands.add_parser("show", help="what a study would run, on whom, what leaves, at what price")
    shown.add_argument("--json", action="store_true", help="every setting of the study, as it is hashed")
    yes = commands.add_parser("approve", help="say yes to exactly this study, once")
    yes.add_argument("--days", type=_days, default=DAYS, help=f"how long the yes is good (default {DAYS})")
    no = commands.add_parser("decline", help="say no")
    for command, run in ((shown, _show), (yes, _approve), (no, _decline)):
        command.add_argument("study", help="a study's file, or its hash or as much of the beginning as is unique")
        command.set_defaults(run=run)
    for command in (yes, no):
        command.add_argument("--who", default=getpass.getuser(), help="who decides (default: the user's name)")


def _days(said: str) -> int:
    if not said.isdecimal() or not 1 <= int(said) <= 3650:
        raise argparse.ArgumentTypeError(f"a yes is good for 1 to 3650 days, not {said!r}")
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

    Raises `ValueError` for a file that holds no study, and for a hash that fits none or several.
    """
    approvals = Approvals(site.folder)
    if not Path(said).is_file():
        return approvals.find(said)
    try:
        study = Study.read(Path(said))
    except (ValidationError, TypeError, ValueError) as error:
        problem = words(error) if isinstance(error, ValidationError) else "not a JSON object"
        raise ValueError(f"{said} is no study: {problem}") from None
    approvals.put_down(study)
    return study


def studies(site: Site) -> int:
    """Print every study that was asked for: hash, name, decision, price."""
    from fl_client.contract import price  # here: tasks import torch

    approvals = Approvals(site.folder)
    for key, study in approvals.studies.items():
        decision = approvals.decisions.get(key)
        said = f"{decision.decision} by {decision.who} on {decision.when[:10]}" if decision else "not decided"
        paid, scored = _paid(site, study)
        cost = price(site, study, rounds=max(0, study.rounds - paid), scores=scored == 0)
        print(f"{key[:12]}  {study.name}: {said}, {paid} of {study.rounds} rounds paid; {cost}")
    if not approvals.studies:
        print(f"{site.name} has not been asked to join a study yet")
    return 0


def approve(site: Site, study: Study, *, who: str, days: int = DAYS) -> int:
    """Show the contract, count whom the study can use here, and write down the yes.

    Raises `ValueError`, having written nothing, for a study that this site would decline all the same, and where fewer patients
    than `minimum_cohort` can be used.
    """
    from fl_client.contract import price, until  # here: tasks import torch
    from fl_client.suitability import tell_usable

    if reason := impossible(site, study):
        raise ValueError(f"not approved: {site.name} would decline study {study.name} all the same: {reason}")
    _tell_contract(site, study, days=days)
    usable = tell_usable(site, study)
    if usable < site.minimum_cohort:
        raise ValueError(
            f"not approved: {usable} training patients are fewer than the {site.minimum_cohort} that this site's "
            "minimum_cohort asks for"
        )
    cost = price(site, study)
    line = _write(site, study, "approved", who=who, until=until(days))
    print(f"{line.decision}: study {study.name} ({study.hash}) at {site.name} by {who}, good until {line.until}; {cost}")
    return 0


def decline(site: Site, study: Study, *, who: str) -> int:
    """Write down the no."""
    line = _write(site, study, "declined", who=who, until=None)
    print(f"{line.decision}: study {study.name} ({study.hash}) at {site.name} by {who}")
    return 0


def _write(site: Site, study: Study, decision: Decision, *, who: str, until: str | None) -> Approval:
    epsilon = study.privacy.epsilon if study.privacy.kind == "patient" else None
    paid, scored = _paid(site, study)
    return Approvals(site.folder).decide(study, decision, who=who, epsilon=epsilon, paid=paid, scored=scored, until=until)


def _tell_contract(site: Site, study: Study, *, days: int) -> None:
    from fl_client.contract import contract  # here: tasks import torch

    for heading, lines in contract(site, study, days=days):
        for number, line in enumerate(lines):
            print(f"{heading if number == 0 else '':14}  {line}")


def ledger(site: Site) -> int:
    """Check the ledger's chain and print it."""
    book = _ledger(site)
    for number, event in enumerate(book.events, start=1):
        print(
            f"{number:4}  {event.study_name} round {event.round}: {event.kind}, {event.steps} noisy sum(s), noise multiplier "
            f"{event.noise_multiplier:.4g}, sampling {event.sample_rate:g}{_doubt(event)}"
        )
    print(f"{len(book.events)} releases, unbroken; epsilon {book.epsilon:.4g} of {book.budget:g} at delta {book.delta:g}")
    repeatable = sum(event.noise == "seeded" for event in book.events)
    if repeatable:
        print(f"{repeatable} of them with repeatable noise: their epsilon protects nobody from whoever knows noise_seed")
    return 0


def impossible(site: Site, study: Study) -> str:
    """Why this site would decline the study whatever a person says; empty if nothing stands against it."""
    from tasks.task import load_for  # here: tasks import torch

    if site.name not in study.sites:
        return f"it names {', '.join(study.sites)} and not {site.name}"
    if study.privacy.kind == "none" and not site.accept_no_privacy:
        return "it has privacy.kind 'none', and site.yaml doesn't accept releases without noise"
    try:
        load_for(study)  # without the site's models: a model may be added after the yes
    except ValueError as error:
        return str(error)
    return ""


def _paid(site: Site, study: Study) -> tuple[int, int]:
    """Rounds and scores of the study in the ledger."""
    from fl_client.price import rounds_paid, scores_paid

    events = _ledger(site).events
    return rounds_paid(study, events), scores_paid(study, events)


def _doubt(event: Event) -> str:
    if event.noise_multiplier == 0:
        return ", NO NOISE"
    return ", repeatable noise" if event.noise == "seeded" else ""


def _ledger(site: Site) -> Ledger:
    budget = site.budget
    return Ledger(site.ledger_path, epsilon=budget.epsilon, delta=budget.delta, accept_no_privacy=site.accept_no_privacy)
