"""The process that writes down one study: at every line on standard input, and once more when there are no more.

It works at a low priority, gives up one record after `LIMIT_S` seconds, says on standard error what went wrong, and ends when
it has heard nothing for a while: it will be started again.
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import sys
from pathlib import Path
from types import FrameType

from fl_server.record import Record, moment
from fl_server.tracking import Tracking

LIMIT_S = 120
"""Seconds for writing down one record."""

IDLE_S = 300
"""Seconds without a word after which the process ends: rounds may last for hours, and MLflow takes 250 MB."""


def main() -> int:
    """Write down what comes; 1 if the last time failed."""
    parser = argparse.ArgumentParser(prog="konsil-tracking", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--settings", required=True, help="as JSON")
    options = parser.parse_args()
    settings = Tracking.model_validate_json(options.settings)
    os.nice(5)
    signal.signal(signal.SIGALRM, _too_long)
    sound, said = True, "more"
    while said == "more":
        said = _said()
        sound = once(options.folder, settings, options.store) if said else sound
    return 0 if sound else 1


def once(folder: Path, settings: Tracking, store: Path) -> bool:
    """Write down the record as it is now, within `LIMIT_S` seconds; whether that went well everywhere."""
    sound = True
    try:
        record = Record.read(folder / "record.json")
    except FileNotFoundError:
        return True
    except (OSError, ValueError) as error:
        _complain(error)
        return False
    if settings.mlflow is not None:
        from fl_server.tracking import runs_of_mlflow

        signal.alarm(LIMIT_S)
        try:
            runs_of_mlflow.publish(record, folder, settings, store)
        except Exception as error:  # a server may answer anything; the next round is another chance
            _complain(error)
            sound = False
        finally:
            signal.alarm(0)
    if settings.tensorboard:
        from fl_server.tracking import curves_of_tensorboard

        try:
            curves_of_tensorboard.publish(record, folder)
        except Exception as error:
            _complain(error)
            sound = False
    return sound


def _said() -> str:
    """What was said: `more` for any number of lines, `last` if there will be no more, nothing after `IDLE_S` without a word."""
    found, wait_s = "", float(IDLE_S)
    while select.select([sys.stdin], [], [], wait_s)[0]:
        if not os.read(sys.stdin.fileno(), 65536):
            return "last"
        found, wait_s = "more", 0.0
    return found


def _too_long(number: int, frame: FrameType | None) -> None:
    raise TimeoutError(f"not done after {LIMIT_S} s")


def _complain(error: Exception) -> None:
    said = " ".join(str(error).split())[:1000]
    print(f"{moment()} {type(error).__name__}: {said}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
