import json
import runpy
import sys
from pathlib import Path

import pytest

from fl_server.plan.utility import table

HERE = Path(__file__).parent.parent.parent


@pytest.fixture
def utility(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE / "benchmarks"))
    return runpy.run_path(str(HERE / "benchmarks" / "utility.py"))


def keep(cache, arm, dice):
    place = cache / "arms" / arm.file
    place.parent.mkdir(parents=True, exist_ok=True)
    found = {"arm": arm.model_dump(mode="json"), "dice": dice}
    place.write_text(json.dumps({**found, "blood_pool": dice, "myocardium": dice, "right_ventricle": dice}))


def test_every_setting_has_a_result_of_its_own(utility):
    arms = dict(utility["table"]([20, 40, 200], [None, 8.0, 3.0, 1.0], [0]))
    assert len(arms) == 3 + 3 * 3 * 2
    arms |= dict(utility["own"]([20, 40], [3.0, 1.0], [0])) | dict(utility["hippocampus"]([3.0], [0]))
    assert len({arm.file for arm in arms.values()}) == len(arms)
    assert utility["Arm"].model_validate(arms["no privacy"].model_dump()).file == arms["no privacy"].file


def test_finished_arms_are_told_and_not_run_again(tmp_path, capsys, monkeypatch, utility):
    for seed, dice in ((0, 0.5), (1, 0.6)):
        for _, arm in utility["table"]([40], [3.0], [seed]):
            keep(tmp_path, arm, dice if arm.secure else dice / 2)
    arguments = ["--cache", str(tmp_path), "--patients", "40", "--epsilons", "3", "--seeds", "0", "1", "--workers", "0"]
    monkeypatch.setattr(sys, "argv", ["utility.py", *arguments])
    main = utility["main"]
    monkeypatch.setitem(main.__globals__, "prepare", lambda *given, **named: None)
    monkeypatch.setitem(main.__globals__, "learn", lambda *given: pytest.fail("was kept"))
    assert main() == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])["table"]
    assert said["epsilon 3, 40 patients, one noise"]["dice"] == pytest.approx(0.55)
    assert said["epsilon 3, 40 patients, one noise"]["sd"] == pytest.approx(0.0707, abs=1e-4)  # of 0.5 and 0.6, n - 1
    assert said["epsilon 3, 40 patients, noise each"] == {
        **dict.fromkeys(("dice", "blood_pool", "myocardium", "right_ventricle"), 0.275),
        **{"sd": 0.0354, "seeds": 2},
    }


def test_the_table_of_the_plan_is_written_of_finished_arms(tmp_path, capsys, monkeypatch, utility):
    reached = {"start": 0.4, "no privacy": 0.7}
    for seed in (0, 1):
        for label, arm in utility["check"]([seed]):
            keep(tmp_path, arm, reached.get(label, 0.6 + 0.02 * seed))
    arguments = ["--cache", str(tmp_path), "--only", "check", "--seeds", "0", "1", "--csv", str(tmp_path / "made.csv")]
    monkeypatch.setattr(sys, "argv", ["utility.py", *arguments])
    main = utility["main"]
    monkeypatch.setitem(main.__globals__, "prepare", lambda *_, **__: None)
    assert main() == 0
    capsys.readouterr()
    rows = table((tmp_path / "made.csv").read_text().splitlines())
    assert len(rows) == 5  # neither the start nor what promises nothing
    assert {row.way for row in rows} == {("fedwiener", "all"), ("fedadam", "norm"), ("fedadam", "all")}
    for row in rows:
        assert (row.epsilon, row.patients, row.sites, row.seeds) == (3.0, 40, 6, 2)
        assert (row.dice, row.sd, row.without_privacy) == pytest.approx((0.61, 0.0141, 0.7))


@pytest.mark.parametrize("words", [("--epsilons", "3", "-1"), ("--epsilons", "nan"), ("--patients", "20", "0")])
def test_what_no_study_promises_is_refused_before_a_patient_is_drawn(monkeypatch, capsys, utility, words):
    monkeypatch.setattr(sys, "argv", ["utility.py", *words])
    monkeypatch.setitem(utility["main"].__globals__, "prepare", lambda *_, **__: pytest.fail("was drawn"))
    with pytest.raises(SystemExit) as ended:
        utility["main"]()
    assert ended.value.code == 2
    assert f"not {words[-1]}" in capsys.readouterr().err
