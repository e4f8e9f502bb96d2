"""konsil-site: what a person at the hospital does with studies and with the ledger.

konsil-site --site site.yaml studies            what was asked, what was decided, what it would cost
konsil-site --site site.yaml show HASH          the whole study, as JSON
konsil-site --site site.yaml approve HASH       say yes to exactly this study
konsil-site --site site.yaml decline HASH       say no
konsil-site --site site.yaml ledger             every release so far, what they cost together, what is left
konsil-site --site site.yaml start --superlink HOST:PORT --root-certificates ca.crt ...   join a federation
"""

from __future__ import annotations

import argparse
import getpass
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from conf.study import Study, words
from fl_client.approval import Approvals, Decision
from fl_client.privacy import BudgetSpent, Ledger, LedgerBroken
from fl_client.site import Site


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 if it did what was asked, 1 with a sentence on standard error if not."""
    options, rest = _parser().parse_known_args(arguments)
    if rest and options.command != "start":
        _parser().error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        site = Site.load(options.site)
        if options.command == "start":
            return start(options.site, options.superlink, rest)
        if options.command == "ledger":
            return ledger(site)
        if options.command == "studies":
            return studies(site)
        study = Approvals(site.folder).find(options.hash)
        if options.command == "show":
            print(study.model_dump_json(indent=1))
            return 0
        return decide(site, study, "approved" if options.command == "approve" else "declined", who=options.who)
    except ValidationError as error:
        print(f"{options.site}: {words(error)}", file=sys.stderr)
    except (OSError, ValueError, BudgetSpent, LedgerBroken) as error:
        print(error, file=sys.stderr)
    return 1


def studies(site: Site) -> int:
    """Print every study that was asked for: hash, name, decision, price."""
    approvals = Approvals(site.folder)
    for key, study in approvals.studies.items():
        decision = approvals.decisions.get(key)
        said = f"{decision.decision} by {decision.who} on {decision.when[:10]}" if decision else "not decided"
        print(f"{key[:12]}  {study.name}: {said}; {_price(site, study)}")
    if not approvals.studies:
        print(f"{site.name} has not been asked to join a study yet")
    return 0


def decide(site: Site, study: Study, decision: Decision, *, who: str) -> int:
    """Write down a decision about one study."""
    epsilon = study.privacy.epsilon if study.privacy.kind == "patient" else None
    line = Approvals(site.folder).decide(study, decision, who=who, epsilon=epsilon)
    print(f"{line.decision}: study {study.name} ({study.hash}) at {site.name}; {_price(site, study)}")
    return 0


def ledger(site: Site) -> int:
    """Check the ledger's chain and print it."""
    book = _ledger(site)
    for number, event in enumerate(book.events, start=1):
        print(
            f"{number:4}  {event.study_name} round {event.round}: {event.kind}, {event.steps} noisy sum(s), noise multiplier "
            f"{event.noise_multiplier:.4g}, sampling {event.sample_rate:g}"
        )
    print(f"{len(book.events)} releases, unbroken; epsilon {book.epsilon:.4g} of {book.budget:g} at delta {book.delta:g}")
    return 0


def start(site: Path, superlink: str, options: Sequence[str]) -> int:
    """Become Flower's SuperNode with this site's settings in its node configuration. Returns only if that fails.

    Flower's own SuperNode runs the app that the coordinator sends: join only coordinators whose code you trust.
    """
    command = ["flower-supernode", "--superlink", superlink, "--node-config", f'site="{site.resolve()}"', *options]
    os.execvp(command[0], command)


def _price(site: Site, study: Study) -> str:
    if study.privacy.kind == "none":
        return "no privacy: updates would leave without noise"
    return (
        f"price epsilon {study.privacy.epsilon:g} (delta {study.privacy.delta:g}); so far the ledger stands at "
        f"{_ledger(site).epsilon:.4g} of {site.budget.epsilon:g}"
    )


def _ledger(site: Site) -> Ledger:
    budget = site.budget
    return Ledger(site.ledger_path, epsilon=budget.epsilon, delta=budget.delta, accept_no_privacy=site.accept_no_privacy)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="konsil-site", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--site", type=Path, required=True, help="the hospital's settings file, site.yaml")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("studies", help="what was asked and what was decided")
    commands.add_parser("ledger", help="check and print the privacy ledger")
    for name in ("show", "approve", "decline"):
        command = commands.add_parser(name)
        command.add_argument("hash", help="the study's hash, or as much of its beginning as is unique")
        if name != "show":
            command.add_argument("--who", default=getpass.getuser(), help="who decides (default: the user's name)")
    joined = commands.add_parser("start", help="join a federation; further options go to flower-supernode")
    joined.add_argument("--superlink", required=True, help="HOST:PORT of the coordinator's SuperLink")
    return parser


if __name__ == "__main__":
    sys.exit(main())
