"""The door in at work: `konsil-site intake`."""

from __future__ import annotations

import argparse

from fl_client.commands import Commands
from fl_client.site import Site


def add(commands: Commands) -> None:
    """The command and its options."""
    door = commands.add_parser("intake", help="receive images and let their patients in, until told to stop")
    how = door.add_mutually_exclusive_group()
    how.add_argument("--once", action="store_true", help="work off what lies there, however new, and end")
    how.add_argument("--arrivals", action="store_true", help="work off what arrives, and leave the door to another process")
    door.set_defaults(run=_intake)


def _intake(site: Site, options: argparse.Namespace) -> int:
    from fl_client.intake import at_the_door  # here: image readers take seconds to import

    if options.once:
        return at_the_door.once(site)
    if options.arrivals:
        return at_the_door.arrivals(site)
    return at_the_door.open_door(site, options.site)
