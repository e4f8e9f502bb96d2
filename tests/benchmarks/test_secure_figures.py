"""The program that measures secure sums, on a small round."""

import json
import runpy
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent.parent.parent / "benchmarks" / "secure_aggregation.py"


def test_its_last_line_is_figures_of_every_round(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [PROGRAM.name, "--sites", "3", "4", "--sizes", "4000"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(PROGRAM), run_name="__main__")
    assert ended.value.code == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["sites"] for row in figures["rounds"]] == [3, 4]
    assert 0 < figures["max_error"] < 1e-6
    for row in figures["rounds"]:
        assert row["max_error_in_steps"] <= row["sites"] / 2
        assert 4000 < row["sent_bytes"] < 5000  # the vector, two keys, a signature, and shares for each other site
    assert figures["rounds"][1]["one_gone_max_error"] < 1e-6
    assert "one_gone_max_error" not in figures["rounds"][0]  # of three, all must be left


def test_over_the_network_there_are_models_of_a_few_sizes(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [PROGRAM.name, "--network", "--sizes", "4000"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(PROGRAM), run_name="__main__")
    assert ended.value.code == 2
    assert "there are models of [10000, 2000000, 30000000] bytes, not of [4000]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"), [(("--sites", "3", "2"), "at least 3 hospitals, not 2"), (("--sizes", "0"), "4 bytes at least, not 0")]
)
def test_what_is_no_secure_sum_is_refused_in_words(monkeypatch, capsys, words, said):
    monkeypatch.setattr(sys, "argv", [PROGRAM.name, *words])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(PROGRAM), run_name="__main__")
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_rounds_over_the_network_are_measured_with_and_without_masks(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [PROGRAM.name, "--network", "--sizes", "10000", "--rounds", "2", "--turns", "1"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(PROGRAM), run_name="__main__")
    assert ended.value.code == 0
    (row,) = json.loads(capsys.readouterr().out.splitlines()[-1])["network"]
    assert (row["bytes"], row["sites"], row["rounds_of_each"]) == (9312, 3, 1)
    assert 0 < row["plain_round_s"] < row["masked_round_s"]  # one exchange against four
    assert 2 * 9312 < row["plain_traffic_bytes"] < row["masked_traffic_bytes"] < 60_000  # down and up, and what Flower adds
