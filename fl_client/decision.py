"""Deciding about a study: what a yes asks for before it is written down. The commands and the page both decide here.

Nothing is printed. A yes is refused where this site would decline the study all the same, and where too few patients can be
used; both before anything is written.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from conf.study import Study
from fl_client.approval import Approval, Approvals, Decision
from fl_client.privacy import Ledger
from fl_client.site import Site

if TYPE_CHECKING:
    from fl_client.price import Paid
    from fl_client.suitability import Usable

DAYS = 180
"""How long a yes is good unless the person who gives it says otherwise."""

LONGEST = 3650
"""Days that a yes can be good at most."""


def _nobody(found: Usable) -> None:
    return


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


def require_possible(site: Site, study: Study) -> None:
    """Raise `ValueError` for a study that this site would decline all the same."""
    if reason := impossible(site, study):
        raise ValueError(f"not approved: {site.name} would decline study {study.name} all the same: {reason}")


def approve(
    site: Site, study: Study, *, who: str, days: int = DAYS, told: Callable[[Usable], None] = _nobody
) -> tuple[Approval, str]:
    """Count whom the study can use here, hand that to `told`, and write down the yes; the line and the price in words.

    Raises `ValueError`, having written nothing, for a study that this site would decline all the same, and where fewer patients
    than `minimum_cohort` can be used.
    """
    from fl_client.contract import price, until  # here: tasks import torch
    from fl_client.suitability import count_usable

    require_possible(site, study)
    usable = count_usable(site, study)
    told(usable)
    if usable.count < site.minimum_cohort:
        raise ValueError(
            f"not approved: {usable.count} training patients are fewer than the {site.minimum_cohort} that this site's "
            "minimum_cohort asks for"
        )
    cost = price(site, study)
    return _write(site, study, "approved", who=who, until=until(days)), cost


def decline(site: Site, study: Study, *, who: str) -> Approval:
    """Write down the no. Answers that were kept for a repetition go, and the parameters that were trained for this house."""
    from fl_client import personal, sent  # here: they import torch

    said = _write(site, study, "declined", who=who, until=None)
    sent.forget(site, study.hash)
    personal.forget(site, study.hash)
    return said


def paid(site: Site, study: Study) -> Paid:
    """How many of the study's releases stand in the ledger, by kind."""
    from fl_client.price import paid_of  # here: tasks import torch

    return paid_of(study, ledger_of(site).events)


def ledger_of(site: Site) -> Ledger:
    """The site's ledger, with its budget."""
    budget = site.budget
    return Ledger(site.ledger_path, epsilon=budget.epsilon, delta=budget.delta, accept_no_privacy=site.accept_no_privacy)


def _write(site: Site, study: Study, decision: Decision, *, who: str, until: str | None) -> Approval:
    epsilon = study.privacy.epsilon if study.privacy.kind == "patient" else None
    spent = paid(site, study)
    approvals = Approvals(site.folder)
    approvals.put_down(study)  # it may have come as a file: what was decided about can be read later
    return approvals.decide(
        study,
        decision,
        who=who,
        epsilon=epsilon,
        paid=spent.rounds,
        scored=spent.scores,
        validated=spent.validations,
        crossed=spent.matrix,
        until=until,
    )
