"""The overview at the head of `konsil-study --help`, and that it comes at once."""

import re
import subprocess
import sys

from fl_server import __main__
from fl_server.__main__ import _parser

SLOW = ("torch", "monai", "flwr", "hydra", "mlflow", "fastapi", "rich")


def test_the_overview_names_every_command_and_no_other():
    (choices,) = [action.choices for action in _parser()._actions if isinstance(action.choices, dict)]
    told = re.findall(r"^  ([a-z][a-z, -]*?)  ", __main__.__doc__, re.MULTILINE) + re.findall(
        r"; (page-token): ", __main__.__doc__
    )
    assert {name for part in told for name in part.split(", ")} == set(choices)


def test_a_word_of_help_loads_nothing_that_takes_seconds():
    look = f"import sys; from fl_server.__main__ import _parser; _parser(); print([n for n in {SLOW} if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True).stdout.strip() == "[]"
