"""Cases that are nobody's, to learn from beside patients: `konsil-site synthetic, add-synthetic, remove-synthetic`."""

from __future__ import annotations

import argparse
from pathlib import Path

from fl_client.commands import Commands
from fl_client.site import Site

NOBODYS = (
    "Only cases that are nobody's: drawn from a seed, or by a generator that was learned under a promise and passed its gate."
)


def add(commands: Commands) -> None:
    """The commands and their options."""
    there = commands.add_parser("synthetic", help="which synthetic cases train beside the patients, and where they come from")
    there.set_defaults(run=_list)
    new = commands.add_parser(
        "add-synthetic",
        help="let synthetic cases train beside the patients; they are never counted as such",
        description=NOBODYS,
    )
    new.add_argument("folder", type=Path, help="a folder of cases, as python -m simulation.synthetic fills it; it is copied")
    new.add_argument("--origin", required=True, help="a line: where they come from, and why they are nobody's")
    new.add_argument("--who", help="who decides (default: the user's name)")
    new.set_defaults(run=_add)
    away = commands.add_parser("remove-synthetic", help="take synthetic cases away again")
    away.add_argument("batch", help="its name, or the beginning of it; konsil-site synthetic tells")
    away.add_argument("--who", help="who decides (default: the user's name)")
    away.set_defaults(run=_remove)


def _list(site: Site, options: argparse.Namespace) -> int:
    from fl_client.synthetic import batches

    found = batches(site)
    for batch in found:
        print(f"{batch.name}  {len(batch.cases)} cases, {batch.when[:10]}, {batch.who}: {batch.origin}")
    count = sum(len(batch.cases) for batch in found)
    print(f"{count} synthetic cases train beside the patients of {site.name}; they are nowhere else, and no patients")
    return 0


def _add(site: Site, options: argparse.Namespace) -> int:
    from fl_client.synthetic import add as add_cases

    batch, new = add_cases(site, options.folder, origin=options.origin, who=options.who)
    if not new:
        print(f"these {len(batch.cases)} cases were added on {batch.when[:10]} as {batch.name}")
        return 0
    print(
        f"{len(batch.cases)} synthetic cases added as {batch.name}; they train from the next round on, and count as no patients"
    )
    print(f"{NOBODYS} What they show is not protected as a patient is.")
    return 0


def _remove(site: Site, options: argparse.Namespace) -> int:
    from fl_client.synthetic import remove

    batch = remove(site, options.batch, who=options.who)
    print(f"{len(batch.cases)} synthetic cases taken away ({batch.name}); what was learned from them stays in the models")
    return 0
