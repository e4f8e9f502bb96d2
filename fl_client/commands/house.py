"""The house itself: `konsil-site init, pause, resume, stop-now`."""

from __future__ import annotations

import argparse

from fl_client.commands import Commands


def add(commands: Commands) -> None:
    """The commands and their options."""
    new = commands.add_parser("init", help="write the settings and a random key for pseudonyms")
    new.add_argument("--name", required=True, help="the hospital's name, as studies will call it")
    new.add_argument("--declared-size", type=int, required=True, help="a round number near the number of patients; public")
    new.add_argument("--epsilon", type=float, default=10.0, help="the most that patients' data may cost, for ever (default 10)")
    new.add_argument("--delta", type=float, default=1e-3, help="well below one over the number of patients (default 0.001)")
    new.set_defaults(run_without_site=_init)


def _init(options: argparse.Namespace) -> int:
    from fl_client.admission import init

    return init(
        options.site, name=options.name, declared_size=options.declared_size, epsilon=options.epsilon, delta=options.delta
    )
