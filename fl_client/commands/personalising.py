"""A model for this hospital alone: `konsil-site personalise`."""

from __future__ import annotations

import argparse
from pathlib import Path

from fl_client.commands import Commands
from fl_client.commands.studies import study_of
from fl_client.site import Site


def add(commands: Commands) -> None:
    """The command and its options."""
    own = commands.add_parser("personalise", help="train a study's finished model further on this hospital's own patients")
    own.add_argument("study", help="the study's file, or the beginning of its hash")
    own.add_argument("model", type=Path, help="model.pt of its run, or the run's folder")
    own.add_argument("--steps", type=int, default=20, help="gradient steps (default: 20)")
    own.set_defaults(run=_personalise)


def _personalise(site: Site, options: argparse.Namespace) -> int:
    from fl_client.personalise import personalise  # here: torch takes seconds to import

    made = personalise(site, study_of(site, options.study), options.model, steps=options.steps)
    print(f"{made.folder}: {options.steps} steps on {made.patients} patients, loss {made.before:.4g} -> {made.after:.4g}")
    print("It was trained without noise and must not leave the house. Whether it is better, patients it has not seen must say.")
    return 0
