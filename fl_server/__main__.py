"""konsil-study: what a coordinator does with a study.

    konsil-study show study.json                                the study as it will be identified: hash, price, settings
    konsil-study run study.json --superlink NAME [--stream]     start it on the SuperLink of that name in Flower's config.toml
    konsil-study record runs/<name>/record.json                 what came of it; the exit code is the verdict

A study file is JSON; keys that are left out have their defaults.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from conf.study import Study, words
from fl_server.record import Record

EXIT = {"complete": 0, "degraded": 3, "failed": 4}
"""Exit codes of `konsil-study record`; 1 is a mistake in the command or a file."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 1 with a sentence on standard error if it can't be done."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "record":
            return record(options.file)
        study = Study.read(options.file)
        if options.command == "show":
            return show(study)
        return run(study, options.superlink, app=options.app, stream=options.stream)
    except ValidationError as error:
        print(f"{options.file}: {words(error)}", file=sys.stderr)
    except (OSError, ValueError) as error:
        print(f"{options.file}: {error}", file=sys.stderr)
    return 1


def show(study: Study) -> int:
    """Print the hash that the sites approve, the price, and every setting."""
    privacy = study.privacy
    price = f"epsilon {privacy.epsilon:g}, delta {privacy.delta:g}" if privacy.kind == "patient" else "no privacy"
    print(f"{study.hash}  {study.name}: {study.rounds} rounds, {len(study.sites)} sites, {price} for a patient of each site")
    print(study.model_dump_json(indent=1))
    return 0


def run(study: Study, superlink: str, *, app: Path, stream: bool) -> int:
    """Start the study with `flwr run` and return its exit code.

    The study goes into a TOML file: on the command line Flower would cut it at its quotes.
    """
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "run.toml"
        config.write_text(f"study = {json.dumps(study.to_json())}\n")  # a JSON string is a TOML basic string
        command = ["flwr", "run", str(app), superlink, "--run-config", str(config), *(["--stream"] if stream else [])]
        return subprocess.run(command, check=False).returncode


def record(path: Path) -> int:
    """Print the verdict and its reasons."""
    found = Record.read(path)
    print(f"{found.name} ({found.study_hash[:12]}): {found.verdict}, {len(found.rounds)} rounds")
    for reason in found.reasons:
        print(f"  {reason}")
    for name, site in found.sites.items():
        price = "no answer with a price" if site.epsilon is None else f"epsilon {site.epsilon:.4g} (delta {site.delta:g})"
        print(f"  {name}: {price}")
    return EXIT[found.verdict]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="konsil-study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, what in (("show", "a study file"), ("run", "a study file"), ("record", "a record.json")):
        command = commands.add_parser(name)
        command.add_argument("file", type=Path, help=what)
        if name == "run":
            command.add_argument("--superlink", default="local", help="its name in Flower's config.toml (default: local)")
            command.add_argument("--app", type=Path, default=Path(), help="folder of konsil's pyproject.toml (default: here)")
            command.add_argument("--stream", action="store_true", help="show the ServerApp's log until the run ends")
    return parser


if __name__ == "__main__":
    sys.exit(main())
