"""The program that measures a private step, on its smallest network."""

import json
import runpy
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent.parent.parent / "benchmarks" / "private_step.py"


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", [PROGRAM.name, *words])
    runpy.run_path(str(PROGRAM), run_name="__main__")


def test_its_last_line_has_time_and_agreement_of_each_way(monkeypatch, capsys):
    run(monkeypatch, "--cases", "perceptron", "--ways", "vmap", "--repeats", "1", "--no-memory")
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    (case,) = figures["networks"].values()
    assert set(case["seconds"]) == {"ordinary", "ours", "vmap"}
    assert case["ratio_to_plain"] == case["ratios_to_plain"]["ours"] > 0
    assert case["ratio_opacus_hooks_to_ours"] == "fails"  # it was not asked for
    assert case["peak_memory_ratio"] is None
    assert case["relative_error"] < 1e-6
    assert case["relative_errors"]["vmap"] < 1e-6
    assert figures["repeats"] == 1
    assert 0 < figures["ledger_spend_s"] < 10


@pytest.mark.slow
def test_memory_of_a_step_is_all_that_it_needs(monkeypatch, capsys):
    run(monkeypatch, "--cases", "perceptron,heart_8", "--ways", "ours", "--repeats", "1")
    networks = json.loads(capsys.readouterr().out.splitlines()[-1])["networks"]
    assert networks["perceptron"]["peak_memory_ratio"] is None  # an ordinary step of 433 weights takes no page anew
    peak = networks["heart_8"]["peak_mb"]
    # 16 features of 8 x 4 slices of 80 x 80 in single precision are 12.5 MiB, and of the layers at full resolution alone an
    # ordinary step keeps a transposed convolution, two convolutions, two norms, two slopes and a sum for the way back
    assert peak["ordinary"] > 8 * 12.5
    assert networks["heart_8"]["peak_memory_ratio"] == pytest.approx(peak["ours"] / peak["ordinary"], abs=0.01)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--cases", "heart"), "no case named 'heart'; there are heart_8, heart_32, unet_3d"),
        (("--ways", "opacus"), "no way named 'opacus'; there are ordinary, ours"),
        (("--repeats", "0"), "--repeats 0 times nothing"),
    ],
)
def test_what_it_does_not_know_is_refused_before_anything_runs(monkeypatch, capsys, words, said):
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, *words)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
