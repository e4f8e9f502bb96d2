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
    if made.scores:
        patients = "patient" if made.tested == 1 else "patients"
        print(f"On {made.tested} {patients} held back from every training, before -> after:")
        width = max(map(len, made.scores))
        for name, (before, after) in made.scores.items():
            print(f"  {name:{width}s}  {before:.3f} -> {after:.3f}")
    else:
        print("Nobody is held back from training here, so nothing says whether it is better (test_fraction).")
    print("It was trained without noise and must not leave the house.")
    return 0
