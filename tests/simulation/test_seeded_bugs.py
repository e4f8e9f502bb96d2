"""konsil broken on purpose: the audit notices, and which of its checks does. Whole table: docs/audit.md."""

import json
import runpy
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent.parent.parent / "benchmarks" / "seeded_bugs.py"
DOCS = Path(__file__).parent.parent.parent / "docs" / "audit.md"


@pytest.fixture(scope="module")
def program():
    return runpy.run_path(str(PROGRAM))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_bug_is_caught_and_nothing_is_found_without_one(program, capsys):
    assert program["main"]([]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (figures["false_alarms"], figures["caught"]) == (0, figures["bugs"])
    assert figures["bugs"] == len(program["BUGS"])


def test_a_bug_that_there_is_not_is_refused_and_not_counted_as_caught(program, capsys):
    with pytest.raises(SystemExit) as ended:
        program["main"](["--bugs", "per layer", "per row"])
    assert ended.value.code == 2
    assert "no bug's name holds 'per row'; there are slices clipped, not patients" in capsys.readouterr().err


def test_the_page_names_every_bug(program):
    text = DOCS.read_text()
    assert [name for name in program["BUGS"] if f"| {name} |" not in text] == []


@pytest.mark.parametrize(
    ("bug", "check"),
    [
        ("counts without a bound", "neighbours: vectors"),
        ("secure sum: rounding for free", "secure sum: rounding"),
        ("secure sum: masks used twice", "secure sum: masks"),
        ("words of exceptions leave", "what leaves"),
        ("one seed for all rounds", "noise: questions"),
    ],
)
def test_a_check_finds_the_bug_that_it_is_there_for_and_nothing_once_it_is_gone(program, bug, check):
    (wanted,) = (one for one in program["CHEAP"] if one.name == check)
    with program["_broken"](program["BUGS"][bug]):
        assert not program["_held"](wanted)
    assert program["_held"](wanted)
