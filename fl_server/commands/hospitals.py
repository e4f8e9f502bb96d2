"""Who may connect: `konsil-study join-token, register, unregister, sites`."""

from __future__ import annotations

import argparse
from pathlib import Path

from fl_server.commands import Commands

LONGEST_DAYS = 366


def add(commands: Commands, house: argparse.ArgumentParser) -> None:
    """The commands and their options."""
    token = commands.add_parser("join-token", parents=[house], help="a word that lets a hospital register its key, once")
    token.set_defaults(run=join_token)
    by_hand = commands.add_parser("register", parents=[house], help="register a hospital's public key")
    by_hand.set_defaults(run=register)
    out = commands.add_parser("unregister", parents=[house], help="shut a hospital out")
    out.set_defaults(run=unregister)
    for command in (token, by_hand, out):
        command.add_argument("name", help="the hospital's, as in its site.yaml")
    by_hand.add_argument("key", help="its public key, or a file with it")
    token.add_argument("--days", type=_days, default=7.0, help="that the token is good for (default: 7)")
    there = commands.add_parser("sites", parents=[house], help="who is registered, and who is there")
    there.set_defaults(run=sites)
    there.add_argument("--json", action="store_true", help="for scripts")


def _days(text: str) -> float:
    try:
        days = float(text)
    except ValueError:
        days = 0.0
    if not 0 < days <= LONGEST_DAYS:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of days above 0, {LONGEST_DAYS} at most")
    return days


def join_token(options: argparse.Namespace) -> int:
    """Print a new join token."""
    import sys

    from fl_server.house import House
    from fl_server.tokens import Tokens

    house = House.load(options.folder)
    print(Tokens(house.tokens).give(options.name, valid_s=options.days * 24 * 3600))
    print(
        f"for {options.name}, once, within {options.days:g} days, in place of any earlier one; shown only now", file=sys.stderr
    )
    return 0


def register(options: argparse.Namespace) -> int:
    """Register a hospital's key by hand."""
    from fl_server.control import control
    from fl_server.house import House

    path = Path(options.key)
    text = options.key if options.key.startswith(("ecdsa-", "-----BEGIN")) else path.read_text()
    with control(House.load(options.folder)) as talk:
        talk.register(options.name, text)
    print(f"{options.name} may connect")
    return 0


def unregister(options: argparse.Namespace) -> int:
    """Shut a hospital out."""
    from fl_server.control import control
    from fl_server.house import House

    with control(House.load(options.folder)) as talk:
        talk.unregister(options.name)
    print(f"{options.name} may not connect any more")
    return 0


def sites(options: argparse.Namespace) -> int:
    """List the registered hospitals."""
    import dataclasses
    import json

    from fl_server.control import control
    from fl_server.house import House

    with control(House.load(options.folder)) as talk:
        found = talk.sites()
    if options.json:
        print(json.dumps([dataclasses.asdict(site) for site in found], indent=1))
        return 0
    for site in found:
        seen = f"last came {site.last_seen}" if site.last_seen else "never seen"
        print(f"{site.name}: {site.status}, {seen}, key {site.key_sha256[:16]}")
    return 0
