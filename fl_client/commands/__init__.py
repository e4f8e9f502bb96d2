"""What `konsil-site` can do, one module per concern: `add` says its commands and their options, `run` in them what is done.

A command's function takes the hospital's settings and the options, and returns the exit status.
"""

import argparse
import getpass
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""What `add` adds to."""


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """What reads a whole number of at least `least`, and at most `most`, for an option."""
    bounds = f"of at least {least}" if most is None else f"from {least} to {most}"

    def read(said: str) -> int:
        if not (said.isascii() and said.isdecimal() and int(said) >= least and (most is None or int(said) <= most)):
            raise argparse.ArgumentTypeError(f"{said!r} is no whole number {bounds}")
        return int(said)

    return read


MEMBERS = 8
"""As `tasks.uncertainty.views.MEMBERS`, which takes seconds to import."""


def add_members(command: argparse.ArgumentParser) -> None:
    """Options that say who looks at an image beside the model itself."""
    command.add_argument(
        "--members",
        type=whole(1),
        default=MEMBERS,
        help=f"how many looks at each image tell how sure the model is (default: {MEMBERS}; 1: none of that)",
    )
    command.add_argument(
        "--also", type=Path, action="append", default=[], help="another model of the same task, asked too; several times"
    )


def add_heat_maps(command: argparse.ArgumentParser) -> None:
    """The option that asks for maps, too."""
    command.add_argument("--heat-maps", action="store_true", help="where the model is unsure, too, as a DICOM Parametric Map")


def user_name() -> str:
    """Who is at the keyboard, as the machine knows them: by name, or by number where a container has no name for them."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no such entry in passwd
        return f"uid {os.getuid()}"


def confided(given: str, question: str) -> str:
    """`given`, or, for nothing or `-`, what is typed at the terminal without being shown, or the first line of standard input.

    An argument of a command stands in the machine's list of processes, which every user may read, and in the shell's history.
    Raises `ValueError` if nothing came.
    """
    if given not in ("", "-"):
        return given
    said = (getpass.getpass(f"{question}: ") if sys.stdin.isatty() else sys.stdin.readline()).strip()
    if not said:
        raise ValueError(f"{question}: nothing was said")
    return said
