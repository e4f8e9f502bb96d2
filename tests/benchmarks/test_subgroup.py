"""What the benchmark of rare subgroups makes of kept results."""

import json
import runpy
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent.parent.parent


@pytest.fixture
def subgroup(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE / "benchmarks"))
    return runpy.run_path(str(HERE / "benchmarks" / "subgroup.py"))


def keep(cache, run, subgroup_dice, others_dice):
    def scores(dice):
        return {"blood_pool": dice + 0.1, "myocardium": dice - 0.1, "right_ventricle": 0.9}

    path = cache / "subgroup" / "results" / run.file
    path.parent.mkdir(parents=True, exist_ok=True)
    sides = {"subgroup": subgroup_dice, "others": others_dice}
    found = {side: {f"G{n}": scores(dice) for n, dice in enumerate(values)} for side, values in sides.items()}
    path.write_text(json.dumps({"dice": found, "cpu_s": 1.0}))


def test_gains_are_paired_by_patient_and_told_with_their_interval(tmp_path, monkeypatch, capsys, subgroup):
    for seed, more in ((0, 0.02), (1, 0.04)):
        begin = ("alone", "dcm", "nothing")
        keep(tmp_path, subgroup["Run"](*begin, "none", seed), [0.5, 0.7], [0.6])
        keep(tmp_path, subgroup["Run"](*begin, "real", seed), [0.5 + more, 0.7 + 2 * more], [0.6])
    arguments = ["--cache", str(tmp_path), "--only", "alone", "--arms", "none", "real", "--seeds", "0", "1"]
    monkeypatch.setattr(sys, "argv", ["subgroup.py", *arguments, "--starts", "nothing"])
    main = subgroup["main"]
    monkeypatch.setitem(main.__globals__, "alone", lambda *given: pytest.fail("was kept"))
    assert main() == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    none, real = said["alone dcm nothing none"], said["alone dcm nothing real"]
    assert (none["subgroup"]["dice"], none["subgroup"]["sd"], none["others"]["dice"]) == (0.6, 0.0, 0.6)
    assert "gain_dice" not in none["subgroup"]
    assert real["subgroup"]["by_seed"] == pytest.approx([0.03, 0.06])  # 0.02 and 0.04; 0.04 and 0.08
    mean, low, high = real["subgroup"]["gain_dice"]
    assert mean == pytest.approx(0.045)  # of 0.03 and 0.06, each over two seeds
    assert (low, high) == pytest.approx((0.03, 0.06))
    assert real["subgroup"]["gain_myocardium"][0] == pytest.approx(0.045)
    assert real["subgroup"]["gain_right_ventricle"] == [0.0, 0.0, 0.0]
    assert real["others"]["gain_dice"] == [0.0, 0.0, 0.0]


def test_nobody_is_trained_on_and_tested_and_the_subgroup_is_nearly_missing(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE / "benchmarks"))
    import subgroup_data as whom

    for disease in whom.RARE:
        (others, theirs), (tested, ill) = whom.train_of(disease), whom.test_of(disease)
        assert len({*others, *theirs, *tested, *ill}) == len(others) + len(theirs) + len(tested) + len(ill)
        assert (len(others), len(theirs), len(tested), len(ill)) == (38, 22, 20, 20)
        assert {whom.DISEASES[(int(name[1:]) - whom.FIRST) // whom.BETWEEN] for name in (*theirs, *ill)} == {disease}
        assert disease not in {whom.DISEASES[(int(name[1:]) - whom.FIRST) // whom.BETWEEN] for name in (*others, *tested)}
