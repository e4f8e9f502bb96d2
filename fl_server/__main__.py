"""konsil-study: what a coordinator does.

The house
  init            FOLDER --host NAME: make a coordinator's folder: keys, certificates, settings
  serve           run the coordinator until it is stopped
  renew           a new server certificate from the same authority
  page            the studies in a browser, at a coordinator or for a folder of runs; page-token: a new token for it
Hospitals
  join-token      NAME: a word that lets the hospital of this name register its key, once
  register        NAME KEY: register a hospital's public key (a file, or the key itself)
  unregister      NAME: shut a hospital out
  sites           who is registered, and who is there
Studies
  plan            [study.json] --size NAME=PATIENTS ...: the noise that a promise needs and what it leaves; --json
  show            study.json [KEY=VALUE ...]: the study as it will be identified: hash, price, settings
  start           study.json [--wait] [KEY=VALUE ...], or study=segmentation sites=[a,b]: start it on the running coordinator
  stop            STUDY: stop it; what it has so far stays
  resume          STUDY: go on with one that was stopped or interrupted, from its last checkpoint
  watch           STUDY: the live view: rounds, hospitals, who is awaited, scores, epsilon, time left
  status          [STUDY]: how it stands: phase, round, who is awaited and for how long, verdict so far; --json
  log             STUDY [--follow]: what has happened, one line for each thing; --json
  list            all studies: hash, verdict, rounds, sites, start; --json
  run             study.json --superlink NAME: start it with Flower's own command on a SuperLink of yours
Results
  record          runs/NAME/record.json: what came of it; the exit status is the verdict
  track           STUDY [--mlflow URI] [--tensorboard]: write it into MLflow or TensorBoard, as it is now
  report          RUN_OR_FOLDER [--to DIR]: the report for clinicians, as a page and as a PDF
Models
  models          list, show, verify, register RUN, withdraw, key: the registry of signed versions, with cards
  export          RUN_OR_MODEL --as torchscript|onnx|monai|json [--to DIR]: for programs that don't have konsil
  start-from      SOURCE study.json [KEY=VALUE ...] --to FILE: a study that starts from another model's weights

A STUDY is named by its name, its run's number, or the beginning of its hash. `status`, `log`, `list` and `watch` also look into
any folder of runs, without a coordinator: --runs DIR.
Exit status: that of the verdict (0 complete, 3 degraded, 4 failed) where a study is told of; 5 if it has none yet, because it
runs or was interrupted; 1 for a mistake in a command or a file, 2 for one in its options, 130 after Ctrl-C.
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

from conf.imports import import_monai_alone
from conf.study import words
from fl_server.commands import (
    coordinator,
    export,
    hospitals,
    looking,
    models,
    page,
    plan,
    report,
    results,
    resume,
    studies,
    track,
    transfer,
)

MODULES = (
    coordinator,
    hospitals,
    plan,
    studies,
    resume,
    looking,
    results,
    report,
    track,
    models,
    export,
    transfer,
    page,
)
"""Where the commands stand, in the order of the help."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 1 with a sentence on standard error if it can't be done."""
    options = _parser().parse_args(arguments)
    import_monai_alone()
    about = getattr(options, "file", None) or "konsil-study"
    try:
        code: int = options.run(options)
        return code
    except BrokenPipeError:  # whoever read along has enough, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ValidationError as error:
        print(f"{about}: {words(error)}", file=sys.stderr)
    except OSError as error:
        print(f"konsil-study: {_of_file(error)}", file=sys.stderr)
    except ValueError as error:
        said = str(error)
        print(said if said.startswith(str(about)) else f"{about}: {said}", file=sys.stderr)
    return 1


def _of_file(error: OSError) -> str:
    """What the system says of a file, without its number."""
    return f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)


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
