"""What `konsil-site` can do, one module per concern: `add` says its commands and their options, `run` in them what is done.

A command's function takes the hospital's settings and the options, and returns the exit status.
"""

import argparse
from typing import TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""What `add` adds to."""
