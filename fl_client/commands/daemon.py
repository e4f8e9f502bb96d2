"""The hospital at work: `konsil-site join, check, start, public-key`."""

from __future__ import annotations

import argparse
from pathlib import Path

from fl_client.commands import Commands, confided
from fl_client.site import Site


def add(commands: Commands) -> None:
    """The commands and their options."""
    joined = commands.add_parser("join", help="make this hospital's key and register it at the coordinator")
    joined.add_argument(
        "token", nargs="?", default="", help="from the coordinator's person; -: it asks for it (default: print the key)"
    )
    joined.add_argument("--coordinator", default="", metavar="HOST:PORT", help="whom to dial; goes into site.yaml")
    joined.add_argument("--root-certificates", type=Path, metavar="CA.CRT", help="the coordinator's authority; copied here")
    joined.set_defaults(run=_join)
    key = commands.add_parser("public-key", help="print the key that the coordinator has to register")
    key.set_defaults(run=_public_key)
    looked = commands.add_parser("check", help="whether this hospital can work, and what to mend")
    looked.set_defaults(run=_check)
    begun = commands.add_parser("start", help="run until told to stop: receive images, take part in studies")
    begun.add_argument("--only", choices=("intake", "trainer", "page"), default="", help="one role alone (default: all)")
    begun.set_defaults(run=_start)


def _join(site: Site, options: argparse.Namespace) -> int:
    from fl_client.joining import join

    token = confided(options.token, "the coordinator's token") if options.token else ""
    return join(options.site, token=token, address=options.coordinator, root_certificates=options.root_certificates)


def _public_key(site: Site, options: argparse.Namespace) -> int:
    from fl_client.keys import public_key

    if site.coordinator is None:
        raise ValueError(f"{options.site} names no coordinator yet; konsil-site join adds it and makes the key")
    print(f"{public_key(site.coordinator.key)} {site.name}")
    return 0


def _check(site: Site, options: argparse.Namespace) -> int:
    from fl_client.preflight import check

    return check(site, options.site)


def _start(site: Site, options: argparse.Namespace) -> int:
    from fl_client.daemon import start

    return start(options.site, options.only)
