"""Decisions about studies, and the ledger: `konsil-site studies, show, approve, decline, ledger`."""

from __future__ import annotations

import argparse
import getpass
from pathlib import Path

from pydantic import ValidationError

from conf.study import Study, words
from fl_client.approval import Approvals, Decision
from fl_client.commands import Commands
from fl_client.privacy import Event, Ledger
from fl_client.site import Site


def add(commands: Commands) -> None:
    """The commands and their options."""
    asked = commands.add_parser("studies", help="what was asked and what was decided")
    asked.set_defaults(run=lambda site, options: studies(site))
    spent = commands.add_parser("ledger", help="check and print the privacy ledger")
    spent.set_defaults(run=lambda site, options: ledger(site))
    said = {"show": "the whole study, as JSON", "approve": "say yes to exactly this study, once", "decline": "say no"}
    for name, what in said.items():
        command = commands.add_parser(name, help=what)
        command.add_argument("study", help="a study's file, or its hash or as much of the beginning as is unique")
        command.set_defaults(run=_show if name == "show" else _decide)
        if name != "show":
            command.add_argument("--who", default=getpass.getuser(), help="who decides (default: the user's name)")


def _show(site: Site, options: argparse.Namespace) -> int:
    print(study_of(site, options.study).model_dump_json(indent=1))
    return 0


def _decide(site: Site, options: argparse.Namespace) -> int:
    said: Decision = "approved" if options.command == "approve" else "declined"
    return decide(site, study_of(site, options.study), said, who=options.who)


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
    approvals = Approvals(site.folder)
    for key, study in approvals.studies.items():
        decision = approvals.decisions.get(key)
        said = f"{decision.decision} by {decision.who} on {decision.when[:10]}" if decision else "not decided"
        paid, scored = _paid(site, study)
        price = _price(site, study, rounds=max(0, study.rounds - paid), scores=scored == 0)
        print(f"{key[:12]}  {study.name}: {said}, {paid} of {study.rounds} rounds paid; {price}")
    if not approvals.studies:
        print(f"{site.name} has not been asked to join a study yet")
    return 0


def decide(site: Site, study: Study, decision: Decision, *, who: str) -> int:
    """Write down a decision about one study; with a yes, say how many patients here the study can use."""
    if decision == "approved":
        if reason := _impossible(site, study):
            raise ValueError(f"not approved: {site.name} would decline study {study.name} all the same: {reason}")
        _tell_usable(site, study)
    epsilon = study.privacy.epsilon if study.privacy.kind == "patient" else None
    paid, scored = _paid(site, study)
    line = Approvals(site.folder).decide(study, decision, who=who, epsilon=epsilon, paid=paid, scored=scored)
    print(f"{line.decision}: study {study.name} ({study.hash}) at {site.name}; {_price(site, study, rounds=study.rounds)}")
    return 0


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


def _price(site: Site, study: Study, *, rounds: int, scores: bool = True) -> str:
    """What the study says it costs, and where the ledger would stand after `rounds` more of it and its scores."""
    if study.privacy.kind == "none":
        return "no privacy: updates would leave without noise"
    from fl_client.price import planned  # here: tasks import torch
    from tasks.task import load_for

    book = _ledger(site)
    try:
        events = planned(site, study, load_for(study, models=site.models_folder), rounds=rounds, scores=scores)
    except ValueError as error:
        return f"price epsilon {study.privacy.epsilon:g} (delta {study.privacy.delta:g}); it can't be run here: {error}"
    after = book.planned(events)
    over = " (over the budget: it will be refused)" if after > site.budget.epsilon else ""
    return (
        f"price epsilon {study.privacy.epsilon:g} (delta {study.privacy.delta:g}); the ledger stands at {book.epsilon:.4g} and "
        f"would stand at {after:.4g} of {site.budget.epsilon:g} (delta {site.budget.delta:g}){over}"
    )


def _impossible(site: Site, study: Study) -> str:
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


def _tell_usable(site: Site, study: Study) -> None:
    from fl_client.suitability import tell_usable  # here: tasks import torch

    tell_usable(site, study)


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
