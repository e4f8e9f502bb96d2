"""konsil-study: what a coordinator does.

The house
  init            FOLDER --host NAME: make a coordinator's folder: keys, certificates, settings
  serve           run the coordinator until it is stopped
  renew           a new server certificate from the same authority
Hospitals
  join-token      NAME: a word that lets the hospital of this name register its key, once
  register        NAME KEY: register a hospital's public key (a file, or the key itself)
  unregister      NAME: shut a hospital out
  sites           who is registered, and who is there
Studies
  show            study.json [KEY=VALUE ...]: the study as it will be identified: hash, price, settings
  start           study.json [--wait], or study=segmentation sites=[a,b] rounds=8: start it on the running coordinator
  stop            RUN: stop a study that runs
  run             study.json --superlink NAME: start it with Flower's own command on a SuperLink of yours
Results
  record          runs/NAME/record.json: what came of it; the exit status is the verdict

Commands that need the coordinator's folder take it from --folder, else from KONSIL_COORDINATOR, else it is the working folder.
A study file is JSON; keys that are left out have their defaults. `start` without a file composes one of conf/federation/;
KEY=VALUE changes either.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from conf.study import words
from fl_server.commands import coordinator, hospitals, page, results, studies

MODULES = (
    coordinator,
    hospitals,
    studies,
    results,
    page,
)
"""Where the commands stand, in the order of the help."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 1 with a sentence on standard error if it can't be done."""
    options = _parser().parse_args(arguments)
    about = getattr(options, "file", None) or "konsil-study"
    try:
        code: int = options.run(options)
        return code
    except ValidationError as error:
        print(f"{about}: {words(error)}", file=sys.stderr)
    except (OSError, ValueError) as error:
        print(f"{about}: {error}", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="konsil-study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    house = argparse.ArgumentParser(add_help=False)
    house.add_argument(
        "--folder",
        type=Path,
        default=Path(os.environ.get("KONSIL_COORDINATOR", ".")),
        help="the coordinator's folder (default: KONSIL_COORDINATOR, else the working folder)",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in MODULES:
        module.add(commands, house)
    return parser


if __name__ == "__main__":
    sys.exit(main())
