import io
import re

import pytest
from rich.console import Console

from conf.study import Study
from fl_server.record import Round, SiteRound
from simulation.arms import Arm
from simulation.screen import Screen


class Named:
    """What the screen reads of the settings."""

    name = "rehearsal"

    class size:
        profile = "small"


@pytest.mark.parametrize("columns", [80, 132])
def test_numbers_are_whole_on_a_terminal_of_this_width(columns, tmp_path):
    out = io.StringIO()
    console = Console(file=out, width=columns, force_terminal=True, highlight=False)
    study = Study(konsil_version="0", task={"name": "segmentation"}, rounds=400, sites=("a", "b"))
    answers = {name: SiteRound(answer="used", epsilon=7.99) for name in ("a", "b")}
    with Screen(Named(), console) as screen:  # type: ignore[arg-type]
        screen.advance("comparisons: pooled, alone", 3, 18)
        screen.advance("pre-training", 2499, 2500)
        look = screen.rounds(Arm("federation_private", study, {}, tmp_path))
        look(Round(round=399, sites=answers, seconds=1.0, arrays_sha256=""), {"a": {"dice/x": 0.8765}, "b": {"dice/x": 0.8765}})
    said = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    assert "…" not in said
    assert max(len(line) for line in re.split(r"[\r\n]+", said)) <= columns
    for whole in ("2499/2500", "399/400", "2/2", "Dice 0.876", "ε 7.99", "comparisons: pooled, alone"):
        assert whole in said
