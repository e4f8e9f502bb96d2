"""What `konsil-study` can do, one module per concern: `add` says its commands and their options, `run` in them what is done.

A command's function takes the options and returns the exit status. Commands that need the coordinator's folder have the
parent parser `house`, which brings `--folder`; heavy imports stand inside functions, so that a word of help needs no torch.
"""

import argparse
from typing import TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""What `add` adds to."""

EXIT = {"complete": 0, "degraded": 3, "failed": 4}
"""Exit status by verdict; 1 is a mistake in a command or a file, 2 one in its options."""

UNDECIDED = 5
"""Exit status where somebody asked what came of a study that has no verdict yet: it runs, or broke off and may be resumed."""

LEFT = 130
"""Exit status of whoever stopped looking; the study goes on."""
