"""The privacy ledger in words and as a picture: `konsil-site ledger`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fl_client.commands import Commands
from fl_client.decision import ledger_of
from fl_client.privacy import Event, Ledger
from fl_client.site import Site

if TYPE_CHECKING:
    from conf.study import Study
    from fl_client.spending import OfStudy, Proposed, Spending


def add(commands: Commands) -> None:
    """The command and its options."""
    spent = commands.add_parser("ledger", help="check the privacy ledger; where the budget went, and what is left of it")
    spent.set_defaults(run=ledger)
    spent.add_argument("--all", action="store_true", help="every release, one line each")
    spent.add_argument(
        "--study", metavar="STUDY", action=Once, help="what this study would cost: its file, or the beginning of its hash"
    )
    spent.add_argument("--plot", type=Path, metavar="FILE", help="the account as a picture: .png, .svg or .pdf")
    spent.add_argument("--json", action="store_true", help="for scripts")


class Once(argparse.Action):
    """An option that is refused the second time: what one study would cost says nothing of two."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """Take the value. Ends the command in words where there is one already."""
        if getattr(namespace, self.dest) is not None:
            parser.error(f"{option_string} takes one study at a time: ask for each of them apart")
        setattr(namespace, self.dest, values)


def ledger(site: Site, options: argparse.Namespace) -> int:
    """Check the ledger's chain and say where the budget went. Raises `LedgerBroken`, and `ValueError` for no study."""
    from fl_client.spending import spending  # here: the accountant takes a moment to import

    book = ledger_of(site)
    if options.study is None:
        account = spending(book, hospital=site.name)
    else:
        study, left, paid = _proposed(site, book, options.study)
        account = spending(book, hospital=site.name, study=(study.hash, study.name), planned=left, paid=paid)
    if options.plot is not None:
        _draw(account, options.plot)
    if options.json:
        print(json.dumps(_plain(dataclasses.asdict(account)), indent=1))
        return 0
    if options.all:
        for number, event in enumerate(book.events, start=1):
            print(_line(number, event))
    for line in told(account):
        print(line)
    if options.plot is not None:
        print(f"drawn in {options.plot}")
    return 0


def told(account: Spending) -> Iterator[str]:
    """The account in sentences."""
    releases = f"{account.releases} {'release' if account.releases == 1 else 'releases'}"
    yield f"{releases}, unbroken; epsilon {_epsilon(account.epsilon)} of {account.budget:g} at delta {account.delta:g}"
    if account.repeatable:
        yield (
            f"{account.repeatable} of them with repeatable noise: their epsilon protects nobody from whoever knows noise_seed"
        )
    if account.bare:
        yield f"{account.bare} of them without noise: they protect nobody, and are in no percentage below"
    if account.studies:
        yield ""
        yield "Where the budget went"
        for one in account.studies:
            yield from _of_study(one)
        yield ""
        yield (
            f"Spent {_percent(account.used)} of the budget, left {_percent(max(0.0, 1 - account.used))}. "
            "(Percentages add up over studies, and epsilons don't: they are of squares of sensitivity over noise.)"
        )
    if (plan := account.proposed) is not None:
        yield ""
        yield from _of_proposed(plan)
        if plan.releases == 0:
            return
        if plan.refused:
            yield f"  the ledger would refuse it: {plan.refused}"
        else:
            left = _percent(max(0.0, 1 - account.used - plan.share))
            yield f"  epsilon would stand at {_epsilon(plan.after)} of {account.budget:g}, with {left} of the budget left"


def _of_study(one: OfStudy) -> Iterator[str]:
    days = one.first[:10] if one.first[:10] == one.last[:10] else f"{one.first[:10]} to {one.last[:10]}"
    known = f" ({one.study[:12]})" if one.study else ""
    yield f"  {one.name}{known}, {days}: {_percent(one.share)}; alone epsilon {_epsilon(one.epsilon)}"
    for kind in one.kinds:
        low, high = kind.noise
        noise = "NO NOISE" if high == 0 else f"noise multiplier {low:.4g}" + (f" to {high:.4g}" if high != low else "")
        releases = f"{kind.releases} {'release' if kind.releases == 1 else 'releases'}"
        yield f"    {kind.kind:12} {releases:>14}, {noise}{'' if high == 0 else ': ' + _percent(kind.share)}"
    if one.if_secure_aggregation_fails is not None:
        yield (
            f"    its sums share their noise with other hospitals': if secure aggregation fails, epsilon "
            f"{_epsilon(one.if_secure_aggregation_fails)} in place of {_epsilon(one.epsilon)}"
        )


def _of_proposed(plan: Proposed) -> Iterator[str]:
    whole = f"{plan.name} ({plan.study[:12]})"
    share = _percent(plan.share)
    if plan.releases == 0:
        yield f"Study {whole}: all {plan.paid} releases of its rounds and scores are paid; nothing is left to pay"
    elif plan.paid:
        releases = f"{plan.paid + plan.releases} releases, all of its rounds and scores"
        yield f"Study {whole}: of {releases}, {plan.paid} paid and {plan.releases} left"
        yield f"  what is left to pay would take {share} of the budget; alone it costs epsilon {_epsilon(plan.alone)}"
    else:
        yield f"Study {whole} would release {plan.releases} times, all of its rounds and scores"
        yield f"  it would take {share} of the budget; alone it costs epsilon {_epsilon(plan.alone)}"


def _line(number: int, event: Event) -> str:
    noise = "" if event.mechanism == "gaussian" else f"{event.mechanism.replace('_', ' ')} "
    doubt = ", NO NOISE" if event.noise_multiplier == 0 else ", repeatable noise" if event.noise == "seeded" else ""
    return (
        f"{number:4}  {event.study_name} round {event.round}: {event.kind}, {event.steps} noisy sum(s), "
        f"{noise}noise multiplier {event.noise_multiplier:.4g}, sampling {event.sample_rate:g}{doubt}"
    )


def _proposed(site: Site, book: Ledger, said: str) -> tuple[Study, list[Event], int]:
    """The study in a file, or one that was asked for by the beginning of its hash; what it would release, how much is paid."""
    from fl_client.commands.studies import study_of
    from fl_client.price import planned, unpaid
    from tasks.task import load_for  # here: tasks import torch

    study = study_of(site, said)
    plan = planned(site, study, load_for(study, models=site.models_folder))
    left = unpaid(plan, study, book.events)
    return study, left, len(plan) - len(left)


def _draw(account: Spending, path: Path) -> None:
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise ValueError(f"a picture's name ends in .png, .svg or .pdf, not {path.name}")
    from fl_client.spending_plot import spending_plot  # here: matplotlib takes a second to import

    spending_plot(account).savefig(path, dpi=160)


def _plain(value: Any) -> Any:
    """Without infinities, for which JSON has no word."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return "infinite" if isinstance(value, float) and math.isinf(value) else value


def _epsilon(value: float) -> str:
    return "infinite" if math.isinf(value) else f"{value:.4g}"


def _percent(share: float) -> str:
    if not math.isfinite(share):
        return "all and more"
    return "less than 0.1 %" if 0 < share < 0.001 else f"{100 * share:.3g} %"
